"""The element types that a tensor entry may name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """`itemsize` bytes an element; `width` bytes of the number that codecs work on (a complex number has two).

    `exponent_bits` follow the sign of that number; 0 where there is no sign, or where a byte holds two numbers.
    """

    name: str
    itemsize: int
    width: int
    is_float: bool
    exponent_bits: int = 0


def _table() -> dict[str, DType]:
    found = [DType("bool", 1, 1, False)]
    for bits in (8, 16, 32, 64):
        found += [DType(f"{sign}int{bits}", bits // 8, bits // 8, False) for sign in ("", "u")]
    for bits, exponent in ((16, 5), (32, 8), (64, 11)):
        found += [DType(f"float{bits}", bits // 8, bits // 8, True, exponent)]
        found += [DType(f"complex{2 * bits}", bits // 4, bits // 8, True, exponent)]
    found += [DType("bfloat16", 2, 2, True, 8)]
    small = {"8_e4m3fn": 4, "8_e4m3fnuz": 4, "8_e5m2": 5, "8_e5m2fnuz": 5, "8_e8m0fnu": 0, "4_e2m1fn_x2": 0}
    found += [DType(f"float{name}", 1, 1, False, exponent) for name, exponent in small.items()]
    return {dtype.name: dtype for dtype in found}


DTYPES = _table()
"""By name. `float4_e2m1fn_x2` holds two numbers a byte and counts bytes."""
