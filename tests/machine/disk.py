"""What lies on disk, read without what is under test for finding it: only tables of packs and lists are decoded."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from cas import lists, pack
from cas.backend import Backend
from cas.block import ObjectId
from cas.lists import ListId, What
from cas.local import LocalBackend
from cas.log import Record
from cas.pack import PackId

from . import tables
from .tables import Table


class Disk:
    """The packs of a store. What was read once is remembered: packs and lists never change."""

    def __init__(self, place: Path | Backend) -> None:
        """A backend is closed with this."""
        self._backend = LocalBackend(place) if isinstance(place, Path) else place
        self._tables: dict[str, Table] = {}
        self._condemned: dict[ListId, frozenset[bytes]] = {}

    def close(self) -> None:
        self._backend.close()

    def names(self, folder: str) -> list[str]:
        return [info.name for info in self._backend.list(folder)]

    def condemned(self, root: Record) -> Set[bytes]:
        for _, name in root.condemned:
            if name not in self._condemned:
                self._condemned[name] = frozenset(lists.read(self._backend, name, What.CONDEMNED))
        return frozenset().union(*(self._condemned[name] for _, name in root.condemned))

    def packs(self, root: Record) -> dict[str, frozenset[ObjectId]]:
        """By name, what the packs hold that the root does not condemn."""
        return {name: table.held for name, table in self._not_condemned(root).items()}

    def decodable(self, root: Record) -> Set[ObjectId]:
        """What decodes from packs that the root does not condemn."""
        return tables.decodable(self._not_condemned(root).values())

    def orphans(self, root: Record, live: Set[ObjectId]) -> set[str]:
        """Packs, not condemned, that hold nothing live and no base of it."""
        return tables.orphans(self._not_condemned(root), live)

    def condemned_files(self, root: Record) -> list[str]:
        condemned = self.condemned(root)
        packs = [name for name in self.names(pack.FOLDER) if pack.id_of(name) in condemned]
        return packs + [name for name in self.names(lists.FOLDER) if lists.id_of(name) in condemned]

    def _not_condemned(self, root: Record) -> dict[str, Table]:
        condemned = self.condemned(root)
        return {name: self._table(name) for name in self.names(pack.FOLDER) if pack.id_of(name) not in condemned}

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            self._tables[name] = Table.of(pack.read_table(self._backend, PackId(pack.id_of(name) or b"")))
        return self._tables[name]
