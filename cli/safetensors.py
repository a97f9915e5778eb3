"""Writing a safetensors file of any size within a fixed memory: the library's own writer needs all tensors at once.

    u64, little-endian: length of the header | header: JSON, padded with spaces to 8 bytes | the tensors' bytes

The header maps each name to dtype, shape and its range in what follows it. The ranges leave no holes. As in the
library's files the widest elements come first, so that every tensor is aligned to its elements.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cas.dtypes import DTYPES
from cas.errors import Invalid, Unsupported
from cas.leaves import TensorLeaf
from cas.paths import format_path

MAX_HEADER = 100_000_000  # what the library reads
_RESERVED = "__metadata__"
# Loaders of Hugging Face take only files that say "pt": weights in the layout of PyTorch.
_METADATA = {"format": "pt"}

_NAMES = {
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


def ordered(tensors: Mapping[str, TensorLeaf]) -> dict[str, TensorLeaf]:
    """The tensors in the order of the file."""
    return dict(sorted(tensors.items(), key=lambda item: (-DTYPES[item[1].dtype].itemsize, item[0])))


def header(tensors: Mapping[str, TensorLeaf]) -> bytes:
    """The bytes before the data of these tensors; `Unsupported` for a dtype that the format does not have."""
    record: dict[str, Any] = {_RESERVED: _METADATA}
    offset = 0
    for name, tensor in tensors.items():
        if name == _RESERVED:
            raise Invalid(f"{format_path(tensor.path)} has a name that safetensors keeps for itself; rename it")
        end = offset + tensor.nbytes
        record[name] = {"dtype": _dtype(tensor), "shape": _shape(tensor), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(record, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise Unsupported(f"{len(tensors)} tensors are too many for one safetensors file; check out a subtree")
    return len(text).to_bytes(8, "little") + text


def _dtype(tensor: TensorLeaf) -> str:
    if tensor.dtype not in _NAMES:
        path = format_path(tensor.path)
        raise Unsupported(f"{path} is {tensor.dtype}, which safetensors does not have; check out a subtree without it")
    return _NAMES[tensor.dtype]


def _shape(tensor: TensorLeaf) -> list[int]:
    """The shape in numbers; torch counts the bytes of float4, each of two numbers."""
    shape = list(tensor.shape)
    if tensor.dtype == "float4_e2m1fn_x2":
        shape[-1] *= 2
    return shape
