"""Damage where blocks are stored as changes of others: what decodes through it is named, and nothing else is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from faults.forge import EMPTY, Forge
from faults.stores import quick_folder
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cas
from cas import Finding, Store
from cas.block import PLAIN, Codec, Coding, Kind, ObjectId, block_id, object_id, short
from cas.codecs import Changes, Encoder
from cas.dtypes import DTYPES
from cas.errors import CasError, Corrupt, NotFound
from cas.fsck import Checker
from cas.nodes import Tag
from cas.pack import ROW, Location, name_of
from cas.packing import Packs
from cas.rowcheck import Round, save

RNG = np.random.default_rng(0)
FLOAT = DTYPES["float32"]


def changed(weights: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """Every weight a little, as by a step of training."""
    noise = np.random.default_rng(seed).standard_normal(len(weights))
    return (weights * (1 + 1e-4 * noise)).astype(np.float32)


WEIGHTS = [RNG.standard_normal(20_000).astype(np.float32)]
for number in range(1, 4):
    WEIGHTS.append(changed(WEIGHTS[-1], number))
OTHER = RNG.random(9_000)


def state(number: int) -> dict[str, Any]:
    return {"m": {"w": WEIGHTS[number]}, "other": OTHER, "n": number}


STATES = {number: state(number) for number in range(3)}
BLOCKS = [block_id(weights.tobytes()) for weights in WEIGHTS]


def make(path: Path) -> Path:
    """A closed store with three commits: the weights of the second and the third are changes of those of the first."""
    with cas.open(path, create=True) as store:
        for number, held in STATES.items():
            store.commit(held, step=number, codec="raw" if number == 0 else "auto", delta="parent")
        assert [[place.row.chain for place in rows_of(store, block)] for block in BLOCKS] == [[0], [1], [1], []]
        assert {place.row.base for block in BLOCKS[1:] for place in rows_of(store, block)} == {BLOCKS[0]}
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path / "s")


@pytest.fixture
def clone(path: Path, tmp_path: Path) -> Path:
    """A whole copy of `path`."""
    return Path(shutil.copytree(path, tmp_path / "clone"))


def rows_of(store: Store, block: ObjectId) -> list[Location]:
    return store._catalog.index.find(block)


def chains(path: Path, block: ObjectId) -> list[int]:
    """Of the rows that are in no condemned pack."""
    with cas.open(path) as store:
        store._roots.current()  # from which the catalog learns what is condemned
        return sorted(place.row.chain for place in store._catalog.locate([block]).get(block, []))


class Made(NamedTuple):
    """A row to write: the raw bytes of a block, and of the base that it is stored as a change of, with its chain."""

    raw: bytes
    base: bytes | None = None
    chain: int = 0


def weights(number: int) -> bytes:
    return WEIGHTS[number].tobytes()


def encoded(row: Made) -> tuple[Coding, bytes]:
    if row.base is None:
        return PLAIN, row.raw
    stored = Encoder().encode_delta(np.frombuffer(row.raw, np.uint8), row.base, Changes(FLOAT))
    assert stored is not None
    return Coding(Codec.DELTA, FLOAT.width, row.chain, block_id(row.base)), bytes(stored)


def add_pack(path: Path, *rows: Made) -> None:
    """Write one more pack."""
    with cas.open(path) as store:
        packs = Packs(store._backend, store._catalog)
        for row in rows:
            coding, stored = encoded(row)
            packs.append(block_id(row.raw), Kind.BLOCK, coding, len(row.raw), stored)
        packs.finish()


def file_of(path: Path, block: ObjectId, chain: int = 0) -> Path:
    """The pack that has this row."""
    return path / name_of(place_of(path, block, chain).pack)


def place_of(path: Path, block: ObjectId, chain: int = 0) -> Location:
    with cas.open(path) as store:
        (found,) = (place for place in rows_of(store, block) if place.row.chain == chain)
        return found


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x55
    file.write_bytes(data)


def spoil(path: Path, block: ObjectId, chain: int = 0) -> Path:
    """Change a stored byte of this row, whose pack is returned."""
    place = place_of(path, block, chain)
    flip(path / name_of(place.pack), place.row.offset + place.row.stored // 2)
    return path / name_of(place.pack)


def check(path: Path, data: bool = True) -> list[Finding]:
    with cas.open(path) as store:
        return store.fsck(data=data)


def repair(path: Path, source: Path | None = None, data: bool = True) -> dict[str, list[Finding]]:
    with cas.open(path) as store:
        return by_name(store.fsck(data=data, repair=True, source=source))


def by_name(findings: list[Finding]) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.name, []).append(finding)
    return found


def errors(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity != "info"]


def all_errors(found: dict[str, list[Finding]]) -> list[Finding]:
    return errors([finding for findings in found.values() for finding in findings])


def steps_of(path: Path, findings: list[Finding]) -> set[int | None]:
    """The commits that are touched, by their steps."""
    with cas.open(path) as store:
        return {store.resolve(commit).step for finding in findings for commit in finding.commits}


def records(path: Path) -> list[str]:
    with cas.open(path) as store:
        return [record.update.why for record in store._log.records()]


def packs(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.glob("packs/*/*")}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and one.tobytes() == other.tobytes())
    return bool(one == other)


def assert_loads(path: Path, *steps: int) -> None:
    with cas.open(path) as store:
        for step in steps:
            assert same(store.load(f"main@step:{step}"), STATES[step])


def assert_whole(path: Path, *steps: int) -> None:
    """Everything is there, now, after what was given up is deleted, and with an index built anew."""
    assert errors(check(path)) == []
    with cas.open(path) as store:
        store.gc(grace=0)
    assert errors(check(path)) == []
    shutil.rmtree(path / "index")
    assert_loads(path, *(steps or STATES))


# -- checking -----------------------------------------------------------------------------------------------------


def test_a_whole_store_has_no_findings(path: Path) -> None:
    assert check(path) == []
    assert repair(path) == {}


def test_of_a_bad_base_all_that_decodes_through_it_is_named(path: Path) -> None:
    spoil(path, BLOCKS[0])
    assert errors(check(path, data=False)) == []
    found = by_name(check(path))
    assert found.keys() == {"row-corrupt", "block-corrupt"}
    (row,) = found["row-corrupt"]  # no row of a delta is to blame
    assert f"block {short(BLOCKS[0])}" in row.message
    assert (steps_of(path, [row]), row.paths) == ({0}, ("m/w",))
    messages = {next(iter(steps_of(path, [finding]))): finding for finding in found["block-corrupt"]}
    assert messages.keys() == {0, 1, 2}
    assert messages[0].message.startswith(f"block {short(BLOCKS[0])} is damaged")
    for step in (1, 2):
        assert messages[step].message.startswith(f"block {short(BLOCKS[step])} decodes only through ")
        assert f"block {short(BLOCKS[0])}, which is damaged" in messages[step].message
        assert messages[step].paths == ("m/w",)
    assert errors(check(path, data=False))  # remembered


def test_a_bad_delta_is_named_alone(path: Path) -> None:
    spoil(path, BLOCKS[1], chain=1)
    found = by_name(check(path))
    assert found.keys() == {"row-corrupt", "block-corrupt"}
    for finding in all_errors(found):
        assert short(BLOCKS[1]) in finding.message
        assert short(BLOCKS[0]) not in finding.message
        assert (steps_of(path, [finding]), finding.paths) == ({1}, ("m/w",))
    assert_loads(path, 0, 2)


def test_a_delta_that_is_read_before_its_base_does_not_take_the_blame(path: Path) -> None:
    """A sample may read the one and not the other."""
    bad, delta = spoil(path, BLOCKS[0]), place_of(path, BLOCKS[2], 1)
    with cas.open(path) as store:
        parts = (store._backend, store._catalog, store._log, store._roots, store._blocks)
        checker = Checker(*parts, path / "index" / "fsck")
        save(checker.state, Round(bad=[(delta.pack, delta.row.offset)]))
        found = by_name(checker.check(None, lambda nbytes, total: None))
    (row,) = found["row-corrupt"]
    assert bad.name in row.message
    assert len(found["block-corrupt"]) == 3


def test_a_base_in_no_pack_is_missed_by_all_that_decodes_through_it(path: Path) -> None:
    add_pack(path, Made(weights(3), weights(2), 2))
    with cas.open(path) as store:
        store.commit({"m": {"w": WEIGHTS[3]}}, step=3, branch="side", delta="none")
    lose(path, BLOCKS[0])
    found = by_name(check(path, data=False))
    mine = {
        short(block): one for block in BLOCKS for one in found["block-missing"] if one.message[6:14] == short(block)
    }
    for step in (1, 2, 3):
        text = f"block {short(BLOCKS[step])} decodes only through block {short(BLOCKS[0])}, which is in no pack"
        assert mine[short(BLOCKS[step])].message.startswith(text)
        assert (mine[short(BLOCKS[step])].paths, steps_of(path, [mine[short(BLOCKS[step])]])) == (("m/w",), {step})


def lose(path: Path, block: ObjectId) -> None:
    """Write all else of its pack into another, and remove it."""
    with cas.open(path) as store:
        for place in rows_of(store, block):
            packs = Packs(store._backend, store._catalog)
            for other in store._catalog.index.rows():
                row = other.row
                if other.pack == place.pack and row.id != block:
                    stored = store._backend.read(name_of(other.pack), row.offset, row.stored)
                    packs.append(row.id, Kind(row.kind), row.coding, row.raw, stored)
            packs.finish()
            (path / name_of(place.pack)).unlink()


def test_deltas_that_nothing_needs_may_outlive_their_bases(tmp_path: Path) -> None:
    """A collection deletes a base whose deltas are dead, though their pack stays for what else is in it."""
    path = tmp_path / "s"
    with cas.open(path, create=True) as store:
        store.commit({"w": WEIGHTS[0]}, codec="raw")
        store.commit({"w": WEIGHTS[1], "big": OTHER}, delta="parent")
        store.commit({"big": OTHER})
        store.prune("main", keep_last=1)
        store.gc(grace=0, expire=0)
        assert rows_of(store, BLOCKS[0]) == []
        assert [place.row.chain for place in rows_of(store, BLOCKS[1])] == [1]
        assert [finding.name for finding in store.fsck(data=True)] == ["row-unreferenced"]
        root = store._roots.current().seq
        assert errors(store.fsck(data=True, repair=True)) == []
        assert store._roots.current().seq == root


def test_a_plain_row_stands_in_for_a_delta_without_a_base(path: Path) -> None:
    add_pack(path, Made(weights(1)), Made(weights(2)))
    lose(path, BLOCKS[0])
    found = by_name(check(path))
    assert found.keys() == {"block-missing", "row-duplicate"}
    assert steps_of(path, found["block-missing"]) == {0}
    assert_loads(path, 1, 2)


# -- forged ---------------------------------------------------------------------------------------------------------

SIZE = 4096
OLD = RNG.standard_normal(SIZE // 4).astype(np.float32).tobytes()
A = changed(np.frombuffer(OLD, np.float32), 1).tobytes()
B = changed(np.frombuffer(A, np.float32), 2).tobytes()


@dataclass(frozen=True)
class Delta:
    """A row that says it is a change of `base`, and holds the change from `of`. `fields` replace those of the row."""

    raw: bytes
    base: bytes
    chain: int = 1
    of: bytes = OLD

    def add(self, forge: Forge, **fields: Any) -> ObjectId:
        stored = encoded(Made(self.raw, self.of, 1))[1]
        row = {"codec": Codec.DELTA, "width": 4, "chain": self.chain, "base": self.base}
        return forge.add(Kind.BLOCK, self.raw, stored, **{**row, **fields})


def of_another_kind(forge: Forge) -> None:
    Delta(A, forge.list(block_id(OLD))).add(forge)


def of_a_lists_name(forge: Forge) -> None:
    """Under the base's own name lies another kind of object."""
    forge.add(Kind.TREE, OLD, id=block_id(OLD))
    Delta(A, block_id(OLD)).add(forge)


