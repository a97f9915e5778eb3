"""What a collection finds: which packs are needed, and what could go. Steps G0 and G1 of the protocol.

Packs are listed before the root is read. A pack that appears later belongs to a writer whose record comes later too, so
it is not among those that this collection may condemn.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np

from . import lists, pack
from .backend import Backend, FileInfo
from .block import MAX_CHAIN, Kind, ObjectId, short
from .catalog import Catalog, CondemnedToo
from .chains import chains_of
from .crew import mapped
from .errors import CasError, Corrupt, NotFound
from .lists import ListId
from .log import Log, Record
from .marking import Marks
from .needs import Needs
from .pack import ROW, Location, PackId, Row, Table
from .picking import Names, Picked, Rows, distinct, is_in, pick
from .roots import Absent, Roots

_TOLERANCE = 100
"""Records in a row that are looked through for one that is late enough."""
_log = logging.getLogger("cas")


@dataclass(frozen=True, slots=True)
class Pack:
    """A listed pack whose table is whole: the number of its `first` row, the `stored` bytes of all its rows, and of
    those that are needed, `live`."""

    name: PackId
    info: FileInfo
    first: int
    stored: int
    live: int

    @property
    def is_mostly_dead(self) -> bool:
        """At most half of what is stored in it is live. Its table does not count: a copy would have one too."""
        return 0 < 2 * self.live <= self.stored


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found under `root`, condemned packs left out of `packs`.

    `floor` is the oldest record whose refs were followed for undo; `held_by_undo` are the stored bytes that nothing
    else leads to. `lists` are files that the root does not name; `condemned`, all files that may be deleted.
    """

    root: Record
    floor: int
    marks: Marks
    packs: Sequence[Pack]
    rows: Rows
    picked: Picked
    held_by_undo: int
    lists: Sequence[FileInfo]
    condemned: Sequence[FileInfo]

    @property
    def lost(self) -> list[tuple[Kind, ObjectId]]:
        """Live objects that no pack outside the condemned ones holds."""
        return [(kind, ObjectId(name)) for kind, held in self.picked.lost.items() for name in held.view("V32").tolist()]


@dataclass(frozen=True, slots=True)
class Surveyor:
    """Looks at one store."""

    backend: Backend
    catalog: Catalog
    log: Log
    roots: Roots
    needs: Needs

    def survey(self, since: float) -> Survey:
        """Mark from all refs, and from those of every root that was current at `since` (Unix seconds) or later."""
        listed, listed_lists = self.backend.list(pack.FOLDER), self.backend.list(lists.FOLDER)
        root = self.roots.current()
        floor, covered = self._covered(root, since)
        marks = Marks(self.needs, self.roots.absent(root))
        marks.mark(root.refs.values())
        now = marks.live() if covered - set(root.refs.values()) else None
        marks.mark(covered)
        infos, rows = self._read_tables(listed)
        picked = pick(rows, marks.live(), [info.size for info in infos])
        named_lists = files_of(root)
        return Survey(
            root=root,
            floor=floor,
            marks=marks,
            packs=_packs(infos, rows, picked),
            rows=rows,
            picked=picked,
            held_by_undo=0 if now is None else _stored_but(now, rows, picked),
            lists=[info for info in listed_lists if lists.id_of(info.name) not in named_lists | self.catalog.condemned],
            condemned=self._condemned(listed, listed_lists, root),
        )

    def settled(self, since: float) -> Survey:
        """As `survey`. Something is lost only if it still is once the packs are listed again under the same root."""
        before: int | None = None  # the root under which something was missing
        while True:
            seq = self.log.head().seq
            try:
                found = self.survey(since)
            except NotFound:
                if self.is_root(seq):
                    raise
                continue  # a collector deleted it, once a newer root had given it up
            if not found.lost or (found.root.seq == before and self.is_root(before)):
                return found
            before = found.root.seq

    def is_root(self, seq: int) -> bool:
        return self.log.head().seq == seq

    def places(self, survey: Survey, packs: Sequence[Pack]) -> Iterator[Location]:
        """Where the needed objects of these packs lie."""
        for held in packs:
            rows = pack.read_table(self.backend, held.name).rows
            first, end = held.first, held.first + len(rows)
            picked = survey.picked.rows
            for number in picked[np.searchsorted(picked, first) : np.searchsorted(picked, end)].tolist():
                yield Location(held.name, Row._make(ROW.unpack(rows[number - first].tobytes())))

    def kept_copies(self, survey: Survey, packs: Sequence[Pack]) -> Iterator[Location]:
        """The needed copies, elsewhere, of what lies in these packs too."""
        rows = survey.rows
        firsts = {int(rows.pack[held.first]) for held in packs if held.stored}
        others = distinct(rows.id[np.isin(rows.pack, list(firsts))])
        doubled = survey.picked.rows[is_in(rows.id[survey.picked.rows], others)]
        names = {(int(rows.kind[n]), rows.id[n : n + 1].tobytes()) for n in doubled.tolist()}
        homes = {int(rows.pack[number]) for number in doubled.tolist()} - firsts
        for place in self.places(survey, [survey.packs[number] for number in sorted(homes)]):
            if (place.row.kind, place.row.id) in names:
                yield place

    def reached(self, root: Record, absent: Absent, since: float) -> Marks:
        """What all refs lead to, and those of every root since then, if commits lacked just this."""
        marks = Marks(self.needs, absent)
        marks.mark(self._covered(root, since)[1])
        return marks

    def _covered(self, root: Record, since: float) -> tuple[int, set[ObjectId]]:
        """The oldest root that undo may go back to, which was current when that time began, and what all since name.

        A few records of a clock that was behind do not end them.
        """
        oldest, found = root.seq, set(root.refs.values())
        record = root
        before: set[ObjectId] = set()
        while record.seq > root.floor and record.seq > oldest - _TOLERANCE:
            is_late = record.update.time >= since * 1e6
            record = self.log.read(record.seq - 1)
            before.update(record.refs.values())
            if is_late:
                oldest = record.seq
                found |= before
                before.clear()
        return oldest, found

    def _read_tables(self, listed: Iterable[FileInfo]) -> tuple[list[FileInfo], Rows]:
        """The packs that are whole and not condemned, and all their rows."""
        infos: list[FileInfo] = []
        named = [(info, pack.id_of(info.name)) for info in listed]
        wanted = [(info, name) for info, name in named if name is not None and name not in self.catalog.condemned]

        def tables() -> Iterator[Table]:
            found = mapped(self._table, [name for _, name in wanted], self.backend.parallel)
            for (info, _), table in zip(wanted, found, strict=True):
                if table is not None:
                    infos.append(info)
                    yield table

        return infos, Rows.of(tables())

    def _table(self, name: PackId) -> Table | None:
        try:
            return pack.read_table(self.backend, name)
        except NotFound:  # deleted since by another collector
            return None
        except CasError as error:  # what is needed from it is missed later; what is not, harms nobody
            _log.warning("left out of the collection: %s", error)
            return None

    def condemned_files(self, root: Record) -> list[FileInfo]:
        """Condemned packs and lists that exist. A list that the root names stays, whatever another list says."""
        return self._condemned(self.backend.list(pack.FOLDER), self.backend.list(lists.FOLDER), root)

    def _condemned(self, packs: Iterable[FileInfo], others: Iterable[FileInfo], root: Record) -> list[FileInfo]:
        condemned = self.catalog.condemned
        found = [info for info in packs if pack.id_of(info.name) in condemned]
        return found + [info for info in others if lists.id_of(info.name) in condemned - files_of(root)]

    def condemned_places(self, wanted: Sequence[tuple[Kind, ObjectId]]) -> list[Location]:
        """Where these objects lie in condemned packs, or as deltas of what does; `Corrupt` if one is nowhere."""
        lookup = CondemnedToo(self.backend, self.catalog)
        chains = chains_of((name for _, name in wanted), lookup.locate)
        # What leads through no condemned pack was not found to decode: the index knows rows that are gone.
        held = {n: c for n, c in chains.items() if any(place.pack in self.catalog.condemned for place in c)}
        missing = [edge for edge in wanted if edge[1] not in held]
        if missing:
            raise Corrupt(f"{named(missing)} in no pack that can be read, so nothing was deleted; run `cas fsck`")
        return [held[name][0] for _, name in wanted]


