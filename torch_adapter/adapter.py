"""PyTorch's part of a state: the entry point `torch` of the group `cas.adapters`."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter

from cas import tensors
from cas.dtypes import DTYPES, DType
from cas.errors import Invalid, Unsupported
from cas.grid import Box
from cas.tensors import Array, ArraySource, LocalShard

from . import composite, foreign, subclass
from . import device as devices
from .memory import elements, writable_bytes
from .sharded import Sharded, sharded
from .team import TorchTeam, team_of

_DTYPES: dict[torch.dtype, DType] = {
    getattr(torch, name): known for name, known in DTYPES.items() if hasattr(torch, name)
}
_TORCH = {known: dtype for dtype, known in _DTYPES.items()}
_MAX_DIMENSIONS = 64
_MADE_AS = {"complex32": torch.int32}  # torch warns about a new complex32 tensor, but not about a view


class TorchAdapter:
    """See `tensors.Adapter`."""

    framework = "torch"

    def tensor(self, value: Any) -> tensors.Tensor | tensors.Composite | None:
        kind = type(value)
        if kind is not torch.Tensor and kind is not Parameter:
            if not isinstance(value, torch.Tensor):
                return None
            held = sharded(value)
            return subclass.parts_of(value) if held is None else self._sharded(value, held)
        dtype = _DTYPES.get(value.dtype)
        if dtype is None or not _is_plain(value):
            parts = composite.parts_of(value)
            if parts is None:
                raise Unsupported(_refusal(value))
            return parts
        shape = tuple(value.shape)
        if value.is_conj() or value.is_neg():
            # The copy is nobody else's, and the memory under it holds other numbers: nothing ties to it.
            value, alias = value.detach().resolve_conj().resolve_neg(), None
        else:
            alias = _alias(value, shape)
        return tensors.Tensor.whole("torch", dtype, shape, _source(value), alias)

    def _sharded(self, value: torch.Tensor, held: Sharded) -> tensors.Tensor:
        dtype = _DTYPES.get(held.dtype)
        if dtype is None:
            raise Unsupported(f"is a sharded tensor of {held.dtype}, which this version does not store")
        shards = []
        for box, local in held.parts:
            if type(local) not in (torch.Tensor, Parameter) or not _is_plain(local):
                raise Unsupported(f"is a {type(value).__name__} whose local tensor {_refusal(local)}")
            local = local.detach().resolve_conj().resolve_neg()
            shards.append(LocalShard(box, _source(local)))
        return tensors.Tensor("torch", dtype, held.shape, shards, held.key)

    def foreign(self, value: Any) -> tuple[str, str] | None:
        return foreign.foreign(value)

    def value(self, kind: str, text: str) -> Any:
        return foreign.value(kind, text)

    def compose(self, kind: str, parts: dict[Any, Any]) -> Any:
        return composite.compose(kind, parts)

    def empty(self, dtype: DType, shape: tuple[int, ...]) -> tuple[torch.Tensor, memoryview]:
        if dtype not in _TORCH:
            raise Unsupported(f"has dtype {dtype.name}, which torch {torch.__version__} does not have; use a newer one")
        try:
            made = torch.empty(shape, dtype=_MADE_AS.get(dtype.name, _TORCH[dtype]), device="cpu")
        except RuntimeError as error:  # torch has no MemoryError of its own
            raise MemoryError(f"no memory for a tensor of shape {shape} and dtype {dtype.name}") from error
        tensor = made if made.dtype is _TORCH[dtype] else made.view(_TORCH[dtype])
        return tensor, writable_bytes(tensor).data

    def parts(self, target: Any, dtype: DType, shape: tuple[int, ...]) -> list[tuple[Box, Any]]:
        held = sharded(target) if isinstance(target, torch.Tensor) else None
        if held is None:
            return [(Box.whole(shape), target)]
        if held.dtype != _TORCH.get(dtype) or held.shape != shape:
            raise Invalid(_other_form(held.dtype, held.shape, dtype, shape))
        return list(held.parts)

    def host_bytes(self, target: Any, dtype: DType, shape: tuple[int, ...]) -> memoryview | None:
        if type(target) is not torch.Tensor and type(target) is not Parameter:
            raise Invalid(f"is a {type(target).__name__} in into=, the commit has a torch.Tensor")
        if target.dtype != _TORCH.get(dtype) or tuple(target.shape) != shape:
            raise Invalid(_other_form(target.dtype, tuple(target.shape), dtype, shape))
        if not _is_plain(target):
            raise Invalid(f"{_refusal(target)}, and cannot be filled")
        if any(step == 0 and length > 1 for step, length in zip(target.stride(), shape, strict=True)):
            raise Invalid("is an expanded tensor in into=, whose elements share memory; pass its clone()")
        if not target.is_cpu or not target.is_contiguous() or target.is_conj() or target.is_neg():
            return None
        elements(target)  # refuses a storage that was freed
        if not target.is_inference():
            torch.autograd.graph.increment_version(target)  # as any write in place: backward refuses stale values
        return writable_bytes(target).data

    def assign(self, target: torch.Tensor, value: torch.Tensor) -> None:
        with torch.inference_mode(target.is_inference()), torch.no_grad():
            target.copy_(value)

    def to_device(self, value: torch.Tensor, device: Any) -> torch.Tensor:
        try:
            return value.to(torch.device(device))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError, TypeError) as error:  # AssertionError: torch was built without it
            raise Invalid(f"cannot go to device {device!r}: {' '.join(str(error).split())}") from error

    def pinned(self, nbytes: int) -> Array:
        return devices.pinned(nbytes)

    def wait_for_copies(self) -> None:
        devices.wait_for_copies()

    def world_size(self) -> int:
        distributed = torch.distributed
        return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1

    def team(self, group: Any) -> TorchTeam | None:
        distributed = torch.distributed
        if not distributed.is_available():
            return None
        known = isinstance(group, distributed.ProcessGroup) or group is distributed.GroupMember.NON_GROUP_MEMBER
        return team_of(group) if known else None


def _source(value: torch.Tensor) -> tensors.Source:
    return ArraySource(elements(value)) if value.is_cpu else devices.DeviceSource(value)


def _other_form(has: torch.dtype, shape: tuple[int, ...], dtype: DType, wanted: tuple[int, ...]) -> str:
    return f"is a {has} tensor of shape {shape} in into=, the commit has torch.{dtype.name} and {wanted}"


def _alias(tensor: torch.Tensor, shape: tuple[int, ...]) -> tuple[Any, ...] | None:
    """Equal for tensors that are the same elements of the same storage; None if there are none.

    The storage is named by its own identity: an address would be ambiguous on devices that have none (XLA, MPS).
    Plain tuples only, which the garbage collector soon leaves alone; `torch.Size` is none.
    """
    if not tensor.numel():
        return None
    try:
        storage = tensor.untyped_storage()
    except RuntimeError as error:  # inside torch.func transforms
        raise Unsupported("has no memory of its own, as inside torch.func.vmap; commit outside of it") from error
    strides = None if tensor.is_contiguous() else tensor.stride()
    return "torch", storage._cdata, tensor.storage_offset(), shape, strides, tensor.dtype


def _is_plain(tensor: torch.Tensor) -> bool:
    strided = tensor.layout is torch.strided and not tensor.is_nested
    return strided and not tensor.is_quantized and not tensor.is_meta and tensor.ndim <= _MAX_DIMENSIONS


def _refusal(tensor: torch.Tensor) -> str:
    """Why a torch.Tensor cannot be stored, and what can."""
    if tensor.is_nested:
        return "is a nested tensor; commit its parts, as from unbind()"
    if tensor.is_quantized:
        return f"is a quantised tensor ({tensor.dtype}); commit its int_repr() with the scale and the zero point"
    if tensor.is_meta:
        return "is a tensor on the meta device, which has no data; materialise it first"
    if tensor.layout is not torch.strided:
        what = "mkldnn" if tensor.is_mkldnn else "sparse"
        return f"is a {what} tensor ({tensor.layout}); commit to_dense(), or its parts as tensors of their own"
    if tensor.ndim > _MAX_DIMENSIONS:
        return f"is a tensor of {tensor.ndim} dimensions; up to {_MAX_DIMENSIONS} are supported, reshape it"
    return f"is a tensor of {tensor.dtype}, which this version does not store; commit it as view(torch.uint8)"


ADAPTER = TorchAdapter()
