"""What torch.save wrote, in a file or in a range of one, read without torch and without the tensors' bytes.

Its description is a pickle, of which only what torch's own weights-only reader knows is taken.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from math import prod
from typing import Any

from cas.dtypes import DTYPES, DType
from cas.errors import CasError
from cas.files import FileRange
from cas.grid import Box, Shape
from cas.nodes import MAX_BYTES
from cas.tensors import Source, Tensor

from .archive import records_of
from .chunks import Chunk, ChunkedSource, row_major
from .incoming import Unreadable
from .pickles import Maker, unpickle

_MAX_PICKLE = 64 << 20
_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "ComplexFloat": "complex64", "ComplexDouble": "complex128",
}  # fmt: skip
_QUANTIZED = {"QInt8": "int8", "QUInt8": "uint8", "QInt32": "int32"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that was saved: its elements lie `strides` bytes apart in `data`, from its start on."""

    dtype: DType
    shape: Shape
    strides: Shape
    data: FileRange

    @property
    def source(self) -> Source:
        if self.strides == row_major(self.shape, self.dtype.itemsize):
            return self.data
        return ChunkedSource(self.shape, self.dtype.itemsize, [self.chunk(Box.whole(self.shape))])

    def chunk(self, box: Box) -> Chunk:
        return Chunk(box, self.data, self.strides)

    def leaf(self) -> Tensor:
        """Tied to every other of the same elements in the same order."""
        alias = (self.data.file.path, self.data.start, self.dtype.name, self.shape, self.strides)
        return Tensor.whole("torch", self.dtype, self.shape, self.source, alias if self.data.nbytes else None)


@dataclass(frozen=True, slots=True)
class StoredParts:
    """A sparse or quantised tensor: `kind` and `parts` as the torch adapter stores it."""

    kind: str
    parts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Named:
    """A plain value of torch other than a dtype and a size: `kind` and `text` as the torch adapter has them."""

    kind: str
    text: str


class Size(tuple[int, ...]):
    """A torch.Size."""


def load(item: FileRange) -> Any:
    """What was saved: plain values, containers, tensors and torch's plain values as above, dtypes as `DType`.

    `Unreadable` for anything else. Containers may still be nested without end, or contain themselves.
    """
    records = records_of(item)
    if "constants.pkl" in records:
        raise Unreadable("it is a program of TorchScript")
    if "byteorder" in records and _text(records["byteorder"], 16) != b"little":
        raise Unreadable("its numbers are not little-endian")
    if "data.pkl" not in records:
        raise Unreadable("its archive lacks data.pkl")
    return unpickle(_text(records["data.pkl"], _MAX_PICKLE), _TABLE, lambda key: _storage(key, records))


def _text(record: FileRange, limit: int) -> bytes:
    if record.nbytes > limit:
        raise Unreadable(f"its description takes over {limit} bytes")
    return record.file.read(record.start, record.start + record.nbytes)


# -- tensors --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Storage:
    """The bytes that tensors share. `dtype` is None where they are of no type."""

    dtype: DType | None
    is_quantized: bool
    data: FileRange


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: DType | None
    is_quantized: bool = False


def _storage(key: Any, records: dict[str, FileRange]) -> Storage:
    if type(key) is not tuple or len(key) != 5 or key[0] != "storage":
        raise TypeError
    _, kind, name, _, count = key
    if type(kind) is not _StorageType or type(name) is not str or type(count) is not int:
        raise TypeError
    data = records.get(f"data/{name}")
    if data is None:
        raise Unreadable(f"its archive lacks data/{name:.80}")
    if count * (kind.dtype.itemsize if kind.dtype else 1) != data.nbytes:
        raise Unreadable("a tensor's bytes are not as many as its archive says")
    return Storage(kind.dtype, kind.is_quantized, data)


