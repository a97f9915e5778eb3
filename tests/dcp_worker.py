"""Ranks of `test_dcp_storage`: what they save and load through torch.distributed.checkpoint."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor, init_from_local_shards
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import cas
from cas.torch import CasStorageReader, CasStorageWriter

WIDE = (7, 300_000)


def whole(seed: int = 0) -> dict[str, Any]:
    """What all ranks hold together."""
    torch.manual_seed(seed)
    return {
        "model": {"rows": torch.randn(WIDE), "columns": torch.randn(600, 1000), "few": torch.arange(2)},
        "copy": torch.randn(50, 1000),
        "layers": [torch.randn(3), {"lr": 0.1}],
        "step": seed,
        "note": "x" * 70_000,
    }


def split(state: dict[str, Any], size: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (size,))
    model = state["model"]
    spread = {name: distribute_tensor(model[name], mesh, [Shard(name == "columns")]) for name in model}
    return {**state, "model": spread, "copy": distribute_tensor(state["copy"], mesh, [Replicate()])}


def empty_like(state: dict[str, Any]) -> dict[str, Any]:
    model = {name: torch.zeros_like(value) for name, value in state["model"].items()}
    layers = [torch.zeros(3), {"lr": 0.0}]
    return {"model": model, "copy": torch.zeros_like(state["copy"]), "layers": layers, "step": -1, "note": ""}


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted["model"].items():
        held = found["model"][name]
        assert torch.equal(held.full_tensor() if isinstance(held, DTensor) else held, value), name
    copy = found["copy"]
    assert torch.equal(copy.to_local() if isinstance(copy, DTensor) else copy, wanted["copy"])
    assert torch.equal(found["layers"][0], wanted["layers"][0])
    assert (found["layers"][1], found["step"], found["note"]) == (wanted["layers"][1], wanted["step"], wanted["note"])


def failures(error: CheckpointException) -> dict[int, str]:
    return {rank: f"{type(failure[0]).__name__}: {failure[0]}" for rank, failure in error.failures.items()}


# -- round trips --------------------------------------------------------------------------------------------------


def save(rank: int, place: str) -> list[str]:
    """Three saves: the same state twice, then with plans that are cached."""
    size = dist.get_world_size()
    saved = []
    with cas.open(place) as store:
        for step in (1, 2):
            metadata = dcp.save(split(whole(), size), storage_writer=CasStorageWriter(store, step=step))
            assert metadata.storage_data is None
            saved.append(metadata.storage_meta.save_id)
        planner = DefaultSavePlanner(enable_plan_caching=True)
        for seed in (3, 4):
            writer = CasStorageWriter(store, "cached", step=seed, codec="raw")
            metadata = dcp.save(split(whole(seed), size), storage_writer=writer, planner=planner)
            saved.append(metadata.storage_meta.save_id)
        if size > 1:
            assert SavePlanner._cached_final_save_plan, "the second save used the plan of the first"
        state = split(empty_like(whole()), size)
        dcp.load(state, storage_reader=CasStorageReader(store, saved[0]))
        assert_same(state, whole())
    return saved


def load(rank: int, place: str, saved: list[str]) -> float:
    """Into the layout of another number of ranks; the bytes read for a quarter of a tensor over those it has."""
    size = dist.get_world_size()
    with cas.open(place) as store:
        for rev, seed in zip(saved, (0, 0, 3, 4), strict=True):
            state = split(empty_like(whole()), size)
            dcp.load(state, storage_reader=CasStorageReader(store, rev))
            assert_same(state, whole(seed))
        part = {"model": {"rows": split(empty_like(whole()), size)["model"]["rows"]}}
        before = bytes_read()
        dcp.load(part, storage_reader=CasStorageReader(store, saved[2]))
        return (bytes_read() - before) / max(1, part["model"]["rows"].to_local().nbytes)


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def other_commits(rank: int, place: str) -> None:
    """What `store.commit` made of a sharded state, loaded by torch; and the other way round."""
    size = dist.get_world_size()
    with cas.open(place) as store:
        store.commit(split(whole(5), size), branch="ours", group=dist.group.WORLD)
        state = split(empty_like(whole()), size)
        dcp.load(state, storage_reader=CasStorageReader(store, "ours"))
        assert_same(state, whole(5))
        dcp.save(split(whole(6), size), storage_writer=CasStorageWriter(store, "theirs"))
        state = split(empty_like(whole()), size)
        store.load("theirs", into=state, group=dist.group.WORLD)
        assert_same(state, whole(6))
        store.commit(split(whole(7), size), branch="theirs", group=dist.group.WORLD)


def old_shards(rank: int, place: str) -> None:
    """ShardedTensor with two local shards on each rank, one row of zeros in between."""
    size = dist.get_world_size()

    def made(full: torch.Tensor) -> ShardedTensor:
        from torch.distributed._shard.sharded_tensor import Shard as LocalShard

        rows = [2 * rank, 2 * rank + 1]
        local = [LocalShard.from_tensor_and_offsets(full[row : row + 1].clone(), [row, 0], rank) for row in rows]
        return init_from_local_shards(local, *full.shape)

    full = torch.arange(2.0 * size * 3).view(2 * size, 3)
    with cas.open(place) as store:
        dcp.save({"table": made(full)}, storage_writer=CasStorageWriter(store, "old"))
        state = {"table": made(torch.zeros_like(full))}
        dcp.load(state, storage_reader=CasStorageReader(store, "old"))
        for shard in state["table"].local_shards():
            row = shard.metadata.shard_offsets[0]
            assert torch.equal(shard.tensor, full[row : row + 1])
        assert torch.equal(store.load("old", group=None)["table"], full)


def meshes(rank: int, place: str) -> None:
    """FSDP2 over tensor parallelism, replicas of shards, and a tensor on some of the ranks."""
    from sharded_worker import fsdp_over_tp

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    full = torch.randn(9, 5)
    dist.broadcast(full, 0)
    layouts = {
        "both": fsdp_over_tp(mesh["dp"], mesh["tp"], 8).state_dict(),
        "replicas": distribute_tensor(full, mesh, [Replicate(), Shard(0)]),
        "grid": distribute_tensor(full, mesh, [Shard(1), Shard(0)]),
    }
    if rank < 2:
        layouts["some"] = distribute_tensor(full, DeviceMesh("cpu", [0, 1], mesh_dim_names=("half",)), [Shard(0)])
    else:
        DeviceMesh("cpu", [0, 1], mesh_dim_names=("half",))
    kept = {name: value.full_tensor() for name, value in layouts["both"].items()}
    with cas.open(place) as store:
        dcp.save(layouts, storage_writer=CasStorageWriter(store))
        found = store.load("main", group=None)
        assert all(torch.equal(found[name], full) for name in ("replicas", "grid", "some"))
        assert all(torch.equal(found["both"][name], value) for name, value in kept.items())
        for value in (*layouts["both"].values(), layouts["replicas"], layouts["grid"]):
            value.to_local().zero_()
        dcp.load(layouts, storage_reader=CasStorageReader(store))
        assert all(torch.equal(layouts["both"][name].full_tensor(), value) for name, value in kept.items())
        assert all(torch.equal(layouts[name].full_tensor(), full) for name in ("replicas", "grid"))


# -- faults -------------------------------------------------------------------------------------------------------


class Failing(DefaultSavePlanner):
    """Cannot give its data, on one rank."""

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if dist.get_rank() == 1:
            raise OSError("the device is gone")
        return super().resolve_data(write_item)


class Swapping(DefaultSavePlanner):
    """Takes the rows of ranks 0 and 1 for one another's."""

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        (at,) = (n for n, item in enumerate(plan.items) if item.index.fqn == "model.rows")
        data = plan.items[at].tensor_data
        assert data is not None
        if dist.get_rank() < 2:
            chunk = replace(data.chunk, offsets=torch.Size([3 - data.chunk.offsets[0], 0]))
            index = MetadataIndex("model.rows", chunk.offsets)
            plan.items[at] = replace(plan.items[at], index=index, tensor_data=replace(data, chunk=chunk))
        return plan


