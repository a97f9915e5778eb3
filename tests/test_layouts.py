"""The bench's arithmetic on layouts: every byte of small tensors labelled, the bounds, and what DESIGN says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.layouts import (
    BLOCK_SIZE,
    ITEMSIZE,
    MESHES,
    MODELS,
    ROWS,
    Change,
    Cost,
    Layout,
    Tensor,
    cost,
    extra_bytes,
    reads,
)
from bench.results import Amounts, Results
from bench.targets import figures
from cas.grid import Box, cell_size, covers, cut

ROOT = Path(__file__).parent.parent
Block = frozenset[int]  # offsets of its bytes in the global tensor

calm = settings(deadline=None, max_examples=400)


def matrix(rows: int, columns: int, across: int | None = None) -> Tensor:
    return Tensor("weight", (rows, columns), 1, across)


def labelled(tensor: Tensor, box: Box) -> list[int]:
    """The bytes of a box, each by its offset in the tensor."""
    offsets = np.arange(tensor.nbytes).reshape(*tensor.shape, ITEMSIZE)
    part = offsets[tuple(slice(a, a + n) for a, n in zip(box.start, box.shape, strict=True))]
    return [int(offset) for offset in part.ravel()]


def labelled_blocks(tensor: Tensor, layout: Layout, cell: int) -> set[Block]:
    found = set()
    for box in layout.boxes(tensor):
        offsets = labelled(tensor, box)
        found |= {frozenset(offsets[a:b]) for a, b in pairwise(cut(box, tensor.shape, ITEMSIZE, cell))}
    return found


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))
    return Tensor("weight", shape, 1, draw(st.sampled_from([None, *range(len(shape))])))


layouts = st.builds(Layout, st.integers(1, 7), st.integers(1, 3))


@calm
@given(tensors(), layouts, layouts, st.sampled_from([16, 32, 128]))
@example(Tensor("experts", (3, 4, 10), 1, 2), Layout(2, 2), Layout(3, 2), 64)  # runs with gaps within a block
@example(Tensor("experts", (2, 4, 10), 1, 1), Layout(1, 2), Layout(2), 16)
@example(matrix(9, 5, 1), Layout(2, 2), Layout(3, 2), 32)  # blocks of the same first run, of different numbers of runs
def test_added_and_read_bytes_are_those_of_labelled_bytes(
    tensor: Tensor, first: Layout, second: Layout, cell: int
) -> None:
    old, new = first.boxes(tensor), second.boxes(tensor)
    held, wanted = labelled_blocks(tensor, first, cell), labelled_blocks(tensor, second, cell)
    assert extra_bytes(tensor, old, new, cell) == sum(map(len, wanted - held))
    parts = [set(labelled(tensor, box)) for box in new]
    touched = [sum(len(block) for block in held if block & part) for part in parts]
    assert [(part, read) for part, read, _ in reads(tensor, old, new, cell)] == [
        (len(part), read) for part, read in zip(parts, touched, strict=True)
    ]


@calm
@given(tensors(), layouts)
def test_parts_cover_a_tensor_and_only_whole_copies_occur_twice(tensor: Tensor, layout: Layout) -> None:
    boxes = layout.boxes(tensor)
    assert len(boxes) == layout.fsdp * layout.tp
    assert covers(tensor.shape, list(dict.fromkeys(boxes)))
    if tensor.across is None:
        assert all(len(set(boxes[at : at + layout.tp])) == 1 for at in range(0, len(boxes), layout.tp))


@pytest.mark.parametrize("ranks", [1, 2, 3, 6, 8, 64])
def test_rows_are_chunked_as_torch_does_it(ranks: int) -> None:
    for rows in (1, 2, 3, 7, 8, 9, 63, 64, 65, 100, 129):
        chunks = torch.arange(rows).chunk(ranks)
        boxes = Layout(ranks).boxes(matrix(rows, 1))
        assert [box.shape[0] for box in boxes] == [*map(len, chunks), *[0] * (ranks - len(chunks))]
        assert [box.start[0] for box in boxes[: len(chunks)]] == [int(chunk[0]) for chunk in chunks]


ranks = st.integers(1, 9)


@calm
@given(st.integers(1, 60), st.integers(1, 12), ranks, ranks, st.sampled_from([16, 64]))
@example(10, 7, 2, 4, 16)
def test_edges_bound_what_a_layout_of_rows_adds(rows: int, columns: int, a: int, b: int, cell: int) -> None:
    """Each inner edge of either layout spoils the cell that it is in, and nothing else."""
    tensor = matrix(rows, columns)
    old, new = (Layout(count).boxes(tensor) for count in (a, b))
    parts = [box for box in old + new if box.size]
    edges = {box.start[0] for box in parts} - {0}
    assert extra_bytes(tensor, old, new, cell) <= len(edges) * cell
    for part, read, beyond in reads(tensor, old, new, cell):
        assert part <= read <= part + 2 * cell
        assert beyond == part


def test_shards_below_a_cell_share_the_cells_that_they_have_whole() -> None:
    tensor = matrix(320, 512)  # 320 KiB: the second of two halves of 160 KiB is cut where the whole is
    found = cost([tensor], Change(Layout(2), Layout(1)))
    assert (found.extra, found.bound) == (256 << 10, 256 << 10)
    assert cost([matrix(512, 512)], Change(Layout(2), Layout(1))).extra == 0


PARAMETERS = {
    "GPT-2 small": 124_439_808,
    "Llama-3.1-8B": 8_030_261_248,
    "Mixtral-8x7B": 46_702_792_704,
    "Llama-3.1-405B": 405_853_388_800,
}


def test_models_have_as_many_parameters_as_their_authors_say() -> None:
    assert {name: sum(prod(one.shape) * one.count for one in MODELS[name]) for name in MODELS} == PARAMETERS


@pytest.mark.parametrize("change", ROWS, ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_of_every_model_is_within_the_bounds(model: str, change: Change) -> None:
    for tensor in MODELS[model]:
        cell = cell_size(tensor.nbytes, BLOCK_SIZE)
        old, new = change.first.boxes(tensor), change.second.boxes(tensor)
        edges = {box.start[0] for box in old if box.size} | {box.start[0] for box in new if box.size}
        assert extra_bytes(tensor, old, new, cell) <= len(edges - {0}) * cell, tensor
    found = cost(MODELS[model], change)
    assert found.tensor_extra <= found.tensor_bound
    assert found.extra <= found.bound
    assert found.beyond == found.part <= found.read


def test_four_to_three_ranks_of_llama_8b_add_less_than_a_hundredth() -> None:
    found = cost(MODELS["Llama-3.1-8B"], Change(Layout(4), Layout(3)))
    assert found.state == 2 * PARAMETERS["Llama-3.1-8B"]
    assert 0.007 < found.extra / found.state < 0.009


def test_eight_to_sixteen_ranks_of_a_matrix_share_every_block() -> None:
    assert cost([matrix(4096, 4096)], Change(Layout(8), Layout(16))).extra == 0
    assert cost([matrix(4096, 4096)], Change(Layout(8), Layout(15))).extra > 0


def test_columns_are_shared_with_the_same_columns_only() -> None:
    tensor = matrix(4096, 4096, across=1)
    assert cost([tensor], Change(Layout(4, 2), Layout(2, 2))).extra == 0
    times = {(Layout(4, 2), Layout(8)): 1, (Layout(2, 4), Layout(4, 2)): 1, (Layout(8), Layout(4, 2)): 2}
    for change, read in times.items():
        found = cost([tensor], Change(*change))
        assert found.extra == found.bound == tensor.nbytes
        assert found.read == read * found.part


def test_a_tensor_that_occurs_often_counts_as_often() -> None:
    one, other, change = matrix(1000, 700), matrix(50, 9000), Change(Layout(4), Layout(3))
    apart = [asdict(cost([tensor], change)) for tensor in (one, one, one, other)]
    joined = asdict(cost([replace(one, count=3), other], change))
    for what in ("state", "extra", "bound"):
        assert joined[what] == sum(found[what] for found in apart)
    ratios = [found["tensor_extra"] / found["tensor_bound"] for found in apart]
    assert joined["tensor_extra"] / joined["tensor_bound"] == max(ratios) > min(ratios)
    assert joined["read"] / joined["part"] < max(found["read"] / found["part"] for found in apart)


def test_figures_are_of_the_worst_model_and_miss_where_a_bound_is_broken() -> None:
    fine = Cost(100, 10, 20, 9, 10, 50, 70, 50)
    changes = [str(ROWS[0]), str(MESHES[0])]
    for change, bad, met in ((changes[0], True, False), (changes[0], False, True), (changes[1], True, True)):
        worse = replace(fine, tensor_extra=11, beyond=60) if bad else fine
        results = Results(
            amounts=[Amounts("GPT-2 small", changes[0], asdict(fine)), Amounts("Llama-3.1-8B", change, asdict(worse))]
        )
        found = figures(results)
        assert [figure.met for figure in found] == [met, met]
        assert [figure.value for figure in found] == ([0.9, 1.0] if met else [1.1, 1.2])
        assert [figure.medians == f"Llama-3.1-8B, {change}" for figure in found] == [not met] * 2


@pytest.mark.slow
def test_the_part_of_the_bench_leaves_every_change_of_every_model(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "bench", "--only", "layouts", "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    changes = [str(change) for change in ROWS + MESHES]
    assert [(one["workload"], one["what"]) for one in found["bytes"]] == [(m, c) for m in MODELS for c in changes]
    assert [figure["met"] for figure in found["figures"]] == [True, True]
    table = (tmp_path / "bench.md").read_text()
    assert all(f"| {change} | added |" in table for change in changes)
    assert "| 4 to 3 | added | 35 MiB, 15 % (78 %) | 125 MiB, 0.81 % (2.5 %) |" in table