def _tensor(storage: Any, offset: Any, shape: Any, steps: Any, *rest: Any) -> StoredTensor:
    """What torch rebuilds a tensor from: `rest` is what only training needs, then marks that change its elements."""
    if len(rest) > 2 and rest[2]:
        raise Unreadable("a tensor is a conjugate or negative view")
    if type(storage) is not Storage or storage.is_quantized:
        raise TypeError
    return _typed(storage, offset, shape, steps, storage.dtype)


def _tensor_of(storage: Any, offset: Any, shape: Any, steps: Any, *rest: Any) -> StoredTensor:
    """The same of a storage without type: `rest` has the dtype in third place."""
    if len(rest) > 3 and rest[3]:
        raise Unreadable("a tensor is a conjugate or negative view")
    return _typed(storage, offset, shape, steps, rest[2])


def _typed(storage: Any, offset: Any, shape: Any, steps: Any, dtype: Any) -> StoredTensor:
    if type(storage) is not Storage or type(dtype) is not DType:
        raise TypeError
    shape = _shape(shape, steps, offset, dtype)
    size, order = dtype.itemsize, row_major(shape, dtype.itemsize)
    strides = tuple(o if n < 2 else step * size for n, step, o in zip(shape, steps, order, strict=True))
    last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    reach = last + size if prod(shape) else 0
    start = offset * size
    if start + reach > storage.data.nbytes:
        raise Unreadable("a tensor lies outside of its bytes")
    begin = storage.data.start + start
    return StoredTensor(dtype, shape, strides, storage.data.file.part(begin, begin + reach))


def _shape(shape: Any, steps: Any, offset: Any, dtype: DType) -> Shape:
    if not isinstance(shape, tuple) or not isinstance(steps, tuple) or len(shape) != len(steps):
        raise TypeError
    if any(type(n) is not int or not 0 <= n <= MAX_BYTES for n in (*steps, offset)):
        raise TypeError
    try:
        Box.whole(tuple(shape)).check(tuple(shape), dtype.itemsize)
    except CasError as error:
        raise Unreadable("a tensor's shape is impossible") from error
    return tuple(shape)


def _given(data: Any, *_: Any) -> Any:
    """A parameter, or a tensor of another device, is stored as the tensor that it was made of."""
    if type(data) not in (StoredTensor, StoredParts):
        raise TypeError
    return data


