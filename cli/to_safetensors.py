"""Writing safetensors files of any size within a fixed memory: the library's own writer needs all tensors at once.

    u64, little-endian: length of the header | header: JSON, padded with spaces to 8 bytes | the tensors' bytes

The header maps each name to dtype, shape and its range in what follows it. The ranges leave no holes. As in the
library's files the widest elements come first, so that every tensor is aligned to its elements. Its metadata, or that
of the index over several files, says which names stand for another one's tensor, as huggingface_hub writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from cas.dtypes import DTYPES
from cas.errors import Invalid, Unsupported
from cas.paths import format_path

from . import shards
from .contents import Contents
from .folder import NewFile
from .planned import PlannedFile, small_file
from .weights import Weight, ties

MAX_HEADER = 100_000_000  # what the library reads
_RESERVED = "__metadata__"
# Loaders of Hugging Face take only files that say "pt": weights in the layout of PyTorch.
_METADATA = {"format": "pt"}

NAMES = {
    "bool": "BOOL",
    "bfloat16": "BF16",
    "complex64": "C64",
    "float4_e2m1fn_x2": "F4",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}


def plan(weights: Sequence[Weight], limit: int, contents: Contents) -> list[PlannedFile]:
    """model.safetensors, or shards of at most `limit` bytes and, last, the index over them."""
    cuts = [ordered(shard) for shard in shards.cut(weights, limit)]
    names = shards.file_names("model", "safetensors", len(cuts))
    notes = {} if len(cuts) > 1 else ties(weights)
    headers = [header(shard, notes) for shard in cuts]
    planned = [
        PlannedFile(name, partial(_write, head, shard, contents))
        for name, head, shard in zip(names, headers, cuts, strict=True)
    ]
    if len(cuts) > 1:
        held = {name: [weight.name for weight in shard] for name, shard in zip(names, cuts, strict=True)}
        data = shards.index(held, sum(weight.nbytes for weight in weights), ties(weights))
        planned.append(small_file("model.safetensors.index.json", data))
    return planned


def _write(head: bytes, shard: Sequence[Weight], contents: Contents, file: NewFile) -> None:
    file.write(head)
    contents.write(shard, file)


def ordered(weights: Sequence[Weight]) -> list[Weight]:
    """The weights in the order of the file."""
    return sorted(weights, key=lambda weight: (-DTYPES[weight.dtype].itemsize, weight.name))


def header(weights: Sequence[Weight], notes: Mapping[str, str]) -> bytes:
    """The bytes before the data of these tensors; `Unsupported` for a dtype that the format does not have."""
    record: dict[str, Any] = {_RESERVED: {**notes, **_METADATA}}
    offset = 0
    for weight in weights:
        if weight.name == _RESERVED:
            raise Invalid(f"{format_path(weight.leaf.path)} has a name that safetensors keeps for itself; use --rename")
        end = offset + weight.nbytes
        record[weight.name] = {"dtype": _dtype(weight), "shape": _shape(weight), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(record, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise Unsupported(f"{len(weights)} tensors are too many for one safetensors file; use --max-shard-size")
    return len(text).to_bytes(8, "little") + text


def _dtype(weight: Weight) -> str:
    if weight.dtype not in NAMES:
        path = format_path(weight.leaf.path)
        what = f"{path} is {weight.dtype}, which safetensors does not have"
        raise Unsupported(f"{what}; use --format torch, or check out a subtree without it")
    return NAMES[weight.dtype]


def _shape(weight: Weight) -> list[int]:
    """The shape in numbers; torch counts the bytes of float4, each of two numbers."""
    shape = list(weight.shape)
    if weight.dtype == "float4_e2m1fn_x2":
        shape[-1] *= 2
    return shape
