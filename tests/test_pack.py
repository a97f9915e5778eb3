"""Packs: pinned bytes, and every table that no honest writer makes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from cas import envelope
from cas.block import PLAIN, Codec, Kind, block_id
from cas.errors import Corrupt, NotFound, Unsupported
from cas.local import LocalBackend
from cas.pack import ROW, PackId, PackWriter, Row, id_of, name_of, new_pack_id, read_table

HEAD = "8943415376310d0a0100010000000000" + "00" * 48
PINNED = (
    HEAD
    + "616263"
    + "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
    + "00000000"
    + "4000000000000000"
    + "03000000"
    + "03000000"
    + "00" * 32
    + HEAD
    + "4300000000000000"
    + "01000000"
    + "63656e64"
    + "292c2e3b0f67a51a6250b4a5d20a3a279f1be891e55093ea231796c1431047de"
)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[LocalBackend]:
    made = LocalBackend(tmp_path)
    yield made
    made.close()


def row(**changes: Any) -> Row:
    return Row(block_id(b"abc"), Kind.BLOCK, Codec.RAW, 0, 0, 64, 3, 3, bytes(32))._replace(**changes)


def file_of(
    rows: list[Row],
    body: bytes = b"abc",
    head: bytes = bytes.fromhex(HEAD),
    count: int | None = None,
    end: bytes = b"cend",
) -> bytes:
    """A pack whose checksum is right, whatever it says."""
    table = b"".join(ROW.pack(*item) for item in rows)
    foot = struct.pack("<QI4s", len(head) + len(body), len(rows) if count is None else count, end)
    return head + body + table + head + foot + blake3(head + table + foot).digest()


def put(backend: LocalBackend, data: bytes) -> PackId:
    name = new_pack_id()
    backend.create(name_of(name), data)
    return name


def test_pinned_pack_with_one_row(backend: LocalBackend) -> None:
    writer = PackWriter(backend)
    writer.append(block_id(b"abc"), Kind.BLOCK, PLAIN, 3, b"abc")
    table = writer.publish()
    data = backend.read(name_of(writer.id))
    assert data.hex() == PINNED
    assert list(table) == list(read_table(backend, writer.id)) == [row()]
    assert table.size == len(data)


def test_the_file_that_the_bad_ones_resemble_reads(backend: LocalBackend) -> None:
    assert file_of([row()]).hex() == PINNED
    assert list(read_table(backend, put(backend, file_of([row()])))) == [row()]
    assert list(read_table(backend, put(backend, file_of([], b"")))) == []


def test_nothing_exists_before_publish_and_after_abandon(backend: LocalBackend) -> None:
    writer = PackWriter(backend)
    writer.append(block_id(b"abc"), Kind.BLOCK, PLAIN, 3, b"abc")
    assert backend.list("packs") == []
    writer.abandon()
    assert backend.list("packs") == []


@pytest.mark.parametrize("count", [1, 777, 778, 5000])
def test_a_table_of_any_length_is_read_whole(backend: LocalBackend, count: int) -> None:
    writer = PackWriter(backend)
    for number in range(count):
        data = number.to_bytes(4, "little")
        writer.append(block_id(data), Kind.BLOCK, PLAIN, 4, data)
    written = list(writer.publish())
    assert len(written) == count
    assert list(read_table(backend, writer.id)) == written


IMPOSSIBLE: dict[str, list[Row]] = {
    "gap before": [row(offset=65)],
    "overlap with the header": [row(offset=0)],
    "offset near 2^64": [row(offset=(1 << 64) - 1)],
    "one byte short": [row(stored=2, raw=2)],
    "one byte over": [row(stored=4, raw=4)],
    "two at one place": [row(), row()],
    "kind 5": [row(kind=5)],
    "kind 255": [row(kind=255)],
    "codec 3": [row(codec=3)],
    "raw of a width": [row(width=4)],
    "zstd of a width": [row(codec=Codec.ZSTD, raw=8, width=4)],
    "planes of no width": [row(codec=Codec.PLANES, raw=8)],
    "planes of width 1": [row(codec=Codec.PLANES, raw=8, width=1)],
    "planes of width 3": [row(codec=Codec.PLANES, raw=9, width=3)],
    "planes of width 16": [row(codec=Codec.PLANES, raw=16, width=16)],
    "a chain": [row(chain=1)],
    "a base": [row(base=bytes(31) + b"\1")],
    "raw of another length": [row(raw=4)],
    "stored over raw": [row(codec=Codec.ZSTD, raw=2)],
    "block over 4 MiB": [row(codec=Codec.ZSTD, raw=(4 << 20) + 1)],
    "tree over 16 MiB": [row(kind=Kind.TREE, codec=Codec.ZSTD, raw=(16 << 20) + 1)],
    "no rows for the bytes": [],
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_rows_are_corrupt_though_the_checksum_is_right(backend: LocalBackend, name: str) -> None:
    with pytest.raises(Corrupt, match=r"impossible rows|damaged footer"):
        read_table(backend, put(backend, file_of(IMPOSSIBLE[name])))


def test_rows_at_the_limits_are_read(backend: LocalBackend) -> None:
    planes = row(codec=Codec.PLANES, width=8, raw=4 << 20)
    for good in (planes, row(codec=Codec.ZSTD, raw=4 << 20), row(kind=Kind.TREE, codec=Codec.ZSTD, raw=16 << 20)):
        assert list(read_table(backend, put(backend, file_of([good])))) == [good]


@pytest.mark.parametrize("count", [0, 2, 50, (1 << 22) + 1, (1 << 32) - 1])
def test_a_wrong_number_of_rows_is_corrupt(backend: LocalBackend, count: int) -> None:
    with pytest.raises(Corrupt, match="damaged footer"):
        read_table(backend, put(backend, file_of([row()], count=count)))


HEADS: dict[str, tuple[bytes, type[Exception]]] = {
    "magic": (b"\x89CASv2\r\n" + bytes.fromhex(HEAD)[8:], Corrupt),
    "version 2": (bytes.fromhex(HEAD[:16] + "0200" + HEAD[20:]), Unsupported),
    "kind record": (envelope.header(envelope.FileKind.RECORD), Corrupt),
    "cipher 1": (bytes.fromhex(HEAD[:22] + "01" + HEAD[24:]), Unsupported),
    "zero": (bytes.fromhex(HEAD[:24] + "01000000" + HEAD[32:]), Corrupt),
    "key id": (bytes.fromhex(HEAD[:32] + "01" + HEAD[34:]), Corrupt),
    "salt": (bytes.fromhex(HEAD[:-2] + "01"), Corrupt),
}


@pytest.mark.parametrize("name", HEADS)
def test_another_header_is_refused(backend: LocalBackend, name: str) -> None:
    head, error = HEADS[name]
    with pytest.raises(error):
        read_table(backend, put(backend, file_of([row()], head=head)))


def test_every_flipped_bit_behind_the_blocks_is_noticed(backend: LocalBackend) -> None:
    data = file_of([row()])
    for at in range(67, len(data)):
        for bit in (1, 128):
            with pytest.raises((Corrupt, Unsupported)):
                read_table(backend, put(backend, data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]))


def test_every_truncation_is_corrupt(backend: LocalBackend) -> None:
    data = file_of([row()])
    for length in range(len(data)):
        with pytest.raises(Corrupt):
            read_table(backend, put(backend, data[:length]))


def test_a_missing_pack_is_not_found(backend: LocalBackend) -> None:
    with pytest.raises(NotFound):
        read_table(backend, new_pack_id())


@pytest.mark.parametrize(
    "name",
    [
        "packs/ab/" + "ab" * 15,
        "packs/ab/" + "cd" * 16,
        "packs/" + "ab" * 16,
        "packs/ab/x" + "ab" * 16,
        "packs/AB/" + "AB" * 16,
    ],
)
def test_other_names_are_no_packs(name: str) -> None:
    assert id_of(name) is None


def test_a_pack_is_named_by_its_id() -> None:
    assert name_of(PackId(b"\xab" * 16)) == "packs/ab/" + "ab" * 16
    assert id_of("packs/ab/" + "ab" * 16) == b"\xab" * 16
