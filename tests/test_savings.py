"""What dedup, delta and entropy coding have saved, in stores small enough to count by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cas
from cas import Store
from cas.block import Codec, Coding, Kind, ObjectId
from cas.dtypes import DTYPES
from cas.errors import Corrupt
from cas.fence import condemn
from cas.files import KnownFile
from cas.leaves import TensorLeaf
from cas.nodes import Tag
from cas.objects import Commit, Sizes
from cas.pack import PackWriter, Row, id_of, name_of, read_table
from cas.per_rank import PerRank
from cas.reader import Objects
from cas.savings import Saved
from cas.tensors import Tensor
from cas.uses import Uses

CELL = 256 << 10
"""Bytes of a small tensor's block."""


def noise(cells: int = 1, seed: int = 0) -> np.ndarray[Any, Any]:
    """So many blocks, all different, that no codec makes smaller."""
    return np.random.default_rng(seed).integers(0, 256, cells * CELL, np.uint8)


def floats(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(CELL // 4).astype(np.float32)


def rows(store: Store) -> list[Row]:
    names = [id_of(info.name) for info in store._backend.list("packs")]
    return [row for name in names if name is not None for row in read_table(store._backend, name)]


def blocks(store: Store) -> list[Row]:
    return [row for row in rows(store) if row.kind == Kind.BLOCK]


def by_name(items: tuple[Saved, ...]) -> dict[str, Saved]:
    return {item.name: item for item in items}


def assert_adds_up(store: Store) -> None:
    """Whatever is in a store: the parts, the dtypes and the packs are accounted for to the byte."""
    stats = store.stats()
    found = stats.savings
    for items in (found.parts, found.dtypes):
        for column in ("raw", "dedup", "delta", "entropy", "stored", "blocks"):
            assert sum(getattr(item, column) for item in items) == getattr(found.whole, column), column
    for item in (found.whole, *found.parts, *found.dtypes):
        assert item.raw - item.dedup - item.delta - item.entropy == item.stored
        assert min(item.dedup, item.delta, item.entropy, item.stored) >= 0
    assert sum(depth.blocks for depth in found.depths) == found.whole.blocks
    assert sum(depth.stored for depth in found.depths) == found.whole.stored
    assert sum(depth.raw for depth in found.depths) == found.whole.raw - found.whole.dedup
    assert (
        found.whole.stored + found.records + found.bases + found.dead
        == stats.stored
        == sum(row.stored for row in rows(store))
    )


@pytest.fixture(autouse=True)
def adding_up(store: Store) -> Iterator[None]:
    """Every store that a test leaves open and whole adds up."""
    yield
    if not store._closed:
        assert_adds_up(store)


def test_an_empty_store_has_saved_nothing(store: Store) -> None:
    found = store.stats().savings
    assert found.whole == Saved("", 0, 0, 0, 0, 0, 0)
    assert (found.commits, found.parts, found.dtypes, found.depths) == (0, (), (), ())
    assert (found.records, found.bases, found.dead, found.condemned, found.small, found.missing) == (0,) * 6


def test_equal_blocks_are_saved_by_dedup_alone(store: Store) -> None:
    held = noise(2)
    store.commit({"model": {"a": held}}, codec="raw")
    store.commit({"model": {"a": held}, "copy": {"b": held[:CELL].copy()}}, codec="raw")
    found = store.stats().savings
    assert (found.commits, found.whole) == (2, Saved("", 5 * CELL, 3 * CELL, 0, 0, 2 * CELL, 2))
    parts = by_name(found.parts)
    assert parts["model"].raw == 4 * CELL
    assert parts["copy"].raw == CELL
    assert sum(part.blocks for part in found.parts) == 2  # each in one part only
    assert found.small == 2


def test_what_codecs_save_on_whole_blocks_is_entropy(store: Store) -> None:
    store.commit({"zeros": {"w": np.zeros(CELL, np.uint8)}, "noise": {"w": noise()}}, codec="zstd")
    (stored,) = (row.stored for row in blocks(store) if row.codec == Codec.ZSTD)
    parts = by_name(store.stats().savings.parts)
    assert parts["zeros"] == Saved("zeros", CELL, 0, 0, CELL - stored, stored, 1)
    assert parts["noise"] == Saved("noise", CELL, 0, 0, 0, CELL, 1)
    assert stored < 1000


def test_what_is_saved_on_deltas_is_counted_apart(store: Store) -> None:
    first = floats()
    store.commit({"model": {"w": first}}, codec="planes")
    store.branch("old", "main")
    store.commit({"model": {"w": first * np.float32(1.0001)}}, codec="planes", delta="parent")
    plain, delta = sorted(blocks(store), key=lambda row: row.chain)
    assert (delta.codec, delta.chain, delta.base) == (Codec.DELTA, 1, plain.id)
    found = store.stats().savings
    assert found.whole == Saved(
        "", 2 * CELL, 0, CELL - delta.stored, CELL - plain.stored, plain.stored + delta.stored, 2
    )
    assert CELL > plain.stored > delta.stored
    assert [(depth.depth, depth.blocks, depth.raw, depth.stored, depth.branches) for depth in found.depths] == [
        (0, 1, CELL, plain.stored, ("old",)),
        (1, 1, CELL, delta.stored, ("main",)),
    ]


def test_dtypes_are_told_apart_and_what_is_no_tensor_is_bytes(store: Store) -> None:
    state = {"a": {"w": floats(), "n": np.arange(3)}, "b": {"v": floats(1), "text": "x" * 100_000}, "step": 1}
    commit = store.commit(state, codec="raw", files={"notes": store.path / "cas.json"})
    side = (store.path / "cas.json").stat().st_size
    found = store.stats().savings
    dtypes = {item.name: (item.raw, item.blocks) for item in found.dtypes}
    assert dtypes == {"float32": (2 * CELL, 2), "bytes": (100_000 + side, 2), "int64": (24, 1)}
    parts = {item.name: item.raw for item in found.parts}
    assert parts == {"a": CELL + 24, "b": CELL + 100_000, "(side files)": side}
    assert found.whole.raw == commit.raw


def test_tensors_at_the_top_are_one_part(store: Store) -> None:
    store.commit({"w": noise(seed=1), "v": noise(seed=2), "deep": [noise(seed=3)]}, codec="raw")
    assert {item.name: item.raw for item in store.stats().savings.parts} == {"(leaves)": 2 * CELL, "deep": CELL}


@pytest.mark.parametrize(
    "state",
    [
        np.arange(1000),
        [np.arange(10), {"a": np.arange(20)}, (np.arange(30), "x" * 70_000)],
        {f"w{number}": np.full(3, number) for number in range(5000)},
        {"model": {f"w{number}": np.full(3, number) for number in range(5000)}, "note": "n" * 5000},
        {"model": [np.full(3, number) for number in range(5000)]},
        {f"{number}": {"w": np.full(100, number)} for number in range(200)},
        {"loader": PerRank({"order": np.arange(2000)}), "deep": {"rng": PerRank(np.arange(300))}},
        {},
    ],
)
def test_the_bytes_of_any_form_of_state_are_those_of_its_commit(state: Any, store: Store) -> None:
    commit = store.commit(state)
    found = store.stats().savings
    assert (found.whole.raw, found.dead, found.missing) == (commit.raw, 0, 0)


def test_a_subtree_counts_wherever_it_stands(store: Store) -> None:
    model = {f"w{number}": noise(seed=number)[:1000].copy() for number in range(100)}
    store.commit(model, codec="raw")
    store.commit(
        {"model": model, "ema": {"of": {name: array.copy() for name, array in model.items()}}},
        codec="raw",
        parent="main",
    )
    found = store.stats().savings
    assert (found.whole.raw, found.whole.stored, found.whole.blocks) == (300_000, 100_000, 100)
    parts = {item.name: item.raw for item in found.parts}
    assert parts == {"model": 100_000, "ema": 100_000, "(leaves)": 100_000}


class Counting(Objects):
    """Remembers which trees were asked for."""

    asked: list[bytes]

    def tree(self, name: ObjectId) -> Any:
        self.asked.append(name)
        return super().tree(name)


def test_what_commits_share_is_walked_once(store: Store) -> None:
    model = {f"w{number}": noise(seed=number)[:100].copy() for number in range(200)}
    for step in range(4):
        commit = store.commit({"model": {"deep": model}, "step": {"now": step}}, codec="raw")
    objects = Counting(store._backend, store._catalog, cached=0)
    objects.asked = []
    uses = Uses.of([ObjectId(bytes.fromhex(commit.id))], objects, {})
    assert len(objects.asked) == 4 + 1  # the commits' own and the model's
    assert sum(uses.nbytes.values()) == 4 * 20_000


def test_gathering_in_small_steps_gives_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(3):
        model = {f"w{number}": noise(seed=number + step)[:100].copy() for number in range(200)}
        store.commit({"a": model, "b": dict(reversed(model.items())), "step": step}, codec="raw")
    before = store.stats()
    monkeypatch.setattr("cas.uses._GATHER", 0)
    after = store.stats()
    assert after.savings == before.savings
    assert after.savings.whole.blocks == 202


class Doubling(Objects):
    """A state of a byte, twice, and that twice, and so on."""

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def commit(self, name: ObjectId) -> Commit:
        node = [Tag.DICT, []]
        return Commit(self.id_of(0), (), 0, "", "", None, node, node, node, None, Sizes(0, 0, 0))

    def tree(self, name: ObjectId) -> Any:
        level = int.from_bytes(name, "big")
        leaf = [Tag.TENSOR, "numpy", "uint8", [1], bytes(32), None]
        below = leaf if level == self.levels else [Tag.REF, self.id_of(level + 1)]
        return [Tag.LIST, [below, below]]

    @staticmethod
    def id_of(level: int) -> ObjectId:
        return ObjectId(level.to_bytes(32, "big"))


def test_trees_that_stand_for_more_than_can_be_counted_are_refused() -> None:
    assert sum(Uses.of([Doubling.id_of(0)], Doubling(40), {}).nbytes.values()) == 2**41
    for levels in (100, 200, 10_000):
        with pytest.raises(Corrupt):
            Uses.of([Doubling.id_of(0)], Doubling(levels), {})


def test_tied_tensors_count_once_in_a_commit(store: Store) -> None:
    w, v = noise(), noise(seed=1)
    commits = [
        store.commit({"a": {"w": w, "v": v, "again": w}, "b": {"w": w}, "step": step}, codec="raw") for step in (1, 2)
    ]
    found = store.stats().savings
    assert commits[0].raw == 2 * CELL
    assert (found.whole.raw, found.whole.dedup) == (4 * CELL, 2 * CELL)
    assert {item.name: item.raw for item in found.parts} == {"a": 4 * CELL}


def test_files_that_a_state_was_read_from_count_where_they_are_more_than_it(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(noise().tobytes() + b"more" * 1000)
    known = KnownFile.at(tmp_path / "file")
    body = known.part(0, CELL)
    state = {"m": {"w": Tensor.whole("numpy", DTYPES["uint8"], (CELL,), body, None)}}
    commit = store.commit(state, codec="raw", origin={"f": [body, known.part(CELL, CELL + 4000)]})
    found = store.stats().savings
    assert {item.name: (item.raw, item.stored) for item in found.parts} == {"m": (CELL, CELL), "(origin)": (4000, 4000)}
    assert found.whole.raw == commit.raw == CELL + 4000


def test_what_no_ref_leads_to_is_dead(store: Store) -> None:
    store.commit({"m": {"w": noise()}}, codec="raw")
    kept = sum(row.stored for row in rows(store))
    store.commit({"m": {"w": noise(seed=1)}}, codec="raw", branch="side")
    assert store.stats().savings.dead == 0
    store.delete_branch("side")
    found = store.stats().savings
    assert found.dead == sum(row.stored for row in rows(store)) - kept > CELL
    assert (found.whole.raw, found.commits, found.condemned) == (CELL, 1, 0)


def test_condemned_packs_count_until_they_are_deleted(store: Store) -> None:
    store.commit({"m": {"w": noise(seed=1)}}, codec="raw", branch="side")
    (info,) = store._backend.list("packs")
    store.commit({"m": {"w": noise()}}, codec="raw")
    store.delete_branch("side")
    root, name = store._roots.current(), id_of(info.name)
    assert name is not None
    assert condemn(store._backend, store._roots, root, root.floor, {name}, "test")
    found = store.stats()
    assert (found.savings.condemned, found.savings.dead, found.packs) == (info.size, 0, 1)
    os.remove(store.path / info.name)
    assert store.stats().savings.condemned == 0


def test_a_pruned_commit_counts_no_more_but_for_the_bases_that_it_gives(store: Store) -> None:
    first = floats()
    store.commit({"m": {"w": first}, "other": {"v": noise()}}, codec="planes", step=1)
    second = store.commit({"m": {"w": first * np.float32(1.0001)}}, codec="planes", delta="parent", step=2)
    base = next(row for row in blocks(store) if row.codec == Codec.PLANES)
    assert store.stats().savings.bases == 0
    store.prune("main", keep_last=1)
    found = store.stats().savings
    assert (found.commits, found.whole.raw, found.whole.blocks) == (1, second.raw, 1)
    assert found.bases == base.stored
    assert CELL <= found.dead < CELL + 1000  # the other block, and trees
    assert [(depth.depth, depth.blocks) for depth in found.depths] == [(0, 0), (1, 1)]


def recode(store: Store, codings: dict[bytes, Coding]) -> None:
    """Write all in one pack, blocks as rows of these codings that no one will decode, in place of the packs."""
    writer, old = PackWriter(store._backend), store._backend.list("packs")
    for info in old:
        name = id_of(info.name)
        assert name is not None
        data = (store.path / name_of(name)).read_bytes()
        for row in read_table(store._backend, name):
            coding = codings.get(row.id, row.coding)
            writer.append(row.id, Kind(row.kind), coding, row.raw, data[row.offset : row.offset + row.stored])
    writer.publish()
    for info in old:
        os.remove(store.path / info.name)


def test_depth_counts_the_bases_that_are_really_below(store: Store) -> None:
    ids = []
    for number in range(4):
        commit = store.commit({"m": {"w": noise(seed=number)}}, codec="raw", branch=f"b{number}")
        (leaf,) = store.leaves(commit.id)
        assert isinstance(leaf, TensorLeaf)
        assert leaf.entry.content.block is not None
        ids.append(leaf.entry.content.block)
    chains = {1: 5, 2: 6, 3: 8}  # the numbers of rows rise, and may leave some out
    recode(store, {ids[at]: Coding(Codec.DELTA, 1, chain, ids[at - 1]) for at, chain in chains.items()})
    found = store.stats().savings
    assert [(depth.depth, depth.blocks, depth.branches) for depth in found.depths] == [
        (level, 1, (f"b{level}",)) for level in range(4)
    ]


def test_a_block_that_no_pack_has_is_counted(store: Store) -> None:
    held = noise()
    store.commit({"m": {"w": held}}, codec="raw", branch="one")
    (info,) = store._backend.list("packs")
    store.commit({"m": {"w": held, "more": 1}}, codec="raw", branch="two")
    store.delete_branch("one")
    assert store.stats().savings.missing == 0
    store.close()
    os.remove(store.path / info.name)
    with cas.open(store.path) as again:
        found = again.stats().savings
    assert (found.missing, found.whole.stored, found.whole.raw) == (1, 0, CELL)


def test_what_cannot_be_read_is_named(store: Store) -> None:
    store.commit({"m": {"w": noise()}}, codec="raw")
    store.close()
    (file,) = store.path.glob("packs/*/*")
    os.remove(file)
    with cas.open(store.path) as again, pytest.raises(cas.NotFound, match="commit"):
        again.stats()
