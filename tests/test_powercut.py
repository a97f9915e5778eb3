"""Power cuts: real work is recorded, and then checked on thousands of disks that a cut may have left of it.

`CAS_TEST_STATES` disks are checked in all (10,000), with `CAS_TEST_SEED` (0) as the seed of every choice. Two disks
count once when they differ in `tmp/` alone. A failure names the scenario and the seed of its record, the operation
that the cut followed, and what was on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from faults import children
from faults.stores import BLOCK_SIZE, commit, errors, make, quick_folder, same, state
from powercut import disk
from powercut.recorder import Acknowledge, Event, Record, Schedule, Tree, Work, read_tree, record, remove_index

import cas
from cas import lists
from cas.block import ID_SIZE
from cas.local import LocalBackend
from cas.log import Log, decode_record
from cas.rewriting import LEVELS

STATES = int(os.environ.get("CAS_TEST_STATES", "10000"))
SEED = int(os.environ.get("CAS_TEST_SEED", "0"))
PARTS = 4
LARGE = 1000
"""Commits from this step on hold a state that is streamed to its pack."""
PART = 2000
"""Commits from this step on hold a part of the state of the step 2,000 before."""
SLOW = 3000
"""Commits from this step on hold weights that change a little from each to the next, so that deltas pay."""
THOROUGH = 0.1
"""The share of disks on which fsck runs, and all is read again after the next commit."""


# -- what is done ---------------------------------------------------------------------------------------------------


def make_store(path: Path, acknowledge: Acknowledge) -> None:
    """Make the store, or open the one that another process has made, and commit."""
    try:
        store = cas.init(path, block_size=BLOCK_SIZE)
        acknowledge()
    except cas.Exists:
        store = cas.open(path)
    with store:
        go_on(store, 2, acknowledge)
        go_on(store, 3, acknowledge)


def add_commit(path: Path, acknowledge: Acknowledge) -> None:
    """Equal states on other branches: whoever is later leans on the packs of who was first."""
    with cas.open(path) as store:
        go_on(store, 4, acknowledge, branch=acknowledge.writer)


def race(path: Path, acknowledge: Acknowledge) -> None:
    """Commit on one branch, after whoever was faster."""
    with cas.open(path) as store:
        go_on(store, 5, acknowledge)


def unless_there(path: Path, acknowledge: Acknowledge) -> None:
    """Be told of another's commit as of one's own."""
    with cas.open(path) as store, contextlib.suppress(cas.RefConflict, cas.NotFound):
        store.load("main")
        acknowledge(store.commit(state(6), step=6, unless_in="main").id)


def move_refs(path: Path, acknowledge: Acknowledge) -> None:
    with cas.open(path) as store:
        name = f"{acknowledge.writer}-ref"
        for change in (
            lambda: store.tag(name, "main"),
            lambda: store.branch(f"{name}-branch", "main~1"),
            lambda: store.branch(f"{name}-branch", "main", force=True),
            lambda: store.delete_branch(f"{name}-branch"),
            lambda: store.delete_tag(name),
        ):
            try_to(change, acknowledge)


def undo(path: Path, acknowledge: Acknowledge) -> None:
    """Take back what was done last, by whomever, and go on from there."""
    with cas.open(path) as store:
        try_to(store.undo, acknowledge)
        go_on(store, 7, acknowledge)


def prune(path: Path, acknowledge: Acknowledge) -> None:
    with cas.open(path) as store:
        try_to(lambda: store.prune("main", keep_last=1), acknowledge)
        store.set_policy("main", keep_last=2)
        acknowledge()
        go_on(store, 9, acknowledge)


def try_to(change: Callable[[], object], acknowledge: Acknowledge) -> None:
    """Another writer may have undone what the change builds on."""
    with contextlib.suppress(cas.NotFound, cas.Exists):
        change()
        acknowledge()


def stream(path: Path, acknowledge: Acknowledge) -> None:
    with cas.open(path) as store:
        go_on(store, LARGE, acknowledge, branch=acknowledge.writer)


def change_slowly(path: Path, acknowledge: Acknowledge) -> None:
    """Commit blocks as changes of those before them."""
    with cas.open(path) as store:
        for number in range(SLOW, SLOW + 3):
            go_on(store, number, acknowledge, branch="slow", delta="parent")


def repack(path: Path, acknowledge: Acknowledge) -> None:
    """Store history anew, and delete what that gave up."""
    with cas.open(path) as store:
        store.repack(LEVELS[ord(acknowledge.writer) % 2])
        acknowledge()
    collect(path, acknowledge)


def drop_and_collect(path: Path, acknowledge: Acknowledge) -> None:
    """Leave packs of which little or nothing is live, and collect them."""
    with cas.open(path) as store:
        name = acknowledge.writer
        go_on(store, 8, acknowledge, branch=f"{name}-dropped")
        go_on(store, PART + 8, acknowledge, branch=f"{name}-kept")
        try_to(lambda: store.delete_branch(f"{name}-dropped"), acknowledge)
    collect(path, acknowledge)


def collect(path: Path, acknowledge: Acknowledge) -> None:
    """From the beginning on nothing is promised but what refs lead to."""
    with cas.open(path) as store:
        acknowledge.expire()
        store.gc(grace=0, expire=0)
        acknowledge()


def settle(path: Path, acknowledge: Acknowledge) -> None:
    """The log's fsync fails once; whether the commit was made is settled by the next."""
    with cas.open(path) as store:
        store.load("main", default=None)
        with failing_fsync(path / "log"), pytest.raises(cas.CommitUnknown):
            commit(store, 7)
        metrics = {"loss": 7.0}
        acknowledge(store.commit(expected(7), step=7, metrics=metrics, message="small", unless_in="main").id)


