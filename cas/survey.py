"""What a collection finds: which packs are needed, and what could go. Steps G0 and G1 of the protocol.

Packs are listed before the root is read. A pack that appears later belongs to a writer whose record comes later too, so
it is not among those that this collection may condemn.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from . import lists, pack
from .backend import Backend, FileInfo
from .block import Kind, ObjectId, short
from .catalog import Catalog
from .errors import CasError, Corrupt
from .log import Log, Record
from .marking import Marks
from .needs import Needs
from .pack import ROW, Location, Row, Table
from .picking import Picked, Rows, pick
from .roots import Absent, Roots

_log = logging.getLogger("cas")


@dataclass(frozen=True, slots=True)
class Pack:
    """A listed pack whose table is whole. `live`: stored bytes of those of its rows that are needed."""

    table: Table
    info: FileInfo
    live: int

    @property
    def is_mostly_dead(self) -> bool:
        """At most half of what is stored in it is live. Its table does not count: a copy would have one too."""
        return 0 < 2 * self.live <= int(self.table.rows["stored"].sum(dtype=np.int64))


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

    def picked_in(self, packs: Iterable[Pack]) -> Iterator[Location]:
        """The needed rows of these packs."""
        wanted = {held.table.pack for held in packs}
        firsts = np.searchsorted(self.rows.pack, np.arange(len(self.packs)))
        for number in self.picked.rows.tolist():
            at = int(self.rows.pack[number])
            table = self.packs[at].table
            if table.pack in wanted:
                record = table.rows[number - int(firsts[at])].tobytes()
                yield Location(table.pack, Row._make(ROW.unpack(record)))


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
        listed, found_lists = self.backend.list(pack.FOLDER), self.backend.list(lists.FOLDER)
        root = self.roots.current()
        covered = self._covered(root, since)
        packs, condemned = self._packs(listed)
        marks = Marks(self.needs, self.roots.absent(root))
        marks.mark(root.refs.values())
        now = marks.live()
        marks.mark(commit for record in covered for commit in record.refs.values())
        live = marks.live()
        rows = Rows.of([table for table, _ in packs])
        sizes = [info.size for _, info in packs]
        picked = pick(rows, live, sizes)
        current = pick(rows, now, sizes) if len(covered) > 1 else picked
        held = np.zeros(len(packs), np.int64)
        np.add.at(held, rows.pack[picked.rows], rows.stored[picked.rows])
        named = {name for _, name in root.condemned} | set(root.absent)
        unnamed = [info for info in found_lists if lists.id_of(info.name) not in named]
        return Survey(
            root=root,
            floor=covered[-1].seq,
            marks=marks,
            packs=[Pack(table, info, int(live)) for (table, info), live in zip(packs, held, strict=True)],
            rows=rows,
            picked=picked,
            held_by_undo=int(rows.stored[picked.rows].sum() - rows.stored[current.rows].sum()),
            lists=[info for info in unnamed if not self._is_condemned(lists.id_of(info.name))],
            condemned=condemned + [info for info in unnamed if self._is_condemned(lists.id_of(info.name))],
        )

    def reached(self, root: Record, absent: Absent, since: float) -> Marks:
        """What all refs lead to, and those of every root since then, if commits lacked just this."""
        marks = Marks(self.needs, absent)
        marks.mark(commit for record in self._covered(root, since) for commit in record.refs.values())
        return marks

    def _covered(self, root: Record, since: float) -> list[Record]:
        """The roots that undo may go back to, newest first; the last was current when that time began.

        One record of a clock that was behind does not end them: all down to the floor are looked at.
        """
        found, count = [root], 1
        while found[-1].seq > root.floor:
            if found[-1].update.time >= since * 1e6:
                count = len(found) + 1
            found.append(self.log.read(found[-1].seq - 1))
        if found[-1].update.time >= since * 1e6:
            count = len(found)
        return found[:count]

    def _packs(self, listed: Iterable[FileInfo]) -> tuple[list[tuple[Table, FileInfo]], list[FileInfo]]:
        """The packs that are whole and not condemned, and the files of those that are condemned."""
        good, condemned = [], []
        for info in listed:
            name = pack.id_of(info.name)
            if self._is_condemned(name):
                condemned.append(info)
            elif name is not None:
                try:
                    good.append((pack.read_table(self.backend, name), info))
                except CasError as error:  # what is needed from it is missed below; what is not, harms nobody
                    _log.warning("left out of the collection: %s", error)
        return good, condemned

    def condemned_files(self) -> list[FileInfo]:
        """Condemned packs and lists that exist, as of the newest root that was read."""
        packs = [info for info in self.backend.list(pack.FOLDER) if self._is_condemned(pack.id_of(info.name))]
        return packs + [info for info in self.backend.list(lists.FOLDER) if self._is_condemned(lists.id_of(info.name))]

    def condemned_places(self, wanted: Sequence[tuple[Kind, ObjectId]]) -> list[Location]:
        """Where these objects lie in condemned packs; `Corrupt` if one is nowhere."""
        found: dict[tuple[int, bytes], Location] = {}
        sought = set(wanted)
        for info in self.condemned_files():
            name = pack.id_of(info.name)
            for row in () if name is None else pack.read_table(self.backend, name):
                if (row.kind, row.id) in sought and name is not None:
                    found[row.kind, row.id] = Location(name, row)
        for kind, name_of_object in wanted:
            if (kind, name_of_object) not in found:
                raise Corrupt(f"{kind.name.lower()} {short(name_of_object)} is in no pack; run `cas fsck`")
        return list(found.values())

    def _is_condemned(self, name: bytes | None) -> bool:
        return name is not None and name in self.catalog.condemned
