"""Structured objects: lists, layouts, trees and commits, as canonical bytes.

Each is one MessagePack array in canonical form whose first item is the format version, 1:

    list     [1, ids: bin of n x 32]                          the blocks of a shard in order, n <= 65,536
    layout   [1, cell, [[start, shape, [list id, ...]], ...]]   start, shape: the shard's box in elements
    tree     [1, node]
    commit   [1, tree id, [parent id, ...], time, author, message, step or nil, metrics, meta, files, origin, sizes]

A container whose encoding exceeds 4 KiB is a tree of its own. One of more than 4,096 entries or 1 MiB is cut into
parts: after a key whose CRC-32 is 0 modulo 1,024 (never for lists), at 4,096 entries, or when a part has reached
1 MiB; so one changed entry rewrites one part. Metrics, meta and files are nodes; time is in microseconds of Unix
time; origin is nil or [tree id, bytes], the files that the state was read from; sizes are [raw, new raw, new stored]
bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np

from .block import ID_SIZE, Kind, ObjectId, object_id
from .errors import Corrupt
from .grid import Box
from .nodes import (
    KEYED_TAGS,
    LISTED_TAGS,
    MAX_BYTES,
    MAX_ENTRIES,
    Content,
    Node,
    Tag,
    check_node,
    expect,
    is_id,
    pack,
    unpack,
)
from .paths import is_file_name

VERSION = 1
INLINE_CONTAINER = 4 << 10
PART_ENTRIES = 4096
PART_BYTES = 1 << 20
PART_MODULUS = 1024
LIST_IDS = 1 << 16
MAX_SHARDS = 1 << 16
MAX_TIME = 253_402_300_800_000_000
"""The end of the year 9999, in microseconds of Unix time."""

_MAX_CONTAINERS = 1 << 22

Put = Callable[[Kind, bytes], ObjectId]
"""Takes an object's bytes to be stored and returns its id."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A box of the tensor and the lists that name its blocks in order."""

    box: Box
    lists: tuple[ObjectId, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor is cut: its cell in bytes, and its shards."""

    cell: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a commit: `raw` of the whole state, `new_raw` of its new blocks, `new_stored` as they lie in packs."""

    raw: int
    new_raw: int
    new_stored: int


@dataclass(frozen=True, slots=True)
class Origin:
    """The files that a state was read from: `tree` is a dict of lists of pieces, `nbytes` the sum of their sizes."""

    tree: ObjectId
    nbytes: int


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit object says. `time` in microseconds of Unix time; `metrics`, `meta` and `files` are nodes."""

    tree: ObjectId
    parents: tuple[ObjectId, ...]
    time: int
    author: str
    message: str
    step: int | None
    metrics: Node
    meta: Node
    files: Node
    origin: Origin | None
    sizes: Sizes


class Reads(Protocol):
    """Gives structured objects by id, verified and decoded. `NotFound` or `Corrupt` where one is not to be had."""

    def commit(self, name: ObjectId) -> Commit: ...
    def tree(self, name: ObjectId) -> Node: ...
    def layout(self, name: ObjectId) -> Layout: ...
    def block_list(self, name: ObjectId) -> list[ObjectId]: ...


# -- containers ---------------------------------------------------------------------------------------------------


def seal(tag: Tag, entries: list[Node], put: Put) -> Node:
    """The node of a container: inline when small, else a reference to the tree that `put` stores.

    `entries` are [key, node] pairs or, for lists and tuples, nodes.
    """
    if len(entries) > PART_ENTRIES:
        return _seal_parts(tag, entries, put)
    data = pack([tag, entries])
    if len(data) > PART_BYTES:
        return _seal_parts(tag, entries, put)
    if len(data) <= INLINE_CONTAINER:
        return msgspec.Raw(data)
    return [Tag.REF, put(Kind.TREE, pack([VERSION, msgspec.Raw(data)]))]


def _seal_parts(tag: Tag, entries: list[Node], put: Put) -> Node:
    ids = [put(Kind.TREE, pack([VERSION, [tag, part]])) for part in _parts(tag, entries)]
    return [Tag.REF, put(Kind.TREE, pack([VERSION, [Tag.PARTS, tag, ids]]))]


def _parts(tag: Tag, entries: list[Node]) -> Iterator[list[msgspec.Raw]]:
    part: list[msgspec.Raw] = []
    size = 0
    for entry in entries:
        data = pack(entry)
        part.append(msgspec.Raw(data))
        size += len(data)
        if len(part) == PART_ENTRIES or size >= PART_BYTES or (tag in KEYED_TAGS and _ends_part(entry[0])):
            yield part
            part, size = [], 0
    if part:
        yield part


def _ends_part(key: str | int) -> bool:
    return zlib.crc32(str(key).encode()) % PART_MODULUS == 0


def encode_tree(node: Node) -> bytes:
    return pack([VERSION, node])


def decode_tree(data: bytes) -> Node:
    """The node in a tree object, checked; references inside it are not followed."""
    node = _versioned(data, 2, "a tree")[1]
    check_node(node)
    return node


def entries_of(node: Node, tree: Callable[[ObjectId], Node]) -> tuple[Tag, list[Node]] | None:
    """Tag and all entries of a container, following its reference and parts through `tree`; None for a leaf.

    A composite is seen as the dict of its parts.
    """
    if type(node) is list and node[0] == Tag.COMPOSITE:
        held = entries_of(node[3], tree)
        expect(held is not None and held[0] is Tag.DICT, "the parts of a composite are no dict")
        return held
    if type(node) is list and node[0] == Tag.REF:
        node = tree(ObjectId(node[1]))
        expect(type(node) is list and node[0] in _CONTAINERS, "a reference names no container")
    if type(node) is not list or node[0] not in _CONTAINERS:
        return None
    if node[0] != Tag.PARTS:
        return Tag(node[0]), node[1]
    tag = Tag(node[1])
    entries: list[Node] = []
    for part in node[2]:
        expect(len(entries) <= MAX_ENTRIES, f"a container has over {MAX_ENTRIES} entries")
        held = tree(ObjectId(part))
        expect(type(held) is list and held[0] == tag, "a part of a container is of another kind")
        entries.extend(held[1])
    if tag in KEYED_TAGS:
        expect(len({entry[0] for entry in entries}) == len(entries), "a container has a key twice")
    return tag, entries


_CONTAINERS = {*KEYED_TAGS, *LISTED_TAGS, Tag.PARTS}


# -- lists and layouts --------------------------------------------------------------------------------------------


def encode_list(ids: Iterable[ObjectId]) -> bytes:
    return pack([VERSION, b"".join(ids)])


def decode_list(data: bytes) -> list[ObjectId]:
    joined = _versioned(data, 2, "a block list")[1]
    expect(type(joined) is bytes and 0 < len(joined) <= LIST_IDS * ID_SIZE, "a block list has an impossible length")
    expect(len(joined) % ID_SIZE == 0, "a block list is cut inside an id")
    return [ObjectId(joined[at : at + ID_SIZE]) for at in range(0, len(joined), ID_SIZE)]


def encode_layout(layout: Layout) -> bytes:
    shards = [[list(s.box.start), list(s.box.shape), list(s.lists)] for s in layout.shards]
    return pack([VERSION, layout.cell, shards])


def decode_layout(data: bytes) -> Layout:
    """The layout, its form checked; whether its boxes fit a tensor is for the reader, who knows the shape."""
    _, cell, shards = _versioned(data, 3, "a layout")
    expect(_is_size(cell) and cell > 0 and type(shards) is list, "a layout has the wrong form")
    expect(0 < len(shards) <= MAX_SHARDS, f"a layout has {len(shards)} shards; there are up to {MAX_SHARDS}")
    return Layout(cell, tuple(_shard(item) for item in shards))


def _shard(item: Node) -> Shard:
    expect(type(item) is list and len(item) == 3 and all(type(part) is list for part in item), "a shard is malformed")
    start, shape, lists = item
    expect(len(start) == len(shape) and all(map(_is_size, start + shape)), "a shard has an impossible box")
    expect(all(map(is_id, lists)), "a shard has an invalid list id")
    return Shard(Box(tuple(start), tuple(shape)), tuple(lists))


def store_content(blocks: list[ObjectId], box: Box, cell: int, put: Put) -> Content:
    """The content of an unsharded entry with these blocks: `put` takes its lists and layout where it needs them."""
    if len(blocks) == 0:
        return Content(None, None)
    if len(blocks) == 1:
        return Content(blocks[0], None)
    return Content(None, put(Kind.LAYOUT, encode_layout(Layout(cell, (Shard(box, store_lists(blocks, put)),)))))


def store_lists(blocks: list[ObjectId], put: Put | None) -> tuple[ObjectId, ...]:
    """The lists that name these blocks; without `put` only their ids are found out, for others store them."""
    encoded = [encode_list(blocks[at : at + LIST_IDS]) for at in range(0, len(blocks), LIST_IDS)]
    return tuple(object_id(Kind.LIST, data) if put is None else put(Kind.LIST, data) for data in encoded)


# -- commits ------------------------------------------------------------------------------------------------------


def same_content(one: Commit, other: Commit) -> bool:
    """Whether two commits hold the same state, files and step, whoever made them when."""
    return all(getattr(one, name) == getattr(other, name) for name in ("tree", "step", "files", "origin"))


def encode_commit(commit: Commit) -> bytes:
    c, sizes = commit, [commit.sizes.raw, commit.sizes.new_raw, commit.sizes.new_stored]
    head = [VERSION, c.tree, list(c.parents), c.time, c.author, c.message, c.step]
    origin = None if c.origin is None else [c.origin.tree, c.origin.nbytes]
    return pack([*head, c.metrics, c.meta, c.files, origin, sizes])


def decode_commit(data: bytes) -> Commit:
    fields = _versioned(data, 12, "a commit")
    _, tree, parents, time, author, message, step, metrics, meta, files, origin, sizes = fields
    expect(is_id(tree) and type(parents) is list and all(map(is_id, parents)), "a commit names no valid objects")
    expect(type(time) is int and type(author) is str and type(message) is str, "a commit has the wrong form")
    expect(0 <= time < MAX_TIME, "a commit has an impossible time")
    expect(step is None or (type(step) is int and -MAX_BYTES <= step <= MAX_BYTES), "a commit has an invalid step")
    expect(type(sizes) is list and len(sizes) == 3 and all(map(_is_size, sizes)), "a commit has invalid sizes")
    for node in (metrics, meta, files):
        check_node(node)
        expect(type(node) is list and node[0] == Tag.DICT, "a commit's metadata is no dict")
    expect(_is_plain(metrics) and _is_plain(meta), "a commit's metadata holds more than plain values")
    named = all(type(node) is list and node[0] == Tag.BYTES for _, node in files[1])
    named = named and all(type(key) is str and is_file_name(key) for key, _ in files[1])
    expect(named, "a commit has an invalid side file")
    ids = tuple(ObjectId(parent) for parent in parents)
    tree, origin, sizes = ObjectId(tree), _origin(origin), Sizes(*sizes)
    return Commit(tree, ids, time, author, message, step, metrics, meta, files, origin, sizes)


def _origin(node: Node) -> Origin | None:
    if node is None:
        return None
    expect(
        type(node) is list and len(node) == 2 and is_id(node[0]) and _is_size(node[1]), "a commit's origin is malformed"
    )
    return Origin(ObjectId(node[0]), node[1])


def _is_plain(node: Node) -> bool:
    """Whether a checked node holds neither references nor bytes in blocks nor values of a framework."""
    if type(node) is not list:
        return True
    if node[0] in KEYED_TAGS:
        return all(_is_plain(child) for _, child in node[1])
    return all(map(_is_plain, node[1])) if node[0] in LISTED_TAGS else node[0] in (Tag.BIGINT, Tag.SCALAR)


def _containers_at_most(data: bytes) -> int:
    """No fewer than the short arrays and maps of MessagePack: decoded, an empty one takes a hundred times its byte."""
    return int(np.count_nonzero((np.frombuffer(data, np.uint8) & 0xE0) == 0x80))


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_BYTES


def _versioned(data: bytes, length: int, what: str) -> list[Node]:
    if len(data) > _MAX_CONTAINERS and _containers_at_most(data) > _MAX_CONTAINERS:
        raise Corrupt(f"{what} holds over {_MAX_CONTAINERS} containers; it was not written by this format")
    fields = unpack(data, what)
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise Corrupt(f"{what} is not in this format")
    if fields[0] != VERSION or len(fields) != length:
        raise Corrupt(f"{what} has version {fields[0]} and {len(fields)} fields; this release reads version 1")
    return fields
