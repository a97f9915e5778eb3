"""A history as lanes, drawn beside its commits as `git log --graph` does. Pure.

Each lane leads down to one commit. A commit takes the leftmost lane that leads to it, or a new one on the right;
its parents take that lane and new ones beside it, and lanes that lead to the same commit join at once.

    *      two branches
    | *
    |/     join at the commit that they started from
    *
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Id = TypeVar("Id", bound=Hashable)


@dataclass(slots=True)
class Graph(Generic[Id]):
    """Give it commits, every one before its parents. What it was given already is no parent that it can draw."""

    _lanes: list[Id] = field(default_factory=list)
    _given: set[Id] = field(default_factory=set)

    def add(self, commit: Id, parents: Sequence[Id]) -> tuple[str, list[str]]:
        """What stands before the commit, and the lines that connect it to those that follow."""
        if commit not in self._lanes:
            self._lanes.append(commit)
        at = self._lanes.index(commit)
        prefix = _row(["*" if lane == at else "|" for lane in range(len(self._lanes))])
        self._given.add(commit)
        onward = [parent for parent in dict.fromkeys(parents) if parent not in self._given]
        return prefix, [*self._replace(at, onward), *self._join()]

    def _replace(self, at: int, parents: list[Id]) -> list[str]:
        """Let the commit's lane end, or lead to the first parent, with new lanes beside it to the others."""
        count = len(self._lanes)
        self._lanes[at : at + 1] = parents
        if not parents:
            return [_shift_left(count, at)] if at < count - 1 else []
        return [_shift_right(count + more, at) for more in range(len(parents) - 1)]

    def _join(self) -> list[str]:
        """Bring every lane that leads where another one leads, too, over to the leftmost of these."""
        lines = []
        while (pair := self._twins()) is not None:
            left, right = pair
            lines.append(_shift_left(len(self._lanes), right - 1, reach=left))
            del self._lanes[right]
            if right - left > 1:
                lines.append(_touch(len(self._lanes), left))
        return lines

    def _twins(self) -> tuple[int, int] | None:
        first: dict[Id, int] = {}
        for lane, target in enumerate(self._lanes):
            if target in first:
                return first[target], lane
            first[target] = lane
        return None


def _row(marks: list[str]) -> str:
    return " ".join(marks)


def _shift_right(count: int, at: int) -> str:
    """Lane `at` opens another on its right; those beyond make room."""
    return "".join("| " if lane < at else "|\\" if lane == at else " \\" for lane in range(count))


def _shift_left(count: int, at: int, reach: int | None = None) -> str:
    """The lanes right of `at` move one to the left; the first of them on to the lane `reach`."""
    cells = list(" " * (2 * count))
    for lane in range(count):
        cells[2 * lane - (lane > at)] = "/" if lane > at else "|"
    if reach is None:
        cells[2 * at] = " "  # the lane that ended
    else:
        for lane in range(reach + 2, at + 1):
            cells[2 * lane - 1] = "_"
    return "".join(cells).rstrip()


def _touch(count: int, left: int) -> str:
    """A lane that came from the right reaches lane `left`."""
    return "".join("|/" if lane == left else "| " for lane in range(count)).rstrip()
