"""The log: pinned records, hint and cas.json; publishing, settling and finding the root."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from cas import envelope, identity
from cas.block import ObjectId
from cas.errors import Corrupt, NotFound, Unsupported
from cas.identity import Identity
from cas.lists import ListId
from cas.local import LocalBackend
from cas.log import HINT, Log, Record, Update, decode_record, encode_record, first_record, name_of
from cas.nodes import pack
from cas.refs import RefKind

A, B = ObjectId(bytes(range(32))), ObjectId(bytes(range(32, 64)))
RECORD = Record(
    2,
    {(RefKind.TAG, "v1"): B, (RefKind.BRANCH, "main"): A},
    Update(bytes(16), "me", "host", 1_700_000_000_000_000, "commit main"),
    epoch=3,
    condemned=((3, ListId(bytes(range(16)))),),
    absent=(ListId(bytes(range(16, 32))),),
    floor=2,
)
HEAD = "8943415376310d0a0100020000000000" + "00" * 48
PINNED = (
    HEAD
    + "9b01029090929300a46d61696ec420"
    + A.hex()
    + "9301a27631c420"
    + B.hex()
    + "90"
    + "03919203c410000102030405060708090a0b0c0d0e0f91c410101112131415161718191a1b1c1d1e1f02"
    + "95c410"
    + "00" * 16
    + "a26d65a4686f7374cf00060a24181e4000ab636f6d6d6974206d61696e"
    + "6329acfaa3f3317a384f5788ec0598d90d7cd20e875df34e1574412b1022ae40"
)
PINNED_HINT = (
    "2 8d002210e6cab89c18867b379e9ffa5272c1fbb49e0152d32b57fc07a7540c9e\n"
    "df9f4b1bc621c1e62c94f690e0ab90f862092516fa61f83ed78629f691959f73\n"
)
PINNED_IDENTITY = (
    '{"magic": "cas-checkpoints", "version": 1, "id": "00112233445566778899aabbccddeeff", "block_size": 4194304, '
    '"blake3": "6021d1de73bcf07e520eb7ecf4c20105779ade7397470e1bb75df838117709fd"}\n'
)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[LocalBackend]:
    made = LocalBackend(tmp_path)
    yield made
    made.close()


@pytest.fixture
def log(backend: LocalBackend) -> Log:
    made = Log(backend)
    assert made.publish(first_record())
    return made


# -- bytes --------------------------------------------------------------------------------------------------------


def test_pinned_record() -> None:
    assert encode_record(RECORD).hex() == PINNED
    assert decode_record(bytes.fromhex(PINNED), 2) == RECORD


def test_pinned_hint(backend: LocalBackend, log: Log) -> None:
    assert log.publish(RECORD)
    assert backend.read(HINT).decode() == PINNED_HINT
    assert backend.read("log/00000000000000000002").hex() == PINNED


def test_pinned_identity(backend: LocalBackend) -> None:
    made = Identity("00112233445566778899aabbccddeeff", 4 << 20)
    assert identity.encode(made).decode() == PINNED_IDENTITY
    backend.create("cas.json", PINNED_IDENTITY.encode())
    assert identity.read(backend) == made


def sealed(body: bytes, head: bytes = bytes.fromhex(HEAD)) -> bytes:
    return head + body + blake3(head + body).digest()


L, M = bytes(range(16)), bytes(range(16, 32))
GOOD: list[Any] = [
    *(1, 2, [], [], [[0, "main", A]], []),
    *(4, [[2, M], [4, L]], [M, L], 2, [bytes(16), "me", "host", 5, "why"]),
]
REFS, CONFIG, CONDEMNED, ABSENT, FLOOR, UPDATE = 4, 5, 7, 8, 9, 10
BAD: dict[str, tuple[int, Any, type[Exception]]] = {
    "version 2": (0, 2, Unsupported),
    "version as bool": (0, True, Unsupported),
    "number as bool": (1, True, Corrupt),
    "features of nothing": (2, None, Unsupported),
    "epoch as float": (6, 4.0, Corrupt),
    "ref kind as bool": (REFS, [[True, "main", A]], Corrupt),
    "short write id": (UPDATE, [bytes(15), "me", "host", 5, "why"], Corrupt),
    "another number": (1, 3, Corrupt),
    "number as float": (1, 2.5, Corrupt),
    "read feature": (2, ["delta"], Unsupported),
    "write feature": (3, ["x"], Unsupported),
    "refs of nothing": (REFS, None, Corrupt),
    "ref of an unknown kind": (REFS, [[3, "main", A]], Corrupt),
    "ref of a number": (REFS, [[0, 5, A]], Corrupt),
    "ref of a short id": (REFS, [[0, "main", A[:31]]], Corrupt),
    "ref of two": (REFS, [[0, "main"]], Corrupt),
    "refs out of order": (REFS, [[0, "b", A], [0, "a", A]], Corrupt),
    "kinds out of order": (REFS, [[1, "a", A], [0, "b", A]], Corrupt),
    "ref twice": (REFS, [[0, "a", A], [0, "a", B]], Corrupt),
    "config of nothing": (CONFIG, None, Corrupt),
    "config of one": (CONFIG, [["a"]], Corrupt),
    "config out of order": (CONFIG, [["b", 1], ["a", 1]], Corrupt),
    "config twice": (CONFIG, [["a", 1], ["a", 1]], Corrupt),
    "config that is no node": (CONFIG, [["a", [99]]], Corrupt),
    "config that is a map": (CONFIG, [["a", {"b": 1}]], Corrupt),
    "epoch before the last list": (6, 3, Corrupt),
    "epoch after the last list": (6, 5, Corrupt),
    "condemned of nothing": (CONDEMNED, None, Corrupt),
    "condemned without epoch": (CONDEMNED, [M], Corrupt),
    "condemned by a longer id": (CONDEMNED, [[4, A]], Corrupt),
    "epochs falling": (CONDEMNED, [[4, M], [2, L]], Corrupt),
    "epochs twice": (CONDEMNED, [[4, M], [4, L]], Corrupt),
    "epoch zero": (CONDEMNED, [[0, M], [4, L]], Corrupt),
    "absent of nothing": (ABSENT, None, Corrupt),
    "absent by a longer id": (ABSENT, [A], Corrupt),
    "floor of zero": (FLOOR, 0, Corrupt),
    "floor above": (FLOOR, 3, Corrupt),
    "floor as bool": (FLOOR, True, Corrupt),
    "update of nothing": (UPDATE, None, Corrupt),
    "update of four": (UPDATE, [bytes(16), "me", "host", 5], Corrupt),
    "write id as text": (UPDATE, ["a" * 16, "me", "host", 5, "why"], Corrupt),
    "time as float": (UPDATE, [bytes(16), "me", "host", 5.5, "why"], Corrupt),
    "who as bytes": (UPDATE, [bytes(16), b"me", "host", 5, "why"], Corrupt),
}


def test_the_good_record_that_the_bad_ones_resemble_decodes() -> None:
    record = decode_record(sealed(pack(GOOD)), 2)
    assert record.refs == {(RefKind.BRANCH, "main"): A}
    assert (record.epoch, record.condemned, record.absent, record.floor) == (4, ((2, M), (4, L)), (M, L), 2)


@pytest.mark.parametrize("name", BAD)
def test_a_body_outside_the_format_is_refused_though_the_checksum_is_right(name: str) -> None:
    at, value, error = BAD[name]
    with pytest.raises(error, match=r"log record 2|not written by this format"):
        decode_record(sealed(pack([*GOOD[:at], value, *GOOD[at + 1 :]])), 2)


@pytest.mark.parametrize(
    "body", [b"", pack(GOOD[:9]), pack([*GOOD, None]), pack(GOOD) + b"\0", b"\xdc\x00\x0a" + pack(GOOD)[1:], pack(7)]
)
def test_another_form_of_the_body_is_corrupt(body: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_record(sealed(body), 2)


def test_a_pack_is_no_record() -> None:
    with pytest.raises(Corrupt, match="damaged header"):
        decode_record(sealed(pack(GOOD), envelope.header(envelope.FileKind.PACK)), 2)


def test_every_flipped_bit_and_truncation_of_a_record_is_corrupt() -> None:
    data = bytes.fromhex(PINNED)
    for at in range(len(data)):
        with pytest.raises(Corrupt):
            decode_record(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :], 2)
        with pytest.raises(Corrupt):
            decode_record(data[:at], 2)


def test_every_flipped_bit_of_cas_json_is_refused(tmp_path: Path) -> None:
    data = PINNED_IDENTITY.encode()
    backend = LocalBackend(tmp_path)
    for at in range(len(data)):
        (tmp_path / "cas.json").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises((Corrupt, Unsupported)):
            identity.read(backend)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "3", "{" * 5000, '{"a": 1}', PINNED_IDENTITY + " ", "\xff"])
def test_another_cas_json_is_corrupt(backend: LocalBackend, text: str) -> None:
    backend.create("cas.json", text.encode("latin-1"))
    with pytest.raises(Corrupt, match=r"cas\.json of"):
        identity.read(backend)


def test_a_block_size_that_cannot_be_is_corrupt(backend: LocalBackend) -> None:
    for size in (0, 1, 4097, 1 << 40, True, 4096.0, "4096", None):
        data = identity.encode(Identity("00" * 16, size))  # type: ignore[arg-type]
        backend.replace("cas.json", data)
        with pytest.raises(Corrupt):
            identity.read(backend)


def test_a_newer_store_is_unsupported(backend: LocalBackend) -> None:
    fields = {"magic": "cas-checkpoints", "version": 2, "id": "0", "block_size": 4096}
    backend.create("cas.json", json.dumps(fields).encode())
    with pytest.raises(Unsupported, match="has format version 2; this release reads version 1"):
        identity.read(backend)


# -- publishing ---------------------------------------------------------------------------------------------------


def test_one_of_two_writers_gets_a_number(backend: LocalBackend, log: Log) -> None:
    head = log.head()
    ours, theirs = head.successor("ours"), head.successor("theirs")
    assert log.publish(ours)
    assert not Log(backend).publish(theirs)
    assert log.head() == ours


def test_the_same_record_sent_again_is_published_once(backend: LocalBackend, log: Log) -> None:
    record = log.head().successor("again")
    assert log.publish(record)
    assert log.publish(record)
    assert Log(backend).publish(record)
    assert [found.seq for found in log.records()] == [2, 1]


def test_settling_tells_ours_from_anothers_and_from_none(log: Log) -> None:
    head = log.head()
    ours = head.successor("ours")
    assert not log.settle(ours)
    assert log.publish(ours)
    assert log.settle(ours)
    assert not log.settle(head.successor("theirs"))


def test_write_ids_differ() -> None:
    assert first_record().update.write_id != first_record().update.write_id


# -- finding the root ---------------------------------------------------------------------------------------------


@pytest.fixture
def seven(backend: LocalBackend, log: Log) -> LocalBackend:
    for _ in range(6):
        assert log.publish(log.head().successor("more"))
    return backend


def hint(seq: int) -> bytes:
    line = f"{seq} {'0' * 64}"
    return f"{line}\n{blake3(line.encode()).hexdigest()}\n".encode()


@pytest.mark.parametrize(
    "data",
    [b"", b"\n\n", b"7", b"\xff\xfe", b"9 x\ny\n", b"x y\n" + blake3(b"x y").hexdigest().encode() + b"\n", hint(3)],
)
def test_a_stale_or_damaged_hint_costs_nothing(seven: LocalBackend, data: bytes) -> None:
    seven.replace(HINT, data)
    assert Log(seven).head().seq == 7


def test_without_a_hint_the_folder_is_listed(seven: LocalBackend) -> None:
    seven.delete(HINT)
    seven.create("log/notes.txt", b"not a record")
    assert Log(seven).head().seq == 7


def test_records_behind_a_hint_are_found(seven: LocalBackend, tmp_path: Path) -> None:
    old, record = Log(seven), Log(seven).head()
    assert old.head().seq == 7
    seven.create(name_of(8), encode_record(replace(record, seq=8)))
    assert old.head().seq == Log(seven).head().seq == 8


def test_a_hint_above_the_last_record_is_corrupt(seven: LocalBackend) -> None:
    seven.replace(HINT, hint(9))
    with pytest.raises(Corrupt, match="log record 9 was published and is gone"):
        Log(seven).head()


def test_a_damaged_root_is_corrupt_and_no_older_one_is_taken(seven: LocalBackend, tmp_path: Path) -> None:
    path = tmp_path / name_of(7)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1])
    with pytest.raises(Corrupt, match="log record 7 does not match its checksum; restore log/00000000000000000007"):
        Log(seven).head()


def test_a_store_without_records_is_corrupt(backend: LocalBackend) -> None:
    with pytest.raises(Corrupt, match="has no log records"):
        Log(backend).head()


@pytest.mark.parametrize("seq", [0, 8, -1])
def test_numbers_outside_the_log_are_not_found(seven: LocalBackend, seq: int) -> None:
    with pytest.raises(NotFound):
        Log(seven).read(seq)


class Observed(LocalBackend):
    """Notes which folders are synced and which files are made, in order."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: list[str] = []

    def sync(self, folder: str) -> None:
        self.calls.append(f"sync {folder}")
        super().sync(folder)

    def create(self, name: str, data: Any) -> None:
        self.calls.append(f"create {name}")
        super().create(name, data)


def test_a_record_that_was_only_read_is_durable_before_the_next_is_published(tmp_path: Path, log: Log) -> None:
    """Else a power cut could take the record and keep its successor, whose number is then above a hole."""
    backend = Observed(tmp_path)
    other = Log(backend)
    assert other.publish(other.head().successor("on another's"))
    assert backend.calls == ["sync log", f"create {name_of(2)}"]
    backend.calls.clear()
    assert other.publish(other.head().successor("on its own"))
    assert backend.calls == [f"create {name_of(3)}"]
    backend.close()


def test_a_root_that_no_reader_would_accept_is_not_published(log: Log) -> None:
    with pytest.raises(Corrupt):
        log.publish(log.head().successor("wrong", refs={(RefKind.BRANCH, "a b"): A}))
    assert log.head().seq == 1
