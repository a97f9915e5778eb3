"""Choosing, for every live object, one row that it decodes from, and so the packs that are needed. Pure.

A row with a base decodes only through a row of that base with a shorter chain, so the shortest chain of each object
is taken: then the base's choice is always shorter. Among equals the row in the pack of which most is live wins, so
that what is copied out of a mostly dead pack does not keep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .block import ID_SIZE, Kind
from .pack import Table

Names = np.ndarray[Any, np.dtype[np.bytes_]]
"""Names of objects as `S32`, sorted, each once. All 32 bytes count: numpy compares zeros at the end as padding."""
Numbers = np.ndarray[Any, np.dtype[np.int64]]
"""Positions of rows."""
NAME = np.dtype(f"S{ID_SIZE}")
MAX_CHAIN = 8


def names_of(data: bytes) -> Names:
    """Sorted names from consecutive ids."""
    return np.unique(np.frombuffer(data, NAME))


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of some packs as columns; `pack` is a number into the sequence of tables that they came from."""

    id: Names
    kind: np.ndarray[Any, np.dtype[np.uint8]]
    chain: np.ndarray[Any, np.dtype[np.uint8]]
    base: Names
    stored: np.ndarray[Any, np.dtype[np.uint32]]
    pack: Numbers

    @classmethod
    def of(cls, tables: Sequence[Table]) -> Rows:
        def column(name: str, dtype: Any) -> Any:
            parts = [np.ascontiguousarray(table.rows[name]).view(dtype) for table in tables]
            return np.concatenate(parts) if parts else np.empty(0, dtype)

        numbers = np.repeat(np.arange(len(tables)), [len(table.rows) for table in tables])
        return cls(column("id", NAME), column("kind", np.uint8), column("chain", np.uint8), column("base", NAME),
                   column("stored", np.uint32), numbers)  # fmt: skip

    def __getitem__(self, which: Any) -> Rows:
        return Rows(*(getattr(self, name)[which] for name in self.__slots__))

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True, slots=True)
class Picked:
    """`rows` are the numbers of the rows taken; `lost` the live objects that have none."""

    rows: Numbers
    lost: dict[Kind, Names]


def pick(rows: Rows, live: dict[Kind, Names], sizes: Sequence[int]) -> Picked:
    """One decodable row for each live object and for each base that these lead to. `sizes` of the packs in bytes."""
    best = _Best(rows, _worth(rows, live, sizes))
    taken, lost = [], {}
    for kind, names in live.items():
        found, missing = best.of(kind, names)
        lost[kind] = missing
        taken.append(found)
        for _ in range(MAX_CHAIN):
            chained = found[rows.chain[found] > 0]
            if not len(chained):
                break
            found, _ = best.of(kind, np.unique(rows.base[chained]))
            taken.append(found)
    return Picked(np.unique(np.concatenate(taken)) if taken else np.empty(0, np.int64), lost)


def _worth(rows: Rows, live: dict[Kind, Names], sizes: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of each pack the part that is live in some row."""
    held = np.zeros(len(sizes))
    for kind, names in live.items():
        mine = np.flatnonzero(rows.kind == kind)
        alive = mine[is_in(rows.id[mine], names)]
        np.add.at(held, rows.pack[alive], rows.stored[alive])
    return held / np.maximum(np.asarray(sizes, np.float64), 1)


class _Best:
    """The best decodable row of each object, found by a binary search among sorted names."""

    def __init__(self, rows: Rows, worth: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        self._rows = rows
        self._by_kind: dict[int, tuple[Names, Numbers]] = {}
        order = np.lexsort((-worth[rows.pack], rows.chain))
        for kind in Kind:
            mine = order[rows.kind[order] == kind]
            self._by_kind[kind] = self._firsts(self._decodable(mine))

    def _decodable(self, mine: Numbers) -> Numbers:
        """Those of these rows, ordered by chain, whose chain of bases is there."""
        chains = self._rows.chain[mine]
        good: Numbers = mine[chains == 0]
        for length in range(1, int(chains.max(initial=0)) + 1):
            level = mine[chains == length]
            good = np.concatenate([good, level[is_in(self._rows.base[level], np.unique(self._rows.id[good]))]])
        return good

    def _firsts(self, good: Numbers) -> tuple[Names, Numbers]:
        """Each name once, sorted, with its first row in the order of `good`."""
        names, first = np.unique(self._rows.id[good], return_index=True)
        return names, good[first]

    def of(self, kind: Kind, wanted: Names) -> tuple[Numbers, Names]:
        """The best rows of these objects, and the objects that have none."""
        names, rows = self._by_kind[kind]
        if not len(names):
            return np.empty(0, np.int64), wanted
        at = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
        there = names[at] == wanted
        return rows[at[there]], wanted[~there]


def is_in(some: Names, names: Names) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of `some`, in any order, are among the sorted `names`."""
    if not len(names):
        return np.zeros(len(some), np.bool_)
    order = np.argsort(some)
    at = np.minimum(np.searchsorted(names, some[order]), len(names) - 1)
    found = np.empty(len(some), np.bool_)
    found[order] = names[at] == some[order]
    return found
