"""`dcp.load` from a store: torch.distributed.checkpoint plans, and each rank reads what it is told to, verified."""

from __future__ import annotations

import io
import os
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from cas.dtypes import DTYPES
from cas.errors import CasError, Invalid, RefConflict, Unsupported
from cas.extent import Extent, extent_of
from cas.grid import Box
from cas.leaves import Leaves
from cas.loader import Loader, Owner, Rank
from cas.nodes import Tag, TensorEntry, tensor_of
from cas.reader import BlockUse
from cas.store import Store

from .adapter import ADAPTER
from .dcp_items import INSTEAD, held_boxes
from .dcp_names import Named, PlannerBytes, named

ROUND_BYTES = 256 << 20
"""What is read before tensors that need a copy get theirs."""


class CasStorageReader(StorageReader):
    """Loads a revision with `dcp.load`: any commit whose state is a dict, however it was committed.

    Tensors are read into those of the state, where they lie on the host and fit straight into their memory; only
    the blocks under what is asked for are read. Values are made anew from the commit: a planner gets bytes that were
    pickled here and now. What was pickled when it was committed needs `allow_pickle`. `flatten=False` gives the names
    that a planner with `flatten_state_dict=False` expects. A `checkpoint_id` names the revision.

    As with `store.view`, this Store then goes on from a branch that it has not loaded or committed to before.
    """

    def __init__(
        self, store: Store, rev: str | None = None, *, flatten: bool = True, allow_pickle: bool = False
    ) -> None:
        super().__init__()
        self._store = store
        self._rev = rev
        self._flatten = flatten
        self._allow_pickle = allow_pickle
        self._rank = 0

    # -- what torch calls, in this order ------------------------------------------------------------------------

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            self._rev = os.fspath(checkpoint_id)

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        # With a parameter called `kwargs` torch would call this again after an error, and the rank that had one would
        # leave the collectives to the others.
        self._store.view(self._rev, group=None)  # so that the next commit goes on from here
        self._leaves = self._store.leaves(self._rev)
        objects = self._leaves.objects
        self._items = named(objects.tree(objects.commit(self._leaves.commit).tree), objects.tree, self._flatten)
        return Metadata(
            {name: _metadata(name, item) for name, item in self._items.items()},
            planner_data={name: item.keys for name, item in self._items.items()} if self._flatten else None,
            storage_meta=StorageMeta(checkpoint_id=self._rev, save_id=self._leaves.commit.hex()),
        )

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._rank = kwargs.get("rank", 0)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return replace(plan, storage_data=self._leaves.commit.hex())

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        commits = {plan.storage_data for plan in plans}
        if len(commits) > 1:
            raise RefConflict(f"{self._rev or 'the branch'} moved while ranks began to load it; load it again")
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        tensors = [item for item in plan.items if item.type is LoadItemType.TENSOR]
        _check_all_is_filled(tensors, getattr(planner, "state_dict", None), self._items)
        reading = _Reading(self._leaves, self._items, planner)
        for item in tensors:
            reading.add(item)
        reading.end_round()
        for item in plan.items:
            if item.type is LoadItemType.BYTE_IO:
                planner.load_bytes(item, self._bytes(self._items[item.storage_index.fqn]))
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return bool(os.fspath(checkpoint_id))

    def _bytes(self, item: Named) -> io.BytesIO:
        """A value as torch's planners expect it."""
        leaves, rank = self._leaves, Rank(self._rank)
        loader = Loader(leaves.objects, leaves.blocks, leaves.commit, None, None, self._allow_pickle, rank)
        value = loader.values(item.node, item.path)
        if type(value) is PlannerBytes:
            return value
        made = io.BytesIO()
        torch.save(value, made)
        made.seek(0)
        return made


def _metadata(name: str, item: Named) -> STORAGE_TYPES:
    """What torch is told. A tensor is one chunk, however it is stored: any box of it can be read."""
    entry = _entry(item)
    if entry is None:
        return BytesStorageMetadata()
    dtype = getattr(torch, entry.dtype, None)
    if dtype is None:
        raise Unsupported(f"{name} is {entry.dtype}, which torch {torch.__version__} does not have; use a newer one")
    size = torch.Size(entry.shape)
    chunk = ChunkStorageMetadata(torch.Size([0] * len(size)), size)
    return TensorStorageMetadata(TensorProperties(dtype=dtype), size, [chunk])


def _entry(item: Named) -> TensorEntry | None:
    """The entry of a tensor of torch."""
    if type(item.node) is not list or item.node[0] != Tag.TENSOR:
        return None
    entry = tensor_of(item.node)
    return entry if entry.framework == ADAPTER.framework else None