def faults(rank: int, place: str) -> list[dict[int, str]]:
    """Saves that fail on all ranks; then one that does not, by the same group and Store."""
    found = []
    size = dist.get_world_size()
    with cas.open(place) as store:
        first = dcp.save(split(whole(), size), storage_writer=CasStorageWriter(store)).storage_meta.save_id

        def refused(state: dict[str, Any], planner: Any = None, **options: Any) -> None:
            with pytest.raises(CheckpointException) as caught:
                dcp.save(state, storage_writer=CasStorageWriter(store, **options), planner=planner)
            found.append(failures(caught.value))

        refused(split(whole(1), size), Failing())
        refused(split(whole(1), size), Swapping())
        refused(split(whole(1), size), parent="0" * 8)
        refused({"bad": (torch.zeros(3).to_mkldnn(),)} if rank == 1 else {"good": torch.zeros(3)})
        refused({"a": [torch.zeros(1)]} if rank else {"a": 1})
        with pytest.raises(CheckpointException) as caught:
            reader = CasStorageReader(store, first if rank else dcp_tip(store, rank))
            dcp.load({"step": 0}, storage_reader=reader)
        found.append(failures(caught.value))
        dist.barrier()
        if not rank:
            store.branch("main", first, force=True)
        dist.barrier()
        dcp.save(split(whole(2), size), storage_writer=CasStorageWriter(store))
        assert [commit.id for commit in store.log("main")][1:] == [first]
    return found


