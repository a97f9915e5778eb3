"""Going back: what undo brings back, for how long, and that nothing comes back in part.

Time passes by making the records older: whatever was published is then so many days ago.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import children
from faults.stores import commit, errors, numbers, quick_folder, same, state

import cas
from cas import log
from cas.errors import Invalid, NotFound, RefConflict

DAY = 86_400.0


@pytest.fixture
def path() -> Iterator[Path]:
    with quick_folder() as folder:
        cas.init(folder / "store", block_size=4096).close()
        yield folder / "store"


@pytest.fixture
def store(path: Path) -> Iterator[cas.Store]:
    with cas.open(path) as opened:
        yield opened


def noise(seed: int, blocks: int = 8) -> dict[str, Any]:
    return {"noise": np.random.default_rng(seed).integers(0, 256, blocks * 4096, np.uint8), "seed": seed}


def set_time(path: Path, seq: int, seconds: float) -> None:
    """Have record `seq` say that it was published at this Unix time."""
    name = path / log.name_of(seq)
    record = log.decode_record(name.read_bytes(), seq)
    name.unlink()
    name.write_bytes(log.encode_record(replace(record, update=replace(record.update, time=int(seconds * 1e6)))))


def let_pass(path: Path, seconds: float) -> None:
    for name in (path / "log").iterdir():
        record = log.decode_record(name.read_bytes(), int(name.name))
        set_time(path, record.seq, record.update.time / 1e6 - seconds)


def newest(path: Path) -> int:
    return max(int(name.name) for name in (path / "log").iterdir())


def lost_branch(store: cas.Store, seed: int = 1) -> str:
    made = store.commit(noise(seed), branch="lost")
    store.delete_branch("lost")
    return str(made.id)


# -- the window -----------------------------------------------------------------------------------------------------


def test_a_deleted_branch_comes_back_whole_after_a_collection_within_the_window(store: cas.Store) -> None:
    name = lost_branch(store)
    done = store.gc(grace=0)
    assert done.deleted == 0
    assert done.undo > 8 * 4096
    entry = store.undo()
    assert store.resolve("lost").id == name
    assert same(store.load("lost"), noise(1))
    assert [(change.name, change.old, change.new) for change in entry.changes] == [("lost", None, name)]
    store.gc(grace=0, expire=0)
    assert same(store.load("lost"), noise(1))


def test_it_is_held_until_the_window_has_passed_since_it_was_last_current(store: cas.Store, path: Path) -> None:
    lost_branch(store)
    commit(store, 0)
    let_pass(path, 2.9 * DAY)
    assert store.gc(grace=0).deleted == 0
    let_pass(path, 0.2 * DAY)
    assert store.gc(grace=0).deleted == 1
    assert same(store.load("main"), state(0))


def test_what_was_current_when_the_window_began_is_held_however_old_its_record(store: cas.Store, path: Path) -> None:
    """The record that names it is a year old, but it was the root until an hour ago."""
    name = store.commit(noise(1), branch="lost").id
    let_pass(path, 365 * DAY)
    store.delete_branch("lost")
    assert store.gc(grace=0).deleted == 0
    store.undo()
    assert store.resolve("lost").id == name
    assert same(store.load("lost"), noise(1))


def test_outside_of_the_window_undo_says_that_it_is_gone(store: cas.Store, path: Path) -> None:
    commit(store, 0)
    lost_branch(store)
    deleted = newest(path)
    let_pass(path, 4 * DAY)
    assert store.gc(grace=0).deleted == 1
    refs = store.refs()
    with pytest.raises(NotFound, match="nothing was changed since record"):
        store.undo()
    with pytest.raises(NotFound, match=f"undo can go to the records {deleted} to {deleted + 1}, not to {deleted - 1}"):
        store.undo(deleted - 1)
    assert store.refs() == refs
    assert [entry.undoable for entry in store.roots()] == [True, True] + [False] * (deleted - 1)


def test_the_floor_is_raised_and_never_lowered(store: cas.Store, path: Path) -> None:
    commit(store, 0)
    lost_branch(store, 1)
    store.gc(grace=0, expire=0)
    floor = newest(path) - 1
    lost_branch(store, 2)
    store.gc(grace=0, expire=365 * DAY)
    with pytest.raises(NotFound, match=f"records {floor} to"):
        store.undo(floor - 1)
    store.undo(newest(path) - 1)
    store.delete_branch("lost")
    lost_branch(store, 3)
    store.gc(grace=0, expire=0)
    with pytest.raises(NotFound):
        store.undo(floor)


def test_a_window_of_nothing_keeps_only_what_is_now(store: cas.Store, path: Path) -> None:
    commit(store, 0)
    lost_branch(store)
    assert store.gc(grace=0, expire=0).deleted == 1
    with pytest.raises(NotFound):
        store.undo()
    assert same(store.load("main"), state(0))


@pytest.mark.parametrize("ahead", [0.0, 1.0, 3600.0, 10 * 365 * DAY])
def test_no_window_means_none_whatever_the_clock_says(store: cas.Store, path: Path, ahead: float) -> None:
    """The newest record comes from a machine whose clock is ahead."""
    lost_branch(store)
    set_time(path, newest(path), time.time() + ahead)
    done = store.gc(grace=0, expire=0)
    assert (done.deleted, done.undo) == (1, 0)


def test_a_record_with_a_clock_far_back_does_not_cut_the_window(store: cas.Store, path: Path) -> None:
    """Its machine had not asked for the time yet; what was deleted before it is an hour ago all the same."""
    commit(store, 0)
    name = lost_branch(store)
    lost = newest(path) - 1
    let_pass(path, 3600)
    commit(store, 1)
    set_time(path, newest(path), 5.0)
    commit(store, 2)
    store.gc(grace=0)
    store.undo(lost)
    assert store.resolve("lost").id == name
    assert same(store.load("lost"), noise(1))


def test_clocks_that_jump_keep_too_much_rather_than_too_little(store: cas.Store, path: Path) -> None:
    rng = np.random.default_rng(4)
    for seed in range(8):
        lost_branch(store, seed)
        set_time(path, newest(path), time.time() + float(rng.normal()) * 30 * DAY)
    set_time(path, newest(path), time.time())
    lost = newest(path) - 1
    store.gc(grace=0)
    store.undo(lost)
    assert same(store.load("lost"), noise(7))


def test_a_collection_says_what_undo_holds(store: cas.Store) -> None:
    commit(store, 0)
    assert store.gc(grace=0).undo == 0
    lost_branch(store, 1)
    held = store.gc(grace=0).undo
    assert 8 * 4096 < held < 9 * 4096
    lost_branch(store, 2)
    assert store.gc(grace=0, dry_run=True).undo > held + 8 * 4096
    assert store.gc(grace=0, expire=0).undo == 0


# -- undo -----------------------------------------------------------------------------------------------------------


def test_an_undo_is_undone_by_the_next(store: cas.Store) -> None:
    commit(store, 0)
    commit(store, 1)
    one, two = store.resolve("main").id, store.resolve("main~1").id
    for wanted in (two, one, two, one):
        store.undo()
        assert store.resolve("main").id == wanted


def test_undo_of_every_kind_of_change(store: cas.Store) -> None:
    commit(store, 0)
    commit(store, 1)
    refs = store.refs()
    store.branch("main", "main~1", force=True)
    store.undo()
    assert store.refs() == refs
    store.tag("v1")
    store.undo()
    assert store.refs() == refs
    store.branch("other")
    store.undo()
    assert store.refs() == refs
    store.set_policy("main", keep_last=1)
    store.undo()
    assert store.policies() == {}
    store.undo()
    assert list(store.policies()) == ["main"]


def test_undo_to_a_record_by_its_number(store: cas.Store, path: Path) -> None:
    for number in range(4):
        commit(store, number)
    store.undo(3)
    assert numbers(store) == [0, 1]
    store.undo(5)
    assert numbers(store) == [0, 1, 2, 3]
    store.undo(1)
    assert store.refs() == {"branches": {}, "tags": {}}
    for seq in (0, -1, newest(path) + 1, 10**9, 1 << 70):
        with pytest.raises(NotFound, match="undo can go to the records 1 to"):
            store.undo(seq)


@pytest.mark.parametrize("seq", [True, "3", 3.0, 2.5, float("nan"), b"3", [3]], ids=repr)
def test_a_record_number_that_is_none_is_refused(store: cas.Store, path: Path, seq: Any) -> None:
    for number in range(3):
        commit(store, number)
    with pytest.raises(Invalid):
        store.undo(seq)
    assert newest(path) == 4


def test_after_an_undo_the_next_commit_must_load_first(store: cas.Store) -> None:
    """As when another writer had moved the branch: what was in memory is not what the branch holds."""
    commit(store, 0)
    commit(store, 1)
    store.undo()
    with pytest.raises(RefConflict):
        commit(store, 2)
    assert same(store.load("main"), state(0))
    commit(store, 2)
    assert numbers(store) == [0, 2]


def test_nothing_to_undo_is_said(store: cas.Store) -> None:
    with pytest.raises(NotFound, match="nothing was changed since record 1"):
        store.undo()


def test_what_was_pruned_stays_so(store: cas.Store) -> None:
    for number in range(4):
        store.commit(noise(number), step=number)
    store.prune(keep_last=1)
    with pytest.raises(NotFound, match="pruned"):
        store.load("main~1")
    store.undo()  # the newest change of refs is the fourth commit: a prune changes none
    assert numbers(store) == [0, 1, 2]
    with pytest.raises(NotFound, match="pruned"):
        store.load("main")
    store.undo()
    assert same(store.load("main"), noise(3))
    store.gc(grace=0, expire=0)
    assert same(store.load("main"), noise(3))


def test_undo_brings_back_a_state_that_a_prune_of_another_branch_did_not_touch(store: cas.Store) -> None:
    store.commit(noise(1), branch="a")
    store.branch("b", "a")
    store.commit(noise(2), branch="b")
    store.delete_branch("a")
    store.prune("b", keep_last=1)
    store.gc(grace=0)
    store.undo()
    with pytest.raises(NotFound, match="pruned"):
        store.load("a")
    assert same(store.load("b"), noise(2))


def test_an_undo_waits_for_a_commit_in_the_background(store: cas.Store) -> None:
    commit(store, 0)
    pending = store.commit_async(state(1), step=1)
    store.undo()
    assert pending.done
    assert numbers(store) == [0]


# -- coming back to what was collected ------------------------------------------------------------------------------


def test_a_branch_at_a_commit_that_was_collected_is_not_made(store: cas.Store) -> None:
    name = lost_branch(store)
    store.gc(grace=0, expire=0)
    with pytest.raises(NotFound):
        store.branch("again", name)
    with pytest.raises(NotFound):
        store.tag("again", name)
    assert store.refs() == {"branches": {}, "tags": {}}


def test_a_branch_at_a_commit_that_is_condemned_but_not_yet_deleted_is_not_made(path: Path) -> None:
    """The collector died, or still waits for readers; the other Store has all objects in memory."""
    with cas.open(path) as other:
        other.commit(noise(1), branch="lost")
        name = other.resolve("lost").id
        assert same(other.load("lost"), noise(1))
        other.delete_branch("lost")
        packs = [file for file in (path / "packs").rglob("*") if file.is_file()]
        tried: list[str] = []

        def try_all(text: str) -> None:
            if not text.startswith("waiting"):
                return
            for rescue in (
                lambda: other.branch("again", name),
                lambda: other.tag("again", name),
                lambda: other.branch("again", "lost@{1}"),
                other.undo,
                lambda: other.undo(2),
                lambda: other.commit({}, branch="child", parent=name),
            ):
                with pytest.raises(NotFound) as told:
                    rescue()
                tried.append(str(told.value))

        for pack in packs:
            os.utime(pack, (time.time() - 100,) * 2)
        with cas.open(path) as collector:
            assert collector.gc(grace=0.01, expire=0, progress=try_all).deleted == 1
        assert len(tried) == 6
        assert other.refs() == {"branches": {}, "tags": {}}


def test_a_parent_that_is_collected_while_its_child_is_stored_is_refused(path: Path) -> None:
    with cas.open(path) as writer, cas.open(path) as collector:
        parent = writer.commit(noise(1), branch="lost").id
        advance, done = writer._branches.advance, []

        def late(*args: Any) -> Any:
            if not done:
                collector.delete_branch("lost")
                done.append(collector.gc(grace=0, expire=0))
            return advance(*args)

        writer._branches.advance = late  # type: ignore[method-assign]
        with pytest.raises(NotFound, match="was collected, in part at least"):
            writer.commit(noise(2), branch="child", parent=parent)
        assert collector.refs() == {"branches": {}, "tags": {}}
        assert collector.gc(grace=0).deleted >= 1


def test_a_branch_at_a_commit_that_undo_holds_is_made_and_stays(store: cas.Store) -> None:
    name = lost_branch(store)
    store.gc(grace=0)
    store.branch("again", name)
    store.gc(grace=0, expire=0)
    assert same(store.load("again"), noise(1))
    assert errors(store.fsck(data=True)) == []


def test_a_commit_whose_objects_were_collected_in_part_is_not_brought_back(store: cas.Store) -> None:
    """Some of its blocks live on in another branch; others, its tree and itself do not."""
    name = store.commit({**noise(1), "much": noise(2, 64)["noise"]}, branch="lost").id
    store.commit(noise(1), branch="sharing")
    store.delete_branch("lost")
    assert store.gc(grace=0, expire=0).rewritten == 1
    with pytest.raises(NotFound):
        store.branch("again", name)
    assert same(store.load("sharing"), noise(1))


def test_a_history_of_which_an_ancestor_was_collected_is_not_brought_back(path: Path) -> None:
    """A forged root names the tip alone of a history whose first half is gone."""
    with cas.open(path) as store:
        for number in range(3):
            store.commit(noise(number), branch="lost", step=number)
        tip = store.resolve("lost").id
        store.delete_branch("lost")
        packs = sorted(
            (file for file in (path / "packs").rglob("*") if file.is_file()), key=lambda f: f.stat().st_mtime
        )
        packs[0].unlink()
        store._catalog.refresh()
        with pytest.raises(NotFound, match="was collected, in part at least"):
            store.branch("again", tip)


def test_undo_to_a_root_of_which_one_ref_is_gone_changes_nothing(store: cas.Store, path: Path) -> None:
    commit(store, 0)
    store.commit(noise(1), branch="lost")
    both = newest(path)
    store.delete_branch("lost")
    commit(store, 1)
    victims = [f for f in (path / "packs").rglob("*") if f.is_file() and f.stat().st_size > 8 * 4096]
    for file in victims:
        file.unlink()
    store._catalog.refresh()
    refs = store.refs()
    with pytest.raises(NotFound):
        store.undo(both)
    assert store.refs() == refs


# -- the audit trail ------------------------------------------------------------------------------------------------


def test_the_trail_tells_every_change_with_its_reason(store: cas.Store) -> None:
    one = commit(store, 0)
    two = commit(store, 1)
    store.tag("v1", "main~1")
    store.branch("main", "main~1", force=True)
    store.undo()
    store.prune(keep_last=1, keep_tags=())
    lost_branch(store)
    store.gc(grace=0, expire=0)
    told = list(store.roots())
    assert [entry.seq for entry in told] == list(range(len(told), 0, -1))
    moves = [[(c.kind, c.name, c.old, c.new) for c in entry.changes] for entry in told][::-1]
    assert moves[1:6] == [
        [("branch", "main", None, one)],
        [("branch", "main", one, two)],
        [("tag", "v1", None, one)],
        [("branch", "main", two, one)],
        [("branch", "main", one, two)],
    ]
    assert moves[6] == []
    whys = [entry.why for entry in told][::-1]
    assert whys[0] == "init"
    assert whys[5] == "undo"
    assert whys[6] == "prune main: keep last 1, no tags"
    assert whys[-1].startswith("gc condemned ")


def test_another_process_sees_an_undo_at_once(store: cas.Store, path: Path) -> None:
    commit(store, 0)
    commit(store, 1)

    def child() -> list[int]:
        with cas.open(path) as other:
            other.undo()
            return numbers(other)

    assert children.run(child) == [0]
    assert numbers(store) == [0]
