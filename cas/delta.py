"""Codec `delta`: a block of little-endian elements of width 1, 2, 4 or 8, stored as its change from a base block.

The base is another block of the same length and width. Training moves every weight by about the same step,
so the differences of two states, counted in the last place of each element, are small, and the smaller the
larger the element: sorted by the exponents of the base, they can be coded exponent by exponent.

Stored form (normative; integers are little-endian; elements of W bits, n > 0 of them, P planes, K classes):

    starts   u8          bit i: a plane begins at byte i of the element; byte 0 is the least significant
    classes  u8          K, 1 to 8; if K = 1, the elements are in their own order, and shift and low are 0
    shift    u8          less than W
    low      u8          low + K <= 256
    lengths  u32 x P x K stored length of each segment: by ascending byte of its plane, then by class
    segments             the stored segments in that order, without gaps, up to the end of the stored bytes

Difference: d = element - base element modulo 2^W, both read as unsigned integers. With d read as a two's
complement integer, z = 2 d if d >= 0, else -2 d - 1. (Floats of one sign are ordered like these integers;
floats of opposite sign are far apart in any order.)

Sorted (K > 1): n is even. With v = bits shift to shift + 7 of (2 x base element modulo 2^W), zeros above the
top, the class of an element is v - low, but at least 0 and at most K - 1. The pairs of elements 2j and 2j + 1
are sorted, stably, by the class of the first, then that of the second. Class 0 is the first elements that are
of class 0, in this order of pairs, then the second elements that are; class 1 follows.

Planes: as in codec `planes`, without rotation, of the z in this order. Bit 0 of `starts` is set, and no bit
at or above the width; each plane's size s is 1, 2, 4 or 8 bytes of each element and divides its first byte.
A segment is the part of a plane in one class: of m elements, t = m x s bytes. Its stored length is
    0               t zero bytes
    t               the bytes themselves
    below t         one zstd frame of them (entropy.py)
    2^31 + length   these bytes in the sparse form (sparse.py); length is below t
Anything else is corrupt.
The whole is shorter than the block.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from .backend import Buffer
from .classes import KEPT, MAX_CLASSES, PIECE, UNSIGNED, Array, Classes, Scratch, order_of, sort, spans, unsort
from .entropy import Setting
from .errors import Corrupt, Invalid
from .planes import Planes, sizes_of, starts_of
from .sparse import decode_sparse, encode_sparse, read_part

WIDTHS = (1, 2, 4, 8)
SPARSE = 1 << 31
_HEAD = struct.Struct("<BBBB")
_WORTH = 7.6
"""Bits a byte from which coding is not worth its time: it saves less than 5 %."""
_SIGNED = {size: np.dtype(f"<i{size}") for size in WIDTHS}


@dataclass(frozen=True, slots=True)
class DeltaPlan:
    """How the blocks of one tensor are encoded: where planes start, and the `Setting` of each segment."""

    width: int
    starts: tuple[int, ...]
    settings: tuple[Setting, ...]
    classes: Classes = KEPT


class Delta(Planes):
    """The codecs `delta`, `planes` and `zstd` with the buffers of one thread. Not thread-safe."""

    def __init__(self) -> None:
        super().__init__()
        self._scratch = Scratch()

    def plan_delta(self, piece: Buffer, base: Buffer, width: int, exponent_bits: int, sort: bool) -> DeltaPlan | None:
        """The plan for a tensor whose bytes look like `piece`, with those of its base at the same places.

        None where a delta would not be smaller by 5 % than without a base. `exponent_bits` is 0 for numbers
        that are no floats. `sort` allows to sort by the base, at a third of the speed.
        """
        if width not in WIDTHS:
            raise Invalid(f"elements of {width} bytes have no delta; use width 1, 2, 4 or 8")
        elements, old = (np.frombuffer(part, UNSIGNED[width], len(piece) // width) for part in (piece, base))
        changes = np.empty_like(elements)
        _subtract(elements, old, changes, np.empty_like(changes))
        kept = _estimate(changes, np.zeros(len(old), np.uint8), 1)
        # Without a base, codec planes would rotate floats: the sign leaves the exponent's byte.
        plain = (elements << 1) | (elements >> (8 * width - 1)) if exponent_bits else elements
        if kept.size > 0.95 * _estimate(plain, np.zeros(len(old), np.uint8), 1).size:
            return None
        if sort and exponent_bits and len(old):
            shift = 8 * width - exponent_bits
            exponents = np.right_shift(old + old, shift).astype(np.uint8)
            # The highest class is the highest exponent that is not rare; the lowest is the rest.
            low = max(0, int(np.percentile(exponents, 99, method="lower")) - MAX_CLASSES + 1)
            classes = np.clip(exponents, low, low + MAX_CLASSES - 1) - np.uint8(low)
            ordered = _estimate(changes, classes, MAX_CLASSES)
            if ordered.size < 0.98 * kept.size:
                return _plan(ordered, Classes(MAX_CLASSES, shift, low))
        return _plan(kept, KEPT)

    def encode_delta(self, raw: Buffer, base: Buffer, plan: DeltaPlan) -> memoryview | None:
        """The stored form of a block; None when it would not be shorter than `raw`.

        The view lies in a buffer of this object and is good until it encodes again.
        """
        width, classes = plan.width, plan.classes
        if len(raw) != len(base) or len(raw) % width:
            raise Invalid(f"blocks of {len(raw)} and {len(base)} bytes have no delta; pass equal, whole elements")
        elements, old = (np.frombuffer(block, UNSIGNED[width]) for block in (raw, base))
        n, head = len(elements), _HEAD.size + 4 * len(plan.settings)
        if (classes.count > 1 and n % 2) or len(raw) <= head:
            return None
        lead = -head % 8  # the planes lie aligned
        out = self._buffer(lead + head + len(raw))[lead:]
        parts = sizes_of(plan.starts, width)
        planes = [
            np.frombuffer(out, UNSIGNED[size], n, head + start * n)
            for start, size in zip(plan.starts, parts, strict=True)
        ]
        sizes = self._split_changes(elements, old, planes, plan)
        stored, end = self._pack_segments(out, head, [size * m for size in parts for m in sizes], plan.settings)
        if end >= len(raw):
            return None
        starts = sum(1 << start for start in plan.starts)
        _HEAD.pack_into(out, 0, starts, classes.count, classes.shift, classes.low)
        struct.pack_into(f"<{len(stored)}I", out, _HEAD.size, *stored)
        return out[:end].toreadonly()

    def decode_delta(self, stored: Buffer, base: Buffer, width: int, out: memoryview) -> None:
        """Fill `out`, as long as the raw block, from its stored form and its base.

        `Corrupt` for what breaks the format; then `out` may hold anything. Allocates a few times the size of
        `out` and a constant.
        """
        if width not in WIDTHS:
            raise Corrupt(f"a delta has elements of {width} bytes; fetch the block again")
        if len(base) != out.nbytes:
            raise Corrupt(f"a block of {out.nbytes} bytes has a base of {len(base)}; fetch both again")
        if not _HEAD.size <= len(stored) < out.nbytes or out.nbytes % width:
            raise Corrupt(f"{len(stored)} bytes stand for no block of {out.nbytes}; fetch it again")
        elements, old = np.frombuffer(out, UNSIGNED[width]), np.frombuffer(base, UNSIGNED[width])
        view = memoryview(stored).cast("B")
        n, (mask, *fields) = len(elements), _HEAD.unpack_from(view)
        starts, classes = starts_of(mask, width), Classes(*fields)
        _check(classes, width, n)
        changes = self._scratch.array("changes", n, width)
        if classes.count > 1:
            order, ordered = order_of(old, classes, self._scratch), self._scratch.array("sorted", n, width)
            self._read_planes(view, starts, ordered, order.sizes)
            unsort(ordered, order, changes, self._scratch)
        else:
            self._read_planes(view, starts, changes, [n])
        for span in spans(n):
            _add(changes[span], old[span], elements[span], self._spare(changes[span]))

    def _split_changes(self, elements: Array, old: Array, planes: list[Array], plan: DeltaPlan) -> list[int]:
        """Fill `planes` with the z of the stored form, in their order: the sizes of the classes."""
        n = len(elements)
        if plan.classes.count == 1:
            piece = self._scratch.array("piece", PIECE, plan.width)
            for span in spans(n):
                change = piece[: span.stop - span.start]
                _subtract(elements[span], old[span], change, self._spare(change))
                self._split(change, [plane[span] for plane in planes], plan.starts, False)
            return [n]
        changes = self._scratch.array("changes", n, plan.width)
        for span in spans(n):
            _subtract(elements[span], old[span], changes[span], self._spare(changes[span]))
        order = order_of(old, plan.classes, self._scratch)
        self._split(sort(changes, order, self._scratch), planes, plan.starts, False)
        return order.sizes

    def _spare(self, elements: Array) -> Array:
        """A place for as many elements of the same width."""
        return self._scratch.array("spare", PIECE, elements.itemsize)[: len(elements)]

    def _pack_segments(
        self, out: memoryview, head: int, lengths: list[int], settings: tuple[Setting, ...]
    ) -> tuple[list[int], int]:
        """Compress the segments that lie in `out` from `head` on, and close the gaps: stored lengths, end."""
        stored: list[int] = []
        begin = end = head
        for length, setting in zip(lengths, settings, strict=True):
            segment = out[begin : begin + length]
            kept, mark = self._segment(segment, setting)
            if len(kept) != length or begin != end:
                out[end : end + len(kept)] = kept
            stored.append(len(kept) | mark)
            begin, end = begin + length, end + len(kept)
        return stored, end

    def _segment(self, segment: memoryview, setting: Setting) -> tuple[Buffer, int]:
        """What to store of a segment, and `SPARSE` if that is the sparse form, or 0."""
        sparse = encode_sparse(self, segment)
        if sparse is not None:
            return sparse, SPARSE if sparse else 0
        frame = self.deflate(segment, setting)
        return segment if frame is None else frame, 0

    def _read_planes(self, stored: memoryview, starts: tuple[int, ...], elements: Array, sizes: list[int]) -> None:
        """Check and read the segments of a stored form, classes of `sizes`, into `elements` in their order."""
        width = elements.itemsize
        head = _HEAD.size + 4 * len(starts) * len(sizes)
        if len(stored) < head:
            raise Corrupt("a delta ends in its table of segments; fetch the block again")
        table = struct.unpack_from(f"<{len(starts) * len(sizes)}I", stored, _HEAD.size)
        if head + sum(length & ~SPARSE for length in table) != len(stored):
            raise Corrupt("a delta's segments do not fill it; fetch the block again")
        lengths, planes, patches = iter(table), [], []
        for start, size in zip(starts, sizes_of(starts, width), strict=True):
            segments: list[Buffer | None] = []
            at = 0
            for count in sizes:
                length = next(lengths)
                end = head + (length & ~SPARSE)
                segment, head = stored[head:end], end
                if length & SPARSE:
                    places, values = decode_sparse(self, segment, count * size)
                    patches.append((_places(places + np.uint32(at * size), start, size, width), values))
                segments.append(None if length & SPARSE or not length else read_part(self, segment, count * size))
                at += count
            if any(segment is not None for segment in segments):
                planes.append((start, self._whole(start, segments, size, sizes)))
        for span in spans(len(elements)):
            self._assemble(planes, span, elements[span])
        for places, values in patches:
            elements.view(np.uint8)[places] = values

    def _whole(self, start: int, segments: list[Buffer | None], size: int, sizes: list[int]) -> Array:
        """The plane at byte `start`, one unsigned integer for each element, of these segments."""
        if len(segments) == 1 and segments[0] is not None:
            return np.frombuffer(segments[0], UNSIGNED[size])
        plane, at = self._scratch.array(f"plane {start}", sum(sizes), size), 0
        for segment, count in zip(segments, sizes, strict=True):
            plane[at : at + count] = 0 if segment is None else np.frombuffer(segment, UNSIGNED[size])
            at += count
        return plane

    def _assemble(self, planes: list[tuple[int, Array]], span: slice, elements: Array) -> None:
        """Fill `elements`, at most a piece, from this span of the planes that are not zero."""
        if not planes:
            elements[:] = 0
        wide = self._spare(elements)
        for i, (start, plane) in enumerate(planes):
            to = wide if i else elements
            np.copyto(to, plane[span])
            if start:
                np.left_shift(to, 8 * start, out=to)
            if i:
                np.bitwise_or(elements, to, out=elements)


def _places(places: Array, start: int, size: int, width: int) -> Array:
    """Where the bytes at `places` of a plane lie among those of the elements."""
    first = places if size == 1 else places // size
    found: Array = first * np.uint32(width) + np.uint32(start)
    return found if size == 1 else found + places % size


def _subtract(elements: Array, old: Array, changes: Array, spare: Array) -> None:
    """Fill `changes` with the z of the stored form; what `spare` held is lost."""
    signed = _SIGNED[changes.itemsize]
    np.subtract(elements, old, out=changes)
    np.right_shift(changes.view(signed), 8 * changes.itemsize - 1, out=spare.view(signed))
    np.add(changes, changes, out=changes)
    np.bitwise_xor(changes, spare, out=changes)


def _add(changes: Array, old: Array, elements: Array, spare: Array) -> None:
    """Fill `elements` from `changes`, which are lost: the inverse of `_subtract`."""
    np.bitwise_and(changes, 1, out=spare)
    np.negative(spare, out=spare)
    np.right_shift(changes, 1, out=changes)
    np.bitwise_xor(changes, spare, out=changes)
    np.add(changes, old, out=elements)


@dataclass(frozen=True, slots=True)
class _Estimate:
    """What an ideal code of single bytes makes of a sample: for each byte of the elements the `Setting` of each
    class, and the bits in all."""

    settings: list[list[Setting]]
    size: float


def _estimate(elements: Array, classes: Array, count: int) -> _Estimate:
    """The estimate for a sample whose elements are of these classes, which are below `count`."""
    keys = classes.astype(np.intp) << 8
    columns = elements.view(np.uint8).reshape(-1, elements.itemsize).T
    table = np.stack([np.bincount(keys + column, minlength=256 * count) for column in columns])
    table = table.reshape(len(table), count, 256)
    sizes = np.maximum(table[0].sum(axis=1), 1)
    shares = table / sizes[:, None]
    bits = -(shares * np.log2(shares, where=table > 0, out=np.zeros_like(shares))).sum(axis=2)
    bits += (np.count_nonzero(table, axis=2) - 1) / (2 * sizes * np.log(2))  # for few samples: Miller and Madow
    coded = bits < _WORTH
    settings = [[Setting.TUNED if one else Setting.RAW for one in row] for row in coded.tolist()]
    return _Estimate(settings, float((np.where(coded, bits, 8) * sizes).sum()))


def _plan(estimate: _Estimate, classes: Classes) -> DeltaPlan:
    """The plan that follows; the low bytes that are raw in every class are left together."""
    settings, width = estimate.settings, len(estimate.settings)
    raw = next((i for i in range(width) if Setting.TUNED in settings[i]), width)
    starts = [0]
    while starts[-1] < raw:
        starts.append(starts[-1] + max(s for s in WIDTHS if starts[-1] % s == 0 and starts[-1] + s <= raw))
    starts = [*starts, *range(raw + 1, width)]
    return DeltaPlan(width, tuple(starts), tuple(setting for start in starts for setting in settings[start]), classes)


def _check(classes: Classes, width: int, n: int) -> None:
    """`Corrupt` for classes that the format excludes in blocks of `n` elements."""
    if classes == KEPT:
        return
    if not 1 < classes.count <= MAX_CLASSES or n % 2:
        raise Corrupt(f"a delta sorts {n} elements into {classes.count} classes; fetch the block again")
    if classes.shift >= 8 * width or classes.low + classes.count > 256:
        raise Corrupt("a delta has classes that no element can be of; fetch the block again")
