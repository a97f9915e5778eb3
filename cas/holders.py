"""Which ranks hold which box of a leaf, and what each of them has to store.

Boxes are numbered over all ranks: those of rank 0 in its own order, then those of rank 1 and so on. A box's number is
also where the report of it stands.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from .cutting import ALL, Duty
from .errors import Invalid
from .grid import Box, covers
from .objects import MAX_SHARDS
from .outline import Extent, Numbers
from .paths import format_path
from .state import Leaf

NOTHING = Duty(0, 0)
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Holders:
    """The distinct boxes of leaf `number` by ascending start, and the numbers of each one's replicas, first first."""

    number: int
    leaf: Leaf
    boxes: list[Box]
    replicas: list[list[int]]


@dataclass(slots=True)
class Census:
    """All boxes of all ranks. `offsets[r]` is the number of rank r's first box, and the last one how many there are.

    `found[n]` are the boxes of leaf n of the merged state and where they are; a few stand for several leaves. Errors
    call rank r `known_as[r]`.
    """

    found: list[dict[Extent, list[int]]]
    known_as: Sequence[int]
    offsets: list[int] = field(default_factory=lambda: [0])
    shared: list[int] = field(default_factory=list)

    def add(self, boxes: Sequence[Sequence[Extent]], goals: Sequence[Sequence[int]]) -> None:
        """The next rank's boxes; those of its leaf n belong to the leaves `goals[n]` of the merged state."""
        number = self.offsets[-1]
        for extents, leaves in zip(boxes, goals, strict=True):
            for leaf in leaves:
                found = self.found[leaf]
                for at, extent in enumerate(extents, number):
                    found.setdefault(extent, []).append(at)
            if len(leaves) > 1:
                self.shared += range(number, number + len(extents))
            number += len(extents)
        self.offsets.append(number)

    def rank(self, number: int) -> int:
        """What errors call the rank that holds box `number`."""
        return self.known_as[bisect_right(self.offsets, number) - 1]

    def ranks(self, numbers: Iterable[int]) -> str:
        return ranks_text([self.rank(number) for number in numbers])

    def holders(self, leaves: Iterable[tuple[int, Leaf]]) -> list[Holders]:
        """Those of each of these numbered leaves; `Invalid` unless every element lies in exactly one box."""
        tiled: dict[tuple[Numbers, tuple[Extent, ...]], list[Box]] = {}  # many tensors are split alike
        made = []
        for number, leaf in leaves:
            found = self.found[number]
            extents = tuple(sorted(found))
            boxes = tiled.get((leaf.shape, extents))
            if boxes is None:
                boxes = tiled[leaf.shape, extents] = [Box(start, shape) for start, shape in extents]
                if len(boxes) > MAX_SHARDS:
                    raise Invalid(f"{_here(leaf)} has {len(boxes)} shards; use at most {MAX_SHARDS}")
                if not _is_split(leaf.shape, extents) and not covers(leaf.shape, boxes):
                    self._refuse(leaf, found, extents)
            made.append(Holders(number, leaf, boxes, [found[extent] for extent in extents]))
        return made

    def _refuse(self, leaf: Leaf, found: dict[Extent, list[int]], extents: Sequence[Extent]) -> NoReturn:
        said = [f"{_extent_text(extent)} on {self.ranks(found[extent])}" for extent in extents[:SHOWN]]
        more = f" and {len(extents) - SHOWN} more" if len(extents) > SHOWN else ""
        held = ", ".join(said) + more if said else "none on any rank"
        raise Invalid(
            f"{_here(leaf)} has shape {list(leaf.shape)}, and its shards leave a gap or overlap: {held}; "
            "every element must lie in exactly one box, which several ranks may hold"
        )


def _here(leaf: Leaf) -> str:
    return f"state path {format_path(leaf.path)}"


def _extent_text(extent: Extent) -> str:
    return f"[{', '.join(f'{start}:{start + size}' for start, size in zip(*extent, strict=False))}]"


def ranks_text(ranks: Sequence[int]) -> str:
    """Ranks as people read them; of many the first few."""
    more = f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:SHOWN]))}{more}"


def _is_split(shape: Numbers, extents: Sequence[Extent]) -> bool:
    """Whether the boxes follow each other on one dimension and span all others: so most are, and `covers` is slow."""
    if not extents or not shape or len(extents[0][1]) != len(shape):
        return False
    first = extents[0][1]
    axis = next((axis for axis, size in enumerate(shape) if first[axis] != size), 0)
    before, after = (0,) * axis, (0,) * (len(shape) - axis - 1)
    head, tail, at = shape[:axis], shape[axis + 1 :], 0
    for start, size in extents:
        if len(size) != len(shape) or start != (*before, at, *after):
            return False
        if size[:axis] != head or size[axis + 1 :] != tail:
            return False
        at += size[axis]
    return at == shape[axis]


def duties_of(holders: Iterable[Holders], census: Census) -> list[Duty]:
    """For each box: the replicas of a box store a part of its blocks each.

    Who begins goes round from leaf to leaf, so that small tensors do not all fall to one rank.
    """
    duties = [ALL] * census.offsets[-1]
    for held in holders:
        for numbers in held.replicas:
            if len(numbers) > 1:
                for at, number in enumerate(numbers, held.number):
                    duties[number] = Duty(at % len(numbers), len(numbers))
    for number in census.shared:  # stored whole: its parts would have to add up for each of several leaves
        duties[number] = ALL
    return duties


def first_duties(holders: Iterable[Holders], census: Census) -> list[Duty]:
    """For each box: its first holder stores all of it, the others do nothing."""
    duties = [NOTHING] * census.offsets[-1]
    for held in holders:
        for numbers in held.replicas:
            duties[numbers[0]] = ALL
    return duties
