"""Repack under faults: a full disk, a damaged base, processes that write, read, collect and repack at the same time.

Faults at each of its system calls are in `test_faults_points.py`, power cuts in `test_powercut.py`.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from os import getuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import children
from faults.operations import DRIFTING, LARGE, commit, content
from faults.stores import BLOCK_SIZE, errors, quick_folder, same

import cas
from cas import pack
from cas.block import Codec, block_id, short
from cas.errors import CasError, Corrupt
from cas.local import LocalBackend
from cas.pack import Row
from cas.rewriting import LEVELS, Level
from cas.store import Store

COMMITS = 6
SECONDS = 3.0
"""How long processes run beside each other."""


def make(path: Path) -> None:
    """Slowly changing weights on two branches; half of the history is stored whole."""
    with cas.init(path, block_size=BLOCK_SIZE) as store:
        for number in range(COMMITS):
            commit(store, DRIFTING + number, delta="parent" if number % 2 else "none")
        store.branch("side", "main~2")
        commit(store, DRIFTING + COMMITS, "side")


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    with quick_folder() as folder:
        make(folder / "store")
        yield folder / "store"


@pytest.fixture
def path(template: Path) -> Iterator[Path]:
    with quick_folder() as folder:
        shutil.copytree(template, folder / "store")
        yield folder / "store"


def steps(store: Store) -> set[int]:
    return {held.step or 0 for held in store.graph()}


def check_whole(path: Path, wanted: int = COMMITS + 1) -> None:
    """Every commit loads bit for bit, by a process that knows nothing of the store, and fsck finds no error."""
    shutil.rmtree(path / "index", ignore_errors=True)
    with cas.open(path) as store:
        assert len(steps(store)) >= wanted
        load_all(store)
        assert errors(store.fsck(data=True)) == []


def load_all(store: Store) -> None:
    for held in store.graph():
        assert same(store.load(held.id), content(held.step or 0)), f"{held} does not load as it was made"


def rows_of(path: Path) -> list[tuple[str, Row]]:
    backend = LocalBackend(path)
    names = [info.name for info in backend.list(pack.FOLDER)]
    found = [(name, row) for name in names for row in pack.read_table(backend, pack.id_of(name))]
    backend.close()
    return found


# -- full disks -----------------------------------------------------------------------------------------------------


def on_a_disk_of(size: str, folder: Path, work: Callable[[Path], None]) -> None:
    disk = folder / "disk"
    disk.mkdir()
    if (
        getuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("NOT COVERED: a file system that is really full; needs root and mount")
    try:
        children.run(work, disk)
    finally:
        subprocess.run(["umount", disk], check=True)


def fill(disk: Path, room: int) -> Path:
    """A file that leaves so many bytes."""
    ballast = disk / "ballast"
    left = shutil.disk_usage(disk).free - room
    ballast.write_bytes(bytes(max(0, left)))
    return ballast


@pytest.mark.parametrize("room", [0, 20_000, 60_000])
def test_on_a_full_disk_repack_gives_nothing_up_and_says_what_to_do(path: Path, tmp_path: Path, room: int) -> None:
    def work(disk: Path) -> None:
        here = disk / "store"
        shutil.copytree(path, here, ignore=shutil.ignore_patterns("index"))
        with Store(LocalBackend(here), index=tmp_path / "index") as store:
            load_all(store)
            ballast, before = fill(disk, room), store._roots.current()
            with pytest.raises(
                CasError, match=r"No space left on device.*deletes what was written|may write .* are free; prune"
            ) as raised:
                store.repack()
            assert str(here) in str(raised.value)
            assert store._roots.current() == before
            load_all(store)
            assert errors(store.fsck(data=True)) == []
            ballast.unlink()
            assert store.repack().packs >= COMMITS + 1
            assert store.gc(grace=0, expire=0).freed > 0
        check_whole(here)

    on_a_disk_of("4m", tmp_path, work)


# -- damage ---------------------------------------------------------------------------------------------------------


def flip(path: Path, name: str, row: Row) -> None:
    with (path / name).open("r+b") as file:
        file.seek(row.offset + row.stored // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


def test_a_damaged_base_stops_repack_and_every_commit_that_leans_on_it_is_named(path: Path) -> None:
    """The tip is whole and all that came before leans on it, in chains."""
    with cas.open(path) as store:
        store.repack()
        store.gc(grace=0, expire=0)
        store.load("main")
        commit(store, DRIFTING + 10, delta="parent")
        history = [held.id for held in store.log("main")]
    base = block_id(content(DRIFTING + COMMITS - 1)["w"].tobytes()[:BLOCK_SIZE])
    rows = rows_of(path)
    name, bad = next((name, row) for name, row in rows if row.id == base)
    assert bad.codec != Codec.DELTA
    assert base in {row.base for _, row in rows}
    flip(path, name, bad)
    with cas.open(path) as store:
        before, packs = store._roots.current(), {name for name, _ in rows}
        with pytest.raises(Corrupt, match=short(bad.id)):
            store.repack()
        assert store._roots.current() == before
        assert {name for name, _ in rows_of(path)} >= packs
        touched = {commit for found in errors(store.fsck(data=True)) for commit in found.commits}
        loads = {}
        for held in store.graph():
            try:
                loads[held.id] = same(store.load(held.id), content(held.step or 0))
            except Corrupt as error:
                assert short(bad.id) in str(error)
                loads[held.id] = None
        assert False not in loads.values()
        assert touched == {name for name, loaded in loads.items() if loaded is None}
        assert touched >= set(history)


# -- other processes ------------------------------------------------------------------------------------------------


def side_by_side(*works: Callable[[float], Any], seconds: float = SECONDS) -> list[Any]:
    """What the works return, each in a process of its own that is told when to end, and first does what it must."""
    end = time.monotonic() + seconds
    begun: list[children.Child] = []
    with children.killed_at_the_end(begun):
        begun += [children.start(work, end) for work in works]
        return [child.result(seconds + 60) for child in begun]


def repacking(path: Path, end: float, collects: bool = True) -> int:
    """Repack at each level in turn, and collect; how often something was given up, on a slow machine after the end."""
    done = 0
    with cas.open(path) as store:
        while time.monotonic() < end or not done:
            for level in LEVELS:
                done += store.repack(level).packs > 0
                if collects:
                    store.gc(grace=0, expire=0)
    return done


def committing(path: Path, end: float) -> list[tuple[str, int]]:
    """Commit on `main`, of deltas and whole, at once and in the background; what was acknowledged."""
    made = []
    with Store(LocalBackend(path), index=path.parent / "writer's index") as store:
        store.load("main")
        while time.monotonic() < end:
            number = DRIFTING + len(made) % (LARGE - DRIFTING)
            delta: Any = ("none", "parent")[len(made) // 2 % 2]
            if len(made) % 2:
                done = store.commit(content(number), step=number, delta=delta)
            else:
                done = store.commit_async(content(number), step=number, delta=delta).wait()
            made.append((done.id, number))
    return made


def reading(path: Path, end: float) -> int:
    loads = 0
    with Store(LocalBackend(path), index=path.parent / "reader's index") as store:
        while time.monotonic() < end:
            load_all(store)
            loads += 1
    return loads


def collecting(path: Path, end: float) -> int:
    deleted = 0
    with Store(LocalBackend(path), index=path.parent / "collector's index") as store:
        while time.monotonic() < end or not deleted:
            done = store.gc(grace=0, expire=0)
            assert done.rescued == 0
            deleted += done.deleted
    return deleted


def test_beside_a_writer_nothing_acknowledged_is_lost(path: Path) -> None:
    made, repacked = side_by_side(partial(committing, path), partial(repacking, path))
    print(len(made), "commits", repacked, "repacks")
    assert len(made) >= 3
    assert repacked >= 2
    check_whole(path, COMMITS + 1)
    with cas.open(path) as store:
        history = {held.id: held.step for held in store.log("main")}
        assert [pair for pair in made if history.get(pair[0]) != pair[1]] == []


def test_beside_a_reader_every_old_commit_loads(path: Path) -> None:
    loads, repacked = side_by_side(partial(reading, path), partial(repacking, path))
    print(loads, "loads of all", repacked, "repacks")
    assert loads >= 3
    assert repacked >= 2
    check_whole(path)


def test_beside_collections_and_a_second_repack_nothing_is_lost(path: Path) -> None:
    made, deleted, *repacked = side_by_side(
        partial(committing, path),
        partial(collecting, path),
        partial(repacking, path, collects=False),
        partial(repacking, path, collects=False),
    )
    print(len(made), deleted, repacked)
    assert made
    assert deleted
    assert all(repacked)
    check_whole(path)


class Interrupted(LocalBackend):
    """Calls `then` once, after the first block was read."""

    then: Callable[[], object] | None = None

    def readinto(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        super().readinto(name, offset, buffers)
        then, self.then = self.then, None
        if then is not None:
            then()


def test_a_load_goes_on_where_the_base_of_a_delta_was_moved_and_deleted_meanwhile(path: Path) -> None:
    """Between the delta and its base the base became a change itself, and the block is whole elsewhere."""
    with Store(LocalBackend(path), index=path.parent / "index") as store:
        tip = store.resolve("main").id
        store.load(tip)
    with (
        closing(Interrupted(path)) as backend,
        Store(backend, index=path.parent / "index") as reader,
        cas.open(path) as other,
    ):

        def take_away() -> None:
            other.repack()
            assert other.gc(grace=0, expire=0).deleted > 0

        backend.then = take_away
        assert same(reader.load(tip), content(DRIFTING + COMMITS - 1))
        assert backend.then is None


def test_a_commit_after_the_repack_of_another_makes_no_block_a_change_of_itself(path: Path) -> None:
    """Its writer knows the parent's tree, and where its blocks lay before; some of them have not changed."""
    frozen = content(DRIFTING)["w"][::-1].copy()
    with Store(LocalBackend(path), index=path.parent / "index") as store, cas.open(path) as other:
        store.commit({"frozen": frozen, "w": frozen}, branch="tuned")
        store.load("tuned")
        assert other.repack().packs > 0
        wanted = {"frozen": frozen, "w": frozen + np.float32(1e-4)}
        store.commit(wanted, branch="tuned", delta="parent")
        assert all(row.base != row.id for _, row in rows_of(path))
        assert same(other.load("tuned"), wanted)
        assert errors(other.fsck(data=True)) == []


