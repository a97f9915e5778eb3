"""Commits and loads by several ranks: real processes over gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import cas
from ranks import run


def _sharded(full: torch.Tensor, size: int) -> DTensor:
    return distribute_tensor(full, init_device_mesh("cpu", (size,)), [Shard(0)])


def _full(seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    return {
        "model": {"w": torch.randn(7, 300_000), "b": torch.randn(5), 3: [torch.arange(10), (1.5, "x")], "none": {}},
        "step": 12,
    }


def _commit_sharded(rank: int, place: str, size: int) -> str:
    full = _full()
    state = {**full, "model": {**full["model"], "w": _sharded(full["model"]["w"], size)}}
    with cas.open(place, create=True) as store:
        commit = store.commit(state, group=dist.group.WORLD, step=3)
        print(rank, commit)
        again = store.commit(state, group=dist.group.WORLD, step=4)
        assert again.parents == (commit.id,)
        assert again.stats is not None
        assert again.tree == commit.tree
    return commit.id


def test_a_commit_of_four_ranks_is_what_one_would_commit(tmp_path: Path) -> None:
    ids = run(4, _commit_sharded, str(tmp_path / "s"), 4)
    assert len(set(ids)) == 1
    with cas.open(tmp_path / "s") as store:
        state = store.load(ids[0])
        full = _full()
        assert torch.equal(state["model"]["w"], full["model"]["w"])
        assert list(state["model"]) == ["w", "b", 3, "none"]
        assert state["model"][3][1] == (1.5, "x")
        assert store.resolve(ids[0]).step == 3
        assert store.fsck(data=True) == []


def _load_sharded(rank: int, place: str, size: int) -> bool:
    full = _full()
    target = {**_full(1), "step": 0}
    target["model"]["w"] = _sharded(torch.zeros(7, 300_000), size)
    with cas.open(place) as store:
        state = store.load("main", into=target, group=dist.group.WORLD)
    w = state["model"]["w"].full_tensor()
    return torch.equal(w, full["model"]["w"]) and state["step"] == 12


def test_it_loads_in_another_layout(tmp_path: Path) -> None:
    run(4, _commit_sharded, str(tmp_path / "s"), 4)
    assert all(run(3, _load_sharded, str(tmp_path / "s"), 3))
