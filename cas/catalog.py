"""The packs of a store as the index knows them, kept in step with the packs that are listed and not condemned.

Of a remote store the packs are listed only once something is asked for that the index does not know: until then a
process that loads a commit does with what `where` says.

Rows of condemned packs are never found here: they are dropped when a root that condemns them is first seen, and what
another process, which has seen an older root, puts back into the shared index is passed over.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from . import lists, pack, where
from .backend import Backend
from .block import ObjectId
from .chains import chains_of
from .crew import mapped
from .errors import CasError, NotFound
from .index import Index, open_index
from .lists import ListId, What
from .log import Record
from .pack import Location, PackId, Table

_TOLD = 3
"""Packs that an error names."""


class Catalog:
    """Finds objects. Opens the index when it is first needed. Safe to use from many threads."""

    def __init__(self, backend: Backend, index_folder: Path) -> None:
        self._backend = backend
        self._folder = index_folder
        self._index: Index | None = None
        self.renew_lock()
        self.damaged: dict[PackId, Exception] = {}
        """Packs whose table could not be read at the last refresh, and why."""
        self.condemned: frozenset[bytes] = frozenset()
        """Packs and lists that nothing may lean on, as of the newest root that was observed."""
        self._observed: set[ListId] = set()
        self._is_behind = backend.is_remote
        """Packs were never listed, or given up since: what is not known may all the same lie in some."""

    def renew_lock(self) -> None:
        """Also after a fork: another thread of the parent may have held the old one."""
        self._opening = threading.RLock()

    @property
    def index(self) -> Index:
        """The index, opened when it is first needed; that of a local store is then in step with the packs."""
        if self._index is None:
            with self._opening:
                if self._index is None:
                    index = open_index(self._folder)
                    try:
                        if not self._backend.is_remote:
                            self._refresh(index)
                    except BaseException:
                        index.close()
                        raise
                    self._forget_condemned(index)
                    self._index = index
        return self._index

    def observe(self, root: Record) -> None:
        """From now on find nothing in packs that `root` condemns."""
        fresh = [name for _, name in root.condemned if name not in self._observed]
        if not fresh:
            return
        with self._opening:
            found = {item for name in fresh for item in lists.read(self._backend, name, What.CONDEMNED)}
            self.condemned |= found
            self._observed.update(fresh)
            if self._index is not None:
                self._forget_condemned(self._index)
                self._is_behind = True

    def _forget_condemned(self, index: Index) -> None:
        held = index.packs().keys() & self.condemned
        if held:
            index.drop(held)

    def refresh(self) -> None:
        """Take up packs that are listed and unknown, forget packs that are known and gone.

        Directories that hold unknown packs are synced first: what is found here is leant on, and another writer's
        pack may have a name that a power cut would still take away.
        """
        self._refresh(self.index)

    def _refresh(self, index: Index) -> None:
        self._is_behind = False
        try:
            self._catch_up(index)
        except BaseException:
            self._is_behind = self._backend.is_remote
            raise

    def _catch_up(self, index: Index) -> None:
        known = index.packs()  # before the listing: what others add meanwhile must not look lost
        listed = self._listed()
        lost = {name for name, size in known.items() if listed.get(name) != size or name in self.condemned}
        if lost:
            index.drop(lost)
        fresh = [name for name in listed if (name not in known or name in lost) and name not in self.condemned]
        folders = {pack.name_of(name).rpartition("/")[0] for name in fresh}
        for folder in sorted(folders | {pack.FOLDER} if folders else ()):
            self._backend.sync(folder)
        self.damaged = {}
        self._take_up_all(index, fresh)

    def _take_up_all(self, index: Index, packs: Sequence[PackId]) -> None:
        for _ in mapped(partial(self._take_up, index), packs, self._backend.parallel):
            pass

    def _take_up(self, index: Index, name: PackId) -> None:
        try:
            index.add(pack.read_table(self._backend, name))
        except NotFound:
            pass  # deleted since it was listed
        except CasError as error:
            self.damaged[name] = error
        except OSError as error:
            if self._backend.is_remote:  # the network or a server fails, of which nothing follows for the pack
                raise
            self.damaged[name] = error

    def _listed(self) -> dict[PackId, int]:
        files = self._backend.list(pack.FOLDER)
        return {name: info.size for info in files if (name := pack.id_of(info.name)) is not None}

    def add(self, table: Table) -> None:
        """Take up a pack that this process has just made durable."""
        self.index.add(table)

    def known(self, ids: Sequence[ObjectId]) -> set[ObjectId]:
        """Those of `ids` that lie in some pack, with all bases that they need."""
        if self._is_behind:
            self.refresh()
        plain, chained = self.index.known(ids, self.condemned)
        return plain | chains_of(chained, self._find).keys() if chained else plain

    def _find(self, ids: Iterable[ObjectId]) -> dict[ObjectId, list[Location]]:
        return self.index.find_many(ids, self.condemned)

    def locate(self, ids: Iterable[ObjectId]) -> dict[ObjectId, list[Location]]:
        """Every row of each known object. Where one is unknown the packs are listed again first."""
        wanted = list(dict.fromkeys(ids))
        found = self._find(wanted)
        if len(found) < len(wanted) == 1 and self._is_behind and self._take_hint(wanted[0]):
            found = self._find(wanted)
        if len(found) < len(wanted):
            self.refresh()
            found = self._find(wanted)
        return found

    def _take_hint(self, name: ObjectId) -> bool:
        """Take up the packs that are said to hold a commit; whether there are any."""
        index = self.index
        packs = [name for name in where.read(self._backend, name) if name not in self.condemned]
        self._take_up_all(index, [name for name in packs if name not in index.packs()])
        return bool(packs)

    def match(self, low: bytes, high: bytes, limit: int) -> list[Location]:
        """Up to `limit` rows whose ids lie in low <= id <= high; without any the packs are listed again first."""
        found = self._match(low, high, limit)
        if not found and low == high and self._is_behind and self._take_hint(ObjectId(low)):
            found = self._match(low, high, limit)
        if not found:
            self.refresh()
            found = self._match(low, high, limit)
        return found

    def _match(self, low: bytes, high: bytes, limit: int) -> list[Location]:
        return [place for place in self.index.match(low, high, limit) if place.pack not in self.condemned]

    def why_missing(self) -> str:
        """What to add to an error about an object that is nowhere."""
        if not self.damaged:
            return "restore its pack from another copy; `cas fsck` lists what is affected"
        more = len(self.damaged) - _TOLD
        told = [str(error) for error in islice(self.damaged.values(), _TOLD)]
        return "; ".join([*told, *([f"and {more} more packs cannot be read"] if more > 0 else [])])

    def close(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None


class CondemnedToo:
    """Finds objects in condemned packs too where they are nowhere else: what is live there must be copied out."""

    def __init__(self, backend: Backend, catalog: Catalog) -> None:
        self._backend = backend
        self._catalog = catalog

    def locate(self, ids: Iterable[ObjectId]) -> dict[ObjectId, list[Location]]:
        wanted = set(ids)
        found = self._catalog.locate(wanted)
        if len(found) < len(wanted):
            for place in self._condemned():
                if place.row.id in wanted and place.row.id not in found:
                    found[place.row.id] = [place]
        return found

    def _condemned(self) -> Iterator[Location]:
        for info in self._backend.list(pack.FOLDER):
            name = pack.id_of(info.name)
            if name is not None and name in self._catalog.condemned:
                with contextlib.suppress(CasError):
                    yield from (Location(name, row) for row in pack.read_table(self._backend, name))

    def refresh(self) -> None:
        self._catalog.refresh()

    def why_missing(self) -> str:
        return self._catalog.why_missing()