def _box(item: ReadItem, entry: TensorEntry) -> Box:
    """The box of the whole tensor that is asked for."""
    first = item.storage_index.offset or (0,) * len(entry.shape)
    box = Box(tuple(map(sum, zip(first, item.storage_offsets, strict=True))), tuple(item.lengths))
    box.check(entry.shape, DTYPES[entry.dtype].itemsize, Invalid)
    return box


def _check_all_is_filled(items: list[ReadItem], state: Any, known: Mapping[str, Named]) -> None:
    """`Invalid` unless all that this rank holds of a sharded tensor is read: torch's own boxes may leave out rows."""
    read: dict[str, int] = {}
    for item in items:
        read[item.dest_index.fqn] = read.get(item.dest_index.fqn, 0) + torch.Size(item.lengths).numel()
    for name, value in state.items() if isinstance(state, Mapping) else ():
        boxes = held_boxes(name, value) if name in known else None
        held = sum(box.size for box in boxes or ())
        if boxes is not None and read.get(name, 0) != held:
            raise Invalid(f"{name} is planned to be loaded in {read.get(name, 0)} of {held} elements; {INSTEAD}")


@dataclass(slots=True)
class _Reading:
    """One rank's tensors, read in rounds. `planner` says where each goes."""

    leaves: Leaves
    items: Mapping[str, Named]
    planner: LoadPlanner
    _extents: dict[str, tuple[TensorEntry, Extent]] = field(default_factory=dict)
    _uses: list[BlockUse] = field(default_factory=list)
    _endings: list[Callable[[], None]] = field(default_factory=list)
    _places: list[tuple[int, int]] = field(default_factory=list)
    _size: int = 0

    def add(self, item: ReadItem) -> None:
        """Plan the reads of one item; those of a round that is full are done."""
        name = item.storage_index.fqn
        entry, extent = self._extent(name)
        dtype, box = DTYPES[entry.dtype], _box(item, entry)
        target = self.planner.resolve_tensor(item).detach()
        if tuple(target.shape) != box.shape:
            raise Invalid(f"{name} is loaded in a box of shape {box.shape} into a tensor of {tuple(target.shape)}")
        fresh, place = None, None
        if type(target) is torch.Tensor and target.dtype is getattr(torch, entry.dtype):
            place = self._memory(name, target, box, entry)
        if place is None:
            fresh, place = ADAPTER.empty(dtype, box.shape)
        if len(place):
            self._reserve(int(np.frombuffer(place, np.uint8).ctypes.data), len(place))
            self._uses.extend(extent.uses(box, place, Owner(self.items[name].path, self.leaves.commit)))
        self._endings.append(partial(self._end, item, target, fresh))
        self._size += len(place)
        if self._size >= ROUND_BYTES:
            self.end_round()

    def end_round(self) -> None:
        """Read what is planned, and give it to the planner."""
        self.leaves.blocks.fill(self._uses)
        for end in self._endings:
            end()
        self._uses, self._endings, self._places, self._size = [], [], [], 0

    def _extent(self, name: str) -> tuple[TensorEntry, Extent]:
        if name not in self._extents:
            entry = _entry(self.items[name])
            if entry is None:
                raise Invalid(f"{name} is a value in the commit, and the planner asks for a tensor")
            itemsize = DTYPES[entry.dtype].itemsize
            self._extents[name] = entry, extent_of(entry.content, entry.shape, itemsize, self.leaves.objects)
        return self._extents[name]

    def _memory(self, name: str, target: torch.Tensor, box: Box, entry: TensorEntry) -> memoryview | None:
        try:
            return ADAPTER.host_bytes(target, DTYPES[entry.dtype], box.shape)
        except CasError as error:
            raise type(error)(f"{name} {error}") from error

    def _reserve(self, start: int, length: int) -> None:
        """End the round where another tensor of it goes to the same memory, as tied ones do: one after the other."""
        at = bisect_left(self._places, (start, 0))
        before, after = self._places[max(at - 1, 0) : at], self._places[at : at + 1]
        if any(stop > start for _, stop in before) or any(first < start + length for first, _ in after):
            self.end_round()
            at = 0
        self._places.insert(at, (start, start + length))

    def _end(self, item: ReadItem, target: torch.Tensor, fresh: torch.Tensor | None) -> None:
        if fresh is not None:
            ADAPTER.assign(target, fresh)
        self.planner.commit_tensor(item, target)
