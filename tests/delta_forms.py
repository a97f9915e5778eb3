"""Stored forms of codec `delta`, made by hand, and blocks to encode."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from cas.delta import SPARSE, Delta, DeltaPlan

CODEC = Delta()
NO_ORDER = (1, 0, 0)


def rle(byte: int, count: int) -> bytes:
    """A frame of `count` < 256 equal bytes: one segment, size of one byte, one RLE block."""
    return b"\x28\xb5\x2f\xfd\x20" + bytes([count]) + struct.pack("<I", 3 | count << 3)[:3] + bytes([byte])


def form(starts: int, classes: tuple[int, int, int], *segments: bytes, sparse: tuple[int, ...] = ()) -> bytes:
    """A stored form of these stored segments; those at the places `sparse` are marked so."""
    lengths = [len(segment) | (SPARSE if i in sparse else 0) for i, segment in enumerate(segments)]
    return struct.pack(f"<BBBB{len(segments)}I", starts, *classes, *lengths) + b"".join(segments)


def few(gaps: bytes, values: bytes, count: int | None = None) -> bytes:
    """A sparse segment of these stored parts, which stand for `count` gaps."""
    return struct.pack("<II", len(gaps) if count is None else count, len(gaps)) + gaps + values


def decode(stored: bytes, base: bytes, width: int) -> bytes:
    out = bytearray(len(base))
    CODEC.decode_delta(stored, base, width, memoryview(out))
    return bytes(out)


def encode(raw: bytes, base: bytes, plan: DeltaPlan) -> bytes:
    stored = CODEC.encode_delta(raw, base, plan)
    assert stored is not None
    return bytes(stored)


def all_starts(width: int) -> list[tuple[int, ...]]:
    """Every way to cut elements of `width` into planes: aligned powers of two."""
    if width == 1:
        return [(0,)]
    halves = all_starts(width // 2)
    return [(0,)] + [(*low, *(at + width // 2 for at in high)) for low in halves for high in halves]


def bf16(values: npt.NDArray[Any]) -> bytes:
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def two_states(count: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Weights before and after some steps of about the same length each."""
    rng = np.random.default_rng(7)
    before = rng.normal(0, 0.03, count).astype("<f4")
    return before, (before + rng.normal(0, 2e-4, count)).astype("<f4")