# -- deltas that nothing needs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", ["none", "parent"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_delta_whose_base_was_deleted_is_no_copy_of_its_block(tmp_path: Path, delta: Any, level: Level) -> None:
    """It lies in a pack that stays for something else, until its very block is committed again."""
    kept = np.random.default_rng(0).integers(0, 255, 16 * BLOCK_SIZE, np.uint8)
    old, new = content(DRIFTING), {**content(DRIFTING + 1), "kept": kept}
    path = tmp_path / "store"
    cas.init(path, block_size=BLOCK_SIZE).close()
    with cas.open(path) as store, Store(LocalBackend(path), index=tmp_path / "index") as other:
        store.commit(old, branch="gone")
        store.commit(new, branch="gone", delta="parent")
        store.commit({"kept": kept})
        store.delete_branch("gone")
        assert other.gc(grace=0, expire=0).deleted == 1
        rows = [row for _, row in rows_of(path)]
        hanging = {row.id for row in rows if row.chain} - {row.id for row in rows if row.base in {r.id for r in rows}}
        assert len(hanging) == 6
        assert errors(other.fsck(data=True)) == []
        for again in (new, old):
            store.commit(again, delta=delta)
            assert same(other.load("main"), again)
        assert errors(other.fsck(data=True)) == []
        other.repack(level)
        store.gc(grace=0, expire=0)
        assert same(store.load("main"), old)
        assert same(store.load("main~1"), new)
        assert errors(store.fsck(data=True)) == []
