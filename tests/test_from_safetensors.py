"""Headers of safetensors files: the good are read as the format's own library does, all others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import cas
from cas.cli.from_safetensors import read_safetensors
from cas.cli.incoming import Unreadable
from cas.files import KnownFile

GOOD: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def write(path: Path, header: Any, data: int = 32, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(range(data)))
    return path


def parsed(path: Path) -> Any:
    return read_safetensors(KnownFile.at(path), path.name)


def test_every_dtype_comes_in_as_the_library_wrote_it(tmp_path: Path) -> None:
    raw = torch.arange(48, dtype=torch.uint8)
    names = "uint8 int8 bool int16 uint16 float16 bfloat16 int32 uint32 float32 int64 uint64 float64 complex64"
    kinds = [getattr(torch, name) for name in (*names.split(), "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")]
    held = {str(kind): (raw % 2 if kind is torch.bool else raw.clone()).view(kind).reshape(2, -1) for kind in kinds}
    held |= {"empty": torch.empty(0, 3), "scalar": torch.tensor(1.5), "f4": raw.view(torch.float4_e2m1fn_x2)}
    save_file(held, tmp_path / "m.safetensors", metadata={"format": "pt"})
    found = parsed(tmp_path / "m.safetensors")
    with cas.open(tmp_path / "store", create=True) as store:
        store.commit(found.state, origin=found.origin)
        loaded = store.load("main")
        (file,) = store.leaves("main").origin()
        assert (
            b"".join(map(bytes, store.leaves("main").stream(file.parts)))
            == Path(tmp_path / "m.safetensors").read_bytes()
        )
    with safe_open(tmp_path / "m.safetensors", "pt") as theirs:
        assert loaded.keys() == set(theirs.keys())
        for name, tensor in loaded.items():
            expected = held[name]
            assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
            assert tensor.reshape(-1).view(torch.uint8).tolist() == expected.reshape(-1).view(torch.uint8).tolist()


BAD: dict[str, Any] = {
    "header is a list": [],
    "header is a number": 3,
    "header is not JSON": b"{",
    "header is not Unicode": b'{"\xff": 1}',
    "header is nested without end": b"[" * 100_000,
    "a name twice": b'{"a": {"dtype":"U8","shape":[32],"data_offsets":[0,32]},'
    b'"a": {"dtype":"U8","shape":[32],"data_offsets":[0,32]}}',
    "an entry is null": {"a": None},
    "an unknown dtype": {"a": {**GOOD["a"], "dtype": "F31"}, "b": GOOD["b"]},
    "a dtype that is a list": {"a": {**GOOD["a"], "dtype": []}, "b": GOOD["b"]},
    "a negative size": {"a": {**GOOD["a"], "shape": [-2, -3]}, "b": GOOD["b"]},
    "a size that is a bool": {"a": {**GOOD["a"], "shape": [True, 6]}, "b": GOOD["b"]},
    "a size that is a float": {"a": {**GOOD["a"], "shape": [2.0, 3]}, "b": GOOD["b"]},
    "a huge shape": {"a": {**GOOD["a"], "shape": [1 << 62] * 60}, "b": GOOD["b"]},
    "sizes that wrap around 64 bits": {"a": {**GOOD["a"], "shape": [1 << 62, 4, 6]}, "b": GOOD["b"]},
    "a thousand dimensions": {"a": {**GOOD["a"], "shape": [1] * 998 + [2, 3]}, "b": GOOD["b"]},
    "overlapping tensors": {"a": GOOD["a"], "b": {**GOOD["b"], "data_offsets": [20, 28]}},
    "a hole": {"a": GOOD["a"], "b": {**GOOD["b"], "shape": [3], "data_offsets": [26, 32]}},
    "the same bytes twice": {"a": GOOD["a"], "c": GOOD["a"], "b": GOOD["b"]},
    "an end beyond the file": {"a": GOOD["a"], "b": {**GOOD["b"], "shape": [8], "data_offsets": [24, 40]}},
    "bytes that no tensor has": {"a": GOOD["a"]},
    "offsets the wrong way": {"a": {**GOOD["a"], "data_offsets": [24, 0]}, "b": GOOD["b"]},
    "three offsets": {"a": {**GOOD["a"], "data_offsets": [0, 24, 24]}, "b": GOOD["b"]},
    "a negative offset": {"a": {**GOOD["a"], "data_offsets": [-24, 0]}, "b": GOOD["b"]},
    "a size other than the shape's": {"a": {**GOOD["a"], "shape": [5]}, "b": GOOD["b"]},
}


def test_the_good_header_that_the_bad_ones_resemble_is_read(tmp_path: Path) -> None:
    assert list(parsed(write(tmp_path / "m", GOOD)).state) == ["a", "b"]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_header_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Unreadable):
        parsed(write(tmp_path / "m", BAD[name]))


@pytest.mark.parametrize("length", [0, 1, 40, (1 << 64) - 1, 1 << 62])
def test_a_header_past_the_end_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(Unreadable):
        parsed(write(tmp_path / "m", b"{}", data=0, length=length))


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = write(tmp_path / "m", GOOD).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(Unreadable):
            parsed(tmp_path / "cut")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_the_library_refuses_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """And what it reads is read alike, for any small change of a header."""
    text = bytearray(json.dumps(GOOD).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.sampled_from(b'0123456789[]{}:,"- abFU'))
    path = write(tmp_path_factory.mktemp("fuzz") / "m", bytes(text))
    try:
        state = parsed(path).state
    except Unreadable:
        return
    try:
        with safe_open(path, "np") as theirs:
            assert set(theirs.keys()) == state.keys()
            for name in theirs.keys():  # noqa: SIM118  # the library's object is no dict
                assert tuple(theirs.get_slice(name).get_shape()) == state[name].shape
    except SafetensorError as error:
        pytest.fail(f"{bytes(text)!r} was read, and the library says {error}")


def test_only_the_bytes_that_are_asked_for_are_read(tmp_path: Path) -> None:
    """A file of 1 TB with a hole for its data is parsed at once."""
    size = 1 << 40
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open(tmp_path / "m", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    tensor = parsed(tmp_path / "m").state["a"]
    out = np.ones(10, np.uint8)
    tensor.source.read_into(size - 10, out)
    assert (tensor.shape, out.sum()) == ((size,), 0)


@pytest.mark.parametrize("piece", [b"[],", b"{},", b"1111,", "\U0001f680".encode()])
def test_a_header_that_would_fill_the_memory_is_refused_unread(tmp_path: Path, piece: bytes) -> None:
    inner = piece * ((90 << 20) // len(piece))
    header = b'{"a": "' + inner + b'"}' if len(piece) == 4 else b'{"a": [' + inner + b"0]}"
    with pytest.raises(Unreadable, match="its header is too large"):
        parsed(write(tmp_path / "m.safetensors", header))
