"""Reading every stored byte, in rounds that may take many runs.

    fsck:  [1, ids of packs that were read, id of one that was read in part or nothing, up to which offset, bad rows]
           a bad row is the id of its pack and its offset, u64 big-endian: 24 bytes

Packs are read in the order of their ids, which are random, so that any part of a round is a fair sample. The file lies
beside the index and is as dispensable: without it, or where its imprint does not fit, a new round begins. Bad rows
stand in it until they are gone, so that every check tells of them and a repair knows where to begin.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from . import envelope, imprint
from .block import Kind
from .errors import CasError, Corrupt
from .nodes import pack, unpack
from .pack import Location, PackId, Table
from .reader import BlockReader, Objects

VERSION = 1
_NONE = PackId(b"")
_PACK = 16
_BAD = _PACK + 8
_CHUNK = 64 << 20
"""Stored bytes that are checked between two looks at the clock."""
_SAVE_EVERY = 1.0
_log = logging.getLogger("cas")

ReadProgress = Callable[[int, int], None]
"""Told after each step how many stored bytes were read in it, and how many this run will read."""


@dataclass(slots=True)
class Round:
    """How far reading has come: packs that were read, and the one that was up to an offset."""

    done: set[PackId] = field(default_factory=set)
    partly: PackId = _NONE
    offset: int = 0
    bad: list[tuple[PackId, int]] = field(default_factory=list)


def load(path: Path) -> Round:
    """What was saved here, or a new round: one that came with the store from elsewhere could hide damage."""
    try:
        if not imprint.fits(path, _flag(path)):
            return Round()
        version, done, partly, offset, bad = unpack(path.read_bytes(), "the round")
        if version != VERSION:
            return Round()
        rows = [bad[at : at + _BAD] for at in range(0, len(bad), _BAD)]
        return Round(
            {PackId(done[at : at + _PACK]) for at in range(0, len(done), _PACK)},
            PackId(partly),
            offset,
            [(PackId(row[:_PACK]), int.from_bytes(row[_PACK:], "big")) for row in rows],
        )
    except (OSError, CasError, ValueError):
        return Round()


def _flag(path: Path) -> Path:
    return path.with_name(f"{path.name}.clean")


def save(path: Path, held: Round) -> None:
    """Best effort: without it a later run reads again."""
    bad = b"".join(name + offset.to_bytes(8, "big") for name, offset in held.bad)
    body = pack([VERSION, b"".join(sorted(held.done)), held.partly, held.offset, bad])
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        if held == Round():
            path.unlink(missing_ok=True)
            return
        temporary.write_bytes(body)
        os.replace(temporary, path)
        imprint.take(path, _flag(path))
    except OSError as error:
        _log.info("how far reading has come is not remembered: %s", error)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def note_bad(path: Path, places: Iterable[Location]) -> None:
    """Remember rows that proved bad elsewhere: the next check tells of them, and a repair drops them."""
    held = load(path)
    held.bad = sorted({*held.bad, *((place.pack, place.row.offset) for place in places)})
    save(path, held)


class RowCheck:
    """One run of reading, on from where the last one stopped. `bad` are the rows that do not verify; of those in
    `hanging` it cannot be told."""

    def __init__(
        self,
        path: Path,
        tables: Sequence[Table],
        objects: Objects,
        blocks: BlockReader,
        hanging: Set[Location] = frozenset(),
    ) -> None:
        self._path = path
        self._hanging = hanging
        self._tables = {table.pack: table for table in tables}
        self._objects = objects
        self._blocks = blocks
        self._round = load(path)
        self._round.done &= self._tables.keys()
        self.bad: dict[Location, CasError] = {}
        self.total = sum(map(_stored, tables))
        self.before = self.total - self._left()
        """Bytes that this round had read before this run."""
        self.read_bytes = 0

    def recheck(self) -> None:
        """Verify anew what was found bad before."""
        wanted = set(self._round.bad)
        packs = {name for name, _ in wanted}
        tables = [table for name, table in self._tables.items() if name in packs]
        self._verify([p for table in tables for p in _places(table) if (p.pack, p.row.offset) in wanted])
        self._save()

    def read(self, part: float, progress: ReadProgress) -> None:
        """Read this part of all stored bytes, or what is left of the round if that is less."""
        budget = min(self._left(), part * self.total)
        saved = time.monotonic()
        try:
            for name, chunk, is_end in self._chunks(budget):
                self._verify(chunk)
                self._pass(name, chunk, is_end)
                size = sum(place.row.stored for place in chunk)
                self.read_bytes += size
                progress(size, int(budget))
                if time.monotonic() - saved >= _SAVE_EVERY:
                    self._save()
                    saved = time.monotonic()
        finally:
            if self._round.done >= self._tables.keys():
                self._round = Round()
            self._save()

    @property
    def so_far(self) -> int:
        """Bytes that this round has read."""
        return self.before + self.read_bytes

    def _left(self) -> int:
        left = sum(_stored(table) for name, table in self._tables.items() if name not in self._round.done)
        if self._round.partly in self._tables:
            left -= max(0, self._round.offset - envelope.SIZE)
        return left

    def _chunks(self, budget: float) -> Iterator[tuple[PackId, list[Location], bool]]:
        """Rows of a pack to read, and whether these are its last; at least `budget` bytes in all."""
        left = budget
        first = [self._round.partly] if self._round.partly in self._tables else []
        for name in [*first, *sorted(self._tables.keys() - self._round.done - set(first))]:
            chunk: list[Location] = []
            size = 0
            for place in _places(self._tables[name], self._round.offset if name == self._round.partly else 0):
                if size >= min(left, _CHUNK):
                    yield name, chunk, False
                    left -= size
                    chunk, size = [], 0
                    if left <= 0:
                        return
                chunk.append(place)
                size += place.row.stored
            yield name, chunk, True
            left -= size
            if left <= 0:
                return

    def _pass(self, name: PackId, chunk: list[Location], is_end: bool) -> None:
        if is_end:
            self._round.done.add(name)
            self._round.partly, self._round.offset = _NONE, 0
        else:
            row = chunk[-1].row
            self._round.partly, self._round.offset = name, row.offset + row.stored

    def _verify(self, places: Iterable[Location]) -> None:
        places = [place for place in places if place not in self._hanging]
        blocks = [place for place in places if place.row.kind == Kind.BLOCK]
        self._blocks.check(blocks, self.bad.__setitem__)
        for place in (place for place in places if place.row.kind != Kind.BLOCK):
            try:
                self._objects.verify(place)
            except CasError as error:
                self.bad[place] = error
            except OSError as error:
                if self._blocks.is_remote:
                    raise
                self.bad[place] = Corrupt(f"it cannot be read: {error}")

    def add(self, places: Iterable[Location]) -> None:
        """Verify these rows too, which an object that cannot be read has."""
        self._verify(place for place in places if place not in self.bad)
        self._save()

    def _save(self) -> None:
        self._round.bad = sorted((place.pack, place.row.offset) for place in self.bad)
        save(self._path, self._round)


def _stored(table: Table) -> int:
    return int(table.rows["stored"].sum(dtype="u8"))


def _places(table: Table, start: int = 0) -> Iterator[Location]:
    """The table's rows from an offset on."""
    return (Location(table.pack, row) for row in table if row.offset >= start)
