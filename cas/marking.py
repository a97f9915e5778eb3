"""Marking: everything that commits lead to, each object visited once."""

from __future__ import annotations

from collections.abc import Iterable, Set

import numpy as np

from .block import Kind, ObjectId
from .needs import Needs
from .picking import NAME, Names, distinct, is_in
from .reach import Edge, Reached
from .roots import Absent

_GATHER = 1 << 20
"""Names of blocks that are held before what stands there twice is dropped."""


class Marks(Reached):
    """What was reached, blocks apart; what a commit lacks on purpose, not on the way down from it."""

    def __init__(self, needs: Needs, absent: Absent) -> None:
        super().__init__(lambda edge: needs.of(edge).objects, absent)
        self.needs = needs
        self._left_out: tuple[Set[ObjectId], Names] = (frozenset(), np.empty(0, NAME))
        self._blocks: list[Names] = []
        self._held = 0
        self._joined = False

    @property
    def objects(self) -> dict[Edge, None]:
        """Structured ones, in the order in which they were reached."""
        return self.met

    def renewed(self, absent: Absent) -> Marks:
        """Marks that begin where these are, without their blocks; what they reach counts as reached here too."""
        marks = Marks(self.needs, absent)
        marks.met, marks.cut = self.met, self.cut
        return marks

    def mark(self, commits: Iterable[ObjectId]) -> None:
        """Reach these commits and all that they lead to; an object that cannot be read raises."""
        self.add((Kind.COMMIT, name) for name in commits)

    def below(self, edge: Edge, left_out: Set[ObjectId]) -> tuple[Iterable[Edge], bool]:
        """As for any walk; the blocks are gathered."""
        needed = self.needs.of(edge)
        objects, blocks = needed
        if left_out:
            objects = tuple(child for child in needed.objects if child[1] not in left_out)
            blocks = blocks[~is_in(blocks, self._names(left_out))]
        if len(blocks):
            self._gather(blocks)
        return objects, len(objects) < len(needed.objects) or len(blocks) < len(needed.blocks)

    def _names(self, left_out: Set[ObjectId]) -> Names:
        """As sorted names, made once for each commit."""
        if self._left_out[0] is not left_out:
            self._left_out = (left_out, distinct(np.frombuffer(b"".join(left_out), NAME)))
        return self._left_out[1]

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
