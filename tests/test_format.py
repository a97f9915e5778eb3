"""A reader of stores written from cas/FORMAT.md alone: it imports nothing of the package, and must agree with it."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard
from blake3 import blake3

MAGIC = bytes.fromhex("8943415376310d0a")
CONTEXTS = {
    kind: f"cas-checkpoints 2026-11 {name} v1" for kind, name in enumerate(["", "list", "layout", "tree", "commit"])
}
LIST, LAYOUT, TREE, COMMIT = 1, 2, 3, 4
ITEM_SIZES = {"bool": 1, "bfloat16": 2, "complex32": 4, "complex64": 8, "complex128": 16}
ITEM_SIZES |= {f"{kind}{bits}": bits // 8 for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)}
KEYED = {1: dict, 4: OrderedDict, 5: Counter}
LISTED = {2: list, 3: tuple}


def unpack(data: bytes) -> Any:
    value = msgspec.msgpack.decode(data)
    assert msgspec.msgpack.encode(value) == data
    return value


def header(kind: int) -> bytes:
    return MAGIC + struct.pack("<HBBI", 1, kind, 0, 0) + bytes(48)


def inflate(frame: bytes, size: int) -> bytes:
    assert frame[:4] == b"\x28\xb5\x2f\xfd"
    assert zstandard.get_frame_parameters(frame).content_size == size > len(frame)
    return zstandard.ZstdDecompressor(max_window_size=4 << 20).decompress(frame, allow_extra_data=False)


def join_planes(stored: bytes, width: int, size: int) -> bytes:
    count = size // width
    starts = [i for i in range(8) if stored[0] >> i & 1]
    lengths = struct.unpack_from(f"<{len(starts)}I", stored, 2)
    at, planes = 2 + 4 * len(starts), []
    for length, start, end in zip(lengths, starts, [*starts[1:], width], strict=True):
        data, at, full = stored[at : at + length], at + length, count * (end - start)
        planes.append((start, end - start, data if length == full else inflate(data, full)))
    assert at == len(stored)
    out = bytearray(size)
    for start, part, data in planes:
        for byte in range(part):
            out[start + byte :: width] = data[byte::part]
    if stored[1] == 1:
        for end in range(width, size + 1, width):
            top = int.from_bytes(out[end - 2 : end], "little")
            out[end - 2 : end] = (top >> 1 | (top & 1) << 15).to_bytes(2, "little")
    else:
        assert stored[1] == 0
    return bytes(out)


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
        self.rows = {(row[1], row[0]): (pack, *row[2:]) for pack in packs for row in self.table(pack)}
        self.absent = {item for name in absent for item in self.listed(name, 1, 64)}
        self.codecs = Counter[int]()
        self.ties: dict[int, Any] = {}

    @staticmethod
    def table(pack: Path) -> Iterator[tuple[Any, ...]]:
        data = pack.read_bytes()
        offset, count, end, check = struct.unpack("<QI4s32s", data[-48:])
        assert data[:64] == data[-112:-48] == header(1)
        assert end == b"cend" and offset + count * 84 + 112 == len(data)  # noqa: PT018
        assert blake3(header(1) + data[offset:-112] + data[-48:-32]).digest() == check
        at = 64
        for row in struct.iter_unpack("<32sBBBBQII32s", data[offset:-112]):
            assert row[4] == 0 and row[5] == at and row[8] == bytes(32)  # noqa: PT018
            at += row[6]
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
        pack, codec, width, _, offset, stored, raw, _ = self.rows[kind, name]
        with pack.open("rb") as file:
            file.seek(offset)
            data = file.read(stored)
        self.codecs[codec] += 1
        if codec:
            data = inflate(data, raw) if codec == 1 else join_planes(data, width, raw)
        made = blake3(data, derive_key_context=CONTEXTS[kind]) if kind else blake3(data)
        assert (len(data), made.digest()) == (raw, name)
        return data

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
        array = np.frombuffer(data, dtype).reshape(shape)
        if tie is not None:
            self.ties[tie] = array
        return array


def describe(value: Any) -> Any:
    """Type, order and bits of a state, as something that == compares."""
    if isinstance(value, dict):
        return type(value), [(type(key), key, describe(child)) for key, child in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [describe(child) for child in value]
    if isinstance(value, np.ndarray | np.generic):
        return type(value), value.dtype, value.shape, value.tobytes()
    return type(value), struct.pack("<d", value) if isinstance(value, float) else value


def weights(dtype: str, *shape: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) * 0.02).astype(dtype)


TAKEN_IN = b"header:" + weights("float32", 600, 700).tobytes()
WRITE = """
import sys, pickle, cas, cas.files, cas.tensors, cas.dtypes
state, files, taken_in = pickle.load(sys.stdin.buffer)
file = cas.files.KnownFile.at(taken_in)
head, body = file.part(0, 7), file.part(7, file.nbytes)
state["taken in"] = cas.tensors.Tensor.whole("numpy", cas.dtypes.DTYPES["float32"], (body.nbytes // 4,), body, None)
with cas.open(sys.argv[1], create=True) as store:
    for codec in ("raw", "zstd", "planes"):
        store.commit(state, codec=codec, branch=codec, files=files, origin={"a/b": [head, body]}, message="hi",
                     step=7,
                     metrics={"loss": 2.5}, meta={"note": ["a", (1, {"b": 1 << 70})]})
        changed = {key: state[key] * 3 for key in ("ramp", "floats", "halves", "complex")}
        state = {"more": state, **changed}
    store.tag("v1", "zstd")
    sys.stdout.buffer.write(pickle.dumps({codec: store.load(codec) for codec in ("raw", "zstd", "planes")}))
"""


def state_of_every_kind() -> dict[Any, Any]:
    w = weights("float32", 300, 500)
    return {
        "values": [None, True, 1, -1, 1 << 63, -(1 << 80), 0.5, -0.0, math.nan, "ä", b"\0", (), {}, OrderedDict(a=1)],
        "counter": Counter(b=2),
        7: {"long": "é" * 70_000, "bytes": bytes(range(256)) * 20_000, "scalar": np.float16(1.5)},
        "tied": [w, w],
        "floats": weights("float32", 1100, 1300),
        "halves": weights("float16", 700, 700),
        "doubles": weights("float64", 90, 70, 30),
        "complex": weights("complex64", 300, 300),
        "ramp": np.arange(2_000_003),
        "bytes": np.arange(700_000).astype(np.uint8),
        "empty": np.zeros((0, 3)),
        "one": np.array(3.0),
        "many": {f"k{i}": i for i in range(9000)},
        "list": list(range(5000)),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A store, written in another process, and what that process loads from it."""
    import pickle

    path = tmp_path_factory.mktemp("format")
    (path / "config.json").write_text('{"a": 1}')
    (path / "taken-in").write_bytes(TAKEN_IN)
    given = (state_of_every_kind(), {"sub/config.json": str(path / "config.json")}, str(path / "taken-in"))
    command = [sys.executable, "-c", WRITE, str(path / "store")]
    made = subprocess.run(command, input=pickle.dumps(given), capture_output=True, check=False)
    assert made.returncode == 0, made.stderr
    return path / "store", pickle.loads(made.stdout)


@pytest.mark.parametrize("branch", ["raw", "zstd", "planes"])
def test_a_stranger_reads_every_commit(written: tuple[Path, dict[str, Any]], branch: str) -> None:
    path, loaded = written
    reader = Reader(path)
    refs = {(kind, name): commit for kind, name, commit in reader.root()[4]}
    commit = reader.object(COMMIT, refs[0, branch])
    assert describe(reader.value(reader.object(TREE, commit[0])[0])) == describe(loaded[branch])
    assert commit[1] == []
    assert commit[4:6] == ["hi", 7]
    assert reader.value(commit[6]) == {"loss": 2.5}
    assert reader.value(commit[7]) == {"note": ["a", (1, {"b": 1 << 70})]}
    assert reader.value(commit[8]) == {"sub/config.json": b'{"a": 1}'}
    assert reader.origin(*commit[9]) == {"a/b": TAKEN_IN}
    assert refs[1, "v1"] == refs[0, "zstd"]


WRITE_COMPOSITES = """
import sys, warnings, cas, torch
warnings.simplefilter("ignore")
state = {
    "coo": torch.sparse_coo_tensor([[0, 1], [2, 0]], [1.5, 2.5], (2, 3), is_coalesced=True),
    "quantised": torch.quantize_per_tensor(torch.tensor([0.5, 1.0]), 0.5, 3, torch.qint8),
}
with cas.open(sys.argv[1], create=True) as store:
    store.commit(state, branch="main")
"""


def test_a_stranger_reads_composites(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", WRITE_COMPOSITES, str(tmp_path / "store")], check=True)
    reader = Reader(tmp_path / "store")
    commit = reader.object(COMMIT, reader.root()[4][0][2])
    found = reader.value(reader.object(TREE, commit[0])[0])
    indices, values = np.array([[0, 1], [2, 0]]), np.array([1.5, 2.5], np.float32)
    coo = {"size": ("torch", "size", "2,3"), "coalesced": True, "indices": indices, "values": values}
    quantised = {"int_repr": np.array([4, 5], np.int8), "scale": 0.5, "zero_point": 3}
    assert list(found) == ["coo", "quantised"]
    assert describe(found["coo"]) == describe(("torch", "sparse_coo", coo))
    assert describe(found["quantised"]) == describe(("torch", "quantized_per_tensor", quantised))


WRITE_SHARDED = """
import sys, cas, cas.dtypes, cas.grid, cas.per_rank, cas.tensors, numpy as np
Box, ArraySource, LocalShard = cas.grid.Box, cas.tensors.ArraySource, cas.tensors.LocalShard
def sharded(full, *boxes):
    cut = lambda box: full[tuple(slice(a, a + n) for a, n in zip(box.start, box.shape))]
    shards = [LocalShard(box, ArraySource(cut(box))) for box in boxes]
    return cas.tensors.Tensor("numpy", cas.dtypes.DTYPES[full.dtype.name], full.shape, shards, None)
small, wide = np.arange(7 * 5, dtype=np.int16).reshape(7, 5), np.arange(900 * 1100, dtype=np.float64).reshape(900, 1100)
state = {
    "rows": sharded(small, Box((4, 0), (3, 5)), Box((0, 0), (4, 5))),
    "mesh": sharded(wide, *(Box((a, b), (450, 550)) for b in (0, 550) for a in (450, 0))),
    "own": cas.per_rank.PerRank({"seed": 7}),
}
with cas.open(sys.argv[1], create=True) as store:
    store.commit(state, branch="main")
"""


def test_a_stranger_reads_shards_and_values_of_ranks(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", WRITE_SHARDED, str(tmp_path / "store")], check=True)
    reader = Reader(tmp_path / "store")
    commit = reader.object(COMMIT, reader.root()[4][0][2])
    found = reader.value(reader.object(TREE, commit[0])[0])
    assert np.array_equal(found["rows"], np.arange(35, dtype=np.int16).reshape(7, 5))
    assert np.array_equal(found["mesh"], np.arange(900 * 1100, dtype=np.float64).reshape(900, 1100))
    assert found["own"] == ("cas", "per_rank", {0: {"seed": 7}})


WRITE_PRUNED = """
import sys, numpy as np, cas
with cas.init(sys.argv[1]) as store:
    for step in range(3):
        store.commit({"w": np.full(100_000, step)}, step=step)
    store.prune("main", keep_last=1)
    store.gc(grace=0, expire=0)
"""


def test_a_stranger_reads_a_store_that_was_pruned_and_collected(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", WRITE_PRUNED, str(tmp_path / "store")], check=True)
    reader = Reader(tmp_path / "store")
    root = reader.root()
    assert (root[6], root[9]) == (1, root[1] - 1)
    name, steps = root[4][0][2], []
    while True:
        tree, parents, *rest = reader.object(COMMIT, name)
        steps.append(rest[3])
        if name + tree in reader.absent:
            assert (TREE, tree) not in reader.rows
        else:
            assert np.array_equal(reader.value(reader.object(TREE, tree)[0])["w"], np.full(100_000, rest[3]))
        if not parents:
            break
        (name,) = parents
    assert steps == [2, 1, 0]
    assert len(reader.absent) == 2


def test_what_is_read_uses_every_codec_width_and_flag(written: tuple[Path, dict[str, Any]]) -> None:
    reader = Reader(written[0])
    widths, flags = set(), set()
    for (kind, name), (pack, codec, width, _, offset, *_) in reader.rows.items():
        reader.read(kind, name)
        if codec == 2:
            widths.add(width)
            flags.add(pack.read_bytes()[offset + 1])
    assert set(reader.codecs) == {0, 1, 2}
    assert (widths, flags) == ({2, 4, 8}, {0, 1})


def test_the_reader_shares_no_code_with_the_package() -> None:
    lines = Path(__file__).read_text().splitlines()
    assert [line for line in lines if line.startswith(("import cas", "from cas"))] == []
