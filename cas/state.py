"""From a nested state to leaves that hold bytes and a skeleton that becomes its tree."""

from __future__ import annotations

import math
import pickle
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from . import frameworks, per_rank
from .arrays import scalar_node
from .errors import CasError, Invalid, Unsupported
from .grid import Box
from .nodes import (
    INLINE_TEXT,
    KEYED,
    LISTED,
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_INT_SIZE,
    Content,
    LongEntry,
    Node,
    Tag,
    TensorEntry,
    int_node,
    is_key,
)
from .objects import Put, seal
from .paths import Path, format_path
from .per_rank import PerRank
from .slot import Slot
from .tensors import Adapter, BytesSource, Composite, LocalShard, Source, Tensor

MAX_KEY = 64 << 10


@dataclass(slots=True)
class Leaf:
    """Bytes to store. `content` is set once they are; tied leaves share one `Leaf.tie` and all but one is skipped.

    `shards` are what this process holds: all there is, or other processes hold the rest. `cell` is where blocks end,
    in bytes, if it does not follow from the size.
    """

    path: Path
    shards: list[LocalShard]
    tensor: Tensor | None
    tag: Tag = Tag.TENSOR
    content: Content | None = None
    tied_to: Leaf | None = None
    tie: int | None = None
    cell: int = 0

    @classmethod
    def of_bytes(cls, path: Path, source: Source, tag: Tag, cell: int = 0) -> Leaf:
        """Bytes that are no tensor, as one dimension of elements of one byte."""
        return cls(path, [LocalShard(Box.whole((source.nbytes,)), source)], None, tag, cell=cell)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of all shards together, in elements."""
        return self.shards[0].box.shape if self.tensor is None else self.tensor.shape

    @property
    def itemsize(self) -> int:
        return 1 if self.tensor is None else self.tensor.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all shards together, wherever they are held."""
        return math.prod(self.shape) * self.itemsize

    def node(self) -> Node:
        content = self.content if self.tied_to is None else self.tied_to.content
        assert content is not None, "a leaf's node is made after its bytes were stored"
        if self.tensor is None:
            return LongEntry(self.tag, self.nbytes, content).node()
        tensor = self.tensor
        return TensorEntry(tensor.framework, tensor.dtype.name, tensor.shape, content, self.tie).node()


@dataclass(slots=True)
class Container:
    """A dict (`keys` set) or sequence of the state; children are containers, leaves or finished nodes."""

    tag: Tag
    keys: list[Any] | None
    children: list[Any]


@dataclass(slots=True)
class Composed:
    """A value that is stored by its parts."""

    framework: str
    kind: str
    parts: Container