def of_another_length(forge: Forge) -> None:
    Delta(A, forge.block(OLD[:-4])).add(forge)


def of_another_length_by_its_row(forge: Forge) -> None:
    forge.add(Kind.BLOCK, OLD, OLD[:-4], id=block_id(OLD), raw=SIZE - 4)
    Delta(A, block_id(OLD)).add(forge)


def of_other_bytes(forge: Forge) -> None:
    forge.add(Kind.BLOCK, OLD, B)
    Delta(A, block_id(OLD)).add(forge)


def of_another_base(forge: Forge) -> None:
    Delta(A, forge.block(B)).add(forge)


def of_nothing(forge: Forge) -> None:
    Delta(A, block_id(OLD)).add(forge)


def each_of_the_other(forge: Forge) -> None:
    Delta(A, block_id(B)).add(forge)
    Delta(B, block_id(A)).add(forge)


def each_of_the_other_at_length(forge: Forge) -> None:
    Delta(A, block_id(B), 2).add(forge)
    Delta(B, block_id(A), 1).add(forge)


def of_each_other_all(forge: Forge) -> None:
    """Every chain number of each, of the other: 8 levels, and no end."""
    for chain in range(1, 9):
        Delta(A, block_id(B), chain).add(forge)
        Delta(B, block_id(A), chain).add(forge)


