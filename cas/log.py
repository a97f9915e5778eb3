"""The log: the one thing in a store that changes. Its newest record is the root.

    log/<seq, 20 digits>:  header 64 | body | BLAKE3 32 of header and body
    body: [1, seq, read features, write features, refs, config, epoch, condemned, absent, floor, update]
    refs: [[kind, name, commit id], ...] sorted;  update: [write id 16, who, host, time in us, why]
    condemned: [[epoch, list id 16], ...] rising;  absent: [list id, ...];  floor: the oldest record that undo may name
    root:  "<seq> <BLAKE3 of that record's file>\n<BLAKE3 of the line before>\n", a hint

Publishing is create-if-absent of the next number, so exactly one of racing writers wins and the log is reflog and
audit trail by construction. A record that exists but does not verify is `Corrupt`: falling back to an older root
would take back commits that were acknowledged.
"""

from __future__ import annotations

import logging
import os
import pwd
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from blake3 import blake3

from . import envelope
from .backend import Backend, Unsettled
from .block import ObjectId
from .errors import CasError, CommitUnknown, Corrupt, Exists, Invalid, NotFound, Unsupported
from .lists import ListId
from .nodes import Node, check_node, expect, is_id, pack, unpack
from .refs import Ref, RefKind, Refs, is_name
from .verified import read_verified

FOLDER = "log"
HINT = "root"
VERSION = 1
MAX_RECORD = 16 << 20
"""Writers make no larger one; readers take four times as much."""
_DIGEST = 32
_DIGITS = 20
_WHY = 1000
"""Characters."""
_FEATURES = pack([VERSION, [], []])
"""Version, read and write features: all that this release knows."""
_WRITERS = "writers"
_logger = logging.getLogger("cas")


@dataclass(frozen=True, slots=True)
class Update:
    """Who published a record, where, when (microseconds of Unix time) and why. `write_id` tells writers apart."""

    write_id: bytes
    who: str
    host: str
    time: int
    why: str


@dataclass(frozen=True, slots=True)
class Record:
    """A whole root. `refs` and `config` are never changed in place.

    `condemned` are lists of files that nothing may lean on any more, each with the epoch that it came with; `epoch` is
    the newest of these. `absent` are lists of what commits lack on purpose. Collections keep what records from `floor`
    on name as far as their undo window goes, so undo goes no further back.
    """

    seq: int
    refs: Refs
    update: Update
    config: Mapping[str, Node] = field(default_factory=dict)
    epoch: int = 0
    condemned: tuple[tuple[int, ListId], ...] = ()
    absent: tuple[ListId, ...] = ()
    floor: int = 1

    def successor(self, why: str, **changes: Any) -> Record:
        """The next root, with these fields changed."""
        return replace(self, seq=self.seq + 1, update=new_update(why), **changes)


