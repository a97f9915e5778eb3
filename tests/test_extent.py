"""Layouts: what several shards hold is read as one tensor, and a layout that lies is refused before it costs memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from cas import Corrupt, Store
from cas.block import PLAIN, Kind, ObjectId, block_id
from cas.branches import Base
from cas.grid import Box, cut
from cas.nodes import Node, Tag
from cas.objects import Commit, Layout, Shard, Sizes, encode_commit, encode_layout, encode_list, encode_tree
from cas.writer import ObjectWriter, WriterSettings

CELL = 4096
ARRAY = np.random.default_rng(0).integers(0, 1 << 31, (96, 500), np.int32)
EMPTY: Node = [Tag.DICT, []]


class Forger:
    """Commits any node as the state of `main`, with blocks and layouts as told."""

    def __init__(self, store: Store) -> None:
        self.store = store
        settings = WriterSettings.of(CELL, 1, store._backend, store._catalog)
        self.writer = ObjectWriter(store._backend, store._catalog, "raw", settings)

    def block(self, data: bytes) -> ObjectId:
        name = block_id(data)
        self.writer._packs.append(name, Kind.BLOCK, PLAIN, len(data), memoryview(data))
        return name

    def list(self, ids: list[ObjectId]) -> ObjectId:
        return self.writer.put(Kind.LIST, encode_list(ids))

    def layout(self, shards: list[tuple[Box, list[ObjectId]]], cell: int = CELL) -> ObjectId:
        made = tuple(Shard(box, (self.list(ids),) if ids else ()) for box, ids in shards)
        return self.writer.put(Kind.LAYOUT, encode_layout(Layout(cell, made)))

    def shard(self, box: Box) -> tuple[Box, list[ObjectId]]:
        """A box of ARRAY with its blocks."""
        data = ARRAY[tuple(slice(a, a + n) for a, n in zip(box.start, box.shape, strict=True))].tobytes()
        edges = cut(box, ARRAY.shape, 4, CELL)
        return box, [self.block(data[a:b]) for a, b in pairwise(edges)]

    def tensor(self, content: Any, shape: tuple[int, ...] = ARRAY.shape, tie: int | None = None) -> Node:
        return [Tag.TENSOR, "numpy", "int32", list(shape), content, tie]

    def tree(self, node: Node) -> ObjectId:
        return self.writer.put(Kind.TREE, encode_tree(node))

    def commit(self, node: Node) -> None:
        commit = Commit(self.tree(node), (), 0, "me", "", None, EMPTY, EMPTY, EMPTY, None, Sizes(0, 0, 0))
        name = self.writer.put(Kind.COMMIT, encode_commit(commit))
        self.writer.finish()
        self.store._branches.advance(Base("main", None, ()), name, 0, "forged")


@pytest.fixture
def forger(store: Store) -> Forger:
    return Forger(store)


def boxes(rows: list[int], columns: list[int]) -> list[Box]:
    """A mesh whose lines lie at these rows and columns."""
    r, c = [0, *rows, 96], [0, *columns, 500]
    return [Box((a, x), (b - a, y - x)) for a, b in pairwise(r) for x, y in pairwise(c)]


MESHES = {
    "one": boxes([], []),
    "rows": boxes([24, 48, 72], []),
    "uneven rows": boxes([1, 50], []),
    "columns": boxes([], [125, 250, 375]),
    "mesh": boxes([48], [3, 250]),
    "with an empty shard": boxes([24, 24], []),
}


@pytest.mark.parametrize("name", MESHES)
def test_shards_of_any_mesh_are_one_tensor(store: Store, forger: Forger, name: str) -> None:
    forger.commit([Tag.DICT, [["w", forger.tensor([forger.layout([forger.shard(box) for box in MESHES[name]])])]]])
    assert np.array_equal(store.load()["w"], ARRAY)
    target = {"w": np.zeros_like(ARRAY)}
    store.load(into=target)
    assert np.array_equal(target["w"], ARRAY)
    w = store.view()["w"]
    for index in np.s_[:], np.s_[23:49], np.s_[:, 249:251], np.s_[47:49, 2:4], np.s_[95, 499], np.s_[10:10]:
        assert np.array_equal(w[index], ARRAY[index])
    assert store.fsck(data=True) == []


def whole(forger: Forger) -> tuple[Box, list[ObjectId]]:
    return forger.shard(Box.whole(ARRAY.shape))


def halves(forger: Forger) -> list[tuple[Box, list[ObjectId]]]:
    return [forger.shard(box) for box in boxes([48], [])]


LIES: dict[str, Callable[[Forger], Node]] = {
    "a list too short": lambda f: f.tensor([f.layout([(whole(f)[0], whole(f)[1][:-1])])]),
    "a list too long": lambda f: f.tensor([f.layout([(whole(f)[0], [*whole(f)[1], whole(f)[1][0]])])]),
    "no list": lambda f: f.tensor([f.layout([(whole(f)[0], [])])]),
    "another cell": lambda f: f.tensor([f.layout([whole(f)], cell=2 * CELL)]),
    "a cell that is no power of two": lambda f: f.tensor([f.layout([whole(f)], cell=CELL + 1)]),
    "a cell over 4 MiB": lambda f: f.tensor([f.layout([whole(f)], cell=8 << 20)]),
    "another shape": lambda f: f.tensor([f.layout([whole(f)])], (96, 501)),
    "fewer dimensions": lambda f: f.tensor([f.layout([whole(f)])], (96 * 500,)),
    "a shard twice": lambda f: f.tensor([f.layout([*halves(f), halves(f)[0]])]),
    "a shard missing": lambda f: f.tensor([f.layout(halves(f)[:1])]),
    "shards that overlap": lambda f: f.tensor([f.layout([halves(f)[0], f.shard(Box((47, 0), (49, 500)))])]),
    "a shard outside": lambda f: f.tensor([f.layout([whole(f), (Box((96, 0), (1, 500)), [])])]),
    "blocks in another order": lambda f: f.tensor([f.layout([(whole(f)[0], whole(f)[1][::-1])])]),
    "a large tensor in one block": lambda f: f.tensor(f.block(b"abcd"), (1 << 21,)),
    "another size in one block": lambda f: f.tensor(f.block(b"abcdabcd"), (1,)),
    "a tree as block": lambda f: f.tensor(f.tree(3), (1,)),
    "a block as layout": lambda f: f.tensor([f.block(b"abcd")]),
    "a tree as layout": lambda f: f.tensor([f.tree(3)]),
    "2 TiB in two blocks": lambda f: f.tensor([f.layout([(Box((0,), (1 << 39,)), whole(f)[1][:2])])], (1 << 39,)),
    "2 TiB in a text": lambda f: [Tag.TEXT, 1 << 41, [f.layout([(Box((0,), (1 << 41,)), whole(f)[1][:2])])]],
    "a tree as text": lambda f: [Tag.REF, f.tree(3)],
    "a text that is no UTF-8": lambda f: [Tag.TEXT, 2, f.block(b"\xff\xff")],
    "a dtype that numpy does not have": lambda f: [Tag.SCALAR, "bfloat16", b"ab"],
}


@pytest.mark.parametrize("name", LIES)
def test_content_that_lies_is_corrupt_and_costs_no_memory(store: Store, forger: Forger, name: str) -> None:
    forger.commit([Tag.DICT, [["a", 1], ["w", LIES[name](forger)]]])
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt):
            store.load()
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert store.load(only="a") == {"a": 1}
    if name not in ("a text that is no UTF-8", "a dtype that numpy does not have"):
        assert any(finding.severity == "error" for finding in store.fsck(data=True))


def test_ties_between_tensors_that_differ_are_corrupt(store: Store, forger: Forger) -> None:
    one, two = forger.tensor(forger.block(b"abcd"), (1,), 0), forger.tensor(forger.block(b"efgh"), (1,), 0)
    forger.commit([Tag.LIST, [one, two]])
    with pytest.raises(Corrupt, match="is tied to a tensor that differs"):
        store.load()


@pytest.mark.parametrize("depth", [130, 3000])
def test_trees_nested_without_end_are_an_error_and_no_crash(store: Store, forger: Forger, depth: int) -> None:
    node: Node = 7
    for _ in range(depth):
        node = [Tag.REF, forger.tree([Tag.LIST, [node]])]
    forger.commit(node)
    with pytest.raises(Corrupt, match="nested deeper than 128"):
        store.load()
    assert any(finding.severity == "error" for finding in store.fsck())
