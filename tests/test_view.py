"""Views: what they show, and that slices are numpy's and read only the blocks that they need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cas
from cas import Corrupt, Invalid, SequenceView, Store, TensorView, View

CELL = 4096
ARRAYS = {
    "line": np.arange(10_007, dtype=np.int32),
    "wide": np.arange(9 * 5000, dtype=np.int16).reshape(9, 5000),
    "cube": np.arange(31 * 17 * 23, dtype=np.float64).reshape(31, 17, 23),
    "small": np.arange(24, dtype=np.int8).reshape(2, 3, 4),
    "point": np.array(7.5),
    "empty": np.zeros((5, 0, 3), np.float32),
    "complex": (np.arange(4000) * 1j).reshape(40, 100),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with cas.init(tmp_path_factory.mktemp("view") / "s", block_size=CELL) as store:
        store.commit(ARRAYS, codec="planes")
        yield store


@st.composite
def indexes(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    items: list[Any] = []
    for length in shape[: draw(st.integers(0, len(shape)))]:
        bound = st.one_of(st.none(), st.integers(-length - 3, length + 3))
        choices = [st.builds(slice, bound, bound, st.sampled_from([None, 1]))]
        if length:
            choices += [st.integers(-length, length - 1), st.integers(-length, length - 1).map(np.int64)]
        items.append(draw(st.one_of(choices)))
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), ...)
        spare = len(shape) - len(items) + 1
        if items[-1] is not ... and spare:  # what follows the ellipsis counts from the last dimension
            return (*items[: items.index(...)], ...)
    return items[0] if len(items) == 1 and draw(st.booleans()) else tuple(items)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_slice_is_what_numpy_gives(opened: Store, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(ARRAYS)))
    index = data.draw(indexes(ARRAYS[name].shape))
    found, wanted = opened.view()[name][index], ARRAYS[name][index]
    assert np.shape(found) == np.shape(wanted)
    assert np.asarray(found).dtype == np.asarray(wanted).dtype
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize(
    "index", [(..., 1), (0, ..., slice(2, 5)), (slice(1, 3), ...), (..., slice(None), 3), (1, ..., 2, 3)]
)
def test_an_ellipsis_stands_for_the_dimensions_between(opened: Store, index: Any) -> None:
    assert np.array_equal(opened.view()["cube"][index], ARRAYS["cube"][index])


BAD = [31, -32, (0, 0, 0, 0), slice(None, None, 2), slice(None, None, -1), "a", 1.0, None, True, [0, 1], (..., ...)]


@pytest.mark.parametrize("index", BAD)
def test_an_index_that_is_no_box_is_invalid_with_the_path(opened: Store, index: Any) -> None:
    with pytest.raises(Invalid, match="cube"):
        opened.view()["cube"][index]


def test_a_slice_reads_no_block_but_its_own(tmp_path: Path) -> None:
    """Every block but those of rows 40 to 60 is damaged in the pack: slices inside read, slices outside do not."""
    array = np.random.default_rng(0).integers(0, 1 << 62, (100, CELL // 8))  # a row is a block
    with cas.init(tmp_path / "s", block_size=CELL) as store:
        store.commit({"w": array}, codec="raw")
    (file,) = (tmp_path / "s").glob("packs/*/*")
    data = bytearray(file.read_bytes())
    for row in [*range(40), *range(60, 100)]:
        at = data.index(array[row].tobytes())
        data[at + 100] ^= 1
    file.write_bytes(data)
    with cas.open(tmp_path / "s") as again:
        w = again.view()["w"]
        assert np.array_equal(w[40:60], array[40:60])
        assert np.array_equal(w[47, 3:9], array[47, 3:9])
        assert np.array_equal(w[40:60, 100:101], array[40:60, 100:101])
        assert w[30:30].shape == (0, CELL // 8)
        for outside in (np.s_[39:41], np.s_[59:61], np.s_[0], np.s_[..., 0], np.s_[:]):
            with pytest.raises(Corrupt, match=r"block [0-9a-f]{8} of w in commit"):
                w[outside]


def test_a_view_mirrors_the_state(store: Store) -> None:
    state = {
        "m": {"w": np.arange(6).reshape(2, 3)},
        "l": [1, (2, np.ones(2))],
        5: "x",
        "none": None,
        "long": "y" * 99_999,
    }
    store.commit(state)
    view = store.view()
    assert isinstance(view, View)
    assert list(view) == list(state)
    assert (len(view), view[5], view["none"], view["long"]) == (5, "x", None, "y" * 99_999)
    assert isinstance(view["l"], SequenceView)
    assert view["l"][0] == 1
    assert isinstance(view["l"][1], SequenceView)
    assert [type(item) for item in view["l"][1]] == [int, TensorView]
    assert view["l"][-1][0] == 2
    w = view["m"]["w"]
    assert (w.shape, w.dtype, w.nbytes, len(w)) == ((2, 3), "int64", 48, 2)
    assert np.array_equal(w.load(), state["m"]["w"])  # type: ignore[index]
    assert [row.tolist() for row in w] == [[0, 1, 2], [3, 4, 5]]


def test_a_missing_key_names_its_neighbours(store: Store) -> None:
    store.commit({"model": {"wte": 1, "wpe": 2}, "list": [1]})
    with pytest.raises(KeyError, match="model has no key 'x'; it has wte, wpe"):
        store.view()["model"]["x"]
    with pytest.raises(IndexError):
        store.view()["list"][1]
    assert store.view().get("nothing", 3) == 3


def test_a_view_of_a_single_leaf_is_that_leaf(store: Store) -> None:
    store.commit(np.arange(5))
    assert store.view()[1:3].tolist() == [1, 2]
    store.commit(17)
    assert store.view() == 17


def test_a_view_stays_at_its_commit(store: Store) -> None:
    store.commit({"w": np.zeros(3)})
    view = store.view()
    store.commit({"w": np.ones(3)})
    assert view["w"][:].tolist() == [0, 0, 0]


def test_a_zero_dim_tensor_has_no_length(store: Store) -> None:
    store.commit({"w": np.array(3)})
    with pytest.raises(TypeError, match="0-dim"):
        len(store.view()["w"])
    assert store.view()["w"][()] == 3
