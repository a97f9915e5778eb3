"""From a commit's tree back to a nested state."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from . import frameworks, per_rank
from .arrays import scalar_value
from .block import Kind, ObjectId, object_id, short
from .dtypes import DTYPES
from .errors import CasError, Corrupt, Invalid, Unsupported
from .extent import Extent, extent_of
from .grid import Box
from .nodes import (
    KEYED_TAGS,
    LISTED_TAGS,
    MAX_DEPTH,
    MAX_ENTRIES,
    Content,
    LongEntry,
    Node,
    Tag,
    TensorEntry,
    int_of,
    long_of,
    pack,
    tensor_of,
)
from .objects import entries_of
from .paths import Path, Patterns, format_path
from .per_rank import PerRank
from .present import Lacking
from .reader import BlockReader, BlockUse, Objects
from .tensors import Adapter

MISSING: Any = object()
"""Stands for a part of the state that was not asked for, or a target that was not given."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Names what a block belongs to, once an error asks."""

    path: Path
    commit: ObjectId

    def __str__(self) -> str:
        return f"{format_path(self.path)} in commit {short(self.commit)}"


def extent_for(owner: Owner, content: Content, shape: tuple[int, ...], itemsize: int, objects: Objects) -> Extent:
    """As `extent_of`; where content is absent on purpose, the error names the owner."""
    try:
        return extent_of(content, shape, itemsize, objects)
    except Lacking as error:
        raise error.at(owner.path) from error


@dataclass(slots=True)
class _Container:
    """A container whose children may still be pending; `target` is what `into` gave for it."""

    tag: Tag
    keys: list[Any]
    children: list[Any]
    target: Any


@dataclass(slots=True)
class _Pending:
    """A leaf whose bytes are read with all others; `finish` then makes it what the caller gets."""

    finish: Callable[[], Any]
    done: Any = MISSING

    def value(self) -> Any:
        if self.done is MISSING:
            self.done = self.finish()
        return self.done


@dataclass(slots=True)
class Rank:
    """Which rank of a job loads: a value of which each has its own comes as that of `number`.

    Where there is none it is an error, or with `skip` left out. `lacking`, if not None, takes the paths that `into`
    has not, for other ranks to have; else that is an error.
    """

    number: int
    skip: bool = False
    lacking: list[Path] | None = None


class _Filled(NamedTuple):
    """Memory of `into` that is filled in place: addresses, and what goes there."""

    start: int
    stop: int
    content: Content
    box: Box
    path: Path


