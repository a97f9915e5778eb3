"""Writing a directory for torch.distributed.checkpoint.load, within a fixed memory and as if by one process.

__0_0.distcp ...   the tensors and values one after another, each as torch.save writes it
.metadata          what there is, and where: torch's own classes, pickled
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from cas.errors import Invalid

from . import shards
from .contents import Contents
from .folder import NewFile
from .planned import PlannedFile
from .to_torch import pickle_of, write_archive
from .torch_state import TorchState, dtype_of
from .weights import Weight


def plan(state: TorchState, weights: Sequence[Weight], limit: int, contents: Contents) -> list[PlannedFile]:
    """Data files of at most `limit` bytes of tensors; then `.metadata`, without which there is no checkpoint."""
    made = _Checkpoint(state, contents)
    cuts = shards.cut(weights, limit)
    names = [f"__0_{number}.distcp" for number in range(len(cuts) + 1)]
    planned = [
        PlannedFile(name, partial(made.write_tensors, shard, name)) for name, shard in zip(names, cuts, strict=False)
    ]
    if made.values:
        planned.append(PlannedFile(names[-1], partial(made.write_values, names[-1])))
    return [*planned, PlannedFile(".metadata", made.write_metadata)]


class _Checkpoint:
    """Remembers where things went, for `.metadata`. Tied tensors lie in one place under several names."""

    def __init__(self, state: TorchState, contents: Contents) -> None:
        if not isinstance(state.state, dict):
            raise Invalid("the state is no dict, as a distributed checkpoint is; use --format torch")
        try:
            flattened, self._paths = flatten_state_dict(state.state)
        except ValueError as error:
            raise Invalid("two entries of the state would get one name; use --format torch") from error
        self.values = {name: value for name, value in flattened.items() if state.weight(value) is None}
        self._tensors: dict[Weight, list[str]] = {}
        for name, value in flattened.items():
            weight = state.weight(value)
            if weight is not None:
                self._tensors.setdefault(weight, []).append(name)
        self._state = state
        self._flattened = flattened
        self._contents = contents
        self._entries: dict[str, Any] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}

    def write_tensors(self, weights: Sequence[Weight], name: str, file: NewFile) -> None:
        for weight in weights:
            names = self._tensors.get(weight)
            if names is None:
                continue  # a tuple holds it, which torch takes for a value
            place = self._append(self._flattened[names[0]], name, file)
            zero, shape = torch.Size([0] * len(weight.shape)), torch.Size(weight.shape)
            properties, chunks = TensorProperties(dtype_of(weight)), [ChunkStorageMetadata(zero, shape)]
            for own in names:
                self._entries[own] = TensorStorageMetadata(properties, shape, chunks)
                self._places[MetadataIndex(own, zero)] = place

    def write_values(self, name: str, file: NewFile) -> None:
        for own, value in self.values.items():
            self._entries[own] = BytesStorageMetadata()
            self._places[MetadataIndex(own)] = self._append(value, name, file)

    def write_metadata(self, file: NewFile) -> None:
        entries = {name: self._entries[name] for name in self._paths}
        file.write(pickle.dumps(Metadata(entries, self._paths, self._places, StorageMeta())))

    def _append(self, value: Any, name: str, file: NewFile) -> _StorageInfo:
        start = file.nbytes
        pickled, weights = pickle_of(self._state.part(value))
        write_archive(pickled, weights, self._contents, file)
        return _StorageInfo(name, start, file.nbytes - start)
