"""Small looks into large entries of a commit, without any framework: the bytes of one, the corners of a tensor."""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from .dtypes import DTYPES
from .elements import numbers
from .errors import Invalid
from .grid import Box
from .leaves import Leaves, TensorLeaf
from .loader import Owner, extent_for
from .nodes import KEYED_TAGS, Node, TensorEntry, long_of
from .objects import entries_of
from .paths import Path, format_path
from .tensors import Array

MOST_SHOWN = 10_000
"""Elements of a tensor that are read at most."""
_EDGES = (3, 2, 1)
_NOT_IN_NUMPY = ("bfloat16", "complex32", "float8")


def node_at(leaves: Leaves, path: Path) -> Node:
    """The node at a path that `Leaves.find` gave; a container's may be a reference."""
    node = leaves.objects.tree(leaves.objects.commit(leaves.commit).tree)
    for key in path:
        held = entries_of(node, leaves.objects.tree)
        if held is None:
            raise Invalid(f"there is nothing below a leaf of {format_path(path)}")
        pairs = held[1] if held[0] in KEYED_TAGS else enumerate(held[1])
        node = next(child for name, child in pairs if name == key)
    return node


def bytes_at(leaves: Leaves, path: Path) -> TensorLeaf:
    """The bytes of a long text, long bytes or a pickle at a path, as if they were a tensor of bytes."""
    held = long_of(node_at(leaves, path))
    return TensorLeaf(path, TensorEntry("numpy", "uint8", (held.nbytes,), held.content, None))


def corners(leaves: Leaves, tensor: TensorLeaf) -> tuple[Array, int | None]:
    """The tensor's numbers; of a large one only the first and last of each dimension, and how many these are.

    Types that numpy lacks come as float64 or complex128. Where even the corners are too many, the tensor is seen as
    a single dimension. At most `MOST_SHOWN` elements are read.
    """
    shape = tensor.shape
    if math.prod(shape) <= 1000:
        return _read(leaves, tensor, Box.whole(shape)), None
    for edge in _EDGES:
        sizes = [min(size, 2 * edge + 1) for size in shape]
        if math.prod(sizes) <= MOST_SHOWN:
            return _joined(leaves, tensor, edge), edge
    raise Invalid(f"{format_path(tensor.path)} has {len(shape)} dimensions, too many to print; use `cas checkout`")


def _joined(leaves: Leaves, tensor: TensorLeaf, edge: int) -> Array:
    """An array in which each long dimension is its first `edge` indexes, one that stands for the rest, and its last."""
    ranges = [_ranges(size, edge) for size in tensor.shape]
    out: Array | None = None
    for choice in product(*ranges):
        box = Box(tuple(source for source, _, _ in choice), tuple(count for _, _, count in choice))
        part = _read(leaves, tensor, box)
        if out is None:
            out = np.zeros([min(size, 2 * edge + 1) for size in tensor.shape], part.dtype)
        out[tuple(slice(target, target + count) for _, target, count in choice)] = part
    assert out is not None, "a tensor of over a thousand elements has corners"
    return out


def _ranges(size: int, edge: int) -> list[tuple[int, int, int]]:
    """(start in the tensor, start in what is shown, count) of what is read of a dimension."""
    if size <= 2 * edge + 1:
        return [(0, 0, size)]
    return [(0, 0, edge), (size - edge, edge + 1, edge)]


def _read(leaves: Leaves, tensor: TensorLeaf, box: Box) -> Array:
    dtype = DTYPES[tensor.dtype]
    owner = Owner(tensor.path, leaves.commit)
    extent = extent_for(owner, tensor.entry.content, tensor.shape, dtype.itemsize, leaves.objects)
    raw = np.empty(box.size * dtype.itemsize, np.uint8)
    if len(raw):
        leaves.blocks.fill(extent.uses(box, memoryview(raw), owner))
    return _decoded(tensor.dtype, raw).reshape(box.shape)


def _decoded(name: str, raw: Array) -> Array:
    """Elements as numpy has them; float64 or complex128 for those that it lacks, bytes for two numbers in a byte."""
    if name.endswith("_x2"):
        return raw
    if not name.startswith(_NOT_IN_NUMPY):
        return raw.view(np.dtype(name).newbyteorder("<"))
    dtype = DTYPES[name]
    found = numbers(dtype, raw.view(f"<u{dtype.itemsize}"))
    return found.view(np.complex128).reshape(-1) if name.startswith("complex") else found
