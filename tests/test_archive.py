"""Archives of torch.save: where their records lie; whatever two readers could see in two ways is refused."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cas.cli.archive import records_of
from cas.cli.incoming import Unreadable
from cas.files import FileRange, KnownFile

HELD = {"archive/data.pkl": b"\x80\x02].", "archive/data/0": b"abcd" * 9, "archive/empty": b""}


def zipped(records: dict[str, bytes] | None = None, compress: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as made:
        for name, data in (records or HELD).items():
            made.writestr(name, data)
    return buffer.getvalue()


def item(path: Path, data: bytes, before: bytes = b"junk", after: bytes = b"more") -> FileRange:
    path.write_bytes(before + data + after)
    return KnownFile.at(path).part(len(before), len(before) + len(data))


def held(found: dict[str, FileRange]) -> dict[str, bytes]:
    return {name: part.file.read(part.start, part.start + part.nbytes) for name, part in found.items()}


def test_records_are_found_where_they_lie_in_a_range(tmp_path: Path) -> None:
    found = held(records_of(item(tmp_path / "f", zipped())))
    assert found == {name.removeprefix("archive/"): data for name, data in HELD.items()}


def test_what_torch_writes_is_what_python_finds_in_it(tmp_path: Path) -> None:
    for number, state in enumerate(({}, {"w": torch.ones(5), "v": torch.zeros(3, 4)}, [torch.ones(1)] * 70_000)):
        path = tmp_path / f"{number}.pt"
        torch.save(state, path)
        with zipfile.ZipFile(path) as theirs:
            expected = {name.partition("/")[2]: theirs.read(name) for name in theirs.namelist()}
        assert held(records_of(KnownFile.at(path).whole())) == expected


def test_sizes_of_64_bits_are_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made, made.open("archive/data/0", "w", force_zip64=True) as record:
        record.write(b"abc")
    assert held(records_of(item(tmp_path / "f", buffer.getvalue()))) == {"data/0": b"abc"}


def directory(data: bytes, number: int) -> int:
    """Where an entry of the directory begins."""
    at = -1
    for _ in range(number + 1):
        at = data.index(b"PK\1\2", at + 1)
    return at


def with_field(number: int, at: int, value: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        place = directory(data, number) + at
        return data[:place] + value + data[place + len(value) :]

    return change


def same_place_twice(data: bytes) -> bytes:
    """The second record begins inside the first."""
    first = data.index(b"PK\3\4", 1)
    place = directory(data, 1)
    inner = data[:44] + data[first : first + 44]
    return inner + data[len(inner) : place + 42] + struct.pack("<I", 44) + data[place + 46 :]


LIES: dict[str, Callable[[bytes], bytes]] = {
    "compressed": lambda data: zipped(compress=zipfile.ZIP_DEFLATED),
    "encrypted": with_field(1, 8, b"\1\0"),
    "packed to another size": with_field(1, 20, b"\1\0\0\0"),
    "beyond the end": with_field(1, 20, b"\xff\xff\xff\x0f" * 2),
    "on another disk": with_field(1, 34, b"\1\0"),
    "a header beyond the end": with_field(1, 42, b"\xfe\xff\xff\xff"),
    "64 bits that are not there": with_field(1, 24, b"\xff\xff\xff\xff"),
    "another name in the directory": with_field(1, 46, b"archivf"),
    "no valid name": with_field(1, 46, b"\xff\xff"),
    "bytes of another record": with_field(1, 42, struct.pack("<I", 0)),
    "overlapping": same_place_twice,
    "bytes after the end": lambda data: data + b"x",
    "a comment": lambda data: data[:-2] + b"\1\0x",
    "fewer records than there are": lambda data: data[:-14] + b"\2\0\2\0" + data[-10:],
    "more records than there are": lambda data: data[:-14] + b"\4\0\4\0" + data[-10:],
    "bytes before the start": lambda data: b"x" + data,
    "a second end": lambda data: data + data[-22:],
    "two archives in one": lambda data: zipped({"a/data.pkl": b"", "b/data/0": b""}),
    "one name twice": lambda data: zipped({"a/same": b"1", "a/sbme": b"2"}).replace(b"sbme", b"same"),
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_an_archive_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    with pytest.raises(Unreadable):
        records_of(item(tmp_path / "f", LIES[lie](zipped()), b"", b""))


def test_bytes_flipped_anywhere_are_refused_or_leave_all_in_place(tmp_path: Path) -> None:
    whole = zipped()
    places = [(part.start, part.nbytes) for part in records_of(item(tmp_path / "f", whole)).values()]
    for at in range(len(whole)):
        part = item(tmp_path / "f", whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            found = records_of(part)
        except Unreadable:
            continue
        assert [(part.start, part.nbytes) for part in found.values()] == places
