"""Ranks that fail, hang or die in a commit or load by many."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import ranks
from faults.stores import errors, quick_folder
from joint_fault_jobs import (
    BLOCK_SIZE,
    Fault,
    Outcome,
    collect_for_ever,
    commit_for_ever,
    plain,
    same,
    serve,
    two_on_a_node,
)

import cas


class Team:
    """A job of ranks that take orders."""

    def __init__(self, job: ranks.Job) -> None:
        self.job = job
        self.alive = list(range(len(job.ranks)))
        self.sound = False
        """Whether the test that used it last came to its end."""
        for rank in self.alive:
            assert job.ranks[rank].told() == "ready"

    def begin(
        self,
        name: str,
        faults: dict[int, Fault] | None = None,
        also: dict[int, dict[str, Any]] | None = None,
        listed: bool = False,
        among: list[int] | None = None,
        **options: Any,
    ) -> None:
        """Give every rank an order; to some with a fault or options of their own."""
        for rank in self.alive if among is None else among:
            own = {**options, **(also or {}).get(rank, {})}
            self.job.ranks[rank].let_go((name, own, (faults or {}).get(rank), listed))

    def told(self, rank: int, limit: float = 60.0) -> Any:
        return self.job.ranks[rank].told(limit)

    def outcomes(self, among: list[int] | None = None, limit: float = 60.0) -> dict[int, Outcome]:
        return {rank: self.told(rank, limit) for rank in (self.alive if among is None else among)}

    def all(self, name: str, **options: Any) -> dict[int, Outcome]:
        self.begin(name, **options)
        return self.outcomes()

    def value(self, name: str, **options: Any) -> Any:
        """What all ranks return, which is the same."""
        found = self.all(name, **options)
        assert not any(outcome.error for outcome in found.values()), {r: str(o) for r, o in found.items()}
        assert len({repr(outcome.value) for outcome in found.values()}) == 1, found
        return found[self.alive[0]].value


@contextmanager
def team(size: int, place: Path, setup: Callable[[int], None] | None = None, **how: Any) -> Iterator[Team]:
    with ranks.start(size, serve, str(place), setup, **how) as job:
        yield Team(job)


@pytest.fixture
def place() -> Iterator[Path]:
    with quick_folder() as folder:
        cas.init(folder / "s", block_size=BLOCK_SIZE).close()
        yield folder / "s"


def tip(place: Path) -> int | None:
    """The step of the newest commit, after everything was checked."""
    with cas.open(place) as store:
        assert errors(store.fsck(data=True)) == []
        if "main" not in store.refs()["branches"]:
            return None
        step = store.resolve("main").step
        assert step is not None
        assert same(store.load("main", group=None), plain(step))
        return step


def check(place: Path, old: int | None, new: int, bad: int, found: dict[int, Outcome]) -> int | None:
    """What must hold whatever befell `bad`, while all ranks committed `new` on top of `old`; what the branch holds.

    `found` is what the ranks said; one that died said nothing.
    """
    now = tip(place)
    assert now in (old, new)
    for rank, outcome in found.items():
        if not outcome.error:
            assert now == new, f"rank {rank} returned a commit that is not there"
        elif rank != bad:
            assert "CasError" in outcome.kinds, str(outcome)
            assert f"rank {bad}" in outcome.text, f"rank {rank} blames another: {outcome}"
            unknown = outcome.error == "CommitUnknown"
            assert unknown or now == old, f"rank {rank} says that nothing was published: {outcome}"
            assert not unknown or bad == 0, f"rank {rank} has no reason to be in doubt: {outcome}"
    return now


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        cas.init(path / "s", block_size=BLOCK_SIZE).close()
        yield path


@pytest.fixture(scope="module")
def jobs() -> Iterator[list[Team]]:
    """The job that is kept from test to test."""
    held: list[Team] = []
    yield held
    for job in held:
        job.job.__exit__(None, None, None)


@pytest.fixture
def three(folder: Path, jobs: list[Team]) -> Iterator[tuple[Team, Path]]:
    """Three ranks with a store, for one fault after the other; new ones only after a test that failed."""
    if not jobs:
        jobs.append(Team(ranks.start(3, serve, str(folder / "s"), None)))
        if tip(folder / "s") is None:
            jobs[0].value("commit", number=0)
        jobs[0].value("load")
    (folder / "go").unlink(missing_ok=True)
    job = jobs.pop()
    job.sound = False
    yield job, folder / "s"
    if job.sound:
        jobs.append(job)
    else:
        job.job.__exit__(None, None, None)


def goes_on(job: Team, place: Path) -> None:
    """The same ranks and Stores make the next commit at once, and load it."""
    new = next_number(place)
    job.value("commit", number=new)
    assert tip(place) == new
    assert job.value("load") == new
    job.sound = True


def next_number(place: Path) -> int:
    with cas.open(place) as store:
        return max(entry.seq for entry in store.roots()) + 1


def wait_until_held(place: Path) -> None:
    """A rank has met a fault `hold`."""
    deadline = time.monotonic() + 30
    while not (place.parent / "held").exists():
        assert time.monotonic() < deadline, "no rank came to where it was to be held"
        time.sleep(0.01)
    (place.parent / "held").unlink()


def wait_until_stopped(pid: int | None) -> None:
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline, "the rank did not stop"
        time.sleep(0.01)


def go(place: Path) -> None:
    """Let the rank that is held go on, and those that would be held after it."""
    (place.parent / "go").touch()


BAD = {
    "value": ("Unsupported", "state path optimizer/odd"),
    "subclass": ("Unsupported", "Broken"),
}


@pytest.mark.parametrize("bad", [0, 2])
@pytest.mark.parametrize("what", BAD)
def test_what_a_rank_cannot_commit_is_told_to_all(three: tuple[Team, Path], what: str, bad: int) -> None:
    job, place = three
    old = tip(place)
    found = job.all("commit", number=next_number(place), also={bad: {"bad": what}})
    kind, text = BAD[what]
    for rank, outcome in found.items():
        assert text in outcome.text, str(outcome)
        assert kind in outcome.kinds
        assert rank == bad or f"rank {bad}: " in outcome.text
        assert outcome.seconds < 5
    assert tip(place) == old
    goes_on(job, place)


@pytest.mark.parametrize("bad", [0, 1])
def test_a_tensor_that_cannot_be_read_is_told_to_all(three: tuple[Team, Path], bad: int) -> None:
    job, place = three
    old, new = tip(place), next_number(place)
    found = job.all("commit", number=new, faults={bad: Fault("disk", "tensors.py:read_into")})
    assert all("/data/set" in out.text for out in found.values()), found
    assert "the branch is as it was" in found[bad].text
    assert check(place, old, new, bad, found) == old
    goes_on(job, place)


def test_values_that_differ_are_named_with_their_rank(three: tuple[Team, Path]) -> None:
    job, place = three
    found = job.all("commit", number=next_number(place), also={1: {"bad": "differs"}})
    assert all(out.error == "Invalid" and "bias on rank 1" in out.text for out in found.values()), found
    goes_on(job, place)


STEPS = [
    "joint.py:_requested",
    "outline.py:outline_of",
    "joint.py:_say",
    "joint.py:_store",
    "joint.py:_store_own",
    "roots.py:wait_for",
    "cutting.py:cuts_of",
    "writer.py:_store_batch",
    "writer.py:_hash_run",
    "codecs.py:encode",
    "packing.py:append",
    "cutting.py:report",
    "writer.py:finish_or_give",
    "small_writes.py:<listcomp>",
]
LEADS = [
    "small_writes.py:decoded",
    "joint.py:_open",
    "committer.py:_base_of",
    "joint.py:_merge",
    "writer.py:take",
    "pack.py:publish",
    "joint.py:_publish",
    "plan.py:settle",
    "committing.py:seal_commit",
    "branches.py:advance",
]


@pytest.mark.parametrize(("bad", "where"), [(1, where) for where in STEPS] + [(0, where) for where in LEADS])
def test_a_rank_without_memory_is_told_to_all(three: tuple[Team, Path], bad: int, where: str) -> None:
    job, place = three
    old, new = tip(place), next_number(place)
    found = job.all("commit", number=new, timeout=4.0, faults={bad: Fault("memory", where)})
    assert found[bad].error == "MemoryError", f"{where}: {found[bad]}"
    assert all("MemoryError: no memory" in out.text for rank, out in found.items() if rank != bad), found
    assert max(out.seconds for out in found.values()) < 5
    assert check(place, old, new, bad, found) == old
    goes_on(job, place)


# -- deaths ---------------------------------------------------------------------------------------------------------

KILLS = int(os.environ.get("CAS_TEST_RANK_KILLS", "6"))
SEED = int(os.environ.get("CAS_TEST_SEED", "1"))
TIMEOUT, MARGIN = 2.0, 9.0


@pytest.mark.slow
def test_a_kill_of_any_rank_at_any_step_leaves_the_old_commit_or_the_new_one(place: Path) -> None:
    """Each time a job of three resumes and commits, and a rank dies: entering some function of ours, or at any time."""
    dice = random.Random(SEED)
    for _ in range(KILLS):
        kill_one(place, dice.randrange(3), dice)


def kill_one(place: Path, bad: int, dice: random.Random) -> None:
    old, new = tip(place), next_number(place)
    with team(3, place) as job:
        if old is not None:
            assert job.value("load") == old
        job.value("commit", number=new)
        found = job.all("commit", number=new + 1, listed=True)
        fault, moment = None, dice.uniform(0, found[bad].seconds)
        if dice.random() < 0.7:
            fault = Fault("kill", *point_of(found[bad].entered, dice))
        job.begin("commit", number=new + 2, timeout=TIMEOUT, faults={bad: fault} if fault else None)
        if fault is None:
            time.sleep(moment)
            job.job.ranks[bad].kill()
        found = job.outcomes([rank for rank in range(3) if rank != bad])
        print(f"rank {bad} {fault or moment}: {' | '.join(map(str, found.values()))}")
        check(place, new + 1, new + 2, bad, found)
        assert max(out.seconds for out in found.values()) < TIMEOUT + MARGIN


def point_of(entered: list[str], dice: random.Random) -> tuple[str, int]:
    """A function that is entered in a commit, and which time of these; rare ones as often as frequent ones."""
    where = dice.choice(list(dict.fromkeys(entered[entered.index("joint.py:enter") :])))
    return where, dice.randint(1, min(3, entered.count(where)))


# -- interrupts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, 1])
def test_ctrl_c_on_a_rank_that_works_is_told_to_all(three: tuple[Team, Path], bad: int) -> None:
    job, place = three
    old, new = tip(place), next_number(place)
    job.begin("commit", number=new, faults={bad: Fault("hold", "writer.py:_store_batch")})
    wait_until_held(place)
    job.job.ranks[bad].signal(signal.SIGINT)
    found = job.outcomes()
    assert found[bad].error == "KeyboardInterrupt"
    assert all("KeyboardInterrupt" in found[rank].text for rank in {0, 1, 2} - {bad}), found
    assert check(place, old, new, bad, found) == old
    goes_on(job, place)


@pytest.mark.parametrize("bad", [0, 2])
def test_ctrl_c_on_a_rank_that_waits_for_another_ends_the_call(three: tuple[Team, Path], bad: int) -> None:
    job, place = three
    old, new = tip(place), next_number(place)
    job.begin("commit", number=new, faults={1: Fault("hold", "writer.py:_store_batch")})
    wait_until_held(place)
    time.sleep(0.3)
    job.job.ranks[bad].signal(signal.SIGINT)
    interrupted = job.told(bad)
    go(place)
    found = {bad: interrupted, **job.outcomes([rank for rank in range(3) if rank != bad])}
    assert interrupted.error == "KeyboardInterrupt", f"Ctrl-C became {interrupted}"
    assert max(out.seconds for out in found.values()) < 10
    assert check(place, old, new, bad, found) == old
    goes_on(job, place)


@pytest.mark.parametrize(
    ("what", "where"), [("interrupt", "log.py:_write_hint"), ("memory", "upkeep.py:_apply_policy")]
)
def test_an_error_of_rank_0_after_publishing_leaves_the_others_in_doubt(
    three: tuple[Team, Path], what: str, where: str
) -> None:
    job, place = three
    old, new = tip(place), next_number(place)
    found = job.all("commit", number=new, faults={0: Fault(what, where)})
    assert found[0].error in ("KeyboardInterrupt", "MemoryError")
    assert check(place, old, new, 0, found) == new
    goes_on(job, place)


# -- calls that a rank does not make --------------------------------------------------------------------------------


def test_a_wrong_argument_of_one_rank_is_told_to_all(place: Path) -> None:
    with team(2, place) as job:
        found = job.all("commit", number=1, timeout=TIMEOUT, also={1: {"codec": "no codec"}})
        assert found[1].error == "Invalid"
        assert "codec is one of" in found[1].text
        assert "rank 1" in found[0].text
        assert "codec is one of" in found[0].text, f"the cause is not told: {found[0]}"


def test_a_rank_that_missed_a_call_is_back_with_the_next_but_one(place: Path) -> None:
    """All ranks call at the same steps of a training loop, whatever became of the call before."""
    with team(2, place) as job:
        job.begin("commit", number=1, timeout=1.0, among=[0])
        assert "rank 1 did not come" in job.outcomes([0])[0].text
        found = {}
        for number in (2, 3, 4):
            found = job.all("commit", number=number, timeout=1.0)
        assert not any(out.error for out in found.values()), {rank: str(out) for rank, out in found.items()}


# -- stops ----------------------------------------------------------------------------------------------------------

MOMENTS = ["joint.py:_requested", "joint.py:_say", "writer.py:_store_batch", "joint.py:_result"]
PUBLISHED = ("joint.py:_result", "log.py:_write_hint")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "where"),
    [*product((0, 2), MOMENTS), (0, "joint.py:_publish"), (0, "roots.py:publish"), (0, "log.py:_write_hint")],
)
def test_a_rank_that_stops_is_named_by_the_deadline(three: tuple[Team, Path], bad: int, where: str) -> None:
    job, place = three
    old, new = tip(place), next_number(place)
    job.begin("commit", number=new, timeout=TIMEOUT, faults={bad: Fault("stop", where)})
    others = [rank for rank in range(3) if rank != bad]
    found = job.outcomes(others)
    for outcome in found.values():
        assert outcome.seconds < TIMEOUT + MARGIN, str(outcome)
    wait_until_stopped(job.job.ranks[bad].process.pid)
    job.job.ranks[bad].signal(signal.SIGCONT)
    found[bad] = job.told(bad)
    now = check(place, old, new, bad, found)
    assert (now == new) == (where in PUBLISHED or where == "roots.py:publish")
    assert bool(found[bad].error) == (now == old), str(found[bad])
    goes_on(job, place)


# -- full disks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "size"), [(0, 3000), (1, 5_000_000)])
def test_a_full_disk_of_one_rank_is_told_to_all(place: Path, bad: int, size: int) -> None:
    """A limit on its files; over 16 MiB rank 1 has packs of its own."""
    with team(2, place) as job:
        job.value("commit", number=1)
        job.begin("limit", nbytes=20_000, among=[bad])
        job.outcomes([bad])
        found = job.all("commit", number=2, also={bad: {"size": size}})
        for rank, outcome in found.items():
            assert "File too large" in outcome.text, str(outcome)
            assert rank == bad or f"rank {bad}" in outcome.text, str(outcome)
        assert tip(place) == 1
        job.begin("limit", nbytes=0, among=[bad])
        job.outcomes([bad])
        job.value("commit", number=3)
        assert tip(place) == 3
        assert job.value("load") == 3


# -- the coordinator ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hosted", [False, True], ids=["store outside", "store in rank 0"])
@pytest.mark.parametrize("where", ["log.py:_write_hint", "line.py:scatter"])
def test_a_coordinator_that_dies_after_publishing_leaves_the_others_in_doubt(
    place: Path, where: str, hosted: bool
) -> None:
    nth = 1 if where.startswith("log") else 3  # the handshake, the duties, the answer
    with team(3, place, hosted_by_rank_0=hosted) as job:
        job.value("commit", number=1)
        job.begin("commit", number=2, timeout=TIMEOUT, faults={0: Fault("kill", where, nth)})
        found = job.outcomes([1, 2])
        assert check(place, 1, 2, 0, found) == 2
        assert all(out.error == "CommitUnknown" and out.seconds < TIMEOUT + MARGIN for out in found.values())
    with team(2, place) as job:
        assert job.all("load")[0].value == 2
        job.value("commit", number=3)
    assert tip(place) == 3


@pytest.mark.parametrize("bad", [0, 1])
def test_a_rank_that_dies_in_a_job_whose_store_is_in_rank_0(place: Path, bad: int) -> None:
    with team(3, place, hosted_by_rank_0=True) as job:
        job.value("commit", number=1)
        job.begin("commit", number=2, timeout=TIMEOUT, faults={bad: Fault("kill", "writer.py:_store_batch")})
        others = [rank for rank in range(3) if rank != bad]
        found = job.outcomes(others)
        assert check(place, 1, 2, bad, found) == 1
        assert max(out.seconds for out in found.values()) < TIMEOUT + MARGIN


def test_a_commit_that_was_published_stays_in_doubt_whatever_calls_come_after(place: Path) -> None:
    """While it is under way in the background, other calls come and go; then rank 0 dies before its answer."""
    with team(2, place) as job:
        job.value("commit", number=1)
        assert job.value("begin", number=2, timeout=20.0, faults={0: Fault("hold", "log.py:_write_hint")})
        wait_until_held(place)
        for _ in range(3):
            assert job.value("begin", number=3, when_busy="skip") is False
        job.job.ranks[0].kill()
        job.begin("wait", among=[1])
        found = job.outcomes([1])
        assert check(place, 1, 2, 0, found) == 2
        assert found[1].error == "CommitUnknown"


# -- leads of other nodes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "what", "where"),
    [
        (2, "memory", "writer.py:take"),
        (3, "memory", "writer.py:_append_objects"),
        (2, "kill", "writer.py:_store_batch"),
        (3, "kill", "writer.py:_append_objects"),
    ],
)
def test_a_lead_or_its_member_fails(place: Path, bad: int, what: str, where: str) -> None:
    with team(4, place, two_on_a_node) as job:
        job.value("commit", number=1)
        job.begin("commit", number=2, timeout=TIMEOUT, faults={bad: Fault(what, where)})
        found = job.outcomes([rank for rank in range(4) if rank != bad])
        assert check(place, 1, 2, bad, found) == 1
        assert max(out.seconds for out in found.values()) < TIMEOUT + MARGIN
        if what == "memory":
            assert job.told(bad).error == "MemoryError"
            goes_on(job, place)


# -- loads ----------------------------------------------------------------------------------------------------------


def test_a_branch_that_moves_cannot_mix_commits(place: Path) -> None:
    with ranks.start(1, commit_for_ever, str(place)) as writer:
        assert writer.ranks[0].told() == "begun"
        with team(2, place) as job:
            seen = [job.value("load_sharded") for _ in range(50)]
        assert writer.ranks[0].process.is_alive()
    assert seen == sorted(seen)
    assert len(set(seen)) > 5, "the branch did not move"


@pytest.mark.parametrize("where", ["roots.py:wait_for", "loader.py:plan", "reader.py:fill"])
@pytest.mark.parametrize("bad", [0, 1])
def test_a_rank_that_fails_to_load_is_told_to_all(three: tuple[Team, Path], bad: int, where: str) -> None:
    job, place = three
    goes_on(job, place)
    found = job.all("load", timeout=TIMEOUT, faults={bad: Fault("disk", where)})
    assert found[bad].error == "OSError"
    for rank in {0, 1, 2} - {bad}:
        assert f"rank {bad}" in found[rank].text, str(found[rank])
        assert "/data/set" in found[rank].text, f"the cause is not told: {found[rank]}"
    goes_on(job, place)


def test_of_two_jobs_that_race_one_wins_and_the_other_hears_it_on_all_ranks(place: Path) -> None:
    with team(2, place) as one, team(2, place) as two:
        one.value("commit", number=1)
        for number in range(2, 12):
            assert one.value("load") == two.value("load") == number - 1
            for job in (one, two):
                job.begin("commit", number=number)
            results = [[out.error for out in job.outcomes().values()] for job in (one, two)]
            assert sorted(results) == [["", ""], ["RefConflict", "RefConflict"]]
            assert tip(place) == number


# -- collections ----------------------------------------------------------------------------------------------------


def test_what_is_condemned_during_a_commit_is_stored_again_by_all_ranks(place: Path) -> None:
    """Blocks of a state that was pruned are found by both ranks, then condemned before the commit is published."""
    with team(2, place) as job:
        job.value("commit", number=1, size=400_000)
        job.value("commit", number=2)
        with cas.open(place) as store:
            store.prune("main", keep_last=1)
        job.begin("commit", number=1, size=400_000, listed=True, faults={0: Fault("hold", "branches.py:advance")})
        wait_until_held(place)
        with cas.open(place) as store:
            assert store.gc(grace=0, expire=0).packs
        go(place)
        found = job.outcomes()
        assert not any(out.error for out in found.values()), {rank: str(out) for rank, out in found.items()}
        assert [out.entered.count("joint.py:_attempt") for out in found.values()] == [2, 2]
    with cas.open(place) as store:
        assert errors(store.fsck(data=True)) == []
        assert same(store.load("main", group=None), plain(1, size=400_000))
        assert len(list(store.log("main"))) == 3


@pytest.mark.slow
def test_commits_beside_collections_are_whole(place: Path) -> None:
    again = 0
    with team(2, place) as job, ranks.start(1, collect_for_ever, str(place)) as collector:
        for number in range(30):
            found = job.all("commit", number=number % 3, size=100_000, listed=True)
            assert not any(out.error for out in found.values()), {rank: str(out) for rank, out in found.items()}
            attempts = {out.entered.count("joint.py:_attempt") for out in found.values()}
            assert len(attempts) == 1, "some ranks began anew and others did not"
            again += attempts.pop() - 1
            assert job.value("load") == number % 3
        assert collector.ranks[0].process.is_alive(), "the collector failed"
    assert again, "no collection came between"
    with cas.open(place) as store:
        assert errors(store.fsck(data=True)) == []


# -- in the background ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, 1])
def test_a_rank_that_dies_during_a_background_commit_is_named(place: Path, bad: int) -> None:
    with team(3, place) as job:
        job.value("commit", number=1)
        job.begin("begin", number=2, timeout=TIMEOUT, faults={bad: Fault("kill", "writer.py:_store_batch")})
        others = [rank for rank in range(3) if rank != bad]
        assert all(out.value for out in job.outcomes(others).values())
        job.begin("wait", among=others)
        found = job.outcomes(others)
        assert check(place, 1, 2, bad, found) == 1
        assert all(out.error == "LostRank" for out in found.values())


@pytest.mark.parametrize("bad", [0, 1])
def test_a_stage_without_memory_fails_the_commit_on_all(three: tuple[Team, Path], bad: int) -> None:
    job, place = three
    old, new = tip(place), next_number(place)
    found = job.all("begin", number=new, faults={bad: Fault("memory", "stage.py:_places")})
    assert found[bad].error == "MemoryError"
    others = [rank for rank in range(3) if rank != bad]
    job.begin("wait", among=others)
    found.update(job.outcomes(others))
    assert check(place, old, new, bad, found) == old
    assert all("no memory" in out.text for out in found.values())
    goes_on(job, place)


def test_close_waits_for_a_commit_of_all(place: Path) -> None:
    with team(2, place) as job:
        job.value("begin", number=1, size=1_000_000)
        assert job.value("close") is None
    with cas.open(place) as store:
        assert same(store.load("main", group=None), plain(1, size=1_000_000))


def test_the_interpreter_ends_after_a_commit_of_all(place: Path) -> None:
    script = str(Path(__file__).with_name("joint_fault_jobs.py"))
    port = ranks.free_port()
    jobs = [subprocess.Popen([sys.executable, script, str(rank), "2", str(port), str(place)]) for rank in range(2)]
    try:
        assert [job.wait(60) for job in jobs] == [0, 0]
    finally:
        for job in jobs:
            job.kill()
    with cas.open(place) as store:
        assert same(store.load("main", group=None), plain(1, size=3_000_000))