def of_as_long_a_chain(forge: Forge) -> None:
    forge.block(OLD)
    Delta(B, block_id(OLD), 3).add(forge)
    Delta(A, block_id(B), 3, of=B).add(forge)


def of_as_long_a_chain_and_another_base(forge: Forge) -> None:
    """Not even with the base made whole does it decode."""
    forge.block(OLD)
    Delta(B, block_id(OLD), 3).add(forge)
    Delta(A, block_id(B), 3, of=OLD).add(forge)


def of_itself(forge: Forge) -> None:
    Delta(A, block_id(A)).add(forge)


def with_chain(chain: int) -> Callable[[Forge], None]:
    return lambda forge: (forge.block(OLD), Delta(A, block_id(OLD), chain).add(forge), None)[-1]


def planes_with_a_base(forge: Forge) -> None:
    Delta(A, forge.block(OLD)).add(forge, codec=Codec.PLANES)


def raw_with_a_base(forge: Forge) -> None:
    forge.add(Kind.BLOCK, A, chain=1, base=forge.block(OLD))


def of_no_width(forge: Forge) -> None:
    Delta(A, forge.block(OLD)).add(forge, width=3)


def a_list(forge: Forge) -> None:
    """Good rows that lie beside it in the pack are out of reach with it."""
    forge.block(OLD)
    Delta(A, block_id(OLD)).add(forge)
    Delta(A, block_id(OLD)).add(forge, kind=Kind.LIST, id=object_id(Kind.LIST, A))


