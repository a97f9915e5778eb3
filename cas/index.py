"""The index: object id to every row that holds it. Derived from pack tables, never the truth.

LMDB has no page checksums, so it is only opened when it is known to be whole. The file `clean`, written when the
last process closes, holds size, BLAKE3, inode and time of change of `data.mdb`; the first process to open compares it
under a lock and builds the index anew when it differs or is missing, so a crash or a power cut costs a rebuild and
nothing else. That is also why LMDB need not sync while it is open. Inode and time say that the file was made here: a
hostile one in a store that came from elsewhere is never opened. Rows that cannot be written, because another process
holds the lock too long, the disk is full or the directory is read-only, stay in memory, and so does the whole index
where LMDB cannot be used. Nothing that goes wrong here is an error of the caller's.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import lmdb

from . import imprint
from .block import ID_SIZE, ObjectId
from .flocks import lock_within, unlock
from .pack import ROW, Location, PackId, Row, Table

_log = logging.getLogger("cas")
_INITIAL_MAP = 1 << 30
_LOCK_DEADLINE = 5.0
"""Seconds to wait for another process's write before keeping the rows in memory."""
_OPEN_DEADLINE = 5.0
"""Seconds to wait for another process that checks or closes the index, before doing without it."""
_READERS = 1024
_LOCK_SIZE = 64 * (_READERS + 2)
_PACK_SIZE = 16
_CHAIN = _PACK_SIZE + 3  # where a row's chain stands in a value
_BATCH = 100_000
"""Rows that are removed at a time, so that their memory is bounded."""


def _value(pack: PackId, row: bytes) -> bytes:
    return pack + row[ID_SIZE:]


def _location(name: ObjectId, value: bytes) -> Location:
    return Location(PackId(value[:_PACK_SIZE]), Row._make(ROW.unpack(name + value[_PACK_SIZE:])))


def _items(table: Table) -> list[tuple[bytes, bytes]]:
    """The table as sorted (id, value) pairs: LMDB takes sorted keys several times as fast."""
    data, step = table.rows.tobytes(), ROW.size
    rows = [data[at : at + step] for at in range(0, len(data), step)]
    return sorted((row[:ID_SIZE], _value(table.pack, row)) for row in rows)


