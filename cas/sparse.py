"""Bytes that are mostly zero: how many zeros lie before each byte that is not, and these bytes.

Stored form (normative; integers are little-endian):

    count    u32         number of gaps
    length   u32         stored length of the gaps
    gaps                 raw: one byte each
    values               raw: the bytes that are not zero, in order

A gap of 255 stands for 255 zeros; a smaller one for as many zeros and the next value. What follows the last
value is zero. The last gap is below 255; there are 1 to a quarter as many gaps as bytes that they stand for.
Gaps and values are each stored raw or, shorter than that, as one zstd frame (entropy.py). No value is zero, and none
lies beyond the end. The whole is shorter than the bytes that it stands for.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from .backend import Buffer
from .entropy import Coder, Setting
from .errors import Corrupt

Array = npt.NDArray[Any]

_HEAD = struct.Struct("<II")
_SKIP = 255
_PROBES = 64
"""Words that are looked at first, so that bytes with few zeros cost nothing."""


def encode_sparse(coder: Coder, raw: memoryview) -> bytes | None:
    """The sparse form of `raw`, or nothing if all is zero.

    None unless about half of its words and seven of eight of its bytes are zero, and the form is shorter.
    """
    words = np.frombuffer(raw, np.uint64, len(raw) // 8)
    probe = words[:: len(words) // _PROBES | 1]
    if 2 * np.count_nonzero(probe) > len(probe):
        return None
    content = np.frombuffer(raw, np.uint8)
    places = _nonzero(content, words)
    if not len(places):
        return b""
    if 8 * len(places) > len(raw):
        return None
    gaps, values = _gaps(places), content[places]
    parts = [_part(coder, part.data) for part in (gaps, values)]
    stored = b"".join((_HEAD.pack(len(gaps), len(parts[0])), *parts))
    return stored if len(stored) < len(raw) else None


def decode_sparse(coder: Coder, stored: memoryview, length: int) -> tuple[Array, Array]:
    """The places, ascending, and the values of the bytes that are not zero among the `length` that `stored` stands for.

    `Corrupt` if it does not stand for so many.
    """
    if not _HEAD.size < len(stored) < length:
        raise Corrupt("a sparse segment has an impossible length; fetch the block again")
    count, first = _HEAD.unpack_from(stored)
    if not 0 < count <= length // 4:
        raise Corrupt(f"a sparse segment of {length} bytes has {count} gaps; fetch the block again")
    first += _HEAD.size
    gaps = np.frombuffer(read_part(coder, stored[_HEAD.size : first], count), np.uint8)
    places = np.cumsum(gaps, dtype=np.uint32)[gaps != _SKIP]
    places += np.arange(len(places), dtype=np.uint32)
    if gaps[-1] == _SKIP or places[-1] >= length:
        raise Corrupt("a sparse segment has gaps beyond its end; fetch the block again")
    values = np.frombuffer(read_part(coder, stored[first:], len(places)), np.uint8)
    if not values.all():
        raise Corrupt("a sparse segment names a zero; fetch the block again")
    return places, values


def read_part(coder: Coder, stored: memoryview, length: int) -> Buffer:
    """`length` bytes that are stored as they are or as a frame."""
    if not 0 < len(stored) <= length:
        raise Corrupt("a segment is stored in none or too many bytes; fetch the block again")
    return stored if len(stored) == length else coder.inflate(stored, length)


def _part(coder: Coder, raw: memoryview) -> Buffer:
    """`raw`, or its frame where that saves enough to be worth the reader's time."""
    frame = coder.deflate(raw, Setting.TUNED)
    return raw if frame is None or len(frame) > 0.95 * len(raw) else frame


def _nonzero(content: Array, words: Array) -> Array:
    """Where `content` is not zero: first by its whole `words`, of which most are zero."""
    used = (words != 0).nonzero()[0]
    near = (words[used].view(np.uint8) != 0).nonzero()[0]
    tail = content[8 * len(words) :].nonzero()[0]
    places = 8 * used[near >> 3] + (near & 7)
    return np.concatenate([places, tail + 8 * len(words)]) if len(tail) else places


def _gaps(places: Array) -> Array:
    """The gaps before these places, ascending."""
    zeros = places.copy()
    zeros[1:] -= places[:-1] + 1
    skips = zeros // _SKIP
    ends = np.cumsum(skips + 1)
    gaps = np.full(ends[-1], _SKIP, np.uint8)
    gaps[ends - 1] = zeros - skips * _SKIP
    return gaps
