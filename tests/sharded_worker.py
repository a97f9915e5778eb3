"""One rank of `test_sharded`: lays tensors out as real jobs do and writes down what `sharded` says that it holds.

`sharded_worker.py DIR RANK` is a rank of six over gloo. `sharded_worker.py DIR` is every rank of larger jobs in turn,
over a process group that exchanges nothing, for layouts that are made without an exchange.

Every tensor holds the numbers 0, 1, 2, ... in row-major order. A case gives its tensors by name; a rank that is
outside gives none.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard import sharded_tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import DataParallelMeshDims, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, ShardOrderEntry, TensorMeta
from torch.distributed.tensor._redistribute import redistribute_local_tensor
from torch.distributed.tensor._shards_wrapper import LocalShardsWrapper
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from cas.errors import CasError
from cas.torch.sharded import sharded

WORLD = 6
Shape = tuple[int, ...]
Tensors = dict[str, Any]


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).view(shape)


def storage_key(value: torch.Tensor) -> object:
    held = sharded(value)
    return None if held is None else held.key


class Layers(nn.Module):
    """Parameters by name; a name may come twice to tie them."""

    def __init__(self, **parameters: nn.Parameter) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)


def perceptron(width: int, out: int = 5) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, out))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(numbered(*parameter.shape))
    return model


class OwnShard(Shard):
    """A placement that torch does not have."""


class Job:
    """The meshes, which all ranks make, and what is laid out on them."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.line = init_device_mesh("cpu", (WORLD,), mesh_dim_names=("dp",))
        self.four = DeviceMesh("cpu", [0, 1, 2, 3], mesh_dim_names=("dp",))
        self.three = DeviceMesh("cpu", [1, 3, 4])
        self.grids = {
            (2, 2): DeviceMesh("cpu", [[0, 1], [2, 3]], mesh_dim_names=("dp", "tp")),
            (3, 2): init_device_mesh("cpu", (3, 2), mesh_dim_names=("dp", "tp")),
            (2, 3): init_device_mesh("cpu", (2, 3), mesh_dim_names=("dp", "tp")),
        }

    def fsdp(self, mesh: DeviceMesh, *shapes: Shape, dim: int = 0) -> Tensors:
        if mesh.get_coordinate() is None:
            return {}
        model = Layers(**{str(shape): nn.Parameter(numbered(*shape)) for shape in shapes})
        fully_shard(model, mesh=mesh, shard_placement_fn=lambda _: Shard(dim))
        return model.state_dict()

    def tp(self, mesh: DeviceMesh, width: int) -> Tensors:
        if mesh.get_coordinate() is None:
            return {}
        model = parallelize_module(perceptron(width), mesh, {"0": ColwiseParallel(), "1": RowwiseParallel()})
        return dict(model.named_parameters())

    def fsdp_tp(self, sizes: Shape, width: int) -> Tensors:
        mesh = self.grids[sizes]
        if mesh.get_coordinate() is None:
            return {}
        return dict(fsdp_over_tp(mesh["dp"], mesh["tp"], width).named_parameters())

    def fsdp_dim_1_tp(self) -> Tensors:
        """FSDP2 on the dimension that row-wise TP has sharded."""
        mesh = self.grids[3, 2]
        weight = distribute_tensor(numbered(5, 12), mesh["tp"], [Shard(1)])
        model = Layers(weight=nn.Parameter(weight))
        fully_shard(model, mesh=mesh["dp"], shard_placement_fn=lambda _: Shard(1))
        return dict(model.named_parameters())

    def adam(self) -> Tensors:
        mesh = self.grids[3, 2]
        model = fsdp_over_tp(mesh["dp"], mesh["tp"], 7)
        optimizer = torch.optim.Adam(model.parameters(), betas=(0.0, 0.9))  # so exp_avg is the gradient
        for parameter in model.parameters():
            parameter.grad = parameter.detach().clone()
        optimizer.step()
        return {name: optimizer.state[parameter]["exp_avg"] for name, parameter in model.named_parameters()}

    def experts(self, shape: Shape, dim: int) -> Tensors:
        """Experts spread over a mesh dimension, each weight then sharded by FSDP2 on `dim`."""
        mesh = self.grids[3, 2]
        model = Layers(experts=nn.Parameter(distribute_tensor(numbered(*shape), mesh["tp"], [Shard(0)])))
        fully_shard(model, mesh=mesh["dp"], shard_placement_fn=lambda _: Shard(dim))
        return dict(model.named_parameters())

    def distributed(self, mesh: DeviceMesh, shape: Shape, *placements: Any) -> Tensors:
        return {"tensor": distribute_tensor(numbered(*shape), mesh, placements)}

    def waiting(self) -> Tensors:
        """Its local tensor is the result of a collective that nobody has waited for."""
        shards = distribute_tensor(numbered(7, 2), self.line, [Shard(0)])
        return {"tensor": shards.redistribute(placements=[Replicate()], async_op=True)}

    def shard_order(self) -> Tensors:
        """TP first, as by FSDP2, but said by a shard order: what newer versions have besides strided shards."""
        full, mesh = numbered(7, 2), self.grids[3, 2]
        meta = TensorMeta(full.shape, full.stride(), full.dtype)
        whole = DTensorSpec(mesh, (Replicate(), Replicate()), tensor_meta=meta)
        order = (ShardOrderEntry(0, (1, 0)),)
        spec = DTensorSpec(mesh, (Shard(0), Shard(0)), tensor_meta=meta, shard_order=order)
        local = redistribute_local_tensor(full, whole, spec)
        return {"tensor": DTensor(local, spec, requires_grad=False)}

    def sharded_tensor(self) -> Tensors:
        """Two shards on rank 0, none on rank 1, one on each of the others, of which rank 5's is empty."""
        full = numbered(7, 4)
        held = {
            0: [(0, 0, 2, 4), (6, 1, 1, 3)],
            2: [(2, 0, 4, 1)],
            3: [(2, 1, 4, 3)],
            4: [(6, 0, 1, 1)],
            5: [(7, 0, 0, 4)],
        }
        shards = [
            sharded_tensor.Shard.from_tensor_and_offsets(
                full[a : a + m, b : b + n].clone().requires_grad_(), [a, b], self.rank
            )
            for a, b, m, n in held.get(self.rank, [])
        ]
        return {"tensor": sharded_tensor.init_from_local_shards(shards, 7, 4)}

    def local_shards(self) -> Tensors:
        """Two column shards on rank 0, none on rank 1, one on each of the others."""
        full = numbered(3, 6)
        columns = {0: [0, 1], 1: []}.get(self.rank, [self.rank])
        wrapper = LocalShardsWrapper([full[:, c : c + 1].clone() for c in columns], [(0, c) for c in columns])
        made = DTensor.from_local(
            wrapper, self.line, [Shard(1)], run_check=False, shape=full.shape, stride=full.stride()
        )
        return {"tensor": made}

    def refused(self) -> Tensors:
        grid, full = self.grids[3, 2], numbered(4, 6)
        local = {"shape": full.shape, "stride": full.stride(), "run_check": False}
        strided = distribute_tensor(full, self.line, [Shard(1)]).view(24)
        meta = TensorMeta(full.shape, full.stride(), full.dtype)
        placements = (_StridedShard(0, split_factor=2), Shard(0))
        order = (ShardOrderEntry(0, (1, 0)),)
        both = DTensorSpec(grid, placements, meta, order, use_strided_shard_as_shard_order=False)
        return {
            "partial": DTensor.from_local(full, grid, [Partial(), Replicate()], **local),
            "interleaved": strided,
            "too many rows": DTensor.from_local(full[:3], grid, [Shard(0), Replicate()], **local),
            "too few rows": DTensor.from_local(full[:1], grid, [Shard(0), Replicate()], **local),
            "no rows": DTensor.from_local(full[:0], grid, [Replicate(), Shard(1)], **local),
            "rows swapped with columns": DTensor.from_local(full.T, grid, [Replicate(), Replicate()], **local),
            "other dtype": DTensor.from_local(LocalShardsWrapper([full.double()], [(0, 0)]), grid, **local),
            "outside": DTensor.from_local(LocalShardsWrapper([full[:2]], [(3, 0)]), grid, **local),
            "a class of one's own": DTensor.from_local(full[:2], grid, [OwnShard(0), Replicate()], **local),
            "two orders": DTensor(full[:1], both, requires_grad=False),
            "no such dimension": DTensor.from_local(full, grid, [Replicate(), Shard(2)], **local),
        }

    def ties(self) -> dict[str, bool]:
        """Keys of tied and of other parameters of FSDP2, of which ranks 2 to 5 hold no rows."""
        tied = nn.Parameter(numbered(2, 3))
        model = Layers(embed=tied, head=tied, other=nn.Parameter(numbered(2, 3)))
        fully_shard(model, mesh=self.line)
        state = model.state_dict()
        keys = {name: storage_key(tensor) for name, tensor in state.items()}
        dense = distribute_tensor(numbered(12, 12), self.line, [Shard(0)])
        local = dense.to_local()
        again = DTensor.from_local(local, self.line, [Shard(0)], run_check=False)
        alone = DTensor.from_local(local, self.line, [Replicate()], run_check=False)
        later = DTensor.from_local(local[1:], self.line, [Replicate()], run_check=False)
        first = DTensor.from_local(local[:1], self.line, [Replicate()], run_check=False)
        meant = {"shape": dense.shape, "stride": dense.stride(), "run_check": False}
        top, below = (
            DTensor.from_local(LocalShardsWrapper([local], [(row, 0)]), self.line, [Shard(0)], **meant)
            for row in (0, 2)
        )
        turned = DTensor.from_local(local.T, self.line, [Shard(1)], run_check=False)
        return {
            "every key is known": None not in keys.values() and len(keys) == 3,
            "tied": keys["embed"] == keys["head"] and state["embed"] is not state["head"],
            "as the parameter": keys["embed"] == storage_key(model.embed),
            "untied": keys["embed"] != keys["other"],
            "a copy": storage_key(model.embed.detach().clone()) not in [*keys.values()],
            "the same memory": storage_key(dense) == storage_key(again) is not None,
            "the same memory transposed": storage_key(dense) != storage_key(turned) is not None,
            "the same memory as a whole": storage_key(dense) != storage_key(alone) is not None,
            "the same memory as another part": storage_key(top) != storage_key(below) is not None,
            "other rows of the same memory": storage_key(later) != storage_key(first) is not None,
            "no memory": storage_key(distribute_tensor(torch.empty(0, 3), self.line, [Shard(0)])) is None,
            "plain": storage_key(local) is None and sharded(local) is None and sharded(nn.Parameter(local)) is None,
            "not copied": sharded(dense).parts[0][1].data_ptr() == local.data_ptr(),
        }

    def cases(self) -> dict[str, Callable[[], Tensors]]:
        return {
            "fsdp": lambda: self.fsdp(self.line, (12, 4), (13, 3), (7,), (2, 5), (1,), (3, 0), (0, 4)),
            "fsdp of four": lambda: self.fsdp(self.four, (8, 3), (7, 3), (5, 2, 2)),
            "fsdp on dimension 1": lambda: self.fsdp(self.line, (4, 12), dim=1),
            "hsdp": lambda: self.fsdp(self.grids[2, 2], (8, 3), (7, 3), (1, 2)),
            "hsdp of six": lambda: self.fsdp(self.grids[2, 3], (7, 3), (4,)),
            "tp even": lambda: self.tp(self.line, 12),
            "tp uneven": lambda: self.tp(self.line, 7),
            **{
                f"fsdp {sizes[0]} x tp {sizes[1]}, {width} rows": lambda sizes=sizes, width=width: self.fsdp_tp(
                    sizes, width
                )
                for sizes, width in FSDP_TP
            },
            "fsdp and tp on dimension 1": self.fsdp_dim_1_tp,
            "adam": self.adam,
            "experts": lambda: self.distributed(self.line, (12, 3, 2), Shard(0)),
            "experts uneven": lambda: self.distributed(self.line, (8, 3, 2), Shard(0)),
            "fsdp of experts": lambda: self.experts((5, 6, 2), 0),
            "fsdp in experts": lambda: self.experts((5, 6, 2), 1),
            "replicas": lambda: self.distributed(self.line, (3, 2), Replicate()),
            "one number": lambda: self.distributed(self.line, (), Replicate()),
            "twice on one dimension": lambda: self.distributed(self.grids[3, 2], (8, 2), Shard(0), Shard(0)),
            "on two dimensions": lambda: self.distributed(self.grids[3, 2], (7, 5), Shard(1), Shard(-2)),
            "on some ranks": lambda: self.distributed(self.three, (7, 2), Shard(0)),
            "waiting": self.waiting,
            "shard order": self.shard_order,
            "sharded tensor": self.sharded_tensor,
            "local shards": self.local_shards,
            "refused": self.refused,
        }


