"""Reading: every byte is checked against its name before anyone sees it.

`Objects` reads structured objects; `BlockReader` fills buffers from blocks, planned so that neighbours in a pack are
read together, in parallel, within a fixed budget of memory. A row is a hint: the name is the judge, and when one
row's bytes are bad another row of the object is tried.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from .ahead import HOLE, Ahead
from .backend import Backend
from .bases import Bases, Lookup, MissingBase
from .block import MAX_BLOCK_SIZE, Codec, Kind, ObjectId, block_id, object_id, short
from .catalog import Catalog
from .codecs import Encoder
from .crew import Crew, Shelf
from .errors import CasError, Corrupt, NotFound
from .grid import Piece
from .nodes import Node
from .objects import Commit, Layout, decode_commit, decode_layout, decode_list, decode_tree
from .pack import Location, name_of
from .tensors import Array

READ_BYTES = 2 << 20
ALONE_BYTES = 4 << 20
"""What one thread has read by the time that others have begun."""
_CACHED_OBJECTS = 1 << 16
_CACHED_BYTES = 16 << 20  # encoded; decoded it is some five times as much
T = TypeVar("T")


class Objects:
    """Structured objects by id, verified, decoded and remembered up to `cached` encoded bytes. Safe to use from many
    threads."""

    def __init__(self, backend: Backend, catalog: Lookup, cached: int = _CACHED_BYTES) -> None:
        self._backend = backend
        self._catalog = catalog
        self._limit = cached
        self.renew_lock()
        self._cache: OrderedDict[tuple[Kind, ObjectId], tuple[Any, int]] = OrderedDict()
        self._cached = 0

    def renew_lock(self) -> None:
        """Also after a fork: another thread of the parent may have held the lock, and been using the encoder."""
        self._lock = threading.RLock()
        self._encoder = Encoder()

    def tree(self, name: ObjectId) -> Node:
        return self._decoded(Kind.TREE, name, decode_tree)

    def layout(self, name: ObjectId) -> Layout:
        return self._decoded(Kind.LAYOUT, name, decode_layout)

    def block_list(self, name: ObjectId) -> list[ObjectId]:
        return self._decoded(Kind.LIST, name, decode_list)

    def commit(self, name: ObjectId) -> Commit:
        return self._decoded(Kind.COMMIT, name, decode_commit)

    def check(self, names: Iterable[ObjectId]) -> None:
        """Raise where a commit lacks one of these blocks on purpose: never here, but see `present`."""

    def _decoded(self, kind: Kind, name: ObjectId, decode: Callable[[bytes], T]) -> T:
        """The object, shared by all who ask: nobody changes it. `NotFound` or `Corrupt` if no row gives it."""
        with self._lock:
            held = self._cache.get((kind, name))
            if held is None:
                data = self._fetch(kind, name)
                try:
                    held = decode(data), len(data)
                except CasError as error:
                    raise type(error)(f"{kind.name.lower()} {short(name)}: {error}") from error
                self._remember(kind, name, held)
            else:
                self._cache.move_to_end((kind, name))
            found: T = held[0]
            return found

    def _fetch(self, kind: Kind, name: ObjectId) -> bytes:
        try:
            return self._find(kind, name)
        except NotFound:  # a collection may have moved it and deleted the pack that it lay in
            self._catalog.refresh()
        except Corrupt:  # perhaps on its way; or there is another copy, in a pack that was not listed yet
            if not self._backend.is_remote:
                raise
            self._catalog.refresh()
        return self._find(kind, name)

    def _find(self, kind: Kind, name: ObjectId) -> bytes:
        what = f"{kind.name.lower()} {short(name)}"
        failure: Exception | None = None
        for place in self._catalog.locate([name]).get(name, []):
            if place.row.kind != kind:
                failure = Corrupt(f"{what} is stored as another kind of object")
                continue
            try:
                return self._fetch_from(place, kind)
            except (CasError, OSError) as error:
                failure = error
        if failure is None:
            raise NotFound(f"{what} is in no pack; {self._catalog.why_missing()}")
        wrong = type(failure) if isinstance(failure, NotFound | Corrupt) else CasError
        raise wrong(f"{what} cannot be read: {failure}") from failure

    def verify(self, place: Location) -> None:
        """Read one stored copy of an object; `Corrupt` if it does not match its name."""
        try:
            self._fetch_from(place, Kind(place.row.kind))
        except Corrupt:  # perhaps on its way
            if not self._backend.is_remote:
                raise
            self._fetch_from(place, Kind(place.row.kind))

    def _fetch_from(self, place: Location, kind: Kind) -> bytes:
        row = place.row
        raw = bytearray(row.raw)
        stored = self._backend.read(name_of(place.pack), row.offset, row.stored)
        self._encoder.decode(row.coding, stored, memoryview(raw))
        if object_id(kind, raw) != row.id:
            self._backend.forget(name_of(place.pack))
            raise Corrupt(f"its bytes in pack {name_of(place.pack)} do not match its name; `cas fsck` lists the damage")
        return bytes(raw)

    def _remember(self, kind: Kind, name: ObjectId, held: tuple[Any, int]) -> None:
        self._cache[(kind, name)] = held
        self._cached += held[1]
        while len(self._cache) > _CACHED_OBJECTS or self._cached > self._limit:
            self._cached -= self._cache.popitem(last=False)[1][1]


@dataclass(slots=True)
class BlockUse:
    """A block that is wanted, and what for: all of it into `out`, or only `pieces` of it copied there.

    `size` is what the block must have, in bytes. `owner`, as text, says in errors what needs it.
    """

    name: ObjectId
    size: int
    out: memoryview
    pieces: list[Piece] | None
    owner: object = ""


@dataclass(slots=True)
class _Job:
    """One use together with the row that it is read from and those that are left to try.

    `refreshed` says that these were looked up anew after a pack was gone.
    """

    use: BlockUse
    place: Location
    others: Sequence[Location] = ()
    refreshed: bool = False


class _Bench:
    """What one thread reuses from task to task."""

    def __init__(self, backend: Backend, catalog: Lookup) -> None:
        self.encoder = Encoder()
        self.ahead = Ahead(backend, catalog)
        self.bases = Bases(backend, catalog, self.encoder, self.ahead.get)
        self.stored: Array = np.empty(MAX_BLOCK_SIZE, np.uint8)
        self.raw: Array = np.empty(MAX_BLOCK_SIZE, np.uint8)
        self.hole: Array = np.empty(HOLE if backend.is_remote else 0, np.uint8)


def _hole(one: Location, other: Location) -> int:
    """Bytes between two rows; less than 0 where the other does not come later in the same pack."""
    return other.row.offset - one.row.offset - one.row.stored if one.pack == other.pack else -1


def _with_holes(batch: list[_Job], buffers: list[memoryview], hole: Array) -> Iterator[memoryview]:
    """The buffers, and before each of them room for what lies between it and the one before."""
    before = None
    for job, buffer in zip(batch, buffers, strict=True):
        if before is not None:
            yield memoryview(hole)[: _hole(before, job.place)]
        yield buffer
        before = job.place


def _effort(jobs: Iterable[_Job]) -> int:
    """Bytes that are read and, for deltas, made of others."""
    return sum(row.raw if row.chain else row.stored for row in (job.place.row for job in jobs))


def _grouped(batches: Iterable[list[_Job]], least: int) -> Iterator[list[list[_Job]]]:
    """Batches in groups worth a hand-over between threads: of `least` bytes."""
    group: list[list[_Job]] = []
    size = 0
    for batch in batches:
        group.append(batch)
        size += _effort(batch)
        if size >= least:
            yield group
            group, size = [], 0
    if group:
        yield group


class BlockReader:
    """Fills buffers from blocks. Safe to use from many threads; each `fill` runs its own crew."""

    def __init__(self, backend: Backend, catalog: Catalog, threads: int) -> None:
        self._backend = backend
        self._catalog = catalog
        self._threads = max(threads, backend.parallel)
        self._benches = Shelf(partial(_Bench, backend, catalog))
        remote = backend.is_remote
        self._joined, self._hole = (MAX_BLOCK_SIZE, HOLE) if remote else (READ_BYTES, 0)
        """Bytes that are read at once, and that are rather read than left out."""
        self._alone, self._task = (0, 0) if remote else (ALONE_BYTES, READ_BYTES)
        """Bytes that one thread reads alone, and that are worth a task."""

    @property
    def is_remote(self) -> bool:
        return self._backend.is_remote

    def fill(self, uses: Iterable[BlockUse]) -> None:
        """Read and verify every use. On an error the buffers' contents are undefined."""
        jobs = self._jobs(list(uses))
        batches = list(self._batches(jobs))
        if len(batches) == 1 or _effort(jobs) <= self._alone:
            self._read_in_crew(batches)
            return
        with Crew(min(self._threads, len(batches))) as crew:
            for task in _grouped(batches, self._task):
                crew.submit(partial(self._read_in_crew, task))

    def check(self, places: Iterable[Location], report: Callable[[Location, CasError], None]) -> None:
        """Read and verify blocks where these rows say they are; failures are reported, not raised, but for an `OSError`
        of a network or server, of which nothing follows for the row."""

        def work(batch: list[Location]) -> None:
            with self._benches.borrow() as bench:
                for place in batch:
                    try:
                        self._check_one(place, bench)
                    except CasError as error:
                        if self.is_remote and isinstance(error.__cause__, OSError):
                            raise error.__cause__ from None
                        report(place, error)

        ordered = sorted(places, key=lambda place: (place.pack, place.row.offset))
        with Crew(self._threads) as crew:
            for at in range(0, len(ordered), 64):
                crew.submit(partial(work, ordered[at : at + 64]))

    def _check_one(self, place: Location, bench: _Bench) -> None:
        use = BlockUse(place.row.id, place.row.raw, memoryview(bench.raw)[: place.row.raw], None)
        here_only = _Job(use, place, refreshed=True)
        try:
            self._read_one(here_only, bench)
        except NotFound:  # a collection may have moved it
            self._read_one(_Job(use, place), bench)
        except Corrupt:  # perhaps on its way
            if not self.is_remote:
                raise
            self._read_one(here_only, bench)

    def _jobs(self, uses: list[BlockUse]) -> list[_Job]:
        """Uses with their rows, in the order in which they lie in packs."""
        places = self._catalog.locate(use.name for use in uses)
        jobs = []
        for use in uses:
            rows = places.get(use.name)
            if not rows:
                raise NotFound(f"block {short(use.name)} of {use.owner} is in no pack; {self._catalog.why_missing()}")
            first, *others = sorted(rows, key=lambda place: place.row.chain)
            jobs.append(_Job(use, first, others))
        return sorted(jobs, key=lambda job: (job.place.pack, job.place.row.offset))

    def _batches(self, jobs: list[_Job]) -> Iterator[list[_Job]]:
        """Neighbours in one pack, up to so many bytes together or one block; over a network with holes between them."""
        batch: list[_Job] = []
        size = 0
        for job in jobs:
            hole = _hole(batch[-1].place, job.place) if batch else -1
            weight = self._weight(job)
            if 0 <= hole <= self._hole and size + hole + weight <= self._joined:
                batch.append(job)
                size += hole + weight
                continue
            if batch:
                yield batch
            batch, size = [job], weight
        if batch:
            yield batch

    def _weight(self, job: _Job) -> int:
        """Bytes to read. Over a network bases, which are read in advance, count too, by and large; what goes straight
        to where it belongs needs no buffer, and counts a quarter."""
        row = job.place.row
        if not self._backend.is_remote:
            return row.stored
        return row.raw if row.chain else row.stored // 4 if self._direct(job) else row.stored

    def _read_in_crew(self, task: list[list[_Job]]) -> None:
        with self._benches.borrow() as bench:
            for batch in task:
                self._read_batch(batch, bench)

    def _read_batch(self, batch: list[_Job], bench: _Bench) -> None:
        """One read for all; then each block is decoded, verified and copied where it belongs."""
        if self._backend.is_remote:
            bench.ahead.read(job.place.row for job in batch)
        buffers = self._buffers(batch, bench)
        first = batch[0].place
        try:
            self._backend.readinto(name_of(first.pack), first.row.offset, list(_with_holes(batch, buffers, bench.hole)))
        except (CasError, OSError):
            for job in batch:  # one by one, so that the bad one is named and the good ones are read
                self._read_one(job, bench)
            return
        for job, buffer in zip(batch, buffers, strict=True):
            try:
                self._deliver(job, buffer, bench)
            except (Corrupt, MissingBase) as error:
                self._try_others(job, bench, error)

    def _buffers(self, batch: list[_Job], bench: _Bench) -> list[memoryview]:
        """Where the stored bytes of each go."""
        buffers, position = [], 0
        for job in batch:
            if self._direct(job):
                buffers.append(job.use.out)
            else:
                buffers.append(memoryview(bench.stored)[position : position + job.place.row.stored])
                position += job.place.row.stored
        return buffers

    def _read_one(self, job: _Job, bench: _Bench) -> None:
        row = job.place.row
        buffer = job.use.out if self._direct(job) else memoryview(bench.stored)[: row.stored]
        try:
            self._backend.readinto(name_of(job.place.pack), row.offset, [buffer])
            self._deliver(job, buffer, bench)
        except (CasError, OSError) as error:
            self._try_others(job, bench, error)

    @staticmethod
    def _direct(job: _Job) -> bool:
        """Whether the stored bytes can be read straight into their destination."""
        return job.place.row.codec == Codec.RAW and job.use.pieces is None and job.place.row.raw == job.use.size

    def _deliver(self, job: _Job, stored: memoryview, bench: _Bench) -> None:
        use, row = job.use, job.place.row
        if row.kind != Kind.BLOCK or row.raw != use.size:
            raise Corrupt(f"its row in pack {name_of(job.place.pack)} has another kind or size")
        if self._direct(job):
            raw = use.out
        else:
            raw = use.out if use.pieces is None else memoryview(bench.raw)[: use.size]
            bench.encoder.decode(row.coding, stored, raw, bench.bases.of(row))
        if block_id(raw) != use.name:
            self._backend.forget(name_of(job.place.pack))
            raise Corrupt(f"its bytes in pack {name_of(job.place.pack)} do not match its name")
        for piece in use.pieces or ():
            piece.copy(raw, use.out)

    def _try_others(self, job: _Job, bench: _Bench, error: Exception) -> None:
        if not job.others and not job.refreshed and self._may_be_passing(error):
            self._read_anew(job, bench, error)
            return
        if not job.others:
            owner = str(job.use.owner)
            what = f"block {short(job.use.name)}" + (f" of {owner}" if owner else "")
            kind = Corrupt if isinstance(error, MissingBase) else type(error)
            kind = kind if kind in (NotFound, Corrupt) else CasError
            raise kind(f"{what} cannot be read: {error}; `cas fsck --data` lists the damage") from error
        self._read_one(_Job(job.use, job.others[0], job.others[1:], job.refreshed), bench)

    def _may_be_passing(self, error: Exception) -> bool:
        """A collection may have moved the block into another pack, and a network may have damaged it on its way."""
        return isinstance(error, NotFound) or (self._backend.is_remote and isinstance(error, Corrupt))

    def _read_anew(self, job: _Job, bench: _Bench, error: Exception) -> None:
        """Look once more."""
        self._catalog.refresh()
        rows = self._catalog.locate([job.use.name]).get(job.use.name, [])
        if rows:
            self._read_one(_Job(job.use, rows[0], rows[1:], refreshed=True), bench)
        else:
            self._try_others(_Job(job.use, job.place, (), refreshed=True), bench, error)
