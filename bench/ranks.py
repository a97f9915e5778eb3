"""Commits and loads by several ranks, in real processes over gloo, beside torch.distributed.checkpoint.

A rank has one torch thread, as torchrun gives it. All ranks begin an operation together; it has taken what the slowest
took.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import cas
from cas.grid import cell_size

from . import beside, coordinator
from .contenders import Cas, Contender, Dcp, Wait, contender
from .operations import Copies, Trial, first, five_percent
from .results import Amounts
from .timing import Timed, Timing, clock, take_turns
from .trees import State, clone, copy_into, empty_like
from .workloads import Workload

NAME = "ranks"
ABOUT = (
    "real processes over gloo, two where nothing else is said, with the state of *trained* in rows as FSDP2 gives them "
    "out; DCP is dcp.save and dcp.load. What a step loses beside a commit has three parts: it ran longer, it waited "
    "for a processor, it waited otherwise (for the interpreter). The coordinator is number 0 of 64 ranks with 2,000 "
    "tensors each, from when all have called until the commit is published; the other ranks are simulated, and no "
    "rank hashes. What a rank reads is that of 1/4 of the state, in 16 tensors"
)
STALL = "stall, 16 large tensors"
OURS, THEIRS = "cas auto", "DCP"
COPIES = "copies alone"
RANKS = 2
BEFORE, AFTER = 4, 3
"""Ranks that commit, and that load what these have committed."""
LARGE = 16
"""Large tensors that hold as much as the trained state."""
LIMIT = datetime.timedelta(minutes=10)
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["bench.__main__"])  # what takes seconds is imported once


@dataclass(frozen=True, slots=True)
class Size:
    """How much the ranks hold together, in bytes, and how many the simulated ones are, with how many tensors."""

    nbytes: int
    simulated: int
    tensors: int


def many(nbytes: int) -> Size:
    """As large as is measured for a trained state of so many bytes."""
    return Size(nbytes, 64, 2000) if nbytes >= 1 << 30 else Size(nbytes, 5, 20)


def ranks(made: Workload, size: Size, saved: Path, rounds: int) -> Iterator[Timing | Amounts]:
    """All that is measured of ranks; `saved` is an empty folder for what they save."""
    trial = replace(made, name=NAME)
    yield from slowest(job(RANKS, keep, trial, saved, rounds))
    yield load_alone(trial, saved, rounds)
    yield from slowest(job(RANKS, stalls, trial, size.nbytes, saved / "stalls", rounds))
    (steps,) = job(1, beside.steps, trial, saved / "beside", rounds)
    yield from steps
    yield from coordinator.timings(
        [job(2, coordinator.commits, saved / f"coordinator{n}", size.simulated, size.tensors)[0] for n in range(rounds)]
    )
    job(BEFORE, commit_large, size.nbytes // 4, saved / "reads")
    for rank, found in enumerate(job(AFTER, read_large, size.nbytes // 4, saved / "reads")):
        yield Amounts(NAME, f"{BEFORE} to {AFTER} ranks, rank {rank}", found)


# -- jobs -------------------------------------------------------------------------------------------------------------


def job(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(rank, store, *arguments)` returns on each rank; the job's store is hosted outside, as torchrun does.

    The first rank that fails says why and ends them all.
    """
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    with ProcessPoolExecutor(size, _context) as pool:
        return [
            running.result()
            for running in [pool.submit(_rank, rank, size, store.port, work, arguments) for rank in range(size)]
        ]


def _rank(rank: int, size: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        torch.set_num_threads(1)
        store = TCPStore("127.0.0.1", port, None, False, LIMIT)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=LIMIT)
        found = work(rank, store, *arguments)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    return found


def slowest(found: list[list[Timing]]) -> Iterator[Timing]:
    """Of the timings that every rank gives, the longest of each turn."""
    for same in zip(*found, strict=True):
        longest = {
            way: list(map(max, zip(*(one.seconds[way] for one in same), strict=True))) for way in same[0].seconds
        }
        yield replace(same[0], seconds=longest)


# -- contenders -------------------------------------------------------------------------------------------------------


class Together(Contender):
    """What all ranks call at the same time; before each save they wait for one another."""

    def clear(self) -> None:
        self.close()
        dist.barrier()
        if dist.get_rank() == 0:
            super().clear()
        dist.barrier()


class ShardedCas(Together, Cas):
    def clear(self) -> None:
        super().clear()
        self.open()
        dist.barrier()

    def make_room(self) -> None:
        dist.barrier()

    def save(self, state: State) -> None:
        self.open().commit(state, group=dist.group.WORLD)

    def save_async(self, state: State) -> Wait:
        return self.open().commit_async(state, group=dist.group.WORLD).wait

    def load_into(self, state: State) -> None:
        self.open().load("main", into=state, group=dist.group.WORLD)


class ShardedDcp(Together, Dcp):
    def save(self, state: State) -> None:
        save(state, storage_writer=FileSystemWriter(self.folder))
        if dist.get_rank() == 0:
            self._sync()

    def load_into(self, state: Mapping[str, Any]) -> None:
        load(dict(state), storage_reader=FileSystemReader(self.folder))


