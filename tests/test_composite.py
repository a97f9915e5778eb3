"""Tensors that are stored by their parts: sparse, quantised and wrapped ones come back; hostile parts do no harm."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, Flag
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from faults.forge import Forge
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import cas
from cas import Corrupt, Invalid, Store, Unsupported
from cas.block import Kind, ObjectId
from cas.leaves import TensorLeaf, ValueLeaf
from cas.nodes import MAX_DEPTH, Tag
from cas.objects import Commit, Sizes, encode_commit
from cas.paths import format_path
from cas.state import Walk
from cas.tensors import Composite
from cas.torch.adapter import ADAPTER


@contextmanager
def quiet() -> Any:
    with warnings.catch_warnings():  # torch says of every new quantised or compressed tensor that it may change
        warnings.simplefilter("ignore")
        yield


# -- a wrapper as torchao has them ----------------------------------------------------------------------------------


class Mode(Enum):
    SYMMETRIC = "s"
    ASYMMETRIC = "a"


class Level(NamedTuple):
    name: str
    mode: Mode


@dataclass(frozen=True)
class Config:
    """Frozen, and with code that runs when one is made."""

    group: int
    level: Level
    inner: Config | None = None
    made: ClassVar[list[int]] = []

    def __post_init__(self) -> None:
        self.made.append(self.group)


@dataclass
class Hooked:
    group: int

    def __del__(self) -> None:
        raise AssertionError("code of a hostile store's choice")


class Packed(torch.Tensor):
    """`data` and `scale` of any kind, `extra` if there is one; the context is what the test wants."""

    @staticmethod
    def __new__(cls: Any, data: torch.Tensor, scale: torch.Tensor, extra: torch.Tensor | None, context: Any) -> Any:
        made = torch.Tensor._make_wrapper_subclass(
            cls, data.shape, dtype=torch.bfloat16, device=data.device, requires_grad=False
        )
        made.data_, made.scale, made.extra, made.context = data, scale, extra, context
        return made

    def __init__(self, *args: Any) -> None:
        pass

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        names = ["data_", "scale"] if self.extra is None else ["data_", "scale", "extra"]
        return names, self.context

    @classmethod
    def __tensor_unflatten__(cls, parts: dict[str, Any], context: Any, size: Any, stride: Any) -> Any:
        return cls(parts["data_"], parts["scale"], parts.get("extra"), context)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            held = args[0]
            return cls(held.data_.detach(), held.scale.detach(), held.extra, held.context)
        raise NotImplementedError(f"{func}: it is stored without computing with it")


class Refusing(Packed):
    """Its context is not what its code takes back."""

    @classmethod
    def __tensor_unflatten__(cls, parts: dict[str, Any], context: Any, size: Any, stride: Any) -> Any:
        raise ValueError("no, not these")


class Shrinking(Packed):
    @classmethod
    def __tensor_unflatten__(cls, parts: dict[str, Any], context: Any, size: Any, stride: Any) -> Any:
        return cls(parts["data_"][:1], parts["scale"], None, context)


class Untold(Packed):
    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        raise KeyError("sorry")


class Valued(Packed):
    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["data_", "context"], None


class Empty(Packed):
    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return [], None


class AsyncCollectiveTensor(Packed):
    """Only the name counts, here and below: the real ones need a process group."""


class Sharded(type("DTensor", (Packed,), {})):  # type: ignore[misc]
    """A class made of one that is refused."""


CONTEXT = {
    "config": Config(32, Level("row", Mode.SYMMETRIC), Config(1, Level("", Mode.ASYMMETRIC))),
    "plain": [None, True, 1 << 70, 0.5, "text", b"bytes", (1, (2,))],
    "torch": (torch.float8_e4m3fn, torch.device("cpu"), torch.Size([2, 3]), torch.strided, torch.preserve_format),
    "mode": Mode.ASYMMETRIC,
}


def packed(seed: int = 0, context: Any = CONTEXT, kind: type = Packed) -> Any:
    torch.manual_seed(seed)
    return kind(torch.randint(-128, 127, (4, 6), dtype=torch.int8), torch.rand(4, 1), None, context)


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


def same(found: Any, wanted: torch.Tensor) -> None:
    """Equal in type, form and every bit."""
    assert type(found) is (torch.Tensor if type(wanted) is nn.Parameter else type(wanted))
    assert (found.dtype, found.shape, found.layout) == (wanted.dtype, wanted.shape, wanted.layout)
    assert not found.requires_grad
    if type(found) is not torch.Tensor:
        (names, context), (wanted_names, wanted_context) = found.__tensor_flatten__(), wanted.__tensor_flatten__()
        assert (names, context) == (wanted_names, wanted_context)
        assert type(context) is type(wanted_context)
        for name in names:
            same(getattr(found, name), getattr(wanted, name))
        return
    one, other = ADAPTER.tensor(found), ADAPTER.tensor(wanted)
    if not isinstance(other, Composite):
        assert bits(found) == bits(wanted)
        return
    assert isinstance(one, Composite)
    assert (one.kind, one.parts.keys()) == (other.kind, other.parts.keys())
    for name, part in other.parts.items():
        if isinstance(part, torch.Tensor):
            same(one.parts[name], part.detach())
        else:
            assert one.parts[name] == part


def again(state: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with cas.open(tmp_path_factory.mktemp("c") / "s", create=True) as store:
        store.commit(state, branch="main")
        return store.load("main")


# -- what comes back ------------------------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.int64, torch.bool]
DTYPES += [torch.complex64, torch.uint8]


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    raw = np.random.default_rng(seed).integers(-3, 4, shape)
    return torch.from_numpy(np.asarray(raw)).to(dtype)


@st.composite
def coo(draw: st.DrawFn) -> torch.Tensor:
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    sparse = draw(st.integers(0, len(shape)))
    count = draw(st.integers(0, 6)) if sparse else draw(st.integers(0, 2))
    seed, dtype = draw(st.integers(0, 9)), draw(st.sampled_from(DTYPES))
    rows = [np.random.default_rng(seed).integers(0, length, count) for length in shape[:sparse]]
    indices = torch.from_numpy(np.stack(rows) if rows else np.zeros((0, count), np.int64))
    made = torch.sparse_coo_tensor(indices, numbers((count, *shape[sparse:]), dtype, seed), shape)
    return made.coalesce() if draw(st.booleans()) else made


BLOCKED = (torch.sparse_bsr, torch.sparse_bsc)
COMPRESSED = dict.fromkeys((torch.sparse_csr, torch.sparse_bsr), ("crow_indices", "col_indices"))
COMPRESSED |= dict.fromkeys((torch.sparse_csc, torch.sparse_bsc), ("ccol_indices", "row_indices"))


@st.composite
def compressed(draw: st.DrawFn) -> torch.Tensor:
    layout, names = draw(st.sampled_from(sorted(COMPRESSED.items(), key=str)))
    blocks = (draw(st.integers(1, 3)), draw(st.integers(1, 2))) if layout in BLOCKED else None
    rows, columns = draw(st.integers(0, 4)), draw(st.integers(1, 4))
    size = (rows * blocks[0], columns * blocks[1]) if blocks else (rows, columns)
    dense = tuple(draw(st.lists(st.integers(1, 2), max_size=1)))
    dtype, seed = draw(st.sampled_from([*DTYPES[:2], torch.int64])), draw(st.integers(0, 9))
    made = numbers((*size, *dense), dtype, seed).to_sparse(layout=layout, blocksize=blocks, dense_dim=len(dense))
    if not draw(st.booleans()):
        return made
    indices = [getattr(made, name)().int() for name in names]
    return torch.sparse_compressed_tensor(*indices, made.values(), made.shape, layout=layout)


@st.composite
def quantised(draw: st.DrawFn) -> torch.Tensor:
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=3)))
    dtype = draw(st.sampled_from([torch.qint8, torch.quint8, torch.qint32]))
    values = numbers(shape, torch.float32, draw(st.integers(0, 9)))
    scale = draw(st.floats(1e-6, 1e6))
    if draw(st.booleans()):
        made = torch.quantize_per_tensor(values, scale, draw(st.integers(0, 100)), dtype)
        return made.transpose(0, -1) if draw(st.booleans()) else made
    axis = draw(st.integers(0, len(shape) - 1))
    kind = torch.float32 if dtype is torch.quint8 and draw(st.booleans()) else torch.int64
    points = torch.arange(shape[axis], dtype=kind)
    return torch.quantize_per_channel(values, torch.full((shape[axis],), scale).double(), points, axis, dtype)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", [coo, compressed, quantised])
def test_every_bit_and_flag_comes_back(
    kind: Callable[[], st.SearchStrategy[torch.Tensor]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Stored in memory only: the adapter takes it apart, and puts it together from plain copies of the parts."""
    with quiet():
        wanted = data.draw(kind())
    taken = ADAPTER.tensor(wanted)
    assert isinstance(taken, Composite)
    parts = {
        name: part.clone(memory_format=torch.contiguous_format) if isinstance(part, torch.Tensor) else part
        for name, part in taken.parts.items()
    }
    same(ADAPTER.compose(taken.kind, parts), wanted)


