"""What runs under faults: each operation makes its store, does its work, and can do the rest of it after a fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from machine.disk import Disk

import cas
from cas import pack
from cas.block import Kind, ObjectId
from cas.errors import CasError, CommitUnknown
from cas.local import LocalBackend
from cas.reach import reachable
from cas.store import Store

from .points import CHANGING, EVERY_CALL
from .stores import BLOCK_SIZE, count_deltas, make, same, state

Note = Callable[[str, str], None]
"""Takes "done" and the name of a ref once the store has said that its change is there to stay, or "error" and one."""

NOISY = 50
"""States from this number on have 200 KB of noise besides what the state of the number less this one has."""

DRIFTING = 70
"""States from this number on have weights that change a little from each to the next, so that deltas pay."""

LARGE = 100
"""States from this number on fill a pack of direct writes, by a thread of its own."""


def _nothing(path: Path) -> None:
    """For operations of which nothing else is to be made, or checked."""


@dataclass(frozen=True)
class Operation:
    """`run` leads from the store that `prepare` makes to one and the same end, also from anywhere between the two.

    `check` says what else must hold at that end. `only` and `faults` name the calls and the faults that are of
    interest, empty for all.
    """

    name: str
    run: Callable[[Path, Note], None]
    prepare: Callable[[Path], Any] = _nothing
    check: Callable[[Path], None] = _nothing
    only: frozenset[str] = frozenset()
    faults: tuple[str, ...] = ()


@contextmanager
def opened(path: Path, create: bool = False) -> Iterator[Store]:
    """The store; nothing that goes wrong at its end is an error of the caller's."""
    store = cas.open(path, create)
    try:
        yield store
    finally:
        try:
            store.close()
        except Exception as error:
            raise AssertionError(f"close raised {error!r}") from error


@contextmanager
def moves_or_raises(store: Store) -> Iterator[None]:
    """For one update: an error means that no ref has moved, unless it says that this is not known."""
    before = store.refs()
    try:
        yield
    except CommitUnknown:
        raise
    except CasError as error:
        now = before
        with suppress(CasError, OSError):
            now = store.refs()
        assert now == before, f"refs have moved in spite of {error!r}"
        raise


@cache
def content(number: int) -> dict[str, Any]:
    """The state of the commit whose step is `number`."""
    if number < NOISY:
        return state(number)
    if DRIFTING <= number < LARGE:
        dice = np.random.default_rng(DRIFTING)
        weights, step = (dice.standard_normal(6 << 10).astype(np.float32) for _ in range(2))
        return {**state(number % NOISY), "w": weights + (number - DRIFTING) * np.float32(1e-4) * step}
    size = 9 << 20 if number >= LARGE else 200_000
    noise = np.random.default_rng(number).integers(0, 255, size, np.uint8)
    return {**state(number % NOISY), "noise": noise}


def commit(store: Store, number: int, branch: str = "main", **options: Any) -> None:
    metrics = {"loss": float(number)}
    store.commit(content(number), step=number, branch=branch, metrics=metrics, message="small", **options)


def snapshot(store: Store) -> dict[str, Any]:
    """The steps of each branch and tag, newest first, and for each commit that every bit of its state is there."""
    found: dict[str, Any] = {}
    for kind, names in store.refs().items():
        for name in names:
            history = list(store.log(name))
            found[f"{kind} {name}"] = [held.step for held in history]
            for held in history:
                if held.pruned:
                    found[f"state {held.step}"] = "pruned"
                elif f"state {held.step}" not in found:
                    assert same(store.load(held.id), content(held.step)), f"{held} does not load as it was made"
                    found[f"state {held.step}"] = "whole"
    return found


def _step(store: Store, branch: str) -> int:
    return store.resolve(branch).step if branch in store.refs()["branches"] else -1


# -- a new store ----------------------------------------------------------------------------------------------------


def _run_init(path: Path, note: Note) -> None:
    with opened(path, create=True) as store:
        store.load("main", default=None)
        if _step(store, "main") < 0:
            commit(store, 0)
        note("done", "branches main")


# -- a training job -------------------------------------------------------------------------------------------------


def _run_session(path: Path, note: Note) -> None:
    """Resume, commit, begin another branch, tag. After an error the same Store still reads, and commits."""
    with opened(path) as store:
        for branch, number in (("main", 2), ("side", 3)):
            store.load(branch, default=None)
            if _step(store, branch) < number:
                _commit_again_after_an_error(store, number, branch, note)
            note("done", f"branches {branch}")
        if "done" not in store.refs()["tags"]:
            with moves_or_raises(store):
                store.tag("done")
        note("done", "tags done")


