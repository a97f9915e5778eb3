"""Commits by many ranks, the pure part: what each says of its state, and the one tree that all of it makes.

`Rank` is one rank: it walks its own state, and stores of its boxes what its duties say, in a dict. What is then
merged is read back from that dict alone and compared with what one process makes of the whole state.
"""

from __future__ import annotations

import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cas.block import Kind, ObjectId, block_id, object_id
from cas.dtypes import DTYPES
from cas.errors import CasError, Corrupt, Invalid
from cas.grid import Box, cut
from cas.merging import merge
from cas.nodes import EMPTY, INLINE_TEXT, MAX_DEPTH, MAX_ENTRIES, Content, Tag, long_of, pack, tensor_of, unpack
from cas.objects import (
    MAX_SHARDS,
    Layout,
    Shard,
    decode_layout,
    decode_list,
    decode_tree,
    encode_layout,
    encode_list,
    entries_of,
    store_content,
)
from cas.outline import Outline, outline_of
from cas.per_rank import PerRank
from cas.plan import Plan
from cas.state import Leaf, Walk, tree_node
from cas.tensors import ArraySource, Composite, LocalShard, Tensor

BLOCK = 64  # bytes: so small that small tensors have many blocks
Objects = dict[tuple[Kind, ObjectId], bytes]


# -- ranks that are simulated -------------------------------------------------------------------------------------


def putter(objects: Objects) -> Callable[[Kind, bytes], ObjectId]:
    def put(kind: Kind, data: bytes) -> ObjectId:
        name = object_id(kind, data)
        objects[kind, name] = data
        return name

    return put


def part(array: np.ndarray, *boxes: Box, alias: Any = None) -> Tensor:
    """What a rank with these boxes of the array has."""
    shards = [LocalShard(box, ArraySource(array[slices(box)])) for box in boxes]
    return Tensor("numpy", DTYPES[array.dtype.name], array.shape, shards, alias)


def slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(box.start, box.shape, strict=True))


def rows(array: np.ndarray, first: int, stop: int, alias: Any = None) -> Tensor:
    return part(array, Box((first, *(0,) * (array.ndim - 1)), (stop - first, *array.shape[1:])), alias=alias)


def bytes_of(leaf: Leaf, shard: LocalShard) -> bytes:
    out = np.empty(math.prod(shard.box.shape) * leaf.itemsize, np.uint8)
    shard.source.read_into(0, out)
    return out.tobytes()


def blocks_of(leaf: Leaf, shard: LocalShard, cell: int) -> list[bytes]:
    data = bytes_of(leaf, shard)
    return [data[a:b] for a, b in pairwise(cut(shard.box, leaf.shape, leaf.itemsize, cell))]


