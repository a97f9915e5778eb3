"""The commits behind the pictures of `cas plot`: each branch as a line that leaves another at a fork. No drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import cas
from cas.errors import NotFound


@dataclass(frozen=True, slots=True)
class Point:
    """A commit, and which one it is of its history, counted from 1."""

    commit: cas.Commit
    number: int


@dataclass(frozen=True, slots=True)
class Line:
    """The commits that no line before this one has, oldest first, and the one of another line that they go on from."""

    name: str
    fork: Point | None
    points: list[Point]


def lines(store: cas.Store, revs: Sequence[str], count: int | None) -> list[Line]:
    """A line for each revision, at most `count` commits long; for each branch, main first, where none is given."""
    seen: dict[str, Point] = {}
    found = []
    for rev in revs or _branches(store):
        line = _line(rev, islice(store.log(rev), count), seen)
        if line.points:
            found.append(line)
    return found


def _branches(store: cas.Store) -> list[str]:
    names = sorted(store.refs()["branches"])
    if not names:
        raise NotFound("the store has no branches to draw; commit to one, or name a revision")
    return sorted(names, key=lambda name: name != "main")


def _line(name: str, history: Iterable[cas.Commit], seen: dict[str, Point]) -> Line:
    fork, new = None, []
    for commit in history:
        fork = seen.get(commit.id)
        if fork is not None:
            break
        new.append(commit)
    first = fork.number + 1 if fork else 1
    points = [Point(commit, number) for number, commit in enumerate(reversed(new), first)]
    seen.update((point.commit.id, point) for point in points)
    return Line(name, fork, points)


def in_time(found: Iterable[Line]) -> list[tuple[str, cas.Commit]]:
    """All commits with the names of their lines, oldest first."""
    pairs = [(line.name, point.commit) for line in found for point in line.points]
    return sorted(pairs, key=lambda pair: pair[1].time)


def metric(commit: cas.Commit, name: str) -> float | None:
    """A commit's metric as a number, NaN and infinities included; None where it has no such number."""
    value: Any = commit.metrics.get(name)
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def metrics(found: Iterable[Line]) -> list[str]:
    """The names of all metrics that are numbers, in the order in which they first appear."""
    commits = [point.commit for line in found for point in line.points]
    names = dict.fromkeys(name for commit in commits for name in commit.metrics if metric(commit, name) is not None)
    return list(names)


def have_steps(found: Iterable[Line]) -> bool:
    """Whether each commit has a step: a step and a number of commits cannot share an axis."""
    return all(point.commit.step is not None for line in found for point in line.points)