def _commit_again_after_an_error(store: Store, number: int, branch: str, note: Note) -> None:
    before = _step(store, branch)
    try:
        commit(store, number, branch)
        return
    except CasError as error:
        failure = error
        note("error", f"{type(error).__name__}: {error}")
    seen = _step(store, branch)
    held = (before, number) if isinstance(failure, CommitUnknown) else (before,)
    assert seen in held, f"{branch} is at {seen} after {failure!r}"
    assert seen < 0 or same(store.load(branch), content(seen))
    if seen < number:
        commit(store, number, branch)


def _run_large_commit(path: Path, note: Note) -> None:
    with opened(path) as store:
        store.load("main")
        if _step(store, "main") < LARGE:
            commit(store, LARGE)
        note("done", "branches main")


def _prepare_drift(path: Path) -> None:
    make(path, commits=0)
    with opened(path) as store:
        commit(store, DRIFTING)
        store.branch("side")


def _run_delta_commits(path: Path, note: Note) -> None:
    """One at once, and one in the background, which makes deltas unless told otherwise."""
    with opened(path) as store:
        store.load("main")
        if _step(store, "main") == DRIFTING:
            commit(store, DRIFTING + 1, delta="parent")
        note("done", "branches main")
        store.load("side")
        if _step(store, "side") == DRIFTING:
            store.commit_async(content(DRIFTING + 2), step=DRIFTING + 2, branch="side").wait()
        note("done", "branches side")


# -- refs -----------------------------------------------------------------------------------------------------------


def _prepare_refs(path: Path) -> None:
    make(path, commits=2)
    with opened(path) as store:
        store.branch("old")
        store.branch("moved", "main~1")
        store.tag("old-tag")


def _run_refs(path: Path, note: Note) -> None:
    with opened(path) as store:
        branches, tags = store.refs()["branches"], store.refs()["tags"]
        if "new" not in branches:
            with moves_or_raises(store):
                store.branch("new", "main~1")
        note("done", "branches new")
        if "old" in branches:
            with moves_or_raises(store):
                store.delete_branch("old")
        note("done", "branches old")
        with moves_or_raises(store):
            store.branch("moved", "main", force=True)
        note("done", "branches moved")
        if "old-tag" in tags:
            with moves_or_raises(store):
                store.delete_tag("old-tag")
        note("done", "tags old-tag")
        if "new-tag" not in tags:
            with moves_or_raises(store):
                store.tag("new-tag")
        note("done", "tags new-tag")


def _run_undo(path: Path, note: Note) -> None:
    with opened(path) as store:
        if "gone" not in store.refs()["branches"]:
            with moves_or_raises(store):
                store.undo()
        note("done", "branches gone")


# -- freeing --------------------------------------------------------------------------------------------------------


def _prepare_dead_pack(path: Path) -> None:
    """A pack of which nothing is needed: that of a branch which is deleted."""
    make(path, commits=2)
    with cas.open(path) as store:
        commit(store, 5, "gone")
        store.delete_branch("gone")


def _prepare_sparse_pack(path: Path) -> None:
    """A pack of which little is needed: the blocks of a deleted branch that a commit made later has as well."""
    make(path, commits=2)
    with cas.open(path) as store:
        commit(store, NOISY + 7, "gone")
        store.load("main")
        commit(store, 7)
        store.delete_branch("gone")


def _run_gc(path: Path, note: Note) -> None:
    with opened(path) as store:
        store.gc(grace=0, expire=0)


def _check_collected(packs: int, path: Path) -> None:
    """Nothing is left that is not needed, and what was freed can be stored again."""
    assert len(_packs(path)) == packs, f"{len(_packs(path))} packs are left, not {packs}"
    leftovers = [file.name for file in (path / "tmp").iterdir()]
    assert not leftovers, f"tmp/ still holds {leftovers}"
    with opened(path) as store:
        commit(store, 5, "again")
        assert same(store.load("again"), content(5)), "what was freed and stored again does not load"


def _prepare_history(path: Path) -> None:
    make(path, commits=4)


def _run_prune(path: Path, note: Note) -> None:
    with opened(path) as store:
        store.prune("main", keep_last=1, keep_tags=())
        for number in range(3):
            note("done", f"state {number}")


def _prepare_chains(path: Path) -> None:
    """Two branches that change slowly, of whole blocks and of deltas, in small packs; and a block that is garbage."""
    make(path, commits=0)
    with opened(path) as store:
        commit(store, DRIFTING)
        store.commit({**content(DRIFTING + 1), "dead": np.ones(BLOCK_SIZE, np.uint8)}, branch="gone")
        store.delete_branch("gone")
        store.gc(grace=0, expire=0)
        commit(store, DRIFTING + 1)
        commit(store, DRIFTING + 2, delta="parent")
        store.branch("side", "main~1")
        for number in range(3, 5):
            commit(store, DRIFTING + number, "side", delta="parent")


