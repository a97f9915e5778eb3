"""From a delta to the rows that it decodes through.

A row with a base decodes through a row of that base with a smaller chain number, so every step leads closer to a
block that is stored whole, and what pretends to lead in a circle leads nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .block import ObjectId
from .pack import Location, Row

Find = Callable[[Iterable[ObjectId]], dict[ObjectId, list[Location]]]
Chain = tuple[Location, ...]
"""The row of an object, that of its base, and so on to one without a base."""


def chains_of(names: Iterable[ObjectId], find: Find) -> dict[ObjectId, Chain]:
    """For each of these objects that decodes, the chain with the smallest numbers."""
    wanted = set(names)
    chains: dict[ObjectId, Chain] = {}
    for place in sorted(_rows_below(wanted, find), key=lambda place: place.row.chain):
        row = place.row
        below = chains.get(ObjectId(row.base), ()) if row.chain else ()
        if row.id not in chains and (not row.chain or (below and _is_base(below[0].row, row))):
            chains[row.id] = (place, *below)
    return {name: chains[name] for name in wanted & chains.keys()}


def _is_base(base: Row, row: Row) -> bool:
    return base.chain < row.chain and base.kind == row.kind and base.raw == row.raw


def _rows_below(names: set[ObjectId], find: Find) -> list[Location]:
    """The rows of these objects, and of the bases on all levels."""
    found: list[Location] = []
    seen: set[ObjectId] = set()
    while names:
        fresh = [place for rows in find(names).values() for place in rows]
        found += fresh
        seen |= names
        names = {ObjectId(place.row.base) for place in fresh if place.row.chain} - seen
    return found
