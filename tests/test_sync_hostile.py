"""Other stores that lie: what they serve is refused with one sentence, and nothing of it shows in the one that asked.

Each is forged byte by byte with all checksums right, or is an honest one that was tampered with. A store of ours asks
for a fetch, a pull and a clone, in a child with little memory and time. Afterwards our refs are what they were, our
state loads, and `fsck` has no complaint.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from blake3 import blake3
from faults import children
from faults.damage import flip, packs
from faults.forge import EMPTY, Forge
from faults.stores import errors, make, quick_folder, same, state
from servers.s3 import S3Server
from test_faults_hostile import NODES, fill

import cas
from cas import envelope, lists, log, where
from cas.block import Codec, Kind, ObjectId, block_id
from cas.errors import CasError
from cas.lists import What
from cas.nodes import Tag
from cas.nodes import pack as msgpack

MEMORY = 4 << 30
"""Bytes of address space, of which indexes and threads reserve much and use little."""
SECONDS = 60
MISSING = bytes(range(32))
Attack = Callable[[Forge, bytes], Any]
"""Fills a forged store; it is given the tip of ours, for commits that go on from there."""
Answers = dict[str, str | None]
"""By what was asked, the error's class and text, or None where it went well."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


@pytest.fixture
def mine(folder: Path) -> Path:
    """Our store, of one commit."""
    make(folder / "mine")
    return folder / "mine"


@pytest.fixture
def forge(folder: Path, mine: Path) -> Forge:
    """A store to fill, in which all of ours is already."""
    made = Forge(folder / "evil")
    shutil.copytree(mine / "packs", made.path / "packs")
    return made


def tip_of(path: Path) -> bytes:
    with cas.open(path) as store:
        return bytes.fromhex(store.resolve("main").id)


def ask(mine: Path, place: str, options: dict[str, Any], actions: tuple[str, ...]) -> Answers:
    """In a child: ask a store for what it has."""
    found: Answers = {}
    told = {"storage_options": options} if options else {}
    with cas.open(mine, cache=mine.parent / "cache") as store:
        if "evil" not in store.remotes():
            store.add_remote("evil", place)
        work: dict[str, Callable[[], Any]] = {
            "fetch": lambda: store.fetch("evil", **told),
            "fetch part": lambda: store.fetch("evil", only=["x", "x/**", "**/y"], **told),
            "fetch below": lambda: store.fetch("evil", only="**/y", **told),
            "pull": lambda: store.pull(place, "main", **told),
            "clone": lambda: cas.clone(place, mine.parent / "clone", cache=mine.parent / "cache", **told).close(),
            "heal": lambda: store.heal("main", place, **told),
            "push": lambda: store.push(place, "main", force=True, **told),
        }
        for action in actions:
            found[action] = said(work[action])
    return found


def said(work: Callable[[], Any]) -> str | None:
    try:
        work()
    except CasError as error:
        return f"{type(error).__name__}: {error}"
    return None


def asked(mine: Path, place: object, *actions: str, options: dict[str, Any] | None = None) -> Answers:
    actions = actions or ("fetch", "fetch part", "pull", "clone")
    found: Answers = children.run(ask, mine, str(place), options or {}, actions, memory=MEMORY, limit=SECONDS)
    for text in found.values():
        if text is not None:
            assert len(text) < 1000, text
            assert text.isprintable(), text
    return found


def assert_unharmed(mine: Path, tip: bytes) -> None:
    """Our store is as it was, and a clone that was begun has nothing in it."""
    with cas.open(mine) as store:
        assert store.refs() == {"branches": {"main": tip.hex()}, "tags": {}}
        assert errors(store.fsck(data=True)) == []
        assert same(store.load("main"), state(0))
    if (mine.parent / "clone" / "cas.json").exists():
        with cas.open(mine.parent / "clone") as store:
            assert store.refs() == {"branches": {}, "tags": {}}
            assert errors(store.fsck(data=True)) == []


def refused(mine: Path, place: object, *actions: str, options: dict[str, Any] | None = None) -> Answers:
    """The answers, all of them errors, of a store that did us no harm."""
    tip = tip_of(mine)
    found = asked(mine, place, *actions, options=options)
    assert None not in found.values(), found
    assert_unharmed(mine, tip)
    return found


def matches(found: Answers, pattern: str) -> None:
    for text in found.values():
        assert re.search(pattern, text or ""), found


