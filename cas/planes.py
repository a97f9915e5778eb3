"""Codec `planes`: a block of little-endian elements of width 2, 4 or 8, split by the place of each byte.

A plane is the bytes of one place in all elements, or of 2, 4 or 8 neighbouring places kept together.
Exponents, high bytes of integers and zeros gather in planes that compress; mantissas gather in planes that
do not and are stored as they are.

Stored form (normative; integers are little-endian; n > 0 elements, P planes):

    starts   u8      bit i: a plane begins at byte i of the element; byte 0 is the least significant
    flags    u8      bit 0: rotated; the other bits are zero
    lengths  u32 x P stored length of each plane, by ascending byte
    planes           the P stored planes, by ascending byte, without gaps, up to the end of the stored bytes

Bit 0 of `starts` is set, and no bit at or above the width. A plane ends where the next begins, the last at
the width; its size s is 1, 2, 4 or 8 bytes of each element, and its first byte is a multiple of s. Its raw
bytes are these parts of the elements in order, n x s bytes. A stored length of n x s is the raw bytes; a
smaller one is one zstd frame of them (entropy.py); zero and anything larger are corrupt. The whole is
shorter than the block.

Rotated: before the split, the top 16 bits of each element were rotated left by one. This puts the exponent
of bf16 and fp32 alone into the top byte, and the sign under the mantissa's highest bits. The top two bytes
are then planes of their own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .backend import Buffer
from .entropy import Coder, Setting
from .errors import Corrupt, Invalid

Array = npt.NDArray[Any]

WIDTHS = (2, 4, 8)
_PIECE = 1 << 16  # elements worked on at a time, so that later passes find their data in the cache
_UNSIGNED = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}
_ROTATED = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """How the blocks of one tensor are encoded: where planes start, and the `Setting` of each plane."""

    width: int
    starts: tuple[int, ...]
    settings: tuple[Setting, ...]
    rotate: bool

    @property
    def hopeless(self) -> bool:
        """No plane is worth compressing: store the blocks raw."""
        return all(setting is Setting.RAW for setting in self.settings)


@dataclass(frozen=True, slots=True)
class _Choice:
    """A plane that begins at byte `start`: its setting, and the bytes in which that stores the sample's."""

    start: int
    setting: Setting
    size: int


@dataclass(frozen=True, slots=True)
class _Plane:
    """A plane that was read: `parts` has one unsigned integer for each element, to go at byte `start`."""

    start: int
    parts: Array