def _with_attributes(make: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor on which attributes were set, which are not kept. Classes of tensors other than torch's are refused."""
    if type(make) is not Maker or kind not in (_TENSOR, _PARAMETER) or type(arguments) is not tuple:
        raise TypeError
    return _given(make.make(*arguments))


def _quantized(storage: Any, offset: Any, shape: Any, steps: Any, scheme: Any, *_: Any) -> StoredParts:
    if type(storage) is not Storage or not storage.is_quantized or type(scheme) is not tuple:
        raise TypeError
    numbers = _typed(storage, offset, shape, steps, storage.dtype)
    kind, *values = scheme
    if kind == _PER_TENSOR:
        scale, zero_point = values
        if type(scale) is not float or type(zero_point) is not int or abs(zero_point) > MAX_BYTES:
            raise TypeError
        return StoredParts("quantized_per_tensor", {"int_repr": numbers, "scale": scale, "zero_point": zero_point})
    scales, zero_points, axis = values
    if kind not in _PER_CHANNEL or type(axis) is not int or not 0 <= axis < len(numbers.shape):
        raise TypeError
    for part in (scales, zero_points):
        if type(part) is not StoredTensor or part.shape != numbers.shape[axis : axis + 1]:
            raise TypeError
    parts = {"int_repr": numbers, "scales": scales, "zero_points": zero_points, "axis": axis}
    return StoredParts("quantized_per_channel", parts)


def _sparse(layout: Any, data: Any) -> StoredParts:
    """Whether the indices are within the size is checked as the tensor is loaded."""
    if type(layout) is not Named or layout.text not in _SPARSE or type(data) is not tuple:
        raise TypeError
    if layout.text == "sparse_coo":
        (indices, values, size), rest = data[:3], data[3:]
        parts = {"size": size, "coalesced": bool(rest and rest[0]), "indices": indices, "values": values}
        tensors = [indices, values]
    else:
        outer, inner, values, size = data
        parts = {"size": size, **dict(zip(_SPARSE[layout.text], (outer, inner), strict=True)), "values": values}
        tensors = [outer, inner, values]
    if type(size) is not Size or any(type(tensor) is not StoredTensor for tensor in tensors):
        raise TypeError
    return StoredParts(layout.text, parts)


# -- what a description names ---------------------------------------------------------------------------------------


def size_of(numbers: Any = ()) -> Size:
    if not isinstance(numbers, tuple | list) or len(numbers) > 64:
        raise TypeError
    if any(type(n) is not int or abs(n) > MAX_BYTES for n in numbers):
        raise TypeError
    return Size(numbers)


def _device(kind: Any, index: Any = None) -> Named:
    if type(kind) is not str or type(index) not in (int, type(None)):
        raise TypeError
    return Named("device", kind if index is None else f"{kind}:{index}")


def _layout(name: Any) -> Named:
    if type(name) is not str:
        raise TypeError
    return Named("layout", name.removeprefix("torch."))


def _encoded(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if type(text) is not str or encoding != "latin1":
        raise TypeError
    return text.encode("latin1")


def _ordered() -> OrderedDict[Any, Any]:
    """Without arguments: the entries follow one by one, checked."""
    return OrderedDict()


def _counter(counts: Any) -> Counter[Any]:
    if type(counts) is not dict:
        raise TypeError
    return Counter(counts)


_TENSOR, _PARAMETER = Named("class", "Tensor"), Named("class", "Parameter")
_PER_TENSOR = Named("qscheme", "per_tensor_affine")
_PER_CHANNEL = [Named("qscheme", f"per_channel_affine{more}") for more in ("", "_float_qparams")]
_ROWS, _COLUMNS = ("crow_indices", "col_indices"), ("ccol_indices", "row_indices")
_SPARSE = {
    "sparse_coo": (), "sparse_csr": _ROWS, "sparse_bsr": _ROWS, "sparse_csc": _COLUMNS, "sparse_bsc": _COLUMNS,
}  # fmt: skip

_TABLE: dict[str, Any] = {
    **{f"torch {name}": dtype for name, dtype in DTYPES.items()},
    **{f"torch {name}Storage": _StorageType(DTYPES[dtype]) for name, dtype in _STORAGES.items()},
    **{f"torch {name}Storage": _StorageType(DTYPES[dtype], True) for name, dtype in _QUANTIZED.items()},
    **{f"torch {scheme.text}": scheme for scheme in (_PER_TENSOR, *_PER_CHANNEL)},
    "torch UntypedStorage": _StorageType(None),
    "torch.storage UntypedStorage": _StorageType(None),
    "torch Tensor": _TENSOR,
    "torch.nn.parameter Parameter": _PARAMETER,
    "torch Size": Maker(size_of),
    "torch device": Maker(_device),
    "torch.serialization _get_layout": Maker(_layout),
    "torch._utils _rebuild_tensor_v2": Maker(_tensor),
    "torch._utils _rebuild_tensor_v3": Maker(_tensor_of),
    "torch._utils _rebuild_parameter": Maker(_given),
    "torch._utils _rebuild_parameter_with_state": Maker(_given),
    "torch._utils _rebuild_device_tensor_from_cpu_tensor": Maker(_given),
    "torch._utils _rebuild_qtensor": Maker(_quantized),
    "torch._utils _rebuild_sparse_tensor": Maker(_sparse),
    "torch._tensor _rebuild_from_type_v2": Maker(_with_attributes),
    "collections OrderedDict": Maker(_ordered),
    "collections Counter": Maker(_counter),
    "_codecs encode": Maker(_encoded),
    "builtins bytes": Maker(lambda: b""),
    "__builtin__ bytes": Maker(lambda: b""),
}
