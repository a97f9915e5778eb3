"""numpy's part of a state: arrays are tensors, scalars are values."""

from __future__ import annotations

from typing import Any

import numpy as np

from .dtypes import DTYPES, DType
from .errors import Corrupt, Invalid, Unsupported
from .grid import Box
from .tensors import Array, ArraySource, Tensor

_NAMES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
_NUMPY = {np.dtype(name): DTYPES[name] for name in _NAMES}
_SCALARS = {dtype.type: known for dtype, known in _NUMPY.items()}


def scalar_node(value: Any) -> tuple[str, bytes] | None:
    """A numpy scalar as dtype and little-endian bytes; None for anything else."""
    dtype = _SCALARS.get(type(value))
    return (dtype.name, value.tobytes()) if dtype is not None else None


def scalar_value(dtype: str, data: bytes) -> Any:
    if DTYPES[dtype] not in _NUMPY.values():
        raise Corrupt(f"a scalar has dtype {dtype}, which numpy does not have")
    return np.frombuffer(data, dtype)[0]


class ArrayAdapter:
    """See `tensors.Adapter`."""

    framework = "numpy"

    def tensor(self, value: Any) -> Tensor | None:
        if not isinstance(value, np.ndarray):
            return None
        if type(value) is not np.ndarray:
            raise Unsupported(f"is a {type(value).__name__}; pass a plain array with np.asarray")
        dtype = _NUMPY.get(value.dtype)
        if dtype is None:
            raise Unsupported(f"is an array of dtype {value.dtype}; convert it with astype to a plain numeric dtype")
        place = (value.__array_interface__["data"][0], value.shape, value.strides, value.dtype)
        return Tensor.whole("numpy", dtype, value.shape, ArraySource(value), place if value.nbytes else None)

    def foreign(self, value: Any) -> tuple[str, str] | None:
        return None

    def value(self, kind: str, text: str) -> Any:
        raise Corrupt(f"a value of numpy is called {kind}, which does not exist")

    def compose(self, kind: str, parts: dict[Any, Any]) -> Any:
        raise Corrupt(f"a value of numpy is called {kind[:40]!r}, which does not exist")

    def empty(self, dtype: DType, shape: tuple[int, ...]) -> tuple[Array, memoryview]:
        if dtype not in _NUMPY.values():
            raise Unsupported(f"has dtype {dtype.name}, which numpy does not have")
        array: Array = np.empty(shape, dtype.name)
        return array, memoryview(array.reshape(-1).view(np.uint8))

    def parts(self, target: Any, dtype: DType, shape: tuple[int, ...]) -> list[tuple[Box, Any]]:
        return [(Box.whole(shape), target)]

    def host_bytes(self, target: Any, dtype: DType, shape: tuple[int, ...]) -> memoryview | None:
        if not isinstance(target, np.ndarray) or target.dtype != np.dtype(dtype.name) or target.shape != shape:
            raise Invalid(f"is not a numpy array of dtype {dtype.name} and shape {shape}")
        if not target.flags.writeable:
            raise Invalid("is a read-only array")
        return memoryview(target.reshape(-1).view(np.uint8)) if target.flags.c_contiguous else None

    def assign(self, target: Array, value: Array) -> None:
        target[...] = value

    def to_device(self, value: Array, device: Any) -> Array:
        return value

    def pinned(self, nbytes: int) -> Array:
        return np.empty(nbytes, np.uint8)

    def wait_for_copies(self) -> None:
        return

    def world_size(self) -> int:
        return 1

    def team(self, group: Any) -> None:
        return None
