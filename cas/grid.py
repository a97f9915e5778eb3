"""Boxes of a tensor, the blocks that they are cut into, and what to copy to read them back. Pure geometry.

The cutting rule. Sizes are in bytes, starts and shapes in elements; "global" speaks of the whole tensor, also
when only shards of it are at hand; pow2floor(x) is the largest power of two that is at most x.

1. Bytes. A tensor is its elements in row-major order, of `itemsize` 1, 2, 4, 8 or 16 each; the bytes of a box
   are those of its own elements in row-major order. Its edges are 0 and the ends of its blocks, ascending;
   block b is the range [edges[b], edges[b + 1]) of its bytes. A box without elements has no blocks.
2. Cell. clamp(pow2floor(global size / 256), 256 KiB, block_size), or block_size where that is below 256 KiB.
   The layout records it and readers go by the record alone. It MUST be a power of two from 16 bytes to 4 MiB.
3. Runs. Let k be the smallest dimension such that the box spans the tensor in every dimension after k. For
   each index over the dimensions before k the box holds one contiguous range of the global tensor: a run, of
   r = box.shape[k] * (product of the global shape after k) * itemsize bytes. The runs in row-major order of
   that index are the bytes of the box. A tensor of no dimensions is one run.
4. Long runs, r >= cell, and a run that is all of its box, k = 0. A block begins at every run, and within it
   wherever the offset from the start of the global tensor is a multiple of the cell.
5. Short runs, r < cell and k > 0. Let g = pow2floor(cell / r), and i the index of the run over the dimensions
   before k as one row-major number in the global shape. Runs with the same floor(i / g) are one block.

So no block exceeds the cell or splits an element, and both grids hang on the global tensor, not on the box:
this is what makes layouts share blocks. What comes from outside goes through `Box.check` and `check_cell`
first; `cut` and `overlap` trust it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import prod

from .errors import CasError, Corrupt

MIN_CELL, MAX_CELL, SMALL_CELL = 16, 4 << 20, 256 << 10
ITEMSIZES = (1, 2, 4, 8, 16)
MAX_RANK = 64
LIMIT = 2**63
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """The elements [start, start + shape) of a tensor, one number per dimension of the global tensor."""

    start: Shape
    shape: Shape

    @classmethod
    def whole(cls, shape: Shape) -> "Box":
        return cls((0,) * len(shape), shape)

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)

    def intersect(self, other: "Box") -> "Box | None":
        """What lies in both boxes of one tensor, or None where that is no element."""
        start = tuple(map(max, self.start, other.start))
        stops = ([a + n for a, n in zip(box.start, box.shape, strict=True)] for box in (self, other))
        shape = tuple(min(stop) - begin for begin, *stop in zip(start, *stops, strict=True))
        return Box(start, shape) if all(n > 0 for n in shape) else None

    def within(self, shape: Shape) -> bool:
        return len(self.start) == len(self.shape) == len(shape) and all(
            0 <= a <= a + n <= end for a, n, end in zip(self.start, self.shape, shape, strict=True)
        )

    def check(self, shape: Shape, itemsize: int, error: type[CasError] = Corrupt) -> None:
        """Raise `error` unless this is a box of a tensor that can exist; types of numbers count.

        A dimension of 0 counts as 1 against the limit of 2**63 - 1 bytes, as in numpy.
        """
        if any(type(n) is not int or not 0 <= n < LIMIT for n in (*shape, *self.start, *self.shape)):
            raise error("a shape or box holds something that is not an integer from 0 to 2**63 - 1")
        if type(itemsize) is not int or itemsize not in ITEMSIZES or len(shape) > MAX_RANK:
            raise error(f"tensors have elements of 1 to 16 bytes and {MAX_RANK} dimensions at most")
        if prod(n or 1 for n in shape) * itemsize >= LIMIT:
            raise error(f"a tensor of shape {shape} exceeds 2**63 - 1 bytes")
        if not self.within(shape):
            raise error(f"the box at {self.start} of shape {self.shape} is not in a tensor of shape {shape}")


def check_cell(cell: int, error: type[CasError] = Corrupt) -> None:
    """Raise `error` unless `cell`, in bytes, may be a layout's cell or a store's block_size."""
    if type(cell) is not int or not MIN_CELL <= cell <= MAX_CELL or cell & (cell - 1):
        raise error(f"a cell is a power of two from {MIN_CELL} to {MAX_CELL} bytes, not {cell!r}")


def cell_size(nbytes: int, block_size: int) -> int:
    """The cell for a global tensor of `nbytes` in a store of `block_size` (rule 2)."""
    return min(block_size, max(SMALL_CELL, _pow2floor(nbytes // 256)))


def cut(box: Box, shape: Shape, itemsize: int, cell: int, limit: int | None = None) -> list[int]:
    """The edges of the box in a tensor of `shape`: 0, then the end of each block (rules 3 to 5).

    Time and memory go by the blocks, however many runs there are. A box from a file can demand any number of
    blocks: pass the count that the file lists as `limit`; more is Corrupt before it costs anything.
    """
    nbytes = prod(box.shape) * itemsize
    if not nbytes or (nbytes <= cell and box.shape == shape and limit != 0):
        return [0, nbytes] if nbytes else [0]
    k = max(len(shape) - 1, 0)
    while k and box.shape[k] == shape[k]:
        k -= 1
    run = prod(box.shape[k:]) * itemsize
    edges = (_cut_long if run >= cell or k == 0 else _join_short)(box, shape, k, run, cell, limit)
    _afford(len(edges) - 1, limit)
    return edges


def _cut_long(box: Box, shape: Shape, k: int, run: int, cell: int, limit: int | None) -> list[int]:
    _afford(prod(box.shape[:k]) * (run // cell), limit)
    inner = run // prod(box.shape[k : k + 1])
    skip, row = (inner * box.start[k], inner * shape[k]) if shape else (0, 0)
    edges = [0]
    for index in _indices(box, shape, k, k):
        done = edges[-1]
        edges.extend(range(done + cell - (index * row + skip) % cell, done + run, cell))
        edges.append(done + run)
    return edges


def _join_short(box: Box, shape: Shape, k: int, run: int, cell: int, limit: int | None) -> list[int]:
    """For each end of a group, how many runs lie before it: a step per group, not per run.

    The dimensions before j are walked, and for each index the groups that the others can touch. Too large a j
    costs a step per run, too small a step per group that the box skips; the best takes at most 4 steps per
    block. For let j be the last whose span exceeds g: a stride of at least g gives each of its indices a
    group of its own, and to walk it takes 2 steps for each; below g no group in the span is skipped.
    Neighbours share at most one group.
    """
    group, strides = _pow2floor(cell // run), _strides(shape[:k], 1)
    spans = [sum((box.shape[t] - 1) * strides[t] for t in range(j, k)) for j in range(k + 1)]
    steps, j = min((prod(box.shape[:j]) * (spans[j] // group + 2), j) for j in range(k + 1))
    _afford(steps, limit, per_block=4)
    inner = list(zip(box.shape[j:k], strides[j:], strict=True))
    edges, done, last = [0], 0, -1
    for index in _indices(box, shape, j, k):
        first = index + sum(box.start[t] * strides[t] for t in range(j, k))
        for m in range(first // group, (first + spans[j]) // group + 1):
            edge = (done + _before(inner, (m + 1) * group - first)) * run
            if m == last:
                edges[-1] = edge
            elif edge > edges[-1]:
                edges.append(edge)
                last = m
        done += prod(box.shape[j:k])
    return edges


def _indices(box: Box, shape: Shape, j: int, k: int) -> Iterator[int]:
    """For each index over the box's dimensions before j: its row-major number over the tensor's before k."""
    dims = zip(box.start[:j], box.shape[:j], _strides(shape[:k], 1)[:j], strict=True)
    return map(sum, product(*(range(a * stride, (a + n) * stride, stride) for a, n, stride in dims)))


def _before(dims: Sequence[tuple[int, ...]], offset: int) -> int:
    """How many of the points t0 * stride0 + t1 * stride1 + ... lie before `offset`.

    `dims` are (count, stride, ...), outermost first; a stride spans all inside it, so the order is row-major.
    """
    if offset <= 0:
        return 0
    points, inner = 0, prod(dim[0] for dim in dims)
    for count, stride, *_ in dims:
        inner //= count
        whole = min((offset - 1) // stride, count)
        points += whole * inner
        if whole == count:
            return points
        offset -= whole * stride
    return points + 1


def _afford(steps: int, limit: int | None, per_block: int = 1) -> None:
    if limit is not None and steps > limit * per_block:
        raise Corrupt(f"a box is cut into more than the {limit} blocks that are listed for it")


def _pow2floor(number: int) -> int:
    return 1 << number.bit_length() >> 1


def _strides(shape: Shape, unit: int) -> list[int]:
    return [prod(shape[axis + 1 :]) * unit for axis in range(len(shape))]


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a block and where it goes: `length` bytes from `src` in the block to `dst` in the destination.

    `repeat` is ((count, src_stride, dst_stride), ...), outermost first: for every index t below the counts,
    the same length from src + sum(t * src_stride) to dst + sum(t * dst_stride). All in bytes; () is one run.
    """

    src: int
    dst: int
    length: int
    repeat: tuple[tuple[int, int, int], ...] = ()

    def copy(self, block: bytes | bytearray | memoryview, out: bytearray | memoryview) -> None:
        """Copy the bytes. TypeError or ValueError, and nothing written, where a buffer is too small."""
        import numpy as np  # 170 ms that commands which read no tensor do not pay

        counts, item = tuple(count for count, _, _ in self.repeat), np.dtype((np.void, self.length))
        source = np.ndarray(counts, item, block, self.src, tuple(s for _, s, _ in self.repeat))
        target = np.ndarray(counts, item, out, self.dst, tuple(d for _, _, d in self.repeat))
        target[...] = source


