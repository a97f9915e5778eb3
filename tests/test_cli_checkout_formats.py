"""What `cas checkout` makes of tensors: shards, names, dtypes, ties, and files for torch and its distributed form."""

from __future__ import annotations

import json
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import torch.distributed.checkpoint as dcp
from checkouts import WEIGHTS, assert_same, commit, in_process, left_in, refused_in_process
from cli_process import array, environment, objects, ok, refused, run
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, load_model

import cas
from cas.cli.conversion import TARGETS, convert
from cas.cli.shards import cut, file_names, parse_size
from cas.cli.weights import Weight, renamed, weights_of
from cas.dtypes import DTYPES
from cas.errors import Corrupt, Invalid
from cas.leaves import TensorLeaf
from cas.nodes import EMPTY, Content, TensorEntry

INDEX = "model.safetensors.index.json"


def leaf(*path: str, shape: tuple[int, ...] = (2,), dtype: str = "float32", tie: int | None = None) -> TensorLeaf:
    return TensorLeaf(path, TensorEntry("numpy", dtype, shape, EMPTY, tie))


def sized(**sizes: int) -> list[Weight]:
    return [Weight(name, leaf(name, shape=(size,), dtype="int8"), "int8") for name, size in sizes.items()]


def assert_equal(found: Any, expected: Any) -> None:
    """The same containers of the same types around the same values and tensors."""
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert type(found) is type(expected)
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert (type(found), found) == (type(expected), expected)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- shards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 10, 16, 25, 1000])
def test_shards_are_those_of_huggingface(limit: int) -> None:
    sizes = {"a": 6, "b": 26, "c": 10, "d": 0, "e": 15, "f": 1, "g": 40, "h": 9}
    state = {name: torch.zeros(size, dtype=torch.int8) for name, size in sizes.items()}
    theirs = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=limit
    )
    shards = cut(sized(**sizes), limit)
    names = file_names("model", "safetensors", len(shards))
    ours = {name: [weight.name for weight in shard] for name, shard in zip(names, shards, strict=True)}
    assert ours == theirs.filename_to_tensors


