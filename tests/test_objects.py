"""Lists, layouts, trees and commits: pinned bytes and names, parts, and what is refused."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest

from cas.block import Kind, ObjectId, object_id
from cas.codecs import Encoder, Format
from cas.errors import Corrupt
from cas.grid import Box
from cas.nodes import Content, LongEntry, Node, Tag, pack
from cas.objects import (
    INLINE_CONTAINER,
    LIST_IDS,
    PART_ENTRIES,
    Commit,
    Layout,
    Origin,
    Shard,
    Sizes,
    decode_commit,
    decode_layout,
    decode_list,
    decode_tree,
    encode_commit,
    encode_layout,
    encode_list,
    encode_tree,
    entries_of,
    seal,
    store_content,
)
from cas.store import Store

A, B = ObjectId(bytes(range(32))), ObjectId(bytes(range(32, 64)))


class Shelf:
    """Keeps the objects that are put, as a store would."""

    def __init__(self) -> None:
        self.objects: dict[ObjectId, bytes] = {}

    def put(self, kind: Kind, data: bytes) -> ObjectId:
        name = object_id(kind, data)
        self.objects[name] = data
        return name

    def tree(self, name: ObjectId) -> Node:
        return decode_tree(self.objects[name])


# -- names --------------------------------------------------------------------------------------------------------

IDS = {
    Kind.BLOCK: "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
    Kind.LIST: "70127be7eb28963e76e5247128b77e44fbdeae1bd37fe1e4d16342f306b2428b",
    Kind.LAYOUT: "9fcb28f4d6825c27d3a0e84499503f7a8d19449f0d37cd12eb38d3b6731816fd",
    Kind.TREE: "161b665bbd7eddc2c8c3ee90c5a3ab76c6350a0cab1c050978139132d9293273",
    Kind.COMMIT: "68b83c1cdb9b7877ccfc2b5754862233c3752eb415b97884090d6b8c3245eec7",
}


@pytest.mark.parametrize("kind", Kind)
def test_pinned_names_of_the_same_bytes_differ_by_kind(kind: Kind) -> None:
    assert object_id(kind, b"abc").hex() == IDS[kind]


def test_a_block_is_named_by_plain_blake3() -> None:
    blake3 = pytest.importorskip("blake3")
    data = np.random.default_rng(0).bytes(5000)
    assert object_id(Kind.BLOCK, data) == blake3.blake3(data).digest()
    # The published test vector of BLAKE3 for no input.
    assert object_id(Kind.BLOCK, b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


COMMIT = Commit(
    tree=A,
    parents=(B,),
    time=1_700_000_000_000_000,
    author="a@b",
    message="hi",
    step=1000,
    metrics=[Tag.DICT, [["loss", 2.5]]],
    meta=[Tag.DICT, []],
    files=[Tag.DICT, [["config.json", LongEntry(Tag.BYTES, 3, Content(B, None)).node()]]],
    origin=Origin(B, 9),
    sizes=Sizes(24, 24, 20),
)
PINNED = {
    Kind.LIST: (encode_list([A, B]), f"9201c440{A.hex()}{B.hex()}", "f265a24dc634daad"),
    Kind.LAYOUT: (
        encode_layout(Layout(262144, (Shard(Box((0, 0), (300, 500)), (A,)),))),
        f"9301ce00040000919392000092cd012ccd01f491c420{A.hex()}",
        "ec4dbf28e8a34121",
    ),
    Kind.TREE: (
        encode_tree([Tag.DICT, [["w", [Tag.TENSOR, "numpy", "float32", [2, 3], A, None]], [7, None]]]),
        f"920192019292a1779607a56e756d7079a7666c6f61743332920203c420{A.hex()}c09207c0",
        "734ee600c9f17ff0",
    ),
    Kind.COMMIT: (
        encode_commit(COMMIT),
        f"9c01c420{A.hex()}91c420{B.hex()}cf00060a24181e4000a3614062a26869cd03e892019192a46c6f7373cb40040000000000009201"
        f"9092019192ab636f6e6669672e6a736f6e930903c420{B.hex()}92c420{B.hex()}0993181814",
        "08f5e5c2ea24034a",
    ),
}


@pytest.mark.parametrize("kind", PINNED)
def test_pinned_bytes_and_names(kind: Kind) -> None:
    data, literal, name = PINNED[kind]
    assert data.hex() == literal
    assert object_id(kind, data).hex()[:16] == name


def test_objects_come_back() -> None:
    layout = Layout(4096, (Shard(Box((0, 0), (2, 3)), (A, B)), Shard(Box((2, 0), (0, 3)), ())))
    assert decode_list(encode_list([A, B, A])) == [A, B, A]
    assert decode_layout(encode_layout(layout)) == layout
    assert decode_commit(encode_commit(COMMIT)) == COMMIT


# -- parts --------------------------------------------------------------------------------------------------------


def test_a_container_stands_inline_up_to_4_kib() -> None:
    for size, inline in ((INLINE_CONTAINER - 6, True), (INLINE_CONTAINER - 5, False)):
        shelf = Shelf()
        node = seal(Tag.LIST, ["x" * size], shelf.put)
        assert (len(shelf.objects) == 0) == inline
        if inline:
            assert len(pack(node)) == INLINE_CONTAINER
        else:
            assert node[0] == Tag.REF
            assert shelf.tree(node[1]) == [Tag.LIST, ["x" * size]]


def test_a_list_is_cut_every_4096_entries() -> None:
    shelf = Shelf()
    node = seal(Tag.LIST, list(range(3 * PART_ENTRIES + 1)), shelf.put)
    tag, kind, parts = shelf.tree(node[1])
    assert (tag, kind) == (Tag.PARTS, Tag.LIST)
    assert [len(shelf.tree(part)[1]) for part in parts] == [PART_ENTRIES] * 3 + [1]
    assert entries_of(node, shelf.tree) == (Tag.LIST, list(range(3 * PART_ENTRIES + 1)))


def test_4096_entries_are_not_cut() -> None:
    shelf = Shelf()
    node = seal(Tag.TUPLE, list(range(PART_ENTRIES)), shelf.put)
    assert shelf.tree(node[1])[0] == Tag.TUPLE


def test_a_dict_is_cut_after_keys_whose_hash_says_so() -> None:
    shelf = Shelf()
    entries = [[f"layer.{i}.weight", i] for i in range(20_000)] + [[i, i] for i in range(9000)]
    node = seal(Tag.DICT, entries, shelf.put)
    parts = [shelf.tree(part)[1] for part in shelf.tree(node[1])[2]]
    assert [entry for part in parts for entry in part] == entries
    ends = {key for key, _ in entries if zlib.crc32(str(key).encode()) % 1024 == 0}
    assert len(ends) > 10
    for part in parts[:-1]:
        assert part[-1][0] in ends or len(part) == PART_ENTRIES
    assert all(entry[0] not in ends for part in parts for entry in part[:-1])
    assert all(len(part) <= PART_ENTRIES for part in parts)


def test_a_part_ends_when_it_has_reached_a_mebibyte() -> None:
    shelf = Shelf()
    entries = ["x" * 60_000] * 50
    node = seal(Tag.LIST, entries, shelf.put)
    sizes = [len(shelf.tree(part)[1]) for part in shelf.tree(node[1])[2]]
    assert sizes == [18, 18, 14]
    assert entries_of(node, shelf.tree) == (Tag.LIST, entries)


def test_one_changed_entry_of_20000_rewrites_one_part() -> None:
    before, after = Shelf(), Shelf()
    entries = [[f"layer.{i}.weight", i] for i in range(20_000)]
    seal(Tag.DICT, entries, before.put)
    entries[9999] = [entries[9999][0], "changed"]
    seal(Tag.DICT, entries, after.put)
    fresh = [decode_tree(after.objects[name]) for name in after.objects.keys() - before.objects.keys()]
    assert sorted(node[0] for node in fresh) == [Tag.DICT, Tag.PARTS]


def test_an_entry_more_at_the_front_rewrites_few_parts_of_a_dict() -> None:
    before, after = Shelf(), Shelf()
    entries = [[f"layer.{i}.weight", i] for i in range(20_000)]
    seal(Tag.DICT, entries, before.put)
    seal(Tag.DICT, [["new", 0], *entries], after.put)
    assert len(before.objects) > 12
    assert len(after.objects.keys() - before.objects.keys()) <= 3


def test_a_changed_entry_in_a_store_writes_one_part(store: Store) -> None:
    state = {f"layer.{i}.weight": float(i) for i in range(20_000)}
    first = store.commit(state)
    state["layer.777.weight"] = -1.0
    second = store.commit(state)
    assert first.new > 400_000
    assert second.new < first.new / 4


def test_the_order_of_keys_is_part_of_the_state() -> None:
    shelf = Shelf()
    one = seal(Tag.DICT, [["a", 1], ["b", 2]], shelf.put)
    two = seal(Tag.DICT, [["b", 2], ["a", 1]], shelf.put)
    assert pack(one) != pack(two)


def test_equal_states_have_equal_trees_whatever_was_committed_before(store: Store) -> None:
    state = {"a": np.arange(100_000), "b": {"c": [1, 2, ("x" * 5000)]}}
    first = store.commit(state)
    store.commit({"other": 1})
    second = store.commit({"a": np.arange(100_000), "b": {"c": [1, 2, ("x" * 5000)]}})
    trees = [store._objects.commit(ObjectId(bytes.fromhex(commit.id))).tree for commit in (first, second)]
    assert trees[0] == trees[1]


# -- references that lie ------------------------------------------------------------------------------------------


def test_a_reference_to_what_is_no_container_is_corrupt() -> None:
    shelf = Shelf()
    for node in (3, None, [Tag.SCALAR, "int8", b"a"], [Tag.REF, A]):
        name = shelf.put(Kind.TREE, encode_tree(node))
        with pytest.raises(Corrupt, match="a reference names no container"):
            entries_of([Tag.REF, name], shelf.tree)


def test_a_part_of_another_kind_is_corrupt() -> None:
    shelf = Shelf()
    for node in ([Tag.LIST, []], 3, [Tag.REF, A], [Tag.PARTS, Tag.DICT, [A]]):
        part = shelf.put(Kind.TREE, encode_tree(node))
        with pytest.raises(Corrupt, match="a part of a container is of another kind"):
            entries_of([Tag.PARTS, Tag.DICT, [part]], shelf.tree)


def test_a_key_in_two_parts_is_corrupt() -> None:
    shelf = Shelf()
    part = shelf.put(Kind.TREE, encode_tree([Tag.DICT, [["a", 1]]]))
    with pytest.raises(Corrupt, match="a key twice"):
        entries_of([Tag.PARTS, Tag.DICT, [part, part]], shelf.tree)


def test_a_frame_that_sets_a_bit_without_meaning_is_corrupt() -> None:
    """zstd ignores it, so the bytes would pass although they are not as they were written."""
    raw, encoder, out = b"abc" * 1000, Encoder(), bytearray(3000)
    coding, stored = encoder.encode(np.frombuffer(raw, np.uint8), Format(None), "zstd")
    frame = bytearray(stored)
    encoder.decode(coding, bytes(frame), memoryview(out))
    assert out == raw
    frame[4] ^= 0x10
    with pytest.raises(Corrupt, match="a bit that has no meaning"):
        encoder.decode(coding, bytes(frame), memoryview(out))


# -- lists and layouts --------------------------------------------------------------------------------------------


def test_content_is_nothing_a_block_or_a_layout() -> None:
    shelf, box = Shelf(), Box((0,), (9,))
    assert store_content([], box, 4096, shelf.put) == Content(None, None)
    assert store_content([A], box, 4096, shelf.put) == Content(A, None)
    assert shelf.objects == {}
    content = store_content([A, B] * 40_000, box, 4096, shelf.put)
    assert content.layout is not None
    layout = decode_layout(shelf.objects[content.layout])
    assert layout.cell == 4096
    lists = [decode_list(shelf.objects[name]) for name in layout.shards[0].lists]
    assert [len(ids) for ids in lists] == [LIST_IDS, 80_000 - LIST_IDS]
    assert [name for ids in lists for name in ids] == [A, B] * 40_000


BAD_LISTS = [[1, b""], [1, bytes(31)], [1, bytes(33)], [1, "a" * 32], [2, bytes(32)], [1], [1, bytes(32), 1], [1, None]]


@pytest.mark.parametrize("value", [*BAD_LISTS, [1, bytes(32 * (LIST_IDS + 1))], [True, bytes(32)]])
def test_a_malformed_list_is_corrupt(value: Any) -> None:
    with pytest.raises(Corrupt):
        decode_list(pack(value))


BAD_LAYOUTS = [
    [1, 0, [[[0], [1], [A]]]],
    [1, -4096, [[[0], [1], [A]]]],
    [1, True, [[[0], [1], [A]]]],
    [1, 1 << 63, [[[0], [1], [A]]]],
    [1, 4096, []],
    [1, 4096, None],
    [1, 4096, [[[0], [1]]]],
    [1, 4096, [[[0], [1], [A], 0]]],
    [1, 4096, [[[0], [1, 1], [A]]]],
    [1, 4096, [[[-1], [1], [A]]]],
    [1, 4096, [[[0], [1.0], [A]]]],
    [1, 4096, [[[0], [1 << 63], [A]]]],
    [1, 4096, [[[0], [1], [A[:31]]]]],
    [1, 4096, [[[0], [1], A]]],
    [2, 4096, [[[0], [1], [A]]]],
    [1, 4096],
]


@pytest.mark.parametrize("value", BAD_LAYOUTS)
def test_a_malformed_layout_is_corrupt(value: Any) -> None:
    with pytest.raises(Corrupt):
        decode_layout(pack(value))


# -- commits ------------------------------------------------------------------------------------------------------

GOOD = [1, A, [B], 5, "me", "", None, [Tag.DICT, []], [Tag.DICT, []], [Tag.DICT, []], None, [0, 0, 0]]
TREE, PARENTS, TIME, AUTHOR, MESSAGE, STEP, METRICS, META, FILES, ORIGIN, SIZES = range(1, 12)
W = [Tag.TENSOR, "numpy", "float32", [2, 3], A, None]


def with_entry(node: Node) -> Node:
    return [Tag.DICT, [["x", node]]]


BAD_COMMITS: dict[str, tuple[int, Any]] = {
    "another version": (0, 2),
    "tree is no id": (TREE, b"a"),
    "parents are no list": (PARENTS, A),
    "parent is no id": (PARENTS, [None]),
    "time is a float": (TIME, 1.0),
    "time is negative": (TIME, -1),
    "time is after the year 9999": (TIME, 253_402_300_800_000_000),
    "author is bytes": (AUTHOR, b""),
    "message is nil": (MESSAGE, None),
    "step is a bool": (STEP, True),
    "step is a float": (STEP, 1.0),
    "metrics is a list": (METRICS, [Tag.LIST, []]),
    "metrics is a reference": (METRICS, [Tag.REF, A]),
    "metrics hold a tensor": (METRICS, with_entry(W)),
    "meta is nil": (META, None),
    "meta holds a reference": (META, with_entry([Tag.REF, A])),
    "meta holds parts": (META, with_entry([Tag.PARTS, Tag.DICT, [A]])),
    "meta holds a pickle inside": (META, with_entry([Tag.LIST, [[Tag.PICKLE, 1, A]]])),
    "meta holds a foreign value": (META, with_entry([Tag.FOREIGN, "torch", "dtype", "float32"])),
    "files is a reference": (FILES, [Tag.REF, A]),
    "file is a number": (FILES, with_entry(3)),
    "file is a tensor": (FILES, with_entry(W)),
    "file is a pickle": (FILES, with_entry([Tag.PICKLE, 3, A])),
    "file name is a number": (FILES, [Tag.DICT, [[3, [Tag.BYTES, 3, A]]]]),
    "origin is a node": (ORIGIN, [Tag.REF, A]),
    "origin has no size": (ORIGIN, [A]),
    "origin has a negative size": (ORIGIN, [A, -1]),
    "sizes are two": (SIZES, [1, 2]),
    "size is negative": (SIZES, [0, 0, -1]),
}


def test_the_good_commit_that_the_bad_ones_resemble_decodes() -> None:
    assert decode_commit(pack(GOOD)).author == "me"


@pytest.mark.parametrize("name", BAD_COMMITS)
def test_a_malformed_commit_is_corrupt(name: str) -> None:
    at, value = BAD_COMMITS[name]
    with pytest.raises(Corrupt):
        decode_commit(pack([*GOOD[:at], value, *GOOD[at + 1 :]]))


@pytest.mark.parametrize("value", [GOOD[:-1], [*GOOD, None], [], None, "commit"])
def test_a_commit_of_another_length_is_corrupt(value: Any) -> None:
    with pytest.raises(Corrupt):
        decode_commit(pack(value))
