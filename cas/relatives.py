"""Finding out which commit a state resembles, by sampling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest

import numpy as np

from .bases import Bases
from .block import ObjectId
from .codecs import Changes, Encoder, Format
from .counterparts import Counterparts, Place, places
from .cutting import cuts_of
from .dtypes import DType
from .errors import CasError
from .paths import Path
from .reader import Objects
from .state import Leaf
from .tensors import Array

PROBES = 6
CANDIDATES = 32
_PROBE_BYTES = 256 << 10
_WORTH = 0.9
"""Of the bytes without a base: above, what would be saved is not worth that every load reads two states."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A block of a state: where it lies in which tensor, and its bytes."""

    path: Path
    dtype: DType
    shape: tuple[int, ...]
    place: Place
    data: Array


def probes_of(leaves: Iterable[Leaf], block_size: int) -> Iterator[Probe]:
    """A block from the middle of each of the largest tensors of a state that is about to be stored."""
    tensors = (leaf for leaf in leaves if leaf.tensor is not None and leaf.tied_to is None and leaf.shards)
    for leaf in nlargest(PROBES, tensors, key=lambda leaf: leaf.nbytes):
        for cut in cuts_of(leaf, block_size)[:1]:
            number = (len(cut.edges) - 1) // 2
            start, stop = cut.edges[number : number + 2]
            data = np.empty(stop - start, np.uint8)
            cut.source.read_into(start, data)
            place = places(cut.box, [start, stop], leaf.shape, leaf.itemsize)[0]
            assert leaf.tensor is not None, "only tensors are looked at"
            yield Probe(leaf.path, leaf.tensor.dtype, leaf.shape, place, data)


def nearest(
    probes: Iterable[Probe], candidates: Sequence[ObjectId], objects: Objects, bases: Bases, encoder: Encoder
) -> ObjectId | None:
    """The commit from which the probes differ least; None where no delta is worth its while.

    Of many candidates the last few are looked at.
    """
    wanted = list(probes)
    limit = _WORTH * sum(_size_whole(probe, encoder) for probe in wanted)
    best: ObjectId | None = None
    for candidate in list(candidates)[-CANDIDATES:]:
        there = Counterparts(objects, candidate)
        size = sum(_size(probe, there, bases, encoder) for probe in wanted)
        if size < limit:
            best, limit = candidate, size
    return best


def _size(probe: Probe, there: Counterparts, bases: Bases, encoder: Encoder) -> float:
    """The bytes of a probe, stored as a change of its counterpart if that is smaller."""
    name = there.at(probe.path, probe.dtype, probe.shape, probe.place)
    whole = _size_whole(probe, encoder)
    if name is None:
        return whole
    try:
        base = np.frombuffer(bases.block(name, len(probe.data)), np.uint8)
    except CasError:
        return whole
    piece, old = _piece(probe.data, probe.dtype), _piece(base, probe.dtype)
    if np.array_equal(piece, old):
        return 0
    stored = encoder.encode_delta(piece, memoryview(old), Changes(probe.dtype))
    return whole if stored is None else min(whole, len(stored))


def _size_whole(probe: Probe, encoder: Encoder) -> int:
    return len(encoder.encode(_piece(probe.data, probe.dtype), Format(probe.dtype), "planes")[1])


def _piece(data: Array, dtype: DType) -> Array:
    """The middle of a block: beginnings are often unlike the rest."""
    size = min(len(data), _PROBE_BYTES) // dtype.width * dtype.width
    start = (len(data) - size) // 2 // dtype.width * dtype.width
    return data[start : start + size]
