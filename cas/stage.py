"""The stage: a host copy of a state, taken before training goes on, in buffers that are reused."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import cast

import numpy as np

from . import frameworks
from .crew import Crew
from .state import Leaf
from .tensors import Array, ArraySource, DeviceSource, LocalShard, Source

_ALIGNMENT = 64
_TASK_BYTES = 16 << 20
_Copy = tuple[Source, int, Array]
"""A source, the byte to start at, and where its bytes go."""


class Stage:
    """One state's worth of memory, kept from commit to commit. Only one staged state exists at a time, and one aside.

    Fresh memory costs as much as the copy itself, so the second and later commits are faster.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._slabs: dict[str | None, Array] = {}
        self._aside: dict[str | None, Array] = {}

    def hold(self, leaves: Iterable[Leaf]) -> None:
        """Copy the bytes of every leaf, tied ones once, and let the leaves read from the copy from now on."""
        by_device: dict[str | None, list[LocalShard]] = {}
        for leaf in leaves:
            if leaf.tied_to is None:
                for shard in leaf.shards:
                    by_device.setdefault(shard.source.device, []).append(shard)
        for device, held in by_device.items():
            places = self._places(device, held)
            if device is None:
                self._copy_host(held, places)
            else:
                for shard, place in zip(held, places, strict=True):
                    cast(DeviceSource, shard.source).copy_to(place)
                frameworks.named(device).wait_for_copies()
            for shard, place in zip(held, places, strict=True):
                shard.source = ArraySource(place)
        for leaf in leaves:
            if leaf.tied_to is not None:
                leaf.shards[:] = leaf.tied_to.shards  # let go of the caller's memory here too

    def set_aside(self) -> None:
        """Leave what is staged where it is until this is called again; what comes next is staged elsewhere."""
        self._slabs, self._aside = self._aside, self._slabs

    def _places(self, device: str | None, shards: list[LocalShard]) -> list[Array]:
        starts, total = [], 0
        for shard in shards:
            starts.append(total)
            total += -(-shard.source.nbytes // _ALIGNMENT) * _ALIGNMENT
        slab = self._slabs.get(device)
        if slab is None or len(slab) < total:
            self._slabs.pop(device, None)
            slab = np.empty(total, np.uint8) if device is None else frameworks.named(device).pinned(total)
            self._slabs[device] = slab
        return [slab[start : start + shard.source.nbytes] for start, shard in zip(starts, shards, strict=True)]

    def _copy_host(self, shards: list[LocalShard], places: list[Array]) -> None:
        with Crew(self._threads) as crew:
            task: list[_Copy] = []
            size = 0
            for shard, place in zip(shards, places, strict=True):
                for start in range(0, shard.source.nbytes, _TASK_BYTES):
                    stop = min(shard.source.nbytes, start + _TASK_BYTES)
                    task.append((shard.source, start, place[start:stop]))
                    size += stop - start
                    if size >= _TASK_BYTES:
                        crew.submit(partial(_copy, task))
                        task, size = [], 0
            crew.submit(partial(_copy, task))


def _copy(task: list[_Copy]) -> None:
    for source, start, out in task:
        source.read_into(start, out)
