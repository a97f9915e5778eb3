"""States of many ranks, laid out as real jobs do: one known state, and in `LAYOUTS` every way to spread it over ranks.

What is in the state is exact in every layout: the optimizer's one step, without momentum and learning rate, leaves
the gradients and their squares in its state, and the gradients are the parameters.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

State = dict[str, Any]
Place = Callable[[torch.Tensor], Any]
"""How a layout spreads a tensor that is in no module."""


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Model(nn.Module):
    """7 rows, which divide by nothing, in several cells; the first two parameters are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = self.head = nn.Parameter(torch.empty(7, 6))
        self.scale = nn.Parameter(torch.empty(1))
        self.up = nn.Linear(20_000, 7)
        self.down = nn.Linear(7, 20_001)
        with torch.no_grad():
            for seed, parameter in enumerate(self.parameters()):
                parameter.copy_(numbers(seed, *parameter.shape))


def state_of(model: nn.Module, place: Place) -> State:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.0, 0.0))
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    return {
        "model": weights,
        "optimizer": moments,
        "extra": {
            3: [place(torch.arange(10)), (1.5, "x")],
            -1: {},
            "ordered": OrderedDict(b=[], a=()),
            "counter": Counter("hello"),
            "bf16": place(numbers(20, 12, 5).bfloat16()),
            "int8": place(torch.arange(11, dtype=torch.int8)),
            "one": place(torch.tensor(2.5)),
            "empty": place(torch.empty(0, 4)),
            "long": ["text" * 20_000, bytes(100_000)],
            "values": [None, True, 1 << 90, np.float32(0.1), torch.bfloat16, torch.Size([2, 3])],
            "array": np.arange(6).reshape(2, 3),
            "many": {f"layer.{number}": number for number in range(500)},
        },
        "experts": {number: place(numbers(30 + number, 3, 5)) for number in range(5)},
        "stacked": place(numbers(40, 5, 3, 4)),
    }


def full() -> State:
    """What all layouts hold, in one process."""
    return state_of(Model(), lambda tensor: tensor)


# -- layouts ----------------------------------------------------------------------------------------------------------


def _line() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dp",))


def _on(mesh: DeviceMesh, *dims: int) -> Place:
    """Shard the tensor dimension that is given for each mesh dimension, as far as a tensor has it; -1: replicate."""

    def place(tensor: torch.Tensor) -> DTensor:
        placements = [Shard(dim) if 0 <= dim < tensor.ndim else Replicate() for dim in dims]
        return distribute_tensor(tensor, mesh, placements, src_data_rank=None)

    return place


def _everywhere(state: Any, place: Place) -> Any:
    """Every tensor of a state, those that are tied as one."""
    placed: dict[Any, tuple[torch.Tensor, Any]] = {}

    def visit(value: Any) -> Any:
        if isinstance(value, dict):
            made = OrderedDict() if type(value) is OrderedDict else type(value)()
            made.update({key: visit(child) for key, child in value.items()})
            return made
        if type(value) in (list, tuple):
            return type(value)(map(visit, value))
        if not isinstance(value, torch.Tensor):
            return value
        return placed.setdefault((value.data_ptr(), value.shape, value.dtype), (value, place(value)))[1]

    return visit(state)


def _tp(mesh: DeviceMesh) -> nn.Module:
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    return parallelize_module(Model(), mesh, plan, src_data_rank=None)


def _fsdp() -> State:
    return state_of(fully_shard(Model(), mesh=_line()), _on(_line(), 0))


def _tensor_parallel() -> State:
    return state_of(_tp(_line()), _on(_line(), 1))


def _fsdp_tp() -> State:
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "tp"))
    return state_of(fully_shard(_tp(mesh["tp"]), mesh=mesh["dp"]), _on(mesh, 0, 1))


def _hsdp() -> State:
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("replicate", "shard"))
    return state_of(fully_shard(Model(), mesh=mesh), _on(mesh, -1, 0))


def _ddp() -> State:
    return state_of(DistributedDataParallel(Model()), lambda tensor: tensor)


def _of_stage(state: State, stage: int) -> State:
    """The part of one of two stages; of the stages' optimizer groups only their common one."""

    def mine(name: str) -> bool:
        return name.startswith("down.") == bool(stage)

    return {
        "model": OrderedDict((name, value) for name, value in state["model"].items() if mine(name)),
        "optimizer": {
            "state": {name: held for name, held in state["optimizer"]["state"].items() if mine(name)},
            "param_groups": state["optimizer"]["param_groups"],
        },
        **({} if stage else {"extra": state["extra"]}),
        "experts": {number: expert for number, expert in state["experts"].items() if (number > 2) == bool(stage)},
        **({"stacked": state["stacked"]} if stage else {}),
    }


def _pipeline() -> State:
    return _of_stage(full(), dist.get_rank())


