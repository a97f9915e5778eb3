"""Directories of torch.distributed.checkpoint become states: the bits that torch loads, no code run, no lie taken."""

from __future__ import annotations

import datetime
import enum
import io
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

import cas
from cas.cli.from_dcp import nested, read_dcp
from cas.cli.incoming import Parsed, Unreadable
from cas.files import KnownFile

DATA = "__0_0.distcp"


def save(folder: Path, state: dict[str, Any], **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a single process
        dcp.save(state, checkpoint_id=folder, no_dist=True, **options)
    return folder


def read(folder: Path) -> Parsed:
    return read_dcp({name: KnownFile.at(folder / name) for name in sorted(os.listdir(folder))}, "")


def taken_in(store: cas.Store, folder: Path) -> tuple[Any, cas.Commit]:
    """The state that comes back of a directory, whose files came back as they were."""
    parsed = read(folder)
    commit = store.commit(parsed.state, origin=parsed.origin)
    leaves = store.leaves("main")
    for stored in leaves.origin():
        assert b"".join(map(bytes, leaves.stream(stored.parts))) == (folder / stored.name).read_bytes()
    assert {stored.name for stored in leaves.origin()} == set(os.listdir(folder))
    return store.load("main"), commit


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, torch.Tensor):
        bits = (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        return bits and ours.reshape(-1).view(torch.uint8).equal(theirs.detach().reshape(-1).view(torch.uint8))
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return type(ours) is type(theirs) and bool(ours == theirs)


def test_what_the_first_pythons_3_11_wrote_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They pickle the member of an enumeration as a call of getattr."""

    def by_name(self: Any, protocol: int) -> Any:
        return getattr, (type(self), self.name)

    for module in ("torch.distributed.checkpoint.metadata", "torch.distributed._shard.sharded_tensor.metadata"):
        for kind in vars(sys.modules[module]).values():
            if isinstance(kind, enum.EnumMeta) and "FORMAT" in kind.__name__:
                monkeypatch.setattr(kind, "__reduce_ex__", by_name)
    folder = save(tmp_path / "dcp", {"w": torch.arange(4)})
    assert b"getattr" in (folder / ".metadata").read_bytes()
    assert list(read(folder).state) == ["w"]
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata({}, {}, Calls(getattr, torch.float32, "shape"))))
    with pytest.raises(Unreadable, match="its description is damaged"):
        read(folder)


def test_a_state_comes_back_nested_and_bit_for_bit(tmp_path: Path) -> None:
    state = {
        "model": {
            "w.weight": torch.randn(700, 300),
            "turned": torch.randn(40, 60).t(),
            "channels last": torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last),
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(3.5),
            "parameter": torch.nn.Parameter(torch.ones(3)),
            "part": torch.arange(10)[3:7],
        },
        "kinds": {
            str(dtype): torch.arange(4).to(dtype)
            for dtype in (torch.bool, torch.uint16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.int64)
        },
        "list": [1, torch.ones(2), {"deep": [torch.zeros(1), "x"]}],
        "values": {"int": 2**70, "float": 0.1, "none": None, "bytes": b"\xff", "text": "ü", "size": torch.Size([2])},
        "dtype": torch.float16,
        "pair": (1, [2.5, {"a": True}]),
    }
    with cas.open(tmp_path / "store", create=True) as store:
        ours, _ = taken_in(store, save(tmp_path / "dcp", state))
    state["values"]["size"] = (2,)
    assert same(ours, state)


def test_a_state_that_was_not_flattened_comes_back(tmp_path: Path) -> None:
    shared = torch.randn(300, 300)
    state = {"optimizer": {"state": [{"step": torch.tensor(1.0), "m": shared}]}, "again": {"m": shared[10:]}}
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    with cas.open(tmp_path / "store", create=True) as store:
        ours, commit = taken_in(store, save(tmp_path / "dcp", state, planner=planner))
    assert same(ours, state)
    assert commit.new < 3 * shared.nbytes


TWO = """
import os, sys, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
rank, out = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{out}.init", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
rows = torch.nn.Linear(512, 1024, bias=False)
full = {
    "rows": rows.weight.detach().clone(), "uneven": torch.randn(5, 3), "one": torch.randn(1, 7),
    "columns": torch.randn(30, 70), "deep": torch.randn(4, 6, 5), "same": torch.randn(9),
}
fully_shard(rows, mesh=mesh)
places = {"uneven": Shard(0), "one": Shard(0), "columns": Shard(1), "deep": Shard(2), "same": Replicate()}
parts = {name: distribute_tensor(full[name], mesh, [place]) for name, place in places.items()}
dcp.save({"model": {"rows": rows.weight, **parts}, "step": 7}, checkpoint_id=out)
if rank == 0:
    torch.save(full, out + ".pt")
dist.barrier()
os._exit(0)  # without the teardown of the group, in which one rank may find the other gone
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A directory that two processes wrote, and the whole tensors."""
    out = tmp_path_factory.mktemp("ranks") / "dcp"
    ranks = [subprocess.Popen([sys.executable, "-c", TWO, str(rank), str(out)]) for rank in range(2)]
    assert [rank.wait(60) for rank in ranks] == [0, 0]
    return out, torch.load(f"{out}.pt")


def test_tensors_that_two_ranks_share_come_back_whole(
    tmp_path: Path, two_ranks: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    folder, full = two_ranks
    with cas.open(tmp_path / "store", create=True) as store:
        state, commit = taken_in(store, folder)
        assert same(state, {"model": full, "step": 7})
        size = sum((folder / name).stat().st_size for name in os.listdir(folder))
        assert commit.new < size + 40_000, "rows that ranks split are stored once, with the directory's own files"
        assert commit.new > full["rows"].nbytes
        assert store.fsck(data=True) == []


def test_reading_needs_no_torch(tmp_path: Path, two_ranks: tuple[Path, dict[str, torch.Tensor]]) -> None:
    code = (
        "import os, sys; from pathlib import Path; from cas.cli.from_dcp import read_dcp;"
        "from cas.files import KnownFile as File; files = {p.name: File.at(p) for p in Path(sys.argv[1]).iterdir()};"
        "print(len(read_dcp(files, '').state['model']), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, two_ranks[0]], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["6", "False"]


def test_a_value_that_is_not_plain_is_left_out_and_noted(tmp_path: Path) -> None:
    folder = save(tmp_path / "dcp", {"w": torch.ones(2), "when": datetime.date(2024, 1, 1), "set": {1}})
    parsed = read(folder)
    assert list(parsed.state) == ["w"]
    assert sorted(parsed.notes) == [
        "set is left out: it needs __builtin__.set, which is not loaded safely",
        "when is left out: it needs datetime.date, which is not loaded safely",
    ]


# -- what a directory may say of itself -----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    state = {"a": {"w": torch.arange(24.0).reshape(4, 6), "v": torch.ones(5)}, "n": 1}
    return save(tmp_path / "dcp", state)


def change(folder: Path, edit: Callable[[Metadata], Any]) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata = edit(metadata) or metadata
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def place(metadata: Metadata, name: str = "a.w") -> Any:
    return next(info for index, info in metadata.storage_data.items() if index.fqn == name)


def test_names_stay_flat_where_the_planner_says_nothing_of_use(folder: Path) -> None:
    for planned in (None, {}, {"a.w": ("a", "w")}, dict.fromkeys(("a.w", "a.v", "n"), ("x",)), {"a.w": 1}):

        def edit(metadata: Metadata, planned: Any = planned) -> None:
            metadata.planner_data = planned

        change(folder, edit)
        assert set(read(folder).state) == {"a.w", "a.v", "n"}


def test_a_list_with_holes_is_a_dict_by_number(folder: Path) -> None:
    def edit(metadata: Metadata) -> None:
        metadata.planner_data = {"a.w": ("l", 0), "a.v": ("l", 2), "n": ("m", 0)}

    change(folder, edit)
    state = read(folder).state
    assert (list(state["l"]), state["m"]) == ([0, 2], [1])


def chunk(*place: int) -> ChunkStorageMetadata:
    half = len(place) // 2
    return ChunkStorageMetadata(torch.Size(place[:half]), torch.Size(place[half:]))


def tensor(size: tuple[int, ...], chunks: list[Any], dtype: torch.dtype = torch.float32) -> TensorStorageMetadata:
    return TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(size), chunks)


def described(entry: Any) -> Callable[[Metadata], None]:
    def edit(metadata: Metadata) -> None:
        metadata.state_dict_metadata["a.w"] = entry

    return edit


def placed(**fields: Any) -> Callable[[Metadata], None]:
    def edit(metadata: Metadata) -> None:
        for name, value in fields.items():
            setattr(place(metadata), name, value)

    return edit


def overlapping(metadata: Metadata) -> None:
    place(metadata, "a.v").offset = place(metadata).offset + 1


LIES: dict[str, tuple[Callable[[Metadata], Any], str]] = {
    "a file above": (placed(relative_path="../secret"), "not in the directory"),
    "an absolute file": (placed(relative_path="/etc/passwd"), "not in the directory"),
    "a missing file": (placed(relative_path="__9_0.distcp"), "not in the directory"),
    "beyond the end": (placed(offset=1 << 40), "beyond the end"),
    "longer than the file": (placed(length=1 << 62), "beyond the end"),
    "before the start": (placed(offset=-1), "range of another form"),
    "no length": (placed(length=0), "range of another form"),
    "an offset of words": (placed(offset="0"), "range of another form"),
    "an offset that is true": (placed(offset=True), "range of another form"),
    "compressed": (placed(transform_descriptors=["zstd"]), "extension"),
    "overlapping items": (overlapping, "overlap"),
    "no item": (lambda metadata: metadata.storage_data.clear(), "not in the files"),
    "another dtype": (described(tensor((4, 6), [chunk(0, 0, 4, 6)], torch.int32)), "another tensor"),
    "another shape": (described(tensor((6, 4), [chunk(0, 0, 6, 4)])), "another tensor"),
    "no dtype": (described(tensor((4, 6), [chunk(0, 0, 4, 6)], "float32")), "dtype"),  # type: ignore[arg-type]
    "no chunks": (described(tensor((4, 6), [])), "do not make up"),
    "a gap": (described(tensor((4, 6), [chunk(0, 0, 3, 6)])), "do not make up"),
    "chunks that overlap": (described(tensor((4, 6), [chunk(0, 0, 3, 6), chunk(2, 0, 2, 6)])), "do not make up"),
    "chunks that fill in numbers": (described(tensor((4, 6), [chunk(0, 0, 2, 6)] * 2)), "do not make up"),
    "a chunk outside": (described(tensor((4, 6), [chunk(1, 0, 4, 6)])), "impossible"),
    "a chunk of other rank": (described(tensor((4, 6), [chunk(0, 24)])), "impossible"),
    "a negative size": (described(tensor((-4, -6), [chunk(0, 0, -4, -6)])), "impossible"),
    "a huge size": (described(tensor((1 << 40, 1 << 40), [chunk(0, 0, 1 << 40, 1 << 40)])), "impossible"),
    "countless chunks": (described(tensor((4, 6), [chunk(0, 0, 4, 6)] * 100_000)), "list of chunks"),
    "chunks of another kind": (described(tensor((4, 6), [1, 2])), "ChunkStorageMetadata"),
    "a size of words": (described(TensorStorageMetadata(TensorProperties(), "46", [])), "size"),  # type: ignore[arg-type]
    "another object": (lambda metadata: MetadataIndex("x"), "a Metadata"),
    "a name for the metadata": (lambda metadata: "hello", "a Metadata"),
    "a list of tensors": (lambda metadata: Metadata([1], {}, {}), "table"),  # type: ignore[arg-type]
    "an item by a plain name": (lambda metadata: Metadata({}, {}, {"a.w": 1}), "MetadataIndex"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_a_directory_that_lies_is_unreadable(folder: Path, case: str) -> None:
    edit, reason = LIES[case]
    change(folder, edit)
    with pytest.raises(Unreadable, match=reason):
        read(folder)


def test_a_list_of_chunks_that_is_named_over_and_over_is_unreadable(folder: Path) -> None:
    shared = [chunk(0, 0, 4, 6)] * 1000

    def edit(metadata: Metadata) -> None:
        metadata.state_dict_metadata.update({f"t{n}": tensor((4, 6), shared) for n in range(1000)})

    change(folder, edit)
    with pytest.raises(Unreadable):
        read(folder)


def test_a_tensor_that_is_called_a_value_is_still_a_tensor(folder: Path) -> None:
    def edit(metadata: Metadata) -> None:
        metadata.state_dict_metadata["a.w"] = BytesStorageMetadata()
        metadata.storage_data = {
            MetadataIndex(index.fqn) if index.fqn == "a.w" else index: info
            for index, info in metadata.storage_data.items()
        }

    change(folder, edit)
    assert read(folder).state["a"]["w"].shape == (4, 6)


def test_no_metadata_is_unreadable(folder: Path) -> None:
    with pytest.raises(Unreadable, match=r"no \.metadata"):
        read_dcp({DATA: KnownFile.at(folder / DATA)}, "")


# -- pickles --------------------------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def touch(path: Path) -> list[Any]:
    """Values that make a file when they are unpickled."""
    code = f"open({str(path)!r}, 'w')"
    return [
        Calls(os.system, f"touch {path}"),
        Calls(eval, code),
        Calls(exec, code),
        Calls(open, str(path), "w"),
        Calls(getattr, Path, "touch"),
        Calls(subprocess.call, ["touch", str(path)]),
        Calls(torch.load, str(path)),
        Calls(Path.touch, path),
    ]


def test_a_pickle_with_code_runs_none_of_it(folder: Path, tmp_path: Path) -> None:
    for value in touch(tmp_path / "ran"):
        spots = [Metadata({}, value, {}), Metadata({}, {}, value), Metadata(value, {}, {}), Metadata({"x": value})]
        for metadata in (*spots, value):
            (folder / ".metadata").write_bytes(pickle.dumps(metadata))
            with pytest.raises(Unreadable, match="not loaded safely"):
                read(folder)
    assert not (tmp_path / "ran").exists()


def test_a_value_with_code_is_left_out_and_nothing_runs(folder: Path, tmp_path: Path) -> None:
    value = touch(tmp_path / "ran")[0]
    data = io.BytesIO()
    torch.save({"x": value}, data)
    write_item(folder, "n", data.getvalue())
    parsed = read(folder)
    assert set(parsed.state) == {"a"}
    assert "system, which is not loaded safely" in parsed.notes[0]
    assert not (tmp_path / "ran").exists()


PICKLES = {
    "nothing": b"",
    "no end": b"\x80\x04N",
    "an empty stack": b"\x80\x04.",
    "tuples without end as a key": b"}" + b")" + b"\x85" * 400_000 + b"Ns.",
    "lists without end": b"]" * 500_000 + b"a" * 499_999 + b".",
    "a tuple as a key": b"})Ns.",
    "a list as a key": b"}]Ns.",
    "keys that all fall on one place": b"}(" + b"".join(
        b"\x8a\x09" + (n * (2**61 - 1)).to_bytes(9, "little") + b"N" for n in range(1000)
    ) + b"u.",
    "a memo far away": b"Nr\xff\xff\xff\x7f.",
    "a memo that is not there": b"h\x05.",
    "a text longer than the file": b"X\xff\xff\xff\xffabc.",
    "bytes longer than the file": b"B\xff\xff\xff\xffabc.",
    "a frame longer than the file": b"\x95" + b"\xff" * 8 + b"N.",
    "marks without end": b"(" * 500_000,
    "values without end": b"N" * 2_000_000 + b".",
    "memos without end": b"N" + b"\x94" * 8_500_000,
    "a global of no name": b"cos\n",
    "a global of lists": b"]]\x93.",
    "an extension": b"\x82\x01.",
    "an instance": b"(ios\nsystem\n.",
    "an object": b"(cos\nsystem\no.",
    "a persistent id": b"Nq\x00Q.",
    "a persistent text": b"Pabc\n.",
    "a long text of digits": b"I" + b"9" * 100_000 + b"\n.",
    "a number of nothing": b"\x8b\xff\xff\xff\x7f.",
    "a call of a text": b"X\x01\x00\x00\x00a)R.",
    "a call with a list": b"ctorch\nSize\n]R.",
    "a state for a class": b"ctorch.distributed.checkpoint.metadata\nMetadata\n}b.",
    "a state for a function": b"ctorch\nSize\n}b.",
    "a state for a text": b"X\x01\x00\x00\x00a}b.",
    "items for a text": b"X\x01\x00\x00\x00a(NNu.",
    "a class for metadata": b"ctorch.distributed.checkpoint.metadata\nMetadata\n.",
    "metadata without state": b"ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81.",
    "a size of too many": b"ctorch\nSize\n(" + b"K\x00" * 65 + b"t\x85R.",
    "a text of half letters": b"X\x03\x00\x00\x00\xed\xa0\x80.",
    "itself": b"]\x94h\x00a.",
}  # fmt: skip


@pytest.mark.parametrize("case", PICKLES)
def test_a_hostile_pickle_is_unreadable(folder: Path, case: str) -> None:
    (folder / ".metadata").write_bytes(PICKLES[case])
    with pytest.raises(Unreadable):
        read(folder)


def test_metadata_cut_anywhere_is_unreadable(folder: Path) -> None:
    data = (folder / ".metadata").read_bytes()
    for length in range(0, len(data), 7):
        (folder / ".metadata").write_bytes(data[:length])
        with pytest.raises(Unreadable):
            read(folder)


@pytest.mark.parametrize("name", [".metadata", DATA])
def test_files_with_any_byte_changed_are_read_or_unreadable(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    outcomes = set()
    for at in range(0, len(data), 11):
        for flip in (0xFF, 0x01):
            (folder / name).write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
            try:
                outcomes.add(type(read(folder)))
            except Unreadable:
                outcomes.add(Unreadable)
    assert outcomes == {Parsed, Unreadable}


# -- items ----------------------------------------------------------------------------------------------------------


def write_item(folder: Path, name: str, data: bytes) -> None:
    """Append an item and let the metadata name it."""
    end = (folder / DATA).stat().st_size
    with (folder / DATA).open("ab") as file:
        file.write(data)

    def edit(metadata: Metadata) -> None:
        place(metadata, name).offset, place(metadata, name).length = end, len(data)

    change(folder, edit)


def archive(records: dict[str, bytes], **options: Any) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", **options) as made:
        for name, content in records.items():
            made.writestr(f"archive/{name}", content)
    return data.getvalue()


def described_tensor(
    count: int = 24, offset: int = 0, size: tuple[Any, ...] = (4, 6), steps: tuple[Any, ...] = (6, 1), key: str = "0"
) -> bytes:
    """The pickle of a tensor of float32 with these numbers."""
    parts = [b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"]
    parts += [b"X" + len(key).to_bytes(4, "little") + key.encode() + b"X\x03\x00\x00\x00cpu"]
    parts += [pickle.dumps(count, 2)[2:-1], b"tQ", pickle.dumps(offset, 2)[2:-1]]
    parts += [b"(" + b"".join(pickle.dumps(n, 2)[2:-1] for n in numbers) + b"t" for numbers in (size, steps)]
    return b"".join([*parts, b"\x89NtR."])


BODY = bytes(96)
ITEMS = {
    "whole": archive({"data.pkl": described_tensor(), "data/0": BODY}),
    "nothing": b"x",
    "noise": os.urandom(2000),
    "an archive of nothing": archive({}),
    "no description": archive({"data/0": BODY}),
    "no data": archive({"data.pkl": described_tensor()}),
    "a compressed record": archive({"data.pkl": described_tensor(), "data/0": BODY}, compression=zipfile.ZIP_DEFLATED),
    "fewer bytes than said": archive({"data.pkl": described_tensor(count=25), "data/0": BODY}),
    "a negative count": archive({"data.pkl": described_tensor(count=-24), "data/0": BODY}),
    "beyond its storage": archive({"data.pkl": described_tensor(offset=1), "data/0": BODY}),
    "before its storage": archive({"data.pkl": described_tensor(offset=-1), "data/0": BODY}),
    "strides beyond": archive({"data.pkl": described_tensor(steps=(7, 1)), "data/0": BODY}),
    "strides that overflow": archive({"data.pkl": described_tensor(steps=(1 << 62, 1)), "data/0": BODY}),
    "negative strides": archive({"data.pkl": described_tensor(steps=(-6, 1)), "data/0": BODY}),
    "fewer strides": archive({"data.pkl": described_tensor(steps=(1,)), "data/0": BODY}),
    "a negative size": archive({"data.pkl": described_tensor(size=(-4, -6)), "data/0": BODY}),
    "a size of texts": archive({"data.pkl": described_tensor(size=("4", "6")), "data/0": BODY}),
    "a size that is true": archive({"data.pkl": described_tensor(size=(True, 6)), "data/0": BODY}),
    "a huge size": archive({"data.pkl": described_tensor(size=(1 << 62, 1 << 62)), "data/0": BODY}),
    "another size": archive({"data.pkl": described_tensor(size=(24,), steps=(1,)), "data/0": BODY}),
    "another item's data": archive({"data.pkl": described_tensor(key="../../data/0"), "data/0": BODY}),
    "big-endian": archive({"data.pkl": described_tensor(), "data/0": BODY, "byteorder": b"big"}),
    "a value": archive({"data.pkl": b"K\x05."}),
    "a value nested without end": archive({"data.pkl": b"]" * 100_000 + b"a" * 99_999 + b"."}),
}


def items_with_lies() -> dict[str, bytes]:
    """Archives whose directory names other places and sizes than there are."""
    whole = ITEMS["whole"]
    entry = whole.rindex(b"PK\1\2")
    found = {}
    for name, at, size in (("size", 20, 4), ("stored size", 24, 4), ("place", 42, 4), ("method", 10, 2)):
        for value in (1, 97, 2 ** (8 * size - 1), 2 ** (8 * size) - 1):
            data = value.to_bytes(size, "little")
            found[f"{name} {value}"] = whole[: entry + at] + data + whole[entry + at + size :]
    end = len(whole) - 22
    found["a directory beyond"] = whole[: end + 16] + b"\xfe\xff\xff\xff" + whole[end + 20 :]
    found["a directory of any size"] = whole[: end + 12] + b"\xfe\xff\xff\xff" + whole[end + 16 :]
    return found


def test_the_item_that_the_hostile_ones_differ_from_is_read(folder: Path) -> None:
    write_item(folder, "a.w", ITEMS["whole"])
    assert read(folder).state["a"]["w"].source.nbytes == 96


@pytest.mark.parametrize("case", [*list(ITEMS)[1:], *items_with_lies()])
def test_an_item_that_lies_is_unreadable(folder: Path, case: str) -> None:
    write_item(folder, "a.w", {**ITEMS, **items_with_lies()}[case])
    with pytest.raises(Unreadable):
        read(folder)


def test_a_record_twice_is_unreadable(folder: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in (("data.pkl", described_tensor()), ("data/0", BODY), ("data/0", bytes(96))):
            made.writestr(f"archive/{name}", content)
    write_item(folder, "a.w", data.getvalue())
    with pytest.raises(Unreadable, match="twice"):
        read(folder)


VALUES = {
    "nested without end": b"]" * 100_000 + b"a" * 99_999 + b".",
    "within itself": b"]q\x00h\x00a.",
    "doubled without end": b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(60)) + b".",
    "a tuple as a key": b"})K\x01s.",
    "a storage type": b"ctorch\nFloatStorage\n.",
    "a function": b"ctorch\nSize\n.",
}


@pytest.mark.parametrize("case", VALUES)
def test_a_value_without_end_or_sense_is_left_out(folder: Path, case: str) -> None:
    write_item(folder, "n", archive({"data.pkl": VALUES[case]}))
    parsed = read(folder)
    assert set(parsed.state) == {"a"}
    assert parsed.notes[0].startswith("n is left out: ")


def test_files_that_change_while_they_are_read_are_refused(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "dcp2", {"t": torch.randn(30, 40).t(), "w": torch.randn(8)})
    for at in (folder, tmp_path / "dcp2"):
        parsed = read(at)
        (at / DATA).write_bytes(b"cut")
        with (
            cas.open(tmp_path / "store", create=True) as store,
            pytest.raises(cas.Invalid, match="changed while it was read; commit again"),
        ):
            store.commit(parsed.state, origin=parsed.origin)


def test_the_top_of_a_state_is_a_dict_whatever_its_paths_say() -> None:
    assert nested({"a": 1, "b": 2}, {"a": (0,), "b": (1,)}) == {0: 1, 1: 2}
    assert nested({"a": 1, "b": 2}, {"a": ("x", 0), "b": ("x", 1)}) == {"x": [1, 2]}