@dataclass(slots=True)
class Loader:
    """One load of one commit: `plan` walks the tree, `run` reads everything at once and assembles the state."""

    objects: Objects
    blocks: BlockReader
    commit: ObjectId
    only: Patterns | None = None
    device: Any = None
    allow_pickle: bool = False
    rank: Rank = field(default_factory=lambda: Rank(0))
    _skeleton: Any = None
    _entries: int = 0
    _uses: list[BlockUse] = field(default_factory=list)
    _filled: list[_Filled] = field(default_factory=list)
    _places: set[tuple[Any, ...]] = field(default_factory=set)
    _tied: dict[int, tuple[TensorEntry, _Pending]] = field(default_factory=dict)
    _ties: list[int | None] = field(default_factory=list)
    _composites: dict[ObjectId, _Pending] = field(default_factory=dict)

    def load(self, tree: ObjectId, into: Any = MISSING) -> Any:
        """The state under `tree`; tensors of `into`, a state of the same form, are filled in place."""
        self.plan(tree, into)
        return self.run()

    def plan(self, tree: ObjectId, into: Any = MISSING) -> None:
        """Find out what is to be read, and where it goes."""
        with self._naming_lack_of_memory():
            self._skeleton = self._plan(self.objects.tree(tree), (), into)
            if self._skeleton is MISSING and not self.rank.lacking:
                raise Invalid("the patterns in only= match nothing in this commit; see `cas show`")
            _check_apart(self._filled)

    def run(self) -> Any:
        """Read all that was planned."""
        with self._naming_lack_of_memory():
            self.blocks.fill(self._uses)
            return _assemble(self._skeleton)

    def values(self, node: Node, path: Path = ()) -> Any:
        """The value of one node of the commit; `path` is where it stands."""
        with self._naming_lack_of_memory():
            skeleton = self._plan(node, path, MISSING)
            self.blocks.fill(self._uses)
            return _assemble(skeleton)

    @contextlib.contextmanager
    def _naming_lack_of_memory(self) -> Iterator[None]:
        try:
            yield
        except MemoryError as error:
            text = f"commit {short(self.commit)} does not fit in memory; load parts with only=, or use store.view"
            raise CasError(text) from error

    # -- planning -----------------------------------------------------------------------------------------------

    def _plan(self, node: Node, path: Path, target: Any) -> Any:
        if type(node) is not list:
            return node if self._wanted(path) else MISSING
        if self.only is not None and not self.only.may_match_below(path):
            return MISSING
        held = self._entries_of(node, path)
        if held is not None:
            if len(path) >= MAX_DEPTH:
                raise Corrupt(f"commit {short(self.commit)} is nested deeper than {MAX_DEPTH} levels")
            if node[0] == Tag.COMPOSITE and node[1:3] == [per_rank.FRAMEWORK, per_rank.KIND]:
                return self._own(held[1], path, target)
            if node[0] == Tag.COMPOSITE:
                return self._composite(node, held[1], path)
            return self._container(*held, path, target)
        if not self._wanted(path):
            return MISSING
        try:
            return self._leaf(node, path, target)
        except Lacking as error:
            raise error.at(path) from error
        except CasError as error:
            raise type(error)(f"{Owner(path, self.commit)} {error}") from error

    def _entries_of(self, node: Node, path: Path) -> tuple[Tag, list[Node]] | None:
        try:
            return entries_of(node, self.objects.tree)
        except Lacking as error:
            raise error.at(path) from error
        except CasError as error:
            raise type(error)(f"{Owner(path, self.commit)}: {error}") from error

    def _wanted(self, path: Path) -> bool:
        return self.only is None or self.only.match(path)

    def _container(self, tag: Tag, entries: list[Node], path: Path, target: Any) -> Any:
        keys = [entry[0] for entry in entries] if tag in KEYED_TAGS else list(range(len(entries)))
        nodes = [entry[1] for entry in entries] if tag in KEYED_TAGS else entries
        if target is not MISSING:
            self._check_target(tag, keys, path, target)
        self._entries += len(nodes)
        if self._entries > MAX_ENTRIES:
            raise Corrupt(
                f"commit {short(self.commit)} has over {MAX_ENTRIES} entries: it was not written by this format"
            )
        children = []
        for key, node in zip(keys, nodes, strict=True):
            absent = target is MISSING or (tag in KEYED_TAGS and key not in target)
            if absent and target is not MISSING and self.rank.lacking is not None:
                if self.only is None or self.only.may_match_below((*path, key)):
                    self.rank.lacking.append((*path, key))
                children.append(MISSING)
                continue
            child = self._plan(node, (*path, key), MISSING if absent else target[key])
            if absent and target is not MISSING and child is not MISSING:
                raise Invalid(f"into= at {format_path(path)} lacks {key!r}, which only= asks for")
            children.append(child)
        if all(child is MISSING for child in children) and (children or not self._wanted(path)):
            return MISSING
        return _Container(tag, keys, children, target)

    def _check_target(self, tag: Tag, keys: list[Any], path: Path, target: Any) -> None:
        """`Invalid` unless `into` has here what the commit has; with `only` its keys may differ."""
        where = f"into= at {format_path(path)}"
        if tag in KEYED_TAGS:
            if not isinstance(target, dict):
                raise Invalid(f"{where} is a {type(target).__name__}, the commit has a dict")
            missing = [key for key in keys if key not in target]
            known = set(keys)
            extra = [key for key in target if key not in known]
            if ((missing and self.rank.lacking is None) or extra) and not self.only:
                lacks = f"lacks {missing[:5]} and " if self.rank.lacking is None else ""
                raise Invalid(f"{where} {lacks}has {extra[:5]} that the commit does not have")
        elif not isinstance(target, list | tuple) or type(target) is not LISTED_TAGS[tag] or len(target) != len(keys):
            kind = LISTED_TAGS[tag].__name__
            raise Invalid(f"{where} is not a {kind} of {len(keys)} items as in the commit")

    def _own(self, parts: list[Node], path: Path, target: Any) -> Any:
        """This rank's part of a value of which each has its own; `into` has it in a `PerRank`, or bare."""
        number = self.rank.number
        node = next((node for key, node in parts if key == number), MISSING)
        if node is not MISSING and type(target) is PerRank:
            inner = self._plan(node, path, target.value)
            return MISSING if inner is MISSING else _Pending(lambda: _refilled(target, inner))
        if node is not MISSING:
            return self._plan(node, path, target)
        if not self.rank.skip and self._wanted(path):
            raise Invalid(
                f"{Owner(path, self.commit)} has a value for each of {len(parts)} ranks and none for rank {number}; "
                'pass per_rank="skip" to leave it out'
            )
        return MISSING

    def _composite(self, node: Node, parts: list[Node], path: Path) -> Any:
        """A value of all its parts, or of none: to `only` it is one leaf. Like a value it replaces what `into` has."""
        if not self._wanted(path):
            return MISSING
        only, self.only = self.only, None
        before = len(self._ties)
        held = self._container(Tag.DICT, parts, path, MISSING)
        self.only = only
        pending = _Pending(partial(self._compose, node, held, path))
        ties = self._ties[before:]
        # Equal composites of which every tensor with bytes is tied were one value.
        one = ties and None not in ties
        return self._composites.setdefault(object_id(Kind.TREE, pack(node)), pending) if one else pending

    def _compose(self, node: Node, held: _Container, path: Path) -> Any:
        parts = _assemble(held)
        try:
            return frameworks.named(node[1]).compose(node[2], parts)
        except CasError as error:
            raise type(error)(f"{Owner(path, self.commit)} {error}") from error

    def _leaf(self, node: Node, path: Path, target: Any) -> Any:
        tag = Tag(node[0])
        if tag is Tag.TENSOR:
            return self._tensor(tensor_of(node), path, target)
        if tag in (Tag.TEXT, Tag.BYTES, Tag.PICKLE):
            return self._long(long_of(node), path)
        if tag is Tag.BIGINT:
            return int_of(node)
        if tag is Tag.SCALAR:
            return scalar_value(node[1], node[2])
        return frameworks.named(node[1]).value(node[2], node[3])

    def _long(self, entry: LongEntry, path: Path) -> _Pending:
        if entry.tag is Tag.PICKLE and not self.allow_pickle:
            raise Unsupported("is a pickled object; pass allow_pickle=True if you trust where the store came from")
        extent = extent_of(entry.content, (entry.nbytes,), 1, self.objects)
        data = bytearray(entry.nbytes)
        self._uses.extend(extent.uses(Box.whole(extent.shape), memoryview(data), Owner(path, self.commit)))
        return _Pending(lambda: _finish_long(entry.tag, data))

    def _tensor(self, entry: TensorEntry, path: Path, target: Any) -> _Pending:
        if entry.nbytes:
            self._ties.append(entry.tie)
        if entry.tie is not None and target is MISSING and entry.tie in self._tied:
            first, pending = self._tied[entry.tie]
            if first != entry:
                raise Corrupt("is tied to a tensor that differs; the commit was not written by this format")
            return pending
        dtype = DTYPES[entry.dtype]
        extent = extent_of(entry.content, entry.shape, dtype.itemsize, self.objects)
        adapter = frameworks.named(entry.framework)
        pending = self._tensor_into(entry, extent, adapter, path, target)
        if entry.tie is not None:
            self._tied[entry.tie] = (entry, pending)
        return pending

    def _tensor_into(self, entry: TensorEntry, extent: Extent, adapter: Adapter, path: Path, target: Any) -> _Pending:
        """Plan the reads; straight into `target` where its memory takes them."""
        dtype, owner = DTYPES[entry.dtype], Owner(path, self.commit)
        if target is MISSING:
            made, place = adapter.empty(dtype, entry.shape)
            self._uses.extend(extent.uses(Box.whole(entry.shape), place, owner))
            return _Pending(lambda: made if self.device is None else adapter.to_device(made, self.device))
        assigned: list[tuple[Any, Any]] = []
        for box, part in adapter.parts(target, dtype, entry.shape):
            held = adapter.host_bytes(part, dtype, box.shape)
            if held is None:
                fresh, held = adapter.empty(dtype, box.shape)
                assigned.append((part, fresh))
            elif len(held):
                start = int(np.frombuffer(held, np.uint8).ctypes.data)
                filled = _Filled(start, start + len(held), entry.content, box, path)
                if filled[:4] in self._places:  # tied: two threads must not write one memory
                    continue
                self._places.add(filled[:4])
                self._filled.append(filled)
            self._uses.extend(extent.uses(box, held, owner))
        return _Pending(lambda: _assigned(adapter, target, assigned))


