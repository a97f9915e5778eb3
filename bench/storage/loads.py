"""How much longer a load takes where blocks lie on top of others: one store four ways, every checkpoint of each.

The checkpoints are those of the dense fine-tune with its moments, all tensors of which change all the time. The
clock counts the process's CPU seconds; each load is compared with that of the same checkpoint where all is whole.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cas
from bench.trees import empty_like

from .peer import same_states
from .training import Sizes
from .workloads import WORKLOADS, Workload

WHOLE = "whole"
WAYS: dict[str, Callable[[cas.Store], object]] = {
    WHOLE: lambda store: None,
    "committed": lambda store: None,
    "repack small": lambda store: store.repack("small"),
    "repack smallest": lambda store: store.repack("smallest"),
}
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Loads:
    """CPU seconds of each load, newest checkpoint first: the best of a few rounds."""

    way: str
    seconds: list[float]


def loads(sizes: Sizes, folder: Path) -> Iterator[Loads]:
    workload = WORKLOADS["dense full"](sizes)
    for way, finish in WAYS.items():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            yield Loads(way, _measure(workload, way == "committed", finish, Path(place) / "store"))


def _measure(workload: Workload, deltas: bool, finish: Callable[[cas.Store], object], place: Path) -> list[float]:
    with cas.init(place) as store:
        for one in workload.checkpoints:
            store.commit(one.read(), step=one.step, codec="planes", delta="parent" if deltas else "none")
        finish(store)
        store.gc(grace=0, expire=0)
        return [_load(store, workload, number) for number in reversed(range(len(workload.checkpoints)))]


def _load(store: cas.Store, workload: Workload, number: int) -> float:
    state = workload.checkpoints[number].read()
    into, best = empty_like(state), float("inf")
    for _ in range(_ROUNDS):
        began = time.process_time()
        store.load(f"main@step:{workload.checkpoints[number].step}", into=into)
        best = min(best, time.process_time() - began)
    if not same_states(into, state):
        raise RuntimeError(f"checkpoint {number} came back otherwise")
    return best
