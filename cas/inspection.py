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
from .log import Log, Record
from .needs import Needed, Needs
from .pack import Location, PackId, Table
from .picking import NAME, Numbers, Picked, Rows, pick
from .reach import Edge
from .reader import Objects
from .roots import Roots
from .survey import Survey, Surveyor


class Reading(Needs):
    """What objects name, by reading every one once; what cannot be read names nothing and stands in `failed`."""

    def __init__(self, objects: Objects) -> None:
        super().__init__(objects, Path(os.devnull))
        self.objects = objects
        self.failed: dict[Edge, Exception] = {}

    def of(self, edge: Edge) -> Needed:
        try:
            return super().of(edge)
        except (CasError, OSError) as error:
            self.failed[edge] = error
            return Needed((), np.empty(0, NAME))


@dataclass(frozen=True, slots=True)
class _Inspector(Surveyor):
    """`tables` are what a survey has read; `damaged` are the packs, `unread` the records of the log, that it could not
    read."""

    tables: list[Table] = field(default_factory=list)
    damaged: dict[PackId, Exception] = field(default_factory=dict)
    unread: list[CasError] = field(default_factory=list)

    def _covered(self, root: Record, since: float) -> tuple[int, set[ObjectId]]:
        try:
            return Surveyor._covered(self, root, since)
        except CasError as error:
            self.unread.append(error)
            return root.seq, set(root.refs.values())

    def _read_tables(self, listed: Iterable[FileInfo]) -> tuple[list[FileInfo], Rows]:
        infos = []
        for info in listed:
            name = pack.id_of(info.name)
            if name is None or name in self.catalog.condemned:
                continue
            try:
                self.tables.append(self._read_table(name, info.name))
                infos.append(info)
            except NotFound:
                pass  # deleted since it was listed
            except (CasError, OSError) as error:
                self.damaged[name] = error
        return infos, Rows.of(self.tables)

    def _read_table(self, name: PackId, file: str) -> Table:
        envelope.check_header(self.backend.read(file, 0, envelope.SIZE), envelope.FileKind.PACK, file)
        return pack.read_table(self.backend, name)


@dataclass(frozen=True, slots=True)
class Inspection:
    """`tables` are those of the survey's packs. `failed` are structured objects that cannot be read, `damaged` packs
    whose header or table is bad: the survey lacks these. `has_undo` is False where a record of the log that undo covers
    cannot be read."""

    survey: Survey
    objects: Objects
    tables: Sequence[Table]
    failed: dict[Edge, Exception]
    damaged: dict[PackId, Exception]
    has_undo: bool

    def numbers(self, places: Iterable[Location]) -> Numbers:
        """Where the rows stand in `survey.rows`."""
        at = {table.pack: number for number, table in enumerate(self.tables)}
        found = []
        for place in places:
            number = at[place.pack]
            offsets = self.tables[number].rows["offset"]
            found.append(self.survey.packs[number].first + int(np.searchsorted(offsets, place.row.offset)))
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
        some = Rows(*(getattr(rows, name)[good] for name in rows.__slots__))
        found = pick(some, self.survey.marks.live(), [held.info.size for held in self.survey.packs])
        return Picked(np.flatnonzero(good)[found.rows], found.lost)


def lost_of(picked: Picked) -> list[Edge]:
    """The objects for which no row was picked."""
    return [(kind, ObjectId(name)) for kind, names in picked.lost.items() for name in names.view("V32").tolist()]


def inspect(backend: Backend, catalog: Catalog, log: Log, roots: Roots, since: float, reading: Reading) -> Inspection:
    """Look at everything that refs lead to, and undo back to `since` (Unix seconds)."""
    found = _inspect_once(backend, catalog, log, roots, since, reading)
    while found.survey.lost:
        again = _inspect_once(backend, catalog, log, roots, since, reading)  # a pack may have come since the listing
        if again.survey.root.seq == found.survey.root.seq:
            return again
        found = again
    return found


def _inspect_once(
    backend: Backend, catalog: Catalog, log: Log, roots: Roots, since: float, reading: Reading
) -> Inspection:
    reading.failed.clear()
    inspector = _Inspector(backend, catalog, log, roots, reading)
    survey = inspector.survey(since)
    failed = dict(reading.failed)
    return Inspection(survey, reading.objects, inspector.tables, failed, inspector.damaged, not inspector.unread)
