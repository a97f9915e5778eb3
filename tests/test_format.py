"""A stranger who knows cas/FORMAT.md, and nothing of the package, reads what the package wrote, bit for bit."""

from __future__ import annotations

import math
import pickle
import struct
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stranger
from stranger import COMMIT, TREE, Reader


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
    for rows in reader.rows.values():
        for row in rows:
            reader.decode(*row)
    codecs, widths = ["codec 0", "codec 1", "codec 2"], ["planes of width 2", "planes of width 4", "planes of width 8"]
    assert sorted(reader.seen) == [*codecs, "not rotated", *widths, "rotated"]


WRITE_DRIFTS = """
import sys, pickle, cas, torch
states = pickle.load(sys.stdin.buffer)
for state in states:
    state["bfloat16"] = torch.from_numpy(state["bfloat16"]).view(torch.bfloat16)
with cas.init(sys.argv[1] + "/parents") as store:
    for step, state in enumerate(states[:3]):
        store.commit(state, step=step, delta="parent")
with cas.init(sys.argv[1] + "/repacked") as store:
    for step, state in enumerate(states):
        store.commit(state, step=step)
    store.repack("smallest")
    store.gc(grace=0, expire=0)
"""


def drifts(count: int, size: int = 40_000) -> list[dict[str, np.ndarray]]:
    """States that follow each other as in a training; of bfloat16 the bits."""
    random, states = np.random.default_rng(5), []
    weights = random.standard_normal(size).astype(np.float32)
    moments = random.standard_normal(size)
    tokens, steps = random.integers(-128, 128, size).astype(np.int8), np.cumsum(random.integers(0, 1 << 40, size))
    table = random.integers(0, 1 << 62, size)
    for _ in range(count):
        weights = weights + random.standard_normal(size).astype(np.float32) / 2048
        moments = moments * (1 + random.standard_normal(size) / 1024)
        tokens, steps = tokens + random.integers(-1, 2, size).astype(np.int8), steps + random.integers(-9, 9, size)
        table = table.copy()
        table[random.integers(0, size, 100)] += 1
        states.append(
            {
                "float32": weights,
                "bfloat16": ((weights.view(np.uint32) + 0x8000) >> 16).astype(np.uint16),
                "float64": moments,
                "complex64": weights[: size // 4].view(np.complex64),
                "int8": tokens,
                "int64": steps,
                "mostly unchanged": table,
            }
        )
    return states


def history(reader: Reader) -> list[list[Any]]:
    """The commits of the only branch, oldest first."""
    ((_, _, name),) = reader.root()[4]
    commits = [reader.object(COMMIT, name)]
    while parents := commits[0][1]:
        commits.insert(0, reader.object(COMMIT, parents[0]))
    return commits


def test_a_stranger_reads_deltas_of_commits_and_of_a_repack(tmp_path: Path) -> None:
    states, seen = drifts(4), Counter[str]()
    subprocess.run([sys.executable, "-c", WRITE_DRIFTS, str(tmp_path)], input=pickle.dumps(states), check=True)
    for name, count in ("parents", 3), ("repacked", 4):
        reader = Reader(tmp_path / name)
        for (tree, *_), state in zip(history(reader), states[:count], strict=True):
            assert describe(reader.value(reader.object(TREE, tree)[0])) == describe(state)
        assert "codec 3" in reader.seen, name
        seen += reader.seen
    assert {f"delta of width {width}" for width in (1, 2, 4, 8)} <= set(seen)
    assert {f"{kind} segment" for kind in ("zero", "raw", "zstd", "sparse")} <= set(seen)
    assert {"raw gaps", "zstd gaps", "raw values", "zstd values"} <= set(seen)
    assert {"sorted", "order kept", "chain of 3"} <= set(seen)


def test_the_reader_shares_no_code_with_the_package() -> None:
    lines = Path(stranger.__file__).read_text().splitlines()
    assert [line for line in lines if line.lstrip().startswith(("import cas", "from cas"))] == []
