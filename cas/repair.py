"""Repairing a store, never in place: what is good or can be had elsewhere is written anew, then bad packs are given up.

A bad pack is one with a row that does not verify, or whose header or table does not. Of what is reachable and lies
in no good pack, each object is taken from any copy that verifies: another row, what a damaged table still tells, or
another store. Then the bad packs are condemned through the fence of garbage collection, on the root that was inspected
or on a newer one that leads to nothing else in them, and the next collection deletes them. A pack in which an object
may still be that was found nowhere stays, so that nothing is given up while there is hope. Killed anywhere, it leaves
packs that the next one finds good.

A delta that cannot be read for want of its base is not bad: the base is looked for first, and with it all deltas of it
are good again. Only what then still is lost is looked for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
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
from .salvage import Source, recover
from .survey import Survey


@dataclass(slots=True)
class Repaired:
    """What a repair did: objects that have a good copy again, packs given up, and of those objects that were `sought`
    the ones that were found nowhere."""

    objects: set[Edge] = field(default_factory=set)
    packs: int = 0
    sought: set[Edge] = field(default_factory=set)
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
            rows = RowCheck(self.state, found.tables, found.objects, self.blocks, found.hanging())
            rows.recheck()
            rows.add(found.rows_of(found.failed.keys() | done.sought))
            rows.add(found.below(rows.bad))
            if self._step(found, rows, done):
                return done

    def _step(self, found: Inspection, rows: RowCheck, done: Repaired) -> bool:
        """One go; False if the store must be looked at again."""
        bad = found.at_fault(rows.bad)
        lost = set(lost_of(found.pick(bad)))
        done.sought |= lost
        lacks = found.lacks(lost, bad)
        needed, roots = lacks.needed, lacks.roots
        saved = self._salvage(roots, found.damaged) or self._salvage(needed - roots, found.damaged)
        done.objects |= saved
        if any(kind is not Kind.BLOCK for kind, _ in saved):
            return False  # what these name could not be seen so far
        if saved and saved != needed:
            return False  # what is left may decode through them
        done.lost = lost - saved
        given_up = ({place.pack for place in bad} | found.damaged.keys()) - self._hopeful(found, done.lost)
        if not self._move_out(found, rows, bad, lost, given_up):
            return False
        if not given_up and not done.objects:
            return True
        done.objects |= {(Kind(place.row.kind), place.row.id) for place in bad if place.pack in given_up}
        done.packs = len(given_up)
        return self._publish(found, given_up, f"fsck {done}")

    def _move_out(
        self, found: Inspection, rows: RowCheck, bad: Set[Location], lost: Set[Edge], given_up: Set[PackId]
    ) -> bool:
        """Write anew what could not be had without these packs; whether nothing more is in the way of giving them up.

        What looked good and stands in for a row of theirs, or was to be moved, may prove bad.
        """
        stand_ins = found.stand_ins(bad, given_up)
        rows.add(stand_ins)
        if not rows.bad.keys().isdisjoint(stand_ins):
            return False
        leaving = set(lost_of(found.pick(bad, given_up))) - lost
        wanted = found.lacks(leaving, bad, given_up).roots or leaving
        moved = self._salvage(wanted, ())
        rows.add(found.rows_of(wanted - moved))
        return moved == wanted and leaving <= moved  # else what hung on what was moved is there at the next look

    @staticmethod
    def _hopeful(found: Inspection, lost: Set[Edge]) -> Set[PackId]:
        """Packs in which a lost object may still be, or something that it decodes through."""
        if not lost:
            return set()
        places = found.rows_of(lost)
        return {place.pack for place in (*places, *found.below(places))} | found.damaged.keys()

    def _publish(self, found: Inspection, given_up: set[PackId], why: str) -> bool:
        """False if the store must be looked at again, for what came since leans on these packs."""
        current: Inspection | None = found
        while current is not None and not self._replace(current.survey, given_up, why):
            current = current.renewed(self.roots.current(), given_up)
        return current is not None

    def _replace(self, survey: Survey, given_up: set[PackId], why: str) -> bool:
        if given_up:
            return condemn(self.backend, self.roots, survey.root, survey.floor, given_up, why)
        return self.roots.publish(survey.root.successor(why))

    def _salvage(self, wanted: Set[Edge], damaged: Iterable[PackId]) -> set[Edge]:
        return recover(wanted, Source(self.backend, self.catalog), damaged, self.source)
