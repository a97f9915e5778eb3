"""A tensor whose parts lie in several places, as the bytes of the whole in row-major order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from cas.files import FileRange
from cas.grid import Box, Shape
from cas.tensors import Array

_SMALL, _LARGE = 64 << 10, 8 << 20  # bytes that are read at once where few of them, or most, are wanted
_WASTE = 4


def row_major(shape: Shape, itemsize: int) -> Shape:
    """The strides in bytes of elements that lie in order."""
    return tuple(prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape)))


@dataclass(frozen=True, slots=True)
class Chunk:
    """The elements of `box`, which lie in `data` from its start on, `strides` bytes apart.

    The caller has checked that they do: no stride is negative, and the last element ends within `data`.
    """

    box: Box
    data: FileRange
    strides: Shape

    def read(self, wanted: Box, out: Array) -> None:
        """Copy what lies in `wanted`, a part of the box, to `out`, an array of elements of its shape."""
        offset = sum((a - b) * step for a, b, step in zip(wanted.start, self.box.start, self.strides, strict=True))
        if self.strides != row_major(self.box.shape, out.itemsize):
            self._gather(offset, out)
        elif out.flags.c_contiguous:
            self.data.read_into(offset, out.reshape(-1).view(np.uint8))
        else:  # one range here too, since `wanted` is one range of the whole tensor's rows
            data = np.empty(out.nbytes, np.uint8)
            self.data.read_into(offset, data)
            out[...] = data.view(out.dtype).reshape(out.shape)

    def _gather(self, offset: int, out: Array) -> None:
        """Copy elements that lie apart from `offset` on, by ranges that are small or hold little else."""
        places = zip(out.shape, self.strides, strict=True)
        reach = out.itemsize + sum((n - 1) * step for n, step in places)
        if reach <= max(_SMALL, min(_LARGE, _WASTE * out.nbytes)):
            data = np.empty(reach, np.uint8)
            self.data.read_into(offset, data)
            out[...] = np.ndarray(out.shape, out.dtype, data, 0, self.strides)
            return
        axis = max(range(out.ndim), key=lambda axis: (out.shape[axis] > 1) * self.strides[axis])
        half = out.shape[axis] // 2
        lead = (slice(None),) * axis
        self._gather(offset, out[(*lead, slice(half))])
        self._gather(offset + half * self.strides[axis], out[(*lead, slice(half, None))])


class ChunkedSource:
    """The tensor of `shape` that the chunks tile, which the caller has checked. See `tensors.Source`."""

    device = None

    def __init__(self, shape: Shape, itemsize: int, chunks: Sequence[Chunk]) -> None:
        self.nbytes = prod(shape) * itemsize
        self._shape, self._itemsize = shape, itemsize
        self._chunks = [chunk for chunk in chunks if chunk.box.size]
        places = np.array([(chunk.box.start, chunk.box.shape) for chunk in self._chunks], np.int64)
        self._starts, sizes = places.reshape(len(self._chunks), 2, len(shape)).transpose(1, 0, 2)
        self._stops = self._starts + sizes

    def read_into(self, start: int, out: Array) -> None:
        size = self._itemsize
        first, last = start // size, -(-(start + len(out)) // size)
        if (last - first) * size == len(out):
            self._read(first, last, out)
            return
        whole = np.empty((last - first) * size, np.uint8)
        self._read(first, last, whole)
        np.copyto(out, whole[start - first * size :][: len(out)])

    def view(self, start: int, stop: int) -> None:
        return None

    def _read(self, first: int, last: int, out: Array) -> None:
        """Copy the elements [first, last)."""
        elements = out.view(f"V{self._itemsize}")
        done = 0
        for box in rows(self._shape, first, last) if first < last else ():
            part = elements[done : done + box.size].reshape(box.shape)
            done += box.size
            for chunk in self._touching(box):
                common = chunk.box.intersect(box)
                if common is not None:
                    chunk.read(common, part[_slices(common, box)])

    def _touching(self, box: Box) -> Iterator[Chunk]:
        start, size = np.array((box.start, box.shape), np.int64)
        apart = (self._starts >= start + size) | (self._stops <= start)
        return (self._chunks[at] for at in np.nonzero(~apart.any(axis=1))[0])


def _slices(inner: Box, outer: Box) -> Any:
    """What takes `inner` out of an array of the elements of `outer`, as a view also where it is one element."""
    places = zip(inner.start, inner.shape, outer.start, strict=True)
    return (*(slice(a - b, a - b + n) for a, n, b in places), ...)


def rows(shape: Shape, first: int, last: int, lead: Shape = ()) -> Iterator[Box]:
    """Boxes that are the elements [first, last) of the row-major order, in order: two a dimension at most.

    Each is a range on one axis, a single index on those before and all of those after it.
    """
    axis = len(lead)
    if axis == len(shape):
        yield Box(lead, (1,) * axis)
        return
    below = shape[axis + 1 :]
    inner = prod(below)
    low, high = -(-first // inner), last // inner
    if low > high:
        yield from rows(shape, first - high * inner, last - high * inner, (*lead, high))
        return
    if first < low * inner:
        yield from rows(shape, first - (low - 1) * inner, inner, (*lead, low - 1))
    if low < high:
        yield Box((*lead, low, *(0 for _ in below)), (*(1 for _ in lead), high - low, *below))
    if high * inner < last:
        yield from rows(shape, 0, last - high * inner, (*lead, high))
