"""What all ranks of a save stored, merged by name: each tensor of boxes that tile it, each value of one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult

from cas.dtypes import DTYPES
from cas.errors import Invalid
from cas.grid import Box, cell_size, covers
from cas.nodes import unpack
from cas.objects import Put
from cas.plan import Pending
from cas.state import Leaf
from cas.tensors import Tensor

from .dcp_items import INSTEAD, StoredShard, StoredValue


@dataclass(slots=True)
class MergedTensor:
    """A tensor: by box the ids that its rank reports."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    boxes: list[tuple[Box, bytes]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def add(self, part: StoredShard) -> None:
        if (part.dtype, part.shape) != (self.dtype, self.shape):
            raise Invalid(
                f"{self.name} is {self.dtype} of shape {self.shape} on one rank and {part.dtype} of shape "
                f"{part.shape} on another; save the same tensor on all"
            )
        if part.box.size:
            self.boxes.append((part.box, part.ids))

    def check(self) -> None:
        if not covers(self.shape, [box for box, _ in self.boxes]):
            raise Invalid(
                f"{self.name} of shape {self.shape} is not tiled by what its ranks were told to save; {INSTEAD}"
            )

    def skeleton(self, put: Put, block_size: int) -> Leaf:
        tensor = Tensor("torch", DTYPES[self.dtype], self.shape, [], None)
        leaf = Leaf((self.name,), [], tensor)
        boxes = sorted(self.boxes, key=lambda held: held[0].start)
        pending = Pending(leaf, [box for box, _ in boxes], [], cell_size(self.nbytes, block_size))
        pending.settle([ids for _, ids in boxes], put)
        return leaf


@dataclass(slots=True)
class MergedValue:
    """A value as it stands in a tree."""

    node: bytes
    nbytes: int

    def skeleton(self, put: Put, block_size: int) -> Any:
        return unpack(self.node, "a rank's value")


def merge(metadata: Metadata, results: Sequence[Sequence[WriteResult]]) -> dict[str, MergedTensor | MergedValue]:
    """Everything by name, in the order of the plan; `Invalid` names what would be lost."""
    found: dict[str, MergedTensor | MergedValue] = dict.fromkeys(metadata.state_dict_metadata, _NOTHING)
    for result in (result for rank in results for result in rank):
        name, part = result.index.fqn, result.storage_data
        held = found.get(name, _NOTHING)
        if isinstance(part, StoredShard) and (held is _NOTHING or isinstance(held, MergedTensor)):
            if not isinstance(held, MergedTensor):
                held = found[name] = MergedTensor(name, part.dtype, part.shape)
            held.add(part)
        elif isinstance(part, StoredValue) and held is _NOTHING:
            found[name] = MergedValue(part.node, part.nbytes)
        else:
            raise Invalid(f"{name} is written by several ranks as a value, of which one would be lost; rename it")
    for name, item in found.items():
        if item is _NOTHING:
            raise Invalid(f"{name} is in the plan and was written by no rank; save it again with another planner")
        if isinstance(item, MergedTensor):
            item.check()
    return found


_NOTHING = MergedValue(b"", 0)
