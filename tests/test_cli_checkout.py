"""`cas checkout`: what it takes out of a state, what it writes, and that it writes all of it or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkouts import WEIGHTS, assert_same, commit, left_in
from cli_process import array, environment, make_store, objects, ok, refused, training_state

import cas
from cas.cli.selection import select
from cas.cli.to_safetensors import header, ordered
from cas.cli.weights import Weight
from cas.dtypes import DTYPES
from cas.errors import Invalid, Unsupported
from cas.extent import Extent, ShardBlocks, extent_of
from cas.grid import Box
from cas.leaves import Leaf, TensorLeaf, ValueLeaf, slabs
from cas.nodes import EMPTY, TensorEntry


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_store(tmp_path / ".cas")
    return tmp_path


# -- what is taken ------------------------------------------------------------------------------------------------


def test_the_model_without_its_prefix_and_the_side_files(place: Path) -> None:
    said = ok(place, "checkout")
    model = training_state(20)["model"]
    out = place / "main-step20"
    assert_same(out / WEIGHTS, {"wte.weight": model["wte.weight"], "head.bias": model["head"]["bias"]})
    assert (out / "config.json").read_text() == '{"layers": 2}'
    assert left_in(place) == ["main-step20"]
    assert sorted(os.listdir(out)) == ["config.json", WEIGHTS]
    for part in ("2 tensors", "config.json", "left out", "--all", "optimizer (8.19 kB)", "step", "note (100 kB)"):
        assert part in said


def test_json_says_what_was_written(place: Path) -> None:
    (done,) = objects(ok(place, "checkout", "main~1", "-o", "out", "--json"))
    assert done["files"] == {name: (place / "out" / name).stat().st_size for name in (WEIGHTS, "config.json")}
    assert (done["out"], done["tensors"]) == ("out", 2)
    assert done["left_out"] == [
        {"path": "optimizer", "kind": "tensors", "bytes": 8192},
        {"path": "step", "kind": "int", "bytes": 0},
        {"path": "note", "kind": "str", "bytes": 100_000},
    ]


def test_a_prefix_takes_any_subtree_or_one_tensor(place: Path) -> None:
    ok(place, "checkout", "main", "optimizer/state/[0]", "-o", "moments")
    moments = training_state(20)["optimizer"]["state"][0]
    assert_same(place / "moments" / WEIGHTS, {"exp_avg": moments["exp_avg"]})
    ok(place, "checkout", "main", "model/head/bias", "-o", "one")
    assert_same(place / "one" / WEIGHTS, {"bias": training_state(20)["model"]["head"]["bias"]})


def test_a_prefix_is_a_path_with_escapes(tmp_path: Path) -> None:
    commit(tmp_path, {"a/b": {"w": array(3)}, "a": {"b": {"w": array(4)}}})
    ok(tmp_path, "checkout", "main", "a%2Fb", "-o", "escaped")
    ok(tmp_path, "checkout", "main", "a/b/", "-o", "plain")
    assert_same(tmp_path / "escaped" / WEIGHTS, {"w": array(3)})
    assert_same(tmp_path / "plain" / WEIGHTS, {"w": array(4)})


def test_all_takes_every_tensor(place: Path) -> None:
    said = ok(place, "checkout", "--all", "-o", "out")
    state = training_state(20)
    expected = {
        "model.wte.weight": state["model"]["wte.weight"],
        "model.head.bias": state["model"]["head"]["bias"],
        "optimizer.state.0.exp_avg": state["optimizer"]["state"][0]["exp_avg"],
    }
    assert_same(place / "out" / WEIGHTS, expected)
    assert "left out: optimizer/state/[0]/step, optimizer/lr, step, note (100 kB)" in said


@pytest.mark.parametrize("name", ["model", "module", "model_state_dict", "state_dict"])
def test_the_names_of_models(name: str, tmp_path: Path) -> None:
    commit(tmp_path, {"other": {"x": array(3)}, name: {"w": array(2)}})
    ok(tmp_path, "checkout", "-o", "out")
    assert_same(tmp_path / "out" / WEIGHTS, {"w": array(2)})


def test_a_flat_state_is_taken_whole(tmp_path: Path) -> None:
    commit(tmp_path, {"wte.weight": array(2, 3), "model": array(1), "lr": 0.1, "config": {"layers": 2}})
    ok(tmp_path, "checkout", "-o", "out")
    assert_same(tmp_path / "out" / WEIGHTS, {"wte.weight": array(2, 3), "model": array(1)})


@pytest.mark.parametrize("names", [("a", "b"), ("model", "module")])
def test_a_state_of_unclear_form_is_refused_with_its_subtrees(names: tuple[str, str], tmp_path: Path) -> None:
    commit(tmp_path, {names[0]: {"w": array(1000)}, names[1]: {"w": array(500)}})
    said = refused(tmp_path, 2, "checkout")
    assert f"{names[0]} (4.00 kB)" in said
    assert f"{names[1]} (2.00 kB)" in said
    assert "--all" in said


def test_names_that_collide_are_refused(tmp_path: Path) -> None:
    commit(tmp_path, {"model": {"a.b": array(1), "a": {"b": array(1)}}})
    assert "model/a.b and model/a/b" in refused(tmp_path, 2, "checkout")
    assert left_in(tmp_path) == []


def test_a_state_without_tensors_is_refused(tmp_path: Path) -> None:
    commit(tmp_path, {"model": {}, "step": 3})
    refused(tmp_path, 2, "checkout")
    refused(tmp_path, 2, "checkout", "--all")


def leaf(*path: str | int, dtype: str = "float32", shape: tuple[int, ...] = (2,)) -> TensorLeaf:
    return TensorLeaf(path, TensorEntry("numpy", dtype, shape, EMPTY, None))


def weight(*path: str, dtype: str = "float32", shape: tuple[int, ...] = (2,)) -> Weight:
    return Weight(".".join(path), leaf(*path, dtype=dtype, shape=shape), dtype)


def test_what_is_left_out_is_named_where_it_forks_off() -> None:
    leaves: list[Leaf] = [
        leaf("a", "b", "w"),
        ValueLeaf(("a", "b", "n"), "int", 0, 1),
        leaf("a", "c", "x"),
        leaf("a", "c", "y"),
        ValueLeaf(("d", 0), "str", 9, None),
        ValueLeaf(("d", 1), "str", 9, None),
        leaf("e"),
    ]
    chosen = select(leaves, ("a", "b"))
    assert list(chosen.tensors) == ["w"]
    assert [(part.path, part.kind, part.nbytes) for part in chosen.left_out] == [
        ("a/b/n", "int", 0),
        ("a/c", "tensors", 16),
        ("d", "values", 18),
        ("e", "tensor", 8),
    ]


def test_a_composite_is_left_out_by_its_parts_alone() -> None:
    leaves: list[Leaf] = [
        ValueLeaf(("m", "sp"), "torch.sparse_coo", 0, None, is_composite=True),
        leaf("m", "sp", "indices"),
        leaf("m", "sp", "values"),
    ]
    assert select(leaves, ("m",)).taken_apart == {"m/sp": "torch.sparse_coo"}
    chosen = select(leaves, ("m", "sp", "values"))
    assert chosen.taken_apart == {}
    assert [part.path for part in chosen.left_out] == ["m/sp/indices"]


# -- what is written ----------------------------------------------------------------------------------------------


def test_sizes_around_blocks_and_buffers(tmp_path: Path) -> None:
    """Empty, 0-dim, one block, many blocks, more than the buffer, widths mixed; every byte as the library has it."""
    arrays = {
        "empty": array(0, 5),
        "scalar": np.array(3.5),
        "bytes": array(7, dtype="int8"),
        "block": array(1 << 20),
        "large": array(9_000_001),
        "odd": array(777, 13, 3, dtype="float16"),
        "": array(2, dtype="int64"),
        "ünï\u2028\x00": array(2, dtype="uint16"),
    }
    commit(tmp_path, arrays, codec="planes")
    ok(tmp_path, "checkout", "-o", "out")
    assert_same(tmp_path / "out" / WEIGHTS, arrays)


def test_twenty_thousand_small_tensors(tmp_path: Path) -> None:
    arrays = {f"layer.{number:05}": np.full(5, number, np.float32) for number in range(20_000)}
    commit(tmp_path, arrays)
    ok(tmp_path, "checkout", "-o", "out")
    assert_same(tmp_path / "out" / WEIGHTS, arrays)


def test_every_dtype_is_written_or_refused_by_its_path() -> None:
    for name in DTYPES:
        tensor = [weight("model", "a", dtype=name)]
        if name in ("complex32", "complex128"):
            with pytest.raises(Unsupported, match=rf"model/a is {name}"):
                header(tensor, {})
        else:
            header(tensor, {})


def test_a_dtype_that_safetensors_lacks_is_one_sentence(tmp_path: Path) -> None:
    commit(tmp_path, {"model": {"w": array(2), "spectrum": array(2, dtype="complex128")}})
    assert "model/spectrum is complex128" in refused(tmp_path, 3, "checkout")
    assert left_in(tmp_path) == []


def test_every_dtype_of_torch_comes_back(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    tensors = {}
    for name in DTYPES.keys() - {"complex32", "complex128"}:
        dtype = getattr(torch, name)
        tensors[name] = torch.arange(24 * dtype.itemsize, dtype=torch.uint8).view(dtype).reshape(2, 3, 4)
    commit(tmp_path, {"model": tensors})
    ok(tmp_path, "checkout", "-o", "out")
    found = load_file(tmp_path / "out" / WEIGHTS)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_torch_is_not_imported(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    commit(tmp_path, {"model": {"w": torch.ones(3)}, "device": torch.device("cpu"), "dtype": torch.bfloat16})
    for command in (["show"], ["checkout", "-o", "out"]):
        code = (
            f"import sys; from cas.cli.main import main; c = main({command!r}); sys.exit(c or 'torch' in sys.modules)"
        )
        assert (
            subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=False).returncode == 0
        )


def test_the_header_is_that_of_the_format() -> None:
    tensors = ordered([weight("b", dtype="int8", shape=(3,)), weight("a"), weight("z", dtype="float64")])
    assert [tensor.name for tensor in tensors] == ["z", "a", "b"]
    data = header(tensors, {})
    text = (
        b'{"__metadata__":{"format":"pt"},"z":{"dtype":"F64","shape":[2],"data_offsets":[0,16]},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[16,24]},"b":{"dtype":"I8","shape":[3],"data_offsets":[24,27]}}'
    )
    assert int.from_bytes(data[:8], "little") == len(data) - 8
    assert len(data) % 8 == 0
    assert data[8:].rstrip(b" ") == text


def test_the_name_that_safetensors_keeps_is_refused() -> None:
    with pytest.raises(Invalid, match="keeps for itself"):
        header([weight("__metadata__")], {})


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (1, 1, 9), (5, 1, 2)])
@pytest.mark.parametrize("limit", [1, 2, 5, 8, 1000])
def test_slabs_follow_the_row_major_order(shape: tuple[int, ...], limit: int) -> None:
    whole = np.arange(np.prod(shape)).reshape(shape)
    parts = []
    for box in slabs(shape, limit):
        assert box.size <= limit
        parts.append(whole[tuple(slice(a, a + n) for a, n in zip(box.start, box.shape, strict=True))].reshape(-1))
    assert np.array_equal(np.concatenate(parts), whole.reshape(-1))


def test_a_stream_is_cut_into_pieces_of_the_size_asked_for(tmp_path: Path) -> None:
    arrays = {"a": array(3_000_000), "b": array(5), "c": array(2_000_000)}
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit(arrays)
        leaves = store.leaves()
        tensors = [leaf for leaf in leaves if isinstance(leaf, TensorLeaf)]
        pieces = [bytes(piece) for piece in leaves.stream(tensors, 4 << 20)]
    assert all(len(piece) <= 4 << 20 for piece in pieces)
    assert b"".join(pieces) == b"".join(value.tobytes() for value in arrays.values())


def test_a_tensor_in_interleaved_shards_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What many ranks will write: two shards that split the second dimension."""
    whole = array(600, 400)
    commit(tmp_path, {"left": whole[:, :300].copy(), "right": whole[:, 300:].copy()})
    with cas.open(tmp_path / ".cas") as store:
        leaves = store.leaves()
        shards = []
        for found, start in zip(leaves, (0, 300), strict=True):
            assert isinstance(found, TensorLeaf)
            (held,) = extent_of(found.entry.content, found.shape, 4, leaves.objects).shards
            shards.append(ShardBlocks(Box((0, start), found.shape), held.edges, held.ids))
        monkeypatch.setattr("cas.leaves.extent_for", lambda *_: Extent(whole.shape, 4, tuple(shards)))
        pieces = leaves.stream([leaf("w", shape=whole.shape)], 100_000)
        assert b"".join(map(bytes, pieces)) == whole.tobytes()
