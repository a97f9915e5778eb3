"""cas: commits with deltas against the parent, and the same store after `repack`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch.distributed as dist

import cas
from bench import ranks
from bench.machine import usual_environment
from bench.trees import State

from .containers import RANKS
from .peer import Peer, disk, same_states
from .workloads import Workload


class Commits(Peer):
    """`store.commit` with codec auto and `delta="parent"`; a checkpoint that has another parent than the newest begins
    a branch. Files in given containers are taken in by `cas commit`, rows of ranks by the ranks together.
    """

    name = "cas commit"

    def __init__(self, workload: Workload, files: Path, folder: Path) -> None:
        super().__init__(workload, files, folder)
        self.store = cas.init(self.kept)
        self.commits: list[cas.Commit] = []

    def hold(self, number: int) -> None:
        self.state = self.workload.checkpoints[number].read()

    def save(self, number: int) -> None:
        form = self.workload.checkpoints[number].form
        if form is None:
            self.commits.append(self.commit(number))
            return
        if form in RANKS:
            ranks.job(RANKS[form], _commit_rows, self.state, self.kept, number)
        else:
            self.run("commit", self.source(number), "--step", number)
        self.commits.append(self.store.resolve("main"))

    def commit(self, number: int) -> cas.Commit:
        one = self.workload.checkpoints[number]
        branch = "main"
        if one.parent not in (None, number - 1):
            branch = f"run-{number}"
            self.store.branch(branch, self.commits[one.parent].id)
        return self.store.commit(self.state, branch=branch, step=one.step, metrics={"loss": one.loss}, delta="parent")

    def drop(self, numbers: set[int]) -> None:
        self.store.prune(keep_best=f"loss:min:{self.workload.best}")
        self.store.gc(grace=0, expire=0)

    def restore(self, number: int) -> None:
        if self.imported(number):
            self.run("checkout", self.commits[number].id, "--as-imported", "-o", self.out / "files")
        else:
            self.found = self.store.load(self.commits[number].id)

    def exact(self, number: int) -> bool:
        if self.imported(number):
            self.out = self.out / "files"
            return super().exact(number)
        return same_states(self.found, self.workload.checkpoints[number].read())

    def imported(self, number: int) -> bool:
        """Whether the checkpoint came as files: then it is given back as these."""
        form = self.workload.checkpoints[number].form
        return form is not None and form not in RANKS

    def run(self, *arguments: object) -> None:
        line = [sys.executable, "-m", "cas.cli", "--store", str(self.kept), *map(str, arguments)]
        done = subprocess.run(line, check=False, env=usual_environment(), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(line)}: {done.stderr.strip()}")

    def stored(self) -> int:
        """Without the index, which is derived, and the reserve of 1 MiB, which is for a full disk."""
        return self.whole() - disk([self.kept / "index"]) - (self.kept / "reserve").stat().st_size

    def whole(self) -> int:
        return disk([self.kept])

    def close(self) -> None:
        self.notes.append(f"{self.whole() / 2**20:.1f} MiB with its index and reserve")
        self.store.close()


class Repacked(Commits):
    """After all commits `repack` to the smallest, and what it replaced collected.

    Also after the first, so that what it takes alone is known; that of one store counts in `save`.
    """

    name = "cas repack"

    def save(self, number: int) -> None:
        super().save(number)
        if number == 0:
            self.finish()

    def finish(self) -> bool:
        self.store.repack(level="smallest")
        self.store.gc(grace=0, expire=0)
        return True


def _commit_rows(rank: int, store: object, state: State, place: Path, step: int) -> None:
    with cas.open(place) as opened:
        opened.commit(ranks.sharded(state), parent="main", step=step, group=dist.group.WORLD, delta="parent")
