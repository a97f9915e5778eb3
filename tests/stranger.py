"""A reader of stores, written from cas/FORMAT.md alone: it imports nothing of the package. Slow, to be obvious."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import zstandard
from blake3 import blake3

MAGIC = bytes.fromhex("8943415376310d0a")
CONTEXTS = {
    kind: f"cas-checkpoints 2026-11 {name} v1" for kind, name in enumerate(["", "list", "layout", "tree", "commit"])
}
BLOCK, LIST, LAYOUT, TREE, COMMIT = range(5)
RAW, ZSTD, PLANES, DELTA = range(4)
WIDTHS = {RAW: (0,), ZSTD: (0,), PLANES: (2, 4, 8), DELTA: (1, 2, 4, 8)}
ITEM_SIZES = {"bool": 1, "bfloat16": 2, "complex32": 4, "complex64": 8, "complex128": 16}
ITEM_SIZES |= {f"{kind}{bits}": bits // 8 for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)}
NUMPY = {"bfloat16": "uint16"}  # what numpy has no dtype for stays bits
KEYED = {1: dict, 4: OrderedDict, 5: Counter}
LISTED = {2: list, 3: tuple}


class Row(NamedTuple):
    """A row of a pack's table, by the names of FORMAT.md."""

    name: bytes
    kind: int
    codec: int
    width: int
    chain: int
    offset: int
    stored: int
    raw: int
    base: bytes

    def check(self) -> None:
        assert self.kind <= COMMIT and self.width in WIDTHS[self.codec]  # noqa: PT018
        assert self.raw <= (4 << 20 if self.kind == BLOCK else 16 << 20)
        assert self.stored == self.raw if self.codec == RAW else self.stored < self.raw
        assert self.width == 0 or self.raw % self.width == 0
        if self.codec == DELTA:
            assert self.kind == BLOCK and 1 <= self.chain <= 8 and self.base != bytes(32)  # noqa: PT018
        else:
            assert self.chain == 0 and self.base == bytes(32)  # noqa: PT018


def unpack(data: bytes) -> Any:
    value = msgspec.msgpack.decode(data)
    assert msgspec.msgpack.encode(value) == data
    return value


def header(kind: int) -> bytes:
    return MAGIC + struct.pack("<HBBI", 1, kind, 0, 0) + bytes(48)


def inflate(frame: bytes, size: int) -> bytes:
    assert frame[:4] == b"\x28\xb5\x2f\xfd"
    assert frame[4] & 0b11111 == 0  # no dictionary, no checksum, bits 3 and 4 zero
    declared = zstandard.get_frame_parameters(frame)
    assert declared.content_size == size > len(frame)
    assert declared.window_size <= 4 << 20
    return zstandard.ZstdDecompressor(max_window_size=4 << 20).decompress(frame, allow_extra_data=False)


def whole_or_frame(data: bytes, size: int) -> bytes:
    return data if len(data) == size else inflate(data, size)


def planes_of(starts: int, width: int) -> list[tuple[int, int]]:
    """The first byte of each plane, and where it ends."""
    first = [i for i in range(8) if starts >> i & 1]
    planes = list(zip(first, [*first[1:], width], strict=True))
    assert first[0] == 0 and first[-1] < width  # noqa: PT018
    assert all(end - start in (1, 2, 4, 8) and start % (end - start) == 0 for start, end in planes)
    return planes


def take(stored: bytes, at: int, count: int) -> list[tuple[int, bytes]]:
    """`count` lengths at `at`, each with the bytes that it says; they fill the rest."""
    lengths = struct.unpack_from(f"<{count}I", stored, at)
    at, taken = at + 4 * count, []
    for length in lengths:
        size = length % 2**31
        taken.append((length, stored[at : at + size]))
        at += size
    assert at == len(stored)
    return taken