# -- packs ----------------------------------------------------------------------------------------------------------

DATA = b"a block's bytes."


def leaf(block: bytes, size: int = 16) -> list[Any]:
    return [Tag.DICT, [["x", [Tag.TENSOR, "numpy", "uint8", [size], block, None]]]]


def of_block(data: bytes = DATA, body: bytes | None = None, **row: Any) -> Attack:
    """A commit of one block, of whose row these fields lie."""

    def attack(forge: Forge, tip: bytes) -> None:
        publish(forge, forge.tree(leaf(forge.add(Kind.BLOCK, data, body, **row))), tip)

    return attack


def publish(forge: Forge, tree: bytes, tip: bytes, **fields: Any) -> None:
    forge.publish(forge.commit(tree, parents=[tip], **fields))


def zstd(data: bytes, declared: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=declared).compress(data)


def frame(size: int) -> bytes:
    """A frame of zstd that says it holds so many bytes, and holds few."""
    block = struct.pack("<I", (1 << 20) << 3 | 0b011)[:3] + b"\0"  # one byte repeated 2^20 times, the last block
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + block


def circle(forge: Forge, tip: bytes) -> None:
    one, two = (bytes([n]) * 4096 for n in (1, 2))
    for data, base, chain in ((one, two, 2), (two, one, 1)):
        forge.add(Kind.BLOCK, data, b"x" * 9, codec=Codec.DELTA, width=4, chain=chain, base=block_id(base))
    publish(forge, forge.tree(leaf(block_id(one), 4096)), tip)


def long_chain(forge: Forge, tip: bytes) -> None:
    for number in range(1, 9):
        base = block_id(bytes([number - 1]) * 4096)
        delta = {"codec": Codec.DELTA, "width": 4, "chain": number, "base": base}
        forge.add(Kind.BLOCK, bytes([number]) * 4096, b"x" * 9, **delta)
    publish(forge, forge.tree(leaf(block_id(bytes([8]) * 4096), 4096)), tip)


def misnamed_kind(forge: Forge, tip: bytes) -> None:
    """A tree that stands in a row of a commit."""
    tree = forge.add(Kind.TREE, msgpack([1, leaf(forge.block())]), kind=Kind.COMMIT)
    publish(forge, tree, tip)


def bomb(forge: Forge, tip: bytes) -> None:
    """A tree of 16 MiB, a kilobyte of zstd, that holds millions of empty lists."""
    count = (16 << 20) - 16
    raw = b"\x92\x01\x92\x02\xdd" + struct.pack(">I", count) + b"\x90" * count
    publish(forge, forge.add(Kind.TREE, raw, zstd(raw), codec=Codec.ZSTD), tip)


OBJECTS: dict[str, Attack] = {
    "bytes of another block": of_block(body=b"another's bytes!"),
    "a name that is made up": of_block(id=MISSING[::-1]),
    "a kind that there is not": of_block(kind=9),
    "a codec that there is not": of_block(codec=9),
    "a width that there is not": of_block(width=3),
    "an offset into the table": of_block(offset=1 << 40),
    "an offset into the header": of_block(offset=0),
    "more raw bytes than any block": of_block(raw=(4 << 20) + 1, codec=Codec.ZSTD),
    "four billion raw bytes": of_block(raw=0xFFFFFFFF, codec=Codec.ZSTD),
    "four billion stored bytes": of_block(stored=0xFFFFFFFF, raw=0xFFFFFFFF),
    "more raw bytes than stored ones": of_block(raw=17),
    "a frame of more bytes than the row says": of_block(body=zstd(bytes(1 << 20)), data=bytes(99), codec=Codec.ZSTD),
    "a frame of more bytes that does not say so": of_block(
        body=zstd(bytes(1 << 20), False), data=bytes(99), codec=Codec.ZSTD
    ),
    "a frame of fewer bytes": of_block(body=zstd(bytes(99)), data=bytes(1 << 20), codec=Codec.ZSTD),
    "a frame that says 2^60": of_block(body=frame(1 << 60), data=bytes(1 << 20), codec=Codec.ZSTD),
    "a frame that says less than it holds": of_block(body=frame(99), data=bytes(99), codec=Codec.ZSTD),
    "a frame and more behind it": of_block(body=zstd(bytes(99)) + b"more", data=bytes(99), codec=Codec.ZSTD),
    "no frame": of_block(body=b"x" * 16, codec=Codec.ZSTD),
    "planes of nothing": of_block(body=b"x" * 9, codec=Codec.PLANES, width=4),
    "a delta of itself": of_block(codec=Codec.DELTA, width=4, chain=1, base=block_id(DATA), body=b"x" * 9),
    "a delta of what is not there": of_block(codec=Codec.DELTA, width=4, chain=1, base=MISSING, body=b"x" * 9),
    "a chain of 255": of_block(codec=Codec.DELTA, width=4, chain=255, base=MISSING, body=b"x" * 9),
    "a chain that circles": circle,
    "a chain without an end": long_chain,
    "a tree in a row of a commit": misnamed_kind,
    "a kilobyte for millions of lists": bomb,
}