def one_of_each() -> dict[str, torch.Tensor]:
    dense = torch.tensor([[0.0, 1.5, 0], [2.5, 0, 0]])
    nested = Packed(packed(1), dense.to_sparse(), torch.ones(3), [CONTEXT])
    with quiet():
        return {
            "coo": dense.to_sparse(),
            "uncoalesced": torch.sparse_coo_tensor([[1, 1], [2, 2]], [1.0, 2.0], (2, 3)),
            "empty": torch.zeros(2, 3).to_sparse(),
            "point": torch.sparse_coo_tensor(torch.zeros(0, 2, dtype=torch.int64), [1.0, 2.0], ()),
            "csr": dense.to_sparse_csr(),
            "csc": dense.to_sparse_csc(),
            "bsr": dense.to_sparse_bsr((1, 3)),
            "bsc": dense.to_sparse_bsc((2, 1)),
            "per tensor": torch.quantize_per_tensor(dense, 0.1, 3, torch.quint8),
            "per channel": torch.quantize_per_channel(dense, torch.rand(2) + 1, torch.tensor([0, 7]), 0, torch.qint8),
            "packed": packed(),
            "nested": nested,
        }


def test_one_of_each_comes_back_through_a_store(store: Store) -> None:
    state = {"model": one_of_each(), "list": [packed(5)]}
    store.commit(state, branch="main")
    loaded = store.load("main")
    for name, tensor in state["model"].items():  # type: ignore[attr-defined]
        same(loaded["model"][name], tensor)
    same(loaded["list"][0], packed(5))
    assert store.fsck(data=True) == []


