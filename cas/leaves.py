"""The leaves of a commit one by one, for looking and for export: what they are, and their bytes as one stream.

Works on bytes alone: no framework is imported, whatever the tensors came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from .arrays import scalar_value
from .block import ObjectId
from .dtypes import DTYPES
from .errors import NotFound
from .extent import Extent, ShardBlocks
from .grid import Box
from .loader import Owner, extent_for
from .nodes import (
    KEYED_TAGS,
    LISTED_TAGS,
    MAX_DEPTH,
    MAX_ENTRIES,
    Node,
    Tag,
    TensorEntry,
    expect,
    int_of,
    long_of,
    tensor_of,
)
from .objects import entries_of
from .paths import Key, Path, format_key, format_path, is_file_name, parse_levels
from .present import Lacking, Present
from .reader import BlockReader, BlockUse, Objects

STREAM_BYTES = 32 << 20
ABSENT = "absent"
"""The kind of a leaf that stands for what the commit lacks on purpose."""


@dataclass(frozen=True, slots=True)
class ValueLeaf:
    """A leaf that is no tensor: the name of its type, and its bytes beyond the tree that names it.

    `value` is None where it would have to be read (long texts and bytes, pickles), for empty containers, and for
    composites (sparse, quantised and wrapper tensors), whose parts follow them. A leaf of the kind `ABSENT` stands for
    a whole subtree, or a tensor or value, that the commit lacks on purpose.
    """

    path: Path
    kind: str
    nbytes: int
    value: Any
    is_composite: bool = False


@dataclass(frozen=True, slots=True)
class TensorLeaf:
    """A tensor, not read; `Leaves.stream` reads it."""

    path: Path
    entry: TensorEntry

    @property
    def dtype(self) -> str:
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def nbytes(self) -> int:
        return self.entry.nbytes


Leaf = TensorLeaf | ValueLeaf


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a commit: the bytes of `parts` one after another, which `Leaves.stream` reads."""

    name: str
    parts: tuple[TensorLeaf, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class Leaves:
    """All leaves of one commit, in the state's order, when iterated over. Reads trees only, no content.

    What the commit lacks on purpose is a `ValueLeaf` of the kind `ABSENT` there, and an error where it is read.
    """

    objects: Objects
    blocks: BlockReader
    commit: ObjectId

    def __iter__(self) -> Iterator[Leaf]:
        return _walk(self.objects.tree(self.objects.commit(self.commit).tree), self.objects)

    def find(self, path: str) -> Path:
        """The path that a text with escaped levels names; `NotFound` says what there is instead."""
        tree = self.objects.tree(self.objects.commit(self.commit).tree)
        at: Path = ()
        for level in parse_levels(path):
            at, tree = self._below(at, tree, level)
        return at

    def _below(self, path: Path, node: Node, level: str) -> tuple[Path, Node]:
        """One level further down; `NotFound` names the level and what there is."""
        try:
            held = entries_of(node, self.objects.tree)
        except Lacking as error:
            raise error.at(path) from error
        entries = [] if held is None else held[1] if held[0] in KEYED_TAGS else list(enumerate(held[1]))
        found = next(((key, child) for key, child in entries if format_key(key) == level), None)
        if found is None:
            near = ", ".join(format_key(key) for key, _ in entries[:8]) or "nothing below"
            raise NotFound(f"{format_path(path) if path else 'the state'} has no {level}; it has {near}")
        return (*path, found[0]), found[1]

    def lacking(self, path: Path) -> NotFound:
        """What to raise where the leaf at `path` is needed and is of the kind `ABSENT`."""
        advice = self.objects.advice if isinstance(self.objects, Present) else ""
        return Lacking.of(self.commit, advice, format_path(path))

    def files(self) -> list[StoredFile]:
        """The side files of the commit."""
        held = self.objects.commit(self.commit).files
        return [StoredFile(name, (_part(name, node),)) for name, node in held[1]]

    def has_origin(self) -> bool:
        """Whether the files that the state was read from are there; they may be absent where the state is not."""
        origin = self.objects.commit(self.commit).origin
        return origin is not None and not (isinstance(self.objects, Present) and origin.tree in self.objects.left_out)

    def origin(self) -> list[StoredFile]:
        """The files that the state was read from, byte for byte, side files apart; none if it was not."""
        origin = self.objects.commit(self.commit).origin
        if origin is None:
            return []
        held = entries_of(self.objects.tree(origin.tree), self.objects.tree)
        expect(held is not None and held[0] is Tag.DICT, "a commit's origin is no dict")
        files = [self._pieces(name, node) for name, node in held[1]] if held else []
        expect(sum(file.nbytes for file in files) == origin.nbytes, "a commit's origin has another size than it says")
        return files

    def _pieces(self, name: Key, node: Node) -> StoredFile:
        expect(type(name) is str and is_file_name(name), "a commit's origin has an invalid file name")
        held = entries_of(node, self.objects.tree)
        expect(held is not None and held[0] is Tag.LIST, "a file of a commit's origin is no list")
        return StoredFile(str(name), tuple(_part(str(name), piece) for piece in (held[1] if held else [])))

    def stream(self, tensors: Iterable[TensorLeaf], size: int = STREAM_BYTES) -> Iterator[memoryview]:
        """The row-major bytes of tensors one after another, verified, in pieces of at most `size` (4 MiB or more).

        So the memory is the same whatever the tensors' sizes. A piece is valid until the next one is asked for.
        """
        out = memoryview(np.empty(size, np.uint8))
        return (out[:count] for count in self.fill(tensors, lambda: out, size))

    def fill(self, tensors: Iterable[TensorLeaf], room: Callable[[], memoryview], size: int) -> Iterator[int]:
        """As `stream`, into memory that `room` gives each time, `size` bytes or more; yields how many are there."""
        out = memoryview(b"")
        uses: list[BlockUse] = []
        filled = 0
        for part in (part for tensor in tensors for part in self._parts(tensor, size)):
            if uses and filled + part.nbytes > len(out):
                self.blocks.fill(uses)
                yield filled
                uses, filled = [], 0
            if not uses:
                out = room()
            uses.extend(part.uses(out[filled : filled + part.nbytes]))
            filled += part.nbytes
        if uses:
            self.blocks.fill(uses)
            yield filled

    def _parts(self, tensor: TensorLeaf, limit: int) -> Iterator[_Block | _Slab]:
        """A tensor's bytes in row-major order: its blocks or, where shards interleave, slabs of at most `limit`."""
        itemsize, owner = DTYPES[tensor.dtype].itemsize, Owner(tensor.path, self.commit)
        extent = extent_for(owner, tensor.entry.content, tensor.shape, itemsize, self.objects)
        if len(extent.shards) > 1:
            yield from (_Slab(box, extent, owner) for box in slabs(tensor.shape, limit // itemsize))
        else:
            yield from (_Block(shard, number, owner) for shard in extent.shards for number in range(len(shard.ids)))


def tensors_of(commit: ObjectId, objects: Objects) -> Iterator[TensorLeaf]:
    """The tensors of a commit."""
    leaves = _walk(objects.tree(objects.commit(commit).tree), objects)
    return (leaf for leaf in leaves if isinstance(leaf, TensorLeaf))


@dataclass(frozen=True, slots=True)
class _Block:
    """One whole block of a tensor in one shard."""

    shard: ShardBlocks
    number: int
    owner: Owner

    @property
    def nbytes(self) -> int:
        return self.shard.edges[self.number + 1] - self.shard.edges[self.number]

    def uses(self, out: memoryview) -> Iterable[BlockUse]:
        return [BlockUse(self.shard.ids[self.number], self.nbytes, out, None, self.owner)]


@dataclass(frozen=True, slots=True)
class _Slab:
    """A box of a tensor whose bytes are contiguous in the whole, but not in the shards that hold it."""

    box: Box
    extent: Extent
    owner: Owner

    @property
    def nbytes(self) -> int:
        return self.box.size * self.extent.itemsize

    def uses(self, out: memoryview) -> Iterable[BlockUse]:
        return self.extent.uses(self.box, out, self.owner)


def slabs(shape: tuple[int, ...], limit: int) -> Iterator[Box]:
    """Boxes of at most `limit` elements that cover a tensor (not empty, 1-dim or more) in its row-major order."""
    axis = next(at for at in range(len(shape)) if math.prod(shape[at + 1 :]) <= limit)
    below = shape[axis + 1 :]
    step = max(1, limit // math.prod(below))
    for index in product(*map(range, shape[:axis])):
        for first in range(0, shape[axis], step):
            start, count = (*index, first), min(step, shape[axis] - first)
            yield Box((*start, *(0 for _ in below)), (*(1 for _ in index), count, *below))


def _part(name: str, node: Node) -> TensorLeaf:
    """A piece of a file: a tensor's bytes, or others as if they were a tensor of bytes."""
    path = tuple(name.split("/"))
    expect(type(node) is list and node[0] in (Tag.TENSOR, Tag.BYTES), "a file has a piece that holds no bytes")
    if node[0] == Tag.TENSOR:
        return TensorLeaf(path, tensor_of(node))
    held = long_of(node)
    return TensorLeaf(path, TensorEntry("numpy", "uint8", (held.nbytes,), held.content, None))


def leaf_of(path: Path, node: Node) -> Leaf:
    """What stands at `path`: a leaf's node, or that of an empty container."""
    if type(node) is not list:
        return ValueLeaf(path, "None" if node is None else type(node).__name__, 0, node)
    tag = Tag(node[0])
    if tag is Tag.TENSOR:
        return TensorLeaf(path, tensor_of(node))
    if tag in (Tag.TEXT, Tag.BYTES, Tag.PICKLE):
        return ValueLeaf(path, {Tag.TEXT: "str", Tag.BYTES: "bytes"}.get(tag, "pickle"), long_of(node).nbytes, None)
    if tag is Tag.BIGINT:
        return ValueLeaf(path, "int", 0, int_of(node))
    if tag is Tag.SCALAR:
        return ValueLeaf(path, node[1], 0, scalar_value(node[1], node[2]))
    if tag is Tag.COMPOSITE:
        return ValueLeaf(path, f"{node[1]}.{node[2]}", 0, None, is_composite=True)
    if tag is Tag.FOREIGN:
        return ValueLeaf(path, f"{node[1]}.{node[2]}", 0, node[3])
    kind = KEYED_TAGS.get(tag) or LISTED_TAGS.get(tag)
    expect(kind is not None, "a tree leads to a container in a way")
    return ValueLeaf(path, kind.__name__ if kind else "", 0, None)


def _walk(node: Node, objects: Objects) -> Iterator[Leaf]:
    """Every leaf below a tree node, in the state's order; empty containers and composites too."""
    todo: list[tuple[Path, Node]] = [((), node)]
    count = 0
    while todo:
        path, node = todo.pop()
        if isinstance(objects, Present) and not objects.has(node):
            yield ValueLeaf(path, ABSENT, 0, None)
            continue
        held = entries_of(node, objects.tree)
        if held is None or not held[1] or node[0] == Tag.COMPOSITE:
            yield leaf_of(path, node)
        if held is None:
            continue
        tag, entries = held
        count += len(entries)
        expect(len(path) < MAX_DEPTH and count <= MAX_ENTRIES, "a state is nested too deep or has too many entries")
        pairs = entries if tag in KEYED_TAGS else enumerate(entries)
        todo += [((*path, key), child) for key, child in pairs][::-1]