def _run_repack(path: Path, note: Note) -> None:
    with opened(path) as store:
        store.repack()
        store.gc(grace=0, expire=0)


def _check_repacked(path: Path) -> None:
    """Once there is nothing left to do, what is live lies in as few packs as can be, alone."""
    with opened(path) as store:
        while store.repack().packs + store.gc(grace=0, expire=0).deleted:
            pass
    disk = Disk(path)
    with opened(path) as store:
        packs = disk.packs(store._roots.current())
        live = {name for _, name in reachable(map(_commit_edge, store.graph()), store._objects, {})}
    disk.close()
    assert len(packs) <= 2, f"{len(packs)} packs are left, not one of tips and one of history"
    assert set().union(*packs.values()) == live, "packs hold what nothing leads to"
    assert count_deltas(path) == DELTAS["repack"], f"{count_deltas(path)} blocks are changes of others"
    leftovers = [file.name for file in (path / "tmp").iterdir()]
    assert not leftovers, f"tmp/ still holds {leftovers}"


def _commit_edge(held: cas.Commit) -> tuple[Kind, ObjectId]:
    return Kind.COMMIT, ObjectId(bytes.fromhex(held.id))


# -- repair ---------------------------------------------------------------------------------------------------------


def _prepare_bad_copy(path: Path) -> None:
    """Two packs with the same blocks, made by two writers at once; a byte of a block in one of them is flipped."""
    make(path, commits=2)
    other = path.with_name("other")
    shutil.copytree(path, other)
    known = set(_packs(path))
    for copy in (path, other):
        with cas.open(copy) as store:
            store.load("main")
            commit(store, 2)
    (bad,) = set(_packs(path)) - known
    for name in set(_packs(other)) - known:
        (path / name).parent.mkdir(exist_ok=True)
        shutil.move(other / name, path / name)
    shutil.rmtree(other)
    row = next(row for row in pack.read_table(LocalBackend(path), pack.id_of(bad)) if row.kind == Kind.BLOCK)
    with (path / bad).open("r+b") as file:
        file.seek(row.offset)
        byte = file.read(1)
        file.seek(row.offset)
        file.write(bytes([byte[0] ^ 1]))


def _run_repair(path: Path, note: Note) -> None:
    with opened(path) as store:
        store.fsck(data=True, repair=True)


def _packs(path: Path) -> list[str]:
    return [str(file.relative_to(path)) for file in path.glob("packs/*/*")]


def _make_two_commits(path: Path) -> None:
    make(path, commits=2)


_SOME = () if EVERY_CALL else ("kill", "EIO", "ENOSPC-lasting", "EDQUOT", "EINTR", "short", "recovery")
_FEW = () if EVERY_CALL else ("kill", "EIO", "ENOSPC-lasting", "short", "recovery")
_WRITTEN = frozenset() if EVERY_CALL else CHANGING | {"preadv2", "pread64", "clone3"}

_ALL = [
    Operation("init", _run_init),
    Operation("commit", _run_session, _make_two_commits),
    Operation(
        "large-commit",
        _run_large_commit,
        _make_two_commits,
        only=frozenset({"pwrite64", "fcntl", "fsync", "link", "rename"}),
        faults=("kill", "EIO", "EIO-lasting", "ENOSPC", "ENOSPC-lasting", "short", "short-lasting"),
    ),
    Operation("delta-commits", _run_delta_commits, _prepare_drift, only=_WRITTEN, faults=_FEW),
    Operation("refs", _run_refs, _prepare_refs, faults=_SOME),
    Operation("undo", _run_undo, _prepare_dead_pack, faults=_SOME),
    Operation("gc", _run_gc, _prepare_dead_pack, partial(_check_collected, 2)),
    Operation("gc-rewrite", _run_gc, _prepare_sparse_pack, partial(_check_collected, 4), faults=_SOME),
    Operation("repack", _run_repack, _prepare_chains, _check_repacked, only=_WRITTEN, faults=_SOME),
    Operation("prune", _run_prune, _prepare_history),
    Operation("repair", _run_repair, _prepare_bad_copy, faults=_SOME),
]
DELTAS = {"delta-commits": 12, "repack": 24}
"""How many blocks are stored as changes of others at the end of an operation that no fault strikes."""
OPERATIONS = {operation.name: operation for operation in _ALL}
