"""What this process holds of a sharded tensor, as boxes of the whole tensor: DTensor, and the older ShardedTensor.

A DTensor has one placement for each dimension of its device mesh. Each that shards cuts what those before it left,
as `torch.chunk` does; where several shard one tensor dimension, their order decides who holds what. It is from left
to right but for `_StridedShard`: its split factor is the product of the mesh dimensions on its right that were
applied before it. FSDP2 over tensor parallelism makes such tensors: it shards what TP left.

torch's own `compute_local_shape_and_global_offset` takes a strided shard for pieces that are joined and then cut
again, which is another layout where rows do not divide evenly: on torch 2.13, 7 rows on a 3 x 2 mesh of FSDP2 over TP
lose one. So the boxes are computed here, and every one is compared with the local tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from typing import Any

import torch
from torch.nn import Parameter

from cas.errors import Invalid, Unsupported
from cas.grid import Box


@dataclass(frozen=True, slots=True)
class Sharded:
    """A tensor of `shape` of which this process holds `parts`: boxes with plain local tensors of their shapes.

    `key` is equal for tensors that are one on this rank: the same elements of the same storage in the same boxes. A
    shard without elements has one as long as its storage has bytes (FSDP2 pads it), which says only that it lies at
    the same place: ask all ranks. None where nothing can be said.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[tuple[Box, torch.Tensor], ...]
    key: Hashable | None = None


def sharded(value: torch.Tensor) -> Sharded | None:
    """What this process holds of a tensor of a sharded kind, nothing copied; None for any other tensor.

    Parts have elements; a rank outside of the mesh has none. `Invalid` or `Unsupported`, without a path, for what
    cannot be told from this rank alone. That the parts of all ranks tile the tensor is for the caller to check: a
    layout that was misunderstood shows as a refusal on one rank at least, not always on this one.
    """
    held = _held(value)
    if held is None:
        return None
    return replace(held, parts=tuple((box, local) for box, local in held.parts if box.size), key=_key(held))


def _key(held: Sharded) -> Hashable | None:
    if not held.parts:
        return None
    places = [_place(local) for _, local in held.parts]
    if None in places:
        return None
    boxes = ((box.start, box.shape) for box, _ in held.parts)
    return "torch", held.shape, held.dtype, tuple(zip(boxes, places, strict=True))


def _place(local: torch.Tensor) -> tuple[Any, ...] | None:
    """Where a plain tensor's elements lie; the storage goes by its identity, as devices may have no addresses."""
    if type(local) is not torch.Tensor or local.layout is not torch.strided or local.is_conj() or local.is_neg():
        return None
    storage = local.untyped_storage()
    strides = None if local.is_contiguous() else local.stride()
    return (storage._cdata, local.storage_offset(), strides) if storage.nbytes() else None


def _held(value: Any) -> Sharded | None:
    """As `sharded`, with the parts that have no elements."""
    if type(value) is torch.Tensor or type(value) is Parameter:
        return None
    if isinstance(value, _loaded("torch.distributed.tensor", "DTensor")):
        return _of_dtensor(value)
    if isinstance(value, _loaded("torch.distributed._shard.sharded_tensor", "ShardedTensor")):
        return _of_sharded_tensor(value)
    return None


def _loaded(module: str, name: str) -> Any:
    """A class of torch if its module was imported, else none: importing DTensor takes half as long as torch itself.

    Without the module there is no instance either.
    """
    return getattr(sys.modules.get(module), name, ())


def _of_dtensor(value: Any) -> Sharded:
    shape, mesh = tuple(value.shape), value.device_mesh
    orders = _orders(value, shape)
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return Sharded(shape, value.dtype, ())
    with torch.no_grad():
        local = value.to_local()
    if isinstance(local, _loaded("torch.distributed.tensor._shards_wrapper", "LocalShardsWrapper")):
        # Its offsets are those in the whole tensor, whatever the placements are; without shards it still lists one.
        shards = local.local_shards()
        boxes = [Box(tuple(at), tuple(part.shape)) for part, at in zip(shards, local.local_offsets(), strict=False)]
        return _checked("is a DTensor of local shards", shape, value.dtype, zip(boxes, shards, strict=True))
    if isinstance(local, _loaded("torch.distributed._functional_collectives", "AsyncCollectiveTensor")):
        local = local.wait()
    box = _box(shape, orders, mesh.shape, coordinate)
    placements = ", ".join(map(repr, value.placements))
    return _checked(f"is a DTensor with the placements {placements}", shape, value.dtype, [(box, local)])


