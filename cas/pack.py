"""Packs: immutable files of stored objects with a table.

    header 64 | stored bytes ... | table: rows x 84 | footer 112
    row:    id 32 | kind u8 | codec u8 | width u8 | chain u8 | offset u64 | stored u32 | raw u32 | base 32
    footer: copy of the header 64 | table offset u64 | rows u32 | "cend" | BLAKE3 32 of header, table and these 16 bytes

All little-endian. Rows stand in the order of their offsets; the first starts at 64, each next where the one before
ends, the table where the last one ends: no gaps, no overlaps. The footer repeats the header, so that one read of
the file's end gives a verified table.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple, NewType

import numpy as np
from blake3 import blake3

from . import envelope
from .backend import Backend, Buffer, NewFile
from .block import ID_SIZE, MAX_CHAIN, NO_BASE, Codec, Coding, Kind, ObjectId, max_size, short
from .errors import Corrupt, Invalid

PackId = NewType("PackId", bytes)
"""16 random bytes, never reused."""

FOLDER = "packs"
TARGET_SIZE = 256 << 20
MAXROWS = 1 << 22
ROW = struct.Struct("<32sBBBBQII32s")
_FOOTER = struct.Struct("<QI4s32s")
_END = b"cend"
_FOOTER_SIZE = envelope.SIZE + _FOOTER.size
_TAIL = 32 << 10
"""Bytes of the first read of a table: of all reads over a network the one that most often brings what nobody needs."""
_DTYPE = np.dtype(
    [
        ("id", "V32"),
        ("kind", "u1"),
        ("codec", "u1"),
        ("width", "u1"),
        ("chain", "u1"),
        ("offset", "<u8"),
        ("stored", "<u4"),
        ("raw", "<u4"),
        ("base", "V32"),
    ]
)
_CODECS = max(Codec) + 1
_KINDS = max(Kind) + 1
WIDTHS = {Codec.RAW: (0,), Codec.ZSTD: (0,), Codec.PLANES: (2, 4, 8), Codec.DELTA: (1, 2, 4, 8)}
_HAS_WIDTH = np.array([[width in WIDTHS[codec] for width in range(256)] for codec in Codec])
_LIMITS = np.array([max_size(kind) for kind in Kind], np.uint32)


class Row(NamedTuple):
    """How one object lies in a pack: `stored` bytes at `offset`, `raw` bytes once decoded.

    For `codec`, `width`, `chain` and `base` see `Coding`.
    """

    id: ObjectId
    kind: int
    codec: int
    width: int
    chain: int
    offset: int
    stored: int
    raw: int
    base: bytes

    @property
    def coding(self) -> Coding:
        return Coding(Codec(self.codec), self.width, self.chain, self.base)


class Location(NamedTuple):
    """Where an object lies: a row of a pack."""

    pack: PackId
    row: Row


@dataclass(frozen=True, slots=True)
class Table:
    """A pack's verified rows, as an array of 84-byte records; `size` is the whole file's."""

    pack: PackId
    size: int
    rows: np.ndarray[Any, np.dtype[np.void]]

    def __iter__(self) -> Any:
        return (Row._make(record) for record in ROW.iter_unpack(self.rows.tobytes()))


def new_pack_id() -> PackId:
    return PackId(secrets.token_bytes(16))


def name_of(pack: PackId) -> str:
    text = pack.hex()
    return f"{FOLDER}/{text[:2]}/{text}"


def id_of(name: str) -> PackId | None:
    """The pack that a listed file is, or None for a file that is no pack."""
    parts = name.split("/")
    try:
        pack = PackId(bytes.fromhex(parts[-1]))
    except ValueError:
        return None
    return pack if len(pack) == 16 and name == name_of(pack) else None


class PackWriter:
    """Writes one pack, full at `target_size` bytes. Not thread-safe. Nothing exists for readers until `publish` has
    returned."""

    def __init__(self, backend: Backend, target_size: int = TARGET_SIZE) -> None:
        self._target_size = target_size
        self.id = new_pack_id()
        self.rows: list[Row] = []
        self._file: NewFile = backend.new_file(name_of(self.id), target_size)
        self._file.write(envelope.header(envelope.FileKind.PACK))

    @property
    def size(self) -> int:
        return self._file.size

    @property
    def is_full(self) -> bool:
        return self._file.size >= self._target_size or len(self.rows) >= MAXROWS

    @property
    def congested(self) -> bool:
        return self._file.congested

    def append(self, name: ObjectId, kind: Kind, coding: Coding, raw: int, stored: Buffer) -> None:
        codec, width, chain, base = coding
        if base == name:
            raise Invalid(f"block {short(name)} would be a change of itself, and its pack unreadable; report this")
        row = Row(name, kind, codec, width, chain, self._file.size, len(stored), raw, base)
        self._file.write(stored)
        self.rows.append(row)

    def publish(self) -> Table:
        """Write table and footer and make the pack durable."""
        offset = self._file.size
        table = b"".join([ROW.pack(*row) for row in self.rows])
        head = envelope.header(envelope.FileKind.PACK)
        end = struct.pack("<QI4s", offset, len(self.rows), _END)
        self._file.write(table + head + end + blake3(head + table + end).digest())
        self._file.publish()
        return Table(self.id, self._file.size, np.frombuffer(table, _DTYPE))

    def abandon(self) -> None:
        self._file.abandon()


def read_table(backend: Backend, pack: PackId) -> Table:
    """Read and verify a pack's table; `Corrupt` names the pack."""
    name = name_of(pack)
    tail, size = backend.tail(name, _TAIL)
    if len(tail) < _FOOTER_SIZE:
        raise Corrupt(f"pack {name} is cut short; restore it from another copy")
    head = tail[-_FOOTER_SIZE : -_FOOTER.size]
    envelope.check_header(head, envelope.FileKind.PACK, f"pack {name}")
    offset, count, end, digest = _FOOTER.unpack(tail[-_FOOTER.size :])
    length = count * ROW.size
    if end != _END or count > MAXROWS or offset + length + _FOOTER_SIZE != size or offset < envelope.SIZE:
        raise Corrupt(f"pack {name} has a damaged footer; restore it from another copy")
    if length + _FOOTER_SIZE > len(tail):
        tail, _ = backend.tail(name, length + _FOOTER_SIZE)
    table = tail[-_FOOTER_SIZE - length : -_FOOTER_SIZE]
    if blake3(head + table + tail[-_FOOTER.size : -ID_SIZE]).digest() != digest:
        raise Corrupt(f"the table of pack {name} does not match its checksum; restore it from another copy")
    rows = np.frombuffer(table, _DTYPE)
    _check_rows(rows, offset, name)
    return Table(pack, size, rows)


