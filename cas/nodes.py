"""Nodes: what a tree is made of, as canonical MessagePack.

nil, bool, int of 64 bits, float64, str and bin up to 64 KiB stand for themselves. All else is an array whose first
item is its tag:

    [REF, tree id]                      a container that is an object of its own
    [DICT | ORDERED | COUNTER, [[key, node], ...]]     key: str or int of 64 bits
    [LIST | TUPLE, [node, ...]]
    [PARTS, tag, [tree id, ...]]        a container cut into consecutive parts, each a tree of the same tag
    [TENSOR, framework, dtype, [size, ...], content, tie or nil]
    [TEXT | BYTES | PICKLE, raw bytes, content]        over 64 KiB, or pickled
    [BIGINT, is negative, magnitude]    big-endian, no leading zero, outside 64 bits
    [SCALAR, dtype, bytes]              a numpy scalar, little-endian
    [FOREIGN, framework, kind, text]    a value that the framework's adapter reads
    [COMPOSITE, framework, kind, parts] a value that the framework's adapter makes of its parts: a DICT, or a REF to one

content: nil for no bytes, a block id for one block, [layout id] for more.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import msgspec

from .block import ID_SIZE, ObjectId
from .dtypes import DTYPES
from .errors import Corrupt

Node = Any
"""A decoded node: plain Python values and lists, as MessagePack gives them."""

INLINE_TEXT = 64 << 10
MAX_DEPTH = 128
MAX_ENTRIES = 1 << 22
"""The most entries of all containers of one state together, each as often as it stands there. Equal subtrees are stored
once, so that without a limit a few kilobytes could stand for more values than there is memory."""
"""Containers around a leaf, the outermost included."""
MAX_INT_SIZE = 8 << 20
MAX_DIMENSIONS = 64
MAX_BYTES = (1 << 63) - 1
_INT64 = range(-(1 << 63), 1 << 63)


class Tag(IntEnum):
    """The numbers are part of the format."""

    REF = 0
    DICT = 1
    LIST = 2
    TUPLE = 3
    ORDERED = 4
    COUNTER = 5
    PARTS = 6
    TENSOR = 7
    TEXT = 8
    BYTES = 9
    PICKLE = 10
    BIGINT = 11
    SCALAR = 12
    FOREIGN = 13
    COMPOSITE = 14


KEYED: dict[type, Tag] = {dict: Tag.DICT, OrderedDict: Tag.ORDERED, Counter: Tag.COUNTER}
LISTED: dict[type, Tag] = {list: Tag.LIST, tuple: Tag.TUPLE}
KEYED_TAGS = {tag: kind for kind, tag in KEYED.items()}
LISTED_TAGS = {tag: kind for kind, tag in LISTED.items()}


class Content(NamedTuple):
    """The bytes of an entry: one block, or a layout, or (both None) nothing."""

    block: ObjectId | None
    layout: ObjectId | None

    def node(self) -> Node:
        return [self.layout] if self.layout is not None else self.block


EMPTY = Content(None, None)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """`shape` in elements; entries with the same `tie` in one commit were one tensor."""

    framework: str
    dtype: str
    shape: tuple[int, ...]
    content: Content
    tie: int | None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def node(self) -> Node:
        return [Tag.TENSOR, self.framework, self.dtype, list(self.shape), self.content.node(), self.tie]


@dataclass(frozen=True, slots=True)
class LongEntry:
    """`nbytes` bytes of a long str (UTF-8), bytes or pickle."""

    tag: Tag
    nbytes: int
    content: Content

    def node(self) -> Node:
        return [self.tag, self.nbytes, self.content.node()]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()
pack = _encoder.encode


def unpack(data: bytes, what: str) -> Any:
    """Decode canonical MessagePack; `Corrupt` if another encoding of the same value was used."""
    try:
        value = _decoder.decode(data)
        canonical = _encoder.encode(value) == data
    except (msgspec.MsgspecError, RecursionError, UnicodeError, ValueError, TypeError) as error:
        raise Corrupt(f"{what} is not MessagePack: {error}") from error
    if not canonical:
        raise Corrupt(f"{what} is not in canonical form")
    return value


def is_id(value: object) -> bool:
    return type(value) is bytes and len(value) == ID_SIZE


def is_key(value: object) -> bool:
    return type(value) is str or (type(value) is int and value in _INT64)


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise Corrupt(f"{what}; it was not written by this format")


def content_of(node: Node) -> Content:
    if node is None:
        return EMPTY
    if is_id(node):
        return Content(ObjectId(node), None)
    expect(type(node) is list and len(node) == 1 and is_id(node[0]), "an entry has no valid content")
    return Content(None, ObjectId(node[0]))


def tensor_of(node: Node) -> TensorEntry:
    """The entry that a TENSOR node holds, checked: `Corrupt` for anything that no writer makes."""
    expect(len(node) == 6, "a tensor entry has the wrong length")
    _, framework, dtype, shape, content, tie = node
    expect(type(framework) is str and type(dtype) is str and dtype in DTYPES, "a tensor entry has an unknown dtype")
    fits = type(shape) is list and len(shape) <= MAX_DIMENSIONS
    fits = fits and all(type(size) is int and 0 <= size <= MAX_BYTES for size in shape)
    expect(fits and math.prod(s or 1 for s in shape) <= MAX_BYTES // 16, "a tensor entry has an impossible shape")
    expect(tie is None or (type(tie) is int and 0 <= tie < 1 << 32), "a tensor entry has an invalid tie")
    entry = TensorEntry(framework, dtype, tuple(shape), content_of(content), tie)
    expect((entry.nbytes == 0) == (entry.content == EMPTY), "a tensor entry's content does not fit its shape")
    return entry


def long_of(node: Node) -> LongEntry:
    """The entry that a TEXT, BYTES or PICKLE node holds, checked."""
    expect(len(node) == 3, "a byte entry has the wrong length")
    tag, nbytes, content = node
    expect(type(nbytes) is int and 0 <= nbytes <= MAX_BYTES, "a byte entry has an impossible length")
    entry = LongEntry(Tag(tag), nbytes, content_of(content))
    expect((nbytes == 0) == (entry.content == EMPTY), "a byte entry's content does not fit its length")
    return entry


def check_node(node: Node, depth: int = 0) -> None:
    """`Corrupt` unless `node` and all that it holds inline follow the grammar above."""
    if type(node) is not list:
        expect(node is None or type(node) in (bool, int, float, str, bytes), "a tree holds an unknown value")
        expect(type(node) is not int or node in _INT64, "a tree holds an integer over 64 bits")
        return
    expect(bool(node) and type(node[0]) is int and 0 <= node[0] <= Tag.COMPOSITE, "a tree holds an unknown tag")
    tag = Tag(node[0])
    if tag in KEYED_TAGS or tag in LISTED_TAGS:
        _check_container(tag, node, depth)
    elif tag is Tag.TENSOR:
        tensor_of(node)
    elif tag in (Tag.TEXT, Tag.BYTES, Tag.PICKLE):
        long_of(node)
    elif tag is Tag.COMPOSITE:
        _check_composite(node, depth)
    else:
        expect(_LEAVES[tag](node), f"a tree holds a malformed {tag.name.lower()}")


def _check_container(tag: Tag, node: Node, depth: int) -> None:
    expect(depth < MAX_DEPTH, "a tree is nested too deep")
    expect(len(node) == 2 and type(node[1]) is list, "a container has the wrong form")
    if tag in LISTED_TAGS:
        for child in node[1]:
            check_node(child, depth + 1)
        return
    for pair in node[1]:
        expect(type(pair) is list and len(pair) == 2 and is_key(pair[0]), "a container has an invalid key")
        check_node(pair[1], depth + 1)
    expect(len({pair[0] for pair in node[1]}) == len(node[1]), "a container has a key twice")


def _check_composite(node: Node, depth: int) -> None:
    named = len(node) == 4 and type(node[1]) is str and type(node[2]) is str
    held = named and type(node[3]) is list and node[3][:1] in ([Tag.DICT], [Tag.REF])
    expect(held, "a composite has the wrong form")
    check_node(node[3], depth)


def _is_parts(node: Node) -> bool:
    if len(node) != 3 or type(node[1]) is not int or type(node[2]) is not list:
        return False
    return (node[1] in KEYED_TAGS or node[1] in LISTED_TAGS) and len(node[2]) > 0 and all(map(is_id, node[2]))


def _is_bigint(node: Node) -> bool:
    if len(node) != 3 or type(node[1]) is not bool or type(node[2]) is not bytes or node[2][:1] in (b"", b"\0"):
        return False
    if len(node[2]) > MAX_INT_SIZE:
        return False
    return int_of(node) not in _INT64


def int_of(node: Node) -> int:
    magnitude = int.from_bytes(node[2], "big")
    return -magnitude if node[1] else magnitude


def int_node(value: int) -> Node:
    """An int as it stands in a tree: itself when it fits 64 bits."""
    if value in _INT64:
        return value
    magnitude = abs(value)
    return [Tag.BIGINT, value < 0, magnitude.to_bytes((magnitude.bit_length() + 7) // 8, "big")]


def _is_scalar(node: Node) -> bool:
    if len(node) != 3 or type(node[1]) is not str or node[1] not in DTYPES or type(node[2]) is not bytes:
        return False
    return len(node[2]) == DTYPES[node[1]].itemsize


_LEAVES: dict[Tag, Callable[[Node], bool]] = {
    Tag.REF: lambda node: len(node) == 2 and is_id(node[1]),
    Tag.PARTS: _is_parts,
    Tag.BIGINT: _is_bigint,
    Tag.SCALAR: _is_scalar,
    Tag.FOREIGN: lambda node: len(node) == 4 and all(type(item) is str for item in node[1:]),
}
