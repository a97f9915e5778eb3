"""Jobs of several ranks in real processes, over gloo, with the job's store hosted outside of them, as torchrun does.

Processes are forked from one that has imported torch, so that a job of four starts in a fraction of a second. What a
rank runs is a function at the top of a module, called with its rank first.
"""

from __future__ import annotations

import datetime
import faulthandler
import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from types import TracebackType
from typing import Any

import torch.distributed as dist

_context = multiprocessing.get_context("forkserver")
_TORCH = ["torch", "torch._dynamo", "torch.distributed.tensor", "torch.distributed.checkpoint"]
_context.set_forkserver_preload([*_TORCH, "torch.distributed.fsdp", "cas.store", "cas.torch.adapter"])
LIMIT = 90.0


@dataclass
class Rank:
    """One process. `outcome` is what its function returned, or the exception's text if it failed, once it has ended."""

    process: ForkServerProcess
    pipe: Connection
    outcome: Any = None
    failure: str | None = None

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.join()

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def told(self, timeout: float = LIMIT) -> Any:
        """What the rank says next with `say`."""
        assert self.pipe.poll(timeout), "the rank said nothing"
        kind, value = self.pipe.recv()
        assert kind == "said", value
        return value

    def let_go(self, value: Any = None) -> None:
        """End the rank's `pause`, which returns `value`."""
        self.pipe.send(value)


@dataclass
class Job:
    """A running job; leaving the `with` block ends what is left of it."""

    ranks: list[Rank] = field(default_factory=list)
    store: dist.TCPStore | None = None

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for rank in self.ranks:
            if rank.process.is_alive():
                rank.process.kill()
            rank.process.join()

    def results(self, timeout: float = LIMIT) -> list[Any]:
        """What every rank returned; a rank that failed fails the test with its traceback."""
        self.end(timeout)
        failed = [f"rank {number}: {rank.failure}" for number, rank in enumerate(self.ranks) if rank.failure]
        assert not failed, "\n".join(failed)
        return [rank.outcome for rank in self.ranks]

    def end(self, timeout: float = LIMIT) -> None:
        """Wait until every rank has returned, failed or died."""
        deadline = time.monotonic() + timeout
        todo = {rank.pipe: rank for rank in self.ranks}
        while todo:
            ready = wait(list(todo), max(0.0, deadline - time.monotonic()))
            assert ready, f"{len(todo)} ranks were still running after {timeout} s"
            for pipe in ready:
                rank = todo[pipe]  # type: ignore[index]
                try:
                    kind, value = rank.pipe.recv()
                except (EOFError, ConnectionError):
                    rank.process.join()
                    rank.failure = rank.failure or f"died with exit code {rank.process.exitcode}"
                    del todo[pipe]  # type: ignore[arg-type]
                    continue
                if kind == "said":
                    continue
                if kind == "failed":
                    rank.failure = value
                else:
                    rank.outcome = value
                rank.process.join()
                del todo[pipe]  # type: ignore[arg-type]


def start(size: int, target: Callable[..., Any], *args: Any, hosted_by_rank_0: bool = False) -> Job:
    """A job of `size` ranks that each run `target(rank, *args)` inside a process group."""
    store = None if hosted_by_rank_0 else dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    port = free_port() if store is None else store.port
    job = Job(store=store)
    for rank in range(size):
        ours, theirs = _context.Pipe()
        place = (rank, size, port, hosted_by_rank_0 and rank == 0)
        process = _context.Process(target=_main, args=(*place, theirs, target, args), daemon=True)
        process.start()
        theirs.close()
        job.ranks.append(Rank(process, ours))
    return job


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def run(size: int, target: Callable[..., Any], *args: Any, timeout: float = LIMIT) -> list[Any]:
    """What each of `size` ranks returned."""
    with start(size, target, *args) as job:
        return job.results(timeout)


_pipe: Connection | None = None


def say(value: Any) -> None:
    """In a rank: tell the test something."""
    assert _pipe is not None
    _pipe.send(("said", value))


def pause(value: Any = None) -> Any:
    """In a rank: tell the test that it may act, and wait until it says to go on; what it gives with that."""
    say(value)
    assert _pipe is not None
    return _pipe.recv()


def _main(
    rank: int,
    size: int,
    port: int,
    hosts: bool,
    pipe: Connection,
    target: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    global _pipe
    _pipe = pipe
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
    try:
        store = dist.TCPStore("127.0.0.1", port, None, hosts, datetime.timedelta(seconds=30), wait_for_workers=False)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=30))
        result = target(rank, *args)
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))
        os._exit(1)
    pipe.send(("ended", result))
    os._exit(0)  # a group whose other ranks are gone may take its time to be destroyed