def with_a_second_row_as_bad(forge: Forge) -> None:
    Delta(A, block_id(OLD)).add(forge)
    forge.add(Kind.BLOCK, A, B)


BASE, OTHER_BLOCK = short(block_id(OLD)), short(block_id(B))
FORGED: dict[Callable[[Forge], None], tuple[str, str]] = {
    of_another_kind: ("block-missing", "in no pack"),
    of_a_lists_name: ("block-missing", BASE),
    of_another_length: ("block-corrupt", "another length"),
    of_another_length_by_its_row: ("block-corrupt", f"{BASE}, which is damaged"),
    of_other_bytes: ("block-corrupt", f"{BASE}, which is damaged"),
    of_another_base: ("block-corrupt", f"{short(block_id(A))} is damaged"),
    of_nothing: ("block-missing", f"{BASE}, which is in no pack"),
    each_of_the_other: ("block-corrupt", OTHER_BLOCK),
    each_of_the_other_at_length: ("block-corrupt", "too long"),
    of_each_other_all: ("block-corrupt", "too long"),
    of_as_long_a_chain: ("block-corrupt", f"{OTHER_BLOCK}, which has another length or a chain of bases"),
    of_as_long_a_chain_and_another_base: ("block-corrupt", f"{OTHER_BLOCK}, which has another length or a chain of"),
    of_itself: ("block-missing", "in no pack that can be read"),
    with_chain(0): ("block-missing", "in no pack that can be read"),
    with_chain(9): ("block-missing", "in no pack that can be read"),
    with_chain(255): ("block-missing", "in no pack that can be read"),
    planes_with_a_base: ("block-missing", "in no pack that can be read"),
    raw_with_a_base: ("block-missing", "in no pack that can be read"),
    of_no_width: ("block-missing", "in no pack that can be read"),
    a_list: ("block-missing", "in no pack that can be read"),
    with_a_second_row_as_bad: ("block-missing", f"{BASE}, which is in no pack"),
}
IMPOSSIBLE = {way for way, (_, text) in FORGED.items() if "can be read" in text}
"""Packs that are refused with all that is in them."""
HEALED = (IMPOSSIBLE - {of_itself}) | {of_as_long_a_chain}
"""What lies there decodes, if what the row says besides is passed over."""


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return Forge(tmp_path / "store")