def lose_a_reply(path: Path, acknowledge: Acknowledge) -> None:
    """A network file system makes the link of the record, and says that the name was there already."""
    link = os.link

    def repeat(source: Any, target: Any) -> None:
        link(source, target)
        if "/log/" in os.fspath(target):
            link(source, target)

    stale = mock.patch.object(os.path, "samefile", side_effect=OSError(errno.ESTALE, "stale"))
    with cas.open(path) as store, mock.patch.object(os, "link", repeat), stale:
        go_on(store, 7, acknowledge)


def go_on(store: Any, number: int, acknowledge: Acknowledge, branch: str = "main", **options: Any) -> None:
    """Resume and commit, after whoever is faster."""
    told = {"step": number, "branch": branch, "metrics": {"loss": 1.0}, **options}
    while True:
        with contextlib.suppress(cas.RefConflict):
            made = resumed(store, branch)(expected(number), **told)
            return acknowledge(made.id)


def resumed(store: Any, branch: str) -> Callable[..., Any]:
    """What commits on the branch as it is now; also after an undo went back to a commit whose state was pruned."""
    try:
        store.load(branch, default=None)
    except cas.NotFound:
        return functools.partial(store.commit, parent=branch)
    return store.commit


@functools.cache
def expected(number: int) -> dict[str, Any]:
    if number >= SLOW:
        weights = np.random.default_rng(SLOW).standard_normal(BLOCK_SIZE // 2).astype(np.float32)
        return {"w": weights * np.float32(1 + (number - SLOW) * 1e-5), "step": number}
    if number >= PART:
        return {"b": state(number - PART)["b"]}
    if number >= LARGE:
        return {"w": np.arange(100_000, dtype=np.float32) + number, "step": number}
    return state(number)


@contextlib.contextmanager
def failing_fsync(folder: Path) -> Iterator[None]:
    """Once there is a new file in a directory its fsync fails."""
    held, fsync, status = len(os.listdir(folder)), os.fsync, os.stat(folder)

    def fail(fd: int) -> None:
        if os.path.samestat(os.fstat(fd), status) and len(os.listdir(folder)) > held:
            raise OSError(errno.EIO, "no power")
        fsync(fd)

    with mock.patch.object(os, "fsync", fail):
        yield


@dataclass(frozen=True)
class Scenario:
    """Works on a store with two commits, or where there is none yet; those of a stage run side by side.

    With `kills` the first writer of record n dies before its operation n, and others anywhere.
    """

    stages: tuple[tuple[Work, ...], ...] = ()
    new: bool = False
    kills: bool = False


WORKS: tuple[Work, ...] = (
    add_commit,
    race,
    unless_there,
    move_refs,
    drop_and_collect,
    collect,
    prune,
    undo,
    change_slowly,
    repack,
)
"""What may run beside, and after, each other."""

SCENARIOS = {
    "a new store": Scenario(((make_store,),), new=True),
    "two make a store": Scenario(((make_store, make_store), (make_store,)), new=True, kills=True),
    "a store made again": Scenario(((make_store,), (make_store,)), new=True, kills=True),
    "refs": Scenario(((move_refs,),)),
    "leaning": Scenario(((add_commit, add_commit), (add_commit,)), kills=True),
    "a race": Scenario(((race, race), (race,)), kills=True),
    "unless there": Scenario(((unless_there, unless_there), (unless_there,)), kills=True),
    "settled": Scenario(((settle,),)),
    "undone": Scenario(((undo, add_commit), (undo,)), kills=True),
    "pruned": Scenario(((prune, add_commit), (collect,), (prune,)), kills=True),
    "a lost reply": Scenario(((lose_a_reply,),)),
    "streamed": Scenario(((stream,),)),
    "changed slowly": Scenario(((change_slowly, change_slowly), (change_slowly,)), kills=True),
    "repacked": Scenario(((change_slowly,), (repack, change_slowly), (repack,)), kills=True),
    "repacked twice": Scenario(((change_slowly,), (repack, repack)), kills=True),
    "collected": Scenario(((drop_and_collect,),)),
    "collected again": Scenario(((drop_and_collect, collect), (collect, add_commit)), kills=True),
}


def any_scenario(seed: int) -> Scenario:
    """One to three works side by side, up to three times."""
    dice = random.Random(seed)
    stages = (dice.choices(WORKS, k=dice.randint(1, 3)) for _ in range(dice.randint(1, 3)))
    return Scenario(tuple(map(tuple, stages)), kills=True)


@dataclass(frozen=True)
class Whole:
    """What was found on a disk that is whole: its root's number, and the commits that were read."""

    root: int
    commits: frozenset[str]


@dataclass
class Laboratory:
    """Records scenarios, and checks disks, in a folder of its own."""

    folder: Path
    passed: dict[int, Whole] = field(default_factory=dict)
    """By the content of the disk outside `tmp/`."""

    def __post_init__(self) -> None:
        make(self.folder / "template" / "runs" / "store", commits=2)
        remove_index(self.folder / "template" / "runs" / "store")

    def record(self, name: str, seed: int) -> Record:
        scenario = SCENARIOS.get(name) or any_scenario(seed)
        work = self.folder / "work"
        if scenario.new:
            work.mkdir()
        else:
            shutil.copytree(self.folder / "template", work)
        letters = iter("abcdefghi")
        stages = [{next(letters): work for work in stage} for stage in scenario.stages]
        try:
            made = record(work, stages, Schedule(name, seed, scenario.kills))
        except BaseException as error:
            error.add_note(f"while {name}, record {seed}, was made")
            raise
        assert disk.replay(made) == read_tree(work), "the recorder missed an operation"
        shutil.rmtree(work)
        return made

    def check(self, made: Record, choices: int, dice: random.Random) -> Iterator[str]:
        """Check disks after every operation of a record; yields what is wrong with those that are bad."""
        facts = Facts.of(made)
        now = disk.Disk.holding(made.start)
        for number, event in enumerate(made.events):
            now.apply(event)
            drawn = (disk.any_choice(dice) for _ in range(choices))
            for pick, fate in itertools.chain(disk.EXTREMES, drawn):
                found = now.after_cut(dice, pick, fate)
                try:
                    self._check_one(found, facts, number, dice.random() < THOROUGH)
                except Exception as error:
                    cut = f"after operation {number}, {event.call} {event.path} by {event.writer}"
                    held = [f"{name} {'' if data is None else len(data)}" for name, data in sorted(found.items())]
                    yield f"{type(error).__name__}: {error}\n{cut}\n" + "\n".join(held)

    def _check_one(self, found: Tree, facts: Facts, number: int, thorough: bool) -> None:
        key = hash(frozenset((name, data) for name, data in found.items() if _counts(name)))
        if key not in self.passed or not facts.hold(self.passed[key], number):
            place = self.folder / "cut"
            try:
                write_tree(place, found)
                self.passed[key] = check(place / "runs" / "store", facts, number, thorough)
            finally:
                shutil.rmtree(place)
        assert facts.hold(self.passed[key], number), f"{self.passed[key]} is not all that was acknowledged"


def _counts(name: str) -> bool:
    """Whether two disks that differ in this file are two."""
    return "/tmp/" not in name and not name.endswith("/reserve")


@dataclass
class Facts:
    """What must be true after a cut: roots by number, and after each operation what was acknowledged."""

    roots: dict[int, Any]
    required: list[int]
    commits: list[frozenset[str]]

    @classmethod
    def of(cls, made: Record) -> Facts:
        """A root is required once its writer acknowledges anything, or anybody a commit that it is first to name.

        A commit that was acknowledged before or during a collection may be gone where no ref leads to it.
        """
        roots = {seq_of(name): data for name, data in made.start.items() if data and "/log/" in name}
        facts = cls({seq: decode_record(data, seq) for seq, data in roots.items()}, [], [])
        content: dict[int, bytes] = {}
        published: dict[str, int] = {}
        collecting: set[str] = set()
        required, commits = max(roots, default=0), frozenset[str]()
        for event in made.events:
            if event.call == "write":
                content[event.inode] = content.get(event.inode, b"") + event.data
            elif event.call == "link" and "/log/" in event.path:
                seq = published[event.writer] = seq_of(event.path)
                facts.roots[seq] = decode_record(content[event.inode], seq)
            elif event.call == "acknowledge":
                named = [s for s, root in facts.roots.items() if bytes.fromhex(event.commit) in root.refs.values()]
                required = max(required, published.get(event.writer, 0), min(named, default=0))
                collecting.discard(event.writer)
                commits |= {event.commit} - {""} if not collecting else frozenset()
            elif event.call == "expire":
                collecting.add(event.writer)
                commits = frozenset()
            facts.required.append(required)
            facts.commits.append(commits)
        return facts

    def hold(self, found: Whole, number: int) -> bool:
        """Whether nothing that was acknowledged before the cut is lost."""
        return found.root >= self.required[number] and found.commits >= self.commits[number]


def seq_of(name: str) -> int:
    return int(name.rpartition("/")[2])


def write_tree(folder: Path, tree: Tree) -> None:
    folder.mkdir()
    for name, data in tree.items():
        if data is None:
            os.mkdir(folder / name)
        else:
            fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
            os.write(fd, data)
            os.close(fd)


def check(path: Path, facts: Facts, number: int, thorough: bool) -> Whole:
    """Old or new, nothing reachable missing, what was acknowledged is there, and the next job goes on."""
    exists = (path / "cas.json").exists()
    with cas.open(path, create=not facts.required[number]) as store:
        log = list(Log(LocalBackend(path)).records())
        if exists:
            assert all(root == facts.roots[root.seq] for root in log), "the log holds a record that was not published"
        dropped = pruned(path, log[0])
        held = read_all(store, facts.commits[number], dropped)
        if thorough:
            found = errors(store.fsck(data=True))
            assert found == [], f"fsck: {found}"
        next_id = resumed(store, "main")(expected(99), step=99).id
        assert same(store.load("main"), expected(99)), "the next commit is not as it was made"
    if thorough:
        remove_index(path)
        with cas.open(path) as store:
            read_all(store, held | {next_id}, pruned(path, Log(LocalBackend(path)).head()))
            found = errors(store.fsck())
            assert found == [], f"fsck: {found}"
    return Whole(log[0].seq if exists else 0, held)


def pruned(path: Path, root: Any) -> set[str]:
    """The commits whose states were dropped on purpose."""
    backend = LocalBackend(path)
    return {item[:ID_SIZE].hex() for name in root.absent for item in lists.read(backend, name, lists.What.ABSENT)}


def read_all(store: Any, acknowledged: frozenset[str], dropped: set[str]) -> frozenset[str]:
    """Read all that refs lead to, and what was acknowledged besides; the commits that were read."""
    refs = store.refs()
    steps = {held.id: held.step for held in store.graph()} if refs["branches"] or refs["tags"] else {}
    steps |= {name: store.resolve(name).step for name in acknowledged - steps.keys()}
    for name in steps.keys() - dropped:
        assert same(store.load(name), expected(steps[name])), (
            f"commit {name} of step {steps[name]} is not as it was made"
        )
    for name in steps.keys() & dropped:
        with pytest.raises(cas.NotFound, match="pruned"):
            store.load(name)
    return frozenset(steps)


# -- the tests ------------------------------------------------------------------------------------------------------


def explore(name: str, wanted: int, first: int, step: int, choices: int) -> int:
    """Check disks of every `step`th record until so many were whole, or 20 records brought no new one."""
    children.stay_on_one_processor()
    with quick_folder() as folder:
        laboratory = Laboratory(folder)
        stale = 0
        for seed in itertools.count(SEED + first, step):
            before = len(laboratory.passed)
            for bad in laboratory.check(laboratory.record(name, seed), choices, random.Random(seed)):
                raise AssertionError(f"{name}, record {seed}: {bad}")
            stale = 0 if len(laboratory.passed) > before else stale + 1
            if len(laboratory.passed) >= wanted or stale == 20:
                return len(laboratory.passed)
    raise AssertionError("not reached")


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_power_cut_at_any_moment_loses_nothing(name: str) -> None:
    """Some of these have few disks: they are what the large search below does not come to."""
    assert children.run(explore, name, STATES // 50, 0, 7, 1, limit=86_400) > 0


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_a_power_cut_beside_any_other_work_loses_nothing(part: int) -> None:
    wanted = STATES // PARTS
    assert children.run(explore, "any", wanted, part, PARTS, 4, limit=86_400) >= wanted


# -- every step is needed -------------------------------------------------------------------------------------------


def fsync_of(*kinds: str) -> Callable[[Event], bool]:
    return lambda event: event.call == "fsync" and disk.kind_of(event.path) in kinds


def link_to(*kinds: str) -> Callable[[Event], bool]:
    return lambda event: event.call == "link" and disk.kind_of(event.path) in kinds


def publishing(*kinds: str) -> Callable[[Event], bool]:
    """What gives files of these kinds their names, and what makes names or bytes of these kinds durable."""
    return lambda event: event.call in ("fsync", "link") and disk.kind_of(event.path) in kinds


UNNEEDED = {
    "log by gc._listed_condemned": "what a record condemns was garbage under the record before it too",
    "packs by catalog._catch_up": "whoever gave a pack its name had made the name of its folder durable before",
    "reserve by directfile.publish": "nobody reads the reserve",
}
"""The fsyncs without which nothing is lost, and why."""

SWAPS = {
    "the name of a pack before its bytes": (fsync_of("packs/xx/*"), link_to("packs/xx/*")),
    "the name of a record before its bytes": (fsync_of("log/*"), link_to("log/*")),
    "the name of cas.json before its bytes": (fsync_of("cas.json"), link_to("cas.json")),
    "cas.json before the first record": (publishing("log/*", "log"), link_to("cas.json")),
    "a record before its packs": (publishing("packs/xx/*", "packs/xx"), link_to("log/*")),
    "a record before its lists": (publishing("lists/*", "lists"), link_to("log/*")),
    "success before the record": (publishing("log/*", "log"), lambda event: event.call == "acknowledge"),
    "deleting before the record": (
        publishing("log/*", "log"),
        lambda event: event.call == "unlink" and disk.kind_of(event.path) == "packs/xx/*",
    ),
}
"""Two steps of the write order: with each pair changed, what should come first comes right after the second."""

SAMPLE = [
    *((name, seed) for name in SCENARIOS for seed in range(0, 120, 12 if SCENARIOS[name].kills else 60)),
    *(("leaning", seed) for seed in range(60)),  # it takes a cut between another's link and its fsync
]
"""The records that are searched."""


def find(laboratory: Laboratory, records: list[Record]) -> str:
    """The first bad disk that these records may leave, "" if there is none: at first only extremes are looked at."""
    for choices in (0, 2):
        for made in records:
            for bad in laboratory.check(made, choices, random.Random(SEED)):
                return bad
    return ""


def search() -> list[str]:
    """The steps that may be left out, and the pairs that may be swapped, without a disk that shows it."""
    children.stay_on_one_processor()
    with quick_folder() as folder:
        laboratory = Laboratory(folder)
        records = [laboratory.record(name, seed) for name, seed in SAMPLE]
        bad = find(laboratory, records)
        assert bad == "", bad
        every = set().union(*map(disk.steps, records))
        changes = {step: functools.partial(disk.without, step=step) for step in every}
        changes |= {
            swap: functools.partial(disk.swapped, early=early, late=late) for swap, (early, late) in SWAPS.items()
        }
        return [name for name, change in changes.items() if not find(laboratory, changed(records, change))]


def changed(records: list[Record], change: Callable[[Record], Record]) -> list[Record]:
    """The records in which the change changes anything, changed."""
    return [other for made in records if (other := change(made)) != made]


@pytest.mark.slow
def test_every_fsync_and_the_order_of_steps_is_needed() -> None:
    """With any one of them taken out, some power cut loses something; or it is known that none does."""
    assert sorted(children.run(search, limit=3600)) == sorted(UNNEEDED)
