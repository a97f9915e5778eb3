"""What torch gives the store, and what it gets back: every dtype, every form, and every refusal."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cas.dtypes import DTYPES
from cas.errors import Corrupt, Invalid, Unsupported
from cas.state import Walk
from cas.store import Store
from cas.tensors import Source
from cas.torch.adapter import ADAPTER
from cas.torch.device import DeviceSource

PLAIN = sorted(DTYPES)
"""Every dtype whose tensors are stored as one; the next list holds those of torch 2.13 that are not stored."""
REFUSED = (
    [f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)]
    + ["bits1x8", "bits2x4", "bits4x2", "bits8", "bits16"]
    + ["quint2x4", "quint4x2"]
)
SHAPES = [(), (1,), (0,), (3, 0, 2), (7,), (1, 5, 1), (4, 6), (2, 3, 4, 5)]


def random_tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Random bits: NaNs of every kind, denormals, both zeros; a bool has only two values."""
    dtype = DTYPES[name]
    count = int(np.prod(shape, dtype=int))
    raw = np.random.default_rng(seed).integers(0, 2 if name == "bool" else 256, (count + 1) * dtype.itemsize, np.uint8)
    return torch.from_numpy(raw).view(getattr(torch, name))[:count].view(shape)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """A tensor's row-major bytes by another way than the adapter's."""
    shown = tensor.detach().resolve_conj().resolve_neg()
    shown = shown.view(torch.int32) if tensor.dtype == torch.complex32 else shown  # torch warns about computing with it
    flat = shown.clone(memory_format=torch.contiguous_format).view(-1)
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


def source_bytes(tensor: torch.Tensor) -> bytes:
    found = ADAPTER.tensor(tensor)
    assert found is not None
    return read(found.source, 0, found.source.nbytes)


def read(source: Source, start: int, stop: int) -> bytes:
    out = np.empty(stop - start, np.uint8)
    source.read_into(start, out)
    return out.tobytes()


def same(loaded: Any, original: torch.Tensor) -> None:
    assert type(loaded) is torch.Tensor
    assert (loaded.dtype, loaded.shape) == (original.dtype, original.shape)
    assert loaded.is_contiguous()
    assert raw_bytes(loaded) == raw_bytes(original)


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda t: t.transpose(0, 3),
    "sliced": lambda t: t[1:, ::2, 1:3],
    "strided": lambda t: t[..., ::3],
    "one element": lambda t: t[1, 2, 3, 4],
    "one column": lambda t: t[:, 1, 2, 3],
    "expanded": lambda t: t[:, :1].expand(2, 9, 4, 5),
    "expanded scalar": lambda t: t[0, 0, 0, 0].expand(3, 4),
    "channels last": lambda t: t.view(2, 4, 5, 3).permute(0, 3, 1, 2),
    "overlapping": lambda t: t.reshape(-1).unfold(0, 5, 2),
    "diagonal": lambda t: t[0, 0].diagonal(),
    "empty slice": lambda t: t[:, 2:2],
}


def test_the_tables_hold_every_dtype_of_torch() -> None:
    every = {str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)}
    quantised = {"qint8", "qint32", "quint8"}  # stored by their parts
    assert every - {"bit"} == {*PLAIN, *REFUSED, *quantised}  # torch.bit is uint1 under another name


@pytest.mark.parametrize("name", PLAIN)
def test_every_dtype_and_bit_pattern_comes_back(store: Store, name: str) -> None:
    state = {str(shape): random_tensor(name, shape) for shape in SHAPES}
    state["large"] = random_tensor(name, (700, 1000))
    state["all 16 bits"] = random_tensor(name, (65536,)) if name == "bool" else _all_16_bits(name)
    store.commit(state, branch="main")
    loaded = store.load("main")
    assert list(loaded) == list(state)
    for key, tensor in state.items():
        same(loaded[key], tensor)


