"""Many ranks: what each stores as changes of what it or another rank stored before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from joint_jobs import numbers
from ranks import run
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from trainings import codecs

import cas
from cas.torch import PerRank


def sharded(tensor: torch.Tensor) -> DTensor:
    return distribute_tensor(tensor, init_device_mesh("cpu", (dist.get_world_size(),)), [Shard(0)])


def drifted(seed: int, step: int, *shape: int) -> torch.Tensor:
    return numbers(seed, *shape) * 0.02 + 1e-5 * step * numbers(seed + 100, *shape)


def _drift(rank: int, place: str, size: int) -> None:
    with cas.open(place, create=True) as store:
        for step in range(4):
            state = {
                "w": sharded(drifted(1, step, size, 1000)),
                "b": drifted(2, step, 5000),
                "own": PerRank(drifted(10 + rank, step, 4000)),
            }
            store.commit_async(state, group=dist.group.WORLD, step=step).wait()


@pytest.mark.slow
@pytest.mark.parametrize("size", [101, 6000])
def test_ranks_store_changes_of_what_was_sharded_before(tmp_path: Path, size: int) -> None:
    """Small ones, which one rank stores for all, and large ones."""
    run(2, _drift, str(tmp_path / "s"), size)
    with cas.open(tmp_path / "s") as store:
        assert codecs(store)["delta"] >= 3 * 4
        for step in range(4):
            loaded = store.load(f"main@step:{step}")
            assert torch.equal(loaded["w"], drifted(1, step, size, 1000))
            assert torch.equal(loaded["b"], drifted(2, step, 5000))
            assert torch.equal(loaded["own"], drifted(10, step, 4000))
        assert store.fsck(data=True) == []


def _other_split(rank: int, place: str) -> None:
    with cas.open(place, create=True) as store:
        if dist.get_world_size() == 3:
            store.load("main", group=dist.group.WORLD)
        step = 0 if dist.get_world_size() == 2 else 1
        store.commit({"w": sharded(drifted(1, step, 6000, 1000))}, group=dist.group.WORLD, step=step, delta="parent")


@pytest.mark.slow
def test_three_ranks_store_changes_of_what_two_stored(tmp_path: Path) -> None:
    run(2, _other_split, str(tmp_path / "s"))
    run(3, _other_split, str(tmp_path / "s"))
    with cas.open(tmp_path / "s") as store:
        assert codecs(store)["delta"] > 0.9 * codecs(store).total() / 2
        assert torch.equal(store.load()["w"], drifted(1, 1, 6000, 1000))
