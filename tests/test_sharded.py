"""What every rank says that it holds of a sharded tensor, against how FSDP2, TP and the rest really lay tensors out.

The tensors hold 0, 1, 2, ..., so a part is right where its numbers are those of its box, and a layout is right where
the parts of all ranks hold every number as often as there are replicas. torch's own arithmetic is never asked.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from cas.errors import CasError
from cas.grid import Box, covers
from cas.torch.sharded import Sharded, sharded

pytestmark = pytest.mark.xdist_group("sharded")

WORKER = Path(__file__).with_name("sharded_worker.py")
WORLD = 6
Shape = tuple[int, ...]
Parts = list[tuple[Shape, Shape, torch.Tensor]]


def perceptron(width: int, shards: int, replicas: int = 1) -> dict[str, tuple[Shape, int]]:
    """Two layers under TP of `shards`: the last bias is not sharded by TP."""
    shapes = {"0.weight": (width, 3), "0.bias": (width,), "1.weight": (5, width), "1.bias": (5,)}
    return {name: (shape, replicas * (shards if name == "1.bias" else 1)) for name, shape in shapes.items()}


def state(*shapes: Shape, replicas: int = 1) -> dict[str, tuple[Shape, int]]:
    return {str(shape): (shape, replicas) for shape in shapes}


def one(*shape: int, name: str = "tensor", replicas: int = 1) -> dict[str, tuple[Shape, int]]:
    return {name: (shape, replicas)}


FSDP_TP = [((2, 2), 8), ((2, 2), 7), ((2, 2), 5), ((2, 2), 1), ((3, 2), 7), ((3, 2), 13), ((2, 3), 7), ((2, 3), 4)]
# For every case its tensors by name: the shape, and on how many ranks each element lies.
OF_SIX: dict[str, dict[str, tuple[Shape, int]]] = {
    "fsdp": state((12, 4), (13, 3), (7,), (2, 5), (1,), (3, 0), (0, 4)),
    "fsdp of four": state((8, 3), (7, 3), (5, 2, 2)),
    "fsdp on dimension 1": state((4, 12)),
    "hsdp": state((8, 3), (7, 3), (1, 2), replicas=2),
    "hsdp of six": state((7, 3), (4,), replicas=2),
    "tp even": perceptron(12, 6),
    "tp uneven": perceptron(7, 6),
    # 7 rows on 3 x 2 is the layout that torch 2.13 itself takes for one of 6 rows.
    **{f"fsdp {sizes[0]} x tp {sizes[1]}, {width} rows": perceptron(width, sizes[1]) for sizes, width in FSDP_TP},
    "fsdp and tp on dimension 1": one(5, 12, name="weight"),
    "adam": perceptron(7, 2),
    "experts": one(12, 3, 2),
    "experts uneven": one(8, 3, 2),
    "fsdp of experts": one(5, 6, 2, name="experts"),
    "fsdp in experts": one(5, 6, 2, name="experts"),
    "replicas": one(3, 2, replicas=6),
    "one number": one(replicas=6),
    "twice on one dimension": one(8, 2),
    "on two dimensions": one(7, 5),
    "on some ranks": one(7, 2),
    "waiting": one(7, 2, replicas=6),
    "shard order": one(7, 2),
    "sharded tensor": one(7, 4),
    "local shards": one(3, 6),
}
LARGE: dict[str, dict[str, tuple[Shape, int]]] = {
    "hsdp 2 x 2 x tp 2, 8 rows": perceptron(8, 2, replicas=2),
    "hsdp 2 x 2 x tp 2, 7 rows": perceptron(7, 2, replicas=2),
    "hsdp 2 x 3 x tp 2, 7 rows": perceptron(7, 2, replicas=2),
    "fsdp x ep x tp": one(7, 3, 5, name="experts"),
    "fsdp x ep x tp on one dimension": one(17, 3, name="experts"),
    "fsdp between tp and ep": one(17, 3, name="weight"),
    "fsdp over context parallel ranks": one(17, 3, name="weight"),
}
REFUSED = {
    "partial": "Invalid: is a DTensor with a Partial placement on mesh dimension dp; reduce it with",
    "interleaved": "Invalid: is a DTensor with _StridedShard(dim=0, sf=4) on mesh dimension dp, whose rows interleave",
    "too many rows": "is the box at (0, 0) of shape (2, 6), but whose local tensor has shape (3, 6); make it again",
    "too few rows": "is the box at (0, 0) of shape (2, 6), but whose local tensor has shape (1, 6); make it again",
    "no rows": "is the box at (0, 0) of shape (4, 3), but whose local tensor has shape (0, 6); make it again",
    "rows swapped with columns": "of shape (4, 6), but whose local tensor has shape (6, 4); make it again",
    "other dtype": "of torch.float32 whose local tensor is of torch.float64; convert it to one dtype",
    "outside": "of shape (4, 6) whose part on this rank is the box at (3, 0) of shape (2, 6), but whose local tensor",
    "a class of one's own": "Unsupported: is a DTensor with Shard(dim=0) on mesh dimension dp, a placement that is not",
    "two orders": "Unsupported: is a DTensor with both strided shards and a shard order; redistribute it to Shard",
    "no such dimension": "Invalid: is a DTensor of 2 dimensions with Shard(dim=2) on mesh dimension tp; make it again",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the six ranks and the larger jobs, all run once, have written what they hold."""
    place = tmp_path_factory.mktemp("sharded")
    arguments = [[str(place), str(rank)] for rank in range(WORLD)] + [[str(place)]]
    logs = [(place / f"{number}.log").open("w+") for number in range(len(arguments))]
    ranks = [
        subprocess.Popen([sys.executable, "-W", "error", WORKER, *words], stdout=log, stderr=subprocess.STDOUT)
        for words, log in zip(arguments, logs, strict=True)
    ]
    deadline = time.monotonic() + 300
    try:
        while (codes := [rank.poll() for rank in ranks]).count(0) < len(ranks):
            if any(codes) or time.monotonic() > deadline:
                pytest.fail("\n".join([f"ranks ended with {codes}"] + [Path(log.name).read_text() for log in logs]))
            time.sleep(0.1)
    finally:
        for rank, log in zip(ranks, logs, strict=True):
            rank.kill()
            rank.wait()
            log.close()
    return place


