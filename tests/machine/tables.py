"""What packs hold, row by row, and what of it decodes: said anew, without what is under test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple, TypeVar

from cas.block import ObjectId
from cas.pack import Row

Name = TypeVar("Name")


class Table(NamedTuple):
    """Of one pack the ids of all rows, of those without a base, and of each other one its chain, id and base."""

    held: frozenset[ObjectId]
    whole: frozenset[ObjectId]
    chained: tuple[tuple[int, ObjectId, ObjectId], ...]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Table:
        every = list(rows)
        return cls(
            frozenset(row.id for row in every),
            frozenset(row.id for row in every if not row.chain),
            tuple((row.chain, row.id, ObjectId(row.base)) for row in every if row.chain),
        )


def decodable(tables: Iterable[Table]) -> Set[ObjectId]:
    """What these packs hold whole, or as a change of a base of which some row with a smaller chain number decodes."""
    some = list(tables)
    chains = dict.fromkeys(frozenset[ObjectId]().union(*(table.whole for table in some)), 0)
    for chain, name, base in sorted(row for table in some for row in table.chained):
        if chains.get(base, chain) < chain:
            chains.setdefault(name, chain)
    return chains.keys()


def orphans(tables: Mapping[Name, Table], live: Set[ObjectId]) -> set[Name]:
    """The packs that hold nothing live and no base of it."""
    bases: dict[ObjectId, set[ObjectId]] = {}
    for _, name, base in (row for table in tables.values() for row in table.chained):
        bases.setdefault(name, set()).add(base)
    needed, todo = set(live), [name for name in live if name in bases]
    while todo:
        fresh = bases.get(todo.pop(), set()) - needed
        needed |= fresh
        todo += fresh
    return {name for name, table in tables.items() if table.held.isdisjoint(needed)}
