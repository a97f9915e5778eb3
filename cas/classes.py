"""Sorting the elements of a block by the exponents of its base, for codec `delta`, which gives the rules (delta.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MAX_CLASSES = 8
PIECE = 1 << 16  # elements worked on at a time, so that later passes find their data in the cache
UNSIGNED = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}
_PAIR: dict[int, np.dtype[Any]] = {1: np.dtype("<u2"), 2: np.dtype("<u4"), 4: np.dtype("<u8"), 8: np.dtype("<c16")}
_KEYS = np.arange(MAX_CLASSES * MAX_CLASSES + 1, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Classes:
    """How the base sorts the elements of a block: `count`, `shift` and `low` of the stored form."""

    count: int
    shift: int
    low: int


KEPT = Classes(1, 0, 0)
"""Not sorted."""


@dataclass(frozen=True, slots=True)
class Order:
    """Elements sorted by class: the old places of the sorted `pairs`; the stretches of the new order, `runs` of
    the first or second elements (0, 1) of these pairs, from where to where; and the `sizes` of the classes."""

    pairs: Array
    runs: list[tuple[int, int, int]]
    sizes: list[int]


class Scratch:
    """Arrays that are kept from call to call."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def array(self, name: str, n: int, width: int) -> Array:
        """`n` unsigned integers of `width` bytes in the array of this name; what it held is lost."""
        if name not in self._arrays or self._arrays[name].nbytes < n * width:
            self._arrays[name] = np.empty(n * width, np.uint8)
        return self._arrays[name][: n * width].view(UNSIGNED[width])


def spans(n: int) -> Iterator[slice]:
    """The pieces of `n` elements to work on."""
    return (slice(begin, min(begin + PIECE, n)) for begin in range(0, n, PIECE))


def order_of(old: Array, classes: Classes, scratch: Scratch) -> Order:
    """The order that the base `old`, of an even number of elements, gives."""
    keys = _keys(old, classes, scratch)
    pairs = np.argsort(keys, kind="stable")  # of single bytes: one counting pass, 2 ns a pair
    ordered = scratch.array("ordered keys", len(keys), 1)
    bounds = np.searchsorted(np.take(keys, pairs, out=ordered, mode="clip"), _KEYS).tolist()
    runs, sizes = [], []
    for own in range(classes.count):
        stretches = [(0, bounds[MAX_CLASSES * own], bounds[MAX_CLASSES * (own + 1)])]
        stretches += [(1, *bounds[key : key + 2]) for key in range(own, MAX_CLASSES * classes.count, MAX_CLASSES)]
        runs += stretches
        sizes.append(sum(stop - start for _, start, stop in stretches))
    return Order(pairs, runs, sizes)


def _keys(old: Array, classes: Classes, scratch: Scratch) -> Array:
    """For each pair of elements of the base: 8 times the class of the first, plus that of the second."""
    keys, own = scratch.array("keys", len(old) // 2, 1), scratch.array("classes", PIECE, 1)
    values, firsts = scratch.array("values", PIECE, old.itemsize), scratch.array("firsts", PIECE // 2, 2)
    for span in spans(len(old)):
        part = old[span]
        n = len(part)
        np.add(part, part, out=values[:n])
        np.right_shift(values[:n], classes.shift, out=values[:n])
        np.copyto(own[:n], values[:n], casting="unsafe")
        # five times as fast as maximum, then minimum
        np.clip(own[:n], classes.low, classes.low + classes.count - 1, out=own[:n])
        np.subtract(own[:n], classes.low, out=own[:n])
        both, first = own[:n].view(UNSIGNED[2]), firsts[: n // 2]  # the first of a pair is the low byte
        np.left_shift(both, 3, out=first)
        np.right_shift(both, 8, out=both)
        np.bitwise_or(both, first, out=both)
        np.copyto(keys[span.start // 2 : span.stop // 2], both, casting="unsafe")
    return keys


def sort(elements: Array, order: Order, scratch: Scratch) -> Array:
    """`elements` in the new order."""
    n, width = len(elements), elements.itemsize
    gathered, ordered = scratch.array("gathered", n, width), scratch.array("sorted", n, width)
    np.take(elements.view(_PAIR[width]), order.pairs, out=gathered.view(_PAIR[width]), mode="clip")
    halves, at = (gathered[0::2], gathered[1::2]), 0
    for half, start, stop in order.runs:
        ordered[at : at + stop - start] = halves[half][start:stop]
        at += stop - start
    return ordered


def unsort(ordered: Array, order: Order, elements: Array, scratch: Scratch) -> None:
    """Fill `elements`: the inverse of `sort`."""
    n, width = len(elements), elements.itemsize
    gathered = scratch.array("gathered", n, width)
    halves, at = (gathered[0::2], gathered[1::2]), 0
    for half, start, stop in order.runs:
        halves[half][start:stop] = ordered[at : at + stop - start]
        at += stop - start
    elements.view(_PAIR[width])[order.pairs] = gathered.view(_PAIR[width])
