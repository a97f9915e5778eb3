"""Stores from an enemy: every checksum is right, the content is not. And places where a store can hardly be.

Whatever is asked of such a store, the answer comes in bounded time and memory, and is a right one or a named error.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from faults import children
from faults.forge import EMPTY, Forge
from faults.stores import check_whole, commit, errors, make, numbers, quick_folder, same, state

import cas
import cas.leaves
import cas.loader
from cas.block import Codec, Kind
from cas.errors import CasError, Corrupt, Unsupported
from cas.nodes import Tag
from cas.nodes import pack as msgpack
from cas.refs import RefKind

MEMORY = 3 << 30
SECONDS = 20
MISSING = bytes(range(32))
T, REF, LIST, DICT, PARTS = Tag.TENSOR, Tag.REF, Tag.LIST, Tag.DICT, Tag.PARTS


@pytest.fixture
def forge() -> Iterator[Forge]:
    with quick_folder() as folder:
        yield Forge(folder / "store")


def ask(path: Path) -> dict[str, Any]:
    """In a child: everything that can be asked of a store; each an answer (told as None) or the error."""
    store = cas.open(path)
    found: dict[str, Any] = {}
    questions: dict[str, Callable[[], Any]] = {
        "load": lambda: store.load("main"),
        "view": lambda: walk(store.view("main")),
        "leaves": lambda: list(store.leaves("main")),
        "log": lambda: [str(held) for held in store.log("main")],
        "resolve": lambda: repr(store.resolve("main")),
        "files": lambda: store.files("main"),
        "refs": store.refs,
        "stats": store.stats,
        "fsck": lambda: [finding.name for finding in errors(store.fsck(data=True))],
    }
    for name, question in questions.items():
        try:
            answer = question()
            found[name] = answer if name == "fsck" else None
        except CasError as error:
            assert str(error)
            assert len(str(error)) < 2000
            found[name] = type(error).__name__
    store.close()
    return found


def walk(view: Any) -> None:
    """Look at the first few hundred parts of a view."""
    todo = [view]
    for _ in range(300):
        if not todo:
            return
        view = todo.pop()
        if isinstance(view, cas.TensorView):
            view.load()
        elif isinstance(view, cas.View | cas.SequenceView):
            todo += [view[key] for key in (list(view) if isinstance(view, cas.View) else range(len(view)))[:5]]


def answers(forge: Forge) -> dict[str, Any]:
    return dict(children.run(ask, forge.path, memory=MEMORY, limit=SECONDS))


def refused(forge: Forge) -> dict[str, Any]:
    """The answers, of which `load` and fsck name the trouble."""
    found = answers(forge)
    assert found["load"] in ("Corrupt", "Unsupported", "NotFound", "Invalid"), found
    assert found["fsck"], f"fsck has nothing to say: {found}"
    return found


# -- trees ----------------------------------------------------------------------------------------------------------

BLOCK = "a block"
"""Stands for the id of a block of 16 bytes."""

NODES: dict[str, Any] = {
    "a tensor larger than its block": [T, "numpy", "uint8", [17], BLOCK, None],
    "a tensor smaller than its block": [T, "numpy", "uint8", [15], BLOCK, None],
    "a tensor of 4 EiB": [T, "numpy", "float32", [1 << 60], BLOCK, None],
    "a tensor of more bytes than numbers": [T, "numpy", "float64", [1 << 31, 1 << 31, 4], BLOCK, None],
    "a tensor of a huge and an empty dimension": [T, "numpy", "float32", [0, 1 << 62], None, None],
    "a tensor with bytes and no elements": [T, "numpy", "float32", [0], BLOCK, None],
    "a tensor with elements and no bytes": [T, "numpy", "float32", [1 << 50], None, None],
    "a tensor of 65 dimensions": [T, "numpy", "uint8", [1] * 65, BLOCK, None],
    "a negative dimension": [T, "numpy", "uint8", [-16], BLOCK, None],
    "two negative dimensions": [T, "numpy", "uint8", [-4, -4], BLOCK, None],
    "a dimension that is a bool": [T, "numpy", "uint8", [True], BLOCK, None],
    "a dimension that is a float": [T, "numpy", "uint8", [16.0], BLOCK, None],
    "a shape that is a number": [T, "numpy", "uint8", 16, BLOCK, None],
    "an unknown dtype": [T, "numpy", "object", [16], BLOCK, None],
    "a dtype that numpy lacks": [T, "numpy", "bfloat16", [8], BLOCK, None],
    "a framework that is a module": [T, "os", "uint8", [16], BLOCK, None],
    "a framework that is a path": [T, "../../evil", "uint8", [16], BLOCK, None],
    "a framework that is nothing": [T, None, "uint8", [16], BLOCK, None],
    "a negative tie": [T, "numpy", "uint8", [16], BLOCK, -1],
    "ties that differ": [LIST, [[T, "numpy", "uint8", [16], BLOCK, 0], [T, "numpy", "uint8", [4, 4], BLOCK, 0]]],
    "a tensor whose block is missing": [T, "numpy", "uint8", [16], MISSING, None],
    "a tensor whose layout is missing": [T, "numpy", "uint8", [16], [MISSING], None],
    "a content of two layouts": [T, "numpy", "uint8", [16], [MISSING, MISSING], None],
    "a content that is text": [T, "numpy", "uint8", [16], "x" * 32, None],
    "a short id": [T, "numpy", "uint8", [16], b"x" * 31, None],
    "an unknown tag": [14, 1],
    "a negative tag": [-1, 1],
    "a tag that is a bool": [True, []],
    "a tag that is a float": [1.0, []],
    "a node of nothing": [],
    "a nested nothing": [LIST, [[]]],
    "a key twice": [DICT, [["a", 1], ["a", 2]]],
    "a key that is a bool": [DICT, [[True, 1]]],
    "a key that is a float": [DICT, [[1.5, 1]]],
    "a key that is bytes": [DICT, [[b"a", 1]]],
    "a key of 64 bits and one": [DICT, [[1 << 63, 1]]],
    "an entry of three": [DICT, [["a", 1, 2]]],
    "entries that are no list": [DICT, 5],
    "entries as a map": [DICT, {"a": 1}],
    "an integer over 64 bits": [LIST, [(1 << 64) - 1]],
    "a reference to nothing": [REF, MISSING],
    "a reference to text": [REF, "x" * 32],
    "parts of nothing": [PARTS, LIST, []],
    "parts of a tensor": [PARTS, T, [MISSING]],
    "parts of parts": [PARTS, PARTS, [MISSING]],
    "parts that are missing": [PARTS, LIST, [MISSING]],
    "a small big integer": [Tag.BIGINT, False, b"\x05"],
    "a big integer with a leading zero": [Tag.BIGINT, False, bytes(1) + b"\xff" * 9],
    "a scalar of the wrong length": [Tag.SCALAR, "float32", b"123"],
    "a scalar of an unknown dtype": [Tag.SCALAR, "O", b"12345678"],
    "a scalar that numpy lacks": [Tag.SCALAR, "bfloat16", b"12"],
    "a foreign value of numpy": [Tag.FOREIGN, "numpy", "dtype", "O"],
    "a foreign value of a module": [Tag.FOREIGN, "subprocess", "Popen", "sh"],
    "a text that is not UTF-8": [Tag.TEXT, 16, "a bad block"],
    "a text of 4 EiB": [Tag.TEXT, 1 << 62, BLOCK],
    "bytes larger than their block": [Tag.BYTES, 17, BLOCK],
    "bytes without content": [Tag.BYTES, 1 << 40, None],
    "a negative length": [Tag.BYTES, -16, BLOCK],
    "a pickle": [Tag.PICKLE, 16, BLOCK],
    "129 levels": "deep",
}


def fill(node: Any, forge: Forge) -> Any:
    if isinstance(node, list):
        return [fill(child, forge) for child in node]
    if node == "deep":
        node = 1
        for _ in range(129):
            node = [LIST, [node]]
        return node
    if node == "a bad block":
        return forge.block(b"\xff" * 16)
    return forge.block() if node == BLOCK else node


@pytest.mark.parametrize("name", NODES)
def test_a_hostile_node_is_refused(forge: Forge, name: str) -> None:
    node = fill(NODES[name], forge)
    forge.publish(forge.commit(forge.tree([DICT, [["x", node], ["good", 1]]])))
    found = answers(forge)
    assert found["load"] in ("Corrupt", "Unsupported", "NotFound", "Invalid"), found
    assert found["log"] is None, "the log does not need the state"
    readable = ("a dtype that numpy lacks", "a pickle", "a scalar that numpy lacks", "a framework", "a foreign", "ties")
    assert found["fsck"] or name.startswith((*readable, "a text that is not UTF-8")), found


RAW_TREES = {
    "nothing": b"",
    "no MessagePack": b"\xc1",
    "an extension type": msgpack([1]) + b"\xc7\x01\x05x",
    "trailing bytes": msgpack([1, 5]) + b"\x00",
    "a longer form of a number": b"\x92\x01\xcd\x00\x05",
    "a longer form of an array": b"\xdc\x00\x02\x01\x05",
    "a map": b"\x81\x01\x02",
    "an unknown version": msgpack([2, 5]),
    "an extra item": msgpack([1, 5, 6]),
    "an array of four billion": b"\xdd\xff\xff\xff\xff",
    "bytes of four billion": b"\x92\x01\xc6\xff\xff\xff\xff",
    "a million levels": b"\x91" * 1_000_000,
    "text that is not UTF-8": b"\x92\x01\xa1\xff",
    "a timestamp": b"\x92\x01\xd6\xff\x00\x00\x00\x00",
}


@pytest.mark.parametrize("name", RAW_TREES)
def test_bytes_that_are_no_tree_are_refused(forge: Forge, name: str) -> None:
    forge.publish(forge.commit(forge.add(Kind.TREE, RAW_TREES[name])))
    refused(forge)


def test_a_reference_to_a_leaf_or_to_a_reference_is_refused(forge: Forge) -> None:
    for number, target in enumerate((5, [T, "numpy", "uint8", [16], forge.block(), None], [REF, MISSING])):
        inner = forge.tree(target)
        forge.publish(forge.commit(forge.tree([LIST, [[REF, inner]]])), branch="main")
        assert refused(forge)["view"] != "", number


def test_thousands_of_nested_references_are_refused_without_recursion(forge: Forge) -> None:
    name = forge.tree([LIST, [1]])
    for _ in range(5000):
        name = forge.tree([LIST, [[REF, name]]])
    forge.publish(forge.commit(name))
    refused(forge)


def test_references_that_multiply_are_refused(forge: Forge) -> None:
    """Forty levels of ten equal subtrees: a few kilobytes that stand for 10**40 values."""
    name = forge.tree([LIST, [1] * 10])
    for _ in range(40):
        name = forge.tree([LIST, [[REF, name]] * 10])
    forge.publish(forge.commit(name))
    found = children.run(ask_impatiently, forge.path, memory=MEMORY, limit=SECONDS)
    assert found["load"] == found["leaves"] == "Corrupt"
    assert found["log"] is None


def ask_impatiently(path: Path) -> Any:
    """With a limit that is reached in less than the twenty seconds that four million entries take."""
    cas.loader.MAX_ENTRIES = cas.leaves.MAX_ENTRIES = 100_000
    return ask(path)


def test_references_that_multiply_down_to_something_missing_are_refused(forge: Forge) -> None:
    name = MISSING
    for _ in range(40):
        name = forge.tree([LIST, [[REF, name]] * 10])
    forge.publish(forge.commit(name))
    refused(forge)


def test_parts_that_multiply_are_refused(forge: Forge) -> None:
    part = forge.tree([LIST, [None] * 500_000])
    forge.publish(forge.commit(forge.tree([PARTS, LIST, [part] * 300_000])))
    assert answers(forge)["load"] in ("Corrupt", "Unsupported")


def test_parts_that_share_a_key_are_refused(forge: Forge) -> None:
    part = forge.tree([DICT, [["a", 1]]])
    forge.publish(forge.commit(forge.tree([PARTS, DICT, [part, part]])))
    refused(forge)


def test_a_tree_as_large_as_may_be_costs_bounded_memory(forge: Forge) -> None:
    """Megabytes of empty containers, in a few kilobytes."""
    data = msgpack([1, [LIST, [[LIST, []]] * 200_000]])
    frame = zstandard.ZstdCompressor(level=1, write_content_size=True, write_checksum=False).compress(data)
    assert len(data) <= 16 << 20
    forge.publish(forge.commit(forge.add(Kind.TREE, data, frame, codec=Codec.ZSTD)))
    assert answers(forge)["load"] is None


# -- layouts --------------------------------------------------------------------------------------------------------

N = 10_000
"""Bytes of the tensor below, in cells of 4096: three blocks."""

LAYOUTS: dict[str, Any] = {
    "no cell": (0, [[[0], [N], ["ids"]]]),
    "a cell that is no power of two": (4095, [[[0], [N], ["ids"]]]),
    "a cell beyond any block": (1 << 40, [[[0], [N], ["ids"]]]),
    "a negative cell": (-4096, [[[0], [N], ["ids"]]]),
    "another cell": (8192, [[[0], [N], ["ids"]]]),
    "no shards": (4096, []),
    "no lists": (4096, [[[0], [N], []]]),
    "a list twice": (4096, [[[0], [N], ["ids", "ids"]]]),
    "a list that is missing": (4096, [[[0], [N], [MISSING]]]),
    "a block for a list": (4096, [[[0], [N], ["block"]]]),
    "a box outside": (4096, [[[1], [N], ["ids"]]]),
    "a box too small": (4096, [[[0], [N - 1], ["ids"]]]),
    "a box that begins before": (4096, [[[-1], [N], ["ids"]]]),
    "a box of another rank": (4096, [[[0, 0], [N, 1], ["ids"]]]),
    "a box of no rank": (4096, [[[], [], ["ids"]]]),
    "a box twice": (4096, [[[0], [N], ["ids"]], [[0], [N], ["ids"]]]),
    "boxes that overlap": (4096, [[[0], [6000], ["ids"]], [[5000], [5000], ["ids"]]]),
    "boxes with a gap": (4096, [[[0], [4000], ["ids"]], [[5000], [5000], ["ids"]]]),
    "a huge box": (4096, [[[0], [1 << 62], ["ids"]]]),
    "a shard of two": (4096, [[[0], [N]]]),
    "shards that are no list": (4096, 7),
    "seventy thousand empty boxes": (4096, [[[0], [0], []]] * 70_000),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_hostile_layout_is_refused(forge: Forge, name: str) -> None:
    data = bytes(N)
    blocks = [forge.block(data[at : at + 4096]) for at in range(0, N, 4096)]
    known = {"ids": forge.list(b"".join(blocks)), "block": blocks[0]}

    def replace(item: Any) -> Any:
        if isinstance(item, list):
            return [replace(child) for child in item]
        return known.get(item, item) if isinstance(item, str) else item

    cell, shards = LAYOUTS[name]
    layout = forge.layout(cell, shards if len(str(shards)) > 10_000 else replace(shards))
    forge.publish(forge.commit(forge.tree([DICT, [["x", [T, "numpy", "uint8", [N], [layout], None]]]])))
    refused(forge)


@pytest.mark.parametrize("lists", [1_000, 400_000])
def test_lists_that_multiply_are_refused(forge: Forge, lists: int) -> None:
    """One block and one list of it, named again and again: a tensor of up to 100 PB in a few megabytes."""
    block = forge.block(bytes(4096))
    name = forge.list(block * 65_536)
    nbytes = lists * 65_536 * 4096
    layout = forge.layout(4096, [[[0], [nbytes], [name] * lists]])
    forge.publish(forge.commit(forge.tree([DICT, [["x", [T, "numpy", "uint8", [nbytes], [layout], None]]]])))
    found = answers(forge)
    assert found["load"] in ("Corrupt", "Unsupported", "CasError"), found


@pytest.mark.parametrize("ids", [b"", b"x" * 33, bytes(32) * 65_537, "text", None])
def test_a_hostile_list_is_refused(forge: Forge, ids: Any) -> None:
    layout = forge.layout(4096, [[[0], [N], [forge.add(Kind.LIST, msgpack([1, ids]))]]])
    forge.publish(forge.commit(forge.tree([DICT, [["x", [T, "numpy", "uint8", [N], [layout], None]]]])))
    refused(forge)


# -- commits --------------------------------------------------------------------------------------------------------

COMMITS: dict[str, dict[str, Any]] = {
    "a time beyond all calendars": {"time": (1 << 63) - 1},
    "a time before": {"time": -(1 << 63)},
    "a time that is a float": {"time": 1.5},
    "a version": {"version": 2},
    "a step over 64 bits": {"step": (1 << 64) - 1},
    "a step that is text": {"step": "1"},
    "an author that is bytes": {"author": b"x"},
    "metrics by reference": {"metrics": [REF, MISSING]},
    "files by reference": {"files": [REF, MISSING]},
    "files in parts": {"files": [PARTS, DICT, [MISSING]]},
    "metrics that are a list": {"metrics": [LIST, []]},
    "metrics that are a number": {"metrics": 5},
    "a tensor in meta": {"meta": [DICT, [["x", [T, "numpy", "uint8", [16], MISSING, None]]]]},
    "a file that is a number": {"files": [DICT, [["x", 5]]]},
    "a file whose name is a number": {"files": [DICT, [[5, [Tag.BYTES, 0, None]]]]},
    "a parent that is text": {"parents": ["x" * 32]},
    "a parent that is short": {"parents": [b"x"]},
    "sizes that are negative": {"sizes": [-1, 0, 0]},
    "sizes of two": {"sizes": [0, 0]},
    "a tree that is nothing": {"tree": None},
}


@pytest.mark.parametrize("name", COMMITS)
def test_a_hostile_commit_is_refused(forge: Forge, name: str) -> None:
    fields = {"tree": forge.tree(EMPTY), **COMMITS[name]}
    forge.publish(forge.commit(**fields))
    assert refused(forge)["log"] in ("Corrupt", "Unsupported")


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/../../x", "a\nb", "\x1b[31mred", "", ".", "..", "a//b", "a/", "./a", "a\\b", "\x00"],
)
def test_a_side_file_may_not_be_called_so(forge: Forge, tmp_path: Path, name: str) -> None:
    """Neither on the way in nor, in a store from elsewhere, on the way out."""
    (tmp_path / "file").write_bytes(b"content")
    with cas.open(tmp_path / "s", create=True) as store, pytest.raises(cas.Invalid):
        store.commit({}, files={name: tmp_path / "file"})
    forge.publish(forge.commit(forge.tree(EMPTY), files=[DICT, [[name, [Tag.BYTES, 0, None]]]]))
    assert refused(forge)["files"] == "Corrupt"


def test_an_object_of_another_kind_is_refused_also_when_it_is_remembered(forge: Forge) -> None:
    tree = forge.tree(b"x" * 32)
    layout = [[0], [4096], [tree]]
    content = [forge.layout(4096, [layout])]
    entry = [T, "numpy", "uint8", [4096], content, None]
    forge.publish(forge.commit(forge.tree([LIST, [[DICT, []], entry]]), parents=[tree]))
    refused(forge)


def test_a_long_history_is_walked_without_recursion(forge: Forge) -> None:
    tree, parents = forge.tree(EMPTY), []
    for _ in range(3000):
        parents = [forge.commit(tree, parents=parents)]
    forge.publish(parents[0])
    assert answers(forge) == dict.fromkeys(answers(forge), None) | {"fsck": []}


# -- records --------------------------------------------------------------------------------------------------------

NAMES = [
    "",
    "..",
    "a/../b",
    "/a",
    "a/",
    "a b",
    "\x1b[2J",
    "a\nb",
    "HEAD",
    "a:b",
    "a~1",
    "a@{1}",
    "-x",
    "x" * 300,
    "\u202e",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_branch_may_not_be_called_so(forge: Forge, name: str) -> None:
    """Also not by a record that somebody else wrote: names become paths and are printed."""
    forge.publish(forge.commit(forge.tree(EMPTY)), branch=name)
    with pytest.raises(Corrupt):
        cas.open(forge.path)


def record(**fields: Any) -> list[Any]:
    honest = {"version": 1, "seq": 2, "read": [], "write": [], "refs": [], "config": [], "epoch": 0, "condemned": []}
    return list({**honest, "absent": [], "floor": 1, "update": Forge.update(), **fields}.values())


RECORDS: dict[str, Any] = {
    "a version": record(version=2),
    "a version that is a float": record(version=1.0),
    "another number": record(seq=3),
    "a number that is a bool": record(seq=True),
    "a feature to read": record(read=["lazers"]),
    "a feature to write": record(write=["lazers"]),
    "an epoch": record(epoch=1),
    "an unknown kind of ref": record(refs=[[9, "main", MISSING]]),
    "a ref twice": record(refs=[[0, "main", MISSING], [0, "main", MISSING]]),
    "refs out of order": record(refs=[[0, "z", MISSING], [0, "a", MISSING]]),
    "a ref to a short id": record(refs=[[0, "main", b"x"]]),
    "refs as a map": record(refs={"main": MISSING}),
    "a config of numbers": record(config=[[1, 2]]),
    "an update without an id": record(update=[b"", "eve", "host", 0, "why"]),
    "no update": record(update=None),
    "an extra item": [*record(), 1],
    "nothing": [],
    "a number": 5,
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_hostile_record_is_refused(forge: Forge, name: str) -> None:
    forge.write_record(RECORDS[name])
    with pytest.raises((Corrupt, Unsupported)):
        cas.open(forge.path)


def test_a_branch_that_names_nothing_or_another_object_is_told(forge: Forge) -> None:
    tree = forge.tree(EMPTY)
    forge.write_pack()
    for target in (MISSING, tree):
        forge.write_record(record(refs=[[RefKind.BRANCH, "main", target]]))
        refused(forge)


@pytest.mark.parametrize("name", ["cas.json", "root", f"log/{2:020}", "packs/00/" + "0" * 32])
def test_a_file_of_a_terabyte_costs_nothing(forge: Forge, name: str) -> None:
    forge.publish(forge.commit(forge.tree(EMPTY)))
    file = forge.path / name
    file.parent.mkdir(exist_ok=True)
    with file.open("ab") as sparse:
        sparse.truncate(1 << 40)
    found = children.run(open_and_ask, forge.path, memory=MEMORY, limit=SECONDS)
    assert "Corrupt" in found if name[:4] in ("cas.", "log/") else "load" in found


def open_and_ask(path: Path) -> Any:
    try:
        cas.open(path).close()
    except CasError as error:
        return [type(error).__name__]
    return ask(path)


# -- packs ----------------------------------------------------------------------------------------------------------

ZEROS = bytes(4096)


def frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_content_size=True, write_checksum=False).compress(data)


BOMB = frame(bytes(1 << 28))
ROWS: dict[str, tuple[bytes | None, dict[str, Any]]] = {
    "an offset outside": (None, {"offset": 1 << 62}),
    "an offset that overlaps": (None, {"offset": 65}),
    "an offset in the header": (None, {"offset": 0}),
    "more stored than raw": (ZEROS + b"x", {}),
    "more raw than a block may have": (frame(ZEROS), {"codec": Codec.ZSTD, "raw": (1 << 32) - 1}),
    "an unknown codec": (None, {"codec": 9}),
    "an unknown kind": (None, {"kind": 9}),
    "a width": (None, {"width": 3}),
    "a chain": (None, {"chain": 1}),
    "a base": (None, {"base": b"x" * 32}),
    "other bytes": (bytes(4095) + b"x", {}),
    "a frame that is none": (b"x" * 50, {"codec": Codec.ZSTD}),
    "a frame of fewer bytes": (frame(bytes(4095)), {"codec": Codec.ZSTD}),
    "a frame of more bytes": (frame(bytes(4097)), {"codec": Codec.ZSTD}),
    "a frame and another": (frame(ZEROS) + frame(b""), {"codec": Codec.ZSTD}),
    "a frame and more": (frame(ZEROS) + b"junk", {"codec": Codec.ZSTD}),
    "a bomb": (BOMB[:4000], {"codec": Codec.ZSTD}),
    "planes that are none": (b"\xff" * 60, {"codec": Codec.PLANES, "width": 4}),
    "planes of nothing": (b"\x01\x00", {"codec": Codec.PLANES, "width": 4}),
    "planes that are bombs": (b"\x01\x00" + len(BOMB[:4000]).to_bytes(4, "little") + BOMB[:4000],
                              {"codec": Codec.PLANES, "width": 2}),
    "a block stored as a tree": (None, {"kind": Kind.TREE}),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_hostile_row_is_refused(forge: Forge, name: str) -> None:
    stored, row = ROWS[name]
    block = forge.add(Kind.BLOCK, ZEROS, stored, **row)
    forge.publish(forge.commit(forge.tree([DICT, [["x", [T, "numpy", "uint8", [4096], block, None]]]])))
    refused(forge)


@pytest.mark.parametrize("footer", [{"count": (1 << 32) - 1}, {"count": 0}, {"offset": 1 << 63}, {"offset": 0}])
def test_a_hostile_footer_is_refused(forge: Forge, footer: dict[str, int]) -> None:
    tip = forge.commit(forge.tree(EMPTY))
    forge.write_record(record(refs=[[RefKind.BRANCH, "main", tip]]))
    forge.write_pack(**footer)
    refused(forge)


def test_a_good_copy_is_found_behind_hostile_ones(forge: Forge) -> None:
    """Rows are hints, the name is the judge: whatever other packs say of a block."""
    for stored, row in ROWS.values():
        forge.stored = []
        forge.add(Kind.BLOCK, ZEROS, stored, **row)
        forge.write_pack()
    forge.stored = []
    block = forge.add(Kind.BLOCK, ZEROS)
    forge.publish(forge.commit(forge.tree([DICT, [["x", [T, "numpy", "uint8", [4096], block, None]]]])))
    found = answers(forge)
    assert found["load"] is None
    assert set(found["fsck"]) == {"pack-corrupt", "row-corrupt"}


def test_an_index_that_came_with_a_store_is_never_opened(forge: Forge) -> None:
    """LMDB reads what it maps without checks: only a file that this machine wrote is mapped."""
    forge.publish(forge.commit(forge.tree([DICT, [["x", 1]]])))
    answers(forge)
    data, flag = forge.path / "index" / "data.mdb", forge.path / "index" / "clean"
    whole = bytearray(data.read_bytes())
    for page in range(2, len(whole) // 4096):
        whole[page * 4096 : page * 4096 + 32] = b"\xff" * 32
    copy = data.with_name("copy")
    copy.write_bytes(whole)
    os.replace(copy, data)
    from blake3 import blake3

    rest = flag.read_text().split()[2:]
    flag.write_text(" ".join([str(len(whole)), blake3(bytes(whole)).hexdigest(), *rest]) + "\n")
    assert answers(forge)["load"] is None


# -- identity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [
    {"block_size": 0}, {"block_size": -4096}, {"block_size": 5000}, {"block_size": 1 << 40}, {"block_size": True},
    {"block_size": "4096"}, {"version": 2}, {"version": "1"}, {"id": 5}, {"id": "../x"}, {"id": None}, {"magic": "git"},
])  # fmt: skip
def test_a_hostile_identity_is_refused(forge: Forge, fields: dict[str, Any]) -> None:
    import json

    from blake3 import blake3

    told = {"magic": "cas-checkpoints", "version": 1, "id": "0" * 32, "block_size": 4096, **fields}
    digest = blake3(json.dumps(told).encode()).hexdigest()
    (forge.path / "cas.json").write_bytes(json.dumps({**told, "blake3": digest}).encode() + b"\n")
    with pytest.raises((Corrupt, Unsupported)):
        cas.open(forge.path)


@pytest.mark.parametrize("data", [b"", b"[" * 100_000, b"null", b"[]", b"5", b'{"id": 1}', b"\xff\xfe", b"{" * 9999])
def test_an_identity_that_is_no_json_of_ours_is_refused(forge: Forge, data: bytes) -> None:
    (forge.path / "cas.json").write_bytes(data)
    with pytest.raises(Corrupt):
        cas.open(forge.path)


# -- places ---------------------------------------------------------------------------------------------------------


FOLDERS = [
    "with spaces",
    "ünïcödé 模型",
    "new\nline",
    "tab\tand'quotes\"",
    "-dash",
    "~tilde",
    "%41",
    "a" * 200,
    "$HOME",
]
FOLDERS += ["$HOME", "\x1b[31m", "dots...", "*?[x]", "not UTF-8 \udcff\udcfe"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_store_may_stand_in_a_folder_of_any_name(name: str) -> None:
    with quick_folder() as folder:
        path = folder / name / "store"
        assert children.run(use_twice, path) == [0, 1]


def use_twice(path: Path) -> list[int]:
    with cas.open(path, create=True) as store:
        commit(store, 0)
    with cas.open(path) as store:
        store.load("main")
        commit(store, 1)
        assert len(store._catalog.index.rows()) > 0
    return check_whole(path)


PATHS = [
    "\x00",
    "a\x00b",
    "x" * 5000,
    b"a\x00b",
    5,
    None,
    "/proc/nothing/here",
    "/dev/null",
    "/dev/null/x",
    "s3://bucket/x",
]


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_cannot_be_is_told(path: Any, create: bool) -> None:
    with pytest.raises((CasError, OSError, TypeError)) as caught:
        cas.open(path, create=create)
    assert str(caught.value)


NOBODY = 65534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="NOT COVERED: stores without permission; needs root")


def as_nobody(work: Callable[..., Any], *args: Any) -> Any:
    def drop_and_work() -> Any:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return work(*args)

    return children.run(drop_and_work)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A closed store of root's that all may read."""
    with quick_folder() as folder:
        folder.chmod(0o755)
        make(folder / "store", commits=2)
        for place, _, names in os.walk(folder / "store"):
            for name in names:
                (Path(place) / name).chmod(0o644)
            Path(place).chmod(0o755)
        yield folder / "store"


