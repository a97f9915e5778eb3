"""What a rank stores of a save that torch.distributed.checkpoint planned: its items as leaves, checked.

The plan says which box of which tensor an item is. It is compared with what the rank really holds: on torch 2.13 the
plan of a tensor that FSDP2 and tensor parallelism shard unevenly on one dimension names other rows than those.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem, WriteItemType

from cas import per_rank
from cas.committing import check_held_whole
from cas.cutting import Cut, content_of
from cas.errors import CasError, Invalid, Unsupported
from cas.gathered import Took
from cas.grid import Box
from cas.nodes import pack
from cas.objects import Put
from cas.paths import format_path
from cas.state import Composed, Container, Leaf, Walk, tree_node
from cas.tensors import Array, LocalShard, Source, Tensor

from .dcp_names import PlannerBytes
from .sharded import sharded

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredShard:
    """A box of a tensor; `ids` are those of its lists, or of the one block that the whole tensor is."""

    took: Took
    dtype: str
    shape: Shape
    box: Box
    ids: bytes


@dataclass(frozen=True, slots=True)
class StoredValue:
    """A value; `node` is how it stands in a tree, `nbytes` what it has stored beside that."""

    took: Took
    node: bytes
    nbytes: int


@dataclass(slots=True)
class Shard:
    """An item that is a box of a tensor."""

    leaf: Leaf
    dtype: str
    box: Box

    @property
    def leaves(self) -> list[Leaf]:
        return [self.leaf]

    @property
    def nbytes(self) -> int:
        return self.box.size * self.leaf.itemsize

    def encoded(self, cuts: list[list[Cut]], put: Put) -> bytes:
        return b"".join(cut.report(put) for cut in cuts[0])

    def stored(self, encoded: bytes, took: Took) -> StoredShard:
        return StoredShard(took, self.dtype, self.leaf.shape, self.box, encoded)


@dataclass(slots=True)
class Value:
    """An item that one rank stores whole."""

    skeleton: Any
    leaves: list[Leaf]

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.leaves)

    def encoded(self, cuts: list[list[Cut]], put: Put) -> bytes:
        for leaf, own in zip(self.leaves, cuts, strict=True):
            leaf.content = content_of(own, put)
        return pack(tree_node(self.skeleton, put))

    def stored(self, encoded: bytes, took: Took) -> StoredValue:
        return StoredValue(took, encoded, self.nbytes)


def resolve(item: WriteItem, planner: SavePlanner, allow_pickle: bool) -> Shard | Value:
    """What an item stands for; errors name it."""
    name = item.index.fqn
    if item.type is WriteItemType.BYTE_IO:
        return _value(name, *_visit(name, _object(item, planner, allow_pickle), allow_pickle))
    resolved = planner.resolve_data(item)
    if not isinstance(resolved, torch.Tensor):
        raise Unsupported(f"{name} is planned as a tensor, and the planner gives a {type(resolved).__name__}")
    skeleton, leaves = _visit(name, resolved, False)
    if isinstance(skeleton, Leaf) and skeleton.tensor is not None:
        return _shard(item, planner, skeleton.tensor)
    if item.type is WriteItemType.SHARD:
        raise Unsupported(f"{name} is a shard that is a {type(resolved).__name__}; only plain tensors are sharded")
    return _value(name, skeleton, leaves)


def _visit(name: str, value: Any, allow_pickle: bool) -> tuple[Any, list[Leaf]]:
    walk = Walk(allow_pickle)
    state = walk.visit({name: value})
    return state.children[0], walk.leaves


# -- values -------------------------------------------------------------------------------------------------------


def _value(name: str, skeleton: Any, leaves: list[Leaf]) -> Value:
    check_held_whole(leaves)
    if _has_per_rank(skeleton):
        raise Invalid(
            f"{name} is PerRank, of which torch.distributed.checkpoint keeps one rank's; use store.commit(group=)"
        )
    for leaf in leaves:
        leaf.tie = None  # ties are numbered through a whole state, and a rank sees items only
    return Value(skeleton, [leaf for leaf in leaves if leaf.tied_to is None])


def _has_per_rank(skeleton: Any) -> bool:
    if isinstance(skeleton, Composed):
        return skeleton.framework == per_rank.FRAMEWORK or _has_per_rank(skeleton.parts)
    return isinstance(skeleton, Container) and any(map(_has_per_rank, skeleton.children))


def _object(item: WriteItem, planner: SavePlanner, allow_pickle: bool) -> Any:
    """The value itself where its planner writes just that, else the bytes that the planner makes of it."""
    kind, lookup = type(planner), getattr(planner, "lookup_object", None)
    value = None if lookup is None else lookup(item.index)
    plain = (DefaultSavePlanner.resolve_data, DefaultSavePlanner.transform_object)
    if (kind.resolve_data, getattr(kind, "transform_object", None)) == plain:
        return value
    resolved = planner.resolve_data(item)
    if not isinstance(resolved, io.BytesIO):
        raise Unsupported(f"{item.index.fqn} is planned as bytes, and the planner gives a {type(resolved).__name__}")
    data = resolved.getvalue()
    if lookup is not None and data == _saved(value):
        return value
    if not allow_pickle:
        raise Unsupported(
            f"{item.index.fqn} is bytes that {kind.__name__} makes in a way of its own; pass allow_pickle=True to "
            "keep them as they are"
        )
    return PlannerBytes(data)


def _saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


# -- tensors ------------------------------------------------------------------------------------------------------


def _shard(item: WriteItem, planner: SavePlanner, local: Tensor) -> Shard:
    name, planned = item.index.fqn, item.tensor_data
    if planned is None:
        raise Invalid(f"{name} is planned as a tensor without a shape; the planner is to give each item tensor_data")
    shape, box = tuple(planned.size), Box(tuple(planned.chunk.offsets), tuple(planned.chunk.sizes))
    box.check(shape, local.dtype.itemsize, Invalid)
    if local.shape != box.shape:
        raise Invalid(f"{name} is planned as a box of shape {box.shape}, and its data has {local.shape}; {INSTEAD}")
    check_held(name, box, getattr(planner, "state_dict", None))
    shards = [LocalShard(box, _ReadOnce(local.source))] if box.size else []
    return Shard(Leaf((name,), shards, Tensor("torch", local.dtype, shape, shards, None)), local.dtype.name, box)


INSTEAD = "torch plans wrong boxes for some uneven layouts, use store.commit and store.load with group="


def check_held(name: str, box: Box, state: Any) -> None:
    """`Invalid` if `state` has under `name` a sharded tensor of which this rank does not hold the box."""
    value = state.get(name) if isinstance(state, Mapping) else None
    boxes = held_boxes(name, value)
    if boxes is not None and box.size and all(held.intersect(box) != box for held in boxes):
        where = ", ".join(f"{list(held.start)} of shape {list(held.shape)}" for held in boxes) or "nowhere"
        raise Invalid(
            f"{name} is planned at {list(box.start)} of shape {list(box.shape)}, and this rank holds it at {where}; "
            f"{INSTEAD}"
        )


def held_boxes(name: str, value: Any) -> list[Box] | None:
    """The boxes of a sharded tensor that this rank holds; None for anything else."""
    try:
        held = sharded(value) if isinstance(value, torch.Tensor) else None
    except CasError as error:
        raise type(error)(f"state path {format_path((name,))} {error}") from error
    return None if held is None else [box for box, _ in held.parts]


class _ReadOnce:
    """A source that is let go when all of it was read: a planner may have made the tensor for this save alone."""

    def __init__(self, source: Source) -> None:
        self.nbytes = source.nbytes
        self.device = source.device
        self._source: Source | None = source
        self._left = source.nbytes
        self._lock = threading.Lock()

    def read_into(self, start: int, out: Array) -> None:
        source = self._source
        assert source is not None, "every byte is read once"
        source.read_into(start, out)
        with self._lock:
            self._left -= len(out)
            if not self._left:
                self._source = None