FSDP_TP = [((2, 2), 8), ((2, 2), 7), ((2, 2), 5), ((2, 2), 1), ((3, 2), 7), ((3, 2), 13), ((2, 3), 7), ((2, 3), 4)]


def fsdp_over_tp(dp: DeviceMesh, tp: DeviceMesh, width: int, source: int | None = 0) -> nn.Module:
    plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
    model = parallelize_module(perceptron(width), tp, plan, src_data_rank=source)
    return fully_shard(model, mesh=dp)


def hsdp_tp(sizes: Shape, width: int) -> Tensors:
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("replicate", "shard", "tp"))
    model = fsdp_over_tp(mesh["replicate", "shard"], mesh["tp"], width, source=None)
    return dict(model.named_parameters())


def fsdp_ep_tp(shape: Shape, *placements: Any) -> Tensors:
    mesh = init_device_mesh("cpu", (2, 3, 2), mesh_dim_names=("dp", "ep", "tp"))
    weight = distribute_tensor(numbered(*shape), mesh["ep", "tp"], placements, src_data_rank=None)
    model = Layers(experts=nn.Parameter(weight))
    fully_shard(model, mesh=mesh["dp"])
    return dict(model.named_parameters())


def fsdp_of_whole_mesh(sizes: Shape, names: tuple[str, ...], shard: Any, *placements: Any) -> Tensors:
    """Parameters that lie on the whole mesh before FSDP2 shards them on the dimensions `shard` of it."""
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=names)
    weight = distribute_tensor(numbered(17, 3), mesh, placements, src_data_rank=None)
    model = Layers(weight=nn.Parameter(weight))
    fully_shard(model, mesh=mesh, dp_mesh_dims=DataParallelMeshDims(shard=shard))
    return dict(model.named_parameters())


