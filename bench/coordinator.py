"""What number 0 does for a commit of many ranks: from when all have called until the commit is published.

The ranks are simulated: all but number 0 are threads of one process, each with its own end of the real connections,
and each runs its real part of a commit but for its blocks. What these would hash to is made up, by number 0 as well,
so such a commit cannot be loaded; outlines, duties, reports, trees and the published record are real.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch._C._distributed_c10d import Store

import cas
from cas.block import ID_SIZE
from cas.commits import Commit
from cas.committing import CommitOptions
from cas.cutting import Duty
from cas.dtypes import DTYPES
from cas.grid import Box
from cas.joint import JointCommit
from cas.nodes import pack
from cas.tensors import ArraySource, LocalShard, Tensor
from cas.torch.team import TorchTeam
from cas.writer import ObjectWriter

from .timing import Timing

NAME = "ranks"
CPU, DECIDING, WALL = "processor", "its own work on the clock", "all on the clock"
FIRST, REPEATED = "coordinator, first commit", "coordinator, layouts repeat"
AGAIN = 3
"""Commits after the first, of the same layouts with all contents new."""
TIMEOUT = 300.0
ROWS, WIDTH = 4, 16
"""Each rank's part of a tensor; how large it is makes no difference here."""


class Simulated(JointCommit):
    """A rank whose blocks are not hashed nor stored."""

    def _store_or_give_up(self, writer: ObjectWriter, duties: list[Duty]) -> bytes:
        ids = os.urandom(ID_SIZE * len(duties))
        reports = [ids[at : at + ID_SIZE] for at in range(0, len(ids), ID_SIZE)]
        return pack([pack(reports), len(duties), [0, 0, 0]])


class Coordinator(Simulated):
    """Number 0. `began` is when all the others' calls were there."""

    began: tuple[float, float]
    deciding = 0.0

    def took(self) -> dict[str, float]:
        cpu, clock = _clocks()
        return {CPU: cpu - self.began[0], DECIDING: self.deciding, WALL: clock - self.began[1]}

    def _open(self, hellos: list[bytes]) -> list[bytes]:
        self.began = _clocks()
        return self._timed(lambda: super(Coordinator, self)._open(hellos))

    def _merge(self, results: list[bytes]) -> list[bytes]:
        return self._timed(lambda: super(Coordinator, self)._merge(results))

    def _publish(self, writer: ObjectWriter, results: list[bytes]) -> list[bytes]:
        return self._timed(lambda: super(Coordinator, self)._publish(writer, results))

    def _timed(self, decide: Callable[[], list[bytes]]) -> list[bytes]:
        began = time.perf_counter()
        answers = decide()
        self.deciding += time.perf_counter() - began
        return answers


def _clocks() -> tuple[float, float]:
    """Processor time of the process, with what receives and sends, and wall time."""
    return time.process_time(), time.perf_counter()


def commits(part: int, store: Store, folder: Path, size: int, tensors: int) -> list[dict[str, float]]:
    """In process 0 number 0's seconds, of the first commit and of each after it; in process 1 all other ranks."""
    if part:
        _others(store, folder, size, tensors)
        return []
    with cas.open(folder, create=True) as opened:
        team, found = TorchTeam(store, 0, tuple(range(size)), "simulated"), []
        for step in range(1 + AGAIN):
            joint = Coordinator(team.call(TIMEOUT), opened._host(opened._settings), _options(step))
            joint.enter(_state(0, size, tensors, step), lambda: None)
            made = joint.run()
            found.append(joint.took())
            assert made.step == opened.resolve("main").step == step, "the commit was not published"
        return found


def _others(store: Store, folder: Path, size: int, tensors: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each rank is connected to each
    with cas.open(folder, create=True) as opened:
        host, made = opened._host(opened._settings), list[Commit]()

        def rank(number: int) -> None:
            team = TorchTeam(store, number, tuple(range(size)), "simulated")
            for step in range(1 + AGAIN):
                joint = Simulated(team.call(TIMEOUT), host, _options(step))
                joint.enter(_state(number, size, tensors, step), lambda: None)
                made.append(joint.run())

        threads = [threading.Thread(target=rank, args=(number,)) for number in range(1, size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) == (size - 1) * (1 + AGAIN), "a simulated rank failed"


def _options(step: int) -> CommitOptions:
    return {"step": step, "timeout": TIMEOUT, "parent": "main" if step else None}


def _state(rank: int, size: int, tensors: int, step: int) -> dict[str, Any]:
    """A rank's rows of every tensor."""
    source = ArraySource(np.zeros((ROWS, WIDTH), np.float32))
    shape, box = (size * ROWS, WIDTH), Box((rank * ROWS, 0), (ROWS, WIDTH))
    names = (f"layers.{n // 8}.{'attention' if n % 8 < 4 else 'perceptron'}.{n % 4}.weight" for n in range(tensors))
    held = {name: Tensor("torch", DTYPES["float32"], shape, [LocalShard(box, source)], None) for name in names}
    return {"model": held, "step": step}


def timings(found: list[list[dict[str, float]]]) -> list[Timing]:
    """One job a round; of its commits after the first, each is a round."""
    rounds = {FIRST: [one[0] for one in found], REPEATED: [again for one in found for again in one[1:]]}
    return [
        Timing(NAME, what, {way: [seconds[way] for seconds in taken] for way in (CPU, DECIDING, WALL)})
        for what, taken in rounds.items()
    ]
