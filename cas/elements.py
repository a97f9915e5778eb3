"""How far the elements of two tensors of one dtype lie apart: exact as to bits, else in float64. Pure.

Every dtype of `dtypes.DTYPES` is known here by its bit layout, those that numpy lacks as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .dtypes import DType
from .tensors import Array

_CHUNK = 8 << 10  # numbers: their float64 copies stay in a core's cache, and no product of them starts threads
_SAFE = 1e-200  # sums of squares below are taken again, scaled: they may have lost what was too small


@dataclass(slots=True)
class Tally:
    """What is known of some elements; tallies add up, in any order but for rounding.

    `differing` elements have other bits, `nonfinite` of these a NaN or an infinity before or after. Of the others
    `largest` is the largest absolute change, `moved` the norm of the change and `old` that of the values before.
    """

    differing: int = 0
    nonfinite: int = 0
    largest: float = 0.0
    moved: float = 0.0
    old: float = 0.0

    def add(self, other: Tally) -> None:
        self.differing += other.differing
        self.nonfinite += other.nonfinite
        self.largest = max(self.largest, other.largest)
        self.moved = math.hypot(self.moved, other.moved)
        self.old = math.hypot(self.old, other.old)


def count_of(dtype: DType, nbytes: int) -> int:
    """The numbers in so many bytes of a tensor; a complex number is one."""
    return 2 * nbytes if dtype.name in _PACKED else nbytes // dtype.itemsize


def tally(dtype: DType, before: Array, after: Array) -> Tally:
    """Compare whole elements, given as two arrays of bytes of equal length."""
    found = Tally()
    step = _CHUNK // 2 if dtype.name in _PACKED else _CHUNK * dtype.width
    with np.errstate(over="ignore", invalid="ignore"):
        for at in range(0, before.size, step):
            found.add(_tally(dtype, _bits(dtype, before[at : at + step]), _bits(dtype, after[at : at + step])))
    return found


def _tally(dtype: DType, before: Array, after: Array) -> Tally:
    """Compare elements given as unsigned integers."""
    differs = before != after
    if differs.ndim > 1:
        differs = differs.any(axis=1)
    differing = int(np.count_nonzero(differs))
    if not differing:
        return Tally()
    if differing < len(differs):
        at = np.flatnonzero(differs)
        before, after = before.take(at, axis=0), after.take(at, axis=0)
    old, new = numbers(dtype, before), numbers(dtype, after)
    moved = _steps(dtype, before, after) if dtype.name in _WIDE else _distance(old, new)
    if not math.isfinite(float(moved.max())):
        finite = _finite(old) & _finite(new)
        old, moved = old[finite], moved[finite]
    return Tally(differing, differing - len(old), float(moved.max(initial=0.0)), _norm(moved), _norm(old))


def _bits(dtype: DType, raw: Array) -> Array:
    """The elements as unsigned integers, those of 16 bytes as rows of two."""
    if dtype.name in _PACKED:
        return np.concatenate((raw & 15, raw >> 4))
    return raw.view("<u8").reshape(-1, 2) if dtype.itemsize == 16 else raw.view(f"<u{dtype.itemsize}")


def numbers(dtype: DType, bits: Array) -> Array:
    """Elements, given as unsigned integers, in float64, complex ones as rows of two."""
    if dtype.name in _SMALL:
        return np.take(_SMALL[dtype.name], bits)
    if dtype.name == "bool":
        return np.minimum(bits, 1).astype(np.float64)
    if dtype.name == "bfloat16":
        return (bits.astype("<u4") << 16).view("<f4").astype(np.float64)
    if dtype.name.startswith("complex"):
        return bits.view(f"<f{dtype.width}").reshape(-1, 2).astype(np.float64)
    return bits.view(np.dtype(dtype.name).newbyteorder("<")).astype(np.float64)


def _distance(old: Array, new: Array) -> Array:
    """The absolute change of each element. Takes the place of `new`."""
    new = np.subtract(new, old, out=new) if new.ndim == 1 else new - old
    return np.abs(new, out=new) if new.ndim == 1 else np.hypot(new[:, 0], new[:, 1])


def _steps(dtype: DType, before: Array, after: Array) -> Array:
    """As `_distance` for integers of 64 bits, which float64 rounds: the difference is exact, then rounded once."""
    one, other = before.view(dtype.name), after.view(dtype.name)
    high, low = np.maximum(one, other), np.minimum(one, other)
    moved: Array = high.view("<u8") - low.view("<u8")
    return moved.astype(np.float64)


def _finite(values: Array) -> Array:
    finite: Array = np.isfinite(values)
    return finite if finite.ndim == 1 else np.logical_and(finite[:, 0], finite[:, 1])


def _norm(values: Array) -> float:
    """The Euclidean norm, also where the squares leave the range of float64."""
    flat = values.reshape(-1)
    square = float(np.dot(flat, flat))
    if _SAFE < square < math.inf:
        return math.sqrt(square)
    top = float(np.abs(flat).max(initial=0.0))
    if top == 0.0 or math.isinf(top):
        return top
    flat = flat / top
    return top * math.sqrt(float(np.dot(flat, flat)))


# -- floats of 8 and 4 bits ---------------------------------------------------------------------------------------


def _small_float(exponent_bits: int, mantissa_bits: int, bias: int) -> Array:
    """The values of all codes of sign, exponent and mantissa, as if none of them were special."""
    codes = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    mantissa = codes & ((1 << mantissa_bits) - 1)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    normal = exponent > 0
    whole = mantissa + (normal << mantissa_bits)
    sign = np.where(codes >> (exponent_bits + mantissa_bits), -1.0, 1.0)
    table: Array = np.ldexp(sign * whole, np.where(normal, exponent, 1) - bias - mantissa_bits)
    return table


def _with(table: Array, special: dict[int, float]) -> Array:
    for code, value in special.items():
        table[code] = value
    return table


def _e5m2() -> Array:
    nans = dict.fromkeys((0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF), math.nan)
    return _with(_small_float(5, 2, 15), {0x7C: math.inf, 0xFC: -math.inf} | nans)


_SMALL: dict[str, Array] = {
    "float8_e4m3fn": _with(_small_float(4, 3, 7), {0x7F: math.nan, 0xFF: math.nan}),
    "float8_e4m3fnuz": _with(_small_float(4, 3, 8), {0x80: math.nan}),
    "float8_e5m2": _e5m2(),
    "float8_e5m2fnuz": _with(_small_float(5, 2, 16), {0x80: math.nan}),
    "float8_e8m0fnu": _with(np.ldexp(1.0, np.arange(256) - 127), {0xFF: math.nan}),
    "float4_e2m1fn_x2": _small_float(2, 1, 1),
}
_PACKED = {"float4_e2m1fn_x2"}  # two numbers a byte
_WIDE = {"int64", "uint64"}
