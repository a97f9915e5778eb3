"""Many ranks with a store on S3: the same as with a directory, over a network."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from servers.s3 import S3Server
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import cas
from cas.torch import CasStorageReader, CasStorageWriter


def _whole() -> torch.Tensor:
    return torch.arange(256 * 1024, dtype=torch.float32).reshape(1024, 256)


def _sharded() -> DTensor:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return distribute_tensor(_whole(), mesh, [Shard(0)])


def _commit_and_load(rank: int, url: str, options: dict[str, Any], cache: str) -> bool:
    with cas.open(url, create=True, storage_options=options, cache=f"{cache}/{rank}") as store:
        state = {"w": _sharded(), "step": 3}
        store.commit(state, group=dist.group.WORLD, step=3)
        pending = store.commit_async({"w": state["w"] + 1, "step": 4}, group=dist.group.WORLD, step=4)
        pending.wait()
        into = {"w": torch.zeros_like(state["w"]), "step": 0}
        found = store.load("main", into=into, group=dist.group.WORLD)
        return found["step"] == 4 and torch.equal(found["w"].to_local(), (state["w"] + 1).to_local())


@pytest.mark.slow
def test_ranks_commit_to_a_bucket_and_load_from_it(s3_server: S3Server, tmp_path: Path) -> None:
    url = s3_server.url(s3_server.bucket(), "many ranks")
    assert ranks.run(2, _commit_and_load, url, s3_server.options, str(tmp_path)) == [True, True]
    with cas.open(url, storage_options=s3_server.options, cache=tmp_path / "alone") as store:
        assert torch.equal(store.load("main~1")["w"], _whole())
        assert store.fsck(data=True) == []


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_a_writer_that_went_to_another_process_finds_its_bucket(s3_server: S3Server, tmp_path: Path) -> None:
    """The process executor of dcp.async_save pickles it."""
    url = s3_server.url(s3_server.bucket(), "dcp")
    with cas.open(url, create=True, storage_options=s3_server.options, cache=tmp_path) as store:
        elsewhere = pickle.loads(pickle.dumps(CasStorageWriter(store)))
        dcp.save({"w": _whole()}, storage_writer=elsewhere, no_dist=True)
        found = {"w": torch.zeros_like(_whole())}
        dcp.load(found, storage_reader=CasStorageReader(store, "main"), no_dist=True)
        assert torch.equal(found["w"], _whole())
        assert s3_server.secret not in repr(elsewhere)
