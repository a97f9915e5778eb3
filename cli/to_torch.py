"""Writing what torch.save writes, within a fixed memory: torch's own writer takes a tensor's bytes only at once.

An archive of stored records, as torch.load(weights_only=True, mmap=True) reads it:

    <folder>/data.pkl   the state; a tensor names its record
    <folder>/byteorder, <folder>/version
    <folder>/data/<n>   the bytes of one tensor, 64-byte aligned in the file
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import IO, Any, cast

import torch

from . import shards
from .contents import Contents
from .folder import NewFile
from .planned import PlannedFile, small_file
from .torch_state import TorchState, dtype_of, flat
from .weights import Weight

_ALIGNMENT = 64
_DATE = (1980, 1, 1, 0, 0, 0)  # the same state gives the same file
_PADDING = 0x4246  # "FB": the id of the field that torch pads with
_HEADER = 30 + 20 + 4  # bytes of a record's header beside its name and padding: fixed part, zip64 field, padding field


def plan(weights: Sequence[Weight], limit: int, contents: Contents) -> list[PlannedFile]:
    """pytorch_model.bin, or shards of at most `limit` bytes and, last, the index over them."""
    cuts = shards.cut(weights, limit)
    names = shards.file_names("pytorch_model", "bin", len(cuts))
    planned = [plan_state(name, flat(shard), contents) for name, shard in zip(names, cuts, strict=True)]
    if len(cuts) > 1:
        held = {
            name: [own for weight in shard for own in weight.names] for name, shard in zip(names, cuts, strict=True)
        }
        data = shards.index(held, sum(weight.nbytes for weight in weights), {})
        planned.append(small_file("pytorch_model.bin.index.json", data))
    return planned


def plan_state(name: str, state: TorchState, contents: Contents) -> PlannedFile:
    pickled, weights = pickle_of(state)
    return PlannedFile(name, partial(write_archive, pickled, weights, contents))


def write_archive(pickled: bytes, weights: Sequence[Weight], contents: Contents, file: NewFile) -> None:
    """Append a whole archive to the file."""
    start = file.nbytes
    with zipfile.ZipFile(cast(IO[bytes], file), "w", allowZip64=True) as archive:
        for name, data in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")):
            with archive.open(zipfile.ZipInfo(f"archive/{name}", _DATE), "w") as record:
                record.write(data)
        for number, weight in enumerate(weights):
            info = _aligned(zipfile.ZipInfo(f"archive/data/{number}", _DATE), file.nbytes - start)
            with archive.open(info, "w", force_zip64=True) as record:
                for piece in contents.pieces(weight):
                    record.write(piece)


def _aligned(info: zipfile.ZipInfo, offset: int) -> zipfile.ZipInfo:
    """Pad the record's header, which begins at `offset`, so that its data begins at a multiple of 64."""
    end = offset + _HEADER + len(info.filename)
    padding = -end % _ALIGNMENT
    info.extra = _PADDING.to_bytes(2, "little") + padding.to_bytes(2, "little") + bytes(padding)
    return info


def pickle_of(state: TorchState) -> tuple[bytes, list[Weight]]:
    """The state pickled as torch.save does it, and the weights whose records it names, in order."""
    out = io.BytesIO()
    pickler = _Pickler(out, state)
    pickler.dump(state.state)
    return out.getvalue(), list(pickler.keys)


class _Storage:
    """Stands for the storage of one weight."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight


class _Pickler(pickle.Pickler):
    def __init__(self, out: io.BytesIO, state: TorchState) -> None:
        super().__init__(out, protocol=2)
        self.keys: dict[Weight, str] = {}
        self._state = state

    def reducer_override(self, value: Any) -> Any:
        weight = self._state.weight(value) if isinstance(value, torch.Tensor) else None
        if weight is None:
            return NotImplemented
        dtype, shape = dtype_of(weight), weight.shape
        strides = torch.empty(shape, device="meta").stride()
        hooks: OrderedDict[str, Any] = OrderedDict()
        place = (_Storage(weight), 0, shape, strides, False, hooks)
        if dtype in torch.storage._new_dtypes():
            return torch._utils._rebuild_tensor_v3, (*place, dtype)
        return torch._utils._rebuild_tensor_v2, place

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        weight = value.weight
        dtype = dtype_of(weight)
        key = self.keys.setdefault(weight, str(len(self.keys)))
        if dtype in torch.storage._new_dtypes():
            return "storage", torch.UntypedStorage, key, "cpu", weight.nbytes
        kind = getattr(torch, torch.storage._dtype_to_storage_type_map()[dtype])
        return "storage", kind, key, "cpu", weight.nbytes // dtype.itemsize
