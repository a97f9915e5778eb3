"""Choosing, for every live object, one row that it decodes from, and so the packs that are needed. Pure.

A row with a base decodes only through a row of that base with a shorter chain, so the shortest chain of each object
is taken: then the base's choice is always shorter. Among equals the row in the pack of which most is live wins, so
that what is copied out of a mostly dead pack does not keep it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .block import ID_SIZE, MAX_CHAIN, Kind
from .pack import Table

Names = np.ndarray[Any, np.dtype[np.bytes_]]
"""Names of objects as `S32`. All 32 bytes count: numpy compares zeros at the end as padding."""
Numbers = np.ndarray[Any, np.dtype[np.int64]]
"""Positions of rows."""
NAME = np.dtype(f"S{ID_SIZE}")


def distinct(names: Names) -> Names:
    """Sorted, each once. `numpy.unique` hashes texts, which takes ten times as long."""
    found = np.sort(names)
    return found[_starts(found)]


def _starts(ordered: np.ndarray[Any, Any]) -> Numbers:
    """Where runs of equal values begin."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else _NONE


_NONE: Numbers = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of some packs as columns; `pack` is a number into the sequence of tables that they came from."""

    id: Names
    kind: np.ndarray[Any, np.dtype[np.uint8]]
    codec: np.ndarray[Any, np.dtype[np.uint8]]
    chain: np.ndarray[Any, np.dtype[np.uint8]]
    base: Names
    stored: np.ndarray[Any, np.dtype[np.uint32]]
    pack: Numbers

    @classmethod
    def of(cls, tables: Iterable[Table]) -> Rows:
        """Tables may be made while they are iterated over: none is kept."""
        parts: list[Rows] = []
        for number, table in enumerate(tables):
            rows = table.rows
            names = np.ascontiguousarray(rows["id"]).view(NAME)
            base = np.ascontiguousarray(rows["base"]).view(NAME) if rows["chain"].any() else np.zeros(len(rows), NAME)
            columns = (
                rows["kind"].copy(),
                rows["codec"].copy(),
                rows["chain"].copy(),
                base,
                rows["stored"].astype(np.uint32),
            )
            parts.append(cls(names, *columns, np.full(len(rows), number)))
        if not parts:
            return cls(
                *(np.empty(0, dtype) for dtype in (NAME, np.uint8, np.uint8, np.uint8, NAME, np.uint32, np.int64))
            )
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))

    def only(self, good: np.ndarray[Any, np.dtype[np.bool_]]) -> Rows:
        """Those of the rows that are `good`."""
        return Rows(*(getattr(self, name)[good] for name in self.__slots__))

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True, slots=True)
class Picked:
    """`rows` are the numbers of the rows taken, rising; `lost` the live objects that have none."""

    rows: Numbers
    lost: dict[Kind, Names]


def pick(rows: Rows, live: dict[Kind, Names], sizes: Sequence[int]) -> Picked:
    """One decodable row for each live object and for each base that these lead to. `sizes` of the packs in bytes.

    `live` holds sorted names, each once.
    """
    groups = {kind: _grouped(rows, kind) for kind in Kind}
    worth = _worth(rows, live, groups, sizes)
    taken, lost = [_NONE], {}
    for kind, names in live.items():
        best = groups[kind].best(rows, worth)
        at, lost[kind] = groups[kind].find(names)
        found = best[at]
        taken.append(found)
        for _ in range(MAX_CHAIN):
            chained = found[rows.chain[found] > 0]
            if not len(chained):
                break
            at, _ = groups[kind].find(distinct(rows.base[chained]))
            found = best[at]
            taken.append(found)
    found = np.sort(np.concatenate(taken))  # numpy.unique hashes, which takes longer
    return Picked(found[_starts(found)], lost)


@dataclass(frozen=True, slots=True)
class _Groups:
    """The decodable rows of one kind, ordered by name: the rows of `names[n]` are those from `starts[n]` on."""

    rows: Numbers
    starts: Numbers
    names: Names

    @property
    def sizes(self) -> Numbers:
        return np.diff(self.starts, append=len(self.rows))

    def find(self, wanted: Names) -> tuple[Numbers, Names]:
        """The groups of these sorted names, and the names that have none."""
        if not len(self.names):
            return _NONE, wanted
        at = np.minimum(np.searchsorted(self.names, wanted), len(self.names) - 1)
        there = self.names[at] == wanted
        return at[there], wanted[~there]

    def best(self, rows: Rows, worth: np.ndarray[Any, np.dtype[np.float64]]) -> Numbers:
        """The best row of each group."""
        found, sizes = self.rows[self.starts], self.sizes
        if len(found) == len(self.rows):
            return found
        several = np.repeat(sizes > 1, sizes)
        group, some = np.repeat(np.arange(len(sizes)), sizes)[several], self.rows[several]
        order = np.lexsort((-worth[rows.pack[some]], rows.chain[some], group))
        ordered = group[order]
        first = np.flatnonzero(np.diff(ordered, prepend=-1))
        found[ordered[first]] = some[order][first]
        return found


def _grouped(rows: Rows, kind: Kind) -> _Groups:
    mine = _decodable(rows, np.flatnonzero(rows.kind == kind))
    ordered = mine[np.argsort(rows.id[mine])]
    names = rows.id[ordered]
    starts = _starts(names)
    return _Groups(ordered, starts, names[starts])


def _decodable(rows: Rows, mine: Numbers) -> Numbers:
    """Those of these rows whose chain of bases is there."""
    chains = rows.chain[mine]
    good: Numbers = mine[chains == 0]
    for length in range(1, int(chains.max(initial=0)) + 1):
        level = mine[chains == length]
        good = np.concatenate([good, level[is_in(rows.base[level], distinct(rows.id[good]))]])
    return good


def _worth(
    rows: Rows, live: dict[Kind, Names], groups: dict[Kind, _Groups], sizes: Sequence[int]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of each pack the part that is live in some row."""
    held = np.zeros(len(sizes))
    for kind, names in live.items():
        is_live = np.zeros(len(groups[kind].names), np.bool_)
        is_live[groups[kind].find(names)[0]] = True
        alive = groups[kind].rows[np.repeat(is_live, groups[kind].sizes)]
        held += np.bincount(rows.pack[alive], rows.stored[alive], len(sizes))
    return held / np.maximum(np.asarray(sizes, np.float64), 1)


def is_in(some: Names, names: Names) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of `some`, in any order, are among the sorted `names`."""
    if not len(names):
        return np.zeros(len(some), np.bool_)
    order = np.argsort(some)
    at = np.minimum(np.searchsorted(names, some[order]), len(names) - 1)
    found = np.empty(len(some), np.bool_)
    found[order] = names[at] == some[order]
    return found
