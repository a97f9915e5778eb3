"""The drawing of a history, and the order in which it is drawn."""

from __future__ import annotations

import random
import re

import pytest

from cas.ancestry import LOOKAHEAD, newest_first
from cas.block import ObjectId
from cas.cli.graph import Graph
from cas.objects import Commit, Sizes


def drawn(*commits: tuple[str, str]) -> list[str]:
    """The lines for (name, names of parents), one letter each."""
    graph = Graph[str]()
    lines = []
    for name, parents in commits:
        prefix, more = graph.add(name, list(parents))
        lines += [f"{prefix} {name}", *more]
    return lines


def test_one_branch_is_a_line_of_stars() -> None:
    assert drawn(("c", "b"), ("b", "a"), ("a", "")) == ["* c", "* b", "* a"]


def test_two_branches_join_where_they_started() -> None:
    assert drawn(("x", "b"), ("y", "b"), ("b", "a"), ("a", "")) == ["* x", "| * y", "|/", "* b", "* a"]


def test_a_merge_opens_a_lane_for_each_further_parent() -> None:
    assert drawn(("m", "bc"), ("b", "a"), ("c", "a"), ("a", "")) == ["* m", "|\\", "* | b", "| * c", "|/", "* a"]
    assert drawn(("m", "bcd"))[1:] == ["|\\", "|\\ \\"]


def test_a_lane_that_joins_one_far_to_the_left_crosses_those_between() -> None:
    lines = drawn(("x", "a"), ("y", "b"), ("z", "c"), ("w", "a"))
    assert lines == ["* x", "| * y", "| | * z", "| | | * w", "| |_|/", "|/| |"]


def test_lanes_move_up_when_one_ends() -> None:
    assert drawn(("p", ""), ("q", "r")) == ["* p", "* q"]
    assert drawn(("x", "a"), ("y", "b"), ("a", ""), ("b", "")) == ["* x", "| * y", "* | a", " /", "* b"]


def test_a_parent_that_was_drawn_before_is_left_out() -> None:
    assert drawn(("a", ""), ("b", "a")) == ["* a", "* b"]


@pytest.mark.parametrize("seed", range(20))
def test_every_lane_leads_somewhere_in_any_history(seed: int) -> None:
    """Each line has as many lanes as the commits still to come that were named, and stars stand below lanes."""
    chance = random.Random(seed)
    count = 60
    parents = [[p for p in range(n + 1, min(n + 9, count)) if chance.random() < 0.2] for n in range(count)]
    graph = Graph[int]()
    named: set[int] = set()
    for number in range(count):
        prefix, more = graph.add(number, parents[number])
        assert prefix.count("*") == 1
        assert prefix.count("*") + prefix.count("|") == len(named | {number})
        named = (named | set(parents[number])) - {number}
        assert all(re.fullmatch(r"[|/\\_ ]+", line) for line in more)


# -- the order ----------------------------------------------------------------------------------------------------


def history(commits: dict[int, tuple[int, list[int]]]) -> dict[ObjectId, Commit]:
    """Commits from {number: (time, parents)}."""

    def name(number: int) -> ObjectId:
        return ObjectId(number.to_bytes(32, "big"))

    return {
        name(number): Commit(
            tree=ObjectId(bytes(32)),
            parents=tuple(map(name, parents)),
            time=time,
            author="",
            message="",
            step=None,
            metrics=[],
            meta=[],
            files=[],
            origin=None,
            sizes=Sizes(0, 0, 0),
        )
        for number, (time, parents) in commits.items()
    }


def order(commits: dict[int, tuple[int, list[int]]], *tips: int) -> list[int]:
    held = history(commits)
    names = [ObjectId(tip.to_bytes(32, "big")) for tip in tips]
    return [int.from_bytes(name, "big") for name, _ in newest_first(names, held.__getitem__)]


def test_branches_are_given_by_time_each_commit_once() -> None:
    commits: dict[int, tuple[int, list[int]]] = {1: (1, []), 2: (2, [1]), 3: (3, [1]), 4: (4, [2]), 5: (5, [3, 4])}
    assert order(commits, 5, 2) == [5, 4, 3, 2, 1]
    assert order(commits, 4, 3, 4) == [4, 3, 2, 1]
    assert order(commits) == []


def test_a_child_comes_before_its_parent_whatever_their_clocks_say() -> None:
    commits: dict[int, tuple[int, list[int]]] = {1: (50, []), 2: (3, [1]), 3: (60, [1]), 4: (1, [2])}
    assert order(commits, 3, 4) == [3, 4, 2, 1]


@pytest.mark.parametrize("seed", range(20))
def test_no_parent_comes_before_a_child_in_any_history(seed: int) -> None:
    chance = random.Random(seed)
    commits: dict[int, tuple[int, list[int]]] = {}
    for number in range(300):
        parents = chance.sample(range(number), min(number, chance.choice((0, 1, 1, 1, 2, 3))))
        commits[number] = (chance.randrange(100), parents)
    found = order(commits, *chance.sample(range(300), 10), 299)
    place = {number: at for at, number in enumerate(found)}
    assert len(place) == len(found)
    assert all(place[number] < place[parent] for number in found for parent in commits[number][1])


def test_the_first_commits_come_before_the_last_are_read() -> None:
    held = history({number: (number, [number - 1] if number else []) for number in range(5 * LOOKAHEAD)})
    read = []

    def reading(name: ObjectId) -> Commit:
        read.append(name)
        return held[name]

    found = newest_first([ObjectId((5 * LOOKAHEAD - 1).to_bytes(32, "big"))], reading)
    assert [int.from_bytes(next(found)[0], "big") for _ in range(3)] == [5 * LOOKAHEAD - back for back in (1, 2, 3)]
    assert len(read) < 2 * LOOKAHEAD
    assert len(list(found)) == 5 * LOOKAHEAD - 3