def test_shards_and_their_index(place: Path) -> None:
    model = {f"layer.{number}": array(1000, seed=number) for number in range(5)}
    commit(place, {"model": model})
    (done,) = objects(ok(place, "checkout", "-o", "out", "--max-shard-size", "10kB", "--json"))
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert left_in(place / "out") == sorted([*names, INDEX])
    assert done["files"] == {name: (place / "out" / name).stat().st_size for name in [*names, INDEX]}
    index = json.loads((place / "out" / INDEX).read_text())
    assert index["metadata"] == {"total_size": 20_000}
    assert set(index["weight_map"]) == set(model)
    for name, file in index["weight_map"].items():
        with safetensors.safe_open(place / "out" / file, "np") as opened:
            assert opened.get_tensor(name).tobytes() == model[name].tobytes()


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("2GiB", 2 << 30), ("1.5kb", 1500), ("12", 12), ("1 TB", 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1XB", "1e9", "0.1", "inf", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="is no size"):
        parse_size(text)


def test_other_weights_in_the_directory_are_not_mixed_with_ours(place: Path) -> None:
    commit(place, {"w": array(1000), "x": array(1000)})
    ok(place, "checkout", "-o", "out", "--max-shard-size", "4kB")
    said = refused(place, 3, "checkout", "-o", "out", "--force")
    assert "model-00001-of-00002.safetensors" in said
    assert left_in(place / "out") == [*file_names("model", "safetensors", 2), INDEX]
    ok(place, "checkout", "-o", "out", "--force", "--max-shard-size", "4kB")


# -- names --------------------------------------------------------------------------------------------------------


def test_names_begin_as_asked(place: Path) -> None:
    commit(place, {"model": {"module.a.w": array(1), "module.b": array(2), "c": array(3)}})
    ok(place, "checkout", "-o", "out", "--rename", "module.a.=x.", "--rename", "module.=")
    assert_same(place / "out" / WEIGHTS, {"x.w": array(1), "b": array(2), "c": array(3)})


def test_names_that_collide_once_renamed_are_refused(place: Path) -> None:
    commit(place, {"model": {"a.w": array(1), "b.w": array(1)}})
    assert "model/a.w and model/b.w would both be called b.w" in refused(place, 2, "checkout", "--rename", "a.=b.")
    assert left_in(place) == []


def test_a_rule_that_fits_no_name_is_refused() -> None:
    with pytest.raises(Invalid, match=r"no name begins with transformer\."):
        renamed({"model.w": leaf("model.w")}, ["transformer.=model."])
    with pytest.raises(Invalid, match="OLD=NEW"):
        renamed({"model.w": leaf("model.w")}, ["transformer"])


def test_a_hundred_thousand_names(place: Path) -> None:
    tensors = {f"layer.{number}": leaf("model", f"layer.{number}", tie=number // 2) for number in range(100_000)}
    weights = weights_of(renamed(tensors, ["layer=block"]), "float16")
    assert len(weights) == 50_000
    assert weights[-1].names == ("block.99998", "block.99999")


# -- ties ---------------------------------------------------------------------------------------------------------


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = torch.nn.Embedding(30, 20)
        self.body = torch.nn.Linear(20, 20)
        self.head = torch.nn.Linear(20, 30, bias=False)
        self.head.weight = self.wte.weight


def test_of_tied_tensors_the_first_is_written_and_the_others_are_noted(place: Path) -> None:
    model = Tied()
    commit(place, {"model": model.state_dict()})
    said = ok(place, "checkout", "-o", "out")
    assert "tied, written once: head.weight to wte.weight" in said
    assert sorted(load_file(place / "out" / WEIGHTS)) == ["body.bias", "body.weight", "wte.weight"]
    with safetensors.safe_open(place / "out" / WEIGHTS, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "head.weight": "wte.weight"}
    again = Tied()
    assert load_model(again, place / "out" / WEIGHTS) == (set(), [])
    assert_equal(OrderedDict(again.state_dict()), OrderedDict(model.state_dict()))


def test_the_index_notes_ties(place: Path) -> None:
    commit(place, {"model": Tied().state_dict()})
    (done,) = objects(ok(place, "checkout", "-o", "out", "--max-shard-size", "2kB", "--json"))
    index = json.loads((place / "out" / INDEX).read_text())
    assert index["metadata"]["head.weight"] == "wte.weight"
    assert "head.weight" not in index["weight_map"]
    assert done["tied"] == {"head.weight": "wte.weight"}


def test_tied_tensors_that_differ_are_corrupt() -> None:
    other = TensorLeaf(("b",), TensorEntry("numpy", "float32", (2,), Content(None, None), 1))
    assert weights_of({"a": leaf("a", tie=1), "b": other}, None)[0].aliases == ("b",)
    with pytest.raises(Corrupt, match="b is tied to a, which differs"):
        weights_of({"a": leaf("a", tie=1), "b": leaf("b", shape=(3,), tie=1)}, None)


# -- dtypes -------------------------------------------------------------------------------------------------------


def hard_numbers(dtype: torch.dtype) -> torch.Tensor:
    """Numbers of all exponents, halfway cases, subnormal, infinite and NaN."""
    if dtype.itemsize == 2:
        return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    bits = torch.arange(0, 1 << 32, 0x7FF5, dtype=torch.int64)
    halves = torch.arange(0, 1 << 16, dtype=torch.int64) * (1 << 16) + 0x8000
    found = torch.cat([bits, halves, halves + 1, halves - 1]).to(torch.int32).view(torch.float32)
    return found if dtype is torch.float32 else found.double() * (1 + 2**-40)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", ["bfloat16", "float16", "float32", "float64"])
def test_numbers_are_rounded_as_torch_does(source: str, target: str) -> None:
    numbers = hard_numbers(getattr(torch, source))
    data = memoryview(numbers.view(torch.uint8).numpy())
    found = torch.from_numpy(convert(data, source, target)).view(getattr(torch, target))
    expected = numbers.to(getattr(torch, target))
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[~found.isnan()], expected[~found.isnan()])


def test_only_floating_point_tensors_are_converted(place: Path) -> None:
    model = {
        "large": torch.randn(3_000_001, dtype=torch.float64),
        "half": torch.randn(3, 4).to(torch.float16),
        "same": torch.randn(5).to(torch.bfloat16),
        "count": torch.arange(7),
        "scaled": torch.randn(8).to(torch.float8_e4m3fn),
    }
    commit(place, {"model": model})
    said = ok(place, "checkout", "-o", "out", "--dtype", "bfloat16")
    assert "converted to bfloat16: 2 tensors; 1 left as int64; 1 left as float8_e4m3fn" in said
    found = load_file(place / "out" / WEIGHTS)
    for name in ("large", "half"):
        assert torch.equal(found[name], model[name].to(torch.bfloat16))
    for name in ("same", "count", "scaled"):
        assert torch.equal(found[name].view(torch.uint8), model[name].view(torch.uint8))


def test_numbers_that_become_infinite_are_counted(place: Path) -> None:
    commit(place, {"w": np.array([1.0, 65504.0, 65520.0, -1e9, np.inf, np.nan], "float32")})
    assert "2 numbers too large for float16 became infinite" in ok(place, "checkout", "-o", "a", "--dtype", "float16")
    (done,) = objects(ok(place, "checkout", "-o", "b", "--dtype", "float16", "--json"))
    assert (done["dtype"], done["converted"], done["infinite"]) == ("float16", 1, 2)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"torch_dtype": "float32", "n": 1}, {"torch_dtype": "bfloat16", "n": 1}),
        ({"dtype": "float16", "text": {"dtype": "float16"}}, {"dtype": "bfloat16", "text": {"dtype": "bfloat16"}}),
        ({"n": 1, "quantization_config": {"dtype": "float16"}}, None),
        (["dtype"], None),
    ],
)
def test_the_config_names_the_dtype_that_the_weights_get(place: Path, config: Any, expected: Any) -> None:
    text = json.dumps(config)
    (place / "config.json").write_text(text)
    commit(place, {"w": array(3)}, files={"config.json": place / "config.json"})
    said = ok(place, "checkout", "-o", "out", "--dtype", "bfloat16")
    assert ("config.json names bfloat16 now" in said) == (expected is not None)
    found = (place / "out" / "config.json").read_text()
    assert found == text if expected is None else json.loads(found) == expected


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"dtype": "float32', "\udcff"])
def test_a_hostile_config_is_left_as_it_is(place: Path, text: str) -> None:
    (place / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    commit(place, {"w": array(3)}, files={"config.json": place / "config.json"})
    ok(place, "checkout", "-o", "out", "--dtype", "bfloat16")
    assert (place / "out" / "config.json").read_bytes() == text.encode("utf-8", "surrogateescape")


# -- torch --------------------------------------------------------------------------------------------------------


def every_dtype() -> dict[str, torch.Tensor]:
    found = {"bool": torch.tensor([True, False, True])}
    for name in DTYPES.keys() - {"bool"}:
        dtype = getattr(torch, name)
        found[name] = torch.arange(24 * dtype.itemsize, dtype=torch.uint8).view(dtype).reshape(2, 3, 4)
    return found


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("mmap", [True, False])
def test_torch_reads_every_dtype_and_form(place: Path, mmap: bool) -> None:
    more = {"empty": torch.empty(0, 5), "scalar": torch.tensor(3.5), "large": torch.randn(3000, 1001)}
    tensors = {**every_dtype(), **more}
    commit(place, {"model": tensors}, codec="planes")
    in_process("checkout", "-o", "out", "--format", "torch")
    found = torch.load(place / "out" / "pytorch_model.bin", weights_only=True, mmap=mmap)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bytes_of(found[name]) == bytes_of(tensor), name


def test_the_archive_is_whole_for_other_readers_and_aligned(place: Path) -> None:
    commit(place, {f"w{number}": array(100 + number) for number in range(20)})
    in_process("checkout", "-o", "out", "--format", "torch")
    file = place / "out" / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        infos = [info for info in archive.infolist() if "/data/" in info.filename]
    data = file.read_bytes()
    for number, info in enumerate(infos):
        lengths = data[info.header_offset + 26 : info.header_offset + 30]
        start = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        assert start % 64 == 0
        assert data[start : start + info.file_size] == array(100 + number).tobytes()


def test_torch_shards_keep_tied_tensors_together(place: Path) -> None:
    model = Tied()
    commit(place, {"model": model.state_dict()})
    in_process("checkout", "-o", "out", "--format", "torch", "--max-shard-size", "2kB")
    index = json.loads((place / "out" / "pytorch_model.bin.index.json").read_text())
    assert index["metadata"] == {"total_size": 4 * (600 + 400 + 20)}
    assert index["weight_map"]["head.weight"] == index["weight_map"]["wte.weight"]
    found = {}
    for name in set(index["weight_map"].values()):
        found |= torch.load(place / "out" / name, weights_only=True)
    assert found["head.weight"].data_ptr() == found["wte.weight"].data_ptr()
    assert_equal({name: found[name] for name in model.state_dict()}, dict(model.state_dict()))


def nested_state() -> dict[str, Any]:
    shared = torch.randn(10, 10)
    return {
        "model": OrderedDict(a=shared, b=torch.randn(3).to(torch.bfloat16)),
        "tied": shared,
        "optimizer": {"state": {0: {"exp_avg": torch.randn(4), "step": 7}}, "param_groups": [{"betas": (0.9, 0.99)}]},
        "pair": (torch.ones(2), "x"),
        "values": [None, True, 1 << 70, 2.5, "n" * 100_000, b"abc", Counter("aab"), {}, [], ()],
        "torch": [torch.float16, torch.device("cpu"), torch.Size([1, 2])],
        "numpy": np.float32(1.5),
    }


def test_all_for_torch_keeps_the_form_of_the_state_and_its_values(place: Path) -> None:
    state = nested_state()
    commit(place, state)
    in_process("checkout", "-o", "out", "--all", "--format", "torch")
    found = torch.load(place / "out" / "pytorch_model.bin", weights_only=True)
    assert found["tied"].data_ptr() == found["model"]["a"].data_ptr()
    assert_equal(found, {**state, "numpy": 1.5})


@pytest.mark.parametrize("value", [b"", 1 << 3000, torch.channels_last, np.complex128(1j)])
def test_values_that_torch_does_not_read_safely_are_refused_by_their_path(
    place: Path, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(place, {"model": {"w": torch.ones(2)}, "odd": [value]})
    if isinstance(value, np.complex128):
        in_process("checkout", "-o", "out", "--all", "--format", "torch")
        assert torch.load(place / "out" / "pytorch_model.bin", weights_only=True)["odd"] == [1j]
        return
    refused_in_process(3, "checkout", "-o", "out", "--all", "--format", "torch")
    assert "odd/[0] is a " in capsys.readouterr().err
    assert left_in(place) == []


def test_a_sparse_tensor_is_written_as_its_parts_and_that_is_said(place: Path) -> None:
    commit(place, {"model": {"w": torch.eye(3).to_sparse(), "b": torch.ones(3)}, "m": torch.eye(2).to_sparse()})
    said = ok(place, "checkout", "-o", "out")
    assert "written as their parts: model/w (torch.sparse_coo)" in said
    assert "left out (--all takes every tensor): model/w/size, model/w/coalesced, m (" in said
    assert sorted(load_file(place / "out" / WEIGHTS)) == ["b", "w.indices", "w.values"]


def test_torch_converts_too(place: Path) -> None:
    model = {"w": torch.randn(2_000_003), "n": torch.arange(3)}
    commit(place, {"model": model})
    in_process("checkout", "-o", "out", "--format", "torch", "--dtype", "float16")
    found = torch.load(place / "out" / "pytorch_model.bin", weights_only=True)
    assert_equal(found, {"w": model["w"].half(), "n": model["n"]})


def test_without_torch_the_other_formats_say_what_to_install(place: Path) -> None:
    commit(place, {"w": array(3)})
    (place / "hidden").mkdir()
    (place / "hidden" / "torch.py").write_text("raise ImportError('no torch here')")
    done = run(place, "checkout", "-o", "out", "--format", "torch", env=environment(PYTHONPATH=str(place / "hidden")))
    assert done.returncode == 3
    assert "pip install 'cas-checkpoints[torch]'" in done.stderr


# -- torch.distributed.checkpoint ---------------------------------------------------------------------------------


def blank(value: Any) -> Any:
    """The same form with other content, for dcp.load to fill."""
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, dict):
        return {key: blank(child) for key, child in value.items()}
    return [blank(child) for child in value] if isinstance(value, list) else None


def load_dcp(state: Any, folder: Path) -> Any:
    with pytest.warns(UserWarning, match="assuming the intent is to load in a single process"):
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_dcp_loads_weights_of_every_dtype(place: Path) -> None:
    tensors = {**every_dtype(), "empty": torch.empty(0, 5), "scalar": torch.tensor(3.5), **Tied().state_dict()}
    commit(place, {"model": tensors})
    in_process("checkout", "-o", "out", "--format", "dcp", "--max-shard-size", "2kB")
    assert {".metadata", "__0_0.distcp", "__0_1.distcp"} <= set(left_in(place / "out"))
    found = load_dcp(blank(tensors), place / "out")
    for name, tensor in tensors.items():
        assert bytes_of(found[name]) == bytes_of(tensor), name


def test_all_for_dcp_keeps_values_and_tuples(place: Path) -> None:
    state = nested_state()
    state["optimizer"] = {"state": {"w": {"exp_avg": torch.randn(4), "step": 7}}, "groups": [{"betas": (0.9, 0.99)}]}
    del state["values"][6:]
    commit(place, state)
    in_process("checkout", "-o", "out", "--all", "--format", "dcp")
    found = load_dcp(blank(state), place / "out")
    assert_equal(found, {**state, "model": dict(state["model"]), "numpy": 1.5})


def test_what_is_no_dict_is_no_distributed_checkpoint(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit(place, [torch.ones(3)])
    refused_in_process(2, "checkout", "-o", "out", "--all", "--format", "dcp")
    assert "use --format torch" in capsys.readouterr().err
    assert left_in(place) == []


# -- usage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["main", "model", "--all"],
        ["--all", "--format", "torch", "--rename", "a=b"],
        ["--dtype", "int8"],
        ["--format", "gguf"],
        ["--max-shard-size", "big"],
        *(["--as-imported", *more] for more in (["--all"], ["main", "model"], ["--dtype", "float16"])),
        *(["--as-imported", *more] for more in (["--rename", "a=b"], ["--format", "dcp"], ["--max-shard-size", "1GB"])),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(place: Path, arguments: list[str]) -> None:
    commit(place, {"model": {"w": array(3)}})
    refused_in_process(2, "checkout", *arguments)
    assert left_in(place) == []


def test_the_store_reads_what_it_wrote(place: Path) -> None:
    with cas.open(place / ".cas", create=True) as store:
        store.commit({"model": Tied().state_dict()})
        in_process("checkout", "-o", "out")
        assert set(store.load("main")["model"]) >= set(load_file(place / "out" / WEIGHTS))