# Laid out without an exchange, by every rank for itself: the number of ranks, and the case.
LARGE: dict[str, tuple[int, Callable[[], Tensors]]] = {
    "hsdp 2 x 2 x tp 2, 8 rows": (8, lambda: hsdp_tp((2, 2, 2), 8)),
    "hsdp 2 x 2 x tp 2, 7 rows": (8, lambda: hsdp_tp((2, 2, 2), 7)),
    "hsdp 2 x 3 x tp 2, 7 rows": (12, lambda: hsdp_tp((2, 3, 2), 7)),
    "fsdp x ep x tp": (12, lambda: fsdp_ep_tp((7, 3, 5), Shard(0), Shard(1))),
    "fsdp x ep x tp on one dimension": (12, lambda: fsdp_ep_tp((17, 3), Shard(0), Shard(0))),
    "fsdp between tp and ep": (
        12,
        lambda: fsdp_of_whole_mesh((2, 3, 2), ("tp", "dp", "ep"), "dp", Shard(0), Replicate(), Shard(0)),
    ),
    "fsdp over context parallel ranks": (
        12,
        lambda: fsdp_of_whole_mesh((2, 3, 2), ("dp", "cp", "tp"), ("dp", "cp"), Replicate(), Replicate(), Shard(0)),
    ),
}


def written(case: Callable[[], Tensors]) -> dict[str, Any]:
    """For every tensor its shape and the (start, shape, numbers) that this rank holds, or the refusal."""
    found: dict[str, Any] = {}
    for name, tensor in case().items():
        try:
            held = sharded(tensor)
        except CasError as error:
            found[name] = f"{type(error).__name__}: {error}"
        else:
            for _, part in held.parts:
                assert type(part) is torch.Tensor
                assert not isinstance(part, nn.Parameter)
                assert not part.requires_grad
            found[name] = held.shape, [(box.start, box.shape, part.clone()) for box, part in held.parts]
    return found


def rank_of_six(place: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{place}/init", rank=rank, world_size=WORLD)
    job = Job(rank)
    found: dict[str, Any] = {name: written(case) for name, case in job.cases().items()}
    torch.save((found, job.ties()), place / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def large_jobs(place: Path) -> None:
    found = {}
    for name, (world, case) in LARGE.items():
        found[name] = []
        for rank in range(world):
            dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
            found[name].append(written(case))
            dist.destroy_process_group()
            _clear_sharding_prop_cache()  # it holds the mesh as the rank before saw it
    torch.save(found, place / "large.pt")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        rank_of_six(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        large_jobs(Path(sys.argv[1]))
