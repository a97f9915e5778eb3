"""The element types that a tensor entry may name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """`itemsize` bytes an element; `width` bytes of the number that codecs work on (a complex number has two)."""

    name: str
    itemsize: int
    width: int
    is_float: bool


def _table() -> dict[str, DType]:
    found = [DType("bool", 1, 1, False)]
    for bits in (8, 16, 32, 64):
        found += [DType(f"{sign}int{bits}", bits // 8, bits // 8, False) for sign in ("", "u")]
    found += [DType(f"float{bits}", bits // 8, bits // 8, True) for bits in (16, 32, 64)]
    found += [DType("bfloat16", 2, 2, True)]
    found += [DType(f"complex{bits}", bits // 8, bits // 16, True) for bits in (32, 64, 128)]
    small = ("8_e4m3fn", "8_e4m3fnuz", "8_e5m2", "8_e5m2fnuz", "8_e8m0fnu", "4_e2m1fn_x2")
    found += [DType(f"float{name}", 1, 1, False) for name in small]
    return {dtype.name: dtype for dtype in found}


DTYPES = _table()
"""By name. `float4_e2m1fn_x2` holds two numbers a byte and counts bytes."""
