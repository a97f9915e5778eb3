"""A survey of a store that may be damaged: it goes on where a collection must stop."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import envelope, pack
from .backend import Backend, FileInfo
from .block import ObjectId
from .catalog import Catalog
from .errors import CasError, NotFound
from .log import Log
from .needs import Needed, Needs
from .pack import Location, PackId, Table
from .picking import NAME, Numbers, Picked, pick
from .reach import Edge
from .reader import Objects
from .roots import Roots
from .survey import Survey, Surveyor


class _Reading(Needs):
    """What objects name, by reading every one; what cannot be read names nothing and stands in `failed`."""

    def __init__(self, objects: Objects) -> None:
        super().__init__(objects, Path(os.devnull))
        self.failed: dict[Edge, Exception] = {}

    def of(self, edge: Edge) -> Needed:
        try:
            return super().of(edge)
        except (CasError, OSError) as error:
            self.failed[edge] = error
            return Needed((), np.empty(0, NAME))


@dataclass(frozen=True, slots=True)
class _Inspector(Surveyor):
    damaged: dict[PackId, Exception] = field(default_factory=dict)

    def _packs(self, listed: Iterable[FileInfo]) -> tuple[list[tuple[Table, FileInfo]], list[FileInfo]]:
        self.damaged.clear()
        good, condemned = [], []
        for info in listed:
            name = pack.id_of(info.name)
            if self._is_condemned(name):
                condemned.append(info)
            elif name is not None:
                try:
                    envelope.check_header(
                        self.backend.read(info.name, 0, envelope.SIZE), envelope.FileKind.PACK, info.name
                    )
                    good.append((pack.read_table(self.backend, name), info))
                except NotFound:
                    pass  # deleted since it was listed
                except (CasError, OSError) as error:
                    self.damaged[name] = error
        return good, condemned


@dataclass(frozen=True, slots=True)
class Inspection:
    """`failed` are structured objects that cannot be read, `damaged` packs whose header or table is bad: the survey
    lacks these. `has_undo` is False where a record of the log that undo covers cannot be read."""

    survey: Survey
    objects: Objects
    failed: dict[Edge, Exception]
    damaged: dict[PackId, Exception]
    has_undo: bool

    @property
    def tables(self) -> Sequence[Table]:
        return [held.table for held in self.survey.packs]

    def numbers(self, places: Iterable[Location]) -> Numbers:
        """Where the rows stand in `survey.rows`."""
        at = {table.pack: number for number, table in enumerate(self.tables)}
        firsts = np.searchsorted(self.survey.rows.pack, np.arange(len(at)))
        found = []
        for place in places:
            number = at[place.pack]
            offsets = self.tables[number].rows["offset"]
            found.append(int(firsts[number]) + int(np.searchsorted(offsets, place.row.offset)))
        return np.array(found, np.int64)

    def rows_of(self, edges: Iterable[Edge]) -> list[Location]:
        """The rows of these objects."""
        wanted = {(int(kind), name) for kind, name in edges}
        if not wanted:
            return []
        return [Location(table.pack, row) for table in self.tables for row in table if (row.kind, row.id) in wanted]

    def pick(self, bad: Collection[Location], without: Collection[PackId] = ()) -> Picked:
        """As the survey picked, from rows that are not `bad` and not in the packs `without`."""
        rows = self.survey.rows
        if not bad and not without:
            return self.survey.picked
        left_out = [number for number, table in enumerate(self.tables) if table.pack in without]
        good = ~np.isin(rows.pack, left_out)
        good[self.numbers(bad)] = False
        sizes = [held.info.size for held in self.survey.packs]
        found = pick(rows[good], self.survey.marks.live(), sizes)
        return Picked(np.flatnonzero(good)[found.rows], found.lost)


def lost_of(picked: Picked) -> list[Edge]:
    """The objects for which no row was picked."""
    return [(kind, ObjectId(name)) for kind, names in picked.lost.items() for name in names.view("V32").tolist()]


def inspect(backend: Backend, catalog: Catalog, log: Log, roots: Roots, since: float) -> Inspection:
    """Look at everything that refs lead to, and undo back to `since` (Unix seconds). Structured objects are read."""
    objects = Objects(backend, catalog)
    needs = _Reading(objects)
    inspector = _Inspector(backend, catalog, log, roots, needs)
    has_undo = True
    try:
        survey = inspector.survey(since)
    except CasError:  # a record of the log: the root itself was read before
        has_undo = False
        survey = inspector.survey(float("inf"))
    return Inspection(survey, objects, needs.failed, inspector.damaged, has_undo)