def new_update(why: str) -> Update:
    return Update(secrets.token_bytes(16), user(), socket.gethostname(), max(0, time.time_ns() // 1000), why[:_WHY])


def user() -> str:
    """The account's name, or its number where it has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def first_record(one_writer: bool = False) -> Record:
    return Record(1, {}, new_update("init"), {_WRITERS: "one"} if one_writer else {})


def is_for_one_writer(root: Record) -> bool:
    """Whether the store lies on a medium without an honest create-if-absent."""
    return root.config.get(_WRITERS) == "one"


def name_of(seq: int) -> str:
    return f"{FOLDER}/{seq:020}"


def encode_record(record: Record) -> bytes:
    u = record.update
    refs = [[kind, name, commit] for (kind, name), commit in sorted(record.refs.items())]
    config = [[key, value] for key, value in sorted(record.config.items())]
    update = [u.write_id, u.who, u.host, u.time, u.why]
    lists = [record.epoch, [list(item) for item in record.condemned], list(record.absent), record.floor]
    body = pack([VERSION, record.seq, [], [], refs, config, *lists, update])
    data = envelope.header(envelope.FileKind.RECORD) + body
    return data + blake3(data).digest()


def decode_record(data: bytes, seq: int) -> Record:
    """The record of number `seq`, verified and checked."""
    what = f"log record {seq}"
    if len(data) < envelope.SIZE + _DIGEST or blake3(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise Corrupt(f"{what} does not match its checksum; restore {name_of(seq)} from another copy of the store")
    envelope.check_header(data, envelope.FileKind.RECORD, what)
    body = unpack(data[envelope.SIZE : -_DIGEST], what)
    expect(type(body) is list and len(body) == 11, f"{what} has the wrong form")
    version, number, read, write, refs, config, epoch, condemned, absent, floor, update = body
    if pack([version, read, write]) != _FEATURES:
        raise Unsupported(f"{what} needs features that this release does not have: {read or write}; upgrade")
    expect(type(number) is int and number == seq, f"{what} carries the number {number}")
    expect(type(floor) is int and 1 <= floor <= seq, f"{what} has an impossible floor")
    lists = (epoch, _condemned(condemned, epoch, what), _absent(absent, what), floor)
    return Record(seq, _refs(refs, what), _update(update, what), _config(config, what), *lists)


def _condemned(items: Node, epoch: Node, what: str) -> tuple[tuple[int, ListId], ...]:
    pairs = type(items) is list and all(type(i) is list and len(i) == 2 and type(i[0]) is int for i in items)
    expect(pairs and all(_is_list_id(item[1]) for item in items), f"{what} has malformed condemned lists")
    epochs = [item[0] for item in items]
    rising = all(one < other for one, other in zip([0, *epochs], epochs, strict=False))
    expect(rising and type(epoch) is int and epoch == max(epochs, default=0), f"{what} has an impossible epoch")
    return tuple((at, ListId(name)) for at, name in items)


def _absent(items: Node, what: str) -> tuple[ListId, ...]:
    expect(type(items) is list and all(map(_is_list_id, items)), f"{what} has malformed absent lists")
    return tuple(map(ListId, items))


def _is_list_id(value: Node) -> bool:
    return type(value) is bytes and len(value) == 16


def _refs(items: Node, what: str) -> Refs:
    expect(type(items) is list, f"{what} has malformed refs")
    refs: dict[Ref, ObjectId] = {}
    for item in items:
        valid = type(item) is list and len(item) == 3 and type(item[0]) is int and type(item[1]) is str
        valid = valid and item[0] in tuple(RefKind) and is_id(item[2])
        expect(valid and is_name(item[1]), f"{what} has a malformed ref")
        refs[(RefKind(item[0]), item[1])] = ObjectId(item[2])
    expect(len(refs) == len(items) and sorted(refs) == list(refs), f"{what} has refs twice or out of order")
    return refs


def _config(items: Node, what: str) -> Mapping[str, Node]:
    pairs = type(items) is list and all(type(i) is list and len(i) == 2 and type(i[0]) is str for i in items)
    expect(pairs and sorted({i[0] for i in items}) == [i[0] for i in items], f"{what} has a malformed config")
    for _, value in items:
        check_node(value)
    return dict(items)


def _update(item: Node, what: str) -> Update:
    valid = type(item) is list and len(item) == 5 and type(item[0]) is bytes and type(item[3]) is int
    valid = valid and len(item[0]) == 16 and all(type(item[at]) is str for at in (1, 2, 4))
    expect(valid, f"{what} has a malformed update")
    return Update(*item)


class Log:
    """Reads and publishes records. Keeps the newest number seen, and of a remote store that record too, for which each
    look is a request. Safe to use from many threads."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._seen = 0
        self._newest: Record | None = None
        self._durable = 0  # the newest record of which this process knows that it survives a power cut

    def head(self) -> Record:
        """The root: the newest record, verified."""
        if self._backend.is_remote:
            return self._newest_remote()
        seq = max(self._seen, self._hinted())
        if seq == 0:
            seq = self.newest_listed()
        while self._backend.exists(name_of(seq + 1)):
            seq += 1
        record = self.read(seq)
        self._seen = seq
        return record

    def _newest_remote(self) -> Record:
        """From the one that was seen last, else from the hint, upwards; from the hint too where there is more."""
        record, hinted = self._newest, self._newest is None
        if record is None:
            record = self.read(self._hinted() or self.newest_listed())
        while True:
            try:
                record = self.read(record.seq + 1)
            except NotFound:
                break
            if not hinted:
                hinted, number = True, self._hinted()
                record = self.read(number) if number > record.seq else record
        if self._newest is None or record.seq >= self._newest.seq:
            self._newest, self._seen = record, record.seq
        return record

    def read(self, seq: int) -> Record:
        """One record; `NotFound` below the first or above the last."""
        return read_verified(self._backend, name_of(seq), lambda data: decode_record(data, seq))

    def records(self) -> Iterator[Record]:
        """Every record, newest first."""
        for seq in range(self.head().seq, 0, -1):
            yield self.read(seq)

    def publish(self, record: Record) -> bool:
        """Make `record` the root, durably; False if another writer took its number.

        `CommitUnknown` when the medium failed after the record had its name: see `settle`.
        """
        data = encode_record(record)
        if len(data) > MAX_RECORD:
            raise Invalid(
                f"the record would take {len(data)} bytes, more than {MAX_RECORD}; use fewer or shorter names"
            )
        decode_record(data, record.seq)  # a root that no reader would accept must never come into being
        self.confirm(record.seq - 1)  # else a power cut may keep this one and take the one before
        try:
            self._backend.create(name_of(record.seq), data)
        except Exists:
            try:
                return self.settle(record)
            except OSError as error:
                raise CommitUnknown(
                    f"log record {record.seq} exists, and whose it is cannot be told: {error}; try again to settle it"
                ) from error
        except Unsettled as error:
            raise CommitUnknown(
                f"log record {record.seq} may have been published, or may be yet: {error}; try again to settle it"
            ) from error
        self._seen = max(self._seen, record.seq)
        if self._newest is not None and self._newest.seq < record.seq:
            self._newest = record
        self._durable = max(self._durable, record.seq)
        self._write_hint(record.seq, data)
        return True

    def confirm(self, seq: int) -> None:
        """Make a record that was perhaps only read durable, before anything rests on it."""
        if seq > self._durable:
            self._backend.sync(FOLDER)
            self._durable = seq

    def settle(self, record: Record) -> bool:
        """Whether this very record is in the log. Durable if so: it was only read, so the folder is synced first."""
        try:
            found = self.read(record.seq)
        except NotFound:
            return False
        if found.update.write_id != record.update.write_id:
            return False
        self._backend.sync(FOLDER)
        return True

    def _hinted(self) -> int:
        """The number in the hint, or 0; `Corrupt` if the hint verifies but its record is gone."""
        try:
            line, check, _ = self._backend.read(HINT).decode("ascii").split("\n")
            text = line.split(" ")[0]
            seq = int(text) if len(text) <= _DIGITS else 0
        except (CasError, OSError, ValueError):  # it is a hint: what cannot be read is not there
            return 0
        if seq < 1 or check != blake3(line.encode()).hexdigest():
            return 0
        if not self._backend.exists(name_of(seq)):
            raise Corrupt(
                f"log record {seq} was published and is gone; restore {name_of(seq)} from another copy, "
                "or, in a copy of a store that was made while it was in use, delete the copy's file root"
            )
        return seq

    def newest_listed(self) -> int:
        """The largest number of a record in the folder, also above a hole."""
        names = [info.name.removeprefix(FOLDER + "/") for info in self._backend.list(FOLDER)]
        numbers = [int(name) for name in names if len(name) == 20 and name.isdecimal()]
        if not numbers:
            raise Corrupt(f"store {self._backend.url} has no log records; restore its log/ from another copy")
        return max(numbers)

    def _write_hint(self, seq: int, data: bytes) -> None:
        """Best effort: readers without the hint list the folder, so its loss costs time and nothing else."""
        line = f"{seq} {blake3(data).hexdigest()}"
        try:
            self._backend.replace(HINT, f"{line}\n{blake3(line.encode()).hexdigest()}\n".encode())
        except OSError as error:
            _logger.info("the hint was not written: %s", error)
