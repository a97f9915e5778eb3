"""Keeps processes at their tasks, and kills and stops them at random."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from faults import children
from faults.children import Child

from .tasks import TASKS, Notes, Place

PATIENCE = 6
SHORT, LONG = (0.02, 1.0), (2.0, 6.0)
"""Seconds for which a process stands still; the second is longer than a collection takes."""


@dataclass
class Worker:
    """One place in the crew. Each time that it is filled again is another life."""

    task: str
    number: int
    life: int = 0
    child: Child | None = None
    continues: float = 0.0
    """When it goes on; 0 while it runs."""

    @property
    def name(self) -> str:
        return f"{self.task}{self.number}"


@dataclass
class Supervisor:
    """`tick` is the time between two blows, on average, in seconds; `shares` are those of the tasks in them."""

    place: Place
    notes: Path
    workers: list[Worker]
    dice: random.Random
    tick: float
    shares: dict[str, int]
    blows: Counter[str] = field(default_factory=Counter)

    def run(
        self, seconds: float, is_enough: Callable[[Counter[str]], bool], lacking: Callable[[], Container[str]]
    ) -> None:
        """For `seconds`; on a slow machine up to `PATIENCE` times as long, until the blows are enough, and once more
        as long: then those tasks that are `lacking` go on alone, unharmed, until none is.

        A worker that ends by itself has failed: `ChildFailed` with its traceback.
        """
        with self._all_ended():
            for worker in self.workers:
                self._start(worker)
            self._strike_all(seconds, is_enough)
            latest = time.monotonic() + PATIENCE * seconds
            while (tasks := lacking()) and time.monotonic() < latest:
                self._end([worker for worker in self.workers if worker.task not in tasks])
                self._look_after_all(time.monotonic())
                time.sleep(0.5)
            self._look_after_all(float("inf"))

    def _strike_all(self, seconds: float, is_enough: Callable[[Counter[str]], bool]) -> None:
        begun, next_blow = time.monotonic(), 0.0
        while (now := time.monotonic()) < begun + seconds or not is_enough(self.blows):
            if now >= begun + PATIENCE * seconds:
                break
            self._look_after_all(now)
            if now >= next_blow:
                self._strike(self._victim(), now)
                next_blow = now + self.dice.expovariate(1 / self.tick)
            time.sleep(0.02)

    def _start(self, worker: Worker) -> None:
        worker.life += 1
        worker.child = children.start(self._work, worker)

    def _work(self, worker: Worker) -> None:
        TASKS[worker.task](self.place, worker.number, worker.life, Notes(self.notes / worker.name))

    def _look_after_all(self, now: float) -> None:
        for worker in self.workers:
            if worker.continues and now >= worker.continues and worker.child is not None:
                worker.child.kill(signal.SIGCONT)
                worker.continues = 0.0
            if worker.child is not None and os.waitid(os.P_PID, worker.child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                child, worker.child = worker.child, None
                child.result()
                raise AssertionError(f"{worker.name} came to an end")

    def _victim(self) -> Worker:
        task = self.dice.choices(list(self.shares), list(self.shares.values()))[0]
        return self.dice.choice([worker for worker in self.workers if worker.task == task])

    def _strike(self, worker: Worker, now: float) -> None:
        assert worker.child is not None
        if self.dice.random() < 0.5:
            worker.child.kill()
            worker.child.end()
            worker.continues = 0.0
            self.blows[f"{worker.task} killed"] += 1
            self._start(worker)
        elif not worker.continues:
            is_long = self.dice.random() < 0.2
            worker.child.kill(signal.SIGSTOP)
            worker.continues = now + self.dice.uniform(*(LONG if is_long else SHORT))
            self.blows[f"{worker.task} stopped"] += 1
            self.blows["stopped for long"] += is_long

    @contextmanager
    def _all_ended(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._end(self.workers)

    @staticmethod
    def _end(workers: Iterable[Worker]) -> None:
        for worker in workers:
            child, worker.child = worker.child, None
            if child is not None:
                child.kill()
                child.end()
