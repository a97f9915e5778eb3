"""Floating-point numbers from one dtype to another, to the nearest, ties to even; NaN stays NaN. Pure.

As torch does it: by way of float32.
"""

from __future__ import annotations

import numpy as np

from cas.tensors import Array

TARGETS = ("bfloat16", "float16", "float32")
_SOURCES = (*TARGETS, "float64")
"""Not float8 and float4: without the scales that belong to them their numbers mean nothing."""
_SIGN, _INFINITY, _QUIET = 0x7FFFFFFF, 0x7F800000, 0x40


def converted(dtype: str, wanted: str | None) -> str:
    """The dtype that a tensor gets: `wanted` for floating-point ones of 16 bits and more, else its own."""
    return wanted if wanted is not None and dtype in _SOURCES else dtype


def convert(data: memoryview, source: str, target: str) -> Array:
    """Numbers of dtype `source` as bytes of dtype `target`."""
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = _to_float32(data, source)
        found = _to_bfloat16(numbers) if target == "bfloat16" else numbers.astype(target)
    return found.view(np.uint8)


def count_infinite(data: memoryview | Array, dtype: str) -> int:
    """How many of the numbers are infinite."""
    if dtype == "float16":
        return int(np.count_nonzero((np.frombuffer(data, np.uint16) & 0x7FFF) == 0x7C00))
    if dtype == "bfloat16":
        return int(np.count_nonzero((np.frombuffer(data, np.uint16) & 0x7FFF) == 0x7F80))
    return int(np.count_nonzero(np.isinf(np.frombuffer(data, dtype))))


def _to_float32(data: memoryview, source: str) -> Array:
    if source == "bfloat16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.frombuffer(data, source).astype(np.float32, copy=False)


def _to_bfloat16(numbers: Array) -> Array:
    bits = numbers.view(np.uint32)
    high = bits >> np.uint32(16)
    rounded = (bits + np.uint32(0x7FFF) + (high & np.uint32(1))) >> np.uint32(16)
    is_nan = (bits & np.uint32(_SIGN)) > _INFINITY
    return np.where(is_nan, high | np.uint32(_QUIET), rounded).astype(np.uint16)
