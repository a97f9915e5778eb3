"""What a second layout of the same weights costs, in stored and in read bytes: arithmetic on shapes, without data.

Two blocks are one where they hold the same bytes of the global tensor. Weights are bf16. FSDP2 cuts dimension 0 as
`torch.chunk` does: equal rows for each rank, rounded up, so that the last ranks may have fewer or none; over tensor
parallelism it cuts what that leaves of dimension 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import prod
from typing import NamedTuple

from cas.grid import Box, Shape, cell_size, cut, overlap

from .results import Amounts

NAME = "layouts"
ABOUT = (
    "bf16 weights that are stored in one layout and then in another, as arithmetic on shapes, without data. 4 to 3: "
    "from 4 ranks of FSDP2 to 3; to 1: to one process with whole tensors; 4 x 2: 4 ranks of FSDP2 over 2 of tensor "
    "parallelism, whose blocks of columns are shared with the same columns only. `added`: blocks of the second layout "
    "that the first lacks, and their share of the weights; in brackets (inner edges of both layouts) x cell, or the "
    "whole of a tensor that is split by columns. `read`: what the worst rank reads to fill its part, over that part; "
    "in brackets the same but for a cell at each inner edge of the part"
)
BLOCK_SIZE = 4 << 20
ITEMSIZE = 2


@dataclass(frozen=True, slots=True)
class Tensor:
    """`count` weights of one shape. `across` is the dimension that tensor parallelism splits: None, a copy each."""

    name: str
    shape: Shape
    count: int
    across: int | None

    @property
    def nbytes(self) -> int:
        """Of one of them."""
        return prod(self.shape) * ITEMSIZE


class Layout(NamedTuple):
    """Ranks of FSDP2, and of tensor parallelism below it. A single rank is one process with whole tensors."""

    fsdp: int
    tp: int = 1

    def __str__(self) -> str:
        return f"{self.fsdp} x {self.tp}" if self.tp > 1 else str(self.fsdp)

    def boxes(self, tensor: Tensor) -> list[Box]:
        """The part of each rank, copies and empty parts included."""
        return [_part(tensor, self, rank, column) for rank in range(self.fsdp) for column in range(self.tp)]


def _part(tensor: Tensor, layout: Layout, rank: int, column: int) -> Box:
    start, shape = [0] * len(tensor.shape), list(tensor.shape)
    if tensor.across is not None:
        start[tensor.across], shape[tensor.across] = _chunk(tensor.shape[tensor.across], layout.tp, column)
    skip, shape[0] = _chunk(shape[0], layout.fsdp, rank)
    return Box((start[0] + skip, *start[1:]), tuple(shape))


def _chunk(size: int, parts: int, number: int) -> tuple[int, int]:
    """Start and length of one of the parts."""
    most = -(-size // parts)
    start = min(number * most, size)
    return start, min(most, size - start)


def gpt2(vocabulary: int, positions: int, width: int, layers: int) -> list[Tensor]:
    """Its matrices are stored with the input first, so that the usual splits swap their dimensions."""
    return [
        Tensor("wte", (vocabulary, width), 1, 0),
        Tensor("wpe", (positions, width), 1, None),
        Tensor("attn.c_attn", (width, 3 * width), layers, 1),
        Tensor("attn.c_proj", (width, width), layers, 0),
        Tensor("mlp.c_fc", (width, 4 * width), layers, 1),
        Tensor("mlp.c_proj", (4 * width, width), layers, 0),
        Tensor("attn.c_attn.bias", (3 * width,), layers, 0),
        Tensor("mlp.c_fc.bias", (4 * width,), layers, 0),
        Tensor("norms and the other biases", (width,), 6 * layers + 2, None),
    ]


def llama(vocabulary: int, width: int, inner: int, kv: int, layers: int) -> list[Tensor]:
    return [
        *_attention(vocabulary, width, kv, layers),
        Tensor("gate_proj and up_proj", (inner, width), 2 * layers, 0),
        Tensor("down_proj", (width, inner), layers, 1),
    ]


def mixtral(vocabulary: int, width: int, inner: int, kv: int, layers: int, experts: int) -> list[Tensor]:
    """The experts of a layer are stacked into three tensors."""
    return [
        *_attention(vocabulary, width, kv, layers),
        Tensor("router", (experts, width), layers, None),
        Tensor("experts, w1 and w3", (experts, inner, width), 2 * layers, 1),
        Tensor("experts, w2", (experts, width, inner), layers, 2),
    ]


def _attention(vocabulary: int, width: int, kv: int, layers: int) -> list[Tensor]:
    """Everything but the perceptrons: `kv` are the rows of the key and the value projection."""
    return [
        Tensor("embed_tokens and lm_head", (vocabulary, width), 2, 0),
        Tensor("q_proj", (width, width), layers, 0),
        Tensor("k_proj and v_proj", (kv, width), 2 * layers, 0),
        Tensor("o_proj", (width, width), layers, 1),
        Tensor("norms", (width,), 2 * layers + 1, None),
    ]


MODELS = {
    "GPT-2 small": gpt2(50257, 1024, 768, 12),
    "Llama-3.1-8B": llama(128256, 4096, 14336, 1024, 32),
    "Mixtral-8x7B": mixtral(32000, 4096, 14336, 1024, 32, 8),
    "Llama-3.1-405B": llama(128256, 16384, 53248, 1024, 126),
}


class Change(NamedTuple):
    """From one layout to another."""

    first: Layout
    second: Layout

    def __str__(self) -> str:
        return f"{self.first} to {self.second}"


ROWS = [Change(Layout(a), Layout(b)) for a, b in ((4, 3), (8, 6), (64, 48), (4, 1), (8, 1), (64, 1))]
"""Changes that split dimension 0 only: those that the figures are about."""
MESHES = [
    Change(Layout(4, 2), Layout(3, 2)),
    Change(Layout(4, 2), Layout(8)),
    Change(Layout(8), Layout(4, 2)),
]


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes that a change of layout costs.

    `extra` are the blocks of the second layout that the first lacks; `bound` is (inner edges of both layouts) x cell,
    summed over tensors, or the whole of a tensor that is split on other dimensions. Of the tensor that comes nearest
    to its bound: `tensor_extra`, `tensor_bound`. Of the rank that is worst off: `part`, its own bytes; `read`, the
    blocks of the first layout under them; `beyond`, what it reads but for a cell at each inner edge of its boxes,
    tensor by tensor and never less than its part.
    """

    state: float
    extra: float
    bound: float
    tensor_extra: float
    tensor_bound: float
    part: float
    read: float
    beyond: float


