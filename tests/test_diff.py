"""What `Store.diff` finds between two states, in which order, and what it must not read."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_extent import ARRAY, Forger

import cas
from cas import Corrupt, Difference, Store
from cas.block import ObjectId
from cas.grid import Box
from cas.leaves import TensorLeaf, ValueLeaf
from cas.nodes import MAX_DEPTH, Tag
from cas.pack import name_of

CELL = 4096


def parent(store: Store, branch: str) -> str | None:
    return branch if branch in store.refs()["branches"] else None


def committed(store: Store, *states: Any) -> None:
    for state in states:
        store.commit(state, parent=parent(store, "main"))


def compared(store: Store, before: Any, after: Any, **options: Any) -> list[Difference]:
    committed(store, before, after)
    return list(store.diff("main~1", "main", **options))


def one(store: Store, before: Any, after: Any) -> Difference:
    found = compared(store, {"w": before}, {"w": after})
    assert len(found) == 1
    return found[0]


def said(found: list[Difference]) -> list[tuple[str, str]]:
    return [(difference.kind, "/".join(map(str, difference.path))) for difference in found]


def change(found: Difference) -> tuple[Any, ...]:
    assert found.change is not None
    c = found.change
    return c.differing, c.total, c.nonfinite, c.largest, c.relative


# -- what is found ------------------------------------------------------------------------------------------------


def test_equal_states_do_not_differ(store: Store) -> None:
    state = {"w": np.ones(3), "x": [1, 2.0, None], "nan": math.nan, "e": {}}
    assert compared(store, state, {**state, "w": np.ones(3)}) == []


def test_the_order_is_that_of_the_old_state_and_what_is_new_comes_last_in_its_container(store: Store) -> None:
    before = {"b": {"y": 1, "gone": 2, "x": 3}, "a": 4, 7: np.ones(1)}
    after = {"new": 0, "b": {"n": 9, "x": 4, "y": 2}, 7: np.zeros(1), "a": 5}
    found = [pair for pair in said(compared(store, before, after)) if pair[1] not in ("", "b")]
    changed = [("changed", path) for path in ("b/y", "b/x", "a", "7")]
    assert found == [changed[0], ("removed", "b/gone"), changed[1], ("added", "b/n"), *changed[2:], ("added", "new")]


def test_int_keys_and_keys_with_slashes_are_keys_of_the_path(store: Store) -> None:
    found = compared(store, {0: {"a/b": 1}, "0": {"a/b": 1}}, {0: {"a/b": 2}, "0": {"a/b": 1}})
    assert [difference.path for difference in found] == [(0, "a/b")]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, False),
        (0, False),
        (1, 1.0),
        (0.0, -0.0),
        (1 << 70, 1 << 71),
        ("a", b"a"),
        ("n" * 100_000, "n" * 99_999 + "m"),
        (b"n" * 100_000, b"n" * 100_001),
        (np.float32(1), np.float64(1)),
        (np.int8(1), np.int8(2)),
        (torch.float32, torch.float16),
        ([], {}),
        ({}, 3),
        (np.ones(2), 1.0),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_every_kind_of_value_is_told_from_every_other(store: Store, before: Any, after: Any) -> None:
    found = one(store, before, after)
    assert (found.kind, found.path, found.change) == ("changed", ("w",), None)


def test_values_come_with_the_difference(store: Store) -> None:
    found = one(store, 1e-3, 1e-4)
    assert found.before == ValueLeaf(("w",), "float", 0, 1e-3)
    assert found.after == ValueLeaf(("w",), "float", 0, 1e-4)


def test_a_leaf_that_becomes_a_container_is_removed_and_what_is_in_it_added(store: Store) -> None:
    found = compared(store, {"w": 1, "v": {"y": 2}}, {"w": {"x": [np.ones(1)]}, "v": 3})
    assert said(found) == [("removed", "w"), ("added", "w/x/0"), ("added", "v"), ("removed", "v/y")]


def test_lists_differ_by_index(store: Store) -> None:
    assert said(compared(store, [1, 2, 3], [1, 5])) == [("changed", "1"), ("removed", "2")]


@pytest.mark.parametrize("after", [OrderedDict(x=1, y=2), {"y": 2, "x": 1}], ids=["another type", "another order"])
def test_a_container_of_another_type_or_order_is_named_once(store: Store, after: Any) -> None:
    found = one(store, {"x": 1, "y": 2}, after)
    assert isinstance(found.before, ValueLeaf)
    assert isinstance(found.after, ValueLeaf)
    assert (found.before.kind, found.after.kind) == ("dict", type(after).__name__)


def test_a_change_of_dtype_or_shape_is_not_measured(store: Store) -> None:
    for after in (np.ones(4, np.float64), np.ones((2, 2), np.float32), np.zeros((0,), np.float32)):
        found = one(store, np.ones(4, np.float32), after)
        assert (found.kind, found.change) == ("changed", None)
        assert isinstance(found.after, TensorLeaf)
        assert (found.after.dtype, found.after.shape) == (str(after.dtype), after.shape)


def test_the_deepest_states_are_compared(store: Store) -> None:
    before: Any = 1
    after: Any = 2
    for _ in range(MAX_DEPTH):
        before, after = [before], [after]
    assert said(compared(store, before, after)) == [("changed", "/".join(["0"] * MAX_DEPTH))]


def test_a_state_may_be_one_tensor(store: Store) -> None:
    assert change(compared(store, np.array(2.0), np.array(3.0))[0]) == (1, 1, 0, 1.0, 0.5)


def test_the_same_bytes_of_another_framework_differ_in_no_element(store: Store) -> None:
    assert change(one(store, np.ones(3), torch.ones(3, dtype=torch.float64))) == (0, 3, 0, 0.0, 0.0)


def test_ties_are_no_difference(store: Store) -> None:
    tied = np.ones(3)
    assert compared(store, {"a": tied, "b": tied}, {"a": tied, "b": tied.copy()}) == []


def test_patterns_choose_paths(store: Store) -> None:
    before, after = ({"m": {"a": n, "b": n}, "o": n} for n in (1, 2))
    assert said(compared(store, before, after, only=["m/b", "o"])) == [("changed", "m/b"), ("changed", "o")]


def test_without_a_second_revision_it_is_the_default_branch(store: Store) -> None:
    committed(store, {"x": 1}, {"x": 2})
    assert list(store.diff("main~1")) == list(store.diff("main~1", "main"))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with cas.init(tmp_path_factory.mktemp("diff") / "s", block_size=CELL) as store:
        yield store


Flat = dict[tuple[Any, ...], tuple[str, Any]]


def flat(tree: Any, path: tuple[Any, ...] = ()) -> Flat:
    """The plain values of nested dicts with their types, by path; containers are not in it."""
    if isinstance(tree, dict):
        return {at: leaf for key, child in tree.items() for at, leaf in flat(child, (*path, key)).items()}
    return {path: (type(tree).__name__, tree)}


_VALUES = st.one_of(st.booleans(), st.integers(-2, 2), st.sampled_from(["a", "b"]))
_KEYS = st.one_of(st.integers(0, 2), st.sampled_from(["x", "y/z", ""]))
_TREES = st.recursive(_VALUES, lambda inner: st.dictionaries(_KEYS, inner, max_size=3), max_leaves=8)


@settings(max_examples=40, deadline=None)
@given(before=_TREES, after=_TREES)
def test_any_two_states_differ_as_their_flattened_values_do(opened: Store, before: Any, after: Any) -> None:
    ids = [opened.commit(state, branch="any", parent=parent(opened, "any")).id for state in (before, after)]
    found = {}
    for difference in opened.diff(*ids):
        sides = [difference.before, difference.after]
        pair = tuple((s.kind, s.value) if isinstance(s, ValueLeaf) and s.kind != "dict" else None for s in sides)
        if pair != (None, None):
            found[difference.path] = pair
    old, new = flat(before), flat(after)
    assert found == {path: (old.get(path), new.get(path)) for path in old | new if old.get(path) != new.get(path)}


# -- what is read -------------------------------------------------------------------------------------------------


def damage(store: Store, *names: ObjectId) -> None:
    """Invert what is stored of these objects."""
    for name in names:
        for place in store._catalog.locate([name])[name]:
            file = store.path / name_of(place.pack)
            data = bytearray(file.read_bytes())
            stored = slice(place.row.offset, place.row.offset + place.row.stored)
            data[stored] = bytes(255 - byte for byte in data[stored])
            file.write_bytes(data)


def tree_ids(store: Store, rev: str) -> dict[str, ObjectId]:
    """The trees of the dicts at the top of a state."""
    node = store._objects.tree(ObjectId(bytes.fromhex(store.resolve(rev).tree)))
    return {key: ObjectId(child[1]) for key, child in node[1] if child[0] == Tag.REF}


def block_ids(store: Store, rev: str) -> list[ObjectId]:
    """The blocks of the tensor `w`."""
    leaf = next(leaf for leaf in store.leaves(rev) if leaf.path == ("w",))
    assert isinstance(leaf, TensorLeaf)
    layout = store._objects.layout(ObjectId(leaf.entry.content.layout or b""))
    return [name for shard in layout.shards for part in shard.lists for name in store._objects.block_list(part)]


def test_equal_subtrees_are_not_read(tmp_path: Path) -> None:
    many = {f"t{number}": np.full(2, number) for number in range(200)}
    path = tmp_path / "s"
    with cas.init(path) as store:
        committed(store, {"same": many, "other": many | {"t7": 0}}, {"same": many, "other": many | {"t7": 1}})
        damage(store, tree_ids(store, "main")["same"])
    with cas.open(path) as store:
        assert said(list(store.diff("main~1", "main"))) == [("changed", "other/t7")]
        with pytest.raises(Corrupt):
            list(store.leaves("main"))


def test_equal_parts_of_a_large_dict_are_not_read(tmp_path: Path) -> None:
    many = {f"t{number}": number for number in range(20_000)}
    path = tmp_path / "s"
    with cas.init(path) as store:
        committed(store, {"d": many}, {"d": many | {"t19999": -1}})
        parts = [store._objects.tree(tree_ids(store, rev)["d"])[2] for rev in ("main~1", "main")]
        shared = [ObjectId(part) for part in parts[0] if part in parts[1]]
        assert len(shared) > 5
        damage(store, *shared)
    with cas.open(path) as store:
        assert said(list(store.diff("main~1", "main"))) == [("changed", "d/t19999")]


def test_keys_that_change_places_among_equal_parts_are_another_order(store: Store) -> None:
    many = {f"t{number}": number for number in range(20_000)}
    first = {"t0": many.pop("t0")}
    found = compared(store, {"d": first | many}, {"d": many | first})
    assert said(found) == [("changed", "d")]


def test_only_blocks_that_differ_are_read(tmp_path: Path) -> None:
    before = np.random.default_rng(0).standard_normal(10 * CELL).astype(np.float32)
    after = before.copy()
    after[CELL : CELL + 3] += 1
    path = tmp_path / "s"
    with cas.init(path, block_size=CELL) as store:
        committed(store, {"w": before}, {"w": after})
        old, new = (block_ids(store, rev) for rev in ("main~1", "main"))
        shared = [name for name in old if name in new]
        assert len(shared) == len(old) - 1
        damage(store, *shared)
    with cas.open(path) as store:
        assert change(next(store.diff("main~1", "main")))[:2] == (3, before.size)
        with pytest.raises(Corrupt):
            store.load("main")


def test_a_damaged_block_that_differs_is_corrupt_and_named(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with cas.init(path, block_size=CELL) as store:
        committed(store, {"w": np.zeros(5000)}, {"w": np.arange(5000.0)})
        damage(store, *block_ids(store, "main"))
    with cas.open(path) as store, pytest.raises(Corrupt, match="w in commit"):
        list(store.diff("main~1", "main"))


def test_without_values_no_content_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with cas.init(path, block_size=CELL) as store:
        committed(store, {"w": np.zeros(5000), "x": 1}, {"w": np.arange(5000.0), "x": 2})
        damage(store, *block_ids(store, "main"))
    with cas.open(path) as store:
        found = list(store.diff("main~1", "main", values=False))
        assert said(found) == [("changed", "w"), ("changed", "x")]
        assert [difference.change for difference in found] == [None, None]


def test_other_shards_of_the_same_tensor_are_compared_by_their_bytes(store: Store) -> None:
    forger = Forger(store)
    rows = [Box((0, 0), (48, 500)), Box((48, 0), (48, 500))]
    columns = [Box((0, 0), (96, 200)), Box((0, 200), (96, 300))]
    for boxes in (rows, columns):
        forger.commit([Tag.DICT, [["w", forger.tensor([forger.layout([forger.shard(box) for box in boxes])])]]])
        store.branch(f"b{len(store.refs()['branches'])}", "main")
        store.delete_branch("main")
    assert list(store.diff("b1", "b2")) == []
    assert said(list(store.diff("b1", "b2", values=False))) == [("changed", "w")]
    other = ARRAY.copy()
    other[50, 250] += 2
    store.commit({"w": other}, branch="whole")
    for sharded in ("b1", "b2"):
        found = list(store.diff(sharded, "whole"))
        assert change(found[0])[:4] == (1, ARRAY.size, 0, 2.0)