@pytest.mark.parametrize("name", OBJECTS)
def test_a_forged_object_is_refused(forge: Forge, mine: Path, name: str) -> None:
    OBJECTS[name](forge, tip_of(mine))
    refused(mine, forge.path)


@pytest.fixture
def honest(folder: Path, mine: Path) -> Path:
    """A store that goes on from ours, in packs of its own."""
    shutil.copytree(mine, folder / "honest")
    with cas.open(folder / "honest") as store:
        store.load("main")
        store.commit({"x": bytes(range(256)) * 400}, codec="raw")
        store.commit({"x": bytes(range(255, -1, -1)) * 400}, codec="raw")
    shutil.rmtree(folder / "honest" / "index")
    return folder / "honest"


def _cut(path: Path) -> None:
    for file in packs(path):
        file.write_bytes(file.read_bytes()[:-200])


def _cut_short(path: Path) -> None:
    for file in packs(path):
        file.write_bytes(file.read_bytes()[:100])


def _swap(path: Path) -> None:
    files = packs(path)
    held = [file.read_bytes() for file in files]
    for file, data in zip(files, held[1:] + held[:1], strict=True):
        file.write_bytes(data)


def _flip_all(path: Path) -> None:
    for file in packs(path):
        for at in range(64, file.stat().st_size, 40):
            flip(file, at)


def _flip_tables(path: Path) -> None:
    for file in packs(path):
        flip(file, -120)


def _one_gone(path: Path) -> None:
    max(packs(path), key=lambda file: file.stat().st_mtime_ns).unlink()


