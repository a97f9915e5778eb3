"""Reading: every byte is checked against its name before anyone sees it.

`Objects` reads structured objects; `BlockReader` fills buffers from blocks, planned so that neighbours in a pack are
read together, in parallel, within a fixed budget of memory. A row is a hint: the name is the judge, and when one
row's bytes are bad another row of the object is tried.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from .backend import Backend
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


class Lookup(Protocol):
    """Finds the rows of objects."""

    def locate(self, ids: Iterable[ObjectId]) -> dict[ObjectId, list[Location]]: ...
    def refresh(self) -> None: ...
    def why_missing(self) -> str: ...


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
        self._fetch_from(place, Kind(place.row.kind))

    def _fetch_from(self, place: Location, kind: Kind) -> bytes:
        row = place.row
        raw = bytearray(row.raw)
        stored = self._backend.read(name_of(place.pack), row.offset, row.stored)
        self._encoder.decode(row.codec, row.width, stored, memoryview(raw))
        if object_id(kind, raw) != row.id:
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


@dataclass(slots=True)
class _Bench:
    encoder: Encoder = field(default_factory=Encoder)
    stored: Array = field(default_factory=lambda: np.empty(MAX_BLOCK_SIZE, np.uint8))
    raw: Array = field(default_factory=lambda: np.empty(MAX_BLOCK_SIZE, np.uint8))


def _grouped(batches: Iterable[list[_Job]]) -> Iterator[list[list[_Job]]]:
    """Batches in groups worth a hand-over between threads."""
    group: list[list[_Job]] = []
    size = 0
    for batch in batches:
        group.append(batch)
        size += sum(job.place.row.stored for job in batch)
        if size >= READ_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


class BlockReader:
    """Fills buffers from blocks. Safe to use from many threads; each `fill` runs its own crew."""

    def __init__(self, backend: Backend, catalog: Catalog, threads: int) -> None:
        self._backend = backend
        self._catalog = catalog
        self._threads = threads
        self._benches = Shelf(_Bench)

    def fill(self, uses: Iterable[BlockUse]) -> None:
        """Read and verify every use. On an error the buffers' contents are undefined."""
        jobs = self._jobs(list(uses))
        batches = list(self._batches(jobs))
        if sum(job.place.row.stored for job in jobs) <= ALONE_BYTES:
            self._read_in_crew(batches)
            return
        with Crew(self._threads) as crew:
            for task in _grouped(batches):
                crew.submit(partial(self._read_in_crew, task))

    def check(self, places: Iterable[Location], report: Callable[[Location, CasError], None]) -> None:
        """Read and verify blocks where these rows say they are; failures are reported, not raised."""

        def work(batch: list[Location]) -> None:
            with self._benches.borrow() as bench:
                for place in batch:
                    try:
                        out = memoryview(bench.raw)[: place.row.raw]
                        self._read_one(_Job(BlockUse(place.row.id, place.row.raw, out, None), place), bench)
                    except CasError as error:
                        report(place, error)

        ordered = sorted(places, key=lambda place: (place.pack, place.row.offset))
        with Crew(self._threads) as crew:
            for at in range(0, len(ordered), 64):
                crew.submit(partial(work, ordered[at : at + 64]))

    def _jobs(self, uses: list[BlockUse]) -> list[_Job]:
        """Uses with their rows, in the order in which they lie in packs."""
        places = self._catalog.locate(use.name for use in uses)
        jobs = []
        for use in uses:
            rows = places.get(use.name)
            if not rows:
                raise NotFound(f"block {short(use.name)} of {use.owner} is in no pack; {self._catalog.why_missing()}")
            jobs.append(_Job(use, rows[0], rows[1:]))
        return sorted(jobs, key=lambda job: (job.place.pack, job.place.row.offset))

    def _batches(self, jobs: list[_Job]) -> Iterator[list[_Job]]:
        """Neighbours in one pack, up to `READ_BYTES` of stored bytes together or one block."""
        batch: list[_Job] = []
        size = 0
        for job in jobs:
            row = job.place.row
            joins = batch and batch[-1].place.pack == job.place.pack and size + row.stored <= READ_BYTES
            if joins and batch[-1].place.row.offset + batch[-1].place.row.stored == row.offset:
                batch.append(job)
                size += row.stored
                continue
            if batch:
                yield batch
            batch, size = [job], row.stored
        if batch:
            yield batch

    def _read_in_crew(self, task: list[list[_Job]]) -> None:
        with self._benches.borrow() as bench:
            for batch in task:
                self._read_batch(batch, bench)

    def _read_batch(self, batch: list[_Job], bench: _Bench) -> None:
        """One read for all; then each block is decoded, verified and copied where it belongs."""
        buffers, position = [], 0
        for job in batch:
            if self._direct(job):
                buffers.append(job.use.out)
            else:
                buffers.append(memoryview(bench.stored)[position : position + job.place.row.stored])
                position += job.place.row.stored
        first = batch[0].place
        try:
            self._backend.readinto(name_of(first.pack), first.row.offset, buffers)
        except (CasError, OSError):
            for job in batch:  # one by one, so that the bad one is named and the good ones are read
                self._read_one(job, bench)
            return
        for job, buffer in zip(batch, buffers, strict=True):
            try:
                self._deliver(job, buffer, bench)
            except Corrupt as error:
                self._try_others(job, bench, error)

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
            bench.encoder.decode(row.codec, row.width, stored, raw)
        if block_id(raw) != use.name:
            raise Corrupt(f"its bytes in pack {name_of(job.place.pack)} do not match its name")
        for piece in use.pieces or ():
            piece.copy(raw, use.out)

    def _try_others(self, job: _Job, bench: _Bench, error: Exception) -> None:
        if not job.others and isinstance(error, NotFound) and not job.refreshed:
            self._read_anew(job, bench, error)
            return
        if not job.others:
            owner = str(job.use.owner)
            what = f"block {short(job.use.name)}" + (f" of {owner}" if owner else "")
            kind = type(error) if isinstance(error, NotFound | Corrupt) else CasError
            raise kind(f"{what} cannot be read: {error}; `cas fsck --data` lists the damage") from error
        self._read_one(_Job(job.use, job.others[0], job.others[1:], job.refreshed), bench)

    def _read_anew(self, job: _Job, bench: _Bench, error: NotFound) -> None:
        """Look once more after its pack was gone: a collection may have moved the block into another."""
        self._catalog.refresh()
        rows = self._catalog.locate([job.use.name]).get(job.use.name, [])
        if rows:
            self._read_one(_Job(job.use, rows[0], rows[1:], refreshed=True), bench)
        else:
            self._try_others(_Job(job.use, job.place, (), refreshed=True), bench, error)
