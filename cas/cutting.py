"""Leaves cut into blocks, and which of these this process stores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .block import Kind, ObjectId
from .grid import Box, cell_size, cut
from .nodes import EMPTY, Content
from .objects import Layout, Put, Shard, encode_layout, store_content, store_lists
from .state import Leaf
from .tensors import Source


class Duty(NamedTuple):
    """This process is number `position` of the `replicas` that hold the same box; of none, it has nothing to do.

    Each stores its part of the blocks, the first also the lists that name them.
    """

    position: int
    replicas: int


ALL = Duty(0, 1)


@dataclass(slots=True)
class Cut:
    """One shard of a leaf: bytes [edges[n], edges[n + 1]) are block n. `ids` are filled in while blocks are stored."""

    leaf: Leaf
    box: Box
    source: Source
    cell: int
    edges: list[int]
    ids: list[ObjectId]
    duty: Duty

    @property
    def own(self) -> range:
        """The blocks that this process stores."""
        count, (position, replicas) = len(self.ids), self.duty
        if not replicas:
            return range(0)
        return range(count * position // replicas, count * (position + 1) // replicas)

    @property
    def is_one_block(self) -> bool:
        """Whether the whole tensor is this one block, which then stands in its entry."""
        return len(self.ids) == 1 and self.box.shape == self.leaf.shape

    def report(self, put: Put) -> bytes:
        """What the others need to know: the id of the one block, else those of the lists. `put` takes what is ours."""
        if not self.duty.replicas:
            return b""
        if self.is_one_block:
            return self.ids[0]
        return b"".join(store_lists(self.ids, put if self.duty.position == 0 else None))


def cuts_of(leaf: Leaf, block_size: int, duties: Iterator[Duty] | None = None) -> list[Cut]:
    """The shards that have elements, cut; each with the next of the duties, without any all ours."""
    cell = min(leaf.cell or cell_size(leaf.nbytes, block_size), block_size)
    shape, itemsize = leaf.shape, leaf.itemsize
    found = []
    for shard in leaf.shards:
        if not shard.box.size:
            continue
        edges = cut(shard.box, shape, itemsize, cell)
        ids = [ObjectId(b"")] * (len(edges) - 1)
        found.append(Cut(leaf, shard.box, shard.source, cell, edges, ids, ALL if duties is None else next(duties)))
    return found


def content_of(cuts: list[Cut], put: Put) -> Content:
    """The content of a leaf that this process holds alone, from its cuts."""
    if not cuts:
        return EMPTY
    if len(cuts) == 1:
        return store_content(cuts[0].ids, cuts[0].box, cuts[0].cell, put)
    shards = tuple(Shard(cut.box, store_lists(cut.ids, put)) for cut in sorted(cuts, key=lambda cut: cut.box.start))
    return Content(None, put(Kind.LAYOUT, encode_layout(Layout(cuts[0].cell, shards))))
