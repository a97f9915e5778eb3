"""What a training step loses to a commit that runs beside it, on two processors with one for the saver.

A step is matrix products and interpreter work in one thread. Its time has three parts: what the thread runs, what it
waits for a processor (which the kernel counts), and what it waits for anything else, which is the interpreter lock.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

import cas

from .timing import Timing
from .trees import DECAY, State, leaves
from .workloads import Workload

NAME = "ranks"
COMMIT, HASHING = "step beside a commit", "step beside a thread that hashes"
BUSY, ALONE = "beside it", "before and after"
STEPS = 40
"""Those before and after."""
_PIECE = 4 << 20


@dataclass(frozen=True, slots=True)
class Span:
    """Mean seconds of a step: all of them, those that it ran, and those that it waited for a processor."""

    wall: float
    ran: float
    queued: float

    @property
    def otherwise(self) -> float:
        return max(0.0, self.wall - self.ran - self.queued)


class Training:
    """Steps of one thread; some 30 ms each."""

    def __init__(self) -> None:
        self._weights = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)) / 22.6

    def step(self) -> None:
        found = self._weights
        for _ in range(6):
            found = torch.tanh(found @ self._weights)
        sum(number * number for number in range(20_000))

    def span(self, goes_on: Iterator[Any]) -> Span:
        """Steps for as long as `goes_on`."""
        count, wall, ran, queued = 0, time.perf_counter(), time.thread_time(), _queued()
        for _ in goes_on:
            self.step()
            count += 1
        spent = (time.perf_counter() - wall, time.thread_time() - ran, _queued() - queued)
        return Span(*(seconds / count for seconds in spent))


def _queued() -> float:
    """Seconds that this thread has been ready to run while another ran."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def steps(rank: int, store: object, made: Workload, folder: Path, rounds: int) -> list[Timing]:
    """Steps beside a commit in the background, and, to compare, beside a thread that does nothing but hash."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    state, training, saves = made.read(), Training(), []
    with cas.open(folder, create=True) as opened:

        def save() -> Iterator[None]:
            for _, tensor in leaves(state):
                tensor.mul_(DECAY)
            began = time.perf_counter()
            pending = opened.commit_async(state)
            yield
            yield
            while not pending.done:
                yield
            saves.append(time.perf_counter() - began)
            pending.wait()

        opened.commit(state)
        for _ in save():  # memory that is kept for the copy is had once
            time.sleep(0.01)
        saves.clear()
        committing = [_alternate(training, save) for _ in range(2 * rounds)]
    hashing = [_alternate(training, lambda: _hash(state)) for _ in range(2 * rounds)]
    found = [_timing(COMMIT, committing), _timing(HASHING, hashing)]
    return [*found, Timing(NAME, "the commit beside steps", {"cas auto": saves})]


def _alternate(training: Training, work: Callable[[], Iterator[None]]) -> tuple[Span, Span, Span]:
    before = training.span(iter(range(STEPS)))
    beside = work()
    next(beside)  # what its start costs is the stall
    busy = training.span(beside)
    return before, busy, training.span(iter(range(STEPS)))


def _hash(state: State) -> Iterator[None]:
    def work() -> None:
        for _, tensor in leaves(state):
            flat = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
            for at in range(0, len(flat), _PIECE):
                blake3(flat[at : at + _PIECE]).digest()

    thread = threading.Thread(target=work)
    thread.start()
    yield
    yield
    while thread.is_alive():
        yield


def _timing(what: str, rounds: list[tuple[Span, Span, Span]]) -> Timing:
    """Seconds of a step, and how much longer each part of it is than before and after."""

    def more(part: Callable[[Span], float]) -> list[float]:
        return [part(busy) - (part(before) + part(after)) / 2 for before, busy, after in rounds]

    alone = [(before.wall + after.wall) / 2 for before, _, after in rounds]
    parts = {
        "ran longer": more(lambda span: span.ran),
        "waited for a processor": more(lambda span: span.queued),
        "waited otherwise": more(lambda span: span.otherwise),
    }
    return Timing(NAME, what, {BUSY: [busy.wall for _, busy, _ in rounds], ALONE: alone, **parts})