def _fsdp_in_pipeline() -> State:
    """Every stage's tensors are on a mesh of its own two ranks."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))["dp"]
    return _of_stage(state_of(fully_shard(Model(), mesh=mesh), _on(mesh, 0)), dist.get_rank() // 2)


def _expert_parallel() -> State:
    """Experts under keys of their own, or stacked; the other weights are replicas."""
    state, rank, each = full(), dist.get_rank(), -(-5 // dist.get_world_size())
    experts = {number: expert for number, expert in state["experts"].items() if number // each == rank}
    return {**state, "experts": experts, "stacked": _on(_line(), 0)(state["stacked"])}


def _several_local_shards() -> State:
    """Twice as many pieces of rows as ranks, each rank's two (or one, or none) apart from one another."""
    size, rank = dist.get_world_size(), dist.get_rank()

    def place(tensor: torch.Tensor) -> Any:
        if not tensor.numel() or not tensor.ndim:
            return tensor
        pieces, starts, at = tensor.chunk(2 * size), [], 0
        for piece in pieces:
            starts.append(at)
            at += len(piece)
        shards = [
            sharded_tensor.Shard.from_tensor_and_offsets(
                pieces[number].clone(), [starts[number], *[0] * (tensor.ndim - 1)], rank
            )
            for number in (rank, 2 * size - 1 - rank)
            if number < len(pieces)
        ]
        return sharded_tensor.init_from_local_shards(shards, *tensor.shape)

    return _everywhere(full(), place)


def _submesh() -> State:
    """DTensors of two ranks, of which the others have nothing."""
    return _everywhere(full(), _on(DeviceMesh("cpu", [1, 2]), 0))


def _columns() -> State:
    return _everywhere(full(), _on(_line(), 1))


def _grid() -> State:
    """Columns first, then rows, on a mesh of two dimensions."""
    return _everywhere(full(), _on(init_device_mesh("cpu", (2, dist.get_world_size() // 2)), 1, 0))


@dataclass(frozen=True)
class Layout:
    """`held` are the elements of the 7 x 20000 weight on each rank, in rows of 20000."""

    size: int
    build: Callable[[], State]
    held: list[float]


LAYOUTS: dict[str, Layout] = {
    "fsdp-2": Layout(2, _fsdp, [4, 3]),
    "fsdp-3": Layout(3, _fsdp, [3, 3, 1]),
    "fsdp-4": Layout(4, _fsdp, [2, 2, 2, 1]),
    "fsdp-6": Layout(6, _fsdp, [2, 2, 2, 1, 0, 0]),
    "tp-2": Layout(2, _tensor_parallel, [4, 3]),
    "tp-4": Layout(4, _tensor_parallel, [2, 2, 2, 1]),
    "fsdp-tp-4": Layout(4, _fsdp_tp, [2, 2, 2, 1]),
    "fsdp-tp-6": Layout(6, _fsdp_tp, [2, 1, 2, 1, 0, 1]),
    "hsdp-4": Layout(4, _hsdp, [4, 3, 4, 3]),
    "ddp-3": Layout(3, _ddp, [7, 7, 7]),
    "pipeline-2": Layout(2, _pipeline, [7, 0]),
    "fsdp-in-pipeline-4": Layout(4, _fsdp_in_pipeline, [4, 3, 0, 0]),
    "experts-3": Layout(3, _expert_parallel, [7, 7, 7]),
    "sharded-tensor-3": Layout(3, _several_local_shards, [2, 2, 3]),
    "submesh-4": Layout(4, _submesh, [0, 4, 3, 0]),
    "columns-3": Layout(3, _columns, [6667 * 7 / 20_000, 6667 * 7 / 20_000, 6666 * 7 / 20_000]),
    "grid-6": Layout(6, _grid, [1.5, 1.5, 0.5, 1.5, 1.5, 0.5]),
}


# -- comparing --------------------------------------------------------------------------------------------------------


def parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The memory that this rank has of a tensor."""
    if isinstance(tensor, DTensor):
        return [tensor.to_local()]
    if isinstance(tensor, ShardedTensor):
        return [shard.tensor for shard in tensor.local_shards()]
    return [tensor]


def blank(value: Any) -> Any:
    """The same containers, tensors zeroed in place, values gone: what `into=` takes."""
    if isinstance(value, dict):
        for key in value:
            value[key] = blank(value[key])
        return value
    if type(value) in (list, tuple):
        return type(value)(map(blank, value))
    if isinstance(value, torch.Tensor):
        for part in parts(value):
            part.detach().zero_()
        return value
    return np.zeros_like(value) if isinstance(value, np.ndarray) else None


def described(value: Any, path: str = "") -> dict[str, Any]:
    """By path what this rank has there: type, order of keys, every bit."""
    if isinstance(value, dict):
        children = value.items()
        found: Any = type(value), list(value)
    elif type(value) in (list, tuple):
        children, found = dict(enumerate(value)).items(), (type(value), len(value))
    elif isinstance(value, torch.Tensor):
        children, found = {}.items(), (type(value), value.shape, value.dtype, [*map(_bits, parts(value))])
    elif isinstance(value, np.ndarray):
        children, found = {}.items(), (value.dtype, value.shape, value.tobytes())
    else:
        children, found = {}.items(), (type(value), value)
    made = {path: found}
    for key, child in children:
        made |= described(child, f"{path}/{key!r}")
    return made


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Paths at which two descriptions differ."""
    return [path for path in one | other if one.get(path) != other.get(path)]


def _bits(tensor: torch.Tensor) -> tuple[Any, bytes]:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return tuple(tensor.shape), flat.numpy().tobytes()


def said(action: Callable[[], Any]) -> Any:
    """The error as text, else None: of any kind, for the other ranks go on to the next call."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