def _all_16_bits(name: str) -> torch.Tensor:
    raw = np.arange(65536, dtype=np.uint16)
    return torch.from_numpy(raw.view(np.uint8)).view(getattr(torch, name))


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_gives_its_own_bytes_only(name: str, view: str) -> None:
    tensor = VIEWS[view](random_tensor(name, (2, 3, 4, 5)))
    expected = raw_bytes(tensor)
    found = ADAPTER.tensor(tensor)
    assert found is not None
    assert found.shape == tuple(tensor.shape)
    assert found.source.nbytes == len(expected)
    for source in (found.source, DeviceSource(tensor)):
        assert read(source, 0, len(expected)) == expected
        for start, stop in ((0, len(expected) // 2), (len(expected) // 3, len(expected)), (1, len(expected) - 1)):
            if start <= stop <= len(expected):
                assert read(source, start, stop) == expected[start:stop]


def test_views_come_back_and_store_only_what_they_show(store: Store) -> None:
    base = torch.randn(2, 3, 4, 5)
    state = {name: view(base) for name, view in VIEWS.items()}
    commit = store.commit(state | {"small of large": torch.randn(1 << 20)[5:9]}, branch="main")
    for name, loaded in store.load("main", only=[*VIEWS]).items():
        same(loaded, state[name])
    assert commit.stats.raw < 1 << 14


@pytest.mark.parametrize("name", PLAIN)
def test_a_device_source_copies_what_it_reads(name: str) -> None:
    for view in VIEWS.values():
        tensor = view(random_tensor(name, (2, 3, 4, 5)))
        out = ADAPTER.pinned(tensor.nbytes)
        DeviceSource(tensor).copy_to(out)
        ADAPTER.wait_for_copies()
        assert out.tobytes() == raw_bytes(tensor)


def test_conjugate_and_negative_views_are_stored_as_the_numbers_they_show(store: Store) -> None:
    z = random_tensor("complex64", (4, 6)).nan_to_num()
    state = {"z": z, "conj": z.conj(), "neg": z.conj().imag, "adjoint": z.mH, "conj again": z.conj()}
    store.commit(state, branch="main")
    loaded = store.load("main")
    for key, tensor in state.items():
        assert torch.equal(loaded[key], tensor)
    assert loaded["z"].data_ptr() != loaded["conj"].data_ptr()


def test_parameters_and_buffers_come_back_as_tensors(store: Store) -> None:
    state = {
        "p": nn.Parameter(torch.randn(3)),
        "frozen": nn.Parameter(torch.ones(2), False),
        "b": nn.Buffer(torch.ones(2)),
    }
    graph = torch.randn(3, requires_grad=True) * 2
    store.commit(state | {"in a graph": graph}, branch="main")
    loaded = store.load("main")
    for key, tensor in (state | {"in a graph": graph}).items():
        same(loaded[key], tensor)
        assert not loaded[key].requires_grad


def test_inference_tensors_are_stored(store: Store) -> None:
    with torch.inference_mode():
        tensor = torch.randn(3, 4).t()
    store.commit({"t": tensor}, branch="main")
    same(store.load("main")["t"], tensor)


def test_tied_tensors_are_tied_again_and_others_are_not(store: Store) -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    state = {
        "a": weight, "b": weight, "detached": weight.detach(), "t": weight.t(), "t again": weight.data.t(),
        "copy": weight.clone(), "row": weight[0], "bits": weight.detach().view(torch.int32),
        "empty": torch.empty(0), "empty too": torch.empty(0),
    }  # fmt: skip
    store.commit(state, branch="main")
    loaded = store.load("main")
    assert loaded["a"] is loaded["b"] is loaded["detached"]
    assert loaded["t"] is loaded["t again"]
    assert len({id(value) for value in loaded.values()}) == len(loaded) - 3
    for key, tensor in state.items():
        same(loaded[key], tensor)


def test_committing_leaves_no_trace_on_the_tensor(store: Store) -> None:
    """`Tensor.numpy` would: a storage that numpy has seen can never be resized again, which FSDP needs."""
    tensor = torch.randn(1000)
    store.commit({"t": tensor}, branch="main")
    assert tensor.untyped_storage().resizable()
    assert tensor._version == 0
    assert store.load("main")["t"].untyped_storage().resizable()


def test_committing_keeps_no_tensor_alive(store: Store) -> None:
    import weakref

    tensor = torch.randn(1000)
    gone = weakref.ref(tensor)
    store.commit({"t": tensor}, branch="main")
    del tensor
    assert gone() is None


def test_a_freed_storage_is_refused_and_never_read() -> None:
    for tensor in (torch.randn(4, 4), torch.randn(4, 4)[2:], torch.randn(4, 4).t()[1:]):
        tensor.untyped_storage().resize_(0)
        with pytest.raises(Unsupported, match="state path w has lost its memory"):
            Walk().visit({"w": tensor})
        with pytest.raises((Unsupported, Invalid)):
            if ADAPTER.host_bytes(tensor.data, DTYPES["float32"], tuple(tensor.shape)) is None:
                raise Invalid("not filled directly")


class Wrapped(torch.Tensor):
    """A subclass that looks like a tensor."""


class DTensor(torch.Tensor):
    """Only the name counts: the real class needs a process group."""


def _quiet(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():  # prototypes warn that they are
        warnings.simplefilter("ignore")
        return make()


def _fake() -> torch.Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.empty(3)


def _packed() -> torch.Tensor:
    return torch._empty_affine_quantized([4], scale=1.0, zero_point=0, dtype=torch.quint4x2)


REFUSALS: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "sparse meta": (lambda: torch.eye(3).to_sparse().to("meta"), "meta device"),
    "mkldnn": (lambda: torch.eye(3).to_mkldnn(), "mkldnn"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
    "jagged": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "NestedTensor"),
    "meta": (lambda: torch.empty(3, device="meta"), "meta device"),
    "fake": (_fake, "FakeTensor"),
    "subclass": (lambda: torch.ones(2).as_subclass(Wrapped), "Wrapped, a tensor subclass without"),
    "parameter subclass": (lambda: nn.Parameter(torch.ones(2).as_subclass(Wrapped)), "Wrapped"),
    "lazy": (lambda: nn.LazyLinear(3).weight, "UninitializedParameter"),
    "sharded": (lambda: torch.ones(2).as_subclass(DTensor), "which is sharded"),
    "quantised": (_packed, "quantised"),
    "dimensions": (lambda: torch.ones([1] * 65), "65 dimensions"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_stored_is_refused_by_its_path(name: str) -> None:
    make, reason = REFUSALS[name]
    tensor = _quiet(make)
    with pytest.raises(Unsupported, match=r"^state path model/layers/\[1\] is an? .*; ") as caught:
        Walk(allow_pickle=True).visit({"model": {"layers": [torch.ones(1), tensor]}})
    assert reason in str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_other_dtypes_are_refused_by_name(name: str) -> None:
    dtype = getattr(torch, name)
    if "q" in name:
        tensor = _quiet(lambda: torch._empty_affine_quantized([4], scale=1.0, zero_point=0, dtype=dtype))
    else:
        tensor = torch.empty(4, dtype=dtype)
    with pytest.raises(Unsupported, match=rf"state path w is .*torch\.{name}\b"):
        Walk().visit({"w": tensor})


def test_a_tensor_inside_a_functional_transform_is_refused() -> None:
    def commit(x: torch.Tensor) -> torch.Tensor:
        Walk().visit({"x": x})
        return x

    with pytest.raises(Unsupported, match="state path x has no memory of its own"):
        torch.func.vmap(commit)(torch.ones(3, 2))


def plain_values() -> list[Any]:
    values = {
        value for value in vars(torch).values() if isinstance(value, torch.dtype | torch.layout | torch.memory_format)
    }
    devices = ["cpu", "cpu:0", "cuda", "cuda:0", "cuda:127", "mps", "meta", "xpu:3", "xla:1", "privateuseone"]
    sizes = [(), (0,), (2, 3), (1 << 62,), (-1,)]
    return sorted(values, key=str) + [torch.device(d) for d in devices] + [torch.Size(s) for s in sizes]


def test_plain_values_of_torch_come_back(store: Store) -> None:
    values = plain_values()
    store.commit({"values": values}, branch="main")
    loaded = store.load("main")["values"]
    assert loaded == values
    assert [type(v) for v in loaded] == [type(v) for v in values]


HOSTILE = [
    ("dtype", "float33"), ("dtype", "load"), ("dtype", "torch.float32"), ("dtype", ""), ("dtype", "__class__"),
    ("layout", "float32"), ("memory_format", "strided"), ("function", "load"), ("", ""), ("tensor", "x"),
    ("device", ""), ("device", "gpu"), ("device", "cuda:-1"), ("device", "cuda:128"), ("device", "cuda:01"),
    ("device", "cuda:"), ("device", "cuda:1\n"), ("device", "cuda:99999999999999999999"), ("device", "mkldnn"),
    ("size", ","), ("size", "1,"), ("size", "01"), ("size", "-0"), ("size", "1, 2"), ("size", "+1"), ("size", "x"),
    ("size", "9223372036854775808"), ("size", "9" * 5000), ("size", "١"), ("size", "1\n"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), HOSTILE)
def test_values_that_torch_never_made_are_corrupt(kind: str, text: str) -> None:
    with pytest.raises(Corrupt):
        ADAPTER.value(kind, text)


def test_loading_fills_what_is_there(store: Store) -> None:
    state = {name: torch.randn(4, 6) for name in ("plain", "parameter", "transposed", "sliced", "conj", "inference")}
    state["conj"] = torch.randn(4, 6, dtype=torch.complex64)
    store.commit(state, branch="main")
    with torch.inference_mode():
        inference = torch.zeros(6, 4).t()
    base = torch.zeros(4, 12)
    into: dict[str, Any] = {
        "plain": torch.zeros(4, 6),
        "parameter": nn.Parameter(torch.zeros(4, 6)),
        "transposed": torch.zeros(6, 4).t(),
        "sliced": base[:, ::2],
        "conj": torch.zeros(4, 6, dtype=torch.complex64).conj(),
        "inference": inference,
    }
    before = dict(into)
    loaded = store.load("main", into=into)
    for key, tensor in state.items():
        assert loaded[key] is before[key]
        assert torch.equal(loaded[key].detach(), tensor)
    assert into["parameter"].requires_grad
    assert not base[:, 1::2].any()


def test_backward_refuses_values_that_a_load_replaced(store: Store) -> None:
    weight = torch.randn(3, requires_grad=True)
    store.commit({"w": weight}, branch="main")
    loss = (weight * weight).sum()
    store.load("main", into={"w": weight})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (torch.zeros(3), "is a torch.float32 tensor of shape"),
        (torch.zeros(2, 3, dtype=torch.int32), "is a torch.int32 tensor of shape"),
        (torch.zeros(3).expand(2, 3), "expanded"),
        (torch.zeros(2, 3, device="meta"), "meta"),
        (torch.zeros(2, 3).to_sparse(), "sparse"),
        (torch.zeros(2, 3).as_subclass(Wrapped), "is a Wrapped"),
        (np.zeros((2, 3), np.float32), "is a ndarray"),
    ],
)
def test_a_target_of_another_form_is_refused(store: Store, target: Any, reason: str) -> None:
    store.commit({"w": torch.ones(2, 3)}, branch="main")
    with pytest.raises(Invalid, match=reason):
        store.load("main", into={"w": target})


def test_the_default_device_does_not_lead_loads_astray(store: Store) -> None:
    store.commit({"w": torch.ones(2, 3)}, branch="main")
    with torch.device("meta"):
        loaded = store.load("main")["w"]
    assert loaded.device == torch.device("cpu")
    assert torch.equal(loaded, torch.ones(2, 3))


def test_loading_to_a_device(store: Store) -> None:
    store.commit({"w": torch.ones(2, 3)}, branch="main")
    assert store.load("main", device="meta")["w"].device == torch.device("meta")
    for device in ("nowhere", "cuda:-3", 3.5):
        with pytest.raises(Invalid, match="device"):
            store.load("main", device=device)


def test_one_process_is_a_world_of_one() -> None:
    assert ADAPTER.world_size() == 1


def test_the_world_is_as_large_as_the_process_group(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        assert ADAPTER.world_size() == torch.distributed.get_world_size()
    finally:
        torch.distributed.destroy_process_group()


def test_a_small_tensor_costs_microseconds(record_property: Callable[[str, object], None]) -> None:
    tensors = [torch.randn(256) for _ in range(20_000)]
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        found = [ADAPTER.tensor(tensor) for tensor in tensors]
        best = min(best, time.perf_counter() - start)
        assert len(found) == 20_000
    record_property("microseconds", best / 20_000 * 1e6)
    print(f"{best / 20_000 * 1e6:.1f} microseconds a tensor")
    assert best / 20_000 < 100e-6, "something copies or formats for every tensor"
