"""What one rank says of its state: three byte strings in canonical MessagePack, so that equal parts are equal bytes.

    structure   [nesting, [form, ...], [tie, ...]]       one form and one tie for each leaf, in order
    boxes       [[[start, shape], ...], ...]             for each leaf: those that this rank holds, with elements
    values      [bin, ...]                               the packed node of each value, in order

    nesting     0: the next leaf; 1: the next value; [tag, [key, ...] or nil, [nesting, ...]]: a container;
                [framework, kind, nesting]: a composite and the dict of its parts
    form        [tag, framework or nil, dtype or nil, shape, cell]
    tie         nil, or the number of the first leaf that is the same tensor; its boxes stand there

All ranks that shard the same model have the same structure. Structure and boxes stay the same from commit to commit.
What comes from elsewhere is checked: `Corrupt` for anything that `outline_of` never makes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from .dtypes import DTYPES
from .errors import Corrupt
from .grid import check_cell
from .nodes import (
    KEYED_TAGS,
    LISTED_TAGS,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_DIMENSIONS,
    MAX_ENTRIES,
    Node,
    Tag,
    check_node,
    is_key,
    pack,
    unpack,
)
from .state import Composed, Container, Leaf

T = TypeVar("T")

_LEAF, _VALUE = 0, 1
_LONG = (Tag.TEXT, Tag.BYTES, Tag.PICKLE)
_PLAIN = (Tag.BIGINT, Tag.SCALAR, Tag.FOREIGN)

Numbers = tuple[int, ...]
Extent = tuple[Numbers, Numbers]
"""A box as start and shape, in elements. A tuple: there are many, and they are keys."""


class Form(NamedTuple):
    """What all ranks that have a leaf must say alike. `cell` in bytes, 0 where it follows from the size."""

    tag: int
    framework: str | None
    dtype: str | None
    shape: Numbers
    cell: int

    @property
    def itemsize(self) -> int:
        return 1 if self.dtype is None else DTYPES[self.dtype].itemsize


class Place(NamedTuple):
    """Leaf `number` of a rank, or, without a form, its value `number`."""

    number: int
    form: Form | None


@dataclass(frozen=True, slots=True)
class Structure:
    """`root` is a `Container`, `Composed` or `Place`; `ties[n]` is the first leaf that is the same as leaf n, or None.

    `values` is how many there are.
    """

    root: Any
    forms: list[Form]
    ties: list[int | None]
    values: int


@dataclass(frozen=True, slots=True)
class Outline:
    """What a rank sends. The structure is equal on ranks that shard the same state."""

    structure: bytes
    boxes: bytes
    values: bytes


# -- saying ---------------------------------------------------------------------------------------------------------


def outline_of(skeleton: Any, leaves: Sequence[Leaf]) -> Outline:
    """The outline of a state that was walked: its skeleton, and its leaves in the same order."""
    values: list[bytes] = []
    nesting = _nesting(skeleton, values)
    numbers = {id(leaf): number for number, leaf in enumerate(leaves)}
    ties = [None if leaf.tied_to is None else numbers[id(leaf.tied_to)] for leaf in leaves]
    structure = pack([nesting, [_form(leaf) for leaf in leaves], ties])
    return Outline(structure, pack([_extents(leaf) for leaf in leaves]), pack(values))


def _nesting(skeleton: Any, values: list[bytes]) -> Node:
    if isinstance(skeleton, Container):
        return [skeleton.tag, skeleton.keys, [_nesting(child, values) for child in skeleton.children]]
    if isinstance(skeleton, Composed):
        return [skeleton.framework, skeleton.kind, _nesting(skeleton.parts, values)]
    if isinstance(skeleton, Leaf):
        return _LEAF
    values.append(pack(skeleton))
    return _VALUE


def _form(leaf: Leaf) -> Form:
    framework, dtype = (leaf.tensor.framework, leaf.tensor.dtype.name) if leaf.tensor else (None, None)
    return Form(leaf.tag, framework, dtype, leaf.shape, leaf.cell)


def _extents(leaf: Leaf) -> list[Extent]:
    held = leaf.shards if leaf.tied_to is None else []
    return [(shard.box.start, shard.box.shape) for shard in held if shard.box.size]


def require(condition: bool, what: str) -> None:
    if not condition:
        raise Corrupt(f"{what}; run the same version of cas on every rank")


# -- hearing --------------------------------------------------------------------------------------------------------

_Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_BYTES)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_BYTES)]
_Wire = tuple[int, str | None, str | None, tuple[_Size, ...], _Size]
_STRUCTURE = msgspec.msgpack.Decoder(tuple[Any, list[_Wire], list[_Size | None]])
_BOXES = msgspec.msgpack.Decoder(list[list[tuple[tuple[_Size, ...], tuple[_Count, ...]]]])
_BINS = msgspec.msgpack.Decoder(list[bytes])


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes, what: str) -> T:
    """As `unpack`, for a type that is known: checked where it is fast, for there are many numbers."""
    try:
        value = decoder.decode(data)
        canonical = pack(value) == data
    except (msgspec.MsgspecError, RecursionError, ValueError, TypeError) as error:
        raise Corrupt(f"{what} are not what this version sends: {error}") from error
    require(canonical, f"{what} are not in canonical form")
    return value


def decode_structure(data: bytes, rank: int) -> Structure:
    nesting, wire, ties = _decode(_STRUCTURE, data, f"the forms of rank {rank}")
    forms = [_form_of(fields) for fields in wire]
    require(len(ties) == len(forms), f"rank {rank} has another number of ties than of leaves")
    for number, tie in enumerate(ties):
        if tie is not None:
            first = tie < number and ties[tie] is None and forms[tie] == forms[number]
            require(first and forms[number].tag == Tag.TENSOR, f"rank {rank} ties leaves that cannot be one tensor")
    reading = _Reading(forms)
    root = reading.read(nesting, 0)
    require(reading.leaves == len(forms), f"rank {rank} has another number of forms than of leaves")
    return Structure(root, forms, ties, reading.values)


@lru_cache(1 << 12)
def _form_of(fields: tuple[Any, ...]) -> Form:
    """Cached: most tensors of a model have one of a few forms, on every rank."""
    form = Form(*fields)
    if form.tag == Tag.TENSOR:
        require(form.framework is not None and form.dtype in DTYPES, "a rank has a tensor of an unknown dtype")
    else:
        known = form.tag in _LONG and form.framework is None and form.dtype is None and len(form.shape) == 1
        require(known, "a rank has a leaf of an unknown form")
    elements = math.prod(size or 1 for size in form.shape)
    limit = MAX_BYTES // 16 if form.tag == Tag.TENSOR else MAX_BYTES
    require(len(form.shape) <= MAX_DIMENSIONS and elements <= limit, "a rank has a leaf of an impossible shape")
    if form.cell:
        check_cell(form.cell)
    return form


@dataclass(slots=True)
class _Reading:
    """One pass over a nesting; leaves and values are counted as they are met."""

    forms: list[Form]
    leaves: int = 0
    values: int = 0
    entries: int = 0

    def read(self, node: Node, depth: int) -> Any:
        if type(node) is int:
            return self._place(node)
        require(type(node) is list and len(node) == 3, "a rank's nesting is malformed")
        if type(node[0]) is str:
            return self._composed(node, depth)
        tag, keys, children = node
        require(depth < MAX_DEPTH, "a rank's state is nested too deep")
        require(type(tag) is int and type(children) is list, "a rank's container is malformed")
        self.entries += len(children)
        require(self.entries <= MAX_ENTRIES, f"a rank's state has over {MAX_ENTRIES} entries")
        if tag in KEYED_TAGS:
            keyed = type(keys) is list and len(keys) == len(children) and all(map(is_key, keys))
            require(keyed and len(set(keys)) == len(keys), "a rank's container has invalid keys")
        else:
            require(tag in LISTED_TAGS and keys is None, "a rank's container is of an unknown kind")
        return Container(Tag(tag), keys, [self.read(child, depth + 1) for child in children])

    def _place(self, mark: int) -> Place:
        if mark == _LEAF:
            require(self.leaves < len(self.forms), "a rank has more leaves than forms")
            self.leaves += 1
            return Place(self.leaves - 1, self.forms[self.leaves - 1])
        require(mark == _VALUE, "a rank's nesting has an unknown mark")
        self.values += 1
        return Place(self.values - 1, None)

    def _composed(self, node: Node, depth: int) -> Composed:
        framework, kind, parts = node
        require(
            type(kind) is str and type(parts) is list and parts[:1] == [Tag.DICT], "a rank's composite is malformed"
        )
        return Composed(framework, kind, self.read(parts, depth))


def decode_boxes(data: bytes, ties: Sequence[int | None], rank: int) -> list[list[Extent]]:
    """The boxes of each leaf. That they lie in their tensors is for who puts all ranks' boxes together."""
    boxes = _decode(_BOXES, data, f"the boxes of rank {rank}")
    require(len(boxes) == len(ties), f"rank {rank} tells the boxes of {len(boxes)} leaves, but has {len(ties)}")
    alone = all(tie is None or not held for tie, held in zip(ties, boxes, strict=True))
    require(alone, f"rank {rank} tells boxes of a leaf that is tied to another")
    return boxes


def decode_values(data: bytes, values: int, rank: int) -> list[bytes]:
    """The packed node of each value; each that is used goes through `value_of`."""
    return _bins(data, values, "values", rank)


def decode_reports(data: bytes, boxes: int, rank: int) -> list[bytes]:
    return _bins(data, boxes, "reports", rank)


def _bins(data: bytes, count: int, what: str, rank: int) -> list[bytes]:
    found = _decode(_BINS, data, f"the {what} of rank {rank}")
    require(len(found) == count, f"rank {rank} sends {len(found)} {what} where {count} were due")
    return found


def value_of(data: bytes) -> Node:
    """The node of a value, checked: plain, and no container or reference."""
    node = unpack(data, "a rank's value")
    require(type(node) is not list or (bool(node) and node[0] in _PLAIN), "a rank sends a value that is none")
    check_node(node)
    return node