TAMPERED: dict[str, Callable[[Path], None]] = {
    "packs without an end": _cut,
    "packs of a few bytes": _cut_short,
    "packs with bits flipped": _flip_all,
    "packs with bad tables": _flip_tables,
    "a pack withheld": _one_gone,
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_store_is_refused(mine: Path, honest: Path, name: str) -> None:
    TAMPERED[name](honest)
    refused(mine, honest)


def test_swapped_packs_do_no_harm(mine: Path, honest: Path) -> None:
    """A pack says nothing of its own name, so all that it holds is good under another one."""
    _swap(honest)
    found = asked(mine, honest, "fetch", "clone")
    with cas.open(mine) as store:
        assert errors(store.fsck(data=True)) == []
        assert (found["fetch"] is None) == ("evil/main" in store.refs().get("tracking", {}))


def test_packs_swapped_under_an_index_are_found_out(mine: Path, honest: Path) -> None:
    """The index still has the rows of what stood there: they are hints, and the bytes are compared with their names."""
    with cas.open(honest) as store:
        store.load("main")
    files = packs(honest)
    sizes = {file: file.stat().st_size for file in files}
    _swap(honest)
    for file, size in sizes.items():  # as long as it was, which is all that the index looks at
        data = file.read_bytes()[:size]
        file.write_bytes(data + bytes(size - len(data)))
    refused(mine, honest)


# -- what objects say -----------------------------------------------------------------------------------------------

READABLE = (
    *("a dtype that numpy lacks", "a pickle", "a scalar that numpy lacks", "a framework", "a foreign", "ties"),
    "a text that is not UTF-8",
)
"""Nodes that are sound, whatever a load makes of them."""


@pytest.mark.parametrize("name", [name for name in NODES if not name.startswith(READABLE)])
def test_a_state_that_cannot_be_is_refused(forge: Forge, mine: Path, name: str) -> None:
    node = fill(NODES[name], forge)
    publish(forge, forge.tree([Tag.DICT, [["x", node], ["good", 1]]]), tip_of(mine))
    refused(mine, forge.path)


def deep(levels: int, forge: Forge) -> bytes:
    """A tree in a tree in a tree."""
    tree = forge.tree([Tag.DICT, []])
    for _ in range(levels):
        tree = forge.tree([Tag.DICT, [["x", [Tag.REF, tree]]]])
    return tree


@pytest.mark.parametrize("levels", [129, 2000])
def test_trees_nested_too_deep_are_refused(forge: Forge, mine: Path, levels: int) -> None:
    publish(forge, deep(levels, forge), tip_of(mine))
    matches(refused(mine, forge.path), "deep")
    matches(refused(mine, forge.path, "fetch below"), "deep")


def test_few_trees_that_stand_for_endless_paths_are_refused(forge: Forge, mine: Path) -> None:
    tree = forge.tree([Tag.DICT, [["x", 1]]])
    for _ in range(60):
        tree = forge.tree([Tag.DICT, [["x", [Tag.REF, tree]], ["y", [Tag.REF, tree]]]])
    publish(forge, tree, tip_of(mine))
    found = asked(mine, forge.path)
    with cas.open(mine) as store:
        assert errors(store.fsck(data=True)) == []
    assert set(found) == {"fetch", "fetch part", "pull", "clone"}


def names(*texts: str) -> list[list[Any]]:
    return [[text, [Tag.BYTES, 16, block_id(DATA)]] for text in texts]


COMMITS: dict[str, Callable[[Forge], dict[str, Any]]] = {
    "a file above": lambda forge: {"files": [Tag.DICT, names("../x")]},
    "a file at the root": lambda forge: {"files": [Tag.DICT, names("/etc/passwd")]},
    "a file that escapes": lambda forge: {"files": [Tag.DICT, names("a\x1b[2J")]},
    "a file without a name": lambda forge: {"files": [Tag.DICT, names("")]},
    "a file of dots": lambda forge: {"files": [Tag.DICT, names("..")]},
    "a file of a number": lambda forge: {"files": [Tag.DICT, [[1, [Tag.BYTES, 16, block_id(DATA)]]]]},
    "a file twice": lambda forge: {"files": [Tag.DICT, names("x", "x")]},
    "files elsewhere": lambda forge: {"files": [Tag.REF, forge.tree([Tag.DICT, []])]},
    "a file that is longer": lambda forge: {"files": [Tag.DICT, [["x", [Tag.BYTES, 17, block_id(DATA)]]]]},
    "a file that is missing": lambda forge: {"files": [Tag.DICT, [["x", [Tag.BYTES, 16, MISSING]]]]},
    "a parent that is missing": lambda forge: {"parents": [MISSING]},
    "a parent that is a tree": lambda forge: {"parents": [forge.tree([Tag.DICT, []])]},
    "a tree that is a block": lambda forge: {"tree": block_id(DATA)},
    "an origin that is missing": lambda forge: {"origin": [MISSING, 5]},
    "a time after the end": lambda forge: {"time": 1 << 62},
    "metrics in blocks": lambda forge: {"metrics": [Tag.DICT, names("loss")]},
    "another version": lambda forge: {"version": 2},
}


@pytest.mark.parametrize("name", COMMITS)
def test_a_forged_commit_is_refused(forge: Forge, mine: Path, name: str) -> None:
    forge.block(DATA)
    fields = COMMITS[name](forge)
    actions = ("fetch", "pull", "clone") if "origin" in fields else ()  # a part comes without it
    tree = fields.pop("tree", None) or forge.tree([Tag.DICT, [["x", 1]]])
    forge.publish(forge.commit(tree, **{"parents": [tip_of(mine)], **fields}))
    refused(mine, forge.path, *actions)


@pytest.mark.parametrize("kind", [Kind.TREE, Kind.BLOCK])
def test_a_branch_at_what_is_no_commit_is_refused(forge: Forge, mine: Path, kind: Kind) -> None:
    forge.publish(forge.add(kind, msgpack([1, [Tag.DICT, []]])))
    refused(mine, forge.path)


# -- the log --------------------------------------------------------------------------------------------------------


def good_tip(forge: Forge, tip: bytes) -> bytes:
    made = forge.commit(forge.tree([Tag.DICT, [["x", 1]]]), parents=[tip])
    forge.write_pack()
    return made


def body(forge: Forge, refs: list[Any], seq: int = 2, **fields: Any) -> list[Any]:
    """What a record says, honest but for `fields`."""
    honest = {"config": [], "epoch": 0, "condemned": [], "absent": [], "floor": 1, "update": forge.update()}
    return [1, seq, [], [], refs, *{**honest, **fields}.values()]


def with_refs(*refs: Any, **fields: Any) -> Attack:
    """A record with these refs; `None` stands for a good commit."""

    def attack(forge: Forge, tip: bytes) -> None:
        good = good_tip(forge, tip)
        told = [[*ref[:2], good if ref[2] is None else ref[2]] for ref in refs]
        forge.write_record(body(forge, told, **fields))

    return attack


def config(*pairs: Any) -> Attack:
    return with_refs([0, "main", None], config=[list(pair) for pair in pairs])


BAD_NAMES = (
    "../x",
    "a\x1b[31m",
    "a\nb",
    "",
    "/x",
    "x/",
    "-x",
    "a b",
    "a:b",
    "HEAD",
    "x" * 300,
    "a\u202eb",
    ".",
    "a/../b",
)


def damaged_record(forge: Forge, tip: bytes) -> None:
    with_refs([0, "main", None])(forge, tip)
    flip(forge.path / log.name_of(2), 80)


def cut_record(forge: Forge, tip: bytes) -> None:
    with_refs([0, "main", None])(forge, tip)
    file = forge.path / log.name_of(2)
    file.write_bytes(file.read_bytes()[:40])


def hole(forge: Forge, tip: bytes) -> None:
    """Records 1 and 3, and a hint that says 2."""
    forge.write_record(body(forge, [[0, "main", good_tip(forge, tip)]], seq=3), seq=3)
    hint(forge, "2")


def hint(forge: Forge, number: str) -> None:
    line = f"{number} {'0' * 64}"
    (forge.path / log.HINT).write_text(f"{line}\n{blake3(line.encode()).hexdigest()}\n")


def hint_of_nothing(forge: Forge, tip: bytes) -> None:
    with_refs([0, "main", None])(forge, tip)
    hint(forge, "7")


def no_log(forge: Forge, tip: bytes) -> None:
    (forge.path / log.name_of(1)).unlink()
    hint(forge, "x" * 50)


def huge_record(forge: Forge, tip: bytes) -> None:
    with (forge.path / log.name_of(2)).open("wb") as file:
        file.truncate(1 << 40)


RECORDS: dict[str, Attack] = {
    **{f"a branch called {name[:20]!r}": with_refs([0, name, None]) for name in BAD_NAMES},
    "a tag called ../x": with_refs([1, "../x", None]),
    "a kind of ref that there is not": with_refs([7, "main", None]),
    "a branch twice": with_refs([0, "main", None], [0, "main", None]),
    "branches out of order": with_refs([0, "z", None], [0, "a", None]),
    "a short id": with_refs([0, "main", b"x"]),
    "a branch at nothing": with_refs([0, "main", MISSING]),
    "refs that are text": with_refs(config=[], condemned="x"),
    "features of the future": lambda forge, tip: forge.write_record([1, 2, ["x"], *body(forge, [])[3:]]),
    "another version": lambda forge, tip: forge.write_record([2, *body(forge, [])[1:]]),
    "another number": lambda forge, tip: forge.write_record(body(forge, [], seq=5)),
    "a floor above it": with_refs([0, "main", None], floor=3),
    "an impossible epoch": with_refs([0, "main", None], epoch=3),
    "a list that is gone": with_refs([0, "main", None], absent=[bytes(16)]),
    "a condemned list that is gone": with_refs([0, "main", None], epoch=1, condemned=[[1, bytes(16)]]),
    "a list of the wrong length": with_refs([0, "main", None], absent=[bytes(15)]),
    "a config that is text": with_refs([0, "main", None], config="x"),
    "a config nested deep": config(("x", fill("deep", Forge.__new__(Forge)))),
    "a record that does not verify": damaged_record,
    "a record that was cut": cut_record,
    "a record of a terabyte": huge_record,
    "a hole in the log": hole,
    "a hint of a record that is gone": hint_of_nothing,
    "no log": no_log,
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_forged_record_is_refused(forge: Forge, mine: Path, name: str) -> None:
    RECORDS[name](forge, tip_of(mine))
    refused(mine, forge.path)


def test_a_hostile_config_is_not_taken_over(forge: Forge, mine: Path) -> None:
    """What another store says of remotes and policies is its own affair."""
    tip = tip_of(mine)
    remotes = [Tag.DICT, [["x\x1b[2J", [Tag.DICT, [["url", "s3://user:secret@\x1b[31m/"], ["options", EMPTY]]]]]]
    config(("policies", "nonsense"), ("remotes", remotes), ("writers", "one"))(forge, tip)
    assert set(asked(mine, forge.path, "fetch", "clone").values()) == {None}
    for path, expected in ((mine, {"evil"}), (mine.parent / "clone", {"origin"})):
        with cas.open(path) as store:
            assert set(store.remotes()) == expected
            assert store.policies() == {}
            assert not store.one_writer
            assert errors(store.fsck(data=True)) == []


def test_branches_above_and_below_each_other_do_no_harm(forge: Forge, mine: Path) -> None:
    with_refs([0, "a", None], [0, "a/b", None], [0, "evil/main", None], [2, "origin/x", None])(forge, tip_of(mine))
    asked(mine, forge.path, "fetch", "clone")
    for path in (mine, mine.parent / "clone"):
        with cas.open(path) as store:
            assert errors(store.fsck(data=True)) == []
            for found in store.refs().values():
                assert not {"a", "a/b"} <= {name.removeprefix("evil/").removeprefix("origin/") for name in found}


# -- lists and hints ------------------------------------------------------------------------------------------------


def write_list(forge: Forge, what: What, items: list[bytes], data: bytes | None = None) -> bytes:
    name = os.urandom(16)
    file = forge.path / lists.name_of(lists.ListId(name))
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(lists.encode_list(what, items) if data is None else data)
    return name


def sealed(value: Any) -> bytes:
    data = envelope.header(envelope.FileKind.LIST) + msgpack(value)
    return data + blake3(data).digest()


LISTS: dict[str, tuple[What, bytes]] = {
    "a list of another kind": (What.ABSENT, sealed([1, 0, b""])),
    "a list of half an item": (What.ABSENT, sealed([1, 1, bytes(63)])),
    "a list out of order": (What.ABSENT, sealed([1, 1, b"b" * 64 + b"a" * 64])),
    "a list of another version": (What.CONDEMNED, sealed([2, 0, b""])),
    "a list of text": (What.CONDEMNED, sealed("x")),
    "a list that does not verify": (What.CONDEMNED, bytes(200)),
    "a list that is empty": (What.CONDEMNED, b""),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_forged_list_is_refused(forge: Forge, mine: Path, name: str) -> None:
    what, data = LISTS[name]
    held = write_list(forge, what, [], data)
    fields: dict[str, Any] = {"absent": [held]} if what is What.ABSENT else {"epoch": 1, "condemned": [[1, held]]}
    with_refs([0, "main", None], **fields)(forge, tip_of(mine))
    refused(mine, forge.path)


def test_a_list_that_condemns_all_packs_leaves_nothing_to_take(forge: Forge, mine: Path) -> None:
    tip = tip_of(mine)
    good = good_tip(forge, tip)
    held = write_list(forge, What.CONDEMNED, [bytes.fromhex(file.name) for file in packs(forge.path)])
    forge.write_record(body(forge, [[0, "main", good]], epoch=1, condemned=[[1, held]]))
    refused(mine, forge.path)


def test_what_another_store_says_is_absent_of_our_commits_stays_here(forge: Forge, mine: Path) -> None:
    tip = tip_of(mine)
    good = good_tip(forge, tip)
    with cas.open(mine) as store:
        tree = store._objects.commit(ObjectId(tip)).tree
    held = write_list(
        forge, What.ABSENT, sorted([lists.pair(ObjectId(tip), tree), lists.pair(ObjectId(tip), ObjectId(good))])
    )
    forge.write_record(body(forge, [[0, "main", good]], absent=[held]))
    assert set(asked(mine, forge.path, "fetch", "fetch part", "pull").values()) == {None}
    with cas.open(mine) as store:
        assert same(store.load("main~1"), state(0))
        assert errors(store.fsck(data=True)) == []


def upload(server: S3Server, path: Path) -> str:
    """The URL of a copy of a store in a bucket."""
    bucket = server.bucket()
    for file in path.rglob("*"):
        key = f"run/{file.relative_to(path)}"
        if file.is_file() and not key.startswith("run/index/"):
            server.client().put_object(Bucket=bucket, Key=key, Body=file.read_bytes())
    return server.url(bucket, "run")


ON_S3: dict[str, Attack] = {
    "a chain that circles": circle,
    "bytes of another block": OBJECTS["bytes of another block"],
    "a frame that says 2^60": OBJECTS["a frame that says 2^60"],
    "four billion stored bytes": OBJECTS["four billion stored bytes"],
    "a branch called ../x": with_refs([0, "../x", None]),
    "a record that does not verify": damaged_record,
    "a hole in the log": hole,
    "a hint of a record that is gone": hint_of_nothing,
    "no log": no_log,
}


@pytest.mark.parametrize("name", ON_S3)
def test_a_hostile_bucket_is_refused(forge: Forge, mine: Path, s3_server: S3Server, name: str) -> None:
    ON_S3[name](forge, tip_of(mine))
    refused(mine, upload(s3_server, forge.path), "fetch", "clone", options=s3_server.options)


@pytest.mark.parametrize("name", ["packs without an end", "packs with bits flipped", "a pack withheld"])
def test_a_tampered_bucket_is_refused(mine: Path, honest: Path, s3_server: S3Server, name: str) -> None:
    TAMPERED[name](honest)
    refused(mine, upload(s3_server, honest), "fetch", "clone", options=s3_server.options)


HINTS: dict[str, bytes] = {
    "packs that are not there": b"".join(os.urandom(16) for _ in range(100)),
    "half a pack": bytes(15),
    "nothing": b"",
}


@pytest.mark.parametrize("name", HINTS)
def test_hints_that_lie_cost_time_and_nothing_else(mine: Path, honest: Path, s3_server: S3Server, name: str) -> None:
    tip = tip_of(honest)
    file = honest / where.name_of(ObjectId(tip))
    file.parent.mkdir(exist_ok=True)
    data = where._MAGIC + HINTS[name]
    file.write_bytes(data + blake3(data).digest())
    url = upload(s3_server, honest)
    assert asked(mine, url, "fetch", "clone", options=s3_server.options) == {"fetch": None, "clone": None}
    with cas.open(mine) as store:
        assert store.refs()["tracking"] == {"evil/main": tip.hex()}
        assert errors(store.fsck(data=True)) == []


# -- what is no file ------------------------------------------------------------------------------------------------


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _endless(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def _loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def _sparse(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(1 << 42)


NO_FILES = {"a pipe": _pipe, "a directory": _directory, "endless": _endless, "a loop": _loop, "huge": _sparse}


@pytest.mark.parametrize("which", ["cas.json", "log/*", "packs/*/*"])
@pytest.mark.parametrize("name", NO_FILES)
def test_what_is_no_file_of_a_store_is_refused(mine: Path, honest: Path, name: str, which: str) -> None:
    for file in sorted(honest.glob(which)):
        NO_FILES[name](file)
    refused(mine, honest)


# -- time ----------------------------------------------------------------------------------------------------------


def test_an_older_root_than_last_seen_is_said(mine: Path, honest: Path, caplog: pytest.LogCaptureFixture) -> None:
    older = Path(shutil.copytree(honest, honest.parent / "older"))
    with cas.open(honest) as store:
        store.load("main")
        store.commit({"x": 3})
    with cas.open(mine) as store, caplog.at_level(logging.WARNING, "cas"):
        store.add_remote("evil", honest)
        store.fetch("evil")
        newest = store.refs()["tracking"]["evil/main"]
        assert caplog.messages == []
        shutil.rmtree(honest)
        older.rename(honest)
        store.fetch("evil")
        (text,) = caplog.messages
        assert re.search(r"is at log record \d+, and was at \d+ before: it was restored from an older copy", text)
        caplog.clear()
        store.fetch("evil")
        assert store.resolve(newest).id == newest, "what was seen once can still be had"
        assert errors(store.fsck(data=True)) == []


def test_another_store_at_the_same_place_is_said(mine: Path, honest: Path, caplog: pytest.LogCaptureFixture) -> None:
    with cas.open(mine) as store, caplog.at_level(logging.WARNING, "cas"):
        store.add_remote("evil", honest)
        store.fetch("evil")
        shutil.rmtree(honest)
        make(honest)
        store.fetch("evil")
        (text,) = caplog.messages
        assert "is another store than the one that was there before" in text
        assert errors(store.fsck(data=True)) == []


# -- what is no store, and what takes what is ours ------------------------------------------------------------------


IDENTITIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"\xff\xfe",
    "JSON nested deep": b"[" * 100_000,
    "a number of many digits": b'{"magic": "cas-checkpoints", "version": ' + b"9" * 100_000 + b"}",
    "a huge block size": b'{"magic": "cas-checkpoints", "version": 1, "id": "'
    + b"0" * 32
    + b'", "block_size": 1099511627776}',
    "an id that is a path": b'{"magic": "cas-checkpoints", "version": 1, "id": "../../../x", "block_size": 4096}',
    "escapes": b'{"magic": "\x1b[2J", "version": "\x1b[2J"}',
    "the future": b'{"magic": "cas-checkpoints", "version": 2}',
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_a_forged_identity_is_refused(forge: Forge, mine: Path, name: str) -> None:
    (forge.path / "cas.json").write_bytes(IDENTITIES[name])
    refused(mine, forge.path)
    assert not (mine.parent / "x").exists()


def test_a_push_to_a_store_that_claims_to_have_all_loses_nothing_here(forge: Forge, mine: Path, honest: Path) -> None:
    """It has rows for each of our objects, and other bytes."""
    shutil.rmtree(forge.path / "packs")
    tip = tip_of(mine)
    with cas.open(mine) as store:
        held = [place.row for place in store._catalog.index.rows()]
    for row in held:
        body = bytes(row.stored)
        forge.stored.append((row._replace(stored=len(body), offset=0)._asdict(), body))
        del forge.stored[-1][0]["offset"]
    forge.write_pack()
    asked(mine, forge.path, "push")
    assert_unharmed(mine, tip)


def test_a_copy_with_the_same_id_is_told_apart(mine: Path, s3_server: S3Server, tmp_path: Path) -> None:
    """Else what one of them has would count as being in the other, and never be sent."""
    one, two = upload(s3_server, mine), upload(s3_server, mine)
    options: dict[str, Any] = {"storage_options": s3_server.options}
    held = {"w": os.urandom(50_000), "many": {str(n): {str(k): k for k in range(900)} for n in range(3)}}
    with cas.open(one, cache=tmp_path / "cache", **options) as store:
        store.load("main")
        store.commit(held)
    with cas.open(one, cache=tmp_path / "cache", **options) as store:
        store.push(two, "main", **options)
    with cas.open(two, cache=tmp_path / "new", **options) as store:
        assert errors(store.fsck(data=True)) == []
        assert same(store.load("main"), held)


PUSHED = {
    "a record that does not verify": damaged_record,
    "a hole in the log": hole,
    "a branch at nothing": with_refs([0, "main", MISSING]),
    "a list that is gone": with_refs([0, "main", None], absent=[bytes(16)]),
    "bytes of another block": OBJECTS["bytes of another block"],
    "trees nested deep": lambda forge, tip: publish(forge, deep(300, forge), tip),
}


@pytest.mark.parametrize("name", PUSHED)
def test_a_push_to_a_hostile_store_loses_nothing_here(forge: Forge, mine: Path, name: str) -> None:
    tip = tip_of(mine)
    PUSHED[name](forge, tip)
    asked(mine, forge.path, "push")
    assert_unharmed(mine, tip)


@pytest.mark.parametrize("name", ["bytes of another block", "a frame that says 2^60", "a chain that circles"])
def test_healing_from_a_hostile_store_takes_nothing_bad(forge: Forge, mine: Path, name: str) -> None:
    tip = tip_of(mine)
    shutil.rmtree(forge.path / "packs")
    OBJECTS[name](forge, tip)
    with cas.open(mine) as store:
        held = [place.row for place in store._catalog.index.rows()]
    for row in held:  # and rows of ours, with other bytes
        forge.stored.append(({**row._asdict(), "offset": 0}, os.urandom(row.stored)))
        del forge.stored[-1][0]["offset"]
    forge.write_pack()
    whole = Path(shutil.copytree(mine, mine.parent / "whole"))
    for file in packs(mine):
        file.unlink()
    assert asked(mine, forge.path, "heal") == {"heal": None}
    assert packs(mine) == []
    with cas.open(mine) as store, pytest.raises(cas.NotFound, match=r"neither .+ has a good copy"):
        store.load("main", heal_from=forge.path)
    with cas.open(mine) as store:
        assert same(store.load("main", heal_from=whole), state(0))
    assert_unharmed(mine, tip)