@needs_root
@pytest.mark.parametrize("index", [True, False])
def test_a_read_only_store_is_read_and_refuses_commits(shared: Path, index: bool) -> None:
    if not index:
        import shutil

        shutil.rmtree(shared / "index")
    before = sorted(str(file) for file in shared.rglob("*"))
    as_nobody(read_only, shared)
    assert sorted(str(file) for file in shared.rglob("*")) == before


def read_only(path: Path) -> None:
    with cas.open(path) as store:
        assert same(store.load("main"), state(1))
        assert numbers(store) == [0, 1]
        assert errors(store.fsck(data=True)) == []
        with pytest.raises((CasError, OSError), match="Permission denied") as caught:
            commit(store, 2)
        assert str(path) in str(caught.value)
        with pytest.raises((CasError, OSError), match="Permission denied"):
            store.tag("v1")
        assert same(store.load("main"), state(1))


@needs_root
@pytest.mark.parametrize(
    "name", ["cas.json", "log", "packs", f"log/{3:020}", "packs/*", "packs/*/*", "root", "index/data.mdb"]
)
def test_what_may_not_be_read_is_named(shared: Path, name: str) -> None:
    hidden = next(shared.glob(name))
    hidden.chmod(0)
    told = as_nobody(try_to_read, shared)
    if name in ("root", "index/data.mdb"):
        assert told == [0, 1]
    else:
        assert isinstance(told, str)
        assert "Permission denied" in told
        assert str(shared) in told or "pack" in told
    assert stat.S_IMODE(hidden.stat().st_mode) == 0


def try_to_read(path: Path) -> Any:
    try:
        with cas.open(path) as store:
            assert same(store.load("main"), state(1))
            return numbers(store)
    except (CasError, OSError) as error:
        return str(error)


def test_arrays_of_wrong_kinds_never_come_back_as_something_else(forge: Forge) -> None:
    """The good form that the hostile ones resemble: it loads."""
    block, blocks = forge.block(), [forge.block(bytes(N)[at : at + 4096]) for at in range(0, N, 4096)]
    layout = forge.layout(4096, [[[0], [N], [forge.list(b"".join(blocks))]]])
    node = [
        DICT,
        [["x", [T, "numpy", "uint8", [4, 4], block, None]], ["y", [T, "numpy", "uint8", [N], [layout], None]]],
    ]
    forge.publish(forge.commit(forge.tree(node), files=[DICT, [["a/b", [Tag.BYTES, 16, block]]]]))
    assert answers(forge) == dict.fromkeys(answers(forge)) | {"fsck": []}
    with cas.open(forge.path) as store:
        assert store.files("main") == {"a/b": b"a block's bytes."}
        assert same(store.load("main")["y"], np.zeros(N, np.uint8))
