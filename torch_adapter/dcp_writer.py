"""`dcp.save` into a store: torch.distributed.checkpoint plans and leads, and each rank stores what it is told to.

    set_up_storage_writer   the coordinator sees what the commit builds on
    write_data              each rank stores its items, durable, and says what they are
    finish                  the coordinator merges that into one tree and publishes the commit

An error in any of them is raised on all ranks by torch, and nothing is published.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from cas.codecs import CodecName
from cas.errors import Invalid, Unsupported
from cas.gathered import Begun
from cas.objects import Put
from cas.refs import is_name
from cas.state import Container, Leaf
from cas.store import Store

from .dcp_items import Shard, Value, resolve
from .dcp_merging import merge
from .dcp_names import nested


class CasStorageWriter(StorageWriter):
    """Commits what `dcp.save` and `dcp.async_save` save; the commit's id is in `metadata.storage_meta.save_id`.

    The parent is the tip that the branch has when the save begins, or `parent`, a revision that must be the tip: a
    branch that moves while a save runs is a `RefConflict`. After a save in another process this Store does not know
    the new tip: load the branch, or pass `parent`, before `store.commit` goes on from it.

    What torch flattens comes back as it leaves it: int keys are texts, empty dicts are lost, and tensors that were
    tied are equal but no longer one. Values are stored as `store.commit` stores them. With `allow_pickle` others are
    pickled, and bytes that a planner makes in a way of its own are kept for a planner that reads them.
    A `checkpoint_id` names the branch.
    """

    def __init__(
        self,
        store: Store,
        branch: str = "main",
        *,
        step: int | None = None,
        message: str = "",
        metrics: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        codec: CodecName = "auto",
        parent: str | None = None,
        allow_pickle: bool = False,
    ) -> None:
        super().__init__()
        self._store: Store | None = store
        self._open = store.opener
        self._branch = branch
        self._step, self._message, self._metrics, self._meta = step, message, metrics, meta
        self._codec: CodecName = codec
        self._parent = parent
        self._allow_pickle = allow_pickle
        self._begun: Begun | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the store anew."""
        return {**self.__dict__, "_store": None, "_begun": None}

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Store]:
        if self._store is not None:
            yield self._store
            return
        with self._open() as store:
            yield store

    # -- what torch calls, in this order ------------------------------------------------------------------------

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            self._branch = os.fspath(checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if not kwargs.get("use_collectives", True):
            raise Unsupported("use_collectives=False makes a checkpoint of each rank's own; one commit needs all ranks")
        self._begun = None
        if is_coordinator:
            with self._opened() as store:
                self._begun = store.begin_parts(
                    branch=self._branch,
                    step=self._step,
                    message=self._message,
                    metrics=self._metrics,
                    meta=self._meta,
                    codec=self._codec,
                    parent=self._parent,
                )

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        items: list[Shard | Value] = []

        def leaves() -> Iterator[Leaf]:
            for item in plan.items:
                items.append(resolve(item, planner, self._allow_pickle))
                yield from items[-1].leaves

        with self._opened() as store, store.part_writer(self._codec) as part:
            cuts = iter(part.store(leaves()))
            encoded = [item.encoded([next(cuts) for _ in item.leaves], part.put) for item in items]
            took = part.finish()
        written: Future[list[WriteResult]] = Future()
        written.set_result(
            [
                WriteResult(planned.index, item.nbytes, item.stored(data, took))
                for planned, item, data in zip(plan.items, items, encoded, strict=True)
            ]
        )
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        if self._begun is None:
            raise Invalid("finish was called before set_up_storage_writer; torch.distributed.checkpoint calls both")
        merged = merge(metadata, results)
        parts = [rank[0].storage_data.took for rank in results if rank]
        raw = sum(item.nbytes for item in merged.values())
        with self._opened() as store:
            block_size = store.identity.block_size

            def build(put: Put) -> Container:
                state = {name: item.skeleton(put, block_size) for name, item in merged.items()}
                return nested(state, metadata.planner_data)

            commit = store.commit_parts(self._begun, build, parts, raw)
        metadata.storage_meta = StorageMeta(checkpoint_id=self._branch, save_id=commit.id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return is_name(os.fspath(checkpoint_id))
