"""Getting objects out of packs that are damaged, and out of other stores. The name of an object is the judge.

A pack's rows are hints here. Where its table does not verify, most of the table is whole all the same: rows stand in
the order of their offsets without gaps, so a row whose offset or length is damaged lies between its neighbours, and
one whose name is damaged is known by what it decodes to. Deltas are read through bases of the store that they lie in,
and written whole: their bases may be going.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Set
from dataclasses import dataclass
from functools import partial

import numpy as np

from . import envelope
from .backend import Backend
from .bases import Bases, Lookup
from .block import MAX_CHAIN, NO_BASE, Codec, Coding, Kind, ObjectId, max_size, object_id
from .catalog import Catalog
from .codecs import Encoder, Format
from .crew import Crew, Shelf
from .errors import CasError, Corrupt, NotFound
from .pack import ROW, WIDTHS, Location, PackId, Row, name_of
from .packing import Packs
from .reach import Edge

_TAIL = 64 << 10
"""Bytes at the end of a pack in which a row of the table is looked for."""
_CODECS = set(Codec)


@dataclass(frozen=True, slots=True)
class Source:
    """A store that objects are taken from."""

    backend: Backend
    catalog: Catalog


class _Bench:
    """What one thread reuses from object to object."""

    def __init__(self, backend: Backend, lookup: Lookup) -> None:
        self.encoder = Encoder()
        self.bases = Bases(backend, lookup, self.encoder)


class Holder:
    """A store from which objects are taken: what its catalog finds, and what the tables of damaged packs still tell.

    Safe to use from many threads.
    """

    def __init__(self, backend: Backend, catalog: Lookup, damaged: Iterable[PackId] = ()) -> None:
        self._backend = backend
        self._catalog = catalog
        self._told: dict[ObjectId, list[Location]] = {}
        self._benches = Shelf(partial(_Bench, backend, self))
        for pack in damaged:
            for row in _guesses(backend, pack):
                self._told.setdefault(row.id, []).append(Location(pack, row))

    # -- the lookup for bases -------------------------------------------------------------------------------------

    def locate(self, ids: Iterable[ObjectId]) -> dict[ObjectId, list[Location]]:
        wanted = set(ids)
        found = self._catalog.locate(wanted)
        for name in wanted & self._told.keys():  # as blocks: it is bases that are looked for, and the kind may be bad
            told = (Location(place.pack, place.row._replace(kind=Kind.BLOCK)) for place in self._told[name])
            found[name] = [*found.get(name, ()), *told]
        return found

    def refresh(self) -> None:
        self._catalog.refresh()

    def why_missing(self) -> str:
        return self._catalog.why_missing()

    # -- copies ---------------------------------------------------------------------------------------------------

    def copies(self, wanted: Collection[Edge]) -> dict[Edge, list[Copy]]:
        """Every place where one of these objects may lie."""
        found: dict[Edge, list[Copy]] = {}
        for name, places in self._catalog.locate(name for _, name in wanted).items():
            for place in places:
                found.setdefault((Kind(place.row.kind), name), []).append(Copy(self, place))
        for place in (place for places in self._told.values() for place in places):
            for edge, row in self._told_of(place, wanted):
                found.setdefault(edge, []).append(Copy(self, Location(place.pack, row)))
        return found

    def _told_of(self, place: Location, wanted: Collection[Edge]) -> Iterator[tuple[Edge, Row]]:
        """The wanted object that a row of a damaged table tells of, or that what lies there turns out to be."""
        row = place.row
        if row.kind in set(Kind) and (Kind(row.kind), row.id) in wanted:
            yield (Kind(row.kind), row.id), row
            return
        try:
            _, raw = self.read(place)
        except (CasError, OSError):
            return
        for kind in Kind:
            edge = kind, object_id(kind, raw)
            if edge in wanted:
                yield edge, row._replace(id=edge[1], kind=kind)

    @property
    def is_remote(self) -> bool:
        return self._backend.is_remote

    def forget(self, place: Location) -> None:
        """Drop what is cached of a pack that proved bad."""
        self._backend.forget(name_of(place.pack))

    def read(self, place: Location) -> tuple[bytes, bytearray]:
        """The bytes of an object as they are stored, and decoded."""
        row = place.row
        stored = self._backend.read(name_of(place.pack), row.offset, row.stored)
        raw = bytearray(row.raw)
        with self._benches.borrow() as bench:
            bench.encoder.decode(row.coding, stored, memoryview(raw), bench.bases.of(row))
        return stored, raw


@dataclass(frozen=True, slots=True)
class Copy:
    """A place where an object may lie; `row` may be a guess."""

    holder: Holder
    place: Location


def recover(wanted: Set[Edge], here: Source, damaged: Iterable[PackId], source: Source | None) -> set[Edge]:
    """Write those of the wanted objects anew of which there is a good copy, in this store or else in `source`."""
    if not wanted:
        return set()
    copies = Holder(here.backend, here.catalog, damaged).copies(wanted)
    threads = here.backend.parallel
    if source is not None:
        threads = max(threads, source.backend.parallel)
        for edge, places in Holder(source.backend, source.catalog).copies(wanted).items():
            copies.setdefault(edge, []).extend(places)
    return salvage(wanted, lambda edge: copies.get(edge, ()), here.backend, here.catalog, threads)


def salvage(
    wanted: Iterable[Edge],
    copies: Callable[[Edge], Iterable[Copy]],
    backend: Backend,
    catalog: Catalog,
    threads: int = 1,
) -> set[Edge]:
    """Write those of the wanted objects of which a copy verifies into new packs, durable on return."""
    packs, encoders = Packs(backend, catalog), Shelf(Encoder)
    found: set[Edge] = set()

    def take(edge: Edge) -> None:
        good = _good_copy(edge, copies(edge))
        if good is not None:
            row, stored, raw = good
            with encoders.borrow() as encoder:
                coding, data = _whole(row, stored, raw, encoder)
                packs.append(edge[1], edge[0], coding, len(raw), data)
            found.add(edge)

    try:
        with Crew(threads) as crew:
            for edge in wanted:
                crew.submit(partial(take, edge))
        packs.finish()
    except BaseException:
        packs.abandon()
        raise
    return found


def _good_copy(edge: Edge, copies: Iterable[Copy]) -> tuple[Row, bytes, bytearray] | None:
    """The first copy of an object that verifies: its row, its bytes as stored and as they are."""
    for copy in copies:
        for _ in range(2 if copy.holder.is_remote else 1):  # a network may damage bytes on their way
            try:
                stored, raw = copy.holder.read(copy.place)
            except (NotFound, Corrupt):
                copy.holder.forget(copy.place)
                continue
            except OSError:
                if copy.holder.is_remote:  # the server fails, of which nothing follows for the object
                    raise
                break
            if object_id(edge[0], raw) == edge[1]:
                return copy.place.row, stored, raw
            copy.holder.forget(copy.place)
    return None


def _whole(row: Row, stored: bytes, raw: bytearray, encoder: Encoder) -> tuple[Coding, memoryview]:
    """Coding and stored bytes: as they are, but not of a delta."""
    if not row.chain:
        return row.coding, memoryview(stored)
    coding, data = encoder.encode(np.frombuffer(raw, np.uint8), Format(None), "zstd")
    return coding, memoryview(data)


def _guesses(backend: Backend, pack: PackId) -> Iterator[Row]:
    """What the rows of a damaged table may be, each as it stands there and as its neighbours say."""
    try:
        slots, table = _slots(backend, name_of(pack))
    except (CasError, OSError):
        return
    for number, row in enumerate(slots):
        before = slots[number - 1] if number else None
        after = slots[number + 1] if number + 1 < len(slots) else None
        end = after.offset if after is not None and _is_plausible(after) else table
        start = end - row.stored
        if before is not None and _is_plausible(before):
            start = before.offset + before.stored
        between = [row._replace(offset=at, stored=max(0, end - at)) for at in (start, row.offset)]
        coded = [guess for at in (row, *between) for guess in _codings(at)]
        as_raw = [Row(at.id, at.kind, Codec.RAW, 0, 0, at.offset, at.stored, at.stored, NO_BASE) for at in between]
        yield from (guess for guess in dict.fromkeys([*coded, *as_raw]) if _is_readable(guess))


def _codings(row: Row) -> list[Row]:
    """The row with what its codec, width, chain and base may be, if one of them is damaged. Only a delta has a chain
    and a base, and a chain is no more than a limit."""
    has_chain = 0 < row.chain <= MAX_CHAIN
    if row.codec == Codec.DELTA or (has_chain and any(row.base)):
        row = row._replace(codec=Codec.DELTA, chain=row.chain if has_chain else MAX_CHAIN)
    else:
        row = row._replace(chain=0, base=NO_BASE)
    if row.codec not in _CODECS:
        return []
    widths = WIDTHS[Codec(row.codec)]
    return [row] if row.width in widths else [row._replace(width=width) for width in widths]


def _slots(backend: Backend, name: str) -> tuple[list[Row], int]:
    """The records of the table, damaged ones among them, found from one that is plausible near the end; and where the
    first of them stands, which is where the last object ends."""
    tail, size = backend.tail(name, _TAIL)
    end = next((e for e in range(len(tail), ROW.size - 1, -1) if _is_plausible(_row(tail[e - ROW.size : e]))), None)
    if end is None:
        raise Corrupt(f"no row of a table is left in pack {name}")
    last = _row(tail[end - ROW.size : end])
    behind = [_row(tail[end : end + ROW.size])] if end + ROW.size <= len(tail) else []
    start = size - len(tail) + end - ROW.size
    found = list(_backwards(backend, name, start, last))
    if len(found) > 1 and not any(map(_is_plausible, found[-2:])):
        found.pop()  # two such: one may be the first row, the other is none
    return [*reversed(found), last, *behind], start - len(found) * ROW.size


def _backwards(backend: Backend, name: str, at: int, first: Row) -> Iterator[Row]:
    """The records before the one at `at`, nearest first, up to the one at the start of the pack."""
    damaged = 0
    while first.offset > envelope.SIZE and at >= ROW.size and damaged < 2:
        at -= ROW.size
        row = _row(backend.read(name, at, ROW.size))
        damaged = 0 if _is_plausible(row) else damaged + 1
        first = row if _is_plausible(row) else first
        yield row


def _row(data: bytes) -> Row:
    return Row._make(ROW.unpack(data))


def _is_readable(row: Row) -> bool:
    """Whether it can be tried: no more memory than any object takes."""
    codec_fits = row.codec in _CODECS and row.width in WIDTHS[Codec(row.codec)]
    return codec_fits and 0 < row.stored <= row.raw <= max_size(Kind.TREE) and row.offset >= envelope.SIZE


def _is_plausible(row: Row) -> bool:
    if not _is_readable(row) or row.kind not in set(Kind):
        return False
    if row.codec == Codec.DELTA:
        return row.kind == Kind.BLOCK and 0 < row.chain <= MAX_CHAIN and any(row.base)
    return row.chain == 0 and not any(row.base)
