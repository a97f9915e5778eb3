"""Writes the examples beside it with the real writers: `PYTHONPATH=tests python tests/parsers/corpus/make.py`.

Only what is not there is written: examples of earlier releases stay, and must be read for ever.
"""

from __future__ import annotations

import json
import pickle
import struct
import tempfile
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

import cas
import cas.needs
from cas import identity, lists, log, pack, retention, rowcheck
from cas.block import Codec, Kind, ObjectId
from cas.catalog import Catalog
from cas.codecs import Changes, Encoder, Format
from cas.dtypes import DTYPES
from cas.grid import Box
from cas.local import LocalBackend
from cas.nodes import Tag
from cas.nodes import pack as msgpack
from cas.objects import Layout, Shard, encode_layout, encode_list
from cas.reader import Objects

CORPUS = Path(__file__).parent


def put(name: str, data: bytes) -> None:
    if not (CORPUS / name).exists():
        (CORPUS / name).write_bytes(data)


def texts(target: str, *held: str) -> None:
    for number, text in enumerate(held):
        put(f"{target}-{number}", text.encode())


def stores(folder: Path) -> None:
    state = {
        "model": {"w": np.arange(5000, dtype=np.float32), "b": torch.ones(3, dtype=torch.bfloat16)},
        "plain": [None, True, -5, 2**70, 1.5, "text", b"bytes", (1, (2,)), OrderedDict(a=1), Counter("aab")],
        "dtype": torch.float16,
        "scalar": np.float32(3),
        "many": [{"n": number, "text": "x" * 90} for number in range(60)],
    }
    store = cas.init(folder / "store", block_size=4096)
    for number in range(3):
        state["model"]["w"][number] += 1
        store.commit(state, step=number, metrics={"loss": 1.5}, meta={"note": ["é"]}, message="made")
    store.tag("v1", "main~1")
    store.set_policy("main", keep_last=1, keep_best="loss:min:2", keep_tags=["v*"])
    store.prune(keep_last=1)
    store.gc(grace=0, expire=0)
    store.close()
    backend = LocalBackend(folder / "store")
    put("identity-store", backend.read(identity.NAME))
    put("hint-store", backend.read(log.HINT))
    newest = log.Log(backend).head()
    for name, record in {"first": log.first_record(), "pruned": newest}.items():
        put(f"log_record-{name}", log.encode_record(replace(record, seq=3, floor=min(record.floor, 3))))
    for number, info in enumerate(backend.list(lists.FOLDER)):
        put(f"list-{number}", backend.read(info.name))
    for number, info in enumerate(backend.list(pack.FOLDER)):
        if number < 2:
            put(f"pack_table-{number}", backend.read(info.name))
    read_objects(backend, folder)


def read_objects(backend: LocalBackend, folder: Path) -> None:
    objects = Objects(backend, Catalog(backend, folder / "index"))
    names = {"TREE": "tree", "COMMIT": "commit", "LIST": "block_list", "LAYOUT": "layout"}
    count: Counter[str] = Counter()
    for info in backend.list(pack.FOLDER):
        name = pack.id_of(info.name)
        assert name is not None
        for row in pack.read_table(backend, name):
            kind = Kind(row.kind).name
            if kind in names and count[kind] < 3:
                count[kind] += 1
                put(f"{names[kind]}-{count[kind]}", objects._fetch(Kind(row.kind), row.id))
    box = Box((0, 4), (8, 4))
    put("layout-shards", encode_layout(Layout(4096, (Shard(Box((0, 0), (8, 4)), (A,)), Shard(box, (B, A))))))
    put("block_list-long", encode_list([A, B] * 20))


A, B = ObjectId(b"\1" * 32), ObjectId(bytes(range(32)))


def nodes() -> None:
    leaves = {
        "tensor": [Tag.TENSOR, "numpy", "float32", [3, 4], A, 0],
        "layout": [Tag.TENSOR, "torch", "bfloat16", [300, 4], [B], None],
        "text": [Tag.TEXT, 70_000, A],
        "big": [Tag.BIGINT, True, b"\x01" * 9],
        "parts": [Tag.PARTS, Tag.DICT, [A, B]],
        "values": [Tag.DICT, [["a", [Tag.SCALAR, "float32", bytes(4)]], [5, [Tag.TUPLE, [1, None, [Tag.REF, A]]]]]],
        "composite": [
            Tag.COMPOSITE,
            "torch",
            "sparse_coo",
            [Tag.DICT, [["size", [Tag.FOREIGN, "torch", "size", "3"]]]],
        ],
    }
    for name, node in leaves.items():
        put(f"node-{name}", msgpack(node))
    for number, rules in enumerate(({"keep_last": 3}, {"keep_best": ["a:b:min:3", "c:max:1"], "keep_tags": ["v*"]})):
        put(f"policy-{number}", msgpack(retention.encode_policy(retention.policy_of(**rules))))