@pytest.fixture(scope="module")
def of_six(place: Path) -> list[tuple[dict[str, Any], dict[str, bool]]]:
    return [torch.load(place / f"{rank}.pt") for rank in range(WORLD)]


def check_layout(ranks: list[dict[str, Any]], name: str, shape: Shape, replicas: int) -> list[Parts]:
    """Every part holds the numbers of its box, and all parts together every number `replicas` times."""
    whole = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    count = torch.zeros(shape, dtype=torch.int64)
    found = []
    for rank in (rank for rank in ranks if rank):
        assert not isinstance(rank[name], str), rank[name]
        said, parts = rank[name]
        assert said == shape
        for start, size, part in parts:
            assert 0 not in size
            at = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
            assert torch.equal(whole[at], part), f"{name}: the box at {start} of shape {size} holds {part}"
            count[at] += 1
        found.append(parts)
    assert (count == replicas).all(), f"{name}: the elements are held {count} times"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", OF_SIX)
def test_parts_of_all_ranks_of_a_real_job_are_the_tensor(of_six: list[Any], case: str) -> None:
    ranks = [found[case] for found, _ in of_six]
    assert {name for rank in ranks for name in rank} == OF_SIX[case].keys()
    for name, (shape, replicas) in OF_SIX[case].items():
        check_layout(ranks, name, shape, replicas)


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE)
def test_parts_of_all_ranks_of_a_larger_job_are_the_tensor(place: Path, case: str) -> None:
    ranks = torch.load(place / "large.pt")[case]
    assert all(rank.keys() == LARGE[case].keys() for rank in ranks)
    for name, (shape, replicas) in LARGE[case].items():
        check_layout(ranks, name, shape, replicas)


@pytest.mark.slow
def test_every_case_of_the_ranks_is_checked(place: Path, of_six: list[Any]) -> None:
    assert all(found.keys() == OF_SIX.keys() | {"refused"} for found, _ in of_six)
    assert torch.load(place / "large.pt").keys() == LARGE.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "name", "parts"),
    [
        ("fsdp", "(2, 5)", [1, 1, 0, 0, 0, 0]),  # fewer rows than ranks
        ("fsdp", "(13, 3)", [1, 1, 1, 1, 1, 0]),
        ("fsdp 3 x tp 2, 7 rows", "0.weight", [1, 1, 1, 1, 0, 1]),  # 2 + 2 + 0 of 4 rows, 1 + 1 + 1 of 3
        ("on some ranks", "tensor", [0, 1, 0, 1, 1, 0]),  # the others are outside of the mesh
        ("sharded tensor", "tensor", [2, 0, 1, 1, 1, 0]),
        ("local shards", "tensor", [2, 0, 1, 1, 1, 1]),
    ],
)
def test_ranks_hold_as_many_parts_as_they_should(of_six: list[Any], case: str, name: str, parts: list[int]) -> None:
    assert [len(found[case][name][1]) for found, _ in of_six] == parts


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_refused(of_six: list[Any], name: str) -> None:
    """On every rank, or where only some hold something wrong, on those."""
    texts = [found["refused"][name] for found, _ in of_six]
    refused = [text for text in texts if isinstance(text, str)]
    assert any(REFUSED[name] in text for text in refused)
    if REFUSED[name].startswith(("Invalid", "Unsupported")):
        assert len(refused) == WORLD