def join_planes(stored: bytes, width: int, size: int) -> bytes:
    count, planes = size // width, planes_of(stored[0], width)
    out = bytearray(size)
    for (start, end), (_, data) in zip(planes, take(stored, 2, len(planes)), strict=True):
        data = whole_or_frame(data, count * (end - start))
        for byte in range(start, end):
            out[byte::width] = data[byte - start :: end - start]
    if stored[1] == 1:
        assert planes[-2:] == [(width - 2, width - 1), (width - 1, width)]
        for end in range(width, size + 1, width):
            top = int.from_bytes(out[end - 2 : end], "little")
            out[end - 2 : end] = (top >> 1 | (top & 1) << 15).to_bytes(2, "little")
    else:
        assert stored[1] == 0
    return bytes(out)


def classes_of(base: list[int], width: int, count: int, shift: int, low: int) -> list[int]:
    doubled = [2 * element % 2 ** (8 * width) for element in base]
    return [min(max((element >> shift) % 256 - low, 0), count - 1) for element in doubled]


def order_of(classes: list[int], count: int) -> list[list[int]]:
    """For each class the elements whose z belong to it, in the order in which these are stored."""
    if count == 1:
        return [list(range(len(classes)))]
    assert len(classes) % 2 == 0
    pairs = sorted(range(0, len(classes), 2), key=lambda first: (classes[first], classes[first + 1]))
    return [
        [first for first in pairs if classes[first] == c] + [first + 1 for first in pairs if classes[first + 1] == c]
        for c in range(count)
    ]


def fill(form: bytes, size: int, seen: Counter[str]) -> bytes:
    """The bytes of a sparse form."""
    count, length = struct.unpack_from("<II", form)
    assert 1 <= count <= size / 4
    assert 1 <= length <= count
    gaps = whole_or_frame(form[8 : 8 + length], count)
    values = whole_or_frame(form[8 + length :], sum(gap < 255 for gap in gaps))
    assert gaps[-1] < 255 and 0 not in values  # noqa: PT018
    seen["raw gaps" if length == count else "zstd gaps"] += 1
    seen["raw values" if len(values) == len(form) - 8 - length else "zstd values"] += 1
    out, left = bytearray(), iter(values)
    for gap in gaps:
        out += bytes(gap)
        if gap < 255:
            out.append(next(left))
    assert len(out) <= size
    return bytes(out.ljust(size, b"\0"))


def segment(length: int, data: bytes, size: int, seen: Counter[str]) -> bytes:
    if length == 0:
        seen["zero segment"] += 1
        return bytes(size)
    if length >= 2**31:
        assert len(data) < size
        seen["sparse segment"] += 1
        return fill(data, size, seen)
    seen["raw segment" if length == size else "zstd segment"] += 1
    return whole_or_frame(data, size)


