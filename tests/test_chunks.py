"""Tensors in several chunks read as one: any range of bytes is that of the whole tensor."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cas.cli.chunks import Chunk, ChunkedSource, row_major, rows
from cas.errors import Invalid
from cas.files import KnownFile
from cas.grid import Box


def split(shape: tuple[int, ...], cuts: list[list[int]]) -> list[Box]:
    """A mesh of boxes, cut on each axis at the given places."""
    boxes = [Box((), ())]
    for size, inner in zip(shape, cuts, strict=True):
        edges = sorted({0, size, *(cut for cut in inner if cut < size)})
        ranges = list(pairwise(edges)) or [(0, 0)]
        boxes = [Box((*box.start, a), (*box.shape, b - a)) for box in boxes for a, b in ranges]
    return boxes


def stored(path: Path, array: np.ndarray, boxes: list[Box], turned: bool) -> list[Chunk]:
    """The boxes one after another in a file; those that are `turned` with their dimensions in reverse order."""
    data, places = b"junk", []
    for at, box in enumerate(boxes):
        part = array[tuple(slice(a, a + n) for a, n in zip(box.start, box.shape, strict=True))]
        flip = turned and at % 2 == 0
        raw = (part.T if flip else part).tobytes()
        order = row_major(box.shape[::-1], array.itemsize)[::-1] if flip else row_major(box.shape, array.itemsize)
        places.append((box, len(data), len(data) + len(raw), order))
        data += raw + b"??"
    path.write_bytes(data)
    file = KnownFile.at(path)
    return [Chunk(box, file.part(start, stop), order) for box, start, stop, order in places]


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_range_of_bytes_is_that_of_the_whole_tensor(tmp_path: Path, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 7), max_size=4)))
    cuts = [data.draw(st.lists(st.integers(0, 7), max_size=3)) for _ in shape]
    dtype = data.draw(st.sampled_from(["uint8", "int16", "float32", "complex128"]))
    array = np.arange(prod(shape) * np.dtype(dtype).itemsize, dtype=np.uint8).view(dtype).reshape(shape)
    chunks = stored(tmp_path / "chunks", array, split(shape, cuts), data.draw(st.booleans()))
    source = ChunkedSource(shape, array.itemsize, chunks)
    start = data.draw(st.integers(0, array.nbytes))
    out = np.full(data.draw(st.integers(0, array.nbytes - start)), 0xEE, np.uint8)
    source.read_into(start, out)
    assert source.nbytes == array.nbytes
    assert out.tobytes() == array.tobytes()[start : start + len(out)]


@given(st.lists(st.integers(1, 6), max_size=4), st.data())
def test_rows_are_the_range_and_only_that(shape: list[int], data: st.DataObject) -> None:
    number = np.arange(prod(shape)).reshape(shape)
    first = data.draw(st.integers(0, number.size - 1))
    last = data.draw(st.integers(first + 1, number.size))
    boxes = list(rows(tuple(shape), first, last))
    parts = [number[tuple(slice(a, a + n) for a, n in zip(b.start, b.shape, strict=True))] for b in boxes]
    assert [int(n) for part in parts for n in part.reshape(-1)] == list(range(first, last))
    assert len(boxes) <= 2 * max(1, len(shape))


@pytest.mark.parametrize("turned", [False, True])
def test_a_file_that_has_changed_is_refused(tmp_path: Path, turned: bool) -> None:
    array = np.arange(24, dtype=np.int32).reshape(4, 6)
    source = ChunkedSource(array.shape, 4, stored(tmp_path / "f", array, split((4, 6), [[2], []]), turned))
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(Invalid, match="changed while it was read"):
        source.read_into(0, np.empty(96, np.uint8))


@pytest.mark.parametrize("turned", [False, True])
def test_a_file_that_is_gone_has_changed(tmp_path: Path, turned: bool) -> None:
    array = np.arange(24, dtype=np.int32).reshape(4, 6)
    source = ChunkedSource(array.shape, 4, stored(tmp_path / "f", array, split((4, 6), [[2], []]), turned))
    (tmp_path / "f").unlink()
    with pytest.raises(Invalid, match="changed while it was read; commit again"):
        source.read_into(0, np.empty(96, np.uint8))
    (tmp_path / "f").mkdir()
    with pytest.raises(Invalid, match="changed while it was read; commit again"):
        source.read_into(0, np.empty(96, np.uint8))


@pytest.mark.parametrize("shape", [(300, 500), (2, 70_000), (40, 30, 50)])
def test_elements_that_lie_far_apart_are_gathered(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    views = {"turned": array.T, "column": array[:, 3], "second": array[..., ::2]}
    (tmp_path / "f").write_bytes(b"some" + array.tobytes())
    for view in views.values():
        offset = 4 + view.ctypes.data - array.ctypes.data
        file = KnownFile.at(tmp_path / "f")
        reach = 4 + sum((n - 1) * step for n, step in zip(view.shape, view.strides, strict=True))
        chunk = Chunk(Box.whole(view.shape), file.part(offset, offset + reach), view.strides)
        source = ChunkedSource(view.shape, 4, [chunk])
        out = np.empty(view.nbytes, np.uint8)
        source.read_into(0, out)
        assert out.tobytes() == view.tobytes()