def overlap(wanted: Box, shard: Box, edges: list[int], itemsize: int) -> Iterator[tuple[int, list[Piece]]]:
    """What to copy from a shard to fill its part of `wanted`: (block number, pieces), ascending.

    Exactly the blocks that hold wanted bytes come, once each. `edges` are the shard's, from `cut`; `dst`
    counts from the start of the row-major bytes of `wanted`. A block has at most 2 * rank + 1 pieces, and one
    single run where the common part is contiguous on both sides. Time goes by the blocks touched, not by the
    runs.
    """
    common = wanted.intersect(shard)
    if common is None:
        return
    rows = _rows(common, shard, wanted, itemsize)
    total = prod(count for count, _, _ in rows.repeat)
    first, begin = 0, rows.src  # the first row that is not planned to its end, and its first byte that is not
    while first < total:
        block = bisect_right(edges, begin) - 1
        low, high = edges[block], edges[block + 1]
        stop = _before(rows.repeat, high - rows.src)
        yield block, list(_pieces(rows, first, stop, low, high))
        crosses = _row(rows, stop - 1).src + rows.length > high
        first, begin = (stop - 1, high) if crosses else (stop, _row(rows, stop).src)


def _rows(common: Box, shard: Box, wanted: Box, itemsize: int) -> Piece:
    """The common part as one piece of the whole shard: rows as long as both sides allow, few dimensions."""
    src = dst = 0
    length, repeat = itemsize, list[tuple[int, int, int]]()
    strides = zip(_strides(shard.shape, itemsize), _strides(wanted.shape, itemsize), strict=True)
    for axis, (s, d) in reversed(list(enumerate(strides))):
        count = common.shape[axis]
        src += (common.start[axis] - shard.start[axis]) * s
        dst += (common.start[axis] - wanted.start[axis]) * d
        n, inner_s, inner_d = repeat[0] if repeat else (length, 1, 1)
        if count > 1 and (s, d) != (n * inner_s, n * inner_d):
            repeat.insert(0, (count, s, d))
        elif repeat:
            repeat[0] = (n * count, inner_s, inner_d)
        else:
            length *= count
    return Piece(src, dst, length, tuple(repeat))


