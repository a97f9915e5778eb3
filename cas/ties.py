"""Which leaves of a state merged from several ranks are one tensor under several paths.

Two leaves are one where at least one structure ties them and none knows them apart. A structure whose ranks hold no
element of a leaf does not know it: an empty shard has no storage that it could share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .outline import Structure

Mark = tuple[int, int]
"""A structure, and the leaf of it that is the first of a tie, or alone."""


@dataclass(slots=True)
class _Class:
    """Leaves that are one tensor. `known` is what each structure knows them as; `ties` are those marks that tie."""

    leaves: list[int]
    known: dict[int, int]
    ties: set[Mark]

    def fits(self, other: _Class) -> bool:
        return all(self.known.get(structure, first) == first for structure, first in other.known.items())

    def absorb(self, other: _Class) -> None:
        self.leaves += other.leaves
        self.known |= other.known
        self.ties |= other.ties
        other.leaves = []


def first_members(
    structures: Sequence[Structure], leaf_at: Sequence[Sequence[int]], holds: Callable[[int, int], bool]
) -> dict[int, int]:
    """For each merged leaf that is tied, the first one in the merged order that it is tied to (of some, itself).

    `leaf_at[s][n]` is the merged number of leaf n of structure s; `holds(s, n)` whether a rank holds elements of it.
    """
    classes: dict[int, _Class] = {}
    for number, structure in enumerate(structures):
        firsts = {tie for tie in structure.ties if tie is not None}
        for leaf, (tie, merged) in enumerate(zip(structure.ties, leaf_at[number], strict=True)):
            if tie is not None or leaf in firsts:
                mark = (number, leaf if tie is None else tie)
                classes.setdefault(merged, _Class([merged], {}, set())).ties.add(mark)
    for number, merged_numbers in enumerate(leaf_at if classes else ()):
        for leaf, merged in enumerate(merged_numbers):
            if merged in classes:
                _learn(classes[merged], number, leaf, structures[number].ties[leaf], holds)
    return _joined(classes)


def _learn(single: _Class, structure: int, leaf: int, tie: int | None, holds: Callable[[int, int], bool]) -> None:
    first = leaf if tie is None else tie
    if (structure, first) in single.ties or holds(structure, leaf):
        single.known[structure] = first


def _joined(singles: dict[int, _Class]) -> dict[int, int]:
    by_mark: dict[Mark, list[_Class]] = {}
    for _, joined in sorted(singles.items()):
        for mark in sorted(joined.ties):
            for known in by_mark.get(mark, []):
                if known.leaves and known.fits(joined):
                    joined.absorb(known)
        for mark in joined.ties:
            by_mark[mark] = [known for known in by_mark.get(mark, []) if known.leaves] + [joined]
    live = [found.leaves for found in singles.values() if found.leaves]
    return {leaf: first for leaves, first in zip(live, map(min, live), strict=True) for leaf in leaves}