@dataclass(slots=True)
class Walk:
    """One traversal of a state by the process of this rank. `leaves` stand in the state's order."""

    allow_pickle: bool = False
    rank: int = 0
    leaves: list[Leaf] = field(default_factory=list)
    _adapters: list[Adapter] = field(default_factory=frameworks.imported)
    _trail: list[Any] = field(default_factory=list)
    _open: set[int] = field(default_factory=set)
    _aliases: dict[Hashable, Leaf] = field(default_factory=dict)
    _ties: int = 0
    _entries: int = 0

    def visit(self, value: Any) -> Any:
        """The skeleton of `value`: a `Container`, `Composed`, a `Leaf` or a finished node. Errors name the path."""
        kind = type(value)
        if kind in KEYED:
            return self._container(value, KEYED[kind], list(value), value.values())
        if kind in LISTED:
            return self._container(value, LISTED[kind], None, value)
        if value is None or kind is bool or kind is float:
            return value
        if kind is int:
            return self._int(value)
        if kind is str:
            return self._text(value)
        if kind is bytes:
            return value if len(value) <= INLINE_TEXT else self._bytes(BytesSource(value), Tag.BYTES)
        return self._other(value)

    def _container(self, value: Any, tag: Tag, keys: list[Any] | None, values: Any) -> Container:
        if id(value) in self._open:
            raise Invalid(f"{self._here()} contains itself; break the cycle before committing")
        if len(self._open) >= MAX_DEPTH:
            raise Invalid(f"{self._here()} is nested deeper than {MAX_DEPTH} levels")
        self._entries += len(values)
        if self._entries > MAX_ENTRIES:
            raise Unsupported(f"{self._here()} makes over {MAX_ENTRIES} entries; store long lists of numbers as arrays")
        self._open.add(id(value))
        children = []
        for at, child in enumerate(list(values)):
            self._trail.append(at if keys is None else self._key(keys[at]))
            children.append(self.visit(child))
            self._trail.pop()
        self._open.discard(id(value))
        return Container(tag, keys, children)

    def _key(self, key: Any) -> Any:
        if not is_key(key):
            raise Unsupported(f"{self._here()} has the key {key!r:.80}; keys are str or int of 64 bits")
        if type(key) is str:
            self._utf8(key, "key")
        return key

    def _utf8(self, text: str, what: str) -> bytes:
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise Unsupported(f"{self._here()} has a {what} that is no valid Unicode; store bytes instead") from error
        if what == "key" and len(data) > MAX_KEY:
            raise Unsupported(f"{self._here()} has a key of {len(data)} bytes; keys hold up to {MAX_KEY}")
        return data

    def _int(self, value: int) -> Any:
        if value.bit_length() > 8 * MAX_INT_SIZE:
            raise Unsupported(f"{self._here()} is an int of over {MAX_INT_SIZE} bytes; store its bytes instead")
        return int_node(value)

    def _text(self, value: str) -> Any:
        data = self._utf8(value, "text")
        return value if len(data) <= INLINE_TEXT else self._bytes(BytesSource(data), Tag.TEXT)

    def _other(self, value: Any) -> Any:
        scalar = scalar_node(value)
        if scalar is not None:
            return [Tag.SCALAR, *scalar]
        # Of a file that is imported, in no framework's memory; or inside of what an adapter took apart.
        if type(value) is PerRank:
            return Composed(per_rank.FRAMEWORK, per_rank.KIND, self.visit({self.rank: value.value}))
        known = value if type(value) in (Tensor, Composite) else self._known(value)
        if type(known) is Tensor:
            return self._tensor(known)
        if type(known) is Composite:
            return Composed(known.framework, known.kind, self.visit(known.parts))
        return self._unknown(value) if known is None else known

    def _known(self, value: Any) -> Tensor | Composite | Node | None:
        try:
            for adapter in self._adapters:
                tensor = adapter.tensor(value)
                if tensor is not None:
                    return tensor
                foreign = adapter.foreign(value)
                if foreign is not None:
                    return [Tag.FOREIGN, adapter.framework, *foreign]
        except CasError as error:
            raise type(error)(f"{self._here()} {error}") from error
        return None

    def _unknown(self, value: Any) -> Leaf:
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        if not self.allow_pickle:
            raise Unsupported(
                f"{self._here()} is a {name}; convert it to plain values, or pass allow_pickle=True to pickle it"
            )
        try:
            data = pickle.dumps(value, protocol=5)
        except Exception as error:  # whatever the object's own code raises
            raise Unsupported(f"{self._here()} is a {name} that cannot be pickled: {error}") from error
        return self._bytes(BytesSource(data), Tag.PICKLE)

    def _tensor(self, tensor: Tensor) -> Leaf:
        leaf = self._leaf(Leaf(tuple(self._trail), tensor.shards, tensor))
        if tensor.alias is None:
            return leaf
        first = self._aliases.setdefault(tensor.alias, leaf)
        if first is not leaf:
            if first.tie is None:
                first.tie, self._ties = self._ties, self._ties + 1
            leaf.tied_to, leaf.tie = first, first.tie
        return leaf

    def _bytes(self, source: Source, tag: Tag) -> Leaf:
        return self._leaf(Leaf.of_bytes(tuple(self._trail), source, tag))

    def _leaf(self, leaf: Leaf) -> Leaf:
        self.leaves.append(leaf)
        return leaf

    def _here(self) -> str:
        return f"state path {format_path(self._trail)}"


def tree_node(skeleton: Any, put: Put) -> Node:
    """The node of a skeleton whose leaves have their content; `put` takes the trees below it, children first."""
    if isinstance(skeleton, Container):
        nodes = [tree_node(child, put) for child in skeleton.children]
        entries = nodes if skeleton.keys is None else [list(pair) for pair in zip(skeleton.keys, nodes, strict=True)]
        return seal(skeleton.tag, entries, put)
    if isinstance(skeleton, Composed):
        return [Tag.COMPOSITE, skeleton.framework, skeleton.kind, tree_node(skeleton.parts, put)]
    return skeleton.node() if isinstance(skeleton, Leaf | Slot) else skeleton
