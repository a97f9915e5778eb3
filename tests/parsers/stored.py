"""What a store holds, and what is remembered beside its index."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

import cas
from cas import envelope, identity, imprint, lists, log, nodes, objects, pack, retention, rowcheck
from cas.block import ID_SIZE, NO_BASE, Codec, Coding, Kind, ObjectId
from cas.catalog import Catalog
from cas.codecs import Encoder
from cas.errors import CasError, Corrupt, NotFound
from cas.local import LocalBackend
from cas.needs import Needs
from cas.reader import BlockReader, Objects

from .mutate import Opened, between, half_sealed, inside, json_value, msgpack_value, octets, tokens
from .targets import CORPUS, Parse, Target, plain

_DIGEST = 32


def _seal(data: bytes) -> bytes:
    """With its digest at the end right."""
    return data[:-_DIGEST] + blake3(data[:-_DIGEST]).digest()


_SEALED = half_sealed(_seal, [octets, *[inside(between(envelope.SIZE, _DIGEST), msgpack_value)] * 2])


def _record(data: bytes) -> bytes:
    return log.encode_record(log.decode_record(data, 3))


def _list(data: bytes) -> bytes:
    """A list of either kind; never of both."""
    read: list[bytes] = []
    refusal: CasError | None = None
    for what in lists.What:
        try:
            read.append(lists.encode_list(what, set(lists.decode_list(data, what, "a list"))))
        except CasError as error:
            refusal = error
    if refusal is not None and not read:
        raise refusal
    assert len(read) == 1
    return read[0]


def _hint(folder: Path) -> Parse:
    with cas.init(folder / "store", block_size=4096) as store:
        for number in range(8):
            store.commit({"a": number})
    backend = LocalBackend(folder / "store")
    newest = log.Log(backend).head()

    def parse(data: bytes) -> None:
        backend.replace(log.HINT, data)
        assert log.Log(backend).head() == newest, "another record than the newest is the root"

    return parse


def _seal_hint(data: bytes) -> bytes:
    line = data.partition(b"\n")[0]
    return line + b"\n" + blake3(line).hexdigest().encode() + b"\n"


def _identity(folder: Path) -> Parse:
    backend = LocalBackend(folder)

    def parse(data: bytes) -> bytes:
        (folder / identity.NAME).write_bytes(data)
        return identity.encode(identity.read(backend))

    return parse


def _seal_identity(data: bytes) -> bytes:
    try:
        fields = json.loads(data)
        fields.pop("blake3", None)
        return json.dumps({**fields, "blake3": blake3(json.dumps(fields).encode()).hexdigest()}).encode() + b"\n"
    except (ValueError, TypeError, AttributeError, RecursionError):
        return data


_FOOTER = struct.Struct("<QI4s")
_END = envelope.SIZE + _FOOTER.size + _DIGEST


def _pack(folder: Path) -> Parse:
    name = pack.PackId(bytes(16))
    path = folder / pack.name_of(name)
    path.parent.mkdir(parents=True)

    def parse(data: bytes) -> bytes:
        path.write_bytes(data)
        backend = LocalBackend(folder)  # which keeps packs open
        try:
            table = pack.read_table(backend, name)
        finally:
            backend.close()
        assert table.size == len(data)
        rows = list(table)
        end = rows[-1].offset + rows[-1].stored if rows else envelope.SIZE
        joined, head = b"".join(pack.ROW.pack(*row) for row in rows), envelope.header(envelope.FileKind.PACK)
        footer = head + _FOOTER.pack(end, len(rows), b"cend")
        return data[:end] + joined + _seal_parts(head, joined, footer)

    return parse


def _seal_parts(head: bytes, table: bytes, footer: bytes) -> bytes:
    return footer + blake3(head + table + footer[len(head) :]).digest()


def _seal_pack(data: bytes) -> bytes:
    if len(data) < _END:
        return data
    offset, _, _ = _FOOTER.unpack_from(data, len(data) - _END + envelope.SIZE)
    footer = data[len(data) - _END : -_DIGEST]
    return data[: len(data) - _END] + _seal_parts(footer[: envelope.SIZE], data[offset : len(data) - _END], footer)


def _rows(data: bytes) -> Opened:
    """The rows of a pack. What is put in their place is counted in the footer."""
    stop = len(data) - _END
    (offset,) = struct.unpack_from("<Q", data, stop + envelope.SIZE)
    head, end = data[stop : stop + envelope.SIZE], data[-_DIGEST:]

    def close(table: bytes) -> bytes:
        return data[:offset] + table + head + _FOOTER.pack(offset, len(table) // pack.ROW.size, b"cend") + end

    return data[offset:stop], close


def _tree(data: bytes) -> bytes:
    return objects.encode_tree(objects.decode_tree(data))


def _layout(data: bytes) -> bytes:
    return objects.encode_layout(objects.decode_layout(data))


def _block_list(data: bytes) -> bytes:
    return objects.encode_list(objects.decode_list(data))


def _commit(data: bytes) -> bytes:
    return objects.encode_commit(objects.decode_commit(data))


def _node(data: bytes) -> bytes:
    """A node whose references all name an empty dict."""
    node = nodes.unpack(data, "a node")
    nodes.check_node(node)
    found = objects.entries_of(node, lambda _: [nodes.Tag.DICT, []])
    if found is None and type(node) is list:
        read = {nodes.Tag.TENSOR: nodes.tensor_of, **dict.fromkeys((8, 9, 10), nodes.long_of)}.get(node[0])
        node = node if read is None else read(node).node()
        if node[0] == nodes.Tag.BIGINT:
            node = nodes.int_node(nodes.int_of(node))
    return nodes.pack(node)


def _policy(data: bytes) -> bytes:
    return nodes.pack(retention.encode_policy(retention.decode_policy(nodes.unpack(data, "a policy"))))


_HEAD = struct.Struct("<IB")
_LARGEST = 1 << 20


def _block(codec: Codec) -> Callable[[Path], Parse]:
    """Blocks: raw length u32 | element width u8 | stored bytes. All of `out` is filled, whatever stood there.

    A delta's base is bytes that count up.
    """
    encoder = Encoder()

    def parse(data: bytes) -> None:
        if len(data) < _HEAD.size:
            raise Corrupt("no block")
        length, width = _HEAD.unpack_from(data)
        made = []
        for filler in (0xAA, 0x55):
            out = np.full(length % _LARGEST, filler, np.uint8)
            base = bytes(np.arange(len(out), dtype=np.uint8)) if codec is Codec.DELTA else NO_BASE
            encoder.decode(Coding(codec, width), data[_HEAD.size :], memoryview(out), base)
            made.append(out.tobytes())
        assert made[0] == made[1], "the result depends on what stood there before"

    return plain(parse)


_STORED = inside(between(_HEAD.size, 0), octets)

# -- what is remembered beside the index ----------------------------------------------------------------------------


class _Nothing:
    """Stands where objects are read: none is there, so whatever is answered was remembered."""

    def __getattr__(self, name: str) -> Any:
        def read(wanted: ObjectId) -> Any:
            raise NotFound(f"{name} {wanted.hex()} was asked for")

        return read


def _needs(folder: Path) -> Parse:
    """The file of needs, or the imprint where the input begins like one: nothing is believed that was put there."""
    path, flag = folder / "needs", folder / "needs.clean"
    tip = (Kind.COMMIT, ObjectId(b"\1" * ID_SIZE))
    path.write_bytes((CORPUS / "needs-written").read_bytes())
    imprint.take(path, flag)
    assert Needs(_Nothing(), path).of(tip).objects, "what was left here is believed"  # type: ignore[arg-type]

    def parse(data: bytes) -> None:
        path.write_bytes((CORPUS / "needs-written").read_bytes())
        imprint.take(path, flag)
        (flag if data[:1].isdigit() else path).write_bytes(data)
        Needs(_Nothing(), path).of(tip)  # type: ignore[arg-type]
        raise AssertionError("a file from elsewhere was believed")

    return parse


def _round(folder: Path) -> Parse:
    """How far fsck has read: a check goes on from there, and reads what is there to be read."""
    with cas.init(folder / "store", block_size=4096) as store:
        store.commit({"a": np.arange(3000)})
    backend = LocalBackend(folder / "store")
    catalog = Catalog(backend, folder / "index")
    reader, blocks = Objects(backend, catalog), BlockReader(backend, catalog, 1)
    names = [pack.id_of(info.name) for info in backend.list(pack.FOLDER)]
    tables = [pack.read_table(backend, name) for name in names if name is not None]
    path = folder / "fsck"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        rows = rowcheck.RowCheck(path, tables, reader, blocks)
        rows.recheck()
        rows.read(0.5, lambda nbytes, total: None)
        rows.read(1.0, lambda nbytes, total: None)
        assert 0 <= rows.read_bytes <= rows.total
        assert not rows.bad, "rows are bad that are good"
        assert rowcheck.load(path) == rowcheck.Round(), "a round that was read to its end goes on"

    return parse


# -- all of them ----------------------------------------------------------------------------------------------------

_OBJECTS = (octets, msgpack_value, msgpack_value)

TARGETS = (
    Target("log_record", plain(_record), _SEALED),
    Target("list", plain(_list), _SEALED),
    Target("hint", _hint, half_sealed(_seal_hint, [octets, tokens("-", "_", "9" * 300, "1 ", " ", "0", "\n")])),
    Target("identity", _identity, half_sealed(_seal_identity, [octets, json_value, json_value])),
    Target("pack_table", _pack, half_sealed(_seal_pack, [octets, inside(_rows, octets), inside(_rows, octets)])),
    Target("tree", plain(_tree), _OBJECTS),
    Target("layout", plain(_layout), _OBJECTS),
    Target("block_list", plain(_block_list), _OBJECTS),
    Target("commit", plain(_commit), _OBJECTS),
    Target("node", plain(_node), _OBJECTS),
    Target("policy", plain(_policy), _OBJECTS),
    Target("zstd", _block(Codec.ZSTD), [octets, _STORED]),
    Target("planes", _block(Codec.PLANES), [octets, _STORED]),
    Target("delta", _block(Codec.DELTA), [octets, _STORED]),
    Target("needs", _needs, [octets]),
    Target("fsck_round", _round, half_sealed(_seal, [octets, *[inside(between(0, _DIGEST), msgpack_value)] * 2])),
)
