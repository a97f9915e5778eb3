"""What the ranks of `test_joint_faults` do: they take orders from the test, one at a time, and say what came of each.

An order may come with a `Fault`: what happens when a function of ours is entered for the nth time, in any thread.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ranks import pause, say
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import cas
import cas.torch
from cas.per_rank import PerRank

BLOCK_SIZE = 4096
ROWS, COLUMNS = 24, 1000
_FOLDERS = tuple(str(Path(path).resolve()) + os.sep for path in (*cas.__path__, *cas.torch.__path__))


@dataclass(frozen=True)
class Fault:
    """`what` happens at the `nth` entry (from 1) of the function `where`, as `file.py:name`.

    kill and stop are signals to the rank itself; memory, disk and interrupt are raised in the function; hold waits for
    a file `go` beside the store. interrupt counts entries in the main thread only, as Ctrl-C comes there.
    """

    what: str
    where: str
    nth: int = 1


@dataclass
class Outcome:
    """What came of an order: `value`, or the class and text of an error."""

    seconds: float
    value: Any = None
    error: str = ""
    text: str = ""
    kinds: tuple[str, ...] = ()
    entered: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.error}: {self.text}" if self.error else repr(self.value)


# -- states ---------------------------------------------------------------------------------------------------------


def weights(number: int) -> np.ndarray[Any, Any]:
    """Most of it is the same for all numbers."""
    full = np.arange(ROWS * COLUMNS, dtype=np.int32).reshape(ROWS, COLUMNS)
    full[::5] += number << 20
    return full


def own(number: int, rank: int, size: int = 3000) -> np.ndarray[Any, Any]:
    """What differs from rank to rank; `size` in elements."""
    return np.random.default_rng((number, rank)).integers(0, 1 << 30, size, np.int32)


def plain(number: int, rank: int = 0, size: int = 3000) -> dict[str, Any]:
    """The state as one process loads it, or `rank` of many without a target."""
    return {
        "w": torch.from_numpy(weights(number)),
        "own": own(number, rank, size),
        "bias": np.full(7, number, np.float64),
        "step": number,
        "name": f"state {number}",
        "empty": {},
    }


def shards(number: int, rank: int, size: int = 3000) -> dict[str, Any]:
    """The state as a rank of a job holds it."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    local = torch.from_numpy(np.array_split(weights(number), dist.get_world_size())[rank])
    sharded = DTensor.from_local(local, mesh, [Shard(0)], shape=(ROWS, COLUMNS), stride=(COLUMNS, 1), run_check=False)
    return {**plain(number), "w": sharded, "own": PerRank(own(number, rank, size))}


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b)


# -- faults ---------------------------------------------------------------------------------------------------------


@contextmanager
def meeting(fault: Fault | None, entered: list[str] | None = None) -> Iterator[None]:
    """While in the block, and in threads begun since, the fault strikes, and all functions entered are listed."""
    if fault is None and entered is None:
        threading.setprofile(None)  # type: ignore[arg-type]
        yield
        return
    main, lock, count = threading.get_ident(), threading.Lock(), 0

    def on_call(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(_FOLDERS):
            return
        where = f"{os.path.basename(code.co_filename)}:{code.co_name}"
        if entered is not None:
            entered.append(where)
        if fault is None or where != fault.where or (fault.what == "interrupt" and threading.get_ident() != main):
            return
        with lock:
            count += 1
            due = count == fault.nth
        if due:
            strike(fault.what)

    threading.setprofile(on_call)
    sys.setprofile(on_call)
    try:
        yield
    finally:
        sys.setprofile(None)


def strike(what: str) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "memory":
        raise MemoryError("no memory, says the test")
    elif what == "disk":
        raise OSError(errno.EIO, "Input/output error", "/data/set")
    elif what == "interrupt":
        raise KeyboardInterrupt
    elif what == "hold":
        hold(_beside[0])
    else:
        raise AssertionError(what)


_beside: list[Path] = []


def hold(folder: Path) -> None:
    (folder / "held").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)


class Broken(np.ndarray):  # type: ignore[type-arg]
    """A subclass of an array, which no state may hold."""


# -- orders ---------------------------------------------------------------------------------------------------------