def _check_apart(filled: list[_Filled]) -> None:
    """`Invalid` if tensors of `into` share memory that the commit fills with different bytes."""
    for one, other in pairwise(sorted(filled, key=lambda place: (place.start, place.stop))):
        if other.start < one.stop and one[:4] != other[:4]:
            raise Invalid(
                f"{format_path(one.path)} and {format_path(other.path)} share memory in into=, the commit has "
                "different tensors there; load without into= or untie them"
            )


def _assigned(adapter: Adapter, target: Any, parts: list[tuple[Any, Any]]) -> Any:
    for part, fresh in parts:
        adapter.assign(part, fresh)
    return target


def _refilled(target: PerRank, inner: Any) -> PerRank:
    target.value = _assemble(inner)
    return target


def _finish_long(tag: Tag, data: bytearray) -> Any:
    if tag is Tag.BYTES:
        return bytes(data)
    if tag is Tag.PICKLE:
        return pickle.loads(data)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Corrupt(f"a text of the commit is not UTF-8: {error}") from error


def _assemble(skeleton: Any) -> Any:
    """Real containers from a plan whose reads are done. What was not asked for is left out; in a list it is None."""
    if isinstance(skeleton, _Pending):
        return skeleton.value()
    if not isinstance(skeleton, _Container):
        return skeleton
    values = [_assemble(child) for child in skeleton.children]
    if skeleton.tag in KEYED_TAGS:
        pairs = [(key, value) for key, value in zip(skeleton.keys, values, strict=True) if value is not MISSING]
        found = KEYED_TAGS[skeleton.tag]() if skeleton.target is MISSING else skeleton.target
        for key, value in pairs:
            found[key] = value
        return found
    kept = [None if value is MISSING else value for value in values]
    if skeleton.target is not MISSING and skeleton.tag is Tag.LIST:
        skeleton.target[:] = [old if new is MISSING else new for old, new in zip(skeleton.target, values, strict=True)]
        return skeleton.target
    return LISTED_TAGS[skeleton.tag](kept)
