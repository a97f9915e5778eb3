"""Branches and tags: their names, and when they move."""

from __future__ import annotations

from typing import Any

import pytest

from cas import Exists, Invalid, NotFound, Store

GOOD = ["main", "a", "run/1", "a.b", "ünï", "日本", "run-7", "7", "abcd1234", "a" * 200, "HEAD/x", "a/b/c/d"]
BAD = [
    "",
    " ",
    "a b",
    "a\n",
    "\x7f",
    "~",
    "a~1",
    "a^",
    "a:b",
    "a@b",
    "a?",
    "a*",
    "[a]",
    "a\\b",
    "{a}",
    "..",
    "a/..",
    ".",
]
BAD += [".a", "a/.b", "a.", "a./b", "-a", "a/-b", "/a", "a/", "a//b", "HEAD", "head", "root", "origin", "a" * 201]
BAD += ["ü" * 101, "\u202ea", "\ufeffa", "a\u200bb", "\ud800"]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_name_serves_a_branch_and_a_tag(store: Store, name: str) -> None:
    commit = store.commit({}, branch=name)
    assert store.resolve(name).id == commit.id
    store.delete_branch(name)
    store.tag(name, commit.id)
    assert store.refs() == {"branches": {}, "tags": {name: commit.id}}
    assert store.resolve(name).id == commit.id


@pytest.mark.parametrize("name", [*BAD, None, 3, b"a"])
def test_a_bad_name_is_invalid_everywhere(store: Store, name: Any) -> None:
    store.commit({})
    for call in (lambda: store.commit({}, branch=name), lambda: store.branch(name), lambda: store.tag(name)):
        with pytest.raises(Invalid, match="name"):
            call()
    assert list(store.refs()["branches"]) == ["main"]


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b")])
def test_a_name_does_not_stand_beside_one_below_it(store: Store, first: str, second: str) -> None:
    store.commit({}, branch=first)
    for call in (
        lambda: store.commit({}, branch=second),
        lambda: store.branch(second, first),
        lambda: store.tag(second, first),
    ):
        with pytest.raises(Exists, match=f"{second} cannot stand beside {first}"):
            call()
    store.commit({}, branch="ab")  # not below
    store.delete_branch(first)
    store.commit({}, branch=second)


def test_a_tag_and_a_branch_do_not_share_a_name(store: Store) -> None:
    store.commit({})
    store.tag("v1")
    with pytest.raises(Exists, match="there is a tag called v1"):
        store.branch("v1")
    with pytest.raises(Exists, match="there is a tag called v1"):
        store.commit({}, branch="v1")
    with pytest.raises(Exists, match="there is a branch called main"):
        store.tag("main")


def test_a_tag_does_not_move(store: Store) -> None:
    first = store.commit({})
    assert store.tag("v1").id == first.id
    second = store.commit({"a": 1})
    with pytest.raises(Exists, match=r"tag v1 exists, at .*a tag does not move, delete it first"):
        store.tag("v1")
    assert store.resolve("v1").id == first.id
    store.delete_tag("v1")
    assert store.tag("v1").id == second.id


def test_a_branch_moves_only_by_force(store: Store) -> None:
    first = store.commit({})
    second = store.commit({"a": 1})
    with pytest.raises(Exists, match=r"branch main exists, at .*pass force=True to move it"):
        store.branch("main", first.id)
    assert store.resolve("main").id == second.id
    assert store.branch("main", first.id, force=True).id == first.id
    assert store.resolve("main").id == first.id


def test_deleting_what_is_not_there_is_not_found(store: Store) -> None:
    store.commit({})
    store.tag("v1")
    for call in (lambda: store.delete_branch("v1"), lambda: store.delete_tag("main"), lambda: store.delete_tag("x")):
        with pytest.raises(NotFound, match=r"there is no (branch|tag)"):
            call()
    assert store.refs()["tags"].keys() == {"v1"}


def test_a_ref_needs_a_commit(store: Store) -> None:
    for call in (lambda: store.tag("v1"), lambda: store.branch("a"), lambda: store.branch("a", "nobody")):
        with pytest.raises(NotFound):
            call()
    assert store.refs() == {"branches": {}, "tags": {}}


def test_refs_of_a_deleted_branch_keep_their_commits(store: Store) -> None:
    commit = store.commit({"a": 1})
    store.delete_branch("main")
    assert store.load(commit.id) == {"a": 1}
