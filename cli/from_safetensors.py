"""Reading the header of a safetensors file: where each tensor lies. Their bytes stay on the disk.

u64, little-endian: length of the header | header: JSON | the tensors' bytes, without holes
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, TypeGuard

from cas.dtypes import DTYPES
from cas.files import KnownFile
from cas.nodes import MAX_BYTES, MAX_DIMENSIONS
from cas.tensors import Tensor

from .incoming import Parsed, Unreadable, in_pieces
from .to_safetensors import MAX_HEADER, NAMES

_DTYPES = {theirs: DTYPES[ours] for ours, theirs in NAMES.items()}
_METADATA = "__metadata__"
_MEMORY = 352 << 20


def read_safetensors(file: KnownFile, name: str) -> Parsed:
    """The tensors by name. `Unreadable` for what the format's own library would refuse."""
    length = int.from_bytes(file.read(0, 8), "little")
    if not 2 <= length <= min(MAX_HEADER, file.nbytes - 8):
        raise Unreadable("its header does not fit the file")
    header = _header(file.read(8, 8 + length))
    entries = sorted(((key, _Entry(key, value)) for key, value in header.items()), key=lambda pair: pair[1].range)
    start = 8 + length
    end = 0
    for _, entry in entries:
        if entry.start != end:
            raise Unreadable(f"{entry.name} does not begin where the tensor before it ends")
        end = entry.stop
    if start + end != file.nbytes:
        raise Unreadable(f"its tensors take {end} bytes and the file has {file.nbytes - start} for them")
    found = {key: entry.tensor(file, start) for key, entry in entries}
    state = {key: found[key] for key in header}
    return Parsed(state, {name: in_pieces(file, (tensor.source for tensor in state.values()))})


def _header(data: bytes) -> dict[str, Any]:
    if _memory(data) > _MEMORY:
        raise Unreadable("its header is too large")
    try:
        header = json.loads(data.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Unreadable("its header is not JSON") from error
    if not isinstance(header, dict):
        raise Unreadable("its header is no JSON object")
    header.pop(_METADATA, None)
    return header


def _memory(data: bytes) -> int:
    """What it takes at most to parse JSON: texts of wide letters, and what stands around each value."""
    texts = len(data) * (2 if data.isascii() else 5)
    return texts + 400 * data.count(b"{") + 120 * data.count(b"[") + 48 * data.count(b",")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Unreadable("its header has a name twice")
    return found


class _Entry:
    """One tensor of the header, checked against itself; `start` and `stop` count from the end of the header."""

    def __init__(self, name: str, value: Any) -> None:
        fields = value if isinstance(value, dict) else {}
        dtype, shape, place = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise Unreadable(f"{name} has the dtype {dtype!r:.40}, which is not known")
        if not _sizes(shape, MAX_DIMENSIONS) or not _sizes(place, 2) or len(place) != 2 or place[0] > place[1]:
            raise Unreadable(f"{name} has no valid shape and offsets")
        self.name, self.dtype, self.start, self.stop = name, _DTYPES[dtype], place[0], place[1]
        self.shape = tuple(shape)
        if self.dtype.name == "float4_e2m1fn_x2" and shape:  # two numbers a byte
            self.shape = (*shape[:-1], shape[-1] // 2)
        if math.prod(self.shape) * self.dtype.itemsize != self.stop - self.start:
            raise Unreadable(f"{name} has another size than its shape says")

    @property
    def range(self) -> tuple[int, int]:
        return self.start, self.stop

    def tensor(self, file: KnownFile, start: int) -> Tensor:
        return Tensor.whole("torch", self.dtype, self.shape, file.part(start + self.start, start + self.stop), None)


def _sizes(value: Any, limit: int) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > limit:
        return False
    return all(type(size) is int and 0 <= size <= MAX_BYTES for size in value)
