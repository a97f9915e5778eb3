"""What a commit builds on, what it costs, and that a failed one changes nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cas
from cas import CasError, Exists, Invalid, NotFound, RefConflict, Store, Unsupported


@pytest.fixture
def other(store: Store) -> Iterator[Store]:
    """A second Store on the same directory: another run of the job."""
    with cas.open(store.path) as opened:
        yield opened


def history(store: Store, rev: str = "main") -> list[str]:
    return [commit.message for commit in store.log(rev)]


# -- parents ------------------------------------------------------------------------------------------------------


def test_commits_of_one_store_follow_each_other(store: Store) -> None:
    first = store.commit({"a": 1}, message="1")
    second = store.commit({"a": 2}, message="2")
    assert first.parents == ()
    assert second.parents == (first.id,)
    assert history(store) == ["2", "1"]


def test_a_branch_that_was_never_loaded_is_a_conflict_that_says_what_to_do(store: Store, other: Store) -> None:
    store.commit({"a": 1}, step=9000)
    with pytest.raises(RefConflict, match=r"^branch main holds 1 commit \(last step 9000\); load it to resume, name"):
        other.commit({"a": 2})
    store.commit({"a": 1}, step=10000)
    with pytest.raises(RefConflict) as caught:
        other.commit({"a": 2})
    assert str(caught.value) == (
        'branch main holds 2 commits (last step 10000); load it to resume, name another branch, or pass parent="main"'
    )
    assert len(history(store)) == 2


@pytest.mark.parametrize(
    "look",
    [
        lambda store: store.load("main"),
        lambda store: store.load(),
        lambda store: store.view("main"),
        lambda store: store.view(),
        lambda store: store.load("main", only="a"),
        lambda store: store.branch("main", "main", force=True),
    ],
)
def test_who_loaded_or_set_a_branch_goes_on_from_it(store: Store, other: Store, look: Callable[[Store], Any]) -> None:
    first = store.commit({"a": 1})
    look(other)
    assert other.commit({"a": 2}).parents == (first.id,)


@pytest.mark.parametrize(
    "look",
    [
        lambda store: store.load("main~0"),
        lambda store: store.load("v1"),
        lambda store: store.load("main@{0}"),
        lambda store: store.load(store.resolve("main").id),
        lambda store: store.resolve("main"),
        lambda store: list(store.log("main")),
        lambda store: store.branch("side", "main"),
        lambda store: store.load("gone", default=None),
    ],
)
def test_other_ways_to_look_do_not_make_a_parent(store: Store, other: Store, look: Callable[[Store], Any]) -> None:
    store.commit({"a": 1})
    store.tag("v1")
    look(other)
    with pytest.raises(RefConflict, match="load it to resume"):
        other.commit({"a": 2})


def test_parent_names_the_tip_or_is_a_conflict(store: Store, other: Store) -> None:
    first = store.commit({"a": 1})
    second = store.commit({"a": 2})
    with pytest.raises(RefConflict, match=f"branch main is at {second.id[:8]}, not at the parent {first.id[:8]}"):
        other.commit({"a": 3}, parent="main~1")
    assert other.commit({"a": 3}, parent="main").parents == (second.id,)
    with pytest.raises(RefConflict, match="not at the parent"):
        store.commit({"a": 4}, parent=second.id)


def test_parent_starts_a_new_branch_anywhere(store: Store) -> None:
    first = store.commit({"a": 1})
    store.commit({"a": 2})
    assert store.commit({"a": 3}, branch="side", parent="main~1").parents == (first.id,)


def test_an_unknown_parent_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="no branch, tag or commit is called main"):
        store.commit({"a": 1}, parent="main")
    assert store.refs()["branches"] == {}


def test_a_new_branch_starts_without_a_parent(store: Store) -> None:
    store.commit({"a": 1})
    assert store.commit({"a": 2}, branch="side").parents == ()


def test_going_back_by_force_sets_the_parent_here_and_conflicts_elsewhere(store: Store, other: Store) -> None:
    first = store.commit({"a": 1})
    second = store.commit({"a": 2})
    other.load("main")
    store.branch("main", "main~1", force=True)
    assert store.commit({"a": 3}).parents == (first.id,)
    with pytest.raises(RefConflict, match=f"branch main was at {second.id[:8]} and is at .*another writer moved it"):
        other.commit({"a": 4})
    assert store.resolve("main@{2}").id == second.id


def test_a_deleted_branch_starts_anew_here(store: Store) -> None:
    store.commit({"a": 1})
    store.delete_branch("main")
    assert store.commit({"a": 2}).parents == ()


def test_a_branch_deleted_by_another_is_a_conflict_until_loaded_with_default(store: Store, other: Store) -> None:
    store.commit({"a": 1})
    other.delete_branch("main")
    with pytest.raises(RefConflict, match="branch main was deleted since it was loaded; load it with default=None"):
        store.commit({"a": 2})
    assert store.load("main", default=None) is None
    assert store.commit({"a": 3}).parents == ()


def test_a_requeued_job_and_its_zombie_never_interleave(store: Store, other: Store) -> None:
    store.commit({"step": 1}, message="old run 1")
    other.load()
    other.commit({"step": 2}, message="new run 2")
    for _ in range(2):
        with pytest.raises(RefConflict, match="another writer moved it; load it to go on from there, or name another"):
            store.commit({"step": 2}, message="old run 2")
    other.commit({"step": 3}, message="new run 3")
    assert history(store) == ["new run 3", "new run 2", "old run 1"]


def test_of_two_that_loaded_the_same_commit_one_goes_on(store: Store, other: Store) -> None:
    store.commit({"a": 0})
    other.load()
    store.commit({"a": 1})
    with pytest.raises(RefConflict):
        other.commit({"a": 2})
    assert store.load() == {"a": 1}
    assert other.load() == {"a": 1}
    other.commit({"a": 2})
    assert len(history(store)) == 3


def test_two_that_find_no_branch_do_not_both_make_it(store: Store, other: Store) -> None:
    assert store.load(default=None) is None
    assert other.load(default=None) is None
    store.commit({"a": 1})
    with pytest.raises(RefConflict):
        other.commit({"a": 2})
    assert history(store) == [""]


def test_branches_do_not_disturb_each_other(store: Store, other: Store) -> None:
    for step in range(4):
        store.commit({"a": step}, branch="a")
        other.commit({"b": step}, branch="b")
    assert len(history(store, "a")) == len(history(store, "b")) == 4
    assert store.fsck(data=True) == []


# -- default ------------------------------------------------------------------------------------------------------


def test_default_is_for_a_branch_that_does_not_exist(store: Store) -> None:
    assert store.load(default=1) == store.load("main", default=1) == store.load("side", default=1) == 1
    store.commit({"a": 1})
    assert store.load("side", default=None) is None
    assert store.load(default=None) == {"a": 1}


@pytest.mark.parametrize("rev", ["main~5", "main@{7}", "main@step:3", "main@min:loss"])
def test_default_does_not_hide_a_mistaken_revision(store: Store, rev: str) -> None:
    store.commit({"a": 1})
    with pytest.raises(NotFound):
        store.load(rev, default=None)


def test_default_does_not_hide_a_missing_commit(store: Store) -> None:
    store.commit({"a": 1})
    store.commit({"a": 2})
    store.close()
    for file in store.path.glob("packs/*/*"):
        file.unlink()
    with cas.open(store.path) as again:
        for rev in (None, "main", "main~1"):
            with pytest.raises(NotFound, match="in no pack"):
                again.load(rev, default=None)


def test_default_counts_branches_not_tags(store: Store) -> None:
    store.commit({"a": 1})
    store.tag("v1")
    store.delete_branch("main")
    assert store.load(default=None) is None


# -- cost ---------------------------------------------------------------------------------------------------------


def sizes(path: Path) -> dict[str, int]:
    found = {str(file.relative_to(path)): file.stat().st_size for file in path.rglob("*") if file.is_file()}
    return {name: size for name, size in found.items() if name != "root" and not name.startswith("index/")}


def tensors(count: int) -> dict[str, np.ndarray]:
    data = np.random.default_rng(count).standard_normal((count, 16)).astype(np.float32)
    return {f"layer{i}.weight": data[i].copy() for i in range(count)}


@pytest.mark.parametrize("count", [10, 1000, 30_000])
def test_an_unchanged_commit_writes_under_4_kib_and_is_a_commit(store: Store, count: int) -> None:
    state = {"model": tensors(count), "step": 1}
    first = store.commit(state)
    before = sizes(store.path)
    second = store.commit(state, step=2, metrics={"loss": 1.5}, message="nothing changed")
    after = sizes(store.path)
    assert sum(after.values()) - sum(before.values()) < 4096
    assert before.items() <= after.items()
    assert second.id != first.id
    assert second.parents == (first.id,)
    assert second.stats is not None
    assert second.stats.new_blocks == 0


def test_one_changed_element_stores_one_block_and_the_names_above_it(store: Store) -> None:
    state: dict[str, Any] = {
        "model": tensors(2000),
        "big": np.random.default_rng(0).standard_normal(3 << 20, np.float32),
    }
    store.commit(state, codec="raw")
    before = store.stats()
    state["big"][1_000_000] += 1
    commit = store.commit(state, codec="raw")
    assert commit.stats is not None
    assert commit.stats.new_blocks == 1
    assert commit.new < (256 << 10) + 20_000
    assert store.stats().blocks == before.blocks + 1
    state["model"]["layer7.weight"][3] += 1
    commit = store.commit(state, codec="raw")
    assert commit.stats is not None
    assert commit.stats.new_blocks == 1
    assert commit.new < 300_000


def test_what_two_branches_share_is_stored_once(store: Store) -> None:
    state = tensors(500)
    store.commit(state, branch="a")
    commit = store.commit({"base": state, "lora": np.ones(9)}, branch="b")
    assert commit.stats is not None
    assert commit.stats.new_blocks == 1


def test_a_full_pack_makes_room_for_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cas.pack.MAXROWS", 100)
    state = tensors(1000)
    store.commit(state)
    assert store.stats().packs >= 10
    store.close()
    with cas.open(store.path) as again:
        loaded = again.load()
        assert all(np.array_equal(loaded[key], state[key]) for key in state)
        assert again.fsck(data=True) == []


# -- failed commits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"branch": "a b"}, Invalid),
        ({"branch": ""}, Invalid),
        ({"branch": 7}, Invalid),
        ({"codec": "gzip"}, Invalid),
        ({"message": 3}, Invalid),
        ({"message": "\ud800"}, Invalid),
        ({"metrics": [1]}, Invalid),
        ({"meta": [("a", 1)]}, Invalid),
        ({"files": ["a"]}, Invalid),
        ({"parent": ""}, Invalid),
        ({"step": 1.5}, Invalid),
        ({"step": True}, Invalid),
        ({"step": 1 << 64}, Invalid),
        ({"metrics": {"loss": "low"}}, Invalid),
        ({"metrics": {"loss": True}}, Invalid),
        ({"metrics": {"loss": 1 << 1100}}, Invalid),
        ({"metrics": {"loss": np.zeros(2)}}, Invalid),
        ({"metrics": {1: 2.0}}, Invalid),
        ({"metrics": {"": 2.0}}, Invalid),
        ({"meta": {"w": np.zeros(3)}}, Invalid),
        ({"meta": {"text": "x" * 70_000}}, Invalid),
        ({"meta": {str(i): "x" * 60_000 for i in range(20)}}, Invalid),
        ({"meta": {"set": {1}}}, Unsupported),
        ({"message": "x" * (17 << 20)}, Invalid),
        ({"files": {"../up": "/etc/hostname"}}, Invalid),
        ({"files": {"/abs": "/etc/hostname"}}, Invalid),
        ({"files": {"a": "/nowhere/at/all"}}, NotFound),
        ({"files": {"a": "/"}}, Invalid),
        ({"tag": "v1"}, Invalid),
        ({"group": "world"}, Invalid),
        ({"parent": "nobody"}, NotFound),
        ({"parent": 3}, Invalid),
    ],
)
def test_a_refused_commit_changes_nothing(store: Store, options: Any, error: type[CasError]) -> None:
    first = store.commit({"a": 1})
    refs = store.refs()
    with pytest.raises(error):
        store.commit({"a": 2}, **options)
    assert store.refs() == refs
    assert store.commit({"a": 3}).parents == (first.id,)
    store.close()
    with cas.open(store.path) as again:
        assert again.load() == {"a": 3}
        assert again.fsck(data=True) == []


def test_after_close_every_call_says_so(store: Store) -> None:
    store.commit({"a": 1})
    store.close()
    store.close()
    for call in (store.load, store.resolve, store.refs, store.stats, store.fsck, lambda: store.commit({})):
        with pytest.raises(Invalid, match="was closed; open it again"):
            call()


# -- opening ------------------------------------------------------------------------------------------------------


def test_init_makes_a_store_once(tmp_path: Path) -> None:
    cas.init(tmp_path / "deep" / "down").close()
    with pytest.raises(Exists, match="is a store already"):
        cas.init(tmp_path / "deep" / "down")
    with cas.open(tmp_path / "deep" / "down", create=True) as again:
        assert again.refs() == {"branches": {}, "tags": {}}


def test_opening_what_is_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"there is no store at .*; make one with `cas init`"):
        cas.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_commit_survives_the_loss_of_all_that_is_no_truth(store: Store) -> None:
    import shutil

    state = tensors(50)
    store.commit(state, step=1)
    store.commit(state, step=2)
    store.close()
    shutil.rmtree(store.path / "index")
    shutil.rmtree(store.path / "tmp", ignore_errors=True)
    (store.path / "root").unlink()
    with cas.open(store.path) as again:
        assert [commit.step for commit in again.log()] == [2, 1]
        assert again.fsck(data=True) == []


def test_another_process_reads_and_goes_on(store: Store) -> None:
    store.commit({"a": 1})
    script = "import sys, cas\nwith cas.open(sys.argv[1]) as s: s.commit({'a': s.load()['a'] + 1})"
    subprocess.run([sys.executable, "-c", script, str(store.path)], check=True)
    assert store.load() == {"a": 2}


def test_the_commit_says_in_one_line_what_it_took(store: Store) -> None:
    commit = store.commit({"w": np.ones(1 << 20, np.float32)}, step=1000)
    assert str(commit).startswith(f"main {commit.id[:8]} step 1000: 4.19 MB, 263 kB new, ")


@pytest.mark.parametrize("step", [10**5000, 1 << 63, True, 1.5, "7"], ids=["huge", "large", "bool", "float", "text"])
def test_a_step_that_is_no_number_of_64_bits_is_refused(store: Store, step: object) -> None:
    """Also one that is too long for Python to print."""
    with pytest.raises(cas.Invalid, match="step is a whole number"):
        store.commit({}, step=step)  # type: ignore[typeddict-item]