def _row(rows: Piece, row: int) -> Piece:
    src, dst = rows.src, rows.dst
    for count, s, d in reversed(rows.repeat):
        row, index = divmod(row, count)
        src, dst = src + index * s, dst + index * d
    return Piece(src, dst, rows.length)


def _pieces(rows: Piece, first: int, stop: int, low: int, high: int) -> Iterator[Piece]:
    """Rows [first, stop), all of which touch the block [low, high); the outer two may reach out of it."""
    head, tail = _row(rows, first), _row(rows, stop - 1)
    if head.src < low or head.src + head.length > high:
        skip = max(low - head.src, 0)
        yield Piece(head.src + skip - low, head.dst + skip, min(head.length, high - head.src) - skip)
        first += 1
    clipped = first < stop and tail.src + tail.length > high
    yield from _split(replace(rows, src=rows.src - low), first, stop - clipped)
    if clipped:
        yield Piece(tail.src - low, tail.dst, high - tail.src)


def _split(rows: Piece, first: int, stop: int) -> Iterator[Piece]:
    """Rows [first, stop): part of an outermost index at each end, and the whole ones between as one piece."""
    if first >= stop or not rows.repeat:
        yield from (rows,) * (first < stop)
        return
    (_, s, d), inner = rows.repeat[0], rows.repeat[1:]
    per = prod(count for count, _, _ in inner)
    (a, head), (b, tail) = divmod(first, per), divmod(stop, per)

    def at(index: int, *outer: tuple[int, int, int]) -> Piece:
        return Piece(rows.src + index * s, rows.dst + index * d, rows.length, (*outer, *inner))

    if a == b:
        yield from _split(at(a), head, tail)
        return
    if head:
        yield from _split(at(a), head, per)
        a += 1
    if a < b:
        yield at(a, (b - a, s, d)) if b - a > 1 else at(a)
    yield from _split(at(b), 0, tail)