@dataclass
class Rank:
    state: Any
    number: int = 0
    stored: int = 0
    walk: Walk = field(init=False)
    skeleton: Any = field(init=False)

    def __post_init__(self) -> None:
        self.walk = Walk(rank=self.number, allow_pickle=True)
        self.skeleton = self.walk.visit(self.state)

    @property
    def outline(self) -> Outline:
        return outline_of(self.skeleton, self.walk.leaves)

    def reports(self, duties: bytes, objects: Objects) -> bytes:
        """Stores what the duties say, and no more; what it says of each box."""
        todo = iter(unpack(duties, "duties"))
        held = [(leaf, shard) for leaf in self.walk.leaves if leaf.tied_to is None for shard in leaf.shards]
        said = [self._store(leaf, shard, *next(todo), objects) for leaf, shard in held if shard.box.size]
        assert next(todo, None) is None
        return pack(said)

    def _store(self, leaf: Leaf, shard: LocalShard, position: int, replicas: int, objects: Objects) -> bytes:
        if not replicas:
            return b""
        blocks = blocks_of(leaf, shard, leaf.cell or BLOCK)
        ids = list(map(block_id, blocks))
        for n in range(len(ids) * position // replicas, len(ids) * (position + 1) // replicas):
            objects[Kind.BLOCK, ids[n]] = blocks[n]
            self.stored += len(blocks[n])
        if len(ids) == 1 and shard.box.shape == leaf.shape:
            return ids[0]
        joined = encode_list(ids)
        if position == 0:
            return putter(objects)(Kind.LIST, joined)
        return object_id(Kind.LIST, joined)


def plan_of(ranks: Iterable[Rank]) -> Plan:
    said = [rank.outline for rank in ranks]
    return merge([one.structure for one in said], [one.boxes for one in said])


def settle(plan: Plan, ranks: list[Rank], objects: Objects, first: bool = False) -> Any:
    reports = [rank.reports(plan.duties(n, first), objects) for n, rank in enumerate(ranks)]
    plan.settle([rank.outline.values for rank in ranks], reports, putter(objects), first, BLOCK)
    return tree_node(plan.skeleton, putter(objects))


def ranks_of(states: Iterable[Any]) -> list[Rank]:
    return [Rank(state, number) for number, state in enumerate(states)]


def merged(*states: Any, first: bool = False) -> Any:
    """What the ranks with these states commit, read back."""
    ranks, objects = ranks_of(states), Objects()
    return read(settle(plan_of(ranks), ranks, objects, first), objects)


def alone(state: Any) -> tuple[Any, Objects]:
    """The node that one process makes of the whole state, and its objects."""
    walk, objects = Walk(allow_pickle=True), Objects()
    skeleton = walk.visit(state)
    for leaf in walk.leaves:
        if leaf.tied_to is None:
            (shard,) = leaf.shards
            blocks = blocks_of(leaf, shard, BLOCK)
            ids = list(map(block_id, blocks))
            objects.update({(Kind.BLOCK, name): block for name, block in zip(ids, blocks, strict=True)})
            leaf.content = store_content(ids, shard.box, BLOCK, putter(objects))
    return tree_node(skeleton, putter(objects)), objects


def committed(state: Any) -> Any:
    """What one process commits, read back."""
    return read(*alone(state))


def read(node: Any, objects: Objects) -> Any:
    """All that a tree says, layouts apart: containers as tag and entries, tensors and long values with their bytes."""
    node = unpack(pack(node), "a node")
    if type(node) is list and node[0] == Tag.COMPOSITE:
        return ("composite", node[1], node[2], read(node[3], objects))
    held = entries_of(node, lambda name: decode_tree(objects[Kind.TREE, name]))
    if held is not None:
        tag, entries = held
        if tag in (Tag.LIST, Tag.TUPLE):
            return (tag.name, [read(child, objects) for child in entries])
        return (tag.name, [(type(key).__name__, key, read(child, objects)) for key, child in entries])
    if type(node) is list and node[0] == Tag.TENSOR:
        entry = tensor_of(node)
        data = content_bytes(entry.content, entry.shape, DTYPES[entry.dtype].itemsize, objects)
        return ("tensor", entry.framework, entry.dtype, entry.shape, entry.tie, data)
    if type(node) is list and node[0] in (Tag.TEXT, Tag.BYTES, Tag.PICKLE):
        long = long_of(node)
        return (long.tag.name, content_bytes(long.content, (long.nbytes,), 1, objects))
    return ("value", pack(node))


def content_bytes(content: Content, shape: tuple[int, ...], itemsize: int, objects: Objects) -> bytes:
    if content == EMPTY:
        return b""
    if content.block is not None:
        return objects[Kind.BLOCK, content.block]
    assert content.layout is not None
    layout = decode_layout(objects[Kind.LAYOUT, content.layout])
    assert [s.box.start for s in layout.shards] == sorted(s.box.start for s in layout.shards)
    whole, written = np.zeros(shape, np.dtype((np.void, itemsize))), np.zeros(shape, int)
    for shard in layout.shards:
        names = [name for each in shard.lists for name in decode_list(objects[Kind.LIST, each])]
        assert len(names) == len(cut(shard.box, shape, itemsize, layout.cell)) - 1
        data = b"".join(objects[Kind.BLOCK, name] for name in names)
        whole[slices(shard.box)] = np.frombuffer(data, whole.dtype).reshape(shard.box.shape)
        written[slices(shard.box)] += 1
    assert (written == 1).all()
    return whole.tobytes()


def array(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.random.default_rng([seed, *shape]).integers(0, 256, size, np.uint8).view(dtype).reshape(shape)


# -- layouts ------------------------------------------------------------------------------------------------------


def test_rows_split_evenly_unevenly_and_to_nobody_make_the_whole() -> None:
    even, uneven, small = array(8, 6), array(7, 6), array(2, 3)
    edges = [[(0, 2), (2, 4), (4, 6), (6, 8)], [(0, 2), (2, 4), (4, 6), (6, 7)], [(0, 1), (1, 2), (2, 2), (2, 2)]]
    states = [
        {"even": rows(even, *a), "uneven": rows(uneven, *b), "small": rows(small, *c)}
        for a, b, c in zip(*edges, strict=True)
    ]
    assert merged(*states) == committed({"even": even, "uneven": uneven, "small": small})


def test_a_rank_with_an_empty_shard_and_one_without_any_say_the_same() -> None:
    w = array(2, 3)
    assert merged({"w": rows(w, 0, 2)}, {"w": rows(w, 2, 2)}, {"w": part(w)}) == committed({"w": w})


def test_a_rank_may_hold_several_boxes_in_any_order() -> None:
    w = array(8, 4)
    quarters = [Box((n, 0), (2, 4)) for n in (0, 2, 4, 6)]
    states = [{"w": part(w, quarters[3], quarters[0])}, {"w": part(w, quarters[1], quarters[2])}]
    assert merged(*states) == committed({"w": w})


def test_a_mesh_of_boxes_makes_the_whole() -> None:
    w = array(5, 7)
    states = [
        {"w": part(w, Box((a, b), (c - a, d - b)))} for a, c in [(0, 2), (2, 5)] for b, d in [(0, 1), (1, 6), (6, 7)]
    ]
    assert merged(*states) == committed({"w": w})


@pytest.mark.parametrize("shape", [(), (1,), (3, 0, 2), (0,), (33,), (4, 4, 4)])
def test_replicas_of_any_shape_are_the_tensor_itself(shape: tuple[int, ...]) -> None:
    w = array(*shape)
    assert merged({"w": w.copy()}, {"w": w.copy()}, {"w": w.copy()}) == committed({"w": w})


def test_what_ranks_hold_whole_has_the_very_node_that_one_process_makes() -> None:
    state = {"a": [array(3, 3), 1, (2.5, None)], "b": {3: b"x" * 70_000, "3": OrderedDict(x="y")}}
    ranks = ranks_of([state, state])
    assert pack(settle(plan_of(ranks), ranks, Objects())) == pack(alone(state)[0])


def test_replicated_blocks_are_stored_once_and_the_work_is_spread() -> None:
    state = {f"w{n}": array(16, 4, seed=n) for n in range(8)}  # four blocks each
    ranks, objects = ranks_of([state] * 4), Objects()
    settle(plan_of(ranks), ranks, objects)
    assert [rank.stored for rank in ranks] == [8 * 64] * 4
    assert sum(len(data) for (kind, _), data in objects.items() if kind is Kind.BLOCK) == 8 * 256


def test_small_replicated_tensors_go_round_the_ranks() -> None:
    state = {f"w{n}": array(4, seed=n) for n in range(12)}  # one block each
    ranks = ranks_of([state] * 4)
    settle(plan_of(ranks), ranks, Objects())
    assert [rank.stored for rank in ranks] == [3 * 16] * 4


def test_tied_replicas_share_the_work_too() -> None:
    w = array(32)
    ranks = ranks_of([{"a": w, "b": w}] * 2)
    settle(plan_of(ranks), ranks, Objects())
    assert [rank.stored for rank in ranks] == [64, 64]


def test_each_box_of_replicated_shards_is_stored_by_its_own_replicas() -> None:
    w = array(32, 4)
    states = [{"w": rows(w, *half)} for half in [(0, 16), (16, 32)] for _ in range(2)]  # HSDP: 2 shards, 2 replicas
    ranks, objects = ranks_of(states), Objects()
    node = settle(plan_of(ranks), ranks, objects)
    assert read(node, objects) == committed({"w": w})
    assert [rank.stored for rank in ranks] == [128] * 4


# -- trees --------------------------------------------------------------------------------------------------------


def test_pipeline_stages_make_one_model_in_the_order_of_the_ranks() -> None:
    layers = {f"layer{n}": array(3, seed=n) for n in range(4)}
    stages = [{"model": {f"layer{n}": layers[f"layer{n}"] for n in held}} for held in [(0, 1), (2, 3)]]
    assert merged(*stages) == committed({"model": layers})


def test_experts_of_other_ranks_stand_after_the_key_before_them() -> None:
    first = {"a": 0, "expert0": 0, "z": 0}
    second = {"a": 0, "expert1": 0, "expert2": 0, "z": 0, "tail": 0}
    third = {"head": 0, "expert3": 0, "expert1": 0, "expert4": 0}
    order = ["a", "expert1", "expert4", "expert2", "expert0", "z", "tail", "head", "expert3"]
    assert merged(first, second, third) == committed(dict.fromkeys(order, 0))


def test_int_and_str_keys_stay_what_they_are() -> None:
    states = [{1: "int", "a": {0: 1.5}}, {"1": "str", "a": {-7: None, "0": 2}}]
    assert merged(*states) == committed({1: "int", "a": {0: 1.5, -7: None, "0": 2}, "1": "str"})


def test_containers_of_every_kind_survive() -> None:
    w = array(6, 2)

    def state(first: int, stop: int) -> Any:
        return {
            "tuple": (1, (rows(w, first, stop), [])),
            "list": [{}, [], (), OrderedDict(), Counter()],
            "ordered": OrderedDict(b=1, a={}),
            "counter": Counter("aab"),
        }

    assert merged(state(0, 4), state(4, 6)) == committed(
        {
            "tuple": (1, (w, [])),
            "list": [{}, [], (), OrderedDict(), Counter()],
            "ordered": OrderedDict(b=1, a={}),
            "counter": Counter("aab"),
        }
    )


def test_an_empty_dict_of_one_rank_takes_the_keys_of_another() -> None:
    assert merged({"a": {}}, {"a": {"b": 1}}, {"a": {}}) == committed({"a": {"b": 1}})


@pytest.mark.parametrize("state", [5, [], {}, "x" * 70_000, array(40)], ids=["value", "list", "dict", "text", "tensor"])
def test_a_state_may_be_no_dict_at_all(state: Any) -> None:
    assert merged(state, state) == committed(state)


def test_every_bit_of_a_value_counts_and_nan_equals_itself() -> None:
    nan = struct.unpack("<d", (0x7FF8DEADBEEF0001).to_bytes(8, "little"))[0]
    state = {"nan": nan, "zero": -0.0, "big": 1 << 80, "scalar": np.float16("nan"), "text": "é", "bytes": b"\0"}
    assert merged(state, dict(state)) == committed(state)
    with pytest.raises(Invalid, match="zero on rank 1"):
        merged(state, {**state, "zero": 0.0})


def test_long_values_replicate_like_tensors() -> None:
    state = {"text": "é" * 50_000, "bytes": bytes(range(256)) * 300, "pickle": {"p": complex(1, 2)}}
    assert merged(state, state, {}) == committed(state)
    with pytest.raises(Invalid, match="text on rank 1"):
        merged(state, {**state, "text": "è" * 50_000})


def test_values_per_rank_stand_side_by_side() -> None:
    w = array(4)
    states = [{"rng": PerRank({"seed": n, "state": w + n}), "step": 3} for n in range(3)]
    parts = {n: {"seed": n, "state": w + n} for n in range(3)}
    assert merged(*states) == committed({"rng": Composite("cas", "per_rank", parts), "step": 3})


def test_composites_merge_by_their_parts() -> None:
    w = array(6)
    states = [{"c": Composite("torch", "thing", {"w": rows(w, *half), "n": 1})} for half in [(0, 3), (3, 6)]]
    assert merged(*states) == committed({"c": Composite("torch", "thing", {"w": w, "n": 1})})


# -- ties ---------------------------------------------------------------------------------------------------------


def ties(tree: Any) -> dict[str, int | None]:
    """Of a dict of tensors."""
    return {key: child[4] for _, key, child in tree[1]}


def test_sharded_tensors_that_are_tied_are_one_in_the_tree() -> None:
    w, v = array(8, 4), array(8, 4, seed=1)
    states = [
        {"v": rows(v, *at, "v"), "w": rows(w, *at, "w"), "w2": rows(w, *at, "w"), "v2": rows(v, *at, "v")}
        for at in [(0, 5), (5, 8)]
    ]
    assert merged(*states) == committed({"v": v, "w": w, "w2": w, "v2": v})
    assert ties(merged(*states)) == {"v": 1, "w": 0, "w2": 0, "v2": 1}


def test_a_rank_with_an_empty_shard_says_nothing_against_a_tie() -> None:
    w = array(2, 4)
    states = [{"a": rows(w, n, n + 1, "w"), "b": rows(w, n, n + 1, "w")} for n in range(2)]
    assert merged(*states, {"a": rows(w, 2, 2), "b": rows(w, 2, 2)}) == committed({"a": w, "b": w})


def test_a_tie_holds_for_ranks_that_have_one_of_the_paths() -> None:
    w = array(8)
    whole = {"a": part(w, Box.whole(w.shape), alias="w"), "b": part(w, Box.whole(w.shape), alias="w")}
    assert merged(whole, {"b": w.copy()}, {"a": w.copy()}) == committed({"a": w, "b": w})
    assert merged({"b": w.copy()}, whole) == committed({"b": w, "a": w})


def test_what_is_tied_on_one_rank_may_be_completed_under_either_path() -> None:
    w = array(9, 4)
    states = [{"a": rows(w, 0, 4, "w"), "b": rows(w, 0, 4, "w")}, {"b": rows(w, 4, 6)}, {"a": rows(w, 6, 9)}]
    assert merged(*states) == committed({"a": w, "b": w})


def test_ties_of_several_structures_join() -> None:
    w = array(8)
    pairs = [{name: part(w, Box.whole(w.shape), alias="w") for name in names} for names in ["ab", "cd", "bc", "xy"]]
    assert ties(merged(*pairs)) == {"a": 0, "b": 0, "c": 0, "d": 0, "x": 1, "y": 1}
    chain = [{name: part(w, Box.whole(w.shape), alias="w") for name in names} for names in ["abd", "bc"]]
    assert ties(merged(*chain)) == {"a": 0, "b": 0, "c": 0, "d": 0}


def test_equal_tensors_of_different_ranks_are_not_tied() -> None:
    w = array(8)
    assert ties(merged({"a": w}, {"b": w})) == {"a": None, "b": None}


def test_what_one_rank_ties_and_another_holds_apart_is_not_tied() -> None:
    w = array(32)
    ranks = ranks_of([{"a": w, "b": w}, {"a": w.copy(), "b": w.copy()}, {"b": w.copy()}])
    objects = Objects()
    assert read(settle(plan_of(ranks), ranks, objects), objects) == committed({"a": w.copy(), "b": w.copy()})
    assert ranks[0].stored == w.nbytes


def test_the_shards_of_a_tie_that_others_do_not_have_count_for_each_path() -> None:
    w = array(8, 4)
    tied = {"a": rows(w, 0, 4, "w"), "b": rows(w, 0, 4, "w")}
    apart = {"a": rows(w, 4, 8), "b": rows(w, 4, 8)}
    assert merged(tied, apart) == committed({"a": w.copy(), "b": w.copy()})
    assert merged(apart, tied, first=True) == committed({"a": w.copy(), "b": w.copy()})


def test_the_tie_of_a_pair_does_not_reach_over_a_rank_that_holds_them_apart() -> None:
    w = array(8)
    tied = [{name: part(w, Box.whole(w.shape), alias="w") for name in names} for names in ["ab", "bc"]]
    assert ties(merged(*tied, {"a": w.copy(), "c": w.copy()})) == {"a": 0, "b": 0, "c": None}


# -- refusals -----------------------------------------------------------------------------------------------------

F = array(4, 4)
DIFFERENT_FORMS: dict[str, tuple[Any, Any, str]] = {
    "shape": (F, array(4, 5), r"float32 \[4, 4\] on rank 0 and float32 \[4, 5\] on rank 2"),
    "dtype": (F, F.astype("float64"), r"float32 \[4, 4\] on rank 0 and float64 \[4, 4\] on rank 2"),
    "framework": (
        F,
        Tensor("torch", DTYPES["float32"], (4, 4), part(F, Box.whole((4, 4))).shards, None),
        r"float32 \[4, 4\] of numpy with cell 0 on rank 0 and float32 \[4, 4\] of torch with cell 0 on rank 2",
    ),
    "leaf and value": (F, 1, r"float32 \[4, 4\] on rank 0 and a value on rank 2"),
    "container and leaf": ({}, F, r"a dict on rank 0 and float32 \[4, 4\] on rank 2"),
    "container and value": ([], None, "a list of 0 on rank 0 and a value on rank 2"),
    "kinds of dict": ({"a": 1}, OrderedDict(a=1), "a dict on rank 0 and an OrderedDict on rank 2"),
    "list and tuple": ([1], (1,), "a list of 1 on rank 0 and a tuple of 1 on rank 2"),
    "lengths": ([1], [1, 2], "a list of 1 on rank 0 and a list of 2 on rank 2"),
    "long texts": ("x" * 70_000, "x" * 80_000, "a str of 70000 bytes on rank 0 and a str of 80000 bytes on rank 2"),
    "composites": (
        Composite("torch", "one", {}),
        Composite("torch", "other", {}),
        "a torch one on rank 0 and a torch other on rank 2",
    ),
    "composite and dict": (Composite("torch", "one", {}), {}, "a torch one on rank 0 and a dict on rank 2"),
}


@pytest.mark.parametrize("case", DIFFERENT_FORMS)
def test_a_path_of_two_forms_is_refused_with_both_and_their_ranks(case: str) -> None:
    one, other, said = DIFFERENT_FORMS[case]
    with pytest.raises(Invalid, match=rf"state path a/\[7\] is {said}; .* PerRank"):
        merged({"a": {7: one}}, {"a": {7: one}}, {"a": {7: other}})


def test_a_cell_of_its_own_is_a_form_too() -> None:
    ranks = ranks_of([{"w": F}, {"w": F}])
    ranks[1].walk.leaves[0].cell = 32
    with pytest.raises(Invalid, match=r"with cell 0 on rank 0 and .* with cell 32 on rank 1"):
        plan_of(ranks)


def test_a_layout_has_the_cell_of_its_leaf() -> None:
    w = array(16, 4)
    ranks, objects = ranks_of([{"w": rows(w, 0, 8)}, {"w": rows(w, 8, 16)}]), Objects()
    for rank in ranks:
        rank.walk.leaves[0].cell = 32
    assert read(settle(plan_of(ranks), ranks, objects), objects) == committed({"w": w})
    (layout,) = (decode_layout(data) for (kind, _), data in objects.items() if kind is Kind.LAYOUT)
    assert layout.cell == 32


BAD_BOXES: dict[str, tuple[list[list[Box]], str]] = {
    "gap": ([[Box((0, 0), (1, 4))], [Box((2, 0), (2, 4))]], r"\[0:1, 0:4\] on rank 0, \[2:4, 0:4\] on rank 1; every"),
    "overlap": ([[Box((0, 0), (3, 4))], [Box((2, 0), (2, 4))]], r"\[0:3, 0:4\] on rank 0, \[2:4, 0:4\] on rank 1"),
    "gap and overlap": ([[Box((0, 0), (2, 4)), Box((1, 0), (2, 4))]], r"\[0:2, 0:4\] on rank 0, \[1:3"),
    "no end": ([[Box((0, 0), (2, 4))], [Box((0, 0), (2, 4))]], r"\[0:2, 0:4\] on ranks 0, 1; every"),
    "outside": ([[Box((0, 0), (5, 4))]], r"\[0:5, 0:4\] on rank 0"),
    "one corner": ([[Box((0, 0), (2, 4)), Box((2, 0), (2, 3))]], r"\[0:2, 0:4\] on rank 0, \[2:4, 0:3\]"),
    "too few dimensions": ([[Box((0,), (4,))]], r"\[0:4\] on rank 0"),
    "nobody": ([[], []], "none on any rank"),
}


@pytest.mark.parametrize("case", BAD_BOXES)
def test_boxes_that_do_not_tile_are_refused_with_their_holders(case: str) -> None:
    boxes, said = BAD_BOXES[case]
    source = part(F, Box.whole(F.shape)).shards[0].source
    states = [
        {"w": Tensor("numpy", DTYPES["float32"], F.shape, [LocalShard(box, source) for box in held], None)}
        for held in boxes
    ]
    with pytest.raises(Invalid, match=rf"state path w has shape \[4, 4\], .* gap or overlap: {said}"):
        plan_of(ranks_of(states))


def test_of_many_boxes_and_ranks_the_first_few_are_named() -> None:
    w = array(32, 2)
    states = [{"w": rows(w, n, n + 1)} for n in range(20) for _ in range(9)]
    with pytest.raises(Invalid, match=r"\[0:1, 0:2\] on ranks 0, 1, 2, 3, 4 and 4 more, .* and 15 more;"):
        plan_of(ranks_of(states))


def test_differing_values_and_replicas_are_listed_with_their_ranks_and_the_way_out() -> None:
    def state(n: int) -> dict[str, Any]:
        return {"same": 1, "lr": 0.1 * (n == 2), "w": array(4, seed=n // 2), **{f"v{k}": n for k in range(6)}}

    with pytest.raises(Invalid) as caught:
        merged(*map(state, range(4)))
    said = str(caught.value)
    assert "lr on rank 2 is not that of rank 0" in said
    assert "v3 on ranks 1, 2, 3 is not that of rank 0" in said
    assert "v4" not in said
    assert "same" not in said
    assert ", and 3 more; wrap what is meant to differ in PerRank, or pass replicas=" in said
    with pytest.raises(Invalid, match="different values: w on ranks 2, 3 is not that of rank 0;"):
        merged(*({"w": state(n)["w"]} for n in range(4)))


def test_with_first_the_first_holder_counts_and_the_others_store_nothing() -> None:
    states = [{"a": 1}, {"a": 2, "w": array(40), "b": 1}, {"w": array(40, seed=1), "b": 2}]
    ranks, objects = ranks_of(states), Objects()
    node = settle(plan_of(ranks), ranks, objects, first=True)
    assert read(node, objects) == committed({"a": 1, "w": array(40), "b": 1})
    assert [rank.stored for rank in ranks] == [0, 160, 0]


# -- again and again ----------------------------------------------------------------------------------------------


def test_one_plan_serves_commit_after_commit() -> None:
    w, b = array(20, 4), array(3)
    states = [{"w": rows(w, *at), "b": b, "step": 0} for at in [(0, 11), (11, 20)]]
    plan = plan_of(ranks_of(states))
    for step in range(3):
        w[step] += 1  # rows of rank 0 only
        b += step // 2
        ranks, objects = ranks_of([{**state, "step": step} for state in states]), Objects()
        assert read(settle(plan, ranks, objects), objects) == committed({"w": w, "b": b, "step": step})


@pytest.mark.parametrize("lists", [1, 3])
def test_a_layout_names_the_lists_that_were_reported_last(lists: int) -> None:
    w = array(8, 40)
    plan = plan_of(ranks_of([{"w": rows(w, 0, 4)}, {"w": rows(w, 4, 8)}]))
    boxes = [Box((0, 0), (4, 40)), Box((4, 0), (4, 40))]
    for commit in range(3):
        names = [[block_id(bytes([commit, rank, n])) for n in range(lists)] for rank in range(2)]
        objects = Objects()
        reports = [pack([b"".join(mine)]) for mine in names]
        plan.settle([pack([])] * 2, reports, putter(objects), False, BLOCK)
        expected = Layout(BLOCK, tuple(Shard(box, tuple(mine)) for box, mine in zip(boxes, names, strict=True)))
        assert list(objects.values()) == [encode_layout(expected)]
        unchanged = Objects()
        plan.settle([pack([])] * 2, reports, putter(unchanged), False, BLOCK)
        assert unchanged == objects


def test_a_refused_commit_leaves_the_plan_fit_for_the_next() -> None:
    plan = plan_of(ranks_of([{"a": 1, "w": F}] * 2))
    with pytest.raises(Invalid):
        settle(plan, ranks_of([{"a": 1, "w": F}, {"a": 2, "w": F + 1}]), Objects())
    ranks, objects = ranks_of([{"a": 2, "w": F + 1}] * 2), Objects()
    assert read(settle(plan, ranks, objects), objects) == committed({"a": 2, "w": F + 1})


def test_the_plan_counts_the_bytes_of_the_whole_state() -> None:
    w = array(8, 4)
    states = [{"a": rows(w, *at, "w"), "b": rows(w, *at, "w"), "t": "x" * 70_000} for at in [(0, 5), (5, 8)]]
    assert plan_of(ranks_of(states)).nbytes == 8 * 4 * 4 + 70_000


def test_structures_are_equal_on_all_ranks_that_shard_the_same_state() -> None:
    w = array(8, 4)
    said = [rank.outline for rank in ranks_of({"w": rows(w, *at), "step": n} for n, at in enumerate([(0, 8), (8, 8)]))]
    assert said[0].structure == said[1].structure
    assert said[0].boxes != said[1].boxes
    assert said[0].values != said[1].values


# -- any state, split in any way ----------------------------------------------------------------------------------


class Pooled(NamedTuple):
    """A leaf that is array `number` of the pool."""

    number: int


SHAPES = [(7, 3), (16, 4), (2, 5, 3), (3,), (), (0, 2)]
POOL = [array(*shape) for shape in SHAPES]

keys = st.one_of(st.sampled_from("abcd"), st.integers(-2, 2))
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))
leaves = st.one_of(
    plain,
    st.builds(Pooled, st.integers(0, len(POOL) - 1)),
    st.builds(Pooled, st.integers(0, 2)),
    st.sampled_from([b"long" * (INLINE_TEXT // 3), np.int16(-3)]),
)


def grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from("xyz"), inner, max_size=3).map(lambda parts: Composite("torch", "kind", parts)),
    )


def mapped(value: Any, path: tuple[Any, ...], at_dict: Callable, at_array: Callable) -> Any:
    """A copy of a state with dicts and arrays replaced."""
    if isinstance(value, Pooled):
        return at_array(path, value.number)
    if isinstance(value, dict):
        return type(value)(
            {key: mapped(value[key], (*path, key), at_dict, at_array) for key in at_dict(path, list(value))}
        )
    if isinstance(value, list | tuple):
        return type(value)(mapped(child, (*path, n), at_dict, at_array) for n, child in enumerate(value))
    if isinstance(value, Composite):
        return Composite(value.framework, value.kind, mapped(value.parts, path, at_dict, at_array))
    return value


def in_order(orders: list[list[Any]]) -> list[Any]:
    """The rule for keys, word for word."""
    found: list[Any] = []
    for order in orders:
        for n, key in enumerate(order):
            if key not in found:
                found.insert(found.index(order[n - 1]) + 1 if n else len(found), key)
    return found


def pieces_of(draw: Any, whole: np.ndarray) -> list[Box]:
    """The boxes of an array that is split on one dimension, some of them empty."""
    if not whole.size:
        return []
    axis = draw(st.integers(0, whole.ndim - 1)) if whole.ndim else None
    if axis is None or draw(st.booleans()):
        return [Box.whole(whole.shape)]
    edges = sorted([0, whole.shape[axis], *draw(st.lists(st.integers(0, whole.shape[axis]), max_size=3))])
    return [
        Box(
            tuple(a if n == axis else 0 for n in range(whole.ndim)),
            tuple(b - a if n == axis else size for n, size in enumerate(whole.shape)),
        )
        for a, b in pairwise(edges)
    ]


@st.composite
def split_states(draw: Any) -> tuple[list[Any], Any]:
    """The states of some ranks, and the state of one process that they make together."""
    whole = draw(st.recursive(leaves, grow, max_leaves=12))
    world = draw(st.integers(1, 4))
    have: dict[tuple[Any, ...], list[int]] = {}  # by path of an array, the ranks that have it
    orders: dict[tuple[Any, ...], list[list[Any]]] = {}

    def keep(rank: int) -> Callable:
        def kept(path: tuple[Any, ...], held: list[Any]) -> list[Any]:
            own = [key for key in held if rank in owners(path, key)]
            orders.setdefault(path, []).append(own)
            return own

        return kept

    owned: dict[tuple[Any, ...], set[int]] = {(): set(range(world))}

    def owners(path: tuple[Any, ...], key: Any) -> set[int]:
        """Ranks that have the key, of those that have the dict."""
        whom = (*path, key)
        if whom not in owned:
            within = next(owned[path[:n]] for n in range(len(path), -1, -1) if path[:n] in owned)
            owned[whom] = draw(st.sets(st.sampled_from(sorted(within)), min_size=1))
        return owned[whom]

    def noted(rank: int) -> Callable:
        def note(path: tuple[Any, ...], number: int) -> Pooled:
            have.setdefault(path, []).append(rank)
            return Pooled(number)

        return note

    views = [mapped(whole, (), keep(rank), noted(rank)) for rank in range(world)]
    number_at: dict[tuple[Any, ...], int] = {}
    mapped(whole, (), lambda _, held: held, number_at.setdefault)
    groups = tied_groups(number_at, have)
    boxes = {number: pieces_of(draw, POOL[number]) for number in sorted(set(number_at.values()))}
    held = {
        (number, rank): {n for n in range(len(found)) if draw(st.booleans())}
        for number, found in boxes.items()
        for rank in range(world)
    }
    for paths in groups:  # every piece is held by one of those that have the tensor at all
        number, able = number_at[paths[0]], sorted({rank for path in paths for rank in have[path]})
        for n in range(len(boxes[number])):
            if not any(n in held[number, rank] for rank in able):
                held[number, draw(st.sampled_from(able))].add(n)

    def cut_for(rank: int) -> Callable:
        def tensor(_: tuple[Any, ...], number: int) -> Tensor:
            mine = [boxes[number][n] for n in sorted(held[number, rank])]
            return part(POOL[number], *mine, alias=number if POOL[number].size else None)

        return tensor

    states = [mapped(view, (), lambda _, own: own, cut_for(rank)) for rank, view in enumerate(views)]
    copies = {path: POOL[number_at[paths[0]]].copy() for paths in groups for path in [paths[0]]}
    first = {path: copies[paths[0]] for paths in groups for path in paths}
    one = mapped(whole, (), lambda path, _: in_order(orders[path]), lambda path, _: first[path])
    return states, one


def tied_groups(number_at: dict[Any, int], have: dict[Any, list[int]]) -> list[list[Any]]:
    """Paths of one array, together as far as ranks have two of them."""
    groups: list[list[Any]] = []
    for path, number in number_at.items():
        same = [group for group in groups if number_at[group[0]] == number]
        near = [group for group in same if any(set(have[path]) & set(have[other]) for other in group)]
        groups = [group for group in groups if group not in near] + [[*(p for group in near for p in group), path]]
    return groups


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(split_states())
def test_any_state_split_in_any_way_is_the_one_that_a_single_process_commits(split: tuple[list[Any], Any]) -> None:
    states, whole = split
    assert merged(*states) == committed(whole)


# -- limits, and messages that nobody should send -----------------------------------------------------------------

LEAF, VALUE = 0, 1
FORM = [Tag.TENSOR, "numpy", "float32", [4], 0]
WHOLE = [[0], [4]]


def said(nesting: Any, forms: list[Any], found: list[Any], boxes: list[Any]) -> Plan:
    """One rank's messages merged."""
    return merge([pack([nesting, forms, found])], [pack(boxes)])


def nested(depth: int, inner: Any) -> Any:
    for _ in range(depth):
        inner = [Tag.LIST, None, [inner]]
    return inner


BAD_STRUCTURES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "unknown mark": (2, [], []),
    "mark that is a bool": (True, [], []),
    "nothing": (None, [], []),
    "text": ("leaf", [], []),
    "short container": ([Tag.LIST, None], [], []),
    "container of no list": ([Tag.LIST, None, 1], [], []),
    "list with keys": ([Tag.LIST, [0], [VALUE]], [], []),
    "dict without keys": ([Tag.DICT, None, [VALUE]], [], []),
    "dict with too few keys": ([Tag.DICT, ["a"], [VALUE, VALUE]], [], []),
    "dict with a key twice": ([Tag.DICT, ["a", "a"], [VALUE, VALUE]], [], []),
    "dict with a bool as key": ([Tag.DICT, [True], [VALUE]], [], []),
    "dict with a float as key": ([Tag.DICT, [1.0], [VALUE]], [], []),
    "dict with a list as key": ([Tag.DICT, [[]], [VALUE]], [], []),
    "dict with a key over 64 bits": ([Tag.DICT, [(1 << 64) - 1], [VALUE]], [], []),
    "container of parts": ([Tag.PARTS, None, [VALUE]], [], []),
    "container that is a tensor": ([Tag.TENSOR, None, []], [], []),
    "composite of a list": (["torch", "kind", [Tag.LIST, None, []]], [], []),
    "composite of a value": (["torch", "kind", VALUE], [], []),
    "composite without a kind": (["torch", None, [Tag.DICT, [], []]], [], []),
    "too deep": (nested(MAX_DEPTH + 1, VALUE), [], []),
    "more leaves than forms": ([Tag.LIST, None, [LEAF, LEAF]], [FORM], [None]),
    "more forms than leaves": (LEAF, [FORM, FORM], [None, None]),
    "more forms than ties": (LEAF, [FORM], []),
    "unknown dtype": (LEAF, [[Tag.TENSOR, "numpy", "float31", [4], 0]], [None]),
    "no dtype": (LEAF, [[Tag.TENSOR, "numpy", None, [4], 0]], [None]),
    "no framework": (LEAF, [[Tag.TENSOR, None, "float32", [4], 0]], [None]),
    "text of two dimensions": (LEAF, [[Tag.TEXT, None, None, [4, 4], 0]], [None]),
    "text with a dtype": (LEAF, [[Tag.TEXT, None, "uint8", [4], 0]], [None]),
    "unknown leaf": (LEAF, [[Tag.BIGINT, None, None, [4], 0]], [None]),
    "short form": (LEAF, [FORM[:4]], [None]),
    "negative size": (LEAF, [[Tag.TENSOR, "numpy", "float32", [-4], 0]], [None]),
    "size that is a bool": (LEAF, [[Tag.TENSOR, "numpy", "float32", [True], 0]], [None]),
    "too many dimensions": (LEAF, [[Tag.TENSOR, "numpy", "float32", [1] * 65, 0]], [None]),
    "too large": (LEAF, [[Tag.TENSOR, "numpy", "float32", [1 << 31, 1 << 31], 0]], [None]),
    "negative cell": (LEAF, [[*FORM[:4], -64]], [None]),
    "odd cell": (LEAF, [[*FORM[:4], 65]], [None]),
    "tie to itself": (LEAF, [FORM], [0]),
    "tie to a later leaf": ([Tag.LIST, None, [LEAF, LEAF]], [FORM, FORM], [1, None]),
    "tie to a tied leaf": ([Tag.LIST, None, [LEAF] * 3], [FORM] * 3, [None, 0, 1]),
    "tie to another form": ([Tag.LIST, None, [LEAF, LEAF]], [FORM, [*FORM[:3], [5], 0]], [None, 0]),
    "negative tie": ([Tag.LIST, None, [LEAF, LEAF]], [FORM, FORM], [None, -2]),
    "tied texts": ([Tag.LIST, None, [LEAF, LEAF]], [[Tag.TEXT, None, None, [4], 0]] * 2, [None, 0]),
    "too many entries": ([Tag.LIST, None, [VALUE] * (MAX_ENTRIES + 1)], [], []),
}


@pytest.mark.parametrize("case", BAD_STRUCTURES)
def test_structures_that_no_rank_makes_are_corrupt(case: str) -> None:
    nesting, forms, found = BAD_STRUCTURES[case]
    held = [[] if tie is not None else [[[0], form[3]]] for form, tie in zip(forms, found, strict=False)]
    with pytest.raises(Corrupt):
        said(nesting, forms, found, held)


def test_a_structure_that_is_far_too_deep_is_corrupt() -> None:
    deep = b"\x93\x02\xc0\x91" * 100_000 + b"\x01"
    with pytest.raises(Corrupt):
        merge([b"\x93" + deep + b"\x90\x90"], [pack([])])


def test_a_structure_of_the_deepest_nesting_is_taken() -> None:
    nesting: Any = LEAF
    for _ in range(MAX_DEPTH):
        nesting = ["torch", "kind", [Tag.DICT, [0], [nesting]]]
    plan = said(nesting, [FORM], [None], [[WHOLE]])
    assert plan.leaves[0].path == (0,) * MAX_DEPTH


BAD_MESSAGES: dict[str, Any] = {
    "no list": 1,
    "too few": [],
    "too many": [[WHOLE], [], []],
    "box of a tied leaf": [[WHOLE], [WHOLE]],
    "negative start": [[[[-1], [4]]], []],
    "negative size": [[[[0], [-4]]], []],
    "size 0": [[[[0], [0]]], []],
    "float": [[[[0.0], [4]]], []],
    "bool": [[[[False], [4]]], []],
    "start over 63 bits": [[[[1 << 63], [4]]], []],
    "three numbers": [[[[0], [4], [4]]], []],
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_boxes_that_no_rank_makes_are_corrupt(case: str) -> None:
    two = [Tag.LIST, None, [LEAF, LEAF]]
    said(two, [FORM, FORM], [None, 0], [[WHOLE], []])
    with pytest.raises(Corrupt):
        said(two, [FORM, FORM], [None, 0], BAD_MESSAGES[case])


@pytest.mark.parametrize(
    "value",
    [
        [Tag.REF, bytes(32)],
        [Tag.TENSOR, "numpy", "float32", [0], None, None],
        [Tag.PICKLE, 0, None],
        [Tag.DICT, []],
        [Tag.BIGINT, False, b"a"],
        [Tag.SCALAR, "int16", b"a"],
        [float(Tag.SCALAR), "int8", b"a"],
        [],
        [[]],
    ],
    ids=repr,
)
def test_a_value_that_is_none_is_corrupt(value: Any) -> None:
    plan = said(VALUE, [], [], [])
    with pytest.raises(Corrupt):
        plan.settle([pack([pack(value)])], [pack([])], putter(Objects()), False, BLOCK)


@pytest.mark.parametrize("report", [b"", b"a" * 31, b"a" * 33, b"a" * 64], ids=len)
def test_a_report_of_one_block_that_is_not_one_id_is_corrupt_and_its_rank_named(report: bytes) -> None:
    plan = plan_of(ranks_of([{}, {"w": array(4)}]))
    with pytest.raises(Corrupt, match=rf"rank 1 reports {len(report)} bytes of ids for state path w;"):
        plan.settle([pack([])] * 2, [pack([]), pack([report])], putter(Objects()), False, BLOCK)


@pytest.mark.parametrize("report", [b"", b"a" * 31, b"a" * 33], ids=len)
def test_a_report_of_lists_that_is_cut_inside_an_id_is_corrupt(report: bytes) -> None:
    w = array(8, 4)
    plan = plan_of(ranks_of([{"w": rows(w, 0, 4)}, {"w": rows(w, 4, 8)}]))
    with pytest.raises(Corrupt, match="rank 1 reports"):
        plan.settle([pack([])] * 2, [pack([b"a" * 64]), pack([report])], putter(Objects()), False, BLOCK)


@pytest.mark.parametrize("number", range(4))
def test_messages_in_another_form_are_corrupt(number: int) -> None:
    sent = [pack([LEAF, [FORM], [None]]), pack([[WHOLE]]), pack([]), pack([block_id(b"x" * 16)])]
    wider = {b"\x90": b"\xdc\x00\x00", b"\x91": b"\xdc\x00\x01", b"\x93": b"\xdc\x00\x03"}
    sent[number] = wider[sent[number][:1]] + sent[number][1:]
    with pytest.raises(Corrupt, match="canonical"):
        plan = merge(sent[:1], sent[1:2])
        plan.settle(sent[2:3], sent[3:], putter(Objects()), False, BLOCK)


def test_messages_of_too_few_or_too_many_ranks_are_refused() -> None:
    plan = plan_of(ranks_of([1, 1]))
    with pytest.raises(Invalid, match="1 ranks report where 2"):
        plan.settle([pack([pack(1)])], [pack([])], putter(Objects()), False, BLOCK)
    with pytest.raises(Invalid, match="one per rank"):
        merge([], [])
    with pytest.raises(Invalid, match="one per rank"):
        merge([pack([VALUE, [], []])], [])


def test_a_tensor_of_more_shards_than_a_layout_holds_is_refused() -> None:
    count = MAX_SHARDS + 1
    with pytest.raises(Invalid, match=rf"state path \. has {count} shards"):
        said(LEAF, [[*FORM[:3], [count], 0]], [None], [[[[n], [1]] for n in range(count)]])


def messages() -> tuple[list[bytes], int]:
    """All that two ranks send for one commit, structures first."""
    w, v = array(8, 4), array(3)
    states = [
        {
            "w": rows(w, *at, "w"),
            "tied": rows(w, *at, "w"),
            "v": v,
            "t": ("x" * 70_000, [1, 1 << 70, np.int8(3)]),
            n: {},
        }
        for n, at in enumerate([(0, 5), (5, 8)])
    ]
    ranks = ranks_of([{**state, "c": Composite("torch", "kind", {"w": v + 1})} for state in states])
    plan = plan_of(ranks)
    outlines = [rank.outline for rank in ranks]
    reports = [rank.reports(plan.duties(n), Objects()) for n, rank in enumerate(ranks)]
    said = [[getattr(one, name) for one in outlines] for name in ("structure", "boxes", "values")]
    return [message for row in [*said, reports] for message in row], len(ranks)


MESSAGES, WORLD = messages()


def receive(sent: list[bytes]) -> None:
    rows = [sent[at : at + WORLD] for at in range(0, len(sent), WORLD)]
    plan = merge(rows[0], rows[1])
    put = putter(Objects())
    plan.settle(rows[2], rows[3], put, False, BLOCK)
    tree_node(plan.skeleton, put)


junk = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(), st.binary(max_size=40))
junk = st.one_of(junk.filter(lambda n: not isinstance(n, int) or -(1 << 63) <= n < 1 << 64), st.text(max_size=2))


def spoiled(value: Any, draw: Any) -> Any:
    """The value with one thing in it replaced, left out or repeated."""
    if not isinstance(value, list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(st.one_of(junk, st.lists(junk, max_size=3)))
    at = draw(st.integers(0, len(value) - 1))
    how = draw(st.sampled_from(["in", "in", "in", "in", "drop", "double"]))
    middle = {"in": lambda: [spoiled(value[at], draw)], "drop": list, "double": lambda: [value[at]] * 2}[how]()
    return [*value[:at], *middle, *value[at + 1 :]]


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_messages_that_were_changed_raise_our_errors_or_none(data: st.DataObject) -> None:
    receive(MESSAGES)
    sent = list(MESSAGES)
    at = data.draw(st.integers(0, len(sent) - 1))
    if data.draw(st.booleans()):
        sent[at] = pack(spoiled(unpack(sent[at], "a message"), data.draw))
    else:
        cut_at = data.draw(st.integers(0, len(sent[at]) - 1))
        tail = data.draw(st.sampled_from([sent[at][cut_at:], sent[at][cut_at + 1 :], b""]))
        sent[at] = sent[at][:cut_at] + data.draw(st.binary(max_size=2)) + tail
    try:
        receive(sent)
    except CasError as error:
        assert len(str(error)) > 20


@pytest.mark.parametrize("number", range(len(MESSAGES)))
def test_every_message_that_ends_early_is_corrupt(number: int) -> None:
    for stop in range(0, len(MESSAGES[number]), 7):
        with pytest.raises(Corrupt):
            receive([*MESSAGES[:number], MESSAGES[number][:stop], *MESSAGES[number + 1 :]])