@pytest.mark.slow
def test_storage_keys_tell_tied_tensors_on_every_rank(of_six: list[Any]) -> None:
    for rank, (_, ties) in enumerate(of_six):
        assert len(ties) > 10
        assert [name for name, held in ties.items() if not held] == [], f"rank {rank}"


# Any layout, against a model: the numbers of a tensor, cut by torch.chunk in the order that a job would.


@st.composite
def orders(draw: st.DrawFn) -> tuple[Shape, Shape, list[int | None], list[int]]:
    """A tensor shape, mesh sizes, for each mesh dimension the tensor dimension that it shards, and the true order."""
    shape = tuple(draw(st.lists(st.integers(0, 13), min_size=1, max_size=3)))
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    dims = [draw(st.sampled_from([None, *range(len(shape))])) for _ in sizes]
    return shape, sizes, dims, draw(st.sampled_from(list(permutations(range(len(sizes))))))


def placements_for(sizes: Shape, dims: list[int | None], order: list[int]) -> list[Any]:
    """As FSDP2 makes them: the factor counts the shards that dimensions on the right had made before."""
    made: list[Any] = []
    for at, dim in enumerate(dims):
        before = order[: order.index(at)]
        factor = math.prod(sizes[other] for other in before if other > at and dims[other] == dim)
        made.append(
            Replicate() if dim is None else _StridedShard(dim, split_factor=factor) if factor > 1 else Shard(dim)
        )
    return made


def chunk(tensor: torch.Tensor, count: int, dim: int, index: int) -> torch.Tensor:
    chunks = torch.chunk(tensor, count, dim)
    return chunks[index] if index < len(chunks) else tensor.narrow(dim, 0, 0)


def mesh_of(sizes: Shape) -> Iterator[DeviceMesh]:
    """The mesh as each of its ranks sees it."""
    ranks = torch.arange(math.prod(sizes)).view(sizes)
    return (DeviceMesh("cpu", ranks, _init_backend=False, _rank=rank) for rank in range(ranks.numel()))


def as_dtensor(local: torch.Tensor, mesh: DeviceMesh, placements: list[Any], whole: torch.Tensor) -> DTensor:
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())


def holds(held: Sharded, whole: torch.Tensor) -> bool:
    """Whether every part has the numbers of its box."""
    at = [tuple(slice(a, a + n) for a, n in zip(box.start, box.shape, strict=True)) for box, _ in held.parts]
    return all(torch.equal(whole[index], part) for index, (_, part) in zip(at, held.parts, strict=True))


@settings(deadline=None, max_examples=150)
@given(orders())
def test_any_order_of_any_mesh_is_found_from_the_split_factors(
    layout: tuple[Shape, Shape, list[int | None], list[int]],
) -> None:
    shape, sizes, dims, order = layout
    whole = torch.arange(math.prod(shape)).view(shape)
    placements = placements_for(sizes, dims, order)
    boxes: list[Box] = []
    for mesh in mesh_of(sizes):
        coordinate, local = mesh.get_coordinate(), whole
        for at in order:
            if (dim := dims[at]) is not None:
                local = chunk(local, sizes[at], dim, coordinate[at])
        held = sharded(as_dtensor(local, mesh, placements, whole))
        assert held is not None
        assert holds(held, whole)
        assert sum(part.numel() for _, part in held.parts) == local.numel()
        boxes += [box for box, _ in held.parts]
    replicas = math.prod(size for size, dim in zip(sizes, dims, strict=True) if dim is None)
    assert all(boxes.count(box) == replicas for box in boxes)
    assert covers(shape, list(dict.fromkeys(boxes)))


@settings(deadline=None, max_examples=150)
@given(
    rows=st.integers(1, 24),
    mesh=st.lists(st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3, 4, 6])), min_size=1, max_size=3),
)
def test_another_reading_of_strided_shards_is_refused_on_some_rank_where_it_differs(
    rows: int, mesh: list[tuple[int, int]]
) -> None:
    """From left to right, as `distribute_tensor` goes: pieces joined and cut again, whether they interleave or not."""
    whole, sizes = torch.arange(rows), tuple(size for size, _ in mesh)
    placements = [Shard(0) if factor == 1 else _StridedShard(0, split_factor=factor) for _, factor in mesh]
    right = []
    for each in mesh_of(sizes):
        local = whole
        for size, placement, index in zip(sizes, placements, each.get_coordinate(), strict=True):
            local = placement._split_tensor(local, size, with_padding=False)[0][index]
        try:
            held = sharded(as_dtensor(local, each, placements, whole))
        except CasError:
            return
        assert held is not None
        right.append(holds(held, whole))
    assert all(right)
