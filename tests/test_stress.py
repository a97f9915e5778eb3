"""Sixteen writers, two collectors, a pruner and a check on one store; any of them is killed or stopped at any moment.

For CAS_TEST_SECONDS seconds (60), with CAS_TEST_SEED (0) as the seed of what is struck. What the writers were told is
committed is noted outside of the store, and must be there at the end.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.stores import quick_folder, same
from machine.disk import Disk
from stress.supervisor import Supervisor, Worker
from stress.tasks import KEEPS, make, read_notes, state

import cas
from cas.block import Kind
from cas.reach import reachable

SECONDS = float(os.environ.get("CAS_TEST_SECONDS", "60"))
SEED = int(os.environ.get("CAS_TEST_SEED", "0"))
CREW = {"writer": 16, "collector": 2, "pruner": 1, "checker": 1}
PROGRESS = {
    "writer": ("committed", 10),
    "collector": ("collected", 1),
    "pruner": ("pruned", 2),
    "checker": ("checked", 0),
}
"""What each worker does, and how often it must at least have come to the end of it. A check takes seconds, and may be
killed every time; the one at the end is not."""
Note = dict[str, Any]


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_under_stress(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, noted = folder / "store", folder / "notes"
    make(path)
    noted.mkdir()
    workers = [Worker(task, number) for task, count in CREW.items() for number in range(count)]
    supervisor = Supervisor(path, noted, workers, random.Random(SEED))
    supervisor.run(SECONDS)
    notes = {worker.name: read_notes(noted / worker.name) for worker in workers}
    counts = Counter(note["what"] for lines in notes.values() for note in lines)
    with capsys.disabled():
        print(f"\n{dict(sorted(counts.items()))} {dict(sorted(supervisor.blows.items()))}")
    check_progress(notes, counts, supervisor.blows)
    check_kept(path, [note for lines in notes.values() for note in lines])
    check_collected(path)


def check_progress(notes: dict[str, list[Note]], counts: Counter[str], blows: Counter[str]) -> None:
    """Nobody was starved, and everything that the test is about happened."""
    late = min(note["time"] for lines in notes.values() for note in lines) + SECONDS / 3
    for name, lines in notes.items():
        what, least = PROGRESS[name.rstrip("0123456789")]
        times = [note["time"] for note in lines if note["what"] == what]
        assert len(times) >= least, f"{name} has {what} {len(times)} times"
        if what == "committed":  # what takes seconds may be killed every time
            assert max(times) >= late, f"{name} has {what} no more after a third of the time"
    assert counts["collected"] >= 4
    for what in ("conflict", "deleted"):
        assert counts[what] >= SECONDS / 10, f"{what} {counts[what]} times"
    assert sum(note.get("deleted", 0) for lines in notes.values() for note in lines) > SECONDS
    assert all(blows[f"{task} {blow}"] for task in CREW for blow in ("killed", "stopped")), blows
    assert sum(count for blow, count in blows.items() if blow.endswith("killed")) >= SECONDS
    assert sum(count for blow, count in blows.items() if blow.endswith("stopped")) >= SECONDS / 2
    assert blows["stopped for long"] >= SECONDS / 15


def check_kept(path: Path, notes: list[Note]) -> None:
    """Every branch is where its writers were told, and what no prune may drop reads back bit for bit."""
    by_branch: dict[str, list[Note]] = {}
    for note in sorted(notes, key=lambda note: float(note["time"])):
        by_branch.setdefault(note.get("branch", ""), []).append(note)
    with cas.open(path) as store:
        branches = store.refs()["branches"]
        assert set(branches) <= set(by_branch)
        for branch, lines in by_branch.items():
            history = list(store.log(branch)) if branch in branches else []
            tried = {note["step"] for note in lines if note["what"] == "commit"}
            assert {held.step for held in history} <= tried
            since = max((at for at, note in enumerate(lines) if note["what"] == "delete"), default=0)
            told = [(note["step"], note["id"]) for note in lines[since:] if note["what"] == "committed"]
            there = {(held.step, held.id) for held in history}
            lost = [pair for pair in told if pair not in there]
            assert not lost, f"{len(lost)} of {len(told)} commits on {branch} are lost, such as {lost[0]}"
            for age, held in enumerate(history):
                assert not held.pruned or (age >= KEEPS and not branch.startswith("scratch"))
                assert held.pruned or same(store.load(held.id), state(held.step or 0))
        found = [finding for finding in store.fsck(data=True) if finding.severity == "error"]
        assert found == []


def check_collected(path: Path) -> None:
    """After two collections by one collector alone no pack is there of which nothing is live."""
    disk = Disk(path)
    with cas.open(path) as store:
        for _ in range(2):
            store.gc(grace=0, expire=0)
        root = store._roots.current()
        tips = [(Kind.COMMIT, tip) for tip in root.refs.values()]
        live = {name for _, name in reachable(tips, store._objects, store._roots.absent(root))}
        assert [name for name, held in disk.packs(root).items() if not held & live] == []
        assert disk.condemned_files(root) == []
    disk.close()
