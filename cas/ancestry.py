"""All ancestors of some commits in an order that can be drawn, found while it is given. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from .absence import parents_of
from .block import ObjectId
from .objects import Commit
from .roots import Absent

LOOKAHEAD = 256
"""Commits read ahead of the one that is given, so that clocks that differ between machines do no harm."""
_NONE: Absent = {}


def newest_first(
    tips: Iterable[ObjectId], read: Callable[[ObjectId], Commit], absent: Absent = _NONE
) -> Iterator[tuple[ObjectId, Commit]]:
    """The commits and all their ancestors once each, newest first, and every commit before its parents.

    Parents that are absent are no ancestors. The first come at once, however long the history. Only a commit whose
    clock was behind by more than `LOOKAHEAD` commits may come after its parent.
    """
    walk = _Walk(read, absent)
    for tip in tips:
        walk.meet(tip)
    while walk.held:
        walk.look_ahead()
        yield walk.give()


@dataclass(slots=True)
class _Walk:
    """`unexplored` are the commits whose parents were not met; `ready`, those whose children were all given.

    Both are heaps of (negative time, id). `ready` may hold a commit that a child was found for since, or twice.
    """

    read: Callable[[ObjectId], Commit]
    absent: Absent
    held: dict[ObjectId, Commit] = field(default_factory=dict)
    children: dict[ObjectId, int] = field(default_factory=dict)
    """Of every commit that was met: how many children were met and not given."""
    unexplored: list[tuple[int, ObjectId]] = field(default_factory=list)
    ready: list[tuple[int, ObjectId]] = field(default_factory=list)

    def meet(self, name: ObjectId) -> None:
        if name not in self.children:
            self.children[name] = 0
            commit = self.held[name] = self.read(name)
            heapq.heappush(self.unexplored, (-commit.time, name))
            heapq.heappush(self.ready, (-commit.time, name))

    def parents(self, name: ObjectId, commit: Commit) -> Iterable[ObjectId]:
        return dict.fromkeys(parents_of(name, commit, self.absent))

    def look_ahead(self) -> None:
        """Meet parents until enough commits are held and the parents of the next to give are among them."""
        while True:
            while self.ready and (self.ready[0][1] not in self.held or self.children[self.ready[0][1]]):
                heapq.heappop(self.ready)
            if not self.unexplored:
                return
            if len(self.held) >= LOOKAHEAD and self.ready and self.ready[0] < self.unexplored[0]:
                return
            _, name = heapq.heappop(self.unexplored)
            for parent in self.parents(name, self.held[name]):
                self.meet(parent)
                self.children[parent] += 1

    def give(self) -> tuple[ObjectId, Commit]:
        _, name = heapq.heappop(self.ready)
        commit = self.held.pop(name)
        for parent in self.parents(name, commit):
            self.children[parent] -= 1
            if not self.children[parent] and parent in self.held:
                heapq.heappush(self.ready, (-self.held[parent].time, parent))
        return name, commit
