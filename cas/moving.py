"""Copying objects from pack to pack as they are stored, every one decoded and compared with its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from .backend import Backend
from .block import MAX_OBJECT_SIZE, Codec, Kind, object_id, short
from .catalog import Catalog
from .codecs import Encoder
from .crew import Crew, Shelf
from .errors import CasError, Corrupt
from .pack import Location, name_of
from .packing import Counters, Packs
from .tensors import Array

BATCH_BYTES = 4 << 20


@dataclass(slots=True)
class _Bench:
    encoder: Encoder = field(default_factory=Encoder)
    stored: Array = field(default_factory=lambda: np.empty(MAX_OBJECT_SIZE, np.uint8))
    raw: Array = field(default_factory=lambda: np.empty(MAX_OBJECT_SIZE, np.uint8))


def move(
    places: Iterable[Location],
    backend: Backend,
    catalog: Catalog,
    threads: int,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Counters:
    """Write these objects into new packs, durable on return. `Corrupt` names the first that is not what it should be.

    An error leaves packs behind that nothing names.
    """
    packs = Packs(backend, catalog)
    benches = Shelf(_Bench)

    def copy(batch: Sequence[Location]) -> None:
        with benches.borrow() as bench:
            _copy(batch, backend, packs, bench)
        progress(sum(place.row.stored for place in batch))

    try:
        with Crew(threads) as crew:
            for batch in _batches(sorted(places, key=lambda place: (place.pack, place.row.offset))):
                crew.submit(partial(copy, batch))
        packs.finish()
    except BaseException:
        packs.abandon()
        raise
    return packs.counters


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


def _copy(batch: Sequence[Location], backend: Backend, packs: Packs, bench: _Bench) -> None:
    size = sum(place.row.stored for place in batch)
    stored = memoryview(bench.stored)[:size]
    backend.readinto(name_of(batch[0].pack), batch[0].row.offset, [stored])
    at = 0
    for place in batch:
        row = place.row
        data = stored[at : at + row.stored]
        at += row.stored
        _verify(place, data, bench)
        packs.append(row.id, Kind(row.kind), Codec(row.codec), row.width, row.raw, data)


def _verify(place: Location, stored: memoryview, bench: _Bench) -> None:
    row, raw = place.row, stored
    if row.codec != Codec.RAW:
        raw = memoryview(bench.raw)[: row.raw]
        bench.encoder.decode(row.codec, row.width, stored, raw)
    if object_id(Kind(row.kind), raw) != row.id:
        raise Corrupt(
            f"{Kind(row.kind).name.lower()} {short(row.id)} in pack {name_of(place.pack)} does not match its name; "
            "run `cas fsck --repair`"
        )


def bad_among(places: Iterable[Location], backend: Backend, threads: int) -> list[Location]:
    """Those of these rows that cannot be read, or do not hold what they should."""
    found: list[Location] = []
    benches = Shelf(_Bench)

    def check(batch: Sequence[Location]) -> None:
        with benches.borrow() as bench:
            for place in batch:
                stored = memoryview(bench.stored)[: place.row.stored]
                try:
                    backend.readinto(name_of(place.pack), place.row.offset, [stored])
                    _verify(place, stored, bench)
                except (CasError, OSError):
                    found.append(place)

    with Crew(threads) as crew:
        for batch in _batches(sorted(places, key=lambda place: (place.pack, place.row.offset))):
            crew.submit(partial(check, batch))
    return found
