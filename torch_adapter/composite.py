"""Tensors of torch that are stored by their parts, each under its own kind.

    kind                        parts
    sparse_coo                  size, coalesced, indices, values
    sparse_csr, sparse_bsr      size, crow_indices, col_indices, values
    sparse_csc, sparse_bsc      size, ccol_indices, row_indices, values
    quantized_per_tensor        int_repr, scale, zero_point
    quantized_per_channel       int_repr, scales, zero_points, axis
    subclass                    see `subclass`; in it enum, dataclass, namedtuple, see `context`

Parts come from stores: torch is told to check them, and what it does not check is checked here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import Parameter

from cas.errors import CasError, Corrupt, Unsupported
from cas.nodes import MAX_BYTES, expect
from cas.tensors import Composite

from . import context, subclass
from .memory import elements

_ROWS, _COLUMNS = ("crow_indices", "col_indices"), ("ccol_indices", "row_indices")
_COMPRESSED = {
    "sparse_csr": (torch.sparse_csr, _ROWS),
    "sparse_bsr": (torch.sparse_bsr, _ROWS),
    "sparse_csc": (torch.sparse_csc, _COLUMNS),
    "sparse_bsc": (torch.sparse_bsc, _COLUMNS),
}
_LAYOUTS = {layout: (kind, names) for kind, (layout, names) in _COMPRESSED.items()}
_INTEGERS = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}
_CHANNELS = {torch.per_channel_affine, torch.per_channel_affine_float_qparams}
# What torch says of every such tensor that is made; the user has made one before.
_KNOWN_WARNINGS = r"torch\.quantize_per_tensor, |Sparse [A-Z]{3} tensor support is in beta"


def parts_of(value: torch.Tensor) -> Composite | None:
    """A torch.Tensor that is sparse or quantised by its parts; None for any other."""
    value = value.detach()
    if value.is_meta or value.is_nested:
        return None
    try:
        if value.layout is torch.sparse_coo:
            return _coo_parts(value)
        if value.layout in _LAYOUTS:
            return _compressed_parts(value)
    except (RuntimeError, IndexError) as error:
        raise Unsupported(f"is a sparse tensor that breaks its own rules: {_line(error)}") from error
    return _quantized_parts(value) if value.is_quantized else None


def compose(kind: str, parts: dict[Any, Any]) -> Any:
    """See `tensors.Adapter`."""
    make = _MAKERS.get(kind)
    if make is None:
        raise Unsupported(f"is a torch {kind[:40]!r}, which this release does not know; use a newer one")
    # Parameters of `into` that a part is tied to.
    parts = {name: part.detach() if type(part) is Parameter else part for name, part in parts.items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", _KNOWN_WARNINGS, UserWarning)
            return make(parts)
    except (CasError, torch.OutOfMemoryError):
        raise
    except NotImplementedError as error:
        raise Unsupported(f"cannot be made as {kind}: {_line(error)}") from error
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error):  # torch has no MemoryError of its own
            raise MemoryError(f"no memory for a {kind}") from error
        raise Corrupt(f"has parts that make no {kind}: {_line(error)}") from error
    except (IndexError, TypeError, ValueError) as error:
        raise Corrupt(f"has parts that make no {kind}: {_line(error)}") from error


def _coo_parts(value: torch.Tensor) -> Composite:
    indices, values = value._indices(), value._values()
    torch._validate_sparse_coo_tensor_args(indices, values, value.shape, value.is_coalesced())
    parts = {"size": value.shape, "coalesced": value.is_coalesced(), "indices": indices, "values": values}
    return Composite("torch", "sparse_coo", parts)


def _compressed_parts(value: torch.Tensor) -> Composite:
    kind, names = _LAYOUTS[value.layout]
    outer, inner = (getattr(value, name)() for name in names)
    torch._validate_sparse_compressed_tensor_args(outer, inner, value.values(), value.shape, value.layout)
    parts = {"size": value.shape, names[0]: outer, names[1]: inner, "values": value.values()}
    return Composite("torch", kind, parts)


def _quantized_parts(value: torch.Tensor) -> Composite | None:
    scheme = value.qscheme()
    if value.dtype not in _INTEGERS or (scheme is not torch.per_tensor_affine and scheme not in _CHANNELS):
        return None
    if value.is_cpu:
        elements(value)  # refuses a storage that was freed
    # The very memory: `int_repr` would be a copy, which is tied to nothing.
    numbers = torch.empty(0, dtype=_INTEGERS[value.dtype], device=value.device)
    numbers.set_(value.untyped_storage(), value.storage_offset(), value.size(), value.stride())
    if scheme is torch.per_tensor_affine:
        parts: dict[str, Any] = {"int_repr": numbers, "scale": value.q_scale(), "zero_point": value.q_zero_point()}
        return Composite("torch", "quantized_per_tensor", parts)
    scales, zero_points = value.q_per_channel_scales(), value.q_per_channel_zero_points()
    parts = {"int_repr": numbers, "scales": scales, "zero_points": zero_points, "axis": value.q_per_channel_axis()}
    return Composite("torch", "quantized_per_channel", parts)


def _coo(parts: dict[Any, Any]) -> torch.Tensor:
    size, coalesced, indices, values = _taken(parts, "size", "coalesced", "indices", "values")
    expect(type(coalesced) is bool and indices.dtype is torch.int64, _OTHER_PARTS)
    device, check = values.device, not values.is_meta
    return torch.sparse_coo_tensor(
        indices, values, _size(size), device=device, is_coalesced=coalesced, check_invariants=check
    )


def _compressed(kind: str, parts: dict[Any, Any]) -> torch.Tensor:
    layout, names = _COMPRESSED[kind]
    size, outer, inner, values = _taken(parts, "size", *names, "values")
    expect(outer.dtype in (torch.int32, torch.int64) and inner.dtype is outer.dtype, _OTHER_PARTS)
    device, check = values.device, not values.is_meta
    return torch.sparse_compressed_tensor(
        outer, inner, values, _size(size), device=device, layout=layout, check_invariants=check
    )


def _per_tensor(parts: dict[Any, Any]) -> torch.Tensor:
    numbers, scale, zero_point = _taken(parts, "int_repr", "scale", "zero_point")
    valid = type(scale) is float and type(zero_point) is int and -MAX_BYTES <= zero_point <= MAX_BYTES
    expect(valid and numbers.dtype in _INTEGERS.values(), _OTHER_PARTS)
    return torch._make_per_tensor_quantized_tensor(numbers, scale, zero_point)


def _per_channel(parts: dict[Any, Any]) -> torch.Tensor:
    numbers, scales, zero_points, axis = _taken(parts, "int_repr", "scales", "zero_points", "axis")
    expect(numbers.dtype in _INTEGERS.values() and type(axis) is int and 0 <= axis < numbers.ndim, _OTHER_PARTS)
    dtypes = (scales.dtype, zero_points.dtype)
    expect(dtypes in ((torch.float64, torch.int64), (torch.float32, torch.float32)), _OTHER_PARTS)
    expect(scales.shape == zero_points.shape == numbers.shape[axis : axis + 1], _OTHER_PARTS)
    return torch._make_per_channel_quantized_tensor(numbers, scales, zero_points, axis)


_OTHER_PARTS = "a sparse or quantised tensor has other parts"
_TENSORS = {"indices", "values", "int_repr", "scales", "zero_points", *_ROWS, *_COLUMNS}
_MAKERS: dict[str, Callable[[dict[Any, Any]], Any]] = {
    "sparse_coo": _coo,
    **{kind: partial(_compressed, kind) for kind in _COMPRESSED},
    "quantized_per_tensor": _per_tensor,
    "quantized_per_channel": _per_channel,
    "subclass": subclass.compose,
    "enum": context.enum_of,
    "dataclass": context.dataclass_of,
    "namedtuple": context.named_tuple_of,
}


def _taken(parts: dict[Any, Any], *names: str) -> list[Any]:
    """The parts of these names; `Corrupt` unless they are all, and those that are tensors are plain ones."""
    expect(parts.keys() == set(names), _OTHER_PARTS)
    tensors = [parts[name] for name in names if name in _TENSORS]
    expect(all(type(part) is torch.Tensor and part.layout is torch.strided for part in tensors), _OTHER_PARTS)
    expect(not any(part.is_quantized or part.is_nested for part in tensors), _OTHER_PARTS)
    expect(len({part.device for part in tensors}) == 1, _OTHER_PARTS)
    return [parts[name] for name in names]


def _size(size: Any) -> torch.Size:
    expect(type(size) is torch.Size and all(length >= 0 for length in size), _OTHER_PARTS)
    found: torch.Size = size
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
