"""A survey of a store that may be damaged: it goes on where a collection must stop."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import envelope, pack
from .backend import Backend, FileInfo
from .block import MAX_CHAIN, Kind, ObjectId
from .catalog import Catalog
from .crew import mapped
from .errors import CasError, NotFound
from .log import Log, Record
from .needs import Needed, Needs
from .pack import ROW, Location, PackId, Row, Table
from .picking import NAME, Numbers, Picked, Rows, distinct, is_in, pick
from .reach import Edge
from .reader import Objects
from .renewing import leans_on
from .roots import Roots
from .survey import Survey, Surveyor

Mask = np.ndarray[Any, np.dtype[np.bool_]]
_SIZED = np.dtype("S36")
_UNKNOWN = MAX_CHAIN + 1


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
        named = [(info, pack.id_of(info.name)) for info in listed]
        wanted = [(info, name) for info, name in named if name is not None and name not in self.catalog.condemned]
        found = mapped(self._table_or_error, [name for _, name in wanted], self.backend.parallel)
        for (info, name), table in zip(wanted, found, strict=True):
            if isinstance(table, Table):
                self.tables.append(table)
                infos.append(info)
            elif not isinstance(table, NotFound):  # else deleted since it was listed
                self.damaged[name] = table
        return infos, Rows.of(self.tables)

    def _table_or_error(self, name: PackId) -> Table | Exception:
        file = pack.name_of(name)
        try:
            envelope.check_header(self.backend.read(file, 0, envelope.SIZE), envelope.FileKind.PACK, file)
            return pack.read_table(self.backend, name)
        except CasError as error:
            return error
        except OSError as error:
            if self.backend.is_remote:  # the network or a server fails, which is no damage
                raise
            return error


@dataclass(frozen=True, slots=True)
class Links:
    """Which rows can be bases of which. A base is known by id and raw size: a delta is as long as its base.

    Of each row `own` is the number of the base that it is a copy of, and `base` that of the base it changes, if any.
    """

    own: Numbers
    base: Numbers
    chain: np.ndarray[Any, np.dtype[np.uint8]]
    count: int

    @classmethod
    def of(cls, tables: Sequence[Table], chain: np.ndarray[Any, np.dtype[np.uint8]]) -> Links:
        if not chain.any():
            return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), chain, 0)
        bases = np.concatenate([_sized(table, "base") for table in tables])
        names = distinct(bases[chain > 0])
        own = np.concatenate([_number(_sized(table, "id"), names) for table in tables])
        own[np.concatenate([table.rows["kind"] for table in tables]) != Kind.BLOCK] = len(names)
        return cls(own, _number(bases, names), chain, len(names))

    def hanging(self, good: Mask) -> Mask:
        """The deltas that have no way down to a block that is stored whole, if only `good` rows are there."""
        found = np.zeros(len(self.chain), np.bool_)
        if not self.count:
            return found
        shortest = np.full(self.count + 1, _UNKNOWN)  # the chain of each base; the last stands for what is none
        shortest[self.own[good & (self.chain == 0)]] = 0
        shortest[-1] = _UNKNOWN
        for length in range(1, MAX_CHAIN + 1):
            level = np.flatnonzero(self.chain == length)
            decodes = shortest[self.base[level]] < length
            found[level] = ~decodes
            fresh = self.own[level[decodes & good[level]]]
            shortest[fresh] = np.minimum(shortest[fresh], length)
            shortest[-1] = _UNKNOWN
        return found


def _sized(table: Table, field: str) -> np.ndarray[Any, np.dtype[np.bytes_]]:
    joined = np.empty(len(table.rows), [("name", "V32"), ("raw", "<u4")])
    joined["name"], joined["raw"] = table.rows[field], table.rows["raw"]
    return joined.view(_SIZED)


def _number(some: np.ndarray[Any, np.dtype[np.bytes_]], names: np.ndarray[Any, np.dtype[np.bytes_]]) -> Numbers:
    """Where they stand among the sorted `names`; the length of these for what is none of them."""
    at = np.searchsorted(names, some)
    at[names[np.minimum(at, len(names) - 1)] != some] = len(names)
    return at.astype(np.int64)


_Way = tuple[Edge, int]
"""An object, and the chain below which a row of it is looked for."""


@dataclass(frozen=True, slots=True)
class Lacks:
    """For each object that does not decode the bases with which it would, and so on down to those that lack."""

    ways: dict[_Way, set[_Way]] = field(default_factory=dict)

    @property
    def needed(self) -> set[Edge]:
        """The objects, and all bases with which they would decode, but for what is there."""
        return {edge for edge, _ in self.ways}

    @property
    def roots(self) -> set[Edge]:
        """Those of the needed for which no base would do: they must come from elsewhere."""
        return {edge for (edge, _), below in self.ways.items() if not below}

    def root_of(self, edge: Edge) -> Edge:
        """An object for want of which this one does not decode: itself, or a base."""
        way = edge, _UNKNOWN
        while self.ways.get(way):
            way = min(self.ways[way])
        return way[0]


@dataclass(frozen=True, slots=True)
class Inspection:
    """`tables` are those of the survey's packs. `failed` are structured objects that cannot be read, `damaged` packs
    whose header or table is bad: the survey lacks these. `has_undo` is False where a record of the log that undo covers
    cannot be read. `surveyor` made it, and `reading` is what that reads with."""

    surveyor: Surveyor
    reading: Reading
    survey: Survey
    objects: Objects
    tables: Sequence[Table]
    links: Links
    failed: dict[Edge, Exception]
    damaged: dict[PackId, Exception]
    has_undo: bool

    def renewed(self, root: Record, given_up: Set[PackId]) -> Inspection | None:
        """As of a newer root, under which these packs may be given up if they may be now; None where they may not, or
        only a new inspection can tell."""
        held = [np.empty(0, "V32"), *(t.rows["id"] for t in self.tables if t.pack in given_up)]
        names = distinct(np.ascontiguousarray(np.concatenate(held)).view(NAME))
        leans = leans_on(self.surveyor, self.survey, root, names)
        if leans or self.reading.failed.keys() != self.failed.keys():
            return None
        return replace(self, survey=replace(self.survey, root=root))

    def numbers(self, places: Iterable[Location]) -> Numbers:
        """Where the rows stand in `survey.rows`."""
        at = {table.pack: number for number, table in enumerate(self.tables)}
        found = []
        for place in places:
            number = at[place.pack]
            offsets = self.tables[number].rows["offset"]
            found.append(self.survey.packs[number].first + int(np.searchsorted(offsets, place.row.offset)))
        return np.array(found, np.int64)

    def _places(self, numbers: Numbers) -> list[Location]:
        found = []
        for number, at in zip(numbers.tolist(), self.survey.rows.pack[numbers].tolist(), strict=True):
            table = self.tables[at]
            row = Row._make(ROW.unpack(table.rows[number - self.survey.packs[at].first].tobytes()))
            found.append(Location(table.pack, row))
        return found

    def rows_of(self, edges: Iterable[Edge]) -> list[Location]:
        """The rows of these objects."""
        return [place for _, place in self._numbered(edges)]

    def _numbered(self, edges: Iterable[Edge]) -> list[tuple[int, Location]]:
        wanted = {(int(kind), name) for kind, name in edges}
        if not wanted:
            return []
        names = distinct(np.array([name for _, name in wanted], NAME))
        numbers = np.flatnonzero(_number(self.survey.rows.id, names) < len(names))
        some = zip(numbers.tolist(), self._places(numbers), strict=True)
        return [(number, place) for number, place in some if (place.row.kind, place.row.id) in wanted]

    def _all_but(self, bad: Collection[Location], without: Collection[PackId] = ()) -> Mask:
        good = ~np.isin(self.survey.rows.pack, [n for n, table in enumerate(self.tables) if table.pack in without])
        good[self.numbers(bad)] = False
        return good

    def hanging(self) -> set[Location]:
        """Deltas that nothing can be said of, as no row is there that they decode through. If nothing needs them that
        is no damage: their bases may have gone before them."""
        return set(self._places(np.flatnonzero(self.links.hanging(self._all_but(())))))

    def at_fault(self, bad: Collection[Location]) -> set[Location]:
        """Those of the rows which do not verify that are bad themselves, and not for want of a base."""
        hangs = self.links.hanging(self._all_but(bad))[self.numbers(bad)].tolist()
        return {place for place, is_hanging in zip(bad, hangs, strict=True) if not is_hanging}

    def below(self, places: Iterable[Location]) -> list[Location]:
        """The rows of the bases of these rows, of their bases, and so on."""
        found: list[Location] = []
        seen: set[Edge] = set()
        todo = _bases(places)
        while todo:
            rows = self.rows_of(todo)
            found += rows
            seen |= todo
            todo = _bases(rows) - seen
        return found

    def lacks(self, lost: Iterable[Edge], bad: Collection[Location], without: Collection[PackId] = ()) -> Lacks:
        """Why no good row gives these objects; or none outside the packs `without`, though one of those within does."""
        usable = self._all_but(bad)
        if without:
            usable &= ~self.links.hanging(usable) & self._all_but((), without)
        found = Lacks()
        todo = {(edge, _UNKNOWN) for edge in lost}
        while todo:
            rows: dict[Edge, list[Row]] = {}
            for number, place in self._numbered({edge for edge, _ in todo}):
                if usable[number]:
                    rows.setdefault((Kind(place.row.kind), place.row.id), []).append(place.row)
            level: set[_Way] = set()
            for edge, below in todo:
                lower = [row for row in rows.get(edge, ()) if row.chain < below]
                if all(row.chain for row in lower):  # else it is there, and of another length than what led here
                    found.ways[edge, below] = {((Kind.BLOCK, ObjectId(row.base)), row.chain) for row in lower}
                    level |= found.ways[edge, below] or {(edge, _UNKNOWN)}  # for itself it may decode, or lack others
            todo = level - found.ways.keys()
        return found

    def pick(self, bad: Collection[Location], without: Collection[PackId] = ()) -> Picked:
        """As the survey picked, from rows that are not `bad`, not in the packs `without`, and decode through such."""
        good = self._all_but(bad, without)
        good &= ~self.links.hanging(good)
        if good.all():
            return self.survey.picked
        found = pick(
            self.survey.rows.only(good), self.survey.marks.live(), [held.info.size for held in self.survey.packs]
        )
        return Picked(np.flatnonzero(good)[found.rows], found.lost)

    def stand_ins(self, bad: Collection[Location], without: Collection[PackId]) -> list[Location]:
        """The rows picked for what has another row in the packs `without`."""
        rows = self.survey.rows
        leaving = distinct(rows.id[~self._all_but((), without)])
        picked = self.pick(bad, without).rows
        return self._places(picked[is_in(rows.id[picked], leaving)])


def _bases(places: Iterable[Location]) -> set[Edge]:
    return {(Kind.BLOCK, ObjectId(place.row.base)) for place in places if place.row.chain}


def lost_of(picked: Picked) -> list[Edge]:
    """The objects for which no row was picked."""
    return [(kind, ObjectId(name)) for kind, names in picked.lost.items() for name in names.view("V32").tolist()]


def inspect(backend: Backend, catalog: Catalog, log: Log, roots: Roots, since: float, reading: Reading) -> Inspection:
    """Look at everything that refs lead to, and undo back to `since` (Unix seconds)."""
    found = _inspect_once(backend, catalog, log, roots, since, reading)
    while found.survey.lost:
        again = _inspect_once(backend, catalog, log, roots, since, reading)  # a pack may have come since the listing
        is_sure = set(again.survey.lost) <= set(found.survey.lost)
        if is_sure and again.survey.root.epoch == found.survey.root.epoch:
            return again
        found = again
    return found


def _inspect_once(
    backend: Backend, catalog: Catalog, log: Log, roots: Roots, since: float, reading: Reading
) -> Inspection:
    reading.failed.clear()
    inspector = _Inspector(backend, catalog, log, roots, reading)
    survey = inspector.survey(since)
    tables, failed = inspector.tables, dict(reading.failed)
    links = Links.of(tables, survey.rows.chain)
    has_undo = not inspector.unread
    return Inspection(inspector, reading, survey, reading.objects, tables, links, failed, inspector.damaged, has_undo)