def _check_rows(rows: np.ndarray[Any, np.dtype[np.void]], end: int, name: str) -> None:
    """A checksum says that the rows are as written, not that who wrote them was honest."""
    stored = rows["stored"].astype(np.uint64)
    ends = np.cumsum(stored, dtype=np.uint64) + np.uint64(envelope.SIZE)
    honest = (
        (int(ends[-1]) if len(rows) else envelope.SIZE) == end
        and bool(np.all(rows["offset"] == ends - stored))
        and bool(np.all(rows["kind"] < _KINDS))
        and bool(np.all(rows["codec"] < _CODECS))
        and bool(np.all(_HAS_WIDTH[rows["codec"], rows["width"]]))
        and _have_honest_bases(rows)
        and bool(np.all(rows["raw"] <= _LIMITS[rows["kind"]]))
        and bool(np.all((rows["codec"] != Codec.RAW) | (rows["raw"] == rows["stored"])))
        and bool(np.all(rows["stored"] <= rows["raw"]))
    )
    if not honest:
        raise Corrupt(f"the table of pack {name} describes impossible rows; do not trust where it came from")


def _have_honest_bases(rows: np.ndarray[Any, np.dtype[np.void]]) -> bool:
    """Deltas are blocks with a base other than themselves, and nothing else has one."""
    deltas = rows["codec"] == Codec.DELTA
    of_deltas = rows[deltas]
    return (
        not rows["chain"][~deltas].any()
        and not rows["base"][~deltas].tobytes().strip(b"\0")
        and bool(np.all((of_deltas["chain"] > 0) & (of_deltas["chain"] <= MAX_CHAIN)))
        and bool(np.all(of_deltas["kind"] == Kind.BLOCK))
        and not np.any(of_deltas["base"] == np.void(NO_BASE))
        and not np.any(of_deltas["base"] == of_deltas["id"])
    )
