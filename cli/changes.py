"""Which tensors changed from commit to commit, told from the names of blocks alone: no content is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

import cas
from cas.dtypes import DTYPES
from cas.extent import Extent, extent_of
from cas.leaves import TensorLeaf
from cas.nodes import TensorEntry
from cas.paths import Path
from cas.reader import Objects

from .grouping import Row, group

Tensors = dict[Path, TensorEntry]


@dataclass(frozen=True, slots=True)
class Changes:
    """`nbytes` and `new` have a row for each of `rows` and a column for each of `commits`, oldest first.

    `nbytes` are the bytes of a row's tensors in a commit, 0 where it has none of them; `new` are those in blocks
    that the tensor does not have in the commit before.
    """

    commits: list[cas.Commit]
    rows: list[Row]
    nbytes: NDArray[np.float64]
    new: NDArray[np.float64]


def changes(store: cas.Store, history: Sequence[cas.Commit], limit: int) -> Changes:
    """What each of two or more commits, oldest first, changed; at most `limit` rows. States must be there."""
    numbers: dict[Path, int] = {}
    columns = []
    before = _tensors(store, history[0])
    for one, other in pairwise(history):
        after = before if one.tree == other.tree else _tensors(store, other)
        columns.append(_column(before, after, numbers, store.leaves(other.id).objects))
        before = after
    paths = [*before, *(path for path in numbers if path not in before)]  # as they stand in the newest state
    return _grouped(list(history[1:]), paths, [numbers[path] for path in paths], columns, limit)


@dataclass(frozen=True, slots=True)
class _Column:
    """The tensors of one commit: their numbers, their bytes, and how many of these are new."""

    tensors: NDArray[np.int64]
    nbytes: NDArray[np.float64]
    new: NDArray[np.float64]


def _tensors(store: cas.Store, commit: cas.Commit) -> Tensors:
    return {leaf.path: leaf.entry for leaf in store.leaves(commit.id) if isinstance(leaf, TensorLeaf)}


def _column(before: Tensors, after: Tensors, numbers: dict[Path, int], objects: Objects) -> _Column:
    tensors = [numbers.setdefault(path, len(numbers)) for path in after]
    new = [_new(entry, before.get(path), objects) for path, entry in after.items()]
    nbytes = [entry.nbytes for entry in after.values()]
    return _Column(np.array(tensors, np.int64), np.array(nbytes, np.float64), np.array(new, np.float64))


def _new(entry: TensorEntry, before: TensorEntry | None, objects: Objects) -> int:
    if before is None:
        return entry.nbytes
    if before.content == entry.content:
        return 0
    known = {name for shard in _extent(before, objects).shards for name in shard.ids}
    return sum(
        stop - start
        for shard in _extent(entry, objects).shards
        for name, (start, stop) in zip(shard.ids, pairwise(shard.edges), strict=True)
        if name not in known
    )


def _extent(entry: TensorEntry, objects: Objects) -> Extent:
    return extent_of(entry.content, entry.shape, DTYPES[entry.dtype].itemsize, objects)


def _grouped(
    commits: list[cas.Commit], paths: list[Path], order: list[int], columns: list[_Column], limit: int
) -> Changes:
    weights = np.zeros(len(paths))
    for column in columns:
        np.maximum.at(weights, column.tensors, column.nbytes)
    rows = group(paths, [int(weight) for weight in weights[order]], limit) if paths else []
    row_of = np.zeros(len(paths), np.int64)
    for number, row in enumerate(rows):
        row_of[[order[member] for member in row.members]] = number
    sums = [
        [np.bincount(row_of[c.tensors], weights=values, minlength=len(rows)) for values in (c.nbytes, c.new)]
        for c in columns
    ]
    nbytes, new = np.array(sums).transpose(1, 2, 0)
    return Changes(commits, rows, nbytes, new)
