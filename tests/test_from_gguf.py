"""GGUF files become states: the same values and bytes as their own library reads, and nothing from those that lie."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import cas
from cas.cli.from_gguf import read_gguf
from cas.cli.from_safetensors import read_safetensors
from cas.cli.incoming import Parsed, Unreadable
from cas.files import KnownFile

GGUF_TYPE = gguf.GGMLQuantizationType
U32, ARRAY, STRING = 4, 9, 8


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def header(keys: list[bytes], tensors: list[bytes], version: int = 3) -> bytes:
    return b"".join([b"GGUF", struct.pack("<IQQ", version, len(tensors), len(keys)), *keys, *tensors])


def key(name: str, value: int) -> bytes:
    return text(name) + struct.pack("<II", U32, value)


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def read(path: Path, data: bytes | None = None) -> Parsed:
    if data is not None:
        path.write_bytes(data)
    return read_gguf(KnownFile.at(path), "m.gguf")


def written(path: Path, alignment: int | None = None) -> dict[str, np.ndarray]:
    """A model as the library writes it; its tensors."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((64, 256)).astype(np.float32)
    plain = {
        "f32": weights,
        "f16": weights.astype(np.float16),
        "f64": weights.astype(np.float64),
        **{f"i{bits}": random.integers(-100, 100, (3, 5), f"int{bits}") for bits in (8, 16, 32, 64)},
    }
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(7)
    writer.add_rope_freq_base(10000.5)
    writer.add_bool("a.bool", True)
    writer.add_int64("a.negative", -(2**40))
    writer.add_token_list(["<s>", "ü", "", "\n"])
    writer.add_token_scores([0.5, -1.0])
    writer.add_array("a.bools", [True, False])
    for name, array in plain.items():
        writer.add_tensor(name, array)
    for kind in (GGUF_TYPE.Q8_0, GGUF_TYPE.Q4_0, GGUF_TYPE.BF16):
        writer.add_tensor(kind.name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return plain


@pytest.mark.parametrize("alignment", [None, 256])
def test_a_file_becomes_what_its_own_library_reads(tmp_path: Path, alignment: int | None) -> None:
    plain = written(tmp_path / "m.gguf", alignment)
    parsed = read(tmp_path / "m.gguf")
    with cas.open(tmp_path / "store", create=True) as store:
        store.commit(parsed.state, origin=parsed.origin)
        state = store.load("main")
        (stored,) = store.leaves("main").origin()
        file = b"".join(map(bytes, store.leaves("main").stream(stored.parts)))
    assert (stored.name, file) == ("m.gguf", (tmp_path / "m.gguf").read_bytes())
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert list(state["model"]) == [t.name for t in reader.tensors]
    for theirs in reader.tensors:
        ours = state["model"][theirs.name]
        if theirs.name in plain:
            assert torch.equal(ours, torch.from_numpy(plain[theirs.name]))
        else:
            assert tuple(ours.shape) == (theirs.data.shape if ours.dtype is torch.uint8 else (64, 256))
        assert ours.view(torch.uint8).numpy().tobytes() == theirs.data.tobytes()
    assert state["model"]["BF16"].dtype is torch.bfloat16
    assert state["types"] == {"Q8_0": "Q8_0", "Q4_0": "Q4_0"}
    metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    ours = {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in state["metadata"].items()}
    assert ours == metadata
    assert state["metadata"]["tokenizer.ggml.scores"].dtype == np.float32
    assert {type(ours[name]) for name in ("a.bool", "a.negative", "llama.block_count")} == {bool, int}


def test_weights_share_their_blocks_with_the_same_in_safetensors(tmp_path: Path) -> None:
    weights = torch.randn(512, 1024)
    save_file({"w": weights}, tmp_path / "m.safetensors")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("w", weights.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first = read_safetensors(KnownFile.at(tmp_path / "m.safetensors"), "m.safetensors")
    second = read(tmp_path / "m.gguf")
    with cas.open(tmp_path / "store", create=True) as store:
        store.commit(first.state, origin=first.origin)
        assert store.commit(second.state, origin=second.origin).new < 8192


def test_a_large_vocabulary_is_read(tmp_path: Path) -> None:
    words = b"".join(text(f"word{number}") for number in range(100_000))
    counts = np.arange(100_000, dtype="<i4").tobytes()
    keys = [
        text("words") + struct.pack("<IIQ", ARRAY, STRING, 100_000) + words,
        text("counts") + struct.pack("<IIQ", ARRAY, 5, 100_000) + counts,
    ]
    metadata = read(tmp_path / "m.gguf", header(keys, [])).state["metadata"]
    assert metadata["words"][99_999] == "word99999"
    assert metadata["counts"].tobytes() == counts


def test_a_word_that_is_no_unicode_stays_bytes(tmp_path: Path) -> None:
    words = text("words") + struct.pack("<IIQ", ARRAY, STRING, 2) + text(b"\xc3") + text("a")
    nested = text("nested") + struct.pack("<IIQ", ARRAY, ARRAY, 1) + struct.pack("<IQ", STRING, 1) + text("x")
    metadata = read(tmp_path / "m.gguf", header([words, nested], [], version=2)).state["metadata"]
    assert metadata == {"words": [b"\xc3", "a"], "nested": [["x"]]}


def test_an_empty_tensor_is_no_bytes(tmp_path: Path) -> None:
    data = header([], [tensor("none", (0, 3)), tensor("one", ())])
    parsed = read(tmp_path / "m.gguf", data + bytes(-len(data) % 32) + b"\0\0\x80\x3f")
    with cas.open(tmp_path / "store", create=True) as store:
        store.commit(parsed.state)
        model = store.load("main")["model"]
    assert model["none"].shape == (3, 0)
    assert model["one"].item() == 1.0


def test_without_the_library_the_way_to_get_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(cas.Unsupported, match=r"pip install 'cas-checkpoints\[gguf\]'"):
        read(tmp_path / "m.gguf", header([], []))


def body(*tensors: bytes, keys: list[bytes] | None = None, data: int = 4096) -> bytes:
    head = header(keys or [], list(tensors))
    return head + bytes(-len(head) % 32 + data)


def counts(tensors: int, keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + bytes(4096)


NESTED = text("a") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 100
IN_WORDS = text("general.alignment") + struct.pack("<I", STRING) + text("32")
HOSTILE: dict[str, tuple[bytes, str]] = {
    "other magic": (b"GGML" + bytes(100), "no GGUF file"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version 1": (header([], [], version=1), "version 1"),
    "version 4": (header([], [], version=4), "version 4"),
    "countless tensors": (counts(2**63, 0), "speaks of 9223372036854775808 tensors"),
    "countless keys": (counts(0, 2**64 - 1), "keys"),
    "more tensors than there are": (counts(1000, 0), "twice"),
    "long name": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "does not fit"),
    "long array": (header([text("a") + struct.pack("<IIQ", ARRAY, U32, 2**62)], []), "does not fit"),
    "long array of texts": (header([text("a") + struct.pack("<IIQ", ARRAY, STRING, 2**62)], []), "too long"),
    "nested arrays": (header([NESTED], []), "too deep"),
    "unknown value": (header([text("a") + struct.pack("<I", 77)], []), "unknown type 77"),
    "same key": (header([key("a", 1), key("a", 2)], []), "has a twice"),
    "same name": (body(tensor("a", (8,)), tensor("a", (8,), offset=32)), "has a twice"),
    "name without unicode": (header([text(b"\xff") + struct.pack("<II", U32, 1)], []), "no valid Unicode"),
    "unknown tensor type": (body(tensor("a", (8,), kind=99)), "unknown type 99"),
    "removed tensor type": (body(tensor("a", (8,), kind=4)), "unknown type 4"),
    "many dimensions": (body(tensor("a", (1,) * 65)), "65 dimensions"),
    "countless dimensions": (body(text("a") + struct.pack("<I", 2**32 - 1)), "4294967295 dimensions"),
    "product that overflows": (body(tensor("a", (2**32, 2**32))), "impossible shape"),
    "product that is zero": (body(tensor("a", (2**63, 2**63, 0))), "impossible shape"),
    "beyond the end": (body(tensor("a", (1025,))), "beyond the end"),
    "offset beyond the end": (body(tensor("a", (8,), offset=2**62)), "beyond the end"),
    "offset that overflows": (body(tensor("a", (8,), offset=2**64 - 32)), "beyond the end"),
    "offset between": (body(tensor("a", (8,), offset=8)), "not aligned"),
    "overlap": (body(tensor("a", (64,)), tensor("b", (8,), offset=128)), "overlap"),
    "the same bytes": (body(tensor("a", (8,)), tensor("b", (8,))), "overlap"),
    "part of a block": (body(tensor("a", (33, 2), kind=8)), "no whole blocks of Q8_0"),
    "blocks without rows": (body(tensor("a", (), kind=8)), "no whole blocks of Q8_0"),
    "no alignment": (body(keys=[key("general.alignment", 0)]), "alignment"),
    "odd alignment": (body(keys=[key("general.alignment", 24)]), "alignment"),
    "vast alignment": (body(keys=[key("general.alignment", 2**31)]), "alignment"),
    "alignment in words": (body(keys=[IN_WORDS]), "alignment"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_lies_is_unreadable(tmp_path: Path, case: str) -> None:
    data, reason = HOSTILE[case]
    with pytest.raises(Unreadable, match=reason):
        read(tmp_path / "m.gguf", data)


def test_a_file_cut_anywhere_is_unreadable(tmp_path: Path) -> None:
    written(tmp_path / "whole.gguf")
    data = (tmp_path / "whole.gguf").read_bytes()
    end = len(data) - 31  # the library pads the last tensor
    for length in (*range(0, 1500, 13), *range(1500, end, 40_009)):
        with pytest.raises(Unreadable):
            read(tmp_path / "m.gguf", data[:length])


def test_a_file_with_any_byte_changed_is_read_or_unreadable(tmp_path: Path) -> None:
    written(tmp_path / "whole.gguf")
    data = bytearray((tmp_path / "whole.gguf").read_bytes())
    outcomes: set[Any] = set()
    for at in range(0, 1400, 3):
        changed = data.copy()
        changed[at] ^= 0xFF
        try:
            outcomes.add(type(read(tmp_path / "m.gguf", bytes(changed))))
        except Unreadable:
            outcomes.add(Unreadable)
    assert outcomes == {Parsed, Unreadable}
