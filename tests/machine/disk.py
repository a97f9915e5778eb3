"""What lies on disk, read without what is under test for finding it: only tables of packs and lists are decoded."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from cas import lists, pack
from cas.block import ID_SIZE, ObjectId
from cas.lists import ListId, What
from cas.local import LocalBackend
from cas.log import Record
from cas.pack import PackId


class Disk:
    """The packs of a store. What was read once is remembered: packs and lists never change."""

    def __init__(self, path: Path) -> None:
        self._backend = LocalBackend(path)
        self._path = path
        self._tables: dict[str, frozenset[ObjectId]] = {}
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
        condemned = self.condemned(root)
        return {name: self._table(name) for name in self.names(pack.FOLDER) if pack.id_of(name) not in condemned}

    def condemned_files(self, root: Record) -> list[str]:
        condemned = self.condemned(root)
        packs = [name for name in self.names(pack.FOLDER) if pack.id_of(name) in condemned]
        return packs + [name for name in self.names(lists.FOLDER) if lists.id_of(name) in condemned]

    def _table(self, name: str) -> frozenset[ObjectId]:
        if name not in self._tables:
            data = pack.read_table(self._backend, PackId(pack.id_of(name) or b"")).rows.tobytes()
            step = pack.ROW.size
            rows = range(0, len(data), step)
            self._tables[name] = frozenset(ObjectId(data[at : at + ID_SIZE]) for at in rows)
        return self._tables[name]
