"""The blocks of another commit that hold the same part of the same tensor."""

from __future__ import annotations

import logging
import math
from itertools import pairwise
from typing import Any

from .block import ObjectId, short
from .dtypes import DTYPES, DType
from .errors import CasError
from .extent import extent_of
from .grid import Box, Shape
from .leaves import tensors_of
from .nodes import TensorEntry
from .paths import Path
from .reader import Objects

_log = logging.getLogger("cas")
Place = tuple[Any, ...]


def places(box: Box, edges: list[int], shape: Shape, itemsize: int) -> list[Place]:
    """Where the blocks of a shard lie in their tensor, said so that every cutting that has one of them says the same.

    Whole rows are a range of the tensor's bytes, wherever their shard and the tensor end.
    """
    if box.shape[1:] == shape[1:]:
        first = box.start[0] * math.prod(shape[1:]) * itemsize if shape else 0
        return [(first + start, first + stop) for start, stop in pairwise(edges)]
    return [(shape, box.start, box.shape, start, stop) for start, stop in pairwise(edges)]


class Counterparts:
    """Those in one commit. Its trees are read when they are first needed. Not thread-safe."""

    def __init__(self, objects: Objects, commit: ObjectId) -> None:
        self._objects = objects
        self._commit = commit
        self._entries: dict[Path, TensorEntry] | None = None

    def of(self, path: Path, dtype: DType, shape: Shape, box: Box, edges: list[int]) -> list[ObjectId | None]:
        """For each block of a shard of the tensor at `path` its counterpart, None where there is none.

        A commit that cannot be read has none: whoever asks can do without.
        """
        there = self._there(path, dtype, shape)
        return [there.get(place) for place in places(box, edges, shape, dtype.itemsize)]

    def at(self, path: Path, dtype: DType, shape: Shape, place: Place) -> ObjectId | None:
        """The counterpart of the block at one place."""
        return self._there(path, dtype, shape).get(place)

    def _there(self, path: Path, dtype: DType, shape: Shape) -> dict[Place, ObjectId]:
        try:
            return self._blocks(path, dtype, shape)
        except CasError as error:
            _log.info("nothing is stored as a change of commit %s: %s", short(self._commit), error)
            self._entries = {}
            return {}

    def _blocks(self, path: Path, dtype: DType, shape: Shape) -> dict[Place, ObjectId]:
        """The blocks of the tensor at `path`, if its rows are alike."""
        if self._entries is None:
            self._entries = {leaf.path: leaf.entry for leaf in tensors_of(self._commit, self._objects)}
        entry = self._entries.get(path)
        if entry is None or DTYPES[entry.dtype] != dtype or entry.shape[1:] != shape[1:]:
            return {}
        return blocks_of(entry, self._objects)


def blocks_of(entry: TensorEntry, objects: Objects) -> dict[Place, ObjectId]:
    """The blocks of a tensor by place."""
    itemsize = DTYPES[entry.dtype].itemsize
    found: dict[Place, ObjectId] = {}
    for shard in extent_of(entry.content, entry.shape, itemsize, objects).shards:
        found.update(zip(places(shard.box, shard.edges, entry.shape, itemsize), shard.ids, strict=True))
    return found