# -- states -----------------------------------------------------------------------------------------------------------


def each(state: State, work: Callable[[Any], Any]) -> State:
    """The state with `work` done on every tensor."""
    return {key: work(value) if isinstance(value, Tensor) else each(value, work) for key, value in state.items()}


def sharded(state: State) -> State:
    """This rank's rows of every tensor, as FSDP2 gives them out, in memory of their own."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return each(state, lambda whole: distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None).clone())


def held_here(state: State) -> State:
    """The plain tensors that this rank has of a sharded state."""
    return each(state, lambda tensor: tensor.to_local())


def large(nbytes: int) -> State:
    """A few tensors of random numbers whose rows no number of ranks divides evenly."""
    generator, rows = torch.Generator().manual_seed(0), nbytes // LARGE // 4096
    return {"large": {f"w{n}": torch.randn(rows + 3, 1024, generator=generator) for n in range(LARGE)}}


# -- what each rank does ----------------------------------------------------------------------------------------------


def keep(rank: int, store: Store, made: Workload, saved: Path, rounds: int) -> list[Timing]:
    """Saves, and loads in the same layout."""
    contenders: dict[str, Contender] = {OURS: ShardedCas("auto", saved / OURS.replace(" ", "-"))}
    contenders[THEIRS] = ShardedDcp(saved / THEIRS)
    trial = Trial(made, sharded(made.mapped()), contenders, saved, rounds)
    found = [first(trial), _unchanged(trial), five_percent(trial), _load_into(trial)]
    for one in contenders.values():
        one.close()
    return found


def _unchanged(trial: Trial) -> Timing:
    copies = Copies(trial.state)

    def way(one: Contender) -> float:
        fresh = copies.next()
        one.make_room()
        return clock(lambda: one.save(fresh))

    return trial.turns("unchanged", way)


def _load_into(trial: Trial) -> Timing:
    target = clone(trial.state)
    for one in trial.contenders.values():
        one.load_into(target)  # so that all files are in the page cache
    return trial.turns("load into=, the same layout", lambda one: _together(lambda: one.load_into(target)))


def _together(work: Callable[[], None]) -> float:
    dist.barrier()
    return clock(work)


def load_alone(made: Workload, saved: Path, rounds: int) -> Timing:
    """One process loads the whole of what the ranks have saved."""
    contenders = {name: contender(name, saved) for name in (OURS, THEIRS)}
    trial = Trial(made, {}, contenders, saved, rounds)
    target = clone(made.mapped())
    for one in contenders.values():
        one.load_into(target)
    found = trial.turns("load into=, 2 ranks to 1 process", lambda one: clock(lambda: one.load_into(target)))
    for one in contenders.values():
        one.close()
    return found


def stalls(rank: int, store: Store, made: Workload, nbytes: int, saved: Path, rounds: int) -> list[Timing]:
    """How long the caller is blocked by a save in the background: large tensors, and all of the trained state."""
    one = ShardedCas("auto", saved)
    one.clear()
    few = _stall(STALL, sharded(large(nbytes)), one, rounds)
    many = _stall("stall, all tensors of the trained state", sharded(made.mapped()), one, rounds)
    one.close()
    return [few, many]


def _stall(operation: str, state: State, one: ShardedCas, rounds: int) -> Timing:
    local = held_here(state)
    kept = empty_like(local)

    def blocked() -> float:
        waits = []
        seconds = _together(lambda: waits.append(one.save_async(state)))
        waits[0]()
        return seconds

    ways: dict[str, Timed] = {OURS: blocked, COPIES: lambda: _together(lambda: copy_into(kept, local))}
    for way in ways.values():
        way()  # memory that is kept for the copy is had once
    return Timing(NAME, operation, take_turns(ways, rounds))


def commit_large(rank: int, store: Store, nbytes: int, folder: Path) -> None:
    with cas.open(folder, create=True) as opened:
        opened.commit(sharded(large(nbytes)), group=dist.group.WORLD, codec="raw")


def read_large(rank: int, store: Store, nbytes: int, folder: Path) -> dict[str, float]:
    """Bytes that this rank holds, that it reads to fill them, and of a cell at each inner edge of what it holds."""
    state = each(sharded(large(nbytes)), torch.zeros_like)
    tensors: list[DTensor] = list(state["large"].values())
    with cas.open(folder) as opened:
        opened.load("main", into=state, group=dist.group.WORLD)
        before = _read_bytes()
        opened.load("main", into=state, group=dist.group.WORLD)
        read = _read_bytes() - before
        block_size = opened.identity.block_size
    edges = (rank > 0) + (rank < dist.get_world_size() - 1)
    cells = sum(edges * cell_size(tensor.nbytes, block_size) for tensor in tensors)
    own = sum(tensor.to_local().nbytes for tensor in tensors)
    return {"its bytes": own, "read": read, "cells at inner edges": cells}


def _read_bytes() -> int:
    """Bytes that this process has ever read by system calls, from the page cache too."""
    return int(Path("/proc/self/io").read_text().split()[1])