class Worker:
    """One rank with one store open."""

    def __init__(self, rank: int, place: str) -> None:
        self.rank, self.store = rank, cas.open(place)
        _beside[:] = [Path(place).parent]
        self.pending: Any = None

    def load(self, timeout: float = 30.0) -> int:
        """The step of what the branch holds; the state is checked."""
        state = self.store.load("main", group=dist.group.WORLD, timeout=timeout)
        size = len(state["own"])
        assert same(state, plain(state["step"], self.rank, size)), "the state does not load as it was committed"
        return int(state["step"])

    def load_sharded(self, timeout: float = 30.0) -> int:
        """As `load`, for a commit of one process, into the layout of this job."""
        into = {**shards(0, self.rank), "own": own(0, 0)}
        into["w"].to_local().zero_()
        state = self.store.load("main", group=dist.group.WORLD, timeout=timeout, into=into)
        whole = plain(state["step"])
        mine = torch.from_numpy(np.array_split(weights(state["step"]), dist.get_world_size())[self.rank])
        assert torch.equal(state.pop("w").to_local(), mine), "shards of different commits"
        assert same(state, {key: value for key, value in whole.items() if key != "w"}), "values of another commit"
        return int(whole["step"])

    def commit(self, number: int, timeout: float = 30.0, bad: str = "", **options: Any) -> str:
        state = shards(number, self.rank, options.pop("size", 3000))
        if bad:
            state = getattr(self, f"bad_{bad}")(state)
        made = self.store.commit(state, group=dist.group.WORLD, timeout=timeout, step=number, **options)
        return made.id

    def begin(self, number: int, timeout: float = 30.0, **options: Any) -> bool:
        """A commit in the background; whether it was begun."""
        state = shards(number, self.rank, options.pop("size", 3000))
        begun = self.store.commit_async(state, group=dist.group.WORLD, timeout=timeout, step=number, **options)
        if not begun.skipped:
            self.pending = begun
        return not begun.skipped

    def wait(self) -> str:
        return str(self.pending.wait().id)

    def close(self) -> None:
        self.store.close()

    def bad_value(self, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "optimizer": {"odd": object()}}

    def bad_subclass(self, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "bias": state["bias"].view(Broken)}

    def bad_differs(self, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "bias": state["bias"] + 1}

    def limit(self, nbytes: int) -> None:
        """Files of this process may not grow larger; 0: as large as they like."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft = nbytes or resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))


def serve(rank: int, place: str, setup: Callable[[int], None] | None = None) -> None:
    """Carry out orders `(name, options, fault)` until there is None."""
    if setup is not None:
        setup(rank)
    worker = Worker(rank, place)
    answer: Any = "ready"
    while (order := pause(answer)) is not None:
        answer = carry_out(worker, *order)


def carry_out(worker: Worker, name: str, options: dict[str, Any], fault: Fault | None, listed: bool) -> Outcome:
    entered: list[str] = []
    started = time.monotonic()
    try:
        with meeting(fault, entered if listed else None):
            value = getattr(worker, name)(**options)
    except BaseException as error:
        kinds = tuple(kind.__name__ for kind in type(error).__mro__)
        seconds = time.monotonic() - started
        return Outcome(seconds, None, type(error).__name__, str(error), kinds, entered)
    return Outcome(time.monotonic() - started, value, entered=entered)


def two_on_a_node(rank: int) -> None:
    """Ranks 0 and 1 run on one host, 2 and 3 on another, and so on."""
    import socket

    name = f"host{rank // 2}"
    socket.gethostname = lambda: name


def commit_for_ever(rank: int, place: str) -> None:
    """One process that commits by itself, counting up."""
    with cas.open(place) as store:
        store.load("main", default=None, group=None)
        number = 1 if "main" not in store.refs()["branches"] else store.resolve("main").step + 1  # type: ignore[operator]
        while True:
            store.commit(plain(number), group=None, step=number)
            if number == 1:
                say("begun")
            number += 1


def collect_for_ever(rank: int, place: str) -> None:
    """One process that drops the states of all but the newest commits and collects, again and again."""
    with cas.open(place) as store:
        while True:
            if "main" in store.refs()["branches"]:
                store.prune("main", keep_last=1)
            store.gc(grace=0, expire=0)
            time.sleep(0.05)


def exit_with_a_commit_under_way(rank: int, size: int, port: int, place: str) -> None:
    """A whole process: a commit in the background, then its end."""
    server = dist.TCPStore("127.0.0.1", port, None, rank == 0, wait_for_workers=False)
    dist.init_process_group("gloo", store=server, rank=rank, world_size=size)
    Worker(rank, place).begin(1, size=3_000_000)
    server.set(f"begun/{rank}", "")
    server.wait([f"begun/{rank}" for rank in range(size)])


if __name__ == "__main__":
    exit_with_a_commit_under_way(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
