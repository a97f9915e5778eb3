"""The zip archives that torch.save writes: where the bytes of each record lie. Nothing in them is opened.

    local header, name, padding, bytes | ... | directory | [end of 64 bits, its locator] | end

Only archives of one form pass: every record stored as it is, in bytes of its own before the directory, under the same
name in both headers; directory and end at the very end of the file. So no other reader finds other records in it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from cas.files import FileRange

from .incoming import Unreadable

_MAX_DIRECTORY = 64 << 20
_MAX_RECORDS = 1 << 18
_LOCAL = struct.Struct("<4s22xHH")
_ENTRY = struct.Struct("<4s4xHH8xIIHHHH2x4xI")
_END = struct.Struct("<4sHHHHIIH")
_END_64 = struct.Struct("<4sQ4xIIQQQQ")
_LOCATOR = struct.Struct("<4sIQI")
_IN_64 = 0xFFFFFFFF
_ENCRYPTED = 1


def is_archive(item: FileRange) -> bool:
    return _read(item, 0, 4) == b"PK\3\4"


def records_of(item: FileRange) -> dict[str, FileRange]:
    """The bytes of each record of the archive that the range is, by name, the archive's own before it left out.

    `Unreadable` for anything that is not of the form above.
    """
    start, stop, count = _directory(item)
    try:
        entries = list(_entries(_read(item, start, stop), count))
        spans = [(entry.at, *_place(item, entry, start)) for entry in entries]
    except (struct.error, UnicodeDecodeError) as error:
        raise Unreadable("its archive is damaged") from error
    if any(one[2] > other[0] for one, other in pairwise(sorted(spans))):
        raise Unreadable("records of its archive overlap")
    found = {}
    for entry, (_, first, last) in zip(entries, spans, strict=True):
        found[entry.name.partition("/")[2]] = item.file.part(item.start + first, item.start + last)
    if len(found) != count or len({entry.name.partition("/")[0] for entry in entries}) > 1:
        raise Unreadable("its archive has a name twice, or is several in one")
    return found


def _read(item: FileRange, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of the range, as many as it has."""
    return item.file.read(item.start + start, item.start + min(stop, item.nbytes))


def _directory(item: FileRange) -> tuple[int, int, int]:
    """Where the directory lies, and how many records it names."""
    at = item.nbytes - _END.size
    if at < _LOCAL.size or not is_archive(item):
        raise Unreadable("it is no archive of torch.save, or is cut off")
    magic, disk, first_disk, here, count, size, start, comment = _END.unpack(_read(item, at, item.nbytes))
    at_64 = at - _LOCATOR.size - _END_64.size
    if at_64 >= _LOCAL.size and _read(item, at_64, at_64 + 4) == b"PK\6\6":
        at, (here, count, size, start) = at_64, _wide(item, at_64)
    if magic != b"PK\5\6" or disk or first_disk or comment or here != count or start + size != at:
        raise Unreadable("it is no archive of torch.save, or is cut off")
    if count > _MAX_RECORDS or size > _MAX_DIRECTORY:
        raise Unreadable(f"its archive has {count} records")
    return start, at, count


def _wide(item: FileRange, at: int) -> tuple[int, int, int, int]:
    """The fields of the end that do not fit 32 bits."""
    data = _read(item, at, at + _END_64.size + _LOCATOR.size)
    _, size, disk, first_disk, here, count, nbytes, start = _END_64.unpack_from(data)
    locator = _LOCATOR.unpack_from(data, _END_64.size)
    if disk or first_disk or size != _END_64.size - 12 or locator != (b"PK\6\7", 0, at, 1):
        raise Unreadable("its archive is damaged")
    return here, count, nbytes, start


@dataclass(frozen=True, slots=True)
class _Entry:
    """One record as the directory has it; `at` is where its local header begins."""

    name: str
    nbytes: int
    at: int


def _entries(directory: bytes, count: int) -> Iterator[_Entry]:
    at = 0
    for _ in range(count):
        magic, flags, method, packed, size, name, extra, comment, disk, start = _ENTRY.unpack_from(directory, at)
        if magic != b"PK\1\2" or disk:
            raise Unreadable("its archive is damaged")
        at += _ENTRY.size
        label = directory[at : at + name].decode()
        packed, size, start = _widened(directory[at + name : at + name + extra], size, packed, start)
        if method or packed != size or flags & _ENCRYPTED:
            raise Unreadable("its archive is compressed or encrypted")
        at += name + extra + comment
        yield _Entry(label, size, start)
    if at != len(directory):
        raise Unreadable("its archive is damaged")


def _widened(extra: bytes, size: int, packed: int, start: int) -> tuple[int, int, int]:
    """The fields that an entry keeps elsewhere where they do not fit 32 bits: packed size, size and start."""
    fields = b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            fields = extra[4 : 4 + length]
        extra = extra[4 + length :]
    wide = [size, packed, start]
    for at, value in enumerate(wide):
        if value == _IN_64:
            (wide[at],), fields = struct.unpack_from("<Q", fields), fields[8:]
    return wide[1], wide[0], wide[2]


def _place(item: FileRange, entry: _Entry, end: int) -> tuple[int, int]:
    """Where a record's bytes begin and end in the range. The records lie before `end`."""
    name = entry.name.encode()
    local = _read(item, entry.at, entry.at + _LOCAL.size + len(name))
    magic, length, extra = _LOCAL.unpack_from(local)
    start = entry.at + _LOCAL.size + length + extra
    if magic != b"PK\3\4" or start + entry.nbytes > end:
        raise Unreadable("its archive names bytes beyond the file")
    if local[_LOCAL.size :] != name or length != len(name):
        raise Unreadable("its archive calls a record by two names")
    return start, start + entry.nbytes
