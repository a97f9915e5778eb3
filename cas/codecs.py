"""Choosing and undoing how an object's bytes are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .backend import Buffer
from .block import Codec
from .dtypes import DType
from .entropy import sample
from .errors import Corrupt
from .planes import Plan, Planes
from .tensors import Array

CodecName = Literal["auto", "raw", "zstd", "planes"]
CODEC_NAMES: tuple[CodecName, ...] = ("auto", "raw", "zstd", "planes")
_MIN_SIZE = 64
"""Bytes below which nothing is compressed: a frame costs more than it saves."""


@dataclass(slots=True)
class Format:
    """What is known of the bytes of one leaf: the element type, and the plan once a block was sampled for it."""

    dtype: DType | None
    plan: Plan | None = None


class Encoder:
    """Encodes and decodes for one thread; it keeps the codecs' buffers. Not thread-safe."""

    def __init__(self) -> None:
        self._planes = Planes()

    def encode(self, raw: Array, form: Format, codec: CodecName) -> tuple[Codec, int, Array | memoryview]:
        """Codec, element width and stored bytes of a block; raw where compression gains nothing.

        The stored bytes are valid until the next call.
        """
        if codec == "raw" or len(raw) < _MIN_SIZE:
            return Codec.RAW, 0, raw
        if codec == "planes" and form.dtype is not None and form.dtype.width > 1:
            return self._encode_planes(raw, form, form.dtype)
        stored = self._planes.encode_zstd(memoryview(raw))
        return (Codec.RAW, 0, raw) if stored is None else (Codec.ZSTD, 0, memoryview(stored))

    def _encode_planes(self, raw: Array, form: Format, dtype: DType) -> tuple[Codec, int, Array | memoryview]:
        view = memoryview(raw)
        if form.plan is None:
            form.plan = self._planes.plan(sample(view, dtype.width), dtype.width, dtype.is_float)
        stored = None if form.plan.hopeless else self._planes.encode(view, form.plan)
        return (Codec.RAW, 0, raw) if stored is None else (Codec.PLANES, dtype.width, stored)

    def decode(self, codec: int, width: int, stored: Buffer, out: memoryview) -> None:
        """Fill `out` with the raw bytes; `Corrupt` if `stored` is not an encoding of that many."""
        if codec == Codec.RAW:
            if len(stored) != len(out):
                raise Corrupt("a raw block has another length than its row says; fetch it again")
            np.copyto(np.frombuffer(out, np.uint8), np.frombuffer(stored, np.uint8))
        elif codec == Codec.ZSTD:
            self._planes.decode_zstd(stored, out)
        else:
            self._planes.decode(stored, width, out)
