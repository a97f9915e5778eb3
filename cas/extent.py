"""From an entry's content to the blocks that hold a box of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .block import MAX_BLOCK_SIZE, ObjectId
from .errors import Corrupt
from .grid import Box, Piece, check_cell, covers, cut, overlap
from .nodes import Content
from .objects import Layout
from .reader import BlockUse, Objects

MAX_BLOCKS = 1 << 24
"""The most blocks of one tensor: a list may be named again and again, so a small layout could stand for any number."""


@dataclass(frozen=True, slots=True)
class ShardBlocks:
    """One shard: its box, the edges of its blocks in bytes of the box, and their names."""

    box: Box
    edges: list[int]
    ids: list[ObjectId]


@dataclass(frozen=True, slots=True)
class Extent:
    """Where all bytes of an entry lie: `shape` in elements of `itemsize` bytes.

    Having one proves that the store names as many blocks as the shape needs, so it is safe to allocate for.
    """

    shape: tuple[int, ...]
    itemsize: int
    shards: tuple[ShardBlocks, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    def uses(self, wanted: Box, out: memoryview, owner: object) -> Iterator[BlockUse]:
        """What fills `out`, the row-major bytes of `wanted`."""
        for shard in self.shards:
            if wanted.shape == shard.box.shape == self.shape:
                yield from _whole(shard, out, owner)
                continue
            for number, pieces in overlap(wanted, shard.box, shard.edges, self.itemsize):
                size = shard.edges[number + 1] - shard.edges[number]
                yield _use(shard.ids[number], size, pieces, out, owner)


def _whole(shard: ShardBlocks, out: memoryview, owner: object) -> Iterator[BlockUse]:
    for number, name in enumerate(shard.ids):
        start, stop = shard.edges[number], shard.edges[number + 1]
        yield BlockUse(name, stop - start, out[start:stop], None, owner)


def _use(name: ObjectId, size: int, pieces: list[Piece], out: memoryview, owner: object) -> BlockUse:
    first = pieces[0]
    if len(pieces) == 1 and not first.repeat and first.length == size:
        return BlockUse(name, size, out[first.dst : first.dst + size], None, owner)
    return BlockUse(name, size, out, pieces, owner)


def extent_of(content: Content, shape: tuple[int, ...], itemsize: int, objects: Objects) -> Extent:
    """The checked extent of an entry; `Corrupt` if its layout does not tile its shape exactly."""
    nbytes = math.prod(shape) * itemsize
    if content.layout is not None:
        layout = objects.layout(content.layout)
        return Extent(shape, itemsize, _shards(layout, shape, itemsize, objects))
    if content.block is None:
        return Extent(shape, itemsize, ())
    if nbytes > MAX_BLOCK_SIZE:
        raise Corrupt(f"an entry of {nbytes} bytes names a single block; it was not written by this format")
    objects.check([content.block])
    return Extent(shape, itemsize, (ShardBlocks(Box.whole(shape), [0, nbytes], [content.block]),))


def _shards(layout: Layout, shape: tuple[int, ...], itemsize: int, objects: Objects) -> tuple[ShardBlocks, ...]:
    check_cell(layout.cell)
    for shard in layout.shards:
        shard.box.check(shape, itemsize)
    if not covers(shape, [shard.box for shard in layout.shards]):
        raise Corrupt("a layout's shards do not tile their tensor; it was not written by this format")
    found, blocks = [], 0
    for shard in layout.shards:
        ids: list[ObjectId] = []
        for part in shard.lists:
            ids += objects.block_list(part)
            if blocks + len(ids) > MAX_BLOCKS:
                raise Corrupt(f"a layout lists over {MAX_BLOCKS} blocks; it was not written by this format")
        blocks += len(ids)
        edges = cut(shard.box, shape, itemsize, layout.cell, limit=len(ids))
        if len(edges) - 1 != len(ids):
            raise Corrupt(f"a layout lists {len(ids)} blocks where its shape has {len(edges) - 1}")
        found.append(ShardBlocks(shard.box, edges, ids))
    return tuple(found)