def layouts() -> Iterator[Amounts]:
    """The cost of every change for every model: the workload is the model, what is measured the change."""
    for model, tensors in MODELS.items():
        for change in ROWS + MESHES:
            yield Amounts(model, str(change), asdict(cost(tensors, change)))


def cost(tensors: list[Tensor], change: Change) -> Cost:
    state, extra, bound, nearest = 0, 0, 0, (0, 1)
    ranks = [(0, 0, 0)] * (change.second.fsdp * change.second.tp)
    for tensor in tensors:
        cell = cell_size(tensor.nbytes, BLOCK_SIZE)
        old, new = change.first.boxes(tensor), change.second.boxes(tensor)
        added, most = extra_bytes(tensor, old, new, cell), _bound(tensor, old, new, cell)
        if most:
            nearest = max(nearest, (added, most), key=lambda pair: pair[0] / pair[1])
        state += tensor.count * tensor.nbytes
        extra += tensor.count * added
        bound += tensor.count * most
        read = reads(tensor, old, new, cell)
        ranks = [
            (sums[0] + tensor.count * one[0], sums[1] + tensor.count * one[1], sums[2] + tensor.count * one[2])
            for sums, one in zip(ranks, read, strict=True)
        ]
    worst = max((rank for rank in ranks if rank[0]), key=lambda rank: (rank[2] / rank[0], rank[1] / rank[0]))
    return Cost(state, extra, bound, *nearest, *worst)


def extra_bytes(tensor: Tensor, old: list[Box], new: list[Box], cell: int) -> int:
    """Bytes of the blocks that the new boxes have and the old ones lack."""
    held, wanted = (blocks(boxes, tensor.shape, cell) for boxes in (old, new))
    return sum(size for block, size in wanted.items() if block not in held)


class Runs(NamedTuple):
    """The bytes of a block in the global tensor: `number` runs of `length`, the first at `start`.

    They lie a row of the split dimension apart. Runs of one tensor that are as long split the same dimension, so
    equal numbers are equal bytes.
    """

    start: int
    length: int
    number: int


def blocks(boxes: list[Box], shape: Shape, cell: int) -> dict[Runs, int]:
    """The distinct blocks of the boxes, with their bytes. Time goes by the blocks, not by the runs."""
    found: dict[Runs, int] = {}
    for box in boxes:
        edges = cut(box, shape, ITEMSIZE, cell)
        found |= {_runs(box, shape, begin, end): end - begin for begin, end in pairwise(edges)}
    return found


def _runs(box: Box, shape: Shape, begin: int, end: int) -> Runs:
    """Where the bytes [begin, end) of the box lie: part of one run, or several whole ones.

    A box is split on dimension 0 and one other, k, at most: its runs follow each other in the tensor.
    """
    k = max((axis for axis in range(1, len(shape)) if box.shape[axis] != shape[axis]), default=0)
    inner = prod(shape[k + 1 :]) * ITEMSIZE
    length, row = box.shape[k] * inner, shape[k] * inner
    first = box.start[k] * inner + (box.start[0] * prod(shape[1:k]) * row if k else 0)
    run, skip = divmod(begin, length)
    number = max(1, (end - begin) // length)
    return Runs(first + run * row + skip, (end - begin) // number, number)


def _bound(tensor: Tensor, old: list[Box], new: list[Box], cell: int) -> int:
    if any(box.shape[1:] != tensor.shape[1:] for box in old + new):
        return tensor.nbytes
    return sum(len({box.start[0] for box in boxes if box.size} - {0}) for boxes in (old, new)) * cell


def reads(tensor: Tensor, old: list[Box], new: list[Box], cell: int) -> list[tuple[int, int, int]]:
    """For each new rank: bytes of its part, of the old blocks under it, and of these beyond the cells of its edges."""
    shards = [(box, cut(box, tensor.shape, ITEMSIZE, cell)) for box in dict.fromkeys(old)]
    found = []
    for box in new:
        part = box.size * ITEMSIZE
        touched = [(edges, n) for shard, edges in shards for n, _ in overlap(box, shard, edges, ITEMSIZE)]
        read = sum(edges[n + 1] - edges[n] for edges, n in touched)
        found.append((part, read, max(part, read - _inner_edges(box, tensor.shape) * cell)))
    return found


def _inner_edges(box: Box, shape: Shape) -> int:
    dims = zip(box.start, box.shape, shape, strict=True)
    return sum((start > 0) + (start + count < size) for start, count, size in dims)
