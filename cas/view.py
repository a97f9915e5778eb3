"""Lazy reading: a commit as nested read-only containers that read only what is asked for."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import frameworks
from .block import ObjectId
from .dtypes import DTYPES
from .errors import Invalid
from .grid import Box
from .loader import Loader, Owner, Rank, extent_for
from .nodes import KEYED_TAGS, Node, Tag, TensorEntry, tensor_of
from .objects import entries_of
from .paths import Key, Path, format_path
from .present import Lacking
from .reader import BlockReader, Objects


@dataclass(frozen=True, slots=True)
class _Source:
    """What every part of one view reads from."""

    objects: Objects
    blocks: BlockReader
    commit: ObjectId
    rank: int


class TensorView:
    """A tensor that is not read yet. Slicing it or calling `load` gives a tensor of the framework it came from."""

    def __init__(self, source: _Source, entry: TensorEntry, path: Path) -> None:
        self._source = source
        self._entry = entry
        self._path = path
        self.shape = entry.shape
        self.dtype = entry.dtype
        self.nbytes = entry.nbytes

    def __repr__(self) -> str:
        return f"<{format_path(self._path)}: {self.dtype} {list(self.shape)}>"

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a 0-dim tensor has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[at] for at in range(len(self)))

    def load(self) -> Any:
        """The whole tensor."""
        return self[...]

    def __getitem__(self, index: Any) -> Any:
        """Part of the tensor, by integers, slices of step 1 and `...`; reads only the blocks that hold it."""
        box, dropped = _box(index, self.shape, self._path)
        dtype = DTYPES[self.dtype]
        owner = Owner(self._path, self._source.commit)
        extent = extent_for(owner, self._entry.content, self.shape, dtype.itemsize, self._source.objects)
        tensor, place = frameworks.named(self._entry.framework).empty(dtype, box.shape)
        if box.size:
            self._source.blocks.fill(extent.uses(box, place, owner))
        return tensor[tuple(0 if axis in dropped else slice(None) for axis in range(len(box.shape)))]


def _box(index: Any, shape: tuple[int, ...], path: Path) -> tuple[Box, set[int]]:
    """The box that an index selects, and the axes that an integer drops from the result."""
    items = list(index) if isinstance(index, tuple) else [index]
    if items.count(...) > 1 or len(items) - items.count(...) > len(shape):
        raise Invalid(f"{format_path(path)} has {len(shape)} dimensions; give at most as many indexes")
    at = items.index(...) if ... in items else len(items)
    items[at : at + 1] = [slice(None)] * (len(shape) - len(items) + (at < len(items)))
    start, size, dropped = [], [], set()
    for axis, (item, length) in enumerate(zip(items, shape, strict=True)):
        if isinstance(item, slice):
            first, stop, step = item.indices(length)
            if step != 1:
                raise Invalid(f"{format_path(path)} is read with slices of step 1; slice the result further")
            start.append(min(first, length))
            size.append(max(0, stop - first))
        elif hasattr(item, "__index__") and not isinstance(item, bool) and -length <= operator.index(item) < length:
            start.append(operator.index(item) % length)
            size.append(1)
            dropped.add(axis)
        else:
            raise Invalid(f"{format_path(path)} has no index {item!r} along dimension {axis} of length {length}")
    return Box(tuple(start), tuple(size)), dropped


class View(Mapping[Key, Any]):
    """A dict of the state. Values are views, `TensorView`s, or plain values, which are read at once."""

    def __init__(self, source: _Source, entries: list[Node], path: Path) -> None:
        self._source = source
        self._entries = {entry[0]: entry[1] for entry in entries}
        self._path = path

    def __getitem__(self, key: Key) -> Any:
        if key not in self._entries:
            near = ", ".join(map(str, list(self._entries)[:8]))
            raise KeyError(f"{format_path(self._path)} has no key {key!r}; it has {near}")
        return _look(self._source, self._entries[key], (*self._path, key))

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{format_path(self._path)}: {len(self)} entries>"


class CompositeView(View):
    """A value that is stored by its parts, such as a sparse tensor: a dict of them. `load` gives the value itself."""

    def __init__(self, source: _Source, entries: list[Node], path: Path, node: Node) -> None:
        super().__init__(source, entries, path)
        self._node = node

    def load(self) -> Any:
        """The whole value."""
        return _value(self._source, self._node, self._path)


class SequenceView(Sequence[Any]):
    """A list or tuple of the state."""

    def __init__(self, source: _Source, entries: list[Node], path: Path) -> None:
        self._source = source
        self._entries = entries
        self._path = path

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return _look(self._source, self._entries[at], (*self._path, at))

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{format_path(self._path)}: {len(self)} items>"


def _look(source: _Source, node: Node, path: Path) -> Any:
    try:
        held = entries_of(node, source.objects.tree)
    except Lacking as error:
        raise error.at(path) from error
    if held is not None:
        tag, entries = held
        if node[0] == Tag.COMPOSITE:
            return CompositeView(source, entries, path, node)
        return (View if tag in KEYED_TAGS else SequenceView)(source, entries, path)
    if type(node) is list and node[0] == Tag.TENSOR:
        return TensorView(source, tensor_of(node), path)
    return _value(source, node, path)


def _value(source: _Source, node: Node, path: Path) -> Any:
    return Loader(source.objects, source.blocks, source.commit, rank=Rank(source.rank)).values(node, path)


def view_of(commit: ObjectId, tree: ObjectId, objects: Objects, blocks: BlockReader, rank: int = 0) -> Any:
    """A rank's view of a commit's state: a `View`, a `SequenceView`, or for a state of one leaf that leaf."""
    return _look(_Source(objects, blocks, commit, rank), objects.tree(tree), ())
