"""Copying objects from pack to pack as they are stored, every one decoded and compared with its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from .backend import Backend
from .bases import Bases, Lookup
from .block import MAX_OBJECT_SIZE, Codec, Coding, Kind, object_id, short
from .catalog import Catalog
from .codecs import Encoder, Format
from .crew import Crew, Shelf
from .errors import CasError, Corrupt
from .pack import Location, Row, name_of
from .packing import Counters, Packs
from .tensors import Array

BATCH_BYTES = 4 << 20


class _Bench:
    """What one thread reuses from batch to batch."""

    def __init__(self, backend: Backend, lookup: Lookup) -> None:
        self.encoder = Encoder()
        self.bases = Bases(backend, lookup, self.encoder)
        self.stored: Array = np.empty(MAX_OBJECT_SIZE, np.uint8)
        self.raw: Array = np.empty(MAX_OBJECT_SIZE, np.uint8)


def move(
    places: Iterable[Location], backend: Backend, catalog: Catalog, threads: int, lookup: Lookup | None = None
) -> Counters:
    """Write these objects into new packs, durable on return. `Corrupt` names the first that is not what it should be.

    With `lookup` it finds the bases of deltas, which then are written whole: else they stay what they are. An error
    leaves packs behind that nothing names.
    """
    packs = Packs(backend, catalog)
    try:
        copy(places, packs, backend, lookup or catalog, threads, whole=lookup is not None)
        packs.finish()
    except BaseException:
        packs.abandon()
        raise
    return packs.counters


def copy(
    places: Iterable[Location],
    packs: Packs,
    backend: Backend,
    lookup: Lookup,
    threads: int,
    whole: bool = False,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Append these objects to packs, as they are stored or, with `whole`, deltas as what they stand for."""
    benches = Shelf(partial(_Bench, backend, lookup))

    def work(batch: Sequence[Location]) -> None:
        with benches.borrow() as bench:
            _copy(batch, backend, packs, bench, whole)
        progress(sum(place.row.stored for place in batch))

    with Crew(max(threads, backend.parallel)) as crew:
        for batch in _batches(sorted(places, key=lambda place: (place.pack, place.row.offset))):
            crew.submit(partial(work, batch))


def _batches(places: list[Location]) -> Iterator[list[Location]]:
    """Neighbours without a gap, up to `BATCH_BYTES` together or one object."""
    batch: list[Location] = []
    size = 0
    for place in places:
        row = place.row
        if batch:
            last = batch[-1]
            joins = last.pack == place.pack and last.row.offset + last.row.stored == row.offset
            if not joins or size + row.stored > BATCH_BYTES:
                yield batch
                batch, size = [], 0
        batch.append(place)
        size += row.stored
    if batch:
        yield batch


def _copy(batch: Sequence[Location], backend: Backend, packs: Packs, bench: _Bench, whole: bool) -> None:
    size = sum(place.row.stored for place in batch)
    stored = memoryview(bench.stored)[:size]
    backend.readinto(name_of(batch[0].pack), batch[0].row.offset, [stored])
    at = 0
    for place in batch:
        row = place.row
        data = stored[at : at + row.stored]
        at += row.stored
        raw = _verified_anew(place, data, bench, backend)
        if row.chain and whole:
            packs.append(row.id, Kind.BLOCK, *_encoded_whole(raw, row, bench.encoder))
        else:
            packs.append(row.id, Kind(row.kind), row.coding, row.raw, data)


def _encoded_whole(raw: memoryview, row: Row, encoder: Encoder) -> tuple[Coding, int, Array | memoryview]:
    coding, stored = encoder.encode(np.frombuffer(raw, np.uint8), Format(None), "zstd")
    return coding, row.raw, stored


def _verified_anew(place: Location, stored: memoryview, bench: _Bench, backend: Backend) -> memoryview:
    """As `_verified`; what came over a network and is bad is read once more, into the same buffer."""
    try:
        return _verified(place, stored, bench)
    except Corrupt:
        if not backend.is_remote:
            raise
    backend.forget(name_of(place.pack))
    backend.readinto(name_of(place.pack), place.row.offset, [stored])
    return _verified(place, stored, bench)


def _verified(place: Location, stored: memoryview, bench: _Bench) -> memoryview:
    """The object's raw bytes."""
    row, raw = place.row, stored
    if row.codec != Codec.RAW:
        raw = memoryview(bench.raw)[: row.raw]
        bench.encoder.decode(row.coding, stored, raw, bench.bases.of(row))
    if object_id(Kind(row.kind), raw) != row.id:
        raise Corrupt(
            f"{Kind(row.kind).name.lower()} {short(row.id)} in pack {name_of(place.pack)} does not match its name; "
            "run `cas fsck --repair`"
        )
    return raw


def bad_among(places: Iterable[Location], backend: Backend, catalog: Lookup, threads: int) -> list[Location]:
    """Those of these rows that cannot be read, or do not hold what they should."""
    found: list[Location] = []
    benches = Shelf(partial(_Bench, backend, catalog))

    def check(batch: Sequence[Location]) -> None:
        with benches.borrow() as bench:
            for place in batch:
                stored = memoryview(bench.stored)[: place.row.stored]
                try:
                    backend.readinto(name_of(place.pack), place.row.offset, [stored])
                    _verified(place, stored, bench)
                except (CasError, OSError):
                    found.append(place)

    with Crew(max(threads, backend.parallel)) as crew:
        for batch in _batches(sorted(places, key=lambda place: (place.pack, place.row.offset))):
            crew.submit(partial(check, batch))
    return found