def publish(forge: Forge, way: Callable[[Forge], None]) -> None:
    """A commit of one tensor whose block is A, as `way` stores it in a pack of its own."""
    way(forge)
    forge.write_pack()
    forge.stored = []
    entry = [Tag.TENSOR, "numpy", "float32", [SIZE // 4], block_id(A), None]
    forge.publish(forge.commit(forge.tree([Tag.DICT, [["w", entry], ["n", 7], ["none", EMPTY]]])))


def test_the_store_that_the_forged_ones_resemble_loads(forge: Forge) -> None:
    publish(forge, with_chain(8))
    with cas.open(forge.path) as store:
        assert store.load("main")["w"].tobytes() == A
        assert store.fsck(data=True) == []


@pytest.mark.parametrize("way", FORGED, ids=lambda way: way.__name__)
def test_a_forged_delta_is_refused_by_name_and_found(forge: Forge, way: Callable[[Forge], None]) -> None:
    publish(forge, way)
    kind, text = FORGED[way]
    with cas.open(forge.path) as store:
        with pytest.raises(NotFound if way in IMPOSSIBLE else Corrupt) as caught:
            store.load("main")
        assert f"block {short(block_id(A))} of w" in str(caught.value)
        assert len(str(caught.value)) < 2000
        assert store.load("main", only="n") == {"n": 7}
        found = by_name(store.fsck(data=True))
        mine = [one for one in found[kind] if f"block {short(block_id(A))}" in one.message]
        assert [text in one.message for one in mine] == [True]
        assert (mine[0].paths, len(mine[0].commits)) == (("w",), 1)
        assert ("pack-corrupt" in found) == (way in IMPOSSIBLE)
        repaired = by_name(store.fsck(data=True, repair=True))
        assert [one.paths for one in repaired.get("lost", [])] == ([] if way in HEALED else [("w",)])
        if way in HEALED:
            assert store.load("main")["w"].tobytes() == A
            assert all_errors(repaired) == []


@pytest.mark.parametrize("way", FORGED, ids=lambda way: way.__name__)
def test_a_forged_base_is_told_by_the_tables_alone(forge: Forge, way: Callable[[Forge], None]) -> None:
    publish(forge, way)
    with cas.open(forge.path) as store:
        found = errors(store.fsck())
    must_be_read = (of_other_bytes, of_another_base, with_a_second_row_as_bad)
    is_seen = way not in must_be_read
    assert [one.paths for one in found if one.paths] == [("w",)] * is_seen


@pytest.mark.parametrize("way", FORGED, ids=lambda way: way.__name__)
def test_a_forged_delta_gives_way_to_a_good_row(forge: Forge, way: Callable[[Forge], None]) -> None:
    forge.block(A)
    forge.write_pack()
    forge.stored = []
    publish(forge, way)
    with cas.open(forge.path) as store:
        assert store.load("main")["w"].tobytes() == A
        assert [one for one in errors(store.fsck(data=True)) if one.severity == "error" and one.paths] == []
        assert errors(store.fsck(data=True, repair=True)) == []
        store.gc(grace=0)
        assert errors(store.fsck(data=True)) == []
        assert store.load("main")["w"].tobytes() == A


# -- repairing ------------------------------------------------------------------------------------------------------


def test_a_bad_base_comes_from_another_store_and_its_deltas_stay(path: Path, clone: Path) -> None:
    bad = spoil(path, BLOCKS[0])
    found = repair(path, clone)
    assert all_errors(found) == []
    assert found["repaired"][0].message.startswith("repaired 1 object of 1 pack")
    assert steps_of(path, found["repaired"]) == {0, 1, 2}
    assert [chains(path, block) for block in BLOCKS[:3]] == [[0], [1], [1]]
    assert_whole(path)
    assert not bad.exists()


def test_a_bad_base_with_another_row_needs_no_other_store(path: Path) -> None:
    add_pack(path, Made(weights(0)))
    bad = next(file for file in path.glob("packs/*/*") if OTHER.tobytes()[:99] in file.read_bytes())
    flip(bad, bad.read_bytes().index(weights(0)[:99]) + 5)
    assert {one.name for one in errors(check(path))} == {"row-corrupt"}
    assert all_errors(repair(path)) == []
    assert [chains(path, block) for block in BLOCKS[:3]] == [[0], [1], [1]]
    assert_whole(path)
    assert not bad.exists()


def test_a_bad_base_that_is_left_as_a_delta_is_made_whole(path: Path) -> None:
    """Through a row with as long a chain as theirs the deltas do not decode, though the base does."""
    spoil(path, BLOCKS[0])
    add_pack(path, Made(weights(3)))
    add_pack(path, Made(weights(0), weights(3), 1))
    found = by_name(check(path))
    assert steps_of(path, found["block-corrupt"]) == {1, 2}  # the base is there
    assert_loads(path, 0)
    assert all_errors(repair(path)) == []
    assert chains(path, BLOCKS[0]) == [0, 1]
    assert_whole(path)


def test_a_bad_delta_has_a_plain_row_in_another_pack(path: Path) -> None:
    add_pack(path, Made(weights(1)))
    bad = spoil(path, BLOCKS[1], chain=1)
    assert {one.name for one in errors(check(path))} == {"row-corrupt"}
    assert all_errors(repair(path)) == []
    assert chains(path, BLOCKS[1]) == [0]
    assert_whole(path)
    assert not bad.exists()


def test_a_base_that_is_nowhere_is_lost_with_its_deltas_and_all_stays(path: Path, clone: Path) -> None:
    spoil(path, BLOCKS[0])
    before, log = packs(path), records(path)
    for _ in range(2):
        found = repair(path)
        assert {one.name for one in all_errors(found)} == {"row-corrupt", "lost"}
        assert steps_of(path, found["lost"]) == {0, 1, 2}
        assert {one.paths for one in found["lost"]} == {("m/w",)}
        told = {one.message.split(" is lost")[0]: one.message for one in found["lost"]}
        assert told.keys() == {f"block {short(block)}" for block in BLOCKS[:3]}
        assert f"nor of block {short(BLOCKS[0])}" in told[f"block {short(BLOCKS[1])}"]
        assert "nor of" not in told[f"block {short(BLOCKS[0])}"]
    assert (packs(path), records(path)) == (before, log)
    with cas.open(path) as store:
        assert same(store.load("main", only="other")["other"], OTHER)
    assert all_errors(repair(path, clone)) == []
    assert_whole(path)


def test_of_a_lost_base_what_another_store_has_is_saved_whole(path: Path, tmp_path: Path) -> None:
    with cas.open(tmp_path / "other", create=True) as other:
        other.commit({"w": WEIGHTS[2]})
    bad = spoil(path, BLOCKS[0])
    found = repair(path, tmp_path / "other")
    assert steps_of(path, found["lost"]) == {0, 1}
    assert (steps_of(path, found["repaired"]), found["repaired"][0].paths) == (set(), ())  # m/w is still touched
    assert bad.exists()
    assert chains(path, BLOCKS[2]) == [0, 1]
    assert_loads(path, 2)


def test_a_base_is_saved_though_nothing_but_deltas_needs_it(path: Path, tmp_path: Path) -> None:
    with cas.open(tmp_path / "other", create=True) as other:
        other.commit({"w": WEIGHTS[0]})
    forget_all_but_the_last(path)
    bad = spoil(path, BLOCKS[0])
    before, log = packs(path), records(path)
    found = repair(path)
    assert {one.name for one in all_errors(found)} == {"row-corrupt", "lost"}
    (lost,) = found["lost"]
    assert (steps_of(path, [lost]), lost.paths) == ({2}, ("m/w",))
    assert (packs(path), records(path)) == (before, log)  # where the base may be stays, though no ref leads there
    assert all_errors(repair(path, tmp_path / "other")) == []
    assert chains(path, BLOCKS[2]) == [1]
    assert_whole(path, 2)
    assert not bad.exists()


def forget_all_but_the_last(path: Path) -> None:
    with cas.open(path) as store:
        store.prune("main", keep_last=1)
        store.gc(grace=0, expire=0)
        assert [place.row.chain for place in rows_of(store, BLOCKS[0])] == [0]


def test_a_delta_of_a_lost_delta_is_lost_with_it(path: Path, clone: Path) -> None:
    add_pack(path, Made(weights(3), weights(2), 2))
    with cas.open(path) as store:
        store.commit({"m": {"w": WEIGHTS[3]}}, step=3, branch="side", delta="none")
    spoil(path, BLOCKS[2], chain=1)
    found = repair(path)
    assert steps_of(path, found["lost"]) == {2, 3}
    assert_loads(path, 0, 1)
    assert all_errors(repair(path, clone)) == []
    assert chains(path, BLOCKS[3]) == [2]
    with cas.open(path) as store:
        assert same(store.load("side")["m"]["w"], WEIGHTS[3])
    assert_whole(path)


@pytest.mark.parametrize("pruned", [False, True])
def test_a_good_base_leaves_a_pack_that_is_given_up(path: Path, clone: Path, pruned: bool) -> None:
    """In the base's pack another row is bad: the deltas elsewhere, that decode through it, go on to."""
    if pruned:
        forget_all_but_the_last(path)
    bad = spoil(path, block_id(OTHER.tobytes()))
    assert bad == file_of(path, BLOCKS[0])
    found = repair(path, clone)
    assert all_errors(found) == []
    assert chains(path, BLOCKS[0]) == [0]
    assert chains(path, BLOCKS[2]) == [1]
    assert file_of(path, BLOCKS[0]) != bad
    steps = (2,) if pruned else ()
    assert_whole(path, *steps)
    assert not bad.exists()


def test_a_delta_leaves_a_pack_that_is_given_up(path: Path) -> None:
    """It is written whole: of what bases there are it need not know."""
    doomed = RNG.random(1000).tobytes()
    lose(path, BLOCKS[2])
    add_pack(path, Made(weights(2), weights(0), 1), Made(doomed))
    bad = spoil(path, block_id(doomed))
    assert bad == file_of(path, BLOCKS[2], 1)
    assert all_errors(repair(path)) == []
    assert chains(path, BLOCKS[2]) == [0]
    assert_whole(path)
    assert not bad.exists()


def test_two_blocks_that_are_each_the_others_base_leave_their_packs(path: Path, clone: Path) -> None:
    """As when the newest is made whole and the older one its change: both plain rows go, and only the changes stay."""
    spoiled = [RNG.random(1000).tobytes() for _ in range(2)]
    with cas.open(path) as store:
        store.commit({"m": {"w": WEIGHTS[3]}}, step=3, branch="side", delta="none", codec="raw")
    lose(path, BLOCKS[0])
    lose(path, BLOCKS[3])
    add_pack(path, Made(weights(0)), Made(spoiled[0]))
    add_pack(path, Made(weights(3)), Made(spoiled[1]))
    add_pack(path, Made(weights(0), weights(3), 1))
    add_pack(path, Made(weights(3), weights(0), 1))
    bad = [spoil(path, block_id(data)) for data in spoiled]
    found = repair(path)
    assert all_errors(found) == []
    assert_whole(path)
    with cas.open(path) as store:
        assert same(store.load("side")["m"]["w"], WEIGHTS[3])
    assert not any(file.exists() for file in bad)


def test_a_base_that_looked_good_is_found_bad_on_its_way_out(path: Path, clone: Path, tmp_path: Path) -> None:
    """Nothing but the one row is known to be bad when the repair begins; then its pack cannot go either."""
    with cas.open(tmp_path / "other", create=True) as source:
        source.commit({"other": OTHER})
    other = block_id(OTHER.tobytes())
    spoil(path, other)
    check(path)
    bad = spoil(path, BLOCKS[0])
    found = repair(path, tmp_path / "other", data=False)
    assert {one.name for one in all_errors(found)} == {"row-corrupt", "lost"}
    assert {one.message[:14] for one in found["lost"]} == {f"block {short(block)}" for block in BLOCKS[:3]}
    assert bad.exists()
    assert all_errors(repair(path, clone, data=False)) == []
    assert_whole(path)


def test_a_delta_is_found_to_lack_its_base_on_its_way_out(path: Path, tmp_path: Path) -> None:
    with cas.open(tmp_path / "other", create=True) as source:
        source.commit({"w": WEIGHTS[0]})
    doomed = RNG.random(1000).tobytes()
    lose(path, BLOCKS[2])
    add_pack(path, Made(weights(2), weights(0), 1), Made(doomed))
    spoil(path, block_id(doomed))
    check(path)
    spoil(path, BLOCKS[0])
    assert all_errors(repair(path, tmp_path / "other", data=False)) == []
    assert_whole(path)


def test_what_stands_in_for_a_row_that_goes_is_read_first(path: Path, clone: Path) -> None:
    """Another row of the base, which nobody has read, is bad: nothing is left to it."""
    spoil(path, block_id(OTHER.tobytes()))
    check(path)
    add_pack(path, Made(weights(0)))
    second = next(
        file
        for file in path.glob("packs/*/*")
        if OTHER.tobytes()[9000:9099] not in file.read_bytes() and weights(0)[:99] in file.read_bytes()
    )
    flip(second, second.read_bytes().index(weights(0)[:99]) + 7)
    assert all_errors(repair(path, clone, data=False)) == []
    assert_whole(path)


FIELDS = {"id": 5, "kind": 32, "codec": 33, "width": 34, "chain": 35, "offset": 36, "stored": 44, "raw": 48, "base": 60}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("which", ["base", "delta"])
def test_rows_of_a_damaged_table_give_deltas_and_their_bases(path: Path, which: str, field: str) -> None:
    """The base, too, lies in the pack whose table is damaged, and nothing else knows of it."""
    forget_all_but_the_last(path)
    lose(path, BLOCKS[0])
    lose(path, BLOCKS[2])
    add_pack(
        path, Made(OTHER[:99].tobytes()), Made(weights(0)), Made(weights(2), weights(0), 1), Made(OTHER[:88].tobytes())
    )
    file = file_of(path, BLOCKS[0])
    number = {"base": 1, "delta": 2}[which]
    flip(file, len(file.read_bytes()) - 112 - (4 - number) * ROW.size + FIELDS[field])
    shutil.rmtree(path / "index")
    found = repair(path)
    if (which, field) in (("base", "id"), ("delta", "raw"), ("delta", "base")):  # what nothing else tells
        assert [one.paths for one in found["lost"]] == [("m/w",)]
        assert file.exists()
        return
    assert all_errors(found) == []
    assert_whole(path, 2)


def test_interrupted_repairs_lose_nothing(path: Path, tmp_path: Path) -> None:
    """At each sync of a file or folder: all that loaded still does, after a collection too, and the next repairs."""
    add_pack(path, Made(OTHER.tobytes()), Made(weights(1)))
    spoil(path, BLOCKS[1], chain=1)
    bad = next(file for file in path.glob("packs/*/*") if weights(0)[:99] in file.read_bytes())
    flip(bad, bad.read_bytes().index(OTHER.tobytes()[:99]))
    for count in range(100):
        trial = Path(shutil.copytree(path, tmp_path / f"trial{count}"))
        is_done = is_repaired(trial, count)
        if not is_done:
            assert_loads(trial, *STATES)
            with cas.open(trial) as store:
                store.gc(grace=0)
            assert_loads(trial, *STATES)
            assert all_errors(repair(trial)) == []
        assert_whole(trial)
        assert not (trial / bad.relative_to(path)).exists()
        shutil.rmtree(trial)
        if is_done:
            assert count > 8, "the repair was not interrupted while it wrote"
            return
    pytest.fail("no repair came to its end")


def is_repaired(path: Path, count: int) -> bool:
    """Repair, with errors at all syncs but the first `count`; whether there were none."""
    fsync, left = os.fsync, count

    def fail(fd: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.EIO, "Input/output error")
        fsync(fd)

    try:
        with cas.open(path) as store:
            os.fsync = fail
            store.fsck(data=True, repair=True)
            return left >= 0
    except (CasError, OSError):
        return False
    finally:
        os.fsync = fsync


# -- anything at all ------------------------------------------------------------------------------------------------

VALUES = [OLD]
for number in range(1, 5):
    VALUES.append(changed(np.frombuffer(VALUES[-1], np.float32), number).tobytes())
NAMES = [block_id(value) for value in VALUES]


class Lain(NamedTuple):
    """How a block lies in one of a few packs; what is not `good` holds something else."""

    pack: int
    block: int
    chain: int
    base: int
    good: bool


@st.composite
def lain(draw: st.DrawFn) -> list[Lain]:
    found = []
    for _ in range(draw(st.integers(1, 12))):
        block = draw(st.integers(0, 4))
        base = (block + draw(st.integers(1, 4))) % 5
        chain = draw(st.sampled_from([0, 0, 1, 1, 2, 3, 8]))
        found.append(
            Lain(draw(st.integers(0, 3)), block, chain, base, draw(st.sampled_from([True, True, True, False])))
        )
    return found


def forge_rows(forge: Forge, rows: list[Lain], live: set[int]) -> None:
    for number in range(4):
        for row in (row for row in rows if row.pack == number):
            value, another = VALUES[row.block], VALUES[row.block - 1]
            if row.chain:
                of = VALUES[row.base] if row.good else VALUES[row.base - 1]
                Delta(value, NAMES[row.base], row.chain, of).add(forge)
            else:
                forge.add(Kind.BLOCK, value, None if row.good else another)
        forge.write_pack()
        forge.stored = []
    entries = [[f"w{n}", [Tag.TENSOR, "numpy", "float32", [SIZE // 4], NAMES[n], None]] for n in sorted(live)]
    forge.publish(forge.commit(forge.tree([Tag.DICT, entries])))


def that_decode(rows: list[Lain]) -> set[int]:
    best: dict[int, int] = {}
    for chain in range(9):
        fresh = {row.block for row in rows if row.good and row.chain == chain and (not chain or row.base in best)}
        best = dict.fromkeys(fresh, chain) | best
    return set(best)


def that_can_be_saved(rows: list[Lain]) -> set[int]:
    """A base that decodes can be made whole, and is one for any chain then."""
    found: set[int] = set()
    while True:
        more = {row.block for row in rows if row.good and (not row.chain or row.base in found)}
        if more <= found:
            return found
        found |= more


@settings(max_examples=30, deadline=None)
@example(  # block 2 needs 0 whole, which needs 1 whole
    rows=[Lain(0, 2, 1, 0, True), Lain(0, 0, 1, 1, True), Lain(1, 1, 8, 3, True), Lain(2, 3, 0, 0, True)],
    live={2},
    data=True,
)
@example(  # when 0 and 4 must leave their packs, that 2 has a row of 3 too, which is nowhere, is no way
    rows=[
        *(Lain(2, 0, 1, 3, False), Lain(2, 2, 8, 3, True), Lain(3, 4, 1, 0, True), Lain(3, 0, 0, 0, False)),
        *(Lain(3, 2, 1, 4, True), Lain(1, 4, 0, 0, False), Lain(1, 0, 0, 0, True), Lain(0, 0, 0, 0, True)),
    ],
    live={0, 1, 2, 3, 4},
    data=True,
)
@given(rows=lain(), live=st.sets(st.integers(0, 4), min_size=1), data=st.booleans())
def test_whatever_is_damaged_all_is_named_and_all_that_can_be_is_saved(
    rows: list[Lain], live: set[int], data: bool
) -> None:
    with quick_folder() as folder:
        forge = Forge(folder / "store")
        forge_rows(forge, rows, live)
        with cas.open(forge.path) as store:
            whole = {n for n in live if is_whole(store, n)}
            assert whole == live & that_decode(rows)
            found = store.fsck(data=True)
            assert paths_of(found) == {f"w{n}" for n in live - whole}
            saved = live & that_can_be_saved(rows)
            repaired = store.fsck(data=data, repair=True)
            assert paths_of(repaired) == {f"w{n}" for n in live - saved}
            with contextlib.suppress(CasError):  # while anything is lost it deletes nothing
                store.gc(grace=0)
            assert {n for n in live if is_whole(store, n)} == saved
            left = errors(store.fsck(data=True))
            if saved == live:  # what can be read only since its base was made whole may be bad
                assert {one.name for one in left} <= {"row-corrupt"}
            assert paths_of(left) == {f"w{n}" for n in live - saved}


def paths_of(findings: list[Finding]) -> set[str]:
    return {path for finding in findings if finding.severity == "error" for path in finding.paths}


def is_whole(store: Store, number: int) -> bool:
    """That it loads; never as anything else."""
    name = f"w{number}"
    try:
        found = store.load("main", only=name)[name]
    except (Corrupt, NotFound) as error:
        assert f"block {short(NAMES[number])} of {name}" in str(error)
        return False
    assert found.tobytes() == VALUES[number]
    return True
