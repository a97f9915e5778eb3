"""Files of torch.save: whole and plain ones are read without their tensors' bytes, no file's code ever runs."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cas
from cas.cli.from_torch import read_torch
from cas.cli.incoming import Unreadable
from cas.cli.reading import read_file
from cas.files import KnownFile
from cas.tensors import Tensor

W = torch.arange(60_000, dtype=torch.float32).view(200, 300)


def state() -> dict[str, Any]:
    return {
        "whole": W,
        "tied": W,
        "rows": W[3:50],
        "columns": W[:, 5:9],
        "transposed": W.t(),
        "expanded": torch.ones(1).expand(7),
        "bf16": torch.ones(3, 5, dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 3),
        "plain": [1, 2.5, None, "text", b"bytes", True, (1, torch.Size([2, 3])), {7: 1}],
        "torch": [torch.float16, torch.device("cpu")],
        "ordered": collections.OrderedDict(b=W[0], a=1),
        "counter": collections.Counter("abca"),
    }


def parsed(path: Path) -> Any:
    return read_torch(KnownFile.at(path), path.name)


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other) or isinstance(other, torch.nn.Parameter)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save(state(), tmp_path / "s.pt")
    return tmp_path / "s.pt"


def test_what_was_saved_comes_in_whole(saved: Path, tmp_path: Path) -> None:
    found = parsed(saved)
    with cas.open(tmp_path / "store", create=True) as store:
        commit = store.commit(found.state, origin=found.origin)
        loaded = store.load("main")
        assert_same(loaded, torch.load(saved, weights_only=True))
        assert loaded["whole"] is loaded["tied"]
        (file,) = store.leaves("main").origin()
        assert b"".join(map(bytes, store.leaves("main").stream(file.parts))) == saved.read_bytes()
        views = W[3:50].nbytes + W[:, 5:9].nbytes + W.nbytes  # what shares only a part of its bytes
        assert commit.new < saved.stat().st_size + views + 16_384
        assert store.fsck(data=True) == []


def test_no_tensor_is_read_before_it_is_stored(saved: Path) -> None:
    found = parsed(saved)
    tensors = [value for value in found.state.values() if isinstance(value, Tensor)]
    assert len(tensors) == 10
    assert {name for name, value in found.state.items() if isinstance(value, torch.Tensor)} == set()


def test_sparse_and_quantised_tensors_come_in(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    sparse = torch.eye(300).to_sparse()
    torch.save({"sparse": sparse, "w": W}, tmp_path / "s.pt")
    found = parsed(tmp_path / "s.pt")
    with cas.open(tmp_path / "store", create=True) as store:
        store.commit(found.state, origin=found.origin)
        loaded = store.load("main")
    assert torch.equal(loaded["sparse"].to_dense(), sparse.to_dense())
    assert torch.equal(loaded["w"], W)


class Evil:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def archive(path: Path, records: dict[str, bytes], compress: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compress) as made:
        for name, data in records.items():
            made.writestr(f"archive/{name}", data)
    return path


def records_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as held:
        return {name.partition("/")[2]: held.read(name) for name in held.namelist()}


def bent(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    torch.save({"w": W, "evil": Evil(tmp_path / "ran")}, tmp_path / "zip.pt")
    torch.save({"evil": Evil(tmp_path / "ran")}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    for name in ("zip.pt", "old.pt", "pickle.pt"):
        with pytest.raises(Unreadable):
            parsed(tmp_path / name)
        assert read_file(KnownFile.at(tmp_path / name), name).state == {}
    assert not (tmp_path / "ran").exists()


def test_a_class_that_is_not_plain_is_named(tmp_path: Path) -> None:
    torch.save({"w": W, "args": argparse.Namespace(lr=1)}, tmp_path / "s.pt")
    with pytest.raises(Unreadable, match=r"argparse\.Namespace"):
        parsed(tmp_path / "s.pt")


def test_weights_in_a_file_that_is_not_opened_are_shared_all_the_same(tmp_path: Path) -> None:
    big = torch.randn(500, 1000)
    torch.save({"w": big}, tmp_path / "good.pt")
    torch.save({"w": big, "args": argparse.Namespace(lr=1)}, tmp_path / "opaque.pt")
    with cas.open(tmp_path / "store", create=True) as store:
        for name in ("good.pt", "opaque.pt"):
            found = read_file(KnownFile.at(tmp_path / name), name)
            commit = store.commit(found.state, origin=found.origin)
        assert (found.state, len(found.notes)) == ({}, 1)
        assert commit.new < 16_384
        (file,) = store.leaves("main").origin()
        held = b"".join(map(bytes, store.leaves("main").stream(file.parts)))
        assert held == (tmp_path / "opaque.pt").read_bytes()


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "s.pt")
    whole = (tmp_path / "s.pt").read_bytes()
    for size in [*range(0, len(whole), 37), *range(len(whole) - 30, len(whole))]:
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(Unreadable):
            parsed(tmp_path / "cut.pt")


def test_a_compressed_archive_is_refused_however_small_it_is(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "s.pt")
    bomb = {**records_of(tmp_path / "s.pt"), "data/9": bytes(300 << 20)}
    with pytest.raises(Unreadable, match="compressed"):
        parsed(archive(tmp_path / "bomb.pt", bomb, zipfile.ZIP_DEFLATED))


def test_a_second_directory_at_the_end_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "s.pt")
    bent(tmp_path / "s.pt", lambda data: data + b"PK\5\6" + bytes(18) + b"x")
    with pytest.raises(Unreadable):
        parsed(tmp_path / "s.pt")


def test_a_name_twice_in_the_archive_is_refused(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "s.pt")
    held = records_of(tmp_path / "s.pt")
    with zipfile.ZipFile(tmp_path / "twice.pt", "w") as made:
        for name, data in [*held.items(), ("data.pkl", held["data.pkl"])]:
            made.writestr(f"archive/{name}", data)
    with pytest.raises(Unreadable, match="twice"):
        parsed(tmp_path / "twice.pt")


def test_a_storage_that_reaches_past_the_end_is_refused(tmp_path: Path) -> None:
    """The pickle says that a tensor has a million elements, the record has three."""
    torch.save({"w": torch.ones(3)}, tmp_path / "s.pt")
    held = records_of(tmp_path / "s.pt")
    assert held["data.pkl"].count(b"K\x03") >= 2
    held["data.pkl"] = held["data.pkl"].replace(b"K\x03", b"J" + struct.pack("<i", 1_000_000))
    with pytest.raises(Unreadable):
        parsed(archive(tmp_path / "lie.pt", held))


def test_a_tensor_expanded_without_end_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(1 << 45)}, tmp_path / "s.pt")
    found = read_file(KnownFile.at(tmp_path / "s.pt"), "s.pt")
    assert found.state == {}
    assert "over and over" in found.notes[0]


def test_lists_that_hold_each_other_without_end_are_refused(tmp_path: Path) -> None:
    laughs: list[Any] = []
    for _ in range(64):
        laughs = [laughs] * 10
    torch.save(laughs, tmp_path / "laughs.pt")
    cycle: list[Any] = []
    cycle.append(cycle)
    torch.save(cycle, tmp_path / "cycle.pt")
    for name in ("laughs.pt", "cycle.pt"):
        assert len(read_file(KnownFile.at(tmp_path / name), name).notes) == 1


@pytest.mark.parametrize("data", [b"", b"PK", b"\x80\x02.", b"PK\3\4" + bytes(100), bytes(5000), b"\x80" * 5000])
def test_what_is_no_file_of_torch_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "s.pt").write_bytes(data)
    with pytest.raises(Unreadable):
        parsed(tmp_path / "s.pt")


def test_bytes_flipped_anywhere_never_do_more_than_refuse_or_change_a_value(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(20), "v": torch.ones(3, 4).t(), "n": 5}, buffer)
    whole = buffer.getvalue()
    path = tmp_path / "s.pt"
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        read_file(KnownFile.at(path), "s.pt")


def test_tensors_of_two_files_at_one_place_are_not_tied(tmp_path: Path) -> None:
    """The first tensor of each shard begins where that of the other does."""
    held = {"a": torch.ones(300, 300), "b": torch.zeros(300, 300)}
    state: dict[str, Any] = {}
    for name, tensor in held.items():
        torch.save({name: tensor}, tmp_path / name)
        state |= parsed(tmp_path / name).state
    with cas.open(tmp_path / "store", create=True) as store:
        store.commit(state)
        assert_same(store.load("main"), held)


class Made:
    """States of anything that weights-only loading takes, chosen by a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.numbers = torch.Generator().manual_seed(seed)
        self.tensors = [torch.randn(24, 36, generator=self.numbers)]

    def state(self, depth: int = 0) -> Any:
        kinds = [self.tensor, self.tensor, self.tensor, self.plain, self.torch]
        if depth < 4:
            kinds += [self.dict, self.dict, self.ordered, self.counter, self.sequence]
        return self.random.choice(kinds[-5:] if depth == 0 else kinds)(depth + 1)

    def tensor(self, depth: int) -> torch.Tensor:
        choice = self.random.choice
        whole = choice(self.tensors)
        view = choice([whole, whole.t(), whole[::2], whole[3:9, 4:], whole[:, 2], whole[5], whole[5, 5], whole[:0]])
        fresh = [
            lambda: torch.randn(self.random.randrange(9), 7, generator=self.numbers).to(choice(DTYPES)),
            lambda: torch.ones(1, 3).expand(5, 3),
            lambda: torch.nn.Parameter(view),
            lambda: torch.randn(3, 4, dtype=choice([torch.complex64, torch.complex128]), generator=self.numbers),
            lambda: torch.tensor(self.random.random()),
            lambda: torch.zeros(2, 0, 3),
        ]
        return choice([lambda: view, *fresh])()

    def plain(self, depth: int) -> Any:
        text = "".join(map(chr, self.random.choices(range(32, 0x1F680), k=3)))
        numbers = [0, -1, 255, 65_536, -(2**31), 2**40, -(2**70), 1.5, -0.0, float("inf"), True, None]
        return self.random.choice([*numbers, text.encode("utf-8", "replace").decode(), "", b"\x00\xff", b"x" * 300])

    def torch(self, depth: int) -> Any:
        device = torch.device(self.random.choice(["cpu", "cuda:3", "meta"]))
        return self.random.choice([torch.Size([1, 2]), torch.Size([]), device, torch.bfloat16, torch.int64])

    def key(self) -> Any:
        return self.random.choice(
            [self.random.randrange(5), 2**45 + self.random.randrange(5), f"k/{self.random.random()}"]
        )

    def dict(self, depth: int) -> Any:
        return {self.key(): self.state(depth) for _ in range(self.random.randrange(5))}

    def ordered(self, depth: int) -> Any:
        return collections.OrderedDict(self.dict(depth))

    def counter(self, depth: int) -> Any:
        return collections.Counter("".join(self.random.choices("abc", k=5)))

    def sequence(self, depth: int) -> Any:
        made = [self.state(depth) for _ in range(self.random.randrange(5))]
        return self.random.choice([list, tuple])(made)


DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.bool, torch.int64]
DTYPES += [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_equal_bits(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(bits(one), bits(other))
        return
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal_bits(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal_bits(a, b)
    else:
        assert repr(one) == repr(other)


def test_what_torch_loads_weights_only_is_what_comes_in(tmp_path: Path) -> None:
    with cas.open(tmp_path / "store", create=True) as store:
        for seed in range(60):
            path = tmp_path / f"{seed}.pt"
            torch.save(Made(seed).state(), path)
            found = read_file(KnownFile.at(path), path.name)
            assert found.notes == []
            store.commit(found.state, branch=f"b{seed}", origin=found.origin)
            assert_equal_bits(store.load(f"b{seed}"), torch.load(path, weights_only=True))
        assert store.fsck(data=True) == []


def test_a_module_state_with_buffers_and_attributes_comes_in(tmp_path: Path) -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    layer.register_buffer("late", torch.nn.Buffer(torch.ones(2)))
    layer[0].weight.is_sharded = True
    held = {**layer.state_dict(keep_vars=True), "module": layer.state_dict()}
    torch.save(held, tmp_path / "s.pt")
    with cas.open(tmp_path / "store", create=True) as store:
        store.commit(parsed(tmp_path / "s.pt").state)
        assert_equal_bits(store.load("main"), torch.load(tmp_path / "s.pt", weights_only=True))


@pytest.mark.filterwarnings("ignore")  # torch deprecates what these files hold
def test_quantised_and_sparse_tensors_come_in_as_they_are(tmp_path: Path) -> None:
    dense = torch.arange(24.0).view(4, 6) % 5
    scales, zeros = torch.rand(4, dtype=torch.float64) + 0.1, torch.zeros(4, dtype=torch.int64)
    held = {
        "tensor": torch.quantize_per_tensor(dense, 0.1, 3, torch.quint8),
        "channel": torch.quantize_per_channel(dense, scales, zeros, 0, torch.qint8),
        "coo": dense.to_sparse(),
        "hybrid": dense.to_sparse(1),
        **{f"{layout}": dense.to_sparse(layout=layout) for layout in (torch.sparse_csr, torch.sparse_csc)},
        "blocks": dense.to_sparse_bsr((2, 3)),
    }
    torch.save(held, tmp_path / "s.pt")
    with cas.open(tmp_path / "store", create=True) as store:
        store.commit(parsed(tmp_path / "s.pt").state)
        loaded = store.load("main")
        assert store.fsck(data=True) == []
    for name, tensor in held.items():
        assert loaded[name].layout is tensor.layout
        dense_of = torch.dequantize if tensor.is_quantized else torch.Tensor.to_dense
        assert torch.equal(dense_of(loaded[name]), dense_of(tensor))
    assert loaded["channel"].q_per_channel_scales().equal(scales)


def test_torch_is_not_needed_for_tensors(tmp_path: Path) -> None:
    torch.save({"w": W, "columns": W[:, 5:9], "lr": 1e-3}, tmp_path / "s.pt")
    code = (
        "import sys; from cas.cli.reading import read_file; from cas.files import KnownFile;"
        "found = read_file(KnownFile.at(sys.argv[1]), 's.pt'); assert found.notes == [] and len(found.state) == 3;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s.pt")], check=True)
