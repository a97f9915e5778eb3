"""A host tensor's memory as a numpy array.

`Tensor.numpy()` would do, but it forbids for good that the tensor's storage is ever resized, which FSDP and
`Tensor.resize_` do: committing a tensor must leave no trace on it. So numpy is shown the address.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cas.errors import Unsupported
from cas.tensors import Array

# Numbers of the same width, so that no bit pattern is ever read as a float. numpy has no integer of 16 bytes.
_TYPES = {1: "|u1", 2: "<u2", 4: "<u4", 8: "<u8", 16: "<c16"}


class _Memory:
    """What numpy takes for an array; the array keeps it, and it keeps the tensor."""

    __slots__ = ("__array_interface__", "_owner")

    def __init__(self, owner: torch.Tensor, interface: dict[str, Any]) -> None:
        self._owner = owner
        self.__array_interface__ = interface


def elements(tensor: torch.Tensor) -> Array:
    """A read-only view of a strided host tensor: its shape and strides, its elements as numbers of their width.

    `Unsupported` if the storage does not reach as far as the tensor; reading there would kill the process.
    """
    size = tensor.element_size()
    shape = tuple(tensor.shape)
    kind = _TYPES[size]
    if 0 in shape:
        return np.empty(shape, kind)
    strides = None
    span = tensor.numel()
    if not tensor.is_contiguous():
        steps = tensor.stride()
        span = 1 + sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
        strides = tuple(step * size for step in steps)
    if (tensor.storage_offset() + span) * size > tensor.untyped_storage().nbytes():
        raise Unsupported("has lost its memory: its storage was freed or shrunk; gather or restore the tensor first")
    place = (tensor.data_ptr(), True)
    return _shown(tensor, {"version": 3, "shape": shape, "typestr": kind, "data": place, "strides": strides})


def writable_bytes(tensor: torch.Tensor) -> Array:
    """The bytes of a contiguous host tensor whose storage is known to be whole."""
    nbytes = tensor.nbytes
    if not nbytes:
        return np.empty(0, np.uint8)
    place = (tensor.data_ptr(), False)
    return _shown(tensor, {"version": 3, "shape": (nbytes,), "typestr": "|u1", "data": place})


def _shown(tensor: torch.Tensor, interface: dict[str, Any]) -> Array:
    memory = _Memory(tensor, interface)
    array = np.asarray(memory)
    del memory.__array_interface__  # numpy is done with it; thousands of them would keep the garbage collector busy
    return array