def test_a_state_may_be_a_single_composite(store: Store) -> None:
    for tensor in (torch.eye(3).to_sparse(), packed()):
        store.commit(tensor, branch="main")
        same(store.load("main"), tensor)


def test_parameters_come_back_as_tensors(store: Store) -> None:
    sparse = nn.Parameter(torch.eye(3).to_sparse())
    graph = torch.eye(3).to_sparse().requires_grad_() * 2
    store.commit({"p": sparse, "wrapped": nn.Parameter(packed(), requires_grad=False), "graph": graph}, branch="main")
    loaded = store.load("main")
    same(loaded["p"], sparse)
    same(loaded["wrapped"], packed())
    same(loaded["graph"], graph.detach())


def test_committing_leaves_no_trace(store: Store) -> None:
    state = one_of_each()
    store.commit(state, branch="main")
    assert state["per tensor"].untyped_storage().resizable()
    assert state["coo"]._values()._version == 0
    for name, tensor in one_of_each().items():
        if name != "per channel":  # whose scales are random
            same(state[name], tensor)


def test_a_view_of_a_quantised_tensor_stores_only_what_it_shows(store: Store) -> None:
    with quiet():
        whole = torch.quantize_per_tensor(torch.randn(64, 64), 0.1, 3, torch.qint8)
    state = {"row": whole[3], "columns": whole[:, 5:7], "transposed": whole.t()}
    commit = store.commit(state, branch="main")
    for name, loaded in store.load("main").items():
        same(loaded, state[name])
    assert commit.stats.raw == 64 + 128 + 64 * 64


def test_strides_of_wrapped_tensors_are_kept(store: Store) -> None:
    held = Packed(torch.arange(24, dtype=torch.int8).view(4, 6).t(), torch.rand(2, 3, 4).permute(2, 0, 1), None, None)
    store.commit({"w": held}, branch="main")
    loaded = store.load("main")["w"]
    same(loaded, held)
    assert (loaded.data_.stride(), loaded.scale.stride()) == (held.data_.stride(), held.scale.stride())


def test_no_code_of_a_dataclass_runs_on_load(store: Store) -> None:
    store.commit({"w": packed()}, branch="main")
    before = list(Config.made)
    same(store.load("main")["w"], packed())
    assert Config.made == before


def test_a_background_commit_holds_the_parts_as_they_were(store: Store) -> None:
    held = packed()
    pending = store.commit_async({"w": held}, branch="main")
    held.data_.zero_()
    pending.wait()
    same(store.load("main")["w"], packed())


