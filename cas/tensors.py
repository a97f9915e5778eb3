"""What the core knows of tensors: sources of bytes to store, and what a framework's adapter must answer."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .backend import Buffer
from .dtypes import DType
from .grid import Box
from .team import Team

Array = np.ndarray[Any, np.dtype[Any]]


class Source(Protocol):
    """The row-major bytes of something to store."""

    @property
    def nbytes(self) -> int: ...

    @property
    def device(self) -> str | None:
        """The framework whose device memory holds the bytes; None on the host."""
        ...

    def read_into(self, start: int, out: Array) -> None:
        """Copy the bytes [start, start + len(out)) to `out`."""
        ...


class DeviceSource(Source, Protocol):
    """A source in device memory."""

    def copy_to(self, out: Array) -> None:
        """Begin to copy all bytes to `out`; they are there once `Adapter.wait_for_copies` has returned."""
        ...


class BytesSource:
    """Bytes that lie in memory."""

    device = None

    def __init__(self, data: Buffer) -> None:
        self._bytes = np.frombuffer(data, np.uint8)
        self.nbytes = len(self._bytes)

    def read_into(self, start: int, out: Array) -> None:
        np.copyto(out, self._bytes[start : start + len(out)])


class ArraySource:
    """An array of any strides, of which only the rows that are asked for are ever made contiguous."""

    __slots__ = ("_array", "_flat", "nbytes")
    device = None

    def __init__(self, array: Array) -> None:
        self.nbytes = array.nbytes
        self._array = array
        self._flat = array.reshape(-1).view(np.uint8) if array.flags.c_contiguous else None

    def view(self, start: int, stop: int) -> Array | None:
        """The bytes [start, stop) where they lie, if they lie together."""
        return None if self._flat is None else self._flat[start:stop]

    def read_into(self, start: int, out: Array) -> None:
        if self._flat is not None:
            np.copyto(out, self._flat[start : start + len(out)])
            return
        size = self._array.itemsize
        first, last = start // size, -(-(start + len(out)) // size)
        rows = np.concatenate([piece.reshape(-1) for piece in rows_under(self._array, first, last)])
        np.copyto(out, rows.view(np.uint8)[start - first * size :][: len(out)])


def rows_under(array: Any, start: int, stop: int) -> Iterator[Any]:
    """Views that hold the elements [start, stop) of a tensor's row-major order, and only those.

    Works on anything with `shape`, slicing and integer indexing, so for numpy and torch alike.
    """
    if array.ndim <= 1:
        yield array.reshape(-1)[start:stop]
        return
    inner = math.prod(array.shape[1:])
    first, last = -(-start // inner), stop // inner
    if first > last:
        yield from rows_under(array[last], start - last * inner, stop - last * inner)
        return
    if start < first * inner:
        yield from rows_under(array[first - 1], start - (first - 1) * inner, inner)
    if first < last:
        yield array[first:last]
    if last * inner < stop:
        yield from rows_under(array[last], 0, stop - last * inner)


@dataclass(slots=True)
class LocalShard:
    """What this process holds of a tensor: a box of it, and the box's own elements."""

    box: Box
    source: Source


@dataclass(slots=True)
class Tensor:
    """A tensor about to be stored. Leaves with the same `alias` are one tensor under several paths.

    `shape` is that of the whole tensor, of which other processes may hold the rest.
    """

    framework: str
    dtype: DType
    shape: tuple[int, ...]
    shards: list[LocalShard]
    alias: Hashable | None

    @classmethod
    def whole(
        cls, framework: str, dtype: DType, shape: tuple[int, ...], source: Source, alias: Hashable | None
    ) -> Tensor:
        """A tensor that this process holds all of."""
        return cls(framework, dtype, shape, [LocalShard(Box.whole(shape), source)], alias)

    @property
    def source(self) -> Source:
        """The bytes of a tensor that is held whole."""
        (shard,) = self.shards
        return shard.source


@dataclass(frozen=True, slots=True)
class Composite:
    """A value about to be stored by its parts, which are any values that a state may hold."""

    framework: str
    kind: str
    parts: dict[str, Any]


class Adapter(Protocol):
    """Methods that meet something they know but cannot store raise `Unsupported` with the reason, without a path."""

    @property
    def framework(self) -> str: ...

    def tensor(self, value: Any) -> Tensor | Composite | None:
        """The value as a tensor or, where one is not enough, by its parts; None if it is none of this framework's.

        Copies nothing on the host.
        """
        ...

    def foreign(self, value: Any) -> tuple[str, str] | None:
        """A plain value of the framework (a dtype, a device) as kind and text; None if it is none."""
        ...

    def value(self, kind: str, text: str) -> Any:
        """The inverse of `foreign`; `Corrupt` for what it never made."""
        ...

    def compose(self, kind: str, parts: dict[Any, Any]) -> Any:
        """The value of these parts; `Corrupt` for what no value has, `Unsupported` for what is not known here.

        What `kind` and `parts` say comes from a store: nothing that they name is imported or called on their word.
        """
        ...

    def empty(self, dtype: DType, shape: tuple[int, ...]) -> tuple[Any, memoryview]:
        """A new host tensor, its content undefined, and its bytes (row-major, writable)."""
        ...

    def parts(self, target: Any, dtype: DType, shape: tuple[int, ...]) -> list[tuple[Box, Any]]:
        """What an existing tensor holds of one of this shape: boxes, each with the plain tensor that has its elements.

        `Invalid` if it has another dtype or shape. For all but sharded tensors it is the whole, in itself.
        """
        ...

    def host_bytes(self, target: Any, dtype: DType, shape: tuple[int, ...]) -> memoryview | None:
        """The writable bytes of an existing tensor where they lie row-major on the host, else None.

        `Invalid` if it has another dtype or shape.
        """
        ...

    def assign(self, target: Any, value: Any) -> None:
        """Copy a tensor that `empty` made into an existing one of the same dtype and shape."""
        ...

    def to_device(self, value: Any, device: Any) -> Any: ...

    def pinned(self, nbytes: int) -> Array:
        """Host memory (bytes) that the device copies to at full speed."""
        ...

    def wait_for_copies(self) -> None:
        """Return when every copy that this framework's sources began has its bytes in place."""
        ...

    def world_size(self) -> int:
        """Processes of the running job; 1 where nothing says otherwise."""
        ...

    def team(self, group: Any) -> Team | None:
        """The ranks of a group of processes that this framework made; None for anything else."""
        ...
