"""Repairing a store, never in place: what is good or can be had elsewhere is written anew, then bad packs are given up.

A bad pack is one with a row that does not verify, or whose header or table does not. Of what is reachable and lies
in no good pack, each object is taken from any copy that verifies: another row, what a damaged table still tells, or
another store. Then the bad packs are condemned through the fence of garbage collection, exactly on the root that was
inspected, and the next collection deletes them. A pack in which an object may still be that was found nowhere stays,
so that nothing is given up while there is hope. Killed anywhere, it leaves packs that the next one finds good.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .backend import Backend
from .block import Kind
from .catalog import Catalog
from .fence import condemn
from .findings import counted
from .inspection import Inspection, lost_of
from .pack import Location, PackId
from .reach import Edge
from .reader import BlockReader
from .roots import Roots
from .rowcheck import RowCheck
from .salvage import Copy, copies_in, rows_in_damaged, salvage


@dataclass(frozen=True, slots=True)
class Source:
    """Another store, from which objects are taken."""

    backend: Backend
    catalog: Catalog


@dataclass(slots=True)
class Repaired:
    """What a repair did: objects that have a good copy again, packs given up, and objects that were found nowhere."""

    objects: set[Edge] = field(default_factory=set)
    packs: int = 0
    lost: set[Edge] = field(default_factory=set)

    def __str__(self) -> str:
        of_packs = f" of {counted(self.packs, 'pack')}" if self.packs else ""
        return f"repaired {counted(len(self.objects), 'object')}{of_packs}"


@dataclass(slots=True)
class Repairer:
    """Repairs one store. `inspect` looks at it anew, and `state` is where known bad rows stand."""

    backend: Backend
    catalog: Catalog
    roots: Roots
    blocks: BlockReader
    state: Path
    inspect: Callable[[], Inspection]
    source: Source | None

    def repair(self) -> Repaired | None:
        """All that can be; None where what undo leads to is not known, so that nothing may be given up."""
        done = Repaired()
        while True:
            found = self.inspect()
            if not found.has_undo:
                return None
            rows = RowCheck(self.state, found.tables, found.objects, self.blocks)
            rows.recheck()
            rows.add(found.rows_of(found.failed))
            if self._step(found, rows, done):
                return done

    def _step(self, found: Inspection, rows: RowCheck, done: Repaired) -> bool:
        """One go; False if the store must be looked at again."""
        wanted = set(lost_of(found.pick(rows.bad)))
        saved = self._salvage(wanted, found.damaged)
        done.objects |= saved
        if any(kind is not Kind.BLOCK for kind, _ in saved):
            return False  # what these name could not be seen so far
        done.lost = wanted - saved
        hopeful = {place.pack for place in found.rows_of(done.lost)} | (set(found.damaged) if done.lost else set())
        given_up = ({place.pack for place in rows.bad} | found.damaged.keys()) - hopeful
        leaving = set(lost_of(found.pick(rows.bad, given_up))) - wanted
        moved = self._salvage(leaving, ())
        if moved != leaving:  # rows that looked good
            rows.add(found.rows_of(leaving - moved))
            return False
        if not given_up and not done.objects:
            return True
        done.objects |= {(Kind(place.row.kind), place.row.id) for place in rows.bad if place.pack in given_up}
        done.packs = len(given_up)
        return self._publish(found, given_up, f"fsck {done}")

    def _publish(self, found: Inspection, given_up: set[PackId], why: str) -> bool:
        survey = found.survey
        if given_up:
            return condemn(self.backend, self.roots, survey.root, survey.floor, given_up, why)
        return self.roots.publish(survey.root.successor(why))

    def _salvage(self, wanted: Collection[Edge], damaged: Iterable[PackId]) -> set[Edge]:
        if not wanted:
            return set()
        names = {name for _, name in wanted}
        copies = copies_in(self.backend, self.catalog, names)
        for pack in damaged:
            for edge, row in rows_in_damaged(self.backend, pack, set(wanted)):
                copies.setdefault(edge, []).append(Copy(self.backend, Location(pack, row)))
        if self.source is not None:
            for edge, places in copies_in(self.source.backend, self.source.catalog, names).items():
                copies.setdefault(edge, []).extend(places)
        return salvage(wanted, lambda edge: copies.get(edge, ()), self.backend, self.catalog)