def blocks() -> None:
    encoder = Encoder()
    rng = np.random.default_rng(1)
    weights = rng.normal(0, 0.02, 1500).astype("<f4").view(np.uint8)
    counts = rng.integers(0, 90, 800).astype("<i8").view(np.uint8)
    for name, raw, dtype in (("float32", weights, "float32"), ("int64", counts, "int64")):
        coding, stored = encoder.encode(raw, Format(DTYPES[dtype]), "planes")
        assert coding.codec is Codec.PLANES
        put(f"planes-{name}", struct.pack("<IB", len(raw), coding.width) + bytes(stored))
    coding, stored = encoder.encode(counts, Format(None), "zstd")
    assert coding.codec is Codec.ZSTD
    put("zstd-int64", struct.pack("<IB", len(counts), coding.width) + bytes(stored))
    coding, stored = encoder.encode(np.zeros(100_000, np.uint8), Format(None), "zstd")
    put("zstd-zeros", struct.pack("<IB", 100_000, coding.width) + bytes(stored))
    base = np.arange(8000).astype(np.uint8)
    for name, dtype, moved in (
        ("kept", "int16", base.view("<i2") + rng.integers(-9, 9, 4000).astype("<i2")),
        ("uneven", "bfloat16", base.view("<u2") + rng.integers(0, 1 << (base.view("<u2") >> 13), 4000).astype("<u2")),
        ("sorted", "float32", base.view("<u4") + (rng.random(2000) < 0.02).astype("<u4")),
    ):
        delta = encoder.encode_delta(moved.view(np.uint8), base.data, Changes(DTYPES[dtype], sort=True))
        assert delta is not None
        put(f"delta-{name}", struct.pack("<IB", len(base), moved.itemsize) + bytes(delta))


def remembered(folder: Path) -> None:
    def told(edge: Any, objects: Any, absent: Any) -> Iterator[Any]:
        yield from ((Kind.TREE, B), (Kind.BLOCK, A))

    path = folder / "needs"
    cas.needs.needs = told
    cas.needs.Needs(None, path).save([(Kind.COMMIT, A)])  # type: ignore[arg-type]
    put("needs-written", path.read_bytes())
    put("needs-imprint", (folder / "needs.clean").read_bytes())
    name = pack.new_pack_id()
    rowcheck.save(folder / "fsck", rowcheck.Round({pack.new_pack_id(), name}, name, 4096, [(name, 64)]))
    put("fsck_round-saved", (folder / "fsck").read_bytes())


def lines() -> None:
    texts("revision", "main", "v1", "main~2", "main@{1}", "main@step:10~1", "main@min:loss", "@max:loss", "~1")
    texts("pattern", "model", "model/**", "**/a", "*.weight", "a*a*a", "**/**/x/*", "model//layers.0.weight", ".")
    texts("path", "model\tlayers.0.weight", "a\t\t0\tx/y\t%\t[1]", "18446744073709551616", "é\n")
    texts("amount", "5GB", "1.5 GiB", "4MiB", "64k", "5%", "0.000001 %", "10m", "12h", "now", "10000d")
    texts("step", "checkpoint-500", "runs/step_1000.pt", "epoch=1-step=100.ckpt", "global_step_7/iter=0000009")
    texts(
        "foreign", "dtype\0float32", "device\0cuda:1", "size\0" + "3,4", "size\0", "layout\0sparse_coo", "device\0cpu"
    )
    trainer = {
        "global_step": 5,
        "log_history": [{"loss": 1.5, "step": 3, "epoch": 1}, {"eval_loss": 2, "x_runtime": 1}],
    }
    texts("trainer", json.dumps(trainer))
    config = {
        "torch_dtype": "float32",
        "text_config": {"dtype": "float16"},
        "quantization_config": {"dtype": "float16"},
    }
    texts("model_config", json.dumps(config))


def files(folder: Path) -> None:
    path = folder / "file"
    save_file({"w": torch.ones(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16), "e": torch.ones(0, 3)}, path)
    put("safetensors-small", path.read_bytes())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(7)
    writer.add_rope_freq_base(10000.5)
    writer.add_bool("a.bool", True)
    writer.add_token_list(["<s>", "ü", "", "\n"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_tensor("f32", np.ones((4, 8), np.float32))
    quantized = gguf.quants.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q8", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    put("gguf-small", path.read_bytes())
    plain = {"a": [1, 2.5, None, True, "text", b"bytes", (1, (2,), (), (1, 2, 3, 4)), {}], -5: 2**62, "big": -(2**300)}
    for protocol in (2, 4):
        put(f"pickle-{protocol}", pickle.dumps(plain, protocol) if protocol > 2 else pickle.dumps([1, "é", (2.5,)], 2))
    put("pickle-made", b"\x80\x02cm\nrecord\n)R}X\1\0\0\0aK\5sb\x8c\1m\x8c\5value\x93(K\1K\2tQ\x87.")
    shared = torch.arange(12, dtype=torch.float32)
    state = {"w": shared.reshape(3, 4).t(), "v": shared[2:5], "step": 7, "o": OrderedDict(a=[torch.float16, None])}
    kinds = {
        "sparse": torch.eye(3).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(4), 0.1, 2, torch.qint8),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "size": torch.Size([3]),
        "device": torch.device("cpu"),
        "counter": Counter("aab"),
    }
    for name, held in {"state": state, "kinds": kinds}.items():
        torch.save(held, path)
        put(f"torch_save-{name}", path.read_bytes())
        put(f"archive-{name}", path.read_bytes())
    dcp.save(
        {"model": {"w": torch.ones(3, 4), "b": torch.zeros(2)}, "step": 5}, checkpoint_id=folder / "dcp", no_dist=True
    )
    put("dcp_metadata-small", (folder / "dcp" / ".metadata").read_bytes())
    put("dcp_data", (folder / "dcp" / "__0_0.distcp").read_bytes())


def main() -> None:
    warnings.simplefilter("ignore")  # of torch: sparse and quantised tensors, a single process
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        stores(folder)
        nodes()
        blocks()
        remembered(folder)
        lines()
        files(folder)


if __name__ == "__main__":
    main()