def named(some: Sequence[tuple[Kind, ObjectId]]) -> str:
    """The first of these objects, and how many there are, as the start of a sentence."""
    kind, name = some[0]
    more = f" and {len(some) - 1} more objects are" if len(some) > 1 else " is"
    return f"{kind.name.lower()} {short(name)}{more}"


def needed_of(survey: Survey, packs: Set[PackId]) -> set[PackId]:
    """Those of `packs` without which something live would not decode any more."""
    needed: set[PackId] = set()
    while len(lost := _lost_without(survey, packs - needed)):
        rows, found = survey.rows, survey.picked.rows
        for _ in range(MAX_CHAIN + 1):
            mine = found[is_in(rows.id[found], lost)]
            needed |= {survey.packs[number].name for number in rows.pack[mine].tolist()} & packs
            lost = distinct(rows.base[mine[rows.chain[mine] > 0]])
    return needed


def _lost_without(survey: Survey, packs: Set[PackId]) -> Names:
    """The live objects that do not decode from rows outside of these packs."""
    left_out = [number for number, held in enumerate(survey.packs) if held.name in packs]
    some = survey.rows.only(~np.isin(survey.rows.pack, left_out))
    found = pick(some, survey.marks.live(), [held.info.size for held in survey.packs])
    return distinct(np.concatenate(list(found.lost.values())))


def files_of(root: Record) -> set[ListId]:
    """The lists that a root names."""
    return {name for _, name in root.condemned} | set(root.absent)


def _packs(infos: Sequence[FileInfo], rows: Rows, picked: Picked) -> list[Pack]:
    count = len(infos)
    stored = np.bincount(rows.pack, rows.stored, count).astype(np.int64).tolist()
    live = np.bincount(rows.pack[picked.rows], rows.stored[picked.rows], count).astype(np.int64).tolist()
    firsts = np.searchsorted(rows.pack, np.arange(count)).tolist()
    named = ((pack.id_of(info.name), info) for info in infos)
    return [
        Pack(name, info, *numbers) for (name, info), *numbers in zip(named, firsts, stored, live, strict=True) if name
    ]


def _stored_but(names: dict[Kind, Names], rows: Rows, picked: Picked) -> int:
    """The stored bytes of what was picked, without these objects."""
    rest = 0
    for kind, held in names.items():
        mine = picked.rows[rows.kind[picked.rows] == kind]
        rest += int(rows.stored[mine[~is_in(rows.id[mine], held)]].sum(dtype=np.int64))
    return rest
