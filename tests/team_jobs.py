"""Jobs of processes for test_team.py: each rank runs a plan of team_worker.py; the test hosts the store."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from queue import Queue
from typing import Any

import torch.distributed as dist

WORKER = Path(__file__).with_name("team_worker.py")


def hosted() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=30), wait_for_workers=False)


class Job:
    """Processes that run a plan of team_worker.py, and what they have reported, by name and rank."""

    def __init__(self, plan: str, size: int) -> None:
        self.store = hosted()
        command = [sys.executable, str(WORKER), plan]
        self.processes = [
            subprocess.Popen(
                [*command, str(rank), str(size), str(self.store.port)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        self.reports: dict[str, dict[int, tuple[float, Any]]] = {}
        self.errors = [""] * size
        self._lines: Queue[tuple[int, str]] = Queue()  # a process that ends early is an Empty after a while
        self._readers = [
            threading.Thread(target=read, args=(rank,)) for rank in range(size) for read in (self._read, self._drain)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, rank: int) -> None:
        stdout = self.processes[rank].stdout
        assert stdout
        with stdout:
            for line in stdout:
                self._lines.put((rank, line))

    def _drain(self, rank: int) -> None:
        stderr = self.processes[rank].stderr
        assert stderr
        with stderr:
            self.errors[rank] = stderr.read()

    def until(self, name: str, ranks: set[int]) -> None:
        """Wait for the reports of these ranks."""
        while not ranks <= self.reports.get(name, {}).keys():
            rank, line = self._lines.get(timeout=60)
            told, seconds, result = json.loads(line)
            self.reports.setdefault(told, {})[rank] = seconds, result

    def result(self, name: str) -> dict[int, Any]:
        return {rank: result for rank, (_, result) in sorted(self.reports[name].items())}

    def slowest(self, name: str) -> float:
        return max(seconds for seconds, _ in self.reports[name].values())


@contextmanager
def job(plan: str, size: int) -> Iterator[Job]:
    running = Job(plan, size)
    try:
        yield running
    finally:
        for process in running.processes:
            process.kill()
            process.wait()
        for reader in running._readers:
            reader.join()
