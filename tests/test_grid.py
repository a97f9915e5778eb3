"""Cutting against the rule read literally, a byte at a time; reading against numpy slicing; pinned edges."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise, product
from math import prod

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cas.errors import CasError, Corrupt, Invalid
from cas.grid import ITEMSIZES, MAX_CELL, MAX_RANK, Box, Piece, cell_size, check_cell, covers, cut, overlap

KIB, MIB = 1 << 10, 1 << 20
Ints = tuple[int, ...]
Block = Ints  # global offsets of its bytes, in order
Offsets = npt.NDArray[np.int64]

# No deadline: other work shares the cores.
calm = settings(deadline=None, max_examples=400)


# The model: every byte of a tensor is named by its offset from the start of the tensor.


def offsets(shape: Ints, itemsize: int) -> Offsets:
    return np.arange(prod(shape) * itemsize).reshape(*shape, itemsize)


def part(tensor: Offsets, box: Box) -> Offsets:
    return tensor[tuple(slice(a, a + n) for a, n in zip(box.start, box.shape, strict=True))]


def cut_literally(box: Box, shape: Ints, itemsize: int, cell: int) -> list[Block]:
    """DESIGN's words, with a step for every byte."""
    tensor = offsets(shape, itemsize)
    if not box.size:
        return []
    k = min((k for k in range(len(shape)) if box.shape[k + 1 :] == shape[k + 1 :]), default=0)
    blocks: dict[object, list[int]] = {}
    before = [range(a, a + n) for a, n in zip(box.start[:k], box.shape[:k], strict=True)]
    for index in product(*before):
        inner = Box((*index, *box.start[k:]), (*(1,) * k, *box.shape[k:]))
        run = part(tensor, inner).ravel().tolist()
        assert run == list(range(run[0], run[0] + len(run))), "a run is contiguous"
        for byte in run:
            if len(run) >= cell or k == 0:
                key: object = (index, byte // cell)
            else:
                g = max(2**n for n in range(40) if 2**n <= cell / len(run))
                row = int(np.ravel_multi_index(index, shape[:k]))
                key = row // g
            blocks.setdefault(key, []).append(byte)
    return [tuple(block) for block in blocks.values()]


def cut_to_offsets(box: Box, shape: Ints, itemsize: int, cell: int) -> list[Block]:
    local = part(offsets(shape, itemsize), box).ravel().tolist()
    return [tuple(local[a:b]) for a, b in pairwise(cut(box, shape, itemsize, cell))]


@st.composite
def boxes(draw: st.DrawFn, shape: Ints) -> Box:
    if draw(st.integers(0, 5)) == 0:
        return Box.whole(shape)
    pairs = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
    pairs = [[0, n] if draw(st.booleans()) else pair for pair, n in zip(pairs, shape, strict=True)]
    return Box(tuple(a for a, _ in pairs), tuple(b - a for a, b in pairs))


shapes = st.one_of(
    st.lists(st.integers(0, 9), max_size=4).map(tuple),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 12), st.integers(1, 3), st.integers(1, 20), st.integers(1, 3)),
)
cells = st.sampled_from([16, 32, 64, 128, 256])
itemsizes = st.sampled_from([1, 1, 2, 4, 8, 16])


@st.composite
def tensors_with_boxes(draw: st.DrawFn, count: int) -> tuple[Ints, list[Box]]:
    shape = draw(shapes)
    return shape, [draw(boxes(shape)) for _ in range(count)]


# Cutting


@calm
@given(tensors_with_boxes(1), itemsizes, cells)
@example(((5, 3, 9), [Box((1, 1, 2), (4, 2, 3))]), 2, 16)  # runs of 6 bytes join across dimension 0
@example(((4, 4, 8), [Box((0, 0, 0), (4, 1, 4))]), 1, 16)  # groups of 4 runs, of which the box holds 1
@example(((3, 40), [Box((0, 3), (3, 30))]), 1, 16)  # long runs that begin and end within cells
@example(((), [Box((), ())]), 16, 16)
def test_cut_is_the_literal_rule(tensor: tuple[Ints, list[Box]], itemsize: int, cell: int) -> None:
    shape, [box] = tensor
    box.check(shape, itemsize)
    edges = cut(box, shape, itemsize, cell)
    assert edges[0] == 0
    assert edges[-1] == box.size * itemsize
    assert all(0 < b - a <= cell and a % itemsize == 0 for a, b in pairwise(edges))
    assert cut_to_offsets(box, shape, itemsize, cell) == cut_literally(box, shape, itemsize, cell)