class Planes(Coder):
    """The codecs `planes` and `zstd` with the buffers of one thread. Not thread-safe: one for each thread."""

    def __init__(self) -> None:
        super().__init__()
        self._out = bytearray()
        self._wide = np.empty(_PIECE * max(WIDTHS), np.uint8)
        self._top = np.empty(_PIECE, _UNSIGNED[2])
        self._carry = np.empty(_PIECE, _UNSIGNED[2])

    def plan(self, piece: Buffer, width: int, is_float: bool) -> Plan:
        """The plan for a tensor whose bytes look like `piece`: `entropy.sample` of it, or of one block."""
        if width not in WIDTHS:
            raise Invalid(f"elements of {width} bytes have no planes; use width 2, 4 or 8, or codec zstd")
        elements = np.frombuffer(piece, _UNSIGNED[width], len(piece) // width)
        if is_float:
            high, low = (np.empty(len(elements), np.uint8) for _ in range(2))
            self._split(elements, [low, high], (width - 2, width - 1), True)
            # Rotation only serves the exponent; where it does not compress, the bytes are best left together.
            top = [_Choice(width - 2, *self.choose(low.data)), _Choice(width - 1, *self.choose(high.data))]
            if any(choice.setting is not Setting.RAW for choice in top):
                return _plan(width, [*self._choices(elements, width - 2), *top], True)
        return _plan(width, self._choices(elements, width), False)

    def _choices(self, elements: Array, end: int) -> list[_Choice]:
        """Planes and settings for the bytes of `elements` below `end`, a multiple of 2 but for 0."""
        choices: list[_Choice] = []
        at = 0
        while at < end:
            size = max(size for size in (1, 2, 4, 8) if at % size == 0 and at + size <= end)
            choices += self._halves(elements, at, size)
            at += size
        return choices

    def _halves(self, elements: Array, start: int, size: int) -> list[_Choice]:
        """The choices for `size` bytes of each element: one plane where that is no larger than halves."""
        if size == 1:
            return [self._choice(elements, start, size)]
        low, high = (self._halves(elements, at, size // 2) for at in (start, start + size // 2))
        if len(low) == len(high) == 1:
            coded = [choice.setting is not Setting.RAW for choice in (*low, *high)]
            if not any(coded):
                return [_Choice(start, Setting.RAW, low[0].size + high[0].size)]
            if all(coded):
                joined = self._choice(elements, start, size)
                if joined.size <= low[0].size + high[0].size:
                    return [joined]
        return low + high

    def _choice(self, elements: Array, start: int, size: int) -> _Choice:
        plane = np.empty(len(elements), _UNSIGNED[size])
        self._split(elements, [plane], (start,), False)
        return _Choice(start, *self.choose(plane.view(np.uint8).data))

    def encode(self, raw: Buffer, plan: Plan) -> memoryview | None:
        """The stored form of a block; None when it would not be shorter than `raw`: store that instead.

        The view lies in a buffer of this object and is good until the next `encode`.
        """
        if len(raw) % plan.width:
            raise Invalid(f"{len(raw)} bytes are no whole elements of {plan.width}; pass whole elements")
        if plan.hopeless or not len(raw):
            return None
        elements = np.frombuffer(raw, _UNSIGNED[plan.width])
        sizes = sizes_of(plan.starts, plan.width)
        lengths = [size * len(elements) for size in sizes]
        head = 2 + 4 * len(sizes)
        out = self._buffer(head + len(raw))
        # Every plane is split to where it lies if all are raw; what is compressed moves the rest down.
        planes = [
            np.frombuffer(out, _UNSIGNED[size], len(elements), head + start * len(elements))
            for start, size in zip(plan.starts, sizes, strict=True)
        ]
        self._split(elements, planes, plan.starts, plan.rotate)
        stored, end = self._pack(out, head, lengths, plan.settings)
        if end >= len(raw):
            return None
        starts = sum(1 << start for start in plan.starts)
        struct.pack_into(f"<BB{len(stored)}I", out, 0, starts, _ROTATED if plan.rotate else 0, *stored)
        return out[:end].toreadonly()

    def decode(self, stored: Buffer, width: int, out: memoryview) -> None:
        """Fill `out`, as long as the raw block, from its stored form.

        `Corrupt` for what breaks the format; then `out` may hold anything. Allocates the size of `out` and
        a constant.
        """
        if width not in WIDTHS:
            raise Corrupt(f"a block has elements of {width} bytes, which have no planes; fetch it again")
        if not 0 < len(stored) < out.nbytes or out.nbytes % width:
            raise Corrupt(f"{len(stored)} bytes stand for no block of {out.nbytes}; fetch it again")
        elements = np.frombuffer(out, _UNSIGNED[width])
        planes, rotated = self._read(memoryview(stored).cast("B"), width, len(elements))
        if len(planes) == 1:
            elements[:] = planes[0].parts
        else:
            self._join(elements, planes, rotated)

    def _buffer(self, length: int) -> memoryview:
        if len(self._out) < length:
            self._out = bytearray(length)
        return memoryview(self._out)

    def _pack(
        self, out: memoryview, head: int, lengths: list[int], settings: tuple[Setting, ...]
    ) -> tuple[list[int], int]:
        """Compress the planes that lie in `out` from `head` on, and close the gaps: lengths, end."""
        stored: list[int] = []
        begin = end = head
        for length, setting in zip(lengths, settings, strict=True):
            plane = out[begin : begin + length]
            frame = self.deflate(plane, setting)
            if frame is not None or begin != end:
                kept = plane if frame is None else frame
                out[end : end + len(kept)] = kept
            stored.append(length if frame is None else len(frame))
            begin, end = begin + length, end + stored[-1]
        return stored, end

    def _split(self, elements: Array, planes: list[Array], starts: tuple[int, ...], rotate: bool) -> None:
        """Fill `planes`, one array for each of `starts`, with their parts of `elements`.

        By contiguous shifts and by casts that keep the low bytes: unlike strided copies of bytes, these run
        at the speed of memory.
        """
        width = elements.dtype.itemsize
        plain = len(planes) - 2 if rotate else len(planes)
        wide = self._wide.view(elements.dtype)
        for begin in range(0, len(elements), _PIECE):
            part = elements[begin : begin + _PIECE]
            span, n = slice(begin, begin + len(part)), len(part)
            for plane, start in zip(planes[:plain], starts[:plain], strict=True):
                shifted = np.right_shift(part, 8 * start, out=wide[:n]) if start else part
                np.copyto(plane[span], shifted, casting="unsafe")
            if rotate:
                top, carry = self._top[:n], self._carry[:n]
                shifted = np.right_shift(part, 8 * width - 16, out=wide[:n]) if width > 2 else part
                np.copyto(top, shifted, casting="unsafe")
                np.right_shift(top, 15, out=carry)
                np.add(top, top, out=top)
                np.bitwise_or(top, carry, out=top)
                np.copyto(planes[-2][span], top, casting="unsafe")
                np.right_shift(top, 8, out=top)
                np.copyto(planes[-1][span], top, casting="unsafe")

    def _read(self, stored: memoryview, width: int, n: int) -> tuple[list[_Plane], bool]:
        """Check and take apart a stored form: its planes, decompressed, and whether it is rotated."""
        starts = starts_of(stored[0], width)
        head = 2 + 4 * len(starts)
        if len(stored) < head:
            raise Corrupt("a block ends in its table of planes; fetch it again")
        flags, *lengths = struct.unpack_from(f"<B{len(starts)}I", stored, 1)
        if flags not in (0, _ROTATED) or (flags and starts[-2:] != (width - 2, width - 1)):
            raise Corrupt("a block has unknown flags; fetch it again")
        if head + sum(lengths) != len(stored):
            raise Corrupt("a block's planes do not fill it; fetch it again")
        planes = []
        for start, size, length in zip(starts, sizes_of(starts, width), lengths, strict=True):
            data: Buffer = stored[head : head + length]
            if not 0 < length <= size * n:
                raise Corrupt("a plane is stored in more bytes than it has; fetch the block again")
            if length < size * n:
                data = self.inflate(data, size * n)
            planes.append(_Plane(start, np.frombuffer(data, _UNSIGNED[size])))
            head += length
        return planes, bool(flags)

    def _join(self, elements: Array, planes: list[_Plane], rotated: bool) -> None:
        """Fill `elements` from `planes`: the inverse of `_split`."""
        width = elements.dtype.itemsize
        plain = planes[:-2] if rotated else planes
        wide = self._wide.view(elements.dtype)
        for begin in range(0, len(elements), _PIECE):
            part = elements[begin : begin + _PIECE]
            span, n = slice(begin, begin + len(part)), len(part)
            if rotated:
                np.copyto(part, self._unrotated(planes[-1].parts[span], planes[-2].parts[span]))
                if width > 2:
                    np.left_shift(part, 8 * width - 16, out=part)
            else:
                part[:] = 0
            for plane in plain:
                np.copyto(wide[:n], plane.parts[span])
                if plane.start:
                    np.left_shift(wide[:n], 8 * plane.start, out=wide[:n])
                np.bitwise_or(part, wide[:n], out=part)

    def _unrotated(self, high: Array, low: Array) -> Array:
        """The top 16 bits of some elements, from their rotated high and low bytes."""
        top, carry = self._top[: len(high)], self._carry[: len(high)]
        np.copyto(top, high)
        np.left_shift(top, 8, out=top)
        np.copyto(carry, low)
        np.bitwise_or(top, carry, out=top)
        np.right_shift(top, 1, out=carry)
        np.left_shift(top, 15, out=top)
        return np.bitwise_or(top, carry, out=top)


def sizes_of(starts: tuple[int, ...], width: int) -> list[int]:
    """The size of each plane: it ends where the next begins."""
    return [end - start for start, end in zip(starts, (*starts[1:], width), strict=True)]


def starts_of(mask: int, width: int) -> tuple[int, ...]:
    """Where planes begin, from the first byte of a stored form; `Corrupt` if they do not divide an element."""
    starts = tuple(i for i in range(8) if mask >> i & 1)
    if starts[:1] != (0,):
        raise Corrupt("a block has no plane at byte 0; fetch it again")
    sizes = sizes_of(starts, width)
    if any(size not in _UNSIGNED or start % size for start, size in zip(starts, sizes, strict=True)):
        raise Corrupt(f"a block's planes do not divide elements of {width} bytes; fetch it again")
    return starts


def _plan(width: int, choices: list[_Choice], rotate: bool) -> Plan:
    return Plan(width, tuple(c.start for c in choices), tuple(c.setting for c in choices), rotate)
