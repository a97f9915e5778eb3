"""Choosing and undoing how an object's bytes are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .backend import Buffer
from .block import NO_BASE, PLAIN, Codec, Coding
from .delta import Delta, DeltaPlan
from .dtypes import DType
from .entropy import sample
from .errors import Corrupt
from .planes import Plan
from .tensors import Array

CodecName = Literal["auto", "raw", "zstd", "planes"]
CODEC_NAMES: tuple[CodecName, ...] = ("auto", "raw", "zstd", "planes")
DELTA_CODECS: tuple[CodecName, ...] = ("auto", "planes")
"""Those beside which blocks may be stored as deltas."""
_MIN_SIZE = 64
"""Bytes below which nothing is compressed: a frame costs more than it saves."""


@dataclass(slots=True)
class Format:
    """What is known of the bytes of one leaf: the element type, and the plan once a block was sampled for it."""

    dtype: DType | None
    plan: Plan | None = None


@dataclass(slots=True)
class Changes:
    """How one leaf changes: the plan for its deltas once a block was sampled, None where they do not pay."""

    dtype: DType
    sort: bool = False
    sampled: bool = False
    plan: DeltaPlan | None = None

    @property
    def hopeless(self) -> bool:
        return self.sampled and self.plan is None


class Habits:
    """How one tensor is coded, whole and as changes, once blocks of it were sampled."""

    __slots__ = ("changes", "format")

    def __init__(self, dtype: DType, sort: bool = False) -> None:
        self.format = Format(dtype)
        self.changes = Changes(dtype, sort)


class Encoder:
    """Encodes and decodes for one thread; it keeps the codecs' buffers. Not thread-safe."""

    def __init__(self) -> None:
        self._codecs = Delta()

    def encode(self, raw: Array, form: Format, codec: CodecName) -> tuple[Coding, Array | memoryview]:
        """Coding and stored bytes of a block without a base; raw where compression gains nothing.

        The stored bytes are valid until the next call.
        """
        if codec == "raw" or len(raw) < _MIN_SIZE:
            return PLAIN, raw
        if codec == "planes" and form.dtype is not None and form.dtype.width > 1 and len(raw) % form.dtype.width == 0:
            return self._encode_planes(raw, form, form.dtype)
        stored = self._codecs.encode_zstd(memoryview(raw))
        return (PLAIN, raw) if stored is None else (Coding(Codec.ZSTD), memoryview(stored))

    def _encode_planes(self, raw: Array, form: Format, dtype: DType) -> tuple[Coding, Array | memoryview]:
        view = memoryview(raw)
        if form.plan is None:
            form.plan = self._codecs.plan(sample(view, dtype.width), dtype.width, dtype.is_float)
        stored = None if form.plan.hopeless else self._codecs.encode(view, form.plan)
        return (PLAIN, raw) if stored is None else (Coding(Codec.PLANES, dtype.width), stored)

    def encode_delta(self, raw: Array, base: Buffer, changes: Changes) -> memoryview | None:
        """The stored bytes of a block as its change from `base`; None where that does not pay.

        They are valid until the next call.
        """
        view, dtype = memoryview(raw), changes.dtype
        if len(raw) != len(base) or len(raw) % dtype.width:
            return None
        if not changes.sampled:
            pieces = sample(view, dtype.width), sample(base, dtype.width)
            changes.plan = self._codecs.plan_delta(*pieces, dtype.width, dtype.exponent_bits, changes.sort)
            changes.sampled = True
        return None if changes.plan is None else self._codecs.encode_delta(view, base, changes.plan)

    def decode(self, coding: Coding, stored: Buffer, out: memoryview, base: Buffer = NO_BASE) -> None:
        """Fill `out` with the raw bytes, for a delta from those of its `base`; `Corrupt` if `stored` does not give
        that many."""
        if coding.codec is Codec.RAW:
            if len(stored) != len(out):
                raise Corrupt("a raw block has another length than its row says; fetch it again")
            np.copyto(np.frombuffer(out, np.uint8), np.frombuffer(stored, np.uint8))
        elif coding.codec is Codec.ZSTD:
            self._codecs.decode_zstd(stored, out)
        elif coding.codec is Codec.PLANES:
            self._codecs.decode(stored, coding.width, out)
        else:
            self._codecs.decode_delta(stored, base, coding.width, out)
