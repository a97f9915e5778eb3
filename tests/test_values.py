"""What a state may hold, and that it comes back as it was; what it may not, and that its path is named."""

from __future__ import annotations

import enum
import math
import struct
from collections import Counter, OrderedDict, defaultdict, namedtuple
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cas
from cas import Invalid, Store, Unsupported

DTYPES = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
]
MIB = 1 << 20


def same(a: Any, b: Any) -> bool:
    """Equal in type, order and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return [(type(k), k) for k in a] == [(type(k), k) for k in b] and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return bool(a == b)


def float_of(bits: int) -> float:
    return float(struct.unpack("<d", bits.to_bytes(8, "little"))[0])


def array_of(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    data = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    return (data & 1 if dtype == "bool" else data).view(dtype).reshape(shape)


VALUES: dict[str, Any] = {
    "none": None,
    "bools": [True, False],
    "small ints": [0, 1, -1, 127, 128, -32, -33, 255, 256, 65535, 65536, 1 << 32],
    "64-bit ints": [(1 << 63) - 1, -(1 << 63)],
    "big ints": [1 << 63, -(1 << 63) - 1, (1 << 64) - 1, 1 << 64, 10**400, -(10**400), -(1 << 64)],
    "floats": [0.0, -0.0, 1.5, math.inf, -math.inf, 5e-324, 1.7976931348623157e308],
    "nans": [float_of(bits) for bits in (0x7FF8 << 48, 0xFFF8 << 48, 0x7FF8DEADBEEF0001, (1 << 63) - 1)],
    "ints and floats": [1, 1.0, True],
    "texts": ["", "ä", "日本語", "😀", "\0", "\n", "a" * 65536, "a" * 65537, "é" * 40000],
    "bytes": [b"", b"\0\xff", bytes(65536), bytes(65537), b"x" * (3 * MIB)],
    "empty containers": [{}, [], (), OrderedDict(), Counter(), [[]], {"a": {}}, ((),)],
    "nested": {"a": [1, (2, {"b": [3, (4,)]})], "c": ({}, [()])},
    "int keys": {0: "a", -5: "b", (1 << 63) - 1: "c", "0": "d"},
    "odd keys": {"": 1, "a/b": 2, "a.b": 3, "%": 4, "[0]": 5, "\0": 6, "é": 7, "k" * 65536: 8},
    "order": {"b": 1, "a": 2, "c": 3},
    "ordered": OrderedDict([("z", 1), ("a", OrderedDict(b=2))]),
    "counter": Counter({"b": 3, "a": -1, 7: 0}),
    "list of 5000": list(range(5000)),
    "tuple of 5000": tuple(range(5000)),
    "ordered of 5000": OrderedDict((i, i) for i in range(5000)),
    "counter of 5000": Counter({f"{i}": i for i in range(5000)}),
    "2 MiB of short texts": [f"{i}" + "x" * 1000 for i in range(2000)],
    "scalars": [array_of(dtype, (1,))[0] for dtype in DTYPES],
    "nan scalar": np.float32(np.nan),
    "what looks like an id": [b"\x07" * 32, "f" * 64],
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_with_its_type_order_and_bits(store: Store, name: str) -> None:
    store.commit({"it": VALUES[name]})
    assert same(store.load(), {"it": VALUES[name]})
    store.commit(VALUES[name])
    assert same(store.load(), VALUES[name])


@pytest.mark.parametrize("codec", ["auto", "raw", "zstd", "planes"])
def test_arrays_of_every_dtype_come_back_under_any_codec(store: Store, codec: Any) -> None:
    state = {}
    for dtype in DTYPES:
        ramp = (np.arange(70_001) % 100).astype(dtype)
        random = array_of(dtype, (300, 7))
        state[dtype] = {"random": random, "ramp": ramp, "one": array_of(dtype, ()), "none": ramp[:0]}
    store.commit(state, codec=codec)
    assert same(store.load(), state)


BASE = array_of("float32", (37, 29, 11))
VIEWS: dict[str, np.ndarray] = {
    "fortran": np.asfortranarray(BASE),
    "transposed": BASE.transpose(2, 0, 1),
    "strided": BASE[::3, 1::2, ::5],
    "reversed": BASE[::-1, :, ::-1],
    "broadcast": np.broadcast_to(BASE[0], (50, 29, 11)),
    "broadcast inside": np.broadcast_to(BASE[:, :1], (37, 400, 11)),
    "broadcast scalar": np.broadcast_to(np.float64(2.5), (300, 1000)),
    "column": BASE[:, 3:4],
    "cut from a larger one": BASE[5:9],
    "read-only": np.frombuffer(bytes(range(256)), np.uint16),
    "64 dimensions": np.zeros((1,) * 63 + (3,), np.int16),
    "empty in the middle": np.zeros((4, 0, 5)),
    "large fortran": np.asfortranarray(array_of("uint16", (1500, 1700))),
    "large transposed": array_of("int64", (700, 3, 500)).T,
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_stored_as_its_own_elements(store: Store, name: str) -> None:
    commit = store.commit({"w": VIEWS[name]})
    assert same(store.load()["w"], VIEWS[name].copy())
    assert commit.raw == VIEWS[name].nbytes


def test_equal_arrays_of_any_memory_order_share_their_blocks(store: Store) -> None:
    store.commit({"w": BASE})
    again = store.commit({"w": np.asfortranarray(BASE)})
    assert again.stats is not None
    assert again.stats.new_blocks == 0


def test_a_loaded_array_is_writable_and_its_own(store: Store) -> None:
    store.commit({"a": BASE, "b": BASE.copy()})
    state = store.load()
    state["a"][:] = 0
    assert same(state["b"], BASE)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 200), 1 << 200),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.builds(array_of, st.sampled_from(DTYPES), st.tuples(st.integers(0, 3), st.integers(0, 3)), st.integers(0, 9)),
    st.builds(lambda dtype, seed: array_of(dtype, (1,), seed)[0], st.sampled_from(DTYPES), st.integers(0, 9)),
)
KEYS = st.one_of(st.text(max_size=8), st.integers(-(1 << 63), (1 << 63) - 1))
STATES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(KEYS, inner, max_size=5),
        st.dictionaries(KEYS, inner, max_size=5).map(OrderedDict),
        st.dictionaries(KEYS, inner, max_size=3).map(Counter),
    ),
    max_leaves=30,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=STATES)
def test_any_nested_state_comes_back_exactly(store: Store, state: Any) -> None:
    store.commit(state)
    assert same(store.load(), state)


def test_128_nested_containers_come_back_with_a_tensor_inside(store: Store) -> None:
    for wrap in (lambda v: {"a": v}, lambda v: [v], lambda v: (v,)):
        state: Any = np.arange(3)
        for _ in range(128):
            state = wrap(state)
        store.commit(state)
        assert same(store.load(), state)
        with pytest.raises(Invalid, match="nested deeper than 128"):
            store.commit(wrap(state))


def test_large_dicts_at_every_level_come_back(store: Store) -> None:
    state: Any = {"leaf": 0}
    for level in range(60):
        state = {f"pad{i}": "x" * 100 for i in range(50)} | {f"level{level}": state}
    store.commit(state)
    assert same(store.load(), state)


# -- refused ------------------------------------------------------------------------------------------------------

Point = namedtuple("Point", "x y")


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    pass


class Sub(np.ndarray):
    pass


CYCLE: list[Any] = [1]
CYCLE.append({"again": CYCLE})

REFUSED: dict[str, tuple[Any, str]] = {
    "set": ({1}, "builtins.set"),
    "object": (object(), "builtins.object"),
    "function": (len, "builtin_function"),
    "complex": (1j, "builtins.complex"),
    "bytearray": (bytearray(b"a"), "builtins.bytearray"),
    "range": (range(3), "builtins.range"),
    "named tuple": (Point(1, 2), "Point"),
    "default dict": (defaultdict(int, a=1), "defaultdict"),
    "enum": (Color.RED, "Color"),
    "str subclass": (Text("a"), "Text"),
    "path": (Path("a"), "Path"),
    "fraction": (Fraction(1, 3), "Fraction"),
    "object array": (np.array([None]), "dtype object"),
    "structured array": (np.zeros(2, "i4,f4"), "array of dtype"),
    "big-endian array": (np.zeros(2, ">f4"), "dtype >f4"),
    "longdouble array": (np.zeros(2, np.longdouble), "float128|longdouble"),
    "longdouble scalar": (np.longdouble(1), "longdouble"),
    "text array": (np.array(["a"]), "dtype <U1"),
    "date array": (np.zeros(2, "M8[s]"), "datetime64"),
    "date scalar": (np.datetime64(1, "s"), "datetime64"),
    "masked array": (np.ma.zeros(2), "MaskedArray"),
    "array subclass": (np.zeros(2).view(Sub), "Sub"),
    "record array": (np.rec.array([(1, 2)]), "recarray"),
    "lone surrogate": ("\ud800", "no valid Unicode"),
    "bool key": ({True: 1}, "key True"),
    "tuple key": ({(1, 2): 1}, "the key"),
    "none key": ({None: 1}, "key None"),
    "float key": ({1.0: 1}, "key 1.0"),
    "numpy key": ({np.int64(1): 1}, "the key"),
    "big key": ({1 << 63: 1}, "the key"),
    "long key": ({"k" * 65537: 1}, "65537 bytes"),
    "surrogate key": ({"\udfff": 1}, "key that is no valid Unicode"),
    "int of 9 MiB": (1 << (9 << 23), "an int of over"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_value_is_refused_with_its_path(store: Store, name: str) -> None:
    value, reason = REFUSED[name]
    with pytest.raises(Unsupported, match=rf"^state path a/\[1\]/b\.c .*({reason})"):
        store.commit({"a": [0, {"b.c": value}]})
    assert store.refs() == {"branches": {}, "tags": {}}


def test_a_cycle_is_refused_with_its_path(store: Store) -> None:
    with pytest.raises(Invalid, match=r"state path a/\[1\]/again contains itself"):
        store.commit({"a": CYCLE})


def test_one_list_twice_is_no_cycle(store: Store) -> None:
    shared = [1, 2]
    store.commit({"a": shared, "b": shared})
    assert store.load() == {"a": [1, 2], "b": [1, 2]}


def test_pickling_is_asked_for_on_both_sides(store: Store) -> None:
    state = {"a": {1, 2}, "b": Fraction(1, 3), "c": Point(1, 2), "big": frozenset(range(40_000))}
    store.commit(state, allow_pickle=True)
    with pytest.raises(Unsupported, match=r"^a in commit [0-9a-f]{8} is a pickled object; pass allow_pickle=True"):
        store.load()
    assert store.load(allow_pickle=True) == state


def test_what_cannot_be_pickled_is_refused_with_its_path(store: Store) -> None:
    with pytest.raises(Unsupported, match=r"state path a/f is a builtins\.function that cannot be pickled"):
        store.commit({"a": {"f": lambda: 0}}, allow_pickle=True)


def test_allow_pickle_leaves_plain_values_alone(store: Store) -> None:
    store.commit({"a": [1, BASE]}, allow_pickle=True)
    assert same(store.load(), {"a": [1, BASE]})


def test_a_view_never_runs_a_pickle(store: Store) -> None:
    store.commit({"a": {1}}, allow_pickle=True)
    with pytest.raises(Unsupported, match="pickled object"):
        store.view()["a"]


# -- tied tensors -------------------------------------------------------------------------------------------------


def test_tied_arrays_are_stored_once_and_tied_again(store: Store) -> None:
    w = array_of("float32", (1000, 300))
    state = {"embed": w, "head": {"w": w}, "view": w[:], "transposed": w.T, "part": w[:10], "equal": w.copy()}
    commit = store.commit(state)
    loaded = store.load()
    assert same(loaded, state)
    assert loaded["embed"] is loaded["head"]["w"] is loaded["view"]
    assert not any(np.shares_memory(loaded["embed"], loaded[key]) for key in ("transposed", "part", "equal"))
    assert commit.raw == w.nbytes * 3 + w[:10].nbytes


def test_ties_survive_a_partial_load(store: Store) -> None:
    w = array_of("float32", (10,))
    store.commit({"a": w, "b": w, "c": [w]})
    loaded = store.load(only=["b", "c"])
    assert loaded["b"] is loaded["c"][0]


def test_equal_and_empty_arrays_are_not_tied(store: Store) -> None:
    empty = np.zeros(0)
    store.commit({"a": np.zeros(9), "b": np.zeros(9), "c": empty, "d": empty})
    loaded = store.load()
    assert loaded["a"] is not loaded["b"]
    assert loaded["c"] is not loaded["d"]


def test_the_same_array_many_times_costs_its_blocks_once(store: Store) -> None:
    w = array_of("float32", (70_000,))
    commit = store.commit([w] * 3000)
    loaded = store.load()
    assert commit.stats is not None
    assert commit.stats.new_blocks == commit.stats.blocks == 2
    assert all(item is loaded[0] for item in loaded)


@pytest.mark.parametrize("block_size", [4096, 16384, 4 << 20])
def test_any_block_size_holds_any_tensor(tmp_path: Path, block_size: int) -> None:
    state = {"w": array_of("float32", (123, 457)), "text": "x" * 100_000, "c": array_of("complex128", (70, 9, 11))}
    with cas.init(tmp_path / "s", block_size=block_size) as store:
        store.commit(state, codec="planes")
        assert same(store.load(), state)


@pytest.mark.parametrize("block_size", [0, 1, 2048, 4097, 8 << 20, -4096, 4096.0, True, "4096", None])
def test_other_block_sizes_are_invalid(tmp_path: Path, block_size: Any) -> None:
    with pytest.raises(Invalid, match="block_size is a power of two"):
        cas.init(tmp_path / "s", block_size=block_size)
    assert not (tmp_path / "s").exists()