class Index:
    """Safe to use from many threads and many processes. Opened by `open_index`, one for each path and process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._users = 0
        self._mutex = threading.RLock()
        self._memory: dict[bytes, list[Location]] = {}
        self._memory_packs: dict[PackId, int] = {}
        self._env: Any = None
        self._writing = -1
        _indexes.add(self)
        self._open()

    # -- opening and closing ------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._pid = os.getpid()
        self._guard = -1
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._guard = os.open(self._folder / "open.lock", os.O_RDWR | os.O_CREAT, 0o666)
            alone = self._first_opener()
            if alone:
                self._check_or_discard()
            self._env = lmdb.open(
                str(self._folder), map_size=_INITIAL_MAP, max_dbs=2, sync=False, max_readers=_READERS, readahead=False
            )
            self._env.reader_check()
            if not self._write(self._open_databases):  # py-lmdb opens them for good in a write alone
                raise TimeoutError("another process holds its lock and does not go on")
            if alone:
                fcntl.flock(self._guard, fcntl.LOCK_SH)
        except (OSError, UnicodeError, lmdb.Error) as error:
            self._do_without(error)

    def _open_databases(self, txn: Any) -> None:
        self._rows = self._env.open_db(b"rows", txn, dupsort=True, dupfixed=True)
        self._packs = self._env.open_db(b"packs", txn)

    def _do_without(self, error: object) -> None:
        """Keep rows in memory from now on; what LMDB held is unknown again, so `Catalog` reads those packs anew."""
        _log.info("index %s is kept in memory: %s", self._folder, error)
        env, self._env = self._env, None
        if env is not None:
            env.close()
        if self._guard >= 0:
            guard, self._guard = self._guard, -1
            unlock(guard)

    def _first_opener(self) -> bool:
        """Hold the guard: exclusively as the only process, shared beside others that have checked the index."""
        deadline = time.monotonic() + _OPEN_DEADLINE
        while time.monotonic() < deadline:
            for mode, alone in ((fcntl.LOCK_EX, True), (fcntl.LOCK_SH, False)):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(self._guard, mode | fcntl.LOCK_NB)
                    return alone
            time.sleep(0.005)
        raise TimeoutError("another process holds its lock and does not go on")

    def _check_or_discard(self) -> None:
        """Remove an index that is not byte for byte the one that was closed here, and the flag in any case."""
        flag, data = self._folder / "clean", self._folder / "data.mdb"
        whole = imprint.fits(data, flag)
        lock = self._folder / "lock.mdb"
        for path in (flag, lock) if whole else (flag, lock, data):
            _remove(path)
        _reserve(lock, _LOCK_SIZE)

    def is_in_place(self) -> bool:
        """False when the folder was removed, and perhaps made anew, since this index was opened."""
        try:
            return self._guard < 0 or os.path.samestat(os.fstat(self._guard), os.stat(self._folder / "open.lock"))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Give up one use; the last use of the last process leaves the flag that the index is whole."""
        with _registry_lock:
            self._users -= 1
            if self._users:
                return
            if _registry.get(self._folder) is self:
                del _registry[self._folder]
            if self._env is not None and self._pid == os.getpid():
                self._close()  # under the lock: LMDB refuses an environment that this process still has open

    def _close(self) -> None:
        with self._mutex:
            try:
                fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._env.sync(True)
                self._env.close()
                imprint.take(self._folder / "data.mdb", self._folder / "clean")
            except (OSError, lmdb.Error) as error:  # most often others still use it; else it will be built anew
                _log.info("index %s is not marked whole: %s", self._folder, error)
            self._env.close()
            self._env = None
            guard, self._guard = self._guard, -1
            unlock(guard)

    def leave_to_parent(self) -> None:
        """In a forked child: let go of the parent's locks, which would otherwise last as long as the child."""
        self._mutex = threading.RLock()
        for lock in (self._guard, self._writing):
            if lock >= 0:
                os.close(lock)
        self._guard = self._writing = -1

    def _here(self) -> None:
        """After a fork the child opens its own environment; the parent's is left alone."""
        if self._pid != os.getpid():
            with self._mutex:
                if self._pid != os.getpid():  # no other thread of the child was faster
                    self._env = None
                    self._open()

    # -- looking up ---------------------------------------------------------------------------------------------

    def known(self, ids: Sequence[ObjectId], but: Set[bytes] = frozenset()) -> tuple[set[ObjectId], set[ObjectId]]:
        """Those of `ids` that have a row outside the packs of `but`: one without a base, and only such with bases."""
        self._here()
        with self._mutex:
            held = [place for name in ids for place in self._memory.get(name, ()) if place.pack not in but]
            plain, chained = ({p.row.id for p in held if (p.row.chain > 0) is has} for has in (False, True))
            with self._reading() as txn:
                if txn is not None:
                    for key, value in txn.cursor(self._rows).getmulti(ids, dupdata=True):
                        if value[:_PACK_SIZE] not in but:
                            (chained if value[_CHAIN] else plain).add(key)
            return plain, chained - plain

    def find(self, name: ObjectId) -> list[Location]:
        """Every row of an object, none if it is unknown."""
        return self.find_many([name]).get(name, [])

    def find_many(self, ids: Iterable[ObjectId], but: Set[bytes] = frozenset()) -> dict[ObjectId, list[Location]]:
        """Every row outside the packs of `but` of every object of `ids` that has one."""
        self._here()
        wanted = list(dict.fromkeys(ids))
        found: dict[ObjectId, list[Location]] = {}
        with self._mutex:
            for name in wanted:
                kept = [place for place in self._memory.get(name, ()) if place.pack not in but]
                if kept:
                    found[name] = kept
            with self._reading() as txn:
                if txn is not None:
                    for key, value in txn.cursor(self._rows).getmulti(wanted, dupdata=True):
                        if value[:_PACK_SIZE] not in but:
                            found.setdefault(key, []).append(_location(key, value))
        return found

    def rows(self) -> list[Location]:
        """Every row there is."""
        self._here()
        with self._mutex:
            found = [place for places in self._memory.values() for place in places]
            with self._reading() as txn:
                if txn is not None:
                    found.extend(_location(key, value) for key, value in txn.cursor(self._rows))
        return found

    def match(self, low: bytes, high: bytes, limit: int) -> list[Location]:
        """Up to `limit` rows whose ids lie in low <= id <= high."""
        self._here()
        with self._mutex:
            found = [place for name, places in self._memory.items() if low <= name <= high for place in places]
            with self._reading() as txn:
                cursor = None if txn is None else txn.cursor(self._rows)
                if cursor is not None and cursor.set_range(low):
                    for key, value in cursor:
                        if key > high or len(found) >= limit:
                            break
                        found.append(_location(key, value))
        return found

    def packs(self) -> dict[PackId, int]:
        """Every pack whose rows are here, with its size in bytes."""
        self._here()
        with self._mutex:
            found = dict(self._memory_packs)
            with self._reading() as txn:
                if txn is not None:
                    found.update(
                        (PackId(key), int.from_bytes(value, "little")) for key, value in txn.cursor(self._packs)
                    )
        return found

    # -- changing -----------------------------------------------------------------------------------------------

    def add(self, table: Table) -> None:
        """Add a pack's rows. The pack's name must be durable: others will lean on what is found here."""
        self._here()
        items = _items(table)

        def put(txn: Any) -> None:
            if txn.put(table.pack, table.size.to_bytes(8, "little"), db=self._packs, overwrite=False):
                with txn.cursor(self._rows) as cursor:
                    cursor.putmulti(items, dupdata=True)

        with self._mutex:
            if not self._write(put):
                self._memory_packs[table.pack] = table.size
                for name, value in items:
                    self._memory.setdefault(name, []).append(_location(ObjectId(name), value))

    def drop(self, packs: Set[PackId]) -> None:
        """Forget the rows of packs that are gone."""
        self._here()

        def remove(txn: Any) -> None:
            for pack in packs:
                txn.delete(pack, db=self._packs)
            start: bytes | None = b""
            while start is not None:  # a cursor that deletes loses its place among rows of one id
                doomed, start = self._doomed(txn, start, packs)
                for key, value in doomed:
                    txn.delete(key, value, db=self._rows)

        with self._mutex:
            for pack in packs:
                self._memory_packs.pop(pack, None)
            kept = ((name, [p for p in places if p.pack not in packs]) for name, places in self._memory.items())
            self._memory = {name: places for name, places in kept if places}
            if not self._write(remove):  # a commit must not lean on them
                self._do_without(f"rows of {len(packs)} lost packs could not be removed")

    def _doomed(self, txn: Any, start: bytes, packs: Set[PackId]) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Some rows of these packs from the id `start` on, and the id from which there may be more."""
        found: list[tuple[bytes, bytes]] = []
        with txn.cursor(self._rows) as cursor:
            for key, value in cursor if cursor.set_range(start) else ():
                if value[:_PACK_SIZE] in packs:
                    found.append((key, value))
                    if len(found) == _BATCH:
                        return found, key
        return found, None

    def _write(self, change: Callable[[Any], None]) -> bool:
        """Run `change` in a write transaction, growing the map as needed; False where that cannot be."""
        if self._env is None:
            return False
        try:
            lock = os.open(self._folder / "write.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            _log.info("index %s cannot be written: %s", self._folder, error)
            return False
        try:
            self._writing = lock
            if not lock_within(lock, _LOCK_DEADLINE):
                return False
            while True:
                try:
                    with self._env.begin(write=True) as txn:
                        change(txn)
                    return True
                except lmdb.MapFullError:
                    self._env.set_mapsize(self._env.info()["map_size"] * 2)
                except lmdb.MapResizedError:
                    self._env.set_mapsize(0)
        except (OSError, lmdb.Error) as error:
            _log.info("index %s cannot be written: %s", self._folder, error)
            return False
        finally:
            self._writing = -1
            unlock(lock)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        """A read transaction; None without LMDB, which is given up after an error."""
        txn = None
        try:
            if self._env is not None:
                txn = self._begin()
        except lmdb.Error as error:
            self._do_without(error)
        if txn is None:
            yield None
            return
        try:
            with txn:
                yield txn
        except lmdb.Error as error:
            self._do_without(error)

    def _begin(self) -> Any:
        try:
            return self._env.begin()
        except lmdb.MapResizedError:
            self._env.set_mapsize(0)
            return self._env.begin()


def _reserve(path: Path, size: int) -> None:
    """Make a file whose blocks exist: LMDB writes this one through a map, where a full disk kills the process."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            os.write(fd, bytes(size))
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    """Remove whatever stands there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


_indexes: weakref.WeakSet[Index] = weakref.WeakSet()
_registry: dict[Path, Index] = {}
_registry_lock = threading.Lock()


def _after_fork() -> None:
    global _registry_lock
    _registry_lock = threading.Lock()
    for index in list(_indexes):
        index.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)


def open_index(folder: Path) -> Index:
    """The process's index in `folder`; every call is matched by one `close`."""
    folder = Path(os.path.realpath(folder))  # unlike `resolve`, no error for a loop of links
    with _registry_lock:
        index = _registry.get(folder)
        if index is None or not index.is_in_place():
            index = _registry[folder] = Index(folder)
        index._users += 1
        return index
