"""Sixteen writers, two collectors, a pruner, a repack and a check on one store; any is killed or stopped at any moment.

In a folder for CAS_TEST_SECONDS seconds (60) and in a bucket for as long (50), or longer where the machine is slow,
with CAS_TEST_SEED (0) as the seed of what is struck. What the writers were told is committed is noted outside of the
store, and must be there at the end.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults.stores import quick_folder, same
from machine.disk import Disk
from servers.s3 import S3Server
from stress.supervisor import Supervisor, Worker
from stress.tasks import KEEPS, Place, read_notes, state

from cas.block import Kind
from cas.reach import reachable
from cas.urls import backend_of

SEED = int(os.environ.get("CAS_TEST_SEED", "0"))
CREW = {"writer": 16, "collector": 2, "pruner": 1, "repacker": 1, "checker": 1}
ENDS = {
    "writer": "committed",
    "collector": "collected",
    "pruner": "pruned",
    "repacker": "repacked",
    "checker": "checked",
}
"""What each worker notes when it has come to the end of its task."""
BY = {
    "conflict": "writer",
    "deleted": "writer",
    "collected": "collector",
    "freed": "collector",
    "packs": "repacker",
}
"""Who brings about what is counted in all."""
Note = dict[str, Any]
GROUP = pytest.mark.xdist_group("stress")
"""One after the other: each wants the whole machine."""


@dataclass(frozen=True)
class Pace:
    """How long it takes, the seconds between two blows, how these are shared, and what must at least have happened.

    `ends` says how often each worker must have come to the end of its task, and `late` after which part of the time
    each writer must have done so once more. A check takes seconds, and may be killed every time; the one at the end is
    not. `totals` are those of all workers per second: conflicts, deleted branches, collections, packs that were `freed`
    by them or `repacked`. Of the workers at each task of `struck` some must have been killed and some stopped.
    """

    seconds: float
    tick: float
    shares: dict[str, int]
    ends: dict[str, int]
    late: float
    totals: dict[str, float]
    struck: tuple[str, ...]


def seconds(usual: float) -> float:
    return float(os.environ.get("CAS_TEST_SECONDS", usual))


IN_A_FOLDER = Pace(
    seconds(60),
    tick=0.2,
    shares={"writer": 7, "collector": 2, "pruner": 1, "repacker": 1, "checker": 1},
    ends={"writer": 10, "collector": 1, "pruner": 2, "repacker": 1, "checker": 0},
    late=1 / 3,
    totals={"conflict": 0.1, "deleted": 0.1, "collected": 1 / 15, "freed": 1.0, "packs": 1 / 60},
    struck=tuple(CREW),
)
IN_A_BUCKET = Pace(
    seconds(50),
    tick=0.5,
    shares={"writer": 9, "collector": 1, "pruner": 1, "repacker": 1, "checker": 1},
    ends={"writer": 1, "collector": 0, "pruner": 0, "repacker": 0, "checker": 0},
    late=0.0,
    totals={"conflict": 0.02, "deleted": 0.02, "collected": 0.02, "freed": 0.02, "packs": 0.0},
    struck=("writer",),
)


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


@pytest.mark.slow
@GROUP
def test_nothing_acknowledged_is_lost_under_stress(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    withstand(Place(str(folder / "store"), None, folder, 0.3, 0.1), IN_A_FOLDER, capsys)


@pytest.mark.slow
@GROUP
def test_nothing_acknowledged_is_lost_under_stress_in_a_bucket(
    folder: Path, real_s3_server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    url = real_s3_server.url(real_s3_server.bucket(), "run")
    withstand(Place(url, real_s3_server.options, folder, 4.0, 1.0), IN_A_BUCKET, capsys)


def withstand(place: Place, pace: Pace, capsys: pytest.CaptureFixture[str]) -> None:
    noted = place.folder / "notes"
    noted.mkdir()
    place.make()
    workers = [Worker(task, number) for task, count in CREW.items() for number in range(count)]
    supervisor = Supervisor(place, noted, workers, random.Random(SEED), pace.tick, pace.shares)

    def read_all() -> dict[str, list[Note]]:
        return {worker.name: read_notes(noted / worker.name) for worker in workers}

    supervisor.run(pace.seconds, lambda blows: not missing(pace, blows), lambda: lacking(pace, read_all()))
    notes = read_all()
    every = [note for lines in notes.values() for note in lines]
    with capsys.disabled():
        print(f"\n{dict(sorted(counts_of(every).items()))} {dict(sorted(supervisor.blows.items()))}")
    assert lacking(pace, notes) == {}
    assert missing(pace, supervisor.blows) == []
    check_kept(place, every)
    check_collected(place)


def counts_of(notes: list[Note]) -> Counter[str]:
    return Counter(note["what"] for note in notes)


def lacking(pace: Pace, notes: dict[str, list[Note]]) -> dict[str, str]:
    """The tasks at which somebody was starved, or what this test is about has not happened: what is wanting."""
    found: dict[str, str] = {}
    every = [note for lines in notes.values() for note in lines]
    freed, packs = (sum(note.get(key, 0) for note in every) for key in ("deleted", "packs"))
    totals = {**counts_of(every), "freed": freed, "packs": packs}
    for what, least in pace.totals.items():
        if totals.get(what, 0) < least * pace.seconds:
            found[BY[what]] = f"{what}: {totals.get(what, 0)}"
    late = min((note["time"] for note in every), default=0.0) + pace.late * pace.seconds
    for name, lines in notes.items():
        task = name.rstrip("0123456789")
        times = [note["time"] for note in lines if note["what"] == ENDS[task]]
        if len(times) < pace.ends[task]:
            found[task] = f"{name} has {ENDS[task]} {len(times)} times"
        elif task == "writer" and max(times) < late:  # what takes seconds may be killed every time
            found[task] = f"{name} has committed no more after {pace.late:.0%} of the time"
    return found


def missing(pace: Pace, blows: Counter[str]) -> list[str]:
    """The blows that have not fallen, or not often enough."""
    ticks = pace.seconds / pace.tick
    totals = {blow: sum(blows[f"{task} {blow}"] for task in CREW) for blow in ("killed", "stopped")}
    each = [f"{task} {blow}" for task in pace.struck for blow in totals]
    counts = {**blows, **totals}
    least = {**dict.fromkeys(each, 1), "killed": ticks / 5, "stopped": ticks / 10, "stopped for long": ticks / 75}
    return [f"{blow}: {counts.get(blow, 0)}" for blow, count in least.items() if counts.get(blow, 0) < count]


def check_kept(place: Place, notes: list[Note]) -> None:
    """Every branch is where its writers were told, and what no prune may drop reads back bit for bit."""
    by_branch: dict[str, list[Note]] = {}
    for note in sorted(notes, key=lambda note: float(note["time"])):
        by_branch.setdefault(note.get("branch", ""), []).append(note)
    with place.open() as store:
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


def check_collected(place: Place) -> None:
    """After two collections by one collector alone no pack is there of which nothing is live."""
    with place.open() as store:
        disk = Disk(backend_of(place.url, place.options))
        for _ in range(2):
            store.gc(grace=0, expire=0)
        root = store._roots.current()
        tips = [(Kind.COMMIT, tip) for tip in root.refs.values()]
        live = {name for _, name in reachable(tips, store._objects, store._roots.absent(root))}
        assert disk.orphans(root, live) == set()
        assert disk.condemned_files(root) == []
        disk.close()
