"""How much a tensor changed between two commits: both sides are streamed, in pieces of 4 MiB whatever the size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from .block import MAX_BLOCK_SIZE, ObjectId
from .crew import Crew, Shelf, default_threads
from .dtypes import DTYPES, DType
from .elements import Tally, count_of, tally
from .extent import Extent
from .grid import Box
from .leaves import TensorLeaf, slabs
from .loader import Owner, extent_for
from .reader import BlockReader, BlockUse, Objects

PIECE_BYTES = MAX_BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class Change:
    """How the elements of a tensor differ from those that it had, its dtype and shape being the same.

    `differing` of `total` elements have other bits: -0.0 is not 0.0, and a NaN equals one with the same bits only.
    A complex number is one element; a byte of float4 is two. `nonfinite` of the differing ones are a NaN or an
    infinity before or after; they take no part in the figures that follow, and those that do not differ neither:

    `largest`: the largest |after - before|, of complex numbers the modulus.
    `relative`: |after - before| / |before|, Euclidean norms over the differing finite elements. So it does not fade
    where few of many elements change. 0.0 where nothing moved, infinity where something moved away from zero.

    Computed in float64; a difference of 64-bit integers is exact and then rounded.
    """

    differing: int
    total: int
    nonfinite: int
    largest: float
    relative: float


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of `sizes` bytes, each before and after, that follow one another in no special order."""

    names: list[tuple[ObjectId, ObjectId]]
    sizes: list[int]

    @property
    def nbytes(self) -> int:
        return sum(self.sizes)

    def uses(self, side: int, out: memoryview, owner: Owner) -> Iterator[BlockUse]:
        at = 0
        for names, size in zip(self.names, self.sizes, strict=True):
            yield BlockUse(names[side], size, out[at : at + size], None, owner)
            at += size


@dataclass(frozen=True, slots=True)
class Slab:
    """A box of the tensor, whose bytes lie in different blocks before and after."""

    box: Box
    extents: tuple[Extent, Extent]

    @property
    def nbytes(self) -> int:
        return self.box.size * self.extents[0].itemsize

    def uses(self, side: int, out: memoryview, owner: Owner) -> Iterable[BlockUse]:
        return self.extents[side].uses(self.box, out, owner)


Piece = Blocks | Slab


class Gauge:
    """Measures changes between two commits. Memory: two pieces and a few MiB for each thread.

    `objects` are those of the one before and of the one after.
    """

    def __init__(
        self, objects: tuple[Objects, Objects], blocks: BlockReader, before: ObjectId, after: ObjectId
    ) -> None:
        self._objects = objects
        self._blocks = blocks
        self._commits = (before, after)
        self._buffers = Shelf(lambda: np.empty((2, PIECE_BYTES), np.uint8))

    def change(self, before: TensorLeaf, after: TensorLeaf) -> Change:
        """The change of a tensor of one dtype and shape. Reads only blocks that differ where both are cut alike."""
        dtype = DTYPES[before.dtype]
        leaves = (before, after)
        owners = [Owner(leaf.path, commit) for leaf, commit in zip(leaves, self._commits, strict=True)]
        extents = [
            extent_for(owner, leaf.entry.content, leaf.shape, dtype.itemsize, objects)
            for owner, leaf, objects in zip(owners, leaves, self._objects, strict=True)
        ]
        found = self._tally(dtype, list(pieces(extents[0], extents[1])), owners)
        relative = found.moved / found.old if found.old else math.inf if found.moved else 0.0
        total = count_of(dtype, before.nbytes)
        return Change(found.differing, total, found.nonfinite, found.largest, relative)

    def _tally(self, dtype: DType, work: list[Piece], owners: list[Owner]) -> Tally:
        tallies = [Tally()] * len(work)

        def measure(number: int) -> None:
            tallies[number] = self._measure(dtype, work[number], owners)

        if len(work) == 1:
            measure(0)
        else:
            with Crew(min(default_threads(), max(1, len(work)))) as crew:
                for number in range(len(work)):
                    crew.submit(partial(measure, number))
        total = Tally()
        for found in tallies:  # in order, so that sums are rounded alike each time
            total.add(found)
        return total

    def _measure(self, dtype: DType, piece: Piece, owners: list[Owner]) -> Tally:
        size = piece.nbytes
        with self._buffers.borrow() as buffers:
            sides = (piece.uses(side, memoryview(buffers[side])[:size], owner) for side, owner in enumerate(owners))
            self._blocks.fill(use for uses in sides for use in uses)
            return tally(dtype, buffers[0, :size], buffers[1, :size])


def pieces(before: Extent, after: Extent) -> Iterator[Piece]:
    """All of a tensor that may differ, in pieces of at most `PIECE_BYTES`."""
    if _cutting(before) == _cutting(after):
        yield from _blocks(before, after)
    else:
        limit = PIECE_BYTES // before.itemsize
        yield from (Slab(box, (before, after)) for box in slabs(before.shape, limit))


def _cutting(extent: Extent) -> list[tuple[Box, list[int]]]:
    return [(shard.box, shard.edges) for shard in extent.shards]


def _blocks(before: Extent, after: Extent) -> Iterator[Blocks]:
    """The blocks with other names, neighbours together."""
    names: list[tuple[ObjectId, ObjectId]] = []
    sizes: list[int] = []
    for one, other in zip(before.shards, after.shards, strict=True):
        for pair, (start, stop) in zip(zip(one.ids, other.ids, strict=True), pairwise(one.edges), strict=True):
            if pair[0] == pair[1]:
                continue
            if sum(sizes) + stop - start > PIECE_BYTES:
                yield Blocks(names, sizes)
                names, sizes = [], []
            names.append(pair)
            sizes.append(stop - start)
    if names:
        yield Blocks(names, sizes)
