"""Getting objects out of packs that are damaged, and out of other stores. The name of an object is the judge.

A pack's rows are hints here. Where its table does not verify, most of the table is whole all the same: rows stand in
the order of their offsets without gaps, so a row whose offset or length is damaged lies between its neighbours, and
one whose name is damaged is known by what it decodes to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from . import envelope
from .backend import Backend
from .block import Codec, Kind, ObjectId, max_size, object_id
from .catalog import Catalog
from .codecs import Encoder
from .errors import CasError, Corrupt
from .pack import ROW, Location, PackId, Row, name_of
from .packing import Packs
from .reach import Edge

_TAIL = 64 << 10
"""Bytes at the end of a pack in which a row of the table is looked for."""
_CODECS = set(Codec)
_WIDTHS = {Codec.RAW: {0}, Codec.ZSTD: {0}, Codec.PLANES: {2, 4, 8}}


@dataclass(frozen=True, slots=True)
class Copy:
    """A place where an object may lie; `row` may be a guess."""

    backend: Backend
    place: Location


def salvage(
    wanted: Iterable[Edge], copies: Callable[[Edge], Iterable[Copy]], backend: Backend, catalog: Catalog
) -> set[Edge]:
    """Write those of the wanted objects of which a copy verifies into new packs, durable on return."""
    packs, encoder, found = Packs(backend, catalog), Encoder(), set()
    try:
        for kind, name in wanted:
            for copy in copies((kind, name)):
                row = copy.place.row
                try:
                    stored, raw = _read(copy, encoder)
                except (CasError, OSError):
                    continue
                if object_id(kind, raw) == name:
                    packs.append(name, kind, Codec(row.codec), row.width, row.raw, memoryview(stored))
                    found.add((kind, name))
                    break
        packs.finish()
    except BaseException:
        packs.abandon()
        raise
    return found


def _read(copy: Copy, encoder: Encoder) -> tuple[bytes, bytearray]:
    """The bytes of an object as they are stored, and decoded."""
    row = copy.place.row
    stored = copy.backend.read(name_of(copy.place.pack), row.offset, row.stored)
    raw = bytearray(row.raw)
    encoder.decode(row.codec, row.width, stored, memoryview(raw))
    return stored, raw


def rows_in_damaged(backend: Backend, pack: PackId, wanted: Collection[Edge]) -> Iterator[tuple[Edge, Row]]:
    """Rows of wanted objects that a damaged table still tells of, or that what lies there turns out to be."""
    encoder = Encoder()
    for row in _guesses(backend, pack):
        if row.kind in set(Kind) and (Kind(row.kind), row.id) in wanted:
            yield (Kind(row.kind), row.id), row
            continue
        try:
            _, raw = _read(Copy(backend, Location(pack, row)), encoder)
        except (CasError, OSError):
            continue
        for kind in Kind:
            edge = kind, object_id(kind, raw)
            if edge in wanted:
                yield edge, row._replace(id=edge[1], kind=kind)


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
        as_raw = [guess._replace(codec=Codec.RAW, width=0, raw=guess.stored) for guess in between]
        yield from (guess for guess in dict.fromkeys([row, *between, *as_raw]) if _is_readable(guess))


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
    codec_fits = row.codec in _CODECS and row.width in _WIDTHS[Codec(row.codec)]
    return codec_fits and 0 < row.stored <= row.raw <= max_size(Kind.TREE) and row.offset >= envelope.SIZE


def _is_plausible(row: Row) -> bool:
    return _is_readable(row) and row.kind in set(Kind) and row.chain == 0 and not any(row.base)


def copies_in(backend: Backend, catalog: Catalog, names: Iterable[ObjectId]) -> dict[Edge, list[Copy]]:
    """Every copy that a store's index knows of these objects."""
    found: dict[Edge, list[Copy]] = {}
    for name, places in catalog.locate(names).items():
        for place in places:
            found.setdefault((Kind(place.row.kind), name), []).append(Copy(backend, place))
    return found