PINNED: dict[str, tuple[Box, Ints, int, int, list[int]]] = {
    # name: box, global shape, itemsize, cell, edges
    "no dimensions": (Box((), ()), (), 8, 16, [0, 8]),
    "empty tensor": (Box((0, 0), (0, 5)), (0, 5), 4, 16, [0]),
    "empty shard": (Box((7,), (0,)), (7,), 4, 16, [0]),
    "one cell": (Box((0,), (16,)), (16,), 1, 16, [0, 16]),
    "one byte over": (Box((0,), (17,)), (17,), 1, 16, [0, 16, 17]),
    "whole, any rank": (Box((0, 0, 0), (3, 2, 5)), (3, 2, 5), 2, 16, [0, 16, 32, 48, 60]),
    "row shard on the grid": (Box((4, 0), (4, 8)), (12, 8), 1, 16, [0, 16, 32]),
    "row shard off the grid": (Box((3, 0), (4, 8)), (12, 8), 1, 16, [0, 8, 24, 32]),
    "row shard below a cell across the grid": (Box((3,), (15,)), (40,), 1, 16, [0, 13, 15]),
    "long runs": (Box((1, 3), (2, 18)), (4, 24), 1, 16, [0, 5, 18, 31, 36]),
    "short runs, g = 4": (Box((0, 4), (10, 4)), (10, 8), 1, 16, [0, 16, 32, 40]),
    "short runs, first group begun": (Box((3, 4), (6, 4)), (10, 8), 1, 16, [0, 4, 20, 24]),
    "g rounds down to 2": (Box((0, 0), (5, 5)), (5, 8), 1, 16, [0, 10, 20, 25]),
    "g is 1": (Box((0, 0), (3, 9)), (3, 12), 1, 16, [0, 9, 18, 27]),
    "groups run over dimension 0": (Box((0, 0, 0), (3, 3, 2)), (3, 3, 4), 1, 16, [0, 16, 18]),
    "groups count rows that the box lacks": (Box((0, 1, 0), (3, 1, 2)), (3, 3, 4), 1, 16, [0, 6]),
    "groups skipped": (Box((0, 1, 0), (3, 1, 2)), (3, 8, 4), 1, 16, [0, 2, 4, 6]),
    "dimension of 1 inside": (Box((0, 0, 2), (2, 1, 4)), (2, 1, 8), 4, 16, [0, 8, 16, 24, 32]),
}


@pytest.mark.parametrize("name", PINNED)
def test_pinned_edges(name: str) -> None:
    box, shape, itemsize, cell, edges = PINNED[name]
    assert cut(box, shape, itemsize, cell) == edges


def test_pinned_edges_of_real_size() -> None:
    embedding = (50257, 768)  # GPT-2's, bf16: 77,194,752 bytes
    cell = cell_size(prod(embedding) * 2, 4 * MIB)
    assert cell == 256 * KIB
    assert cut(Box.whole(embedding), embedding, 2, cell) == [*range(0, 77_194_752, 256 * KIB), 77_194_752]
    second_of_four = Box((12565, 0), (12565, 768))  # begins at byte 19,299,840: 98,816 before cell 74
    edges = cut(second_of_four, embedding, 2, cell)
    assert edges[:3] == [0, 98_816, 360_960]
    assert edges[-1] == 19_299_840
    assert len(edges) == 76
    column = Box((0, 96), (50257, 96))  # runs of 192 bytes, 1,024 of them to a block
    assert cut(column, embedding, 2, cell) == [*range(0, 50257 * 192, 1024 * 192), 50257 * 192]


@pytest.mark.parametrize(
    ("nbytes", "block_size", "cell"),
    [
        (0, 4 * MIB, 256 * KIB),
        (1, 4 * MIB, 256 * KIB),
        (128 * MIB - 1, 4 * MIB, 256 * KIB),
        (128 * MIB, 4 * MIB, 512 * KIB),
        (255 * MIB, 4 * MIB, 512 * KIB),
        (1024 * MIB, 4 * MIB, 4 * MIB),
        (2**62, 4 * MIB, 4 * MIB),
        (2**62, 1 * MIB, 1 * MIB),
        (2**62, 256 * KIB, 256 * KIB),
        (2**62, 64, 64),
        (0, 64, 64),
    ],
)
def test_cell_follows_from_the_global_size(nbytes: int, block_size: int, cell: int) -> None:
    assert cell_size(nbytes, block_size) == cell


