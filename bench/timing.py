"""Timing two ways of doing one thing, so that a noisy machine cannot decide which is faster.

The ways take turns within one run, and what counts is the median of the ratios of neighbours.
"""

from __future__ import annotations

import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

Timed = Callable[[], float]
"""Does one thing and returns the seconds that count."""


@dataclass(frozen=True, slots=True)
class Turns:
    """Seconds of each way, turn by turn: `ours[i]` and `theirs[i]` ran one after the other."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def speedup(self) -> float:
        """How many times as fast as theirs ours is: the median of the ratios."""
        return statistics.median(b / a for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def seconds(self) -> tuple[float, float]:
        """Medians of ours and theirs."""
        return statistics.median(self.ours), statistics.median(self.theirs)


def take_turns(ours: Timed, theirs: Timed, rounds: int) -> Turns:
    """Run both in turn `rounds` times; who goes first alternates."""
    a: list[float] = []
    b: list[float] = []
    for turn in range(rounds):
        for way, kept in ((ours, a), (theirs, b)) if turn % 2 == 0 else ((theirs, b), (ours, a)):
            gc.collect()
            os.sync()  # what one left dirty is not the other's to write
            kept.append(way())
    return Turns(tuple(a), tuple(b))


def clock(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def save(state: Any, path: Path) -> None:
    """What people do today, made durable: torch.save and fsync."""
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def hash_alone(tensors: Sequence[Tensor], threads: int) -> None:
    """BLAKE3 over the tensors' bytes on `threads` threads, in pieces of 1 MiB that they share out, and nothing else."""
    pieces = iter([flat[at : at + (1 << 20)] for flat in map(_bytes, tensors) for at in range(0, len(flat), 1 << 20)])

    def work(_: int) -> None:
        for piece in pieces:
            blake3(piece).digest()

    run_on_threads(work, threads)


def run_on_threads(work: Callable[[int], None], threads: int) -> None:
    crew = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
