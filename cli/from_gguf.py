"""Reading the header of a GGUF file: metadata, and where each tensor lies. Tensors' bytes stay on the disk.

    "GGUF" | u32 version | u64 tensors | u64 keys
    each key:    text | u32 type | value
    each tensor: text | u32 dimensions | u64 each, the innermost first | u32 type | u64 offset in the data
    padding | data, each tensor at a multiple of the alignment

Numbers are little-endian, a text is a u64 length and UTF-8. The types, and how their blocks are packed, are asked of
the `gguf` library. Its own reader makes two arrays for each word of a vocabulary (16 s and 1 GB for 256,000 words with
scores and merges), and believes what a file says of its sizes, so the header is walked here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np

from cas.dtypes import DTYPES, DType
from cas.errors import Unsupported
from cas.files import FileRange, KnownFile
from cas.nodes import MAX_DIMENSIONS
from cas.tensors import Tensor

from .incoming import Parsed, Unreadable, in_pieces

MAX_HEADER = 96 << 20
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_TEXTS = 1 << 21
_MAX_NESTING = 8
_WINDOW = 1 << 20
_ALIGNMENT = "general.alignment"
_DTYPES = {
    "F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
}  # fmt: skip
_NUMBERS = {
    "UINT8": "<u1", "INT8": "<i1", "UINT16": "<u2", "INT16": "<i2", "UINT32": "<u4", "INT32": "<i4",
    "UINT64": "<u8", "INT64": "<i8", "FLOAT32": "<f4", "FLOAT64": "<f8", "BOOL": "<u1",
}  # fmt: skip


def read_gguf(file: KnownFile, name: str) -> Parsed:
    """The file as `metadata` by key and `model`, the tensors by name.

    Tensors of quantised types are uint8, a row the bytes of its blocks; `types` has what those are called. Arrays of
    numbers in the metadata are numpy's.
    """
    header = _Header(file, _library())
    if header.take(4) != b"GGUF":
        raise Unreadable("it is no GGUF file")
    version = header.number(4)
    if version not in (2, 3):
        raise Unreadable("it is big-endian" if version & 0xFFFF == 0 else f"it is of version {version} of the format")
    tensors, keys = header.count(MAX_TENSORS, "tensors"), header.count(MAX_KEYS, "keys")
    metadata = dict(_unique(header.pair() for _ in range(keys)))
    found = dict(_unique(header.tensor() for _ in range(tensors)))
    places = _places(file, header.at, _alignment(metadata), found)
    model = {key: Tensor.whole("torch", t.dtype, t.shape, places[key], None) for key, t in found.items()}
    types = {key: t.type for key, t in found.items() if t.type not in _DTYPES}
    state = {"metadata": metadata, "model": model, **({"types": types} if types else {})}
    return Parsed(state, {name: in_pieces(file, places.values())})


def _library() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise Unsupported("GGUF files need the gguf library: pip install 'cas-checkpoints[gguf]'") from error
    return gguf


def _unique(pairs: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    seen = set()
    for key, value in pairs:
        if key in seen:
            raise Unreadable(f"it has {key:.80} twice")
        seen.add(key)
        yield key, value


def _alignment(metadata: dict[str, Any]) -> int:
    alignment = metadata.get(_ALIGNMENT, 32)
    if type(alignment) is not int or not 0 < alignment <= _WINDOW or alignment & (alignment - 1):
        raise Unreadable("its alignment is no power of two up to 1 MiB")
    return alignment


def _places(file: KnownFile, end: int, alignment: int, tensors: dict[str, _Info]) -> dict[str, FileRange]:
    """Where the tensors' bytes lie: after the header, aligned, each in bytes of its own."""
    data = -(-end // alignment) * alignment
    places = {}
    for name, tensor in tensors.items():
        start = data + tensor.offset
        if tensor.offset % alignment or start + tensor.nbytes > file.nbytes:
            raise Unreadable(f"{name:.80} is not aligned, or lies beyond the end of the file")
        places[name] = file.part(start, start + tensor.nbytes)
    filled = sorted((place for place in places.values() if place.nbytes), key=lambda place: place.start)
    if any(one.start + one.nbytes > other.start for one, other in pairwise(filled)):
        raise Unreadable("two of its tensors overlap")
    return places


@dataclass(frozen=True, slots=True)
class _Info:
    """A tensor of the header; `offset` counts from the start of the data."""

    type: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _Header:
    """Reads the header from its start on, and never beyond what it may take."""

    def __init__(self, file: KnownFile, library: ModuleType) -> None:
        self.at = 0
        self._file, self._library = file, library
        self._window, self._from = b"", 0
        self._texts = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        stop = self.at + count
        if stop > min(self._file.nbytes, MAX_HEADER):
            raise Unreadable(
                "its header does not fit the file" if stop > self._file.nbytes else "its header is too large"
            )
        if stop > self._from + len(self._window):
            self._window, self._from = self._file.read(self.at, max(stop, self.at + _WINDOW)), self.at
        found = self._window[self.at - self._from : stop - self._from]
        self.at = stop
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def count(self, limit: int, what: str) -> int:
        count = self.number(8)
        if count > limit:
            raise Unreadable(f"its header speaks of {count} {what}")
        return count

    def text(self) -> str | bytes:
        """A text; the bytes of one that is no valid Unicode, as a part of a letter in a vocabulary may be."""
        self._texts += 1
        if self._texts > MAX_TEXTS:
            raise Unreadable(f"its header has over {MAX_TEXTS} texts")
        data = self.take(self.number(8))
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data

    def name(self) -> str:
        name = self.text()
        if isinstance(name, bytes):
            raise Unreadable("it has a name that is no valid Unicode")
        return name

    def pair(self) -> tuple[str, Any]:
        return self.name(), self._value(self._type(), _MAX_NESTING)

    def _type(self) -> str:
        number = self.number(4)
        try:
            return str(self._library.GGUFValueType(number).name)
        except ValueError as error:
            raise Unreadable(f"its metadata has a value of the unknown type {number}") from error

    def _value(self, kind: str, depth: int) -> Any:
        if kind == "STRING":
            return self.text()
        if kind == "ARRAY":
            return self._array(depth)
        value = np.frombuffer(self.take(np.dtype(_NUMBERS[kind]).itemsize), _NUMBERS[kind])[0].item()
        return bool(value) if kind == "BOOL" else value

    def _array(self, depth: int) -> Any:
        kind, length = self._type(), self.number(8)
        if kind in _NUMBERS:
            dtype = np.dtype(_NUMBERS[kind])
            array = np.frombuffer(self.take(length * dtype.itemsize), dtype)
            return array != 0 if kind == "BOOL" else array
        if depth == 0 or length > MAX_TEXTS:
            raise Unreadable("its metadata has a list that is nested too deep or too long")
        if kind == "ARRAY":
            self._texts += length
        return [self._value(kind, depth - 1) for _ in range(length)]

    def tensor(self) -> tuple[str, _Info]:
        name, rank = self.name(), self.number(4)
        if rank > MAX_DIMENSIONS:
            raise Unreadable(f"{name:.80} has {rank} dimensions")
        shape = tuple(self.number(8) for _ in range(rank))[::-1]
        number, offset = self.number(4), self.number(8)
        try:
            kind = self._library.GGMLQuantizationType(number)
            block, size = self._library.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise Unreadable(f"{name:.80} is of the unknown type {number}") from error
        if math.prod(n or 1 for n in shape) * size >= 2**63:
            raise Unreadable(f"{name:.80} has an impossible shape")
        if kind.name in _DTYPES:
            return name, _Info(kind.name, DTYPES[_DTYPES[kind.name]], shape, offset)
        if not shape or shape[-1] % block:
            raise Unreadable(f"{name:.80} has rows that are no whole blocks of {kind.name}")
        return name, _Info(kind.name, DTYPES["uint8"], (*shape[:-1], shape[-1] // block * size), offset)