# Sharing: equal blocks are blocks of the same global bytes.


def split(shape: Ints, axis: int, stops: list[int]) -> list[Box]:
    """Shards that split one dimension at `stops`."""
    whole = Box.whole(shape)
    made = []
    for a, b in pairwise([0, *stops, shape[axis]]):
        start, size = list(whole.start), list(whole.shape)
        start[axis], size[axis] = a, b - a
        made.append(Box(tuple(start), tuple(size)))
    return made


def even(shape: Ints, axis: int, ranks: int) -> list[Box]:
    """As torch shards: each rank takes the rounded up share, the last ones less or nothing."""
    share = -(-shape[axis] // ranks)
    return split(shape, axis, [min(rank * share, shape[axis]) for rank in range(1, ranks)])


def layout_blocks(shards: list[Box], shape: Ints, itemsize: int, cell: int) -> set[Block]:
    return {block for box in shards for block in cut_to_offsets(box, shape, itemsize, cell)}


def row_blocks(shards: list[Box], shape: Ints, itemsize: int, cell: int) -> set[tuple[int, int]]:
    """Global ranges of blocks of shards that split dimension 0, of any size."""
    row = prod(shape[1:]) * itemsize
    return {
        (box.start[0] * row + a, box.start[0] * row + b)
        for box in shards
        for a, b in pairwise(cut(box, shape, itemsize, cell))
    }


def test_8_to_16_ranks_share_all_blocks() -> None:
    shape, cell = (4096, 4096), cell_size(4096 * 4096 * 2, 4 * MIB)
    eight, sixteen = (row_blocks(even(shape, 0, ranks), shape, 2, cell) for ranks in (8, 16))
    assert eight == sixteen == row_blocks([Box.whole(shape)], shape, 2, cell)
    assert len(eight) == 128


def test_4_to_3_ranks_store_at_most_a_cell_again_for_each_inner_edge() -> None:
    shape, cell = (4096, 14336), cell_size(4096 * 14336 * 2, 4 * MIB)
    four, three = (row_blocks(even(shape, 0, ranks), shape, 2, cell) for ranks in (4, 3))
    extra = sum(b - a for a, b in three - four)
    assert 0 < extra <= (3 + 2) * cell


small_cells = st.sampled_from([16, 32, 64])
stops = st.lists(st.integers(0, 48), max_size=5).map(sorted)


@calm
@given(st.sampled_from([(48, 8), (48,), (3, 48, 4), (2, 48)]), itemsizes, small_cells, stops, stops)
def test_layouts_that_split_one_dimension_share_every_cell_that_no_edge_crosses(
    shape: Ints, itemsize: int, cell: int, stops_a: list[int], stops_b: list[int]
) -> None:
    axis = shape.index(48)
    inner = prod(shape[axis + 1 :]) * itemsize
    one, other = split(shape, axis, stops_a), split(shape, axis, stops_b)
    if any(0 < box.shape[axis] * inner < cell for box in (*one, *other)):
        return  # the promise is for runs of at least a cell
    mine, theirs = (layout_blocks(shards, shape, itemsize, cell) for shards in (one, other))
    runs = prod(shape[:axis])
    edges = [(run * 48 + stop) * inner for run in range(runs) for stop in set(stops_a) ^ set(stops_b)]
    for block in mine ^ theirs:
        cell_start = block[0] // cell * cell
        assert any(cell_start < edge < cell_start + cell for edge in edges)
    extra = sum(map(len, theirs - mine))
    assert extra <= (len(stops_a) + len(stops_b)) * runs * cell


@calm
@given(stops, stops, st.integers(2, 4))
def test_columns_split_alike_share_when_rows_are_resharded(a: list[int], b: list[int], ranks: int) -> None:
    """FSDP over TP: another number of data ranks, the same tensor ranks; runs are short."""
    shape, cell = (48, 16), 64
    columns = even(shape, 1, ranks)

    def mesh(cuts: list[int]) -> list[Box]:
        return [both for row in split(shape, 0, cuts) for c in columns if (both := row.intersect(c))]

    mine, theirs = (layout_blocks(mesh(cuts), shape, 1, cell) for cuts in (a, b))
    for block in mine ^ theirs:
        [box] = [c for c in columns if c.start[1] <= block[0] % 16 < c.start[1] + c.shape[1]]
        group = {4: 16, 5: 8, 6: 8, 8: 8}[box.shape[1]]
        first = block[0] // 16 // group * group
        assert any(first < stop < first + group for stop in set(a) ^ set(b))


# Reading


@calm
@given(tensors_with_boxes(2), itemsizes, cells)
def test_overlap_copies_the_wanted_bytes_from_the_blocks_that_hold_them(
    tensor: tuple[Ints, list[Box]], itemsize: int, cell: int
) -> None:
    shape, [wanted, shard] = tensor
    content = (offsets(shape, itemsize) % 251).astype(np.uint8)
    edges = cut(shard, shape, itemsize, cell)
    stored = part(content, shard).tobytes()  # type: ignore[arg-type]
    out = bytearray(b"\xff" * (wanted.size * itemsize))
    plan = list(overlap(wanted, shard, edges, itemsize))
    for number, pieces in plan:
        assert len(pieces) <= 2 * len(shape) + 1
        for piece in pieces:
            piece.copy(stored[edges[number] : edges[number + 1]], out)

    expected = np.full_like(content, 255)
    common = wanted.intersect(shard)
    if common:
        part(expected, common)[...] = part(content, common)  # type: ignore[arg-type]
    assert bytes(out) == part(expected, wanted).tobytes()  # type: ignore[arg-type]
    everything = offsets(shape, itemsize)
    bytes_of_common = set(part(everything, common).ravel().tolist() if common else [])
    blocks = cut_to_offsets(shard, shape, itemsize, cell)
    touched = [number for number, block in enumerate(blocks) if bytes_of_common.intersection(block)]
    assert [number for number, _ in plan] == touched
    sizes = [piece.length * prod(n for n, _, _ in piece.repeat) for _, pieces in plan for piece in pieces]
    assert sum(sizes) == len(bytes_of_common), "no byte is copied twice"


@calm
@given(tensors_with_boxes(1), st.data(), itemsizes, cells)
def test_shards_of_any_layout_fill_any_box(
    tensor: tuple[Ints, list[Box]], data: st.DataObject, itemsize: int, cell: int
) -> None:
    shape, [wanted] = tensor
    shards = [Box.whole(shape)]
    if shape:
        axis = data.draw(st.integers(0, len(shape) - 1))
        shards = even(shape, axis, data.draw(st.integers(1, 5)))
    assert covers(shape, shards)
    content = (offsets(shape, itemsize) % 251).astype(np.uint8)
    out = bytearray(b"\xff" * (wanted.size * itemsize))
    for shard in shards:
        edges = cut(shard, shape, itemsize, cell)
        stored = memoryview(part(content, shard).tobytes())  # type: ignore[arg-type]
        for number, pieces in overlap(wanted, shard, edges, itemsize):
            for piece in pieces:
                piece.copy(stored[edges[number] : edges[number + 1]], out)
    assert bytes(out) == part(content, wanted).tobytes()  # type: ignore[arg-type]


def test_a_slice_reads_only_its_blocks() -> None:
    shape = (50257, 768)
    whole = Box.whole(shape)
    edges = cut(whole, shape, 2, 256 * KIB)
    rows = list(overlap(Box((1000, 0), (128, 768)), whole, edges, 2))
    assert rows == [
        (5, [Piece(225_280, 0, 36_864)]),
        (6, [Piece(0, 36_864, 159_744)]),
    ]


def test_a_resharding_read_is_one_piece_a_block_however_many_rows() -> None:
    shape = (131072, 8192)
    column = Box((0, 1024), (131072, 1024))
    edges = cut(column, shape, 2, 4 * MIB)
    plan = list(overlap(Box.whole(shape), column, edges, 2))
    assert len(plan) == 64
    assert plan[1] == (1, [Piece(0, 2048 * 16384 + 2048, 2048, ((2048, 2048, 16384),))])


def test_rows_join_where_both_sides_span_a_dimension() -> None:
    """A million runs in two dimensions are one dimension to the copy."""
    shape = (1000, 1000, 8)
    shard = Box((0, 0, 4), (1000, 1000, 4))
    [(_, [piece])] = overlap(Box.whole(shape), shard, [0, 4_000_000], 1)
    assert piece == Piece(0, 4, 4, ((1_000_000, 4, 8),))


@pytest.mark.parametrize(("block", "out"), [(14, 43), (15, 42), (0, 0)])
def test_copy_refuses_a_buffer_that_is_too_small(block: int, out: int) -> None:
    piece = Piece(1, 3, 4, ((3, 5, 18),))  # ends at byte 15 of the block and at byte 43 of the destination
    target = bytearray(out)
    with pytest.raises((TypeError, ValueError)):
        piece.copy(b"x" * block, target)
    assert target == bytes(out)
    piece.copy(b"x" * 15, bytearray(43))


# Tiling


def covers_literally(shape: Ints, candidates: list[Box]) -> bool:
    count = np.zeros(shape, np.int64)
    for box in candidates:
        count[tuple(slice(a, a + n) for a, n in zip(box.start, box.shape, strict=True))] += 1
    return bool((count == 1).all())


@st.composite
def tilings(draw: st.DrawFn) -> tuple[Ints, list[Box]]:
    """A tensor halved at random, again and again; then perhaps one box doubled, dropped or moved."""
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    made = [Box.whole(shape)]
    for _ in range(draw(st.integers(0, 8)) if shape else 0):
        box = made.pop(draw(st.integers(0, len(made) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        local = split(box.shape, axis, [draw(st.integers(0, box.shape[axis]))])
        made += [Box(tuple(a + b for a, b in zip(box.start, x.start, strict=True)), x.shape) for x in local]
    made = draw(st.permutations(made))
    match draw(st.sampled_from(["keep", "keep", "double", "drop", "move"])):
        case "double":
            made.append(made[0])
        case "drop":
            made.pop()
        case "move":
            made[0] = draw(boxes(shape))
    return shape, made


@calm
@given(tilings())
def test_covers_is_one_box_for_every_element(tiling: tuple[Ints, list[Box]]) -> None:
    assert covers(*tiling) == covers_literally(*tiling)


def test_covers_boxes_that_interlock() -> None:
    around = [Box((0, 0), (1, 2)), Box((0, 2), (2, 1)), Box((2, 1), (1, 2)), Box((1, 0), (2, 1))]
    pinwheel = [*around, Box((1, 1), (1, 1))]
    assert covers((3, 3), pinwheel)
    shifted = [*pinwheel[:2], Box((2, 0), (1, 2)), *pinwheel[3:]]  # volumes still add up
    assert not covers((3, 3), shifted)


def test_covers_refuses_boxes_outside_the_tensor() -> None:
    assert not covers((4,), [Box((0,), (2,)), Box((3,), (2,))])
    assert not covers((4,), [Box((-1,), (4,))])
    assert not covers((4,), [Box((0, 0), (4, 1))])
    assert not covers((4,), [])
    assert covers((0, 4), [])
    assert covers((), [Box((), ())])
    assert not covers((), [Box((), ()), Box((), ())])


# Hostile input

CHECKS: list[tuple[tuple[object, ...], tuple[object, ...], tuple[object, ...], object]] = [
    # global shape, start, shape, itemsize
    ((4,), (-1,), (2,), 1),
    ((4,), (0,), (-1,), 1),
    ((-4,), (0,), (0,), 1),
    ((4,), (2,), (3,), 1),
    ((4,), (0, 0), (4, 1), 1),
    ((4,), (0,), (), 1),
    ((), (), (1,), 1),
    ((4,), (True,), (1,), 1),
    ((4.0,), (0,), (1,), 1),
    ((2**63,), (0,), (1,), 1),
    ((2**32, 2**31), (0, 0), (1, 1), 1),
    ((2**62,), (0,), (1,), 2),
    ((0, 2**62, 2), (0, 0, 0), (0, 1, 1), 1),
    ((4,), (2**63 - 1,), (2**63 - 1,), 1),
    ((4,), (0,), (4,), 3),
    ((4,), (0,), (4,), 0),
    ((4,), (0,), (4,), True),
    ((4,), (0,), (4,), 32),
    ((1,) * (MAX_RANK + 1), (0,) * (MAX_RANK + 1), (1,) * (MAX_RANK + 1), 1),
]


@pytest.mark.parametrize(("shape", "start", "size", "itemsize"), CHECKS)
@pytest.mark.parametrize("error", [Corrupt, Invalid])
def test_check_refuses_what_cannot_be(
    shape: Ints, start: Ints, size: Ints, itemsize: int, error: type[CasError]
) -> None:
    with pytest.raises(error):
        Box(start, size).check(shape, itemsize, error)


def test_check_accepts_what_can_be() -> None:
    Box((), ()).check((), 16)
    Box((2**62 - 1,), (1,)).check((2**62,), 1)
    Box((4,), (0,)).check((4,), 8)
    for itemsize in ITEMSIZES:
        Box.whole((0, 3)).check((0, 3), itemsize)


@pytest.mark.parametrize("cell", [0, 8, 24, -16, 2 * MAX_CELL, True, 16.0])
def test_check_cell_refuses_all_but_powers_of_two_in_range(cell: int) -> None:
    check_cell(16)
    check_cell(MAX_CELL, Invalid)
    with pytest.raises(Corrupt):
        check_cell(cell)


@calm
@given(tensors_with_boxes(1), itemsizes, cells)
def test_the_limit_is_exact(tensor: tuple[Ints, list[Box]], itemsize: int, cell: int) -> None:
    shape, [box] = tensor
    edges = cut(box, shape, itemsize, cell)
    count = len(edges) - 1
    assert cut(box, shape, itemsize, cell, limit=count) == edges
    if count:
        with pytest.raises(Corrupt):
            cut(box, shape, itemsize, cell, limit=count - 1)


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((2**62,), Box.whole((2**62,))),
        ((2**31, 2**31), Box((0, 1), (2**31, 2**30))),
        ((2**40, 2**22), Box((0, 0), (2**40, 1))),
        ((2**20, 2**20, 2**20), Box((0, 0, 0), (2**20, 1, 2**19))),
        ((2**10, 2**20, 2**20, 4), Box((0, 0, 0, 0), (2**10, 2**20, 2, 1))),
    ],
)
def test_a_box_from_a_file_costs_no_more_than_the_blocks_that_it_lists(shape: Ints, box: Box) -> None:
    box.check(shape, 1)
    with pytest.raises(Corrupt):
        cut(box, shape, 1, 16, limit=1000)


# Speed. The bounds are far above what a calm machine takes: they catch a step per run.


def best_of(times: int, work: Callable[[], object]) -> float:
    def once() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return min(once() for _ in range(times))


def test_cutting_is_fast() -> None:
    huge = Box.whole((10 << 30,))
    assert best_of(3, lambda: cut(huge, (10 << 30,), 1, 4 * MIB)) < 0.005
    column = Box((0, 1024), (131072, 1024))
    assert best_of(3, lambda: cut(column, (131072, 8192), 2, 4 * MIB)) < 0.05
    tiny = Box.whole((10, 10))
    seconds = best_of(5, lambda: [cut(tiny, (10, 10), 4, 256 * KIB) for _ in range(20_000)])
    assert seconds < 0.05  # 0.007 on a calm machine


def test_a_billion_runs_cost_no_more_than_their_blocks() -> None:
    """Also where the box skips most groups of a dimension, and joins those of another."""
    assert best_of(3, lambda: cut(Box((0, 0), (10**9, 1)), (10**9, 8), 2, 4 * MIB)) < 0.05
    sparse = Box((0, 0, 0, 0), (2**10, 1, 2**20, 2))
    assert best_of(3, lambda: cut(sparse, (2**12, 2**12, 2**20, 4), 1, 4 * MIB)) < 0.1


def test_covers_takes_thousands_of_shards() -> None:
    rows = split((35_000, 4), 0, list(range(7, 35_000, 7)))
    mesh = [Box((i, j), (1, 1)) for i in range(64) for j in range(64)]
    assert covers((35_000, 4), rows)
    assert covers((64, 64), mesh)
    assert best_of(3, lambda: covers((35_000, 4), rows)) < 0.5
    assert best_of(3, lambda: covers((64, 64), mesh)) < 0.5
