"""Keeps processes at their tasks, and kills and stops them at random."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from faults import children
from faults.children import Child

from .tasks import TASKS, Notes

TICK = 0.2
"""Seconds between two blows, on average."""
SHARES = {"writer": 7, "collector": 2, "pruner": 1, "checker": 1}
"""Of the blows."""
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
    path: Path
    notes: Path
    workers: list[Worker]
    dice: random.Random
    blows: Counter[str] = field(default_factory=Counter)

    def run(self, seconds: float) -> None:
        """A worker that ends by itself has failed: `ChildFailed` with its traceback."""
        with self._all_ended():
            for worker in self.workers:
                self._start(worker)
            end, next_blow = time.monotonic() + seconds, 0.0
            while (now := time.monotonic()) < end:
                self._look_after_all(now)
                if now >= next_blow:
                    self._strike(self._victim(), now)
                    next_blow = now + self.dice.expovariate(1 / TICK)
                time.sleep(0.02)
            self._look_after_all(float("inf"))

    def _start(self, worker: Worker) -> None:
        worker.life += 1
        worker.child = children.start(self._work, worker)

    def _work(self, worker: Worker) -> None:
        TASKS[worker.task](self.path, worker.number, worker.life, Notes(self.notes / worker.name))

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
        task = self.dice.choices(list(SHARES), list(SHARES.values()))[0]
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
            for worker in self.workers:
                if worker.child is not None:
                    worker.child.kill()
                    worker.child.end()