def covers(shape: Shape, boxes: Sequence[Box]) -> bool:
    """Whether the boxes tile a tensor of `shape`: every element in exactly one. Empty boxes do not count.

    Equal volume and no overlap. Boxes fall into groups with a gap between them on one axis, then on the next,
    as long as that helps: a mesh ends in single boxes after one sort per axis. Of groups that interlock every
    pair is compared. False for over 64 interlocking boxes, and where splitting never ends, so that no file
    can hold its reader up: shards should be a mesh or nearly one.
    """
    parts = [box for box in boxes if box.size]
    if not all(box.within(shape) for box in boxes) or sum(box.size for box in parts) != prod(shape):
        return False
    todo, budget = [(parts, 0, 0)], 1000 + 64 * len(parts)
    while todo:
        group, axis, stuck = todo.pop()
        budget -= len(group)
        if stuck < len(shape):
            apart = _apart(group, axis)
            stuck = stuck + 1 if len(apart) == 1 else 0
            todo += [(one, (axis + 1) % len(shape), stuck) for one in apart if len(one) > 1]
        elif len(group) > 64 or any(a.intersect(b) for a, b in combinations(group, 2)):
            return False
        if budget < 0:
            return False
    return True


def _apart(boxes: list[Box], axis: int) -> list[list[Box]]:
    """The boxes in groups that do not overlap on this axis."""
    groups, reach = list[list[Box]](), 0
    for box in sorted(boxes, key=lambda box: box.start[axis]):
        if not groups or box.start[axis] >= reach:
            groups.append([])
        groups[-1].append(box)
        reach = max(reach, box.start[axis] + box.shape[axis])
    return groups