def change(stored: bytes, base: bytes, width: int, seen: Counter[str]) -> bytes:
    """A block from its base and what codec delta stores."""
    starts, count, shift, low = stored[:4]
    assert 1 <= count <= 8 and shift < 8 * width and low + count <= 256  # noqa: PT018
    assert count > 1 or (shift, low) == (0, 0)
    seen[f"delta of width {width}"] += 1
    seen["sorted" if count > 1 else "order kept"] += 1
    elements = np.frombuffer(base, f"<u{width}")
    order = order_of(classes_of(elements.tolist(), width, count, shift, low), count)
    segments = iter(take(stored, 4, len(planes_of(starts, width)) * count))
    parts = np.zeros((len(elements), width), np.uint8)
    for start, end in planes_of(starts, width):
        for places in order:
            data = segment(*next(segments), len(places) * (end - start), seen)
            parts[places, start:end] = np.frombuffer(data, np.uint8).reshape(-1, end - start)
    z = parts.view(f"<u{width}").ravel()
    difference = np.where(z % 2, ~(z // 2), z // 2)
    return (elements + difference).tobytes()


def cut(shape: list[int], start: list[int], box: list[int], itemsize: int, cell: int) -> list[int]:
    """The sizes of a box's blocks, run by run as the rule says."""
    k = max(len(shape) - 1, 0)
    while k and box[k] == shape[k]:
        k -= 1
    run, sizes, group = math.prod(box[k:]) * itemsize, [], None
    row = math.prod(shape[k:]) * itemsize
    skip = start[k] * math.prod(shape[k + 1 :]) * itemsize if shape else 0
    for index in np.ndindex(*box[:k]):
        number = 0
        for a, i, n in zip(start, index, shape[:k], strict=False):
            number = number * n + a + i
        if run < cell and k:
            g = 1 << int(math.log2(cell // run))
            if group == number // g:
                sizes[-1] += run
            else:
                sizes.append(run)
            group = number // g
            continue
        at = number * row + skip
        end = at + run
        while at < end:
            stop = min(end, (at // cell + 1) * cell)
            sizes.append(stop - at)
            at = stop
    return sizes


class Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        line = (path / "cas.json").read_bytes()
        fields = json.loads(line)
        digest = fields.pop("blake3")
        assert line == json.dumps({**fields, "blake3": digest}).encode() + b"\n"
        assert (digest, fields["version"]) == (blake3(json.dumps(fields).encode()).hexdigest(), 1)
        condemned, absent = self.root()[7:9]
        gone = {item.hex() for _, name in condemned for item in self.listed(name, 0, 16)}
        packs = [pack for pack in path.glob("packs/??/*") if pack.name not in gone]
        self.rows: dict[tuple[int, bytes], list[tuple[Path, Row]]] = {}
        for pack in packs:
            for row in self.table(pack):
                self.rows.setdefault((row.kind, row.name), []).append((pack, row))
        self.absent = {item for name in absent for item in self.listed(name, 1, 64)}
        self.seen = Counter[str]()
        self.ties: dict[int, Any] = {}

    @staticmethod
    def table(pack: Path) -> Iterator[Row]:
        data = pack.read_bytes()
        offset, count, end, check = struct.unpack("<QI4s32s", data[-48:])
        assert data[:64] == data[-112:-48] == header(1)
        assert end == b"cend" and offset + count * 84 + 112 == len(data)  # noqa: PT018
        assert blake3(header(1) + data[offset:-112] + data[-48:-32]).digest() == check
        at = 64
        for row in map(Row._make, struct.iter_unpack("<32sBBBBQII32s", data[offset:-112])):
            row.check()
            assert row.offset == at
            at += row.stored
            yield row
        assert at == offset

    def listed(self, name: bytes, what: int, size: int) -> list[bytes]:
        data = (self.path / "lists" / name.hex()).read_bytes()
        assert data[:64] == header(3)
        assert blake3(data[:-32]).digest() == data[-32:]
        version, found, ids = unpack(data[64:-32])
        assert [version, found, len(ids) % size] == [1, what, 0]
        items = [ids[at : at + size] for at in range(0, len(ids), size)]
        assert items == sorted(set(items))
        return items

    def root(self) -> list[Any]:
        seq = max(int(file.name) for file in (self.path / "log").iterdir())
        data = (self.path / "log" / f"{seq:020}").read_bytes()
        hint = (self.path / "root").read_text().split("\n")
        assert hint == [f"{seq} {blake3(data).hexdigest()}", blake3(hint[0].encode()).hexdigest(), ""]
        assert data[:64] == header(2)
        assert blake3(data[:-32]).digest() == data[-32:]
        body: list[Any] = unpack(data[64:-32])
        assert [body[0], body[1]] == [1, seq]
        return body

    def read(self, kind: int, name: bytes) -> bytes:
        return self.decode(*self.rows[kind, name][0])[0]

    def decode(self, pack: Path, row: Row) -> tuple[bytes, int]:
        """An object from one of its rows, and how many bases that took."""
        with pack.open("rb") as file:
            file.seek(row.offset)
            data = file.read(row.stored)
        self.seen[f"codec {row.codec}"] += 1
        bases = 0
        if row.codec == ZSTD:
            data = inflate(data, row.raw)
        elif row.codec == PLANES:
            self.seen[f"planes of width {row.width}"] += 1
            self.seen["rotated" if data[1] else "not rotated"] += 1
            data = join_planes(data, row.width, row.raw)
        elif row.codec == DELTA:
            below = [found for found in self.rows[BLOCK, row.base] if found[1].chain < row.chain]
            base, bases = self.decode(*next(found for found in below if found[1].raw == row.raw))
            bases += 1
            self.seen[f"chain of {bases}"] += 1
            data = change(data, base, row.width, self.seen)
        made = blake3(data, derive_key_context=CONTEXTS[row.kind]) if row.kind else blake3(data)
        assert (len(data), made.digest()) == (row.raw, row.name)
        return data, bases

    def object(self, kind: int, name: bytes) -> list[Any]:
        version, *fields = unpack(self.read(kind, name))
        assert version == 1
        return fields

    def content(self, content: Any, shape: list[int], itemsize: int) -> bytes:
        if type(content) is not list:
            return b"" if content is None else self.read(0, content)
        cell, shards = self.object(LAYOUT, content[0])
        assert [start for start, _, _ in shards] == sorted(start for start, _, _ in shards)
        assert sum(math.prod(box) for _, box, _ in shards) == math.prod(shape)
        whole = np.zeros([*shape, itemsize], np.uint8)
        for start, box, lists in shards:
            ids = b"".join(self.object(LIST, name)[0] for name in lists)
            blocks = [self.read(0, ids[at : at + 32]) for at in range(0, len(ids), 32)]
            assert list(map(len, blocks)) == cut(shape, start, box, itemsize, cell)
            place = tuple(slice(first, first + count) for first, count in zip(start, box, strict=True))
            whole[place] = np.frombuffer(b"".join(blocks), np.uint8).reshape([*box, itemsize])
        return whole.tobytes()

    def value(self, node: Any) -> Any:
        if type(node) is not list:
            return node
        tag = node[0]
        if tag == 0:
            return self.value(self.object(TREE, node[1])[0])
        if tag == 6:
            parts = [self.object(TREE, name)[0] for name in node[2]]
            assert all(part[0] == node[1] for part in parts)
            return self.value([node[1], [entry for part in parts for entry in part[1]]])
        if tag in KEYED:
            return KEYED[tag]({key: self.value(child) for key, child in node[1]})
        if tag in LISTED:
            return LISTED[tag](map(self.value, node[1]))
        if tag == 7:
            return self.tensor(*node[1:])
        if tag in (8, 9):
            data = self.content(node[2], [node[1]], 1)
            return data.decode() if tag == 8 else data
        if tag in (13, 14):
            return (*node[1:3], self.value(node[3]))
        if tag == 11:
            return int.from_bytes(node[2], "big") * (-1 if node[1] else 1)
        assert tag == 12
        return np.frombuffer(node[2], node[1])[0]

    def origin(self, tree: bytes, nbytes: int) -> dict[str, bytes]:
        files = self.value(self.object(TREE, tree)[0])
        found = {name: b"".join(map(bytes, pieces)) for name, pieces in files.items()}
        assert sum(map(len, found.values())) == nbytes
        return found

    def tensor(self, framework: str, dtype: str, shape: list[int], content: Any, tie: int | None) -> Any:
        if tie in self.ties:
            return self.ties[tie]
        data = self.content(content, shape, ITEM_SIZES[dtype])
        assert framework in ("numpy", "torch") and len(data) == math.prod(shape) * ITEM_SIZES[dtype]  # noqa: PT018
        array = np.frombuffer(data, NUMPY.get(dtype, dtype)).reshape(shape)
        if tie is not None:
            self.ties[tie] = array
        return array