def _of_sharded_tensor(value: Any) -> Sharded:
    about = value.metadata()
    parts = [
        (Box(tuple(map(int, shard.metadata.shard_offsets)), tuple(map(int, shard.metadata.shard_sizes))), shard.tensor)
        for shard in value.local_shards()
    ]
    return _checked("is a ShardedTensor", tuple(about.size), about.tensor_properties.dtype, parts)


def _checked(
    what: str, shape: tuple[int, ...], dtype: torch.dtype, parts: Iterable[tuple[Box, torch.Tensor]]
) -> Sharded:
    """The parts, each box within the tensor and its local tensor of its shape; of any shape where both are empty."""
    found = []
    for box, local in parts:
        if local.dtype != dtype:
            raise Invalid(f"{what} of {dtype} whose local tensor is of {local.dtype}; convert it to one dtype")
        fits = tuple(local.shape) == box.shape or not (box.size or local.numel())
        if not fits or not box.within(shape):
            raise Invalid(
                f"{what} of shape {shape} whose part on this rank is the box at {box.start} of shape {box.shape}, "
                f"but whose local tensor has shape {tuple(local.shape)}; make it again with its true shape and layout"
            )
        found.append((box, local.detach()))
    return Sharded(shape, dtype, tuple(found))


def _orders(value: Any, shape: tuple[int, ...]) -> list[list[int]]:
    """For each tensor dimension, the mesh dimensions that shard it in the order in which they were applied.

    From right to left, each mesh dimension is put behind those first ones whose sizes multiply to its split factor.
    Mesh dimensions of size 1 make more than one place right; they cut nothing.
    """
    sizes = value.device_mesh.shape
    orders: list[list[int]] = [[] for _ in shape]
    strided = False
    for at in reversed(range(len(sizes))):
        cut = _cut(value, at, len(shape))
        if cut is None:
            continue
        dim, factor = cut
        before = list(accumulate((sizes[other] for other in orders[dim]), mul, initial=1))
        if factor not in before:
            raise Invalid(
                f"is a DTensor with {value.placements[at]!r} on mesh dimension {_name(value, at)}, whose rows "
                "interleave on the ranks; redistribute it to Shard or Replicate before committing"
            )
        orders[dim].insert(before.index(factor), at)
        strided |= factor != 1
    # Newer versions can name the order instead. There torch gives it for every tensor without strided shards.
    for dim, mesh_dims in getattr(value._spec, "shard_order", None) or ():
        if list(mesh_dims) != sorted(mesh_dims):
            if strided:
                raise Unsupported(
                    "is a DTensor with both strided shards and a shard order; redistribute it to Shard or Replicate"
                )
            orders[dim] = list(mesh_dims)
    return orders


def _cut(value: Any, at: int, ndim: int) -> tuple[int, int] | None:
    """The tensor dimension that the mesh dimension `at` shards and the split factor; None if it replicates."""
    from torch.distributed.tensor.placement_types import Partial, Replicate, Shard, _StridedShard

    placement = value.placements[at]
    kind = type(placement)
    if kind is Replicate:
        return None
    if isinstance(placement, Partial):
        raise Invalid(
            f"is a DTensor with a Partial placement on mesh dimension {_name(value, at)}; "
            "reduce it with redistribute before committing"
        )
    if kind is not Shard and kind is not _StridedShard:
        raise Unsupported(
            f"is a DTensor with {placement!r} on mesh dimension {_name(value, at)}, a placement that is not known; "
            "redistribute it to Shard or Replicate before committing"
        )
    if not 0 <= placement.dim < ndim:
        raise Invalid(
            f"is a DTensor of {ndim} dimensions with {placement!r} on mesh dimension {_name(value, at)}; "
            "make it again with its true shape and layout"
        )
    return placement.dim, placement.split_factor if kind is _StridedShard else 1


def _name(value: Any, at: int) -> str:
    names = value.device_mesh.mesh_dim_names
    return names[at] if names else str(at)


def _box(shape: tuple[int, ...], orders: list[list[int]], sizes: Sequence[int], coordinate: Sequence[int]) -> Box:
    """The part of the rank at `coordinate` in a mesh of `sizes`, each dimension cut in its order as by torch.chunk."""
    start, lengths = [], []
    for length, order in zip(shape, orders, strict=True):
        begin = 0
        for at in order:
            chunk = -(-length // sizes[at])
            skip = min(chunk * coordinate[at], length)
            begin, length = begin + skip, min(chunk, length - skip)
        start.append(begin)
        lengths.append(length)
    return Box(tuple(start), tuple(lengths))
