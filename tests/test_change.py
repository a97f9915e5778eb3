"""How much a tensor changed: against a naive comparison in numpy, and the value of every code of every small float."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_diff import CELL, change, committed, one, parent

import cas
from cas import Store
from cas.dtypes import DTYPES
from cas.elements import count_of, numbers, tally

NUMPY = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32")
NUMPY = (*NUMPY, "float64", "complex64", "complex128")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with cas.init(tmp_path_factory.mktemp("change") / "s", block_size=CELL) as store:
        yield store


def naive(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> tuple[int, int, int, float, float]:
    """The figures by whole arrays, one element at a time where bits matter."""
    pairs = list(zip(before.reshape(-1), after.reshape(-1), strict=True))
    differ = [pair for pair in pairs if pair[0].tobytes() != pair[1].tobytes()]
    finite = [(old.item(), new.item()) for old, new in differ if np.isfinite(old) and np.isfinite(new)]
    moved = [abs(new - old) for old, new in finite]
    norm = math.hypot(*(abs(old) for old, _ in finite))
    change = math.hypot(*moved)
    relative = change / norm if norm else math.inf if change else 0.0
    return len(differ), len(pairs), len(differ) - len(finite), float(max(moved, default=0.0)), relative


@st.composite
def array_pairs(draw: st.DrawFn) -> tuple[Any, Any]:
    dtype = np.dtype(draw(st.sampled_from(NUMPY)))
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
    if draw(st.booleans()):
        shape = (draw(st.integers(1, 7)), 701)  # more than a block
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    raw = rng.integers(0, 256, math.prod(shape) * dtype.itemsize, np.uint8)
    if dtype.kind == "b":
        raw &= 1
    before = raw.view(dtype).reshape(shape)
    after = before.copy()
    mask = rng.random(shape) < draw(st.sampled_from([0.0, 0.01, 0.5, 1.0]))
    after[mask] = rng.permutation(before.reshape(-1)).reshape(shape)[mask]
    return before, after


@settings(max_examples=60, deadline=None)
@given(pair=array_pairs())
def test_a_change_is_what_a_naive_comparison_finds(opened: Store, pair: tuple[Any, Any]) -> None:
    ids = [opened.commit({"w": array}, branch="pair", parent=parent(opened, "pair")).id for array in pair]
    found = list(opened.diff(*ids))
    expected = naive(*pair)
    if not expected[0]:
        assert found == []
        return
    got = change(found[0])
    assert got[:3] == expected[:3]
    assert got[3:] == pytest.approx(expected[3:], rel=1e-12, nan_ok=True)


def test_nan_and_infinity_count_as_bits_and_stay_out_of_the_measures(store: Store) -> None:
    before = np.array([1, np.nan, np.inf, 2, np.nan, 4], np.float32)
    after = np.array([np.nan, np.nan, -np.inf, 2.5, 3, 4], np.float32)
    assert change(one(store, before, after)) == (4, 6, 3, 0.5, 0.25)


def test_negative_zero_is_not_zero_but_nothing_moved(store: Store) -> None:
    assert change(one(store, np.zeros(3), np.array([0.0, -0.0, 0.0]))) == (1, 3, 0, 0.0, 0.0)


def test_what_leaves_zero_moves_infinitely(store: Store) -> None:
    assert change(one(store, np.zeros(2), np.array([0.0, 3.0]))) == (1, 2, 0, 3.0, math.inf)


def test_64_bit_integers_differ_exactly(store: Store) -> None:
    found = one(store, np.array([1 << 62, -(1 << 63)]), np.array([(1 << 62) + 1, (1 << 63) - 1]))
    assert change(found)[:4] == (2, 2, 0, float((1 << 64) - 1))
    assert change(one(store, np.array([1 << 62]), np.array([(1 << 62) + 1])))[3] == 1.0


def test_norms_beyond_the_squares_of_float64_are_right(store: Store) -> None:
    for scale in (1e300, 1e-300):
        found = one(store, np.array([3.0, 4.0]) * scale, np.array([6.0, 8.0]) * scale)
        assert change(found)[3:] == pytest.approx((4 * scale, 1.0), rel=1e-12)


SMALL = [name for name in DTYPES if name.startswith("float8")]


@pytest.mark.parametrize("name", [*SMALL, "bfloat16", "float16"])
def test_every_code_of_a_float_of_8_or_16_bits_has_its_value(name: str) -> None:
    codes = np.arange(256 if name in SMALL else 65536, dtype=np.uint8 if name in SMALL else np.uint16)
    values = torch.from_numpy(codes).view(getattr(torch, name)).to(torch.float32).double().numpy()
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(numbers(DTYPES[name], codes), values)


def test_a_byte_of_float4_is_two_numbers() -> None:
    dtype = DTYPES["float4_e2m1fn_x2"]
    positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert list(numbers(dtype, np.arange(16, dtype=np.uint8))) == [*positive, *(-value for value in positive)]
    found = tally(dtype, np.array([0x12, 0x34], np.uint8), np.array([0x12, 0x74], np.uint8))
    assert (found.differing, found.largest, found.old, count_of(dtype, 2)) == (1, 4.5, 1.5, 4)


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_is_compared(name: str) -> None:
    dtype = DTYPES[name]
    before, after = np.zeros(64, np.uint8), np.zeros(64, np.uint8)
    before[: dtype.itemsize] = after[-1] = 1
    found = tally(dtype, before, after)
    assert (found.differing, found.nonfinite) == (2, 0)
    assert found.largest > 0
    assert found.old > 0


def test_complex_numbers_move_by_the_modulus(store: Store) -> None:
    assert change(one(store, np.array([3 + 4j, 1j]), np.array([0j, 1j]))) == (1, 2, 0, 5.0, 1.0)
    assert change(one(store, np.array([complex(1, math.nan), 2]), np.array([1, 1]) + 0j))[2:] == (1, 1.0, 0.5)


def test_a_large_tensor_gives_the_same_figures_each_time(store: Store) -> None:
    before = np.random.default_rng(0).standard_normal(5_000_001).astype(np.float32)
    after = before + np.float32(1e-3)
    committed(store, {"w": before}, {"w": after})
    first, second = (next(store.diff("main~1", "main")) for _ in range(2))
    assert first == second
    differing, total, nonfinite, largest, relative = change(first)
    apart = after.astype(float) - before
    assert (differing, total, nonfinite) == (np.count_nonzero(apart), before.size, 0)
    assert largest == np.abs(apart).max()
    moved = apart != 0
    assert relative == pytest.approx(np.linalg.norm(apart) / np.linalg.norm(before[moved].astype(float)), rel=1e-9)
