"""Marking: everything that commits lead to, each object visited once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from .block import Kind, ObjectId
from .needs import Needs
from .picking import NAME, Names, distinct
from .reach import Edge
from .roots import Absent

_GATHER = 1 << 20
"""Names of blocks that are held before what stands there twice is dropped."""


@dataclass(slots=True)
class Marks:
    """What was reached; what a commit lacks on purpose, not on the way down from it."""

    needs: Needs
    absent: Absent
    objects: dict[Edge, None] = field(default_factory=dict)
    """Structured ones, in the order in which they were reached."""
    _blocks: list[Names] = field(default_factory=list)
    _held: int = 0
    _joined: bool = False

    def mark(self, commits: Iterable[ObjectId]) -> None:
        """Reach these commits and all that they lead to; an object that cannot be read raises."""
        todo: list[Edge] = [(Kind.COMMIT, name) for name in commits]
        while todo:
            edge = todo.pop()
            if edge in self.objects:
                continue
            self.objects[edge] = None
            needed = self.needs.of(edge)
            left_out = self.absent.get(edge[1], ()) if edge[0] is Kind.COMMIT else ()
            todo.extend(child for child in needed.objects if child[1] not in left_out)
            if len(needed.blocks):
                self._gather(needed.blocks)

    def _gather(self, blocks: Names) -> None:
        self._blocks.append(blocks)
        self._joined = False
        self._held += len(blocks)
        if self._held > _GATHER + 2 * len(self._blocks[0]):
            self._join()

    def _join(self) -> None:
        self._blocks = [distinct(np.concatenate(self._blocks))] if self._blocks else [np.empty(0, NAME)]
        self._held = len(self._blocks[0])
        self._joined = True

    def blocks(self) -> Names:
        """The blocks that were reached: sorted names, each once."""
        if not self._joined:
            self._join()
        return self._blocks[0]

    def live(self) -> dict[Kind, Names]:
        """The names that were reached, by kind."""
        found = {Kind.BLOCK: self.blocks()}
        for kind in (Kind.LIST, Kind.LAYOUT, Kind.TREE, Kind.COMMIT):
            found[kind] = distinct(np.frombuffer(b"".join(name for held, name in self.objects if held is kind), NAME))
        return found
