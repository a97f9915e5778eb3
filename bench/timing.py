"""Timing several ways of doing one thing, so that a noisy machine cannot decide which is the fastest.

The ways take turns within one run, and what counts is the median of the ratios of those that ran in the same round.
"""

from __future__ import annotations

import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from blake3 import blake3
from torch import Tensor

T = TypeVar("T")
Timed = Callable[[], float]
"""Does one thing and returns the seconds that count."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one operation on one workload: of each way, round by round."""

    workload: str
    operation: str
    seconds: Mapping[str, Sequence[float]]

    def median(self, way: str) -> float:
        return statistics.median(self.seconds[way])

    def speedup(self, ours: str, theirs: str) -> float:
        """How many times as fast as theirs ours is: the median of the ratios within a round."""
        return statistics.median(b / a for a, b in zip(self.seconds[ours], self.seconds[theirs], strict=True))

    def excess(self, ours: str, theirs: str) -> float:
        """How many seconds more ours takes: the median of the differences within a round."""
        return statistics.median(a - b for a, b in zip(self.seconds[ours], self.seconds[theirs], strict=True))


def take_turns(ways: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run every way once a round; who goes first rotates."""
    names = list(ways)
    found: dict[str, list[T]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            os.sync()  # what one left dirty is not the other's to write
            found[name].append(ways[name]())
    return found


def clock(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def hash_alone(tensors: Sequence[Tensor], threads: int) -> None:
    """BLAKE3 over the tensors' bytes on `threads` threads, in pieces of 1 MiB that they share out, and nothing else."""
    pieces = iter([flat[at : at + (1 << 20)] for flat in map(_bytes, tensors) for at in range(0, len(flat), 1 << 20)])

    def work() -> None:
        for piece in pieces:
            blake3(piece).digest()

    crew = [threading.Thread(target=work) for _ in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