def test_loading_warns_of_nothing(store: Store) -> None:
    """In a process of its own, for torch says some things once."""
    store.commit(one_of_each_plain(), branch="main")
    store.close()
    code = "import cas, sys; print(len(cas.open(sys.argv[1]).load('main')))"
    command = [sys.executable, "-W", "error", "-c", code, str(store.path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("10\n", "")


def one_of_each_plain() -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in one_of_each().items() if type(tensor) is torch.Tensor}


# -- ties -----------------------------------------------------------------------------------------------------------


def test_one_value_under_two_paths_is_one_again(store: Store) -> None:
    state = {name: tensor for name, tensor in one_of_each().items() if name not in ("empty",)}
    commit = store.commit({"a": state, "b": dict(state)}, branch="main")
    loaded = store.load("main")
    for name in state:
        assert loaded["a"][name] is loaded["b"][name], name
    store.commit(state, branch="once")
    assert commit.stats.raw == store.commit(state, branch="once").stats.raw


def test_a_detached_value_is_tied_as_its_tensors_are(store: Store) -> None:
    state = one_of_each_plain() | {"packed": packed()}
    store.commit({name: [tensor, tensor.detach()] for name, tensor in state.items() if name != "empty"}, branch="main")
    for name, (one, other) in store.load("main").items():
        assert one is other, name


def test_equal_values_are_not_tied(store: Store) -> None:
    values = torch.ones(3)
    state = {"a": packed(), "b": packed(), "c": torch.eye(3).to_sparse(), "d": torch.eye(3).to_sparse()}
    indices = torch.zeros(1, 3, dtype=torch.int64)
    half = [torch.sparse_coo_tensor(indices.clone(), values, (3,)) for _ in range(2)]
    store.commit({**state, "half": half}, branch="main")
    loaded = store.load("main")
    assert len({id(loaded[name]) for name in state}) == 4
    one, other = loaded["half"]
    assert one is not other
    assert one._values().data_ptr() == other._values().data_ptr()
    assert one._indices().data_ptr() != other._indices().data_ptr()


# -- looking and loading parts --------------------------------------------------------------------------------------


def test_patterns_take_a_composite_whole_or_not_at_all(store: Store) -> None:
    state = {"m": {"w": torch.eye(3).to_sparse(), "indices": torch.ones(1)}, "values": 3}
    store.commit(state, branch="main")
    for only in ("m/w", "m/*", "m", "**/w", "*/w"):
        same(store.load("main", only=only)["m"]["w"], state["m"]["w"])  # type: ignore[index]
    assert set(store.load("main", only="**/indices")["m"]) == {"indices"}
    assert store.load("main", only="**/values") == {"values": 3}
    with pytest.raises(Invalid, match="match nothing"):
        store.load("main", only="m/w/values")


def test_into_replaces_composites_and_fills_what_is_beside_them(store: Store) -> None:
    state = {"w": torch.eye(3).to_sparse(), "q": packed(), "b": torch.ones(3), "l": [torch.eye(2).to_sparse_csr()]}
    store.commit(state, branch="main")
    bias, old = torch.zeros(3), torch.zeros(3, 3).to_sparse()
    into: dict[str, Any] = {"w": old, "q": None, "b": bias, "l": [5]}
    loaded = store.load("main", into=into)
    assert loaded is into
    assert into["b"] is bias
    assert torch.equal(bias, torch.ones(3))
    assert into["w"] is not old
    assert old._nnz() == 0
    same(into["w"], state["w"])  # type: ignore[arg-type]
    same(into["q"], packed())
    same(into["l"][0], state["l"][0])  # type: ignore[index]


def test_a_part_is_tied_to_a_tensor_beside_it(store: Store) -> None:
    """Also to a parameter that is filled in place."""
    weight = torch.ones(3)
    wrapped = Packed(weight, torch.ones(1), None, None)
    sparse = torch.sparse_coo_tensor([[0, 1, 2]], weight, (3,))
    store.commit({"weight": weight, "wrapped": wrapped, "sparse": sparse}, branch="main")
    loaded = store.load("main")
    filled = store.load("main", into={"weight": nn.Parameter(torch.zeros(3)), "wrapped": None, "sparse": None})
    for state in (loaded, filled):
        same(state["wrapped"], wrapped)
        same(state["sparse"], sparse)
        assert state["wrapped"].data_.data_ptr() == state["weight"].data_ptr() == state["sparse"]._values().data_ptr()


def test_a_device_is_that_of_the_parts(store: Store) -> None:
    state = one_of_each()
    store.commit(state, branch="main")
    for name in ("coo", "csr", "bsc", "packed"):
        assert store.load("main", only=name, device="meta")[name].device.type == "meta"
    assert store.load("main", only="packed", device="meta")["packed"].scale.is_meta
    with pytest.raises(Unsupported, match=r"per tensor in commit [0-9a-f]{8} cannot be made as quantized_per_tensor"):
        store.load("main", only="per tensor", device="meta")
    with torch.device("meta"):
        for name, tensor in store.load("main").items():
            same(tensor, state[name])


def test_a_view_shows_the_parts_and_loads_the_whole(store: Store) -> None:
    sparse = torch.eye(5).to_sparse()
    store.commit({"m": [sparse, packed()]}, branch="main")
    shown = store.view("main")["m"][0]
    assert list(shown) == ["size", "coalesced", "indices", "values"]
    assert (shown["coalesced"], shown["size"]) == (True, torch.Size([5, 5]))
    assert shown["indices"][1, 2:4].tolist() == [2, 3]
    same(shown.load(), sparse)
    same(store.view("main")["m"][1].load(), packed())


def test_leaves_tell_the_kind_and_then_the_parts(store: Store) -> None:
    store.commit({"m": {"w": torch.eye(3).to_sparse()}}, branch="main")
    found = {format_path(leaf.path): leaf for leaf in store.leaves("main")}
    assert list(found) == ["m/w", "m/w/size", "m/w/coalesced", "m/w/indices", "m/w/values"]
    assert found["m/w"] == ValueLeaf(("m", "w"), "torch.sparse_coo", 0, None, is_composite=True)
    assert isinstance(found["m/w/values"], TensorLeaf)
    assert store.leaves("main").find("m/w/indices") == ("m", "w", "indices")


def test_damage_to_a_part_is_told_by_its_path(store: Store) -> None:
    values = torch.randn(5000)
    state = {"m": [torch.sparse_coo_tensor(torch.arange(5000)[None], values, (5000,)), {"x": 1}] * 1}
    store.commit(state, branch="main", codec="raw")
    store.close()
    (file,) = store.path.glob("packs/*/*")
    data = bytearray(file.read_bytes())
    data[data.index(values.numpy().tobytes())] ^= 1
    file.write_bytes(data)
    with cas.open(store.path) as damaged:
        assert {path for finding in damaged.fsck(data=True) for path in finding.paths} == {"m/[0]/values"}
        with pytest.raises(Corrupt, match=r"m/\[0\]/values in commit"):
            damaged.load("main")


def test_a_large_context_stands_in_trees_of_its_own(store: Store) -> None:
    context = {f"name {i}": [i, "x" * 100] for i in range(5000)}
    store.commit({"w": packed(0, context)}, branch="main")
    same(store.load("main")["w"], packed(0, context))
    assert store.fsck(data=True) == []


# -- refusals -------------------------------------------------------------------------------------------------------


def local() -> torch.Tensor:
    class Inner(Packed):
        pass

    return packed(0, None, Inner)


class Colour(Flag):
    RED = 1
    BLUE = 2


@dataclass
class Cached:
    group: int
    table: list[int] = field(init=False)


def cached() -> Cached:
    made = Cached(3)
    made.table = [1]
    made.more = 5  # type: ignore[attr-defined]
    return made


def endless() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def unsorted() -> torch.Tensor:
    return torch.sparse_coo_tensor([[1, 0]], [1.0, 2.0], (3,), check_invariants=False)._coalesced_(True)


def freed() -> torch.Tensor:
    with quiet():
        tensor = torch.quantize_per_tensor(torch.ones(100), 0.1, 0, torch.qint8)
    tensor.untyped_storage().resize_(0)
    return tensor


def wrapped_meta() -> torch.Tensor:
    return Packed(torch.empty(3, device="meta"), torch.ones(1, device="meta"), None, None)


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "a class in a function": (local, "w is an Inner, whose name does not lead to it; define"),
    "a class that refuses its parts": (
        lambda: packed(0, None, Refusing),
        "w is a Refusing .*ValueError: no, not",
    ),
    "a class that changes": (lambda: packed(0, None, Shrinking), "w is a Shrinking that its parts do not make again"),
    "a class that does not tell": (lambda: packed(0, None, Untold), "w is an Untold that does not say .*sorry"),
    "a class of values": (lambda: packed(0, 5, Valued), "w is a Valued that consists of more than named tensors"),
    "a tensor in the making": (lambda: packed(0, 5, AsyncCollectiveTensor), r"w is an Async.* call its wait\(\) first"),
    "a sharded tensor": (lambda: packed(0, 5, Sharded), "w is a Sharded, which is sharded"),
    "a class of nothing": (lambda: packed(0, 5, Empty), "w is an Empty that consists of more than named tensors"),
    "an object": (lambda: packed(0, {"a": [object()]}), r"w/__wrapper__/context/a/\[0\] is a builtins.object; convert"),
    "a function": (lambda: packed(0, same), "w/__wrapper__/context is a builtins.function; convert"),
    "a set": (lambda: packed(0, {1}), "w/__wrapper__/context is a builtins.set; convert"),
    "flags": (lambda: packed(0, Colour.RED | Colour.BLUE), "w/__wrapper__/context is a .*Colour; convert"),
    "an object with more": (lambda: packed(0, cached()), "w/__wrapper__/context is a .*Cached; convert"),
    "an object with less": (lambda: packed(0, Cached(3)), "w/__wrapper__/context is a .*Cached; convert"),
    "an endless context": (lambda: packed(0, endless()), "w has a context nested deeper than 128"),
    "a wrapper of meta tensors": (wrapped_meta, "w/data_ is a tensor on the meta device"),
    "an unsorted coalesced tensor": (unsorted, "w is a sparse tensor that breaks its own rules: .*coalesced"),
    "a freed quantised tensor": (freed, "w has lost its memory"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_could_not_come_back_is_refused_by_its_path(name: str) -> None:
    make, reason = REFUSALS[name]
    with pytest.raises(Unsupported, match=f"^state path {reason}"):
        Walk().visit({"w": make()})


def test_a_dataclass_outside_of_a_context_is_refused_as_ever() -> None:
    for value in (CONTEXT["config"], Mode.SYMMETRIC, Level("a", Mode.SYMMETRIC)):
        with pytest.raises(Unsupported, match="convert it to plain values"):
            Walk().visit({"v": value})


def test_a_wrapper_that_holds_itself_is_refused() -> None:
    held = packed()
    held.extra = held
    with pytest.raises(Invalid, match="nested deeper than"):
        Walk().visit({"w": held})


def test_metadata_takes_no_composites(store: Store) -> None:
    with pytest.raises(Invalid, match="put it in the state"):
        store.commit({"a": 1}, meta={"w": torch.eye(3).to_sparse()})


# -- hostile parts --------------------------------------------------------------------------------------------------

EYE = {
    "size": torch.Size([3, 3]),
    "coalesced": True,
    "indices": torch.tensor([[0, 1], [0, 1]]),
    "values": torch.ones(2),
}
CSR = {
    "size": torch.Size([2, 3]),
    "crow_indices": torch.tensor([0, 1, 2]),
    "col_indices": torch.tensor([2, 0]),
    "values": torch.ones(2),
}
TENSOR = {"int_repr": torch.ones(4, dtype=torch.int8), "scale": 0.5, "zero_point": 1}
CHANNEL = {
    "int_repr": torch.ones(2, 3, dtype=torch.int8),
    "scales": torch.ones(2, dtype=torch.float64),
    "zero_points": torch.ones(2, dtype=torch.int64),
    "axis": 0,
}
NAME = f"{__name__}:Packed"
WRAPPED = {
    "__wrapper__": {
        "class": NAME, "context": None, "size": torch.Size([2]), "stride": torch.Size([1]), "dtype": torch.bfloat16,
    },
    "data_": torch.ones(2),
    "scale": torch.ones(1),
}  # fmt: skip
GOOD = {"sparse_coo": EYE, "sparse_csr": CSR, "quantized_per_tensor": TENSOR, "quantized_per_channel": CHANNEL}
GOOD |= {"subclass": WRAPPED, "enum": {"class": f"{__name__}:Mode", "member": "SYMMETRIC"}}
GOOD |= {"dataclass": {"class": f"{__name__}:Config", "fields": {"group": 1, "level": None, "inner": None}}}
GOOD |= {"namedtuple": {"class": f"{__name__}:Level", "items": ("a", None)}}


def wrapper(**changed: Any) -> tuple[str, dict[str, Any]]:
    return "subclass", {"__wrapper__": {**WRAPPED["__wrapper__"], **changed}}  # type: ignore[dict-item]


HOSTILE: dict[str, tuple[str, dict[str, Any]]] = {
    "an index past the end": ("sparse_coo", {"indices": torch.tensor([[0, 3], [0, 1]])}),
    "a negative index": ("sparse_coo", {"indices": torch.tensor([[0, -1], [0, 1]])}),
    "a huge index": ("sparse_coo", {"indices": torch.tensor([[0, 1 << 62], [0, 1]])}),
    "indices that are not in order": ("sparse_coo", {"indices": torch.tensor([[1, 0], [0, 1]])}),
    "indices twice": ("sparse_coo", {"indices": torch.tensor([[1, 1], [1, 1]])}),
    "indices of another dtype": ("sparse_coo", {"indices": torch.zeros(2, 2)}),
    "indices of numpy": ("sparse_coo", {"indices": np.zeros((2, 2), np.int64)}),
    "indices that are a number": ("sparse_coo", {"indices": 0}),
    "fewer values": ("sparse_coo", {"values": torch.ones(1)}),
    "no values": ("sparse_coo", {"values": torch.ones(())}),
    "sparse values": ("sparse_coo", {"values": torch.eye(2).to_sparse()}),
    "a size of fewer dimensions": ("sparse_coo", {"size": torch.Size([3])}),
    "a negative size": ("sparse_coo", {"size": torch.Size([3, -3])}),
    "a size that overflows": ("sparse_coo", {"size": torch.Size([1 << 62, 1 << 62])}),
    "a size that is a list": ("sparse_coo", {"size": [3, 3]}),
    "a flag that is a number": ("sparse_coo", {"coalesced": 1}),
    "one part more": ("sparse_coo", {"more": 1}),
    "rows past the end": ("sparse_csr", {"crow_indices": torch.tensor([0, 1, 9])}),
    "rows that fall": ("sparse_csr", {"crow_indices": torch.tensor([0, 2, 1])}),
    "too few rows": ("sparse_csr", {"crow_indices": torch.tensor([0, 2])}),
    "columns past the end": ("sparse_csr", {"col_indices": torch.tensor([2, 3])}),
    "negative columns": ("sparse_csr", {"col_indices": torch.tensor([2, -1])}),
    "columns of another dtype": ("sparse_csr", {"col_indices": torch.tensor([2, 0]).int()}),
    "indices of bytes": (
        "sparse_csr",
        {"col_indices": torch.tensor([2, 0]).char(), "crow_indices": torch.tensor([0, 1, 2]).char()},
    ),
    "a compressed size that overflows": ("sparse_csr", {"size": torch.Size([2, (1 << 63) - 1])}),
    "numbers of no quantised dtype": ("quantized_per_tensor", {"int_repr": torch.ones(4)}),
    "a scale that is no float": ("quantized_per_tensor", {"scale": 1}),
    "a zero point over 64 bits": ("quantized_per_tensor", {"zero_point": 1 << 64}),
    "a zero point that is a float": ("quantized_per_tensor", {"zero_point": 1.0}),
    "an axis past the end": ("quantized_per_channel", {"axis": 2}),
    "a negative axis": ("quantized_per_channel", {"axis": -1}),
    "too few scales": ("quantized_per_channel", {"scales": torch.ones(1, dtype=torch.float64)}),
    "scales of another dtype": ("quantized_per_channel", {"scales": torch.ones(2, dtype=torch.float16)}),
    "points of another dtype": ("quantized_per_channel", {"zero_points": torch.ones(2, dtype=torch.int32)}),
    "points of two dimensions": ("quantized_per_channel", {"zero_points": torch.ones(2, 1, dtype=torch.int64)}),
    "a wrapper without a name": wrapper(**{"class": None}),
    "a wrapper that is no tensor": wrapper(**{"class": "subprocess:Popen"}),
    "a wrapper that is a function": wrapper(**{"class": "os:system"}),
    "a wrapper that is a module": wrapper(**{"class": "os:path"}),
    "a wrapper that is not there": wrapper(**{"class": f"{__name__}:Nothing"}),
    "a wrapper without a module": wrapper(**{"class": "Packed"}),
    "a wrapper of a module that is not imported": wrapper(**{"class": "antigravity:Packed"}),
    "a wrapper in torchao that is not there": wrapper(**{"class": "torchao_of_mine:Packed"}),
    "a plain tensor as wrapper": wrapper(**{"class": "torch:Tensor"}),
    "a jagged tensor": wrapper(**{"class": "torch.nested._internal.nested_tensor:NestedTensor"}),
    "a tensor in the making": wrapper(**{"class": f"{__name__}:AsyncCollectiveTensor"}),
    "a sharded tensor": wrapper(**{"class": f"{__name__}:Sharded"}),
    "another shape": wrapper(size=torch.Size([3])),
    "a negative shape": wrapper(size=torch.Size([-2])),
    "a shape that overflows": wrapper(size=torch.Size([1 << 62, 1 << 62]), stride=torch.Size([1 << 62, 1])),
    "a shape that is a tuple": wrapper(size=(2,)),
    "a negative stride": wrapper(stride=torch.Size([-1])),
    "another dtype": wrapper(dtype=torch.float16),
    "a dtype that is a text": wrapper(dtype="bfloat16"),
    "orders of no tensor": wrapper(orders={"nobody": torch.Size([0])}),
    "an impossible order": wrapper(orders={"data_": torch.Size([1])}),
    "a longer order": wrapper(orders={"data_": torch.Size([0, 1])}),
    "orders that are a list": wrapper(orders=[]),
    "a wrapper that says nothing": ("subclass", {"__wrapper__": {}}),
    "a wrapper without tensors": ("subclass", {"data_": 5}),
    "an enum that is none": ("enum", {"class": NAME}),
    "an enum without the member": ("enum", {"member": "__class__"}),
    "an enum's member by number": ("enum", {"member": 0}),
    "a dataclass that is none": ("dataclass", {"class": "subprocess:Popen"}),
    "a dataclass with a destructor": ("dataclass", {"class": f"{__name__}:Hooked", "fields": {"group": 1}}),
    "a dataclass of other fields": ("dataclass", {"fields": {"group": 1, "__class__": 5}}),
    "a named tuple that is none": ("namedtuple", {"class": "torch:Size"}),
    "a named tuple of fewer items": ("namedtuple", {"items": ()}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_parts_are_refused_with_their_path(store: Store, name: str) -> None:
    kind, changed = HOSTILE[name]
    store.commit({"m": [Composite("torch", kind, {**GOOD[kind], **changed})]}, branch="main")
    with pytest.raises((Corrupt, Unsupported), match=r"^m/\[0\] in commit [0-9a-f]{8} "):
        store.load("main")
    assert store.fsck() == []  # the bytes are as they were written


@pytest.mark.parametrize("kind", GOOD)
def test_the_parts_that_the_hostile_ones_differ_from_are_good(store: Store, kind: str) -> None:
    store.commit({"m": Composite("torch", kind, GOOD[kind])}, branch="main")
    assert store.load("main")["m"] is not None


@pytest.mark.parametrize("kind", GOOD)
def test_a_part_less_is_refused(kind: str) -> None:
    for name in GOOD[kind]:
        with pytest.raises((Corrupt, Unsupported)):
            ADAPTER.compose(kind, {key: part for key, part in GOOD[kind].items() if key != name})


@pytest.mark.parametrize(
    ("framework", "kind", "error"),
    [("torch", "sparse_xyz", Unsupported), ("numpy", "sparse_coo", Corrupt), ("jax", "a", Unsupported)],
)
def test_an_unknown_kind_or_framework_is_refused(
    store: Store, framework: str, kind: str, error: type[Exception]
) -> None:
    store.commit({"m": Composite(framework, kind, {})}, branch="main")
    with pytest.raises(error, match=r"^m in commit"):
        store.load("main")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_indices_make_a_whole_tensor_or_none(data: st.DataObject) -> None:
    """What is made is computed with, so that an index that leads astray would end the process."""
    with quiet():
        tensor = data.draw(st.one_of(coo(), compressed()))
    taken = ADAPTER.tensor(tensor)
    assert isinstance(taken, Composite)
    parts = {name: part.clone() if isinstance(part, torch.Tensor) else part for name, part in taken.parts.items()}
    name = data.draw(st.sampled_from([name for name in parts if "indices" in name]))
    if parts[name].numel():
        at = data.draw(st.integers(0, parts[name].numel() - 1))
        parts[name].view(-1)[at] = data.draw(st.sampled_from([-1, 0, 1, 2, 5, 1 << 30]))
    if data.draw(st.booleans()):
        parts["size"] = torch.Size(data.draw(st.lists(st.integers(0, 6), max_size=4)))
    try:
        made = ADAPTER.compose(taken.kind, parts)
    except Corrupt:
        return
    assert made.to_dense().shape == parts["size"]


def test_nothing_that_a_store_names_is_imported(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap_of_the_store.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for kind, changed in (wrapper(**{"class": "trap_of_the_store:Packed"}), ("enum", {"class": "trap_of_the_store:E"})):
        store.commit({"w": Composite("torch", kind, {**GOOD[kind], **changed})}, branch="main")
        with pytest.raises(Unsupported, match="import trap_of_the_store first"):
            store.load("main")
    assert "trap_of_the_store" not in sys.modules


def test_depth_is_bounded_and_all_of_it_loads(store: Store) -> None:
    def nested(depth: int) -> Any:
        value: Any = 7
        for _ in range(depth):
            value = Composite("torch", "namedtuple", {"class": f"{__name__}:Level", "items": ("a", value)})
        return value

    deepest = (MAX_DEPTH - 1) // 2  # each is a dict and a tuple
    store.commit({"w": nested(deepest)}, branch="main")
    value = store.load("main")["w"]
    for _ in range(deepest):
        value = value.mode
    assert value == 7
    assert len(list(store.leaves("main"))) == 3 * deepest + 1
    with pytest.raises(Invalid, match="nested deeper"):
        Walk().visit({"w": nested(deepest + 1)})


# -- hostile trees ---------------------------------------------------------------------------------------------------


def forged(path: Path, tree: Callable[[Forge], ObjectId]) -> Store:
    """An open store whose only commit has the tree that was made by hand."""
    forge = Forge(path / "forged")
    empty = [Tag.DICT, []]
    commit = Commit(tree(forge), (), 1, "eve", "", None, empty, empty, empty, None, Sizes(0, 0, 0))
    forge.publish(forge.add(Kind.COMMIT, encode_commit(commit)))
    return cas.open(forge.path)


def chain(levels: int, width: int) -> Callable[[Forge], ObjectId]:
    """Composites in composites, each with all its parts equal."""

    def tree(forge: Forge) -> ObjectId:
        name = forge.tree([Tag.DICT, [["a", 1]]])
        for _ in range(levels):
            node = [Tag.COMPOSITE, "torch", "a kind", [Tag.REF, name]]
            name = forge.tree([Tag.DICT, [[f"{at}", node] for at in range(width)]])
        return name

    return tree


def test_composites_that_multiply_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty levels of ten: a few kilobytes that stand for 10**40 values."""
    monkeypatch.setattr("cas.loader.MAX_ENTRIES", 10_000)
    monkeypatch.setattr("cas.leaves.MAX_ENTRIES", 10_000)
    with forged(tmp_path, chain(40, 10)) as store:
        with pytest.raises(Corrupt, match="entries"):
            store.load("main")
        with pytest.raises(Corrupt, match="entries"):
            list(store.leaves("main"))
        assert store.fsck() == []  # each tree is looked at once


def test_composites_nested_too_deep_are_refused(tmp_path: Path) -> None:
    with forged(tmp_path, chain(MAX_DEPTH, 1)) as store:
        with pytest.raises(Corrupt, match="nested deeper"):
            store.load("main")
        with pytest.raises(Corrupt, match="nested too deep"):
            list(store.leaves("main"))
        assert {finding.name for finding in store.fsck()} == {"object-corrupt"}


def test_parts_that_are_no_dict_are_refused(tmp_path: Path) -> None:
    def tree(forge: Forge) -> ObjectId:
        node = [Tag.COMPOSITE, "torch", "sparse_coo", [Tag.REF, forge.tree([Tag.LIST, [1]])]]
        return forge.tree([Tag.DICT, [["w", node]]])

    with forged(tmp_path, tree) as store:
        for ask in (store.load, lambda: list(store.leaves()), lambda: store.view()["w"]):
            with pytest.raises(Corrupt, match="the parts of a composite are no dict"):
                ask()
        assert [(finding.name, finding.paths) for finding in store.fsck()] == [("object-corrupt", ("w",))]


def test_entries_of_parts_count(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    store.commit({"w": torch.eye(3).to_sparse()}, branch="main")
    monkeypatch.setattr("cas.loader.MAX_ENTRIES", 4)
    with pytest.raises(Corrupt, match="has over 4 entries"):
        store.load("main")
    monkeypatch.setattr("cas.state.MAX_ENTRIES", 4)
    with pytest.raises(Unsupported, match="state path w makes over 4 entries"):
        Walk().visit({"w": torch.eye(3).to_sparse()})