def dcp_tip(store: cas.Store, rank: int) -> str:
    """A newer commit, which other ranks do not know of."""
    return store.commit({"step": 9}, parent="main", group=None).id


def wrong_boxes(rank: int, place: str) -> tuple[dict[int, str], dict[int, str]]:
    """7 rows on a mesh of 3 x 2, FSDP2 over tensor parallelism: torch's plan loses one."""
    from sharded_worker import fsdp_over_tp

    mesh = init_device_mesh("cpu", (3, 2), mesh_dim_names=("dp", "tp"))
    state = fsdp_over_tp(mesh["dp"], mesh["tp"], 7).state_dict()
    with cas.open(place) as store:
        with pytest.raises(CheckpointException) as saving:
            dcp.save(state, storage_writer=CasStorageWriter(store))
        assert store.refs()["branches"] == {}
        store.commit(state, group=dist.group.WORLD)
        with pytest.raises(CheckpointException) as loading:
            dcp.load(state, storage_reader=CasStorageReader(store))
    return failures(saving.value), failures(loading.value)


# -- training -----------------------------------------------------------------------------------------------------


def training(size: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 11), nn.ReLU(), nn.Linear(11, 3))
    fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def losses(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    found = []
    for step in steps:
        torch.manual_seed(step)
        loss = model(torch.randn(8, 6)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def train(rank: int, place: str) -> list[float]:
    """Saves in the background after 3 steps, and goes on."""
    model, optimizer = training(dist.get_world_size())
    losses(model, optimizer, range(3))
    with cas.open(place) as store:
        weights, moments = get_state_dict(model, optimizer)
        writer = CasStorageWriter(store, "run", step=3)
        aside = dist.new_group(backend="gloo")  # two threads cannot share one
        state = {"model": weights, "optimizer": moments}
        saving = dcp.async_save(state, storage_writer=writer, process_group=aside)
        after = losses(model, optimizer, range(3, 6))
        assert saving.result().storage_meta.save_id == store.resolve("run").id
    return after


def resume(rank: int, place: str) -> list[float]:
    model, optimizer = training(dist.get_world_size())
    with cas.open(place) as store:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        dcp.load(state, storage_reader=CasStorageReader(store, "run"))
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return losses(model, optimizer, range(3, 6))


def in_processes(place: str) -> None:
    """Two saves by torch's background process, and what this process then knows."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with cas.open(place) as store:
        for step in (1, 2):
            writer = CasStorageWriter(store, step=step, metrics={"loss": 0.5})
            process = AsyncCheckpointerType.PROCESS
            saving = dcp.async_save(whole(step), storage_writer=writer, async_checkpointer_type=process)
            assert saving.result().storage_meta.save_id == store.resolve("main").id
        assert [commit.step for commit in store.log()] == [2, 1]
        with pytest.raises(cas.RefConflict, match="load it to resume"):
            store.commit({"step": 3}, group=None)
        writer = CasStorageWriter(store, parent="main~1")
        saving = dcp.async_save({"a": 1}, storage_writer=writer, async_checkpointer_type=process)
        assert "RefConflict" in str(saving.exception())
        state = empty_like(whole())
        dcp.load(state, storage_reader=CasStorageReader(store))
        assert_same(state, whole(2))
        store.commit({"step": 3}, group=None)


if __name__ == "__main__":
    in_processes(sys.argv[1])
