"""The ways to say which commit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cas
from cas import Commit, Invalid, NotFound, Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, list[Commit]]]:
    """main: c0 .. c5 with steps 0, 10, 20, 10, None, 50, forced back once from c2 to c1, so c3's parent is c1."""
    with cas.open(tmp_path_factory.mktemp("revisions") / "s", create=True) as store:
        commits = []
        losses: list[Any] = [5, 4.0, float("nan"), 3.5, 3.5, "none"]
        for number, (step, loss) in enumerate(zip([0, 10, 20, 10, None, 50], losses, strict=True)):
            if number == 3:
                store.branch("main", "main~1", force=True)
            metrics = {} if loss == "none" else {"loss": loss, "acc": number}
            commits.append(store.commit({"n": number}, step=step, metrics=metrics))
        store.tag("v1", commits[1].id)
        store.branch("side", commits[0].id)
        store.tag(commits[4].id[:6], commits[2].id)  # a ref that looks like an id
        yield store, commits


GOOD = {
    "main": 5,
    "v1": 1,
    "side": 0,
    "main~0": 5,
    "main~": 4,
    "main~1": 4,
    "main~2": 3,
    "main~3": 1,
    "main~4": 0,
    "main~1~1": 3,
    "v1~1": 0,
    "~2": 3,
    "@{1}": 4,
    "main@{0}": 5,
    "main@{1}": 4,
    "main@{2}": 3,
    "main@{3}": 1,
    "main@{4}": 2,
    "main@{5}": 1,
    "main@{6}": 0,
    "main@{3}~1": 0,
    "main@step:50": 5,
    "main@step:10": 3,
    "main@step:0": 0,
    "v1@step:10": 1,
    "main~3@step:10": 1,
    "main@min:loss": 4,
    "main@max:loss": 0,
    "main@max:acc": 4,
    "main@min:acc": 0,
    "main~2@min:loss": 3,
    "side@{0}": 0,
}


@pytest.mark.parametrize("rev", GOOD)
def test_a_revision_names_its_commit(made: tuple[Store, list[Commit]], rev: str) -> None:
    store, commits = made
    assert store.resolve(rev).id == commits[GOOD[rev]].id


@pytest.mark.parametrize("length", [8, 10, 64])
def test_an_id_prefix_names_its_commit(made: tuple[Store, list[Commit]], length: int) -> None:
    store, commits = made
    for commit in commits:
        assert store.resolve(commit.id[:length]).id == commit.id
        assert store.resolve(commit.id[:length].upper()).id == commit.id
    assert store.resolve(commits[5].id[:length] + "~1").id == commits[4].id


def test_a_ref_wins_over_an_id(made: tuple[Store, list[Commit]]) -> None:
    store, commits = made
    assert store.resolve(commits[4].id[:6]).id == commits[2].id
    assert store.resolve(commits[4].id[:7]).id == commits[4].id


NOT_FOUND = {
    "nobody": "no branch, tag or commit is called nobody; there are .*main, side, v1",
    "abc": "no branch, tag or commit is called abc",
    "abcdef0123456789": "no commit's id starts with",
    "f" * 64: "no commit's id starts with",
    "f" * 65: "no branch, tag or commit",
    "main~5": "goes back further than the history, which has 5 commits",
    "main~999999999": "goes back further",
    "main@{7}": "goes back further than the log of branch main",
    "side@{1}": "goes back further than the log of branch side",
    "v1@{1}": "goes back further than the log of branch v1",
    "main@step:20": "no commit in that history has step 20",
    "main@step:-1": "no commit in that history has step -1",
    "main@min:nothing": "has a metric called nothing",
    "side@step:10": "has step 10",
}


@pytest.mark.parametrize("rev", NOT_FOUND)
def test_what_is_not_there_is_not_found(made: tuple[Store, list[Commit]], rev: str) -> None:
    with pytest.raises(NotFound, match=NOT_FOUND[rev]):
        made[0].resolve(rev)


INVALID = ["main~x", "main@", "main@{x}", "main@{-1}", "main@step:", "main@step:x", "main@min:", "main@avg:loss"]
INVALID += ["main~1x", "main@{1", "main~9999999999"]


@pytest.mark.parametrize("rev", [*INVALID, "", 3, b"main", ["main"]])
def test_what_is_no_revision_is_invalid(made: tuple[Store, list[Commit]], rev: Any) -> None:
    with pytest.raises(Invalid):
        made[0].resolve(rev)


def test_a_block_or_tree_id_is_no_commit(store: Store) -> None:
    store.commit({"w": b"x" * 70_000})
    rows = store._catalog.index.rows()
    for row in (place.row for place in rows if place.row.kind != 4):
        with pytest.raises(NotFound, match="no commit's id starts with"):
            store.resolve(row.id.hex())


def test_without_a_revision_main_is_meant_else_the_only_branch(tmp_path: Path) -> None:
    with cas.open(tmp_path / "s", create=True) as store:
        with pytest.raises(NotFound, match="the store has no commits yet"):
            store.resolve()
        store.commit({}, branch="b", message="b")
        assert store.resolve().message == "b"
        store.commit({}, branch="a", message="a")
        with pytest.raises(Invalid, match="there is no branch main, but a, b"):
            store.resolve()
        store.commit({}, message="main")
        assert store.resolve().message == "main"


def test_an_ambiguous_prefix_asks_for_more_digits(store: Store) -> None:
    seen: dict[str, str] = {}
    for number in range(2000):
        commit = store.commit({}, branch=f"b{number}")
        if commit.id[:4] in seen:
            with pytest.raises(Invalid, match=r"2 commits start with .*; give more digits"):
                store.resolve(commit.id[:4])
            assert store.resolve(commit.id[:8]).id == commit.id
            return
        seen[commit.id[:4]] = commit.id
    pytest.fail("2000 commits without two that share 16 bits")


def test_a_commit_of_another_process_is_found_by_its_id(store: Store) -> None:
    with cas.open(store.path) as other:
        commit = other.commit({"a": 1})
    assert store.load(commit.id[:8]) == {"a": 1}
