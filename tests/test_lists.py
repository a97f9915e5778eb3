"""Condemned and absent lists: nothing ever leaves them, they stay few, and a bad one is named."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from faults.stores import commit, errors, quick_folder, same, state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cas
from cas import envelope, lists
from cas.errors import CasError, Corrupt, NotFound
from cas.lists import ListId, What, decode_list, encode_list
from cas.local import LocalBackend
from cas.nodes import pack as msgpack

MISSING = ListId(bytes(range(16)))


@pytest.fixture
def path() -> Iterator[Path]:
    with quick_folder() as folder:
        cas.init(folder / "store", block_size=4096).close()
        yield folder / "store"


@pytest.fixture
def store(path: Path) -> Iterator[cas.Store]:
    with cas.open(path) as opened:
        yield opened


def noise(seed: int, blocks: int = 2) -> dict[str, Any]:
    return {"noise": np.random.default_rng(seed).integers(0, 256, blocks * 4096, np.uint8)}


def drop(store: cas.Store, seed: int) -> None:
    store.load("dropped", default=None)
    store.commit(noise(seed), branch="dropped")
    store.delete_branch("dropped")


def condemned(store: cas.Store) -> set[bytes]:
    root = store._roots.current()
    return {item for _, name in root.condemned for item in lists.read(store._backend, name, What.CONDEMNED)}


def absent(store: cas.Store) -> set[bytes]:
    root = store._roots.current()
    return {item for name in root.absent for item in lists.read(store._backend, name, What.ABSENT)}


def named(store: cas.Store) -> set[str]:
    root = store._roots.current()
    return {name.hex() for _, name in root.condemned} | {name.hex() for name in root.absent}


def present(path: Path) -> set[str]:
    return set(os.listdir(path / "lists"))


# -- over many collections ------------------------------------------------------------------------------------------


def test_condemned_lists_are_never_shortened_and_stay_few(store: cas.Store, path: Path) -> None:
    commit(store, 0)
    before: set[bytes] = set()
    packs: set[str] = set()
    for seed in range(40):
        drop(store, seed)
        packs |= {file.name for file in (path / "packs").rglob("*") if file.is_file()}
        store.gc(grace=0, expire=0)
        now = condemned(store)
        assert before <= now
        assert len(store._roots.current().condemned) <= 2 + math.log2(len(now))
        before = now
    left = {file.name for file in (path / "packs").rglob("*") if file.is_file()}
    assert {bytes.fromhex(name) for name in packs - left} <= before
    assert len(packs - left) == 40
    assert not {bytes.fromhex(name) for name in left} & before
    assert same(store.load("main"), state(0))


def test_epochs_rise_with_every_collection_that_condemns(store: cas.Store) -> None:
    for seed in range(6):
        drop(store, seed)
        epoch = store._roots.current().epoch
        store.gc(grace=0, expire=0)
        root = store._roots.current()
        assert root.epoch == epoch + 1
        assert root.condemned[-1][0] == root.epoch
        store.load("main", default=None)
        store.commit({"seed": seed})
        assert store._roots.current().epoch == root.epoch


def test_files_of_lists_that_were_merged_go_within_two_collections(store: cas.Store, path: Path) -> None:
    for seed in range(12):
        drop(store, seed)
        store.gc(grace=0, expire=0)
        old = present(path) - named(store)
        store.gc(grace=0, expire=0)
        store.gc(grace=0, expire=0)
        assert not old & present(path)
    for _ in range(4):
        store.gc(grace=0, expire=0)
    assert present(path) == named(store)


def test_absent_lists_are_never_shortened_and_stay_few(store: cas.Store, path: Path) -> None:
    before: set[bytes] = set()
    store.set_policy("main", keep_last=1)
    for step in range(40):
        store.commit({"step": step}, step=step)
        now = absent(store)
        assert before <= now
        assert len(now) == step
        assert len(store._roots.current().absent) <= 2 + math.log2(len(now) or 1)
        before = now
    old = present(path) - named(store)
    assert len(old) > 10
    store.gc(grace=0, expire=0)
    store.gc(grace=0, expire=0)
    assert not old & present(path)
    assert errors(store.fsck()) == []
    with pytest.raises(NotFound, match="pruned"):
        store.load("main~39")


def test_a_list_file_that_is_young_stays_within_the_grace(store: cas.Store, path: Path) -> None:
    """Another process may be about to name it."""
    (path / "lists").mkdir(exist_ok=True)
    young = path / "lists" / MISSING.hex()
    young.write_bytes(encode_list(What.ABSENT, set()))
    assert store.gc(grace=3600).deleted == 0
    assert young.exists()
    assert store.gc(grace=0).deleted == 1
    assert not young.exists()


def test_files_that_are_no_lists_are_left_alone(store: cas.Store, path: Path) -> None:
    (path / "lists").mkdir(exist_ok=True)
    for name in ("notes.txt", "ff" * 15, "FF" * 16, "ff" * 17):
        (path / "lists" / name).write_bytes(b"mine")
    (path / "packs" / "notes").mkdir(parents=True)
    (path / "packs" / "notes" / ("ab" * 16)).write_bytes(b"mine")
    drop(store, 1)
    store.gc(grace=0, expire=0)
    assert {"notes.txt", "ff" * 15, "FF" * 16, "ff" * 17} <= present(path)
    assert (path / "packs" / "notes" / ("ab" * 16)).exists()


def test_a_reader_that_holds_an_old_root_finds_the_new_lists(path: Path) -> None:
    """Its record names a list that is gone by the time that it reads it."""
    with cas.open(path) as reader, cas.open(path) as store:
        commit(store, 0)
        drop(store, 1)
        store.gc(grace=0, expire=0)
        for seed in range(2, 5):
            drop(store, seed)
            store.gc(grace=0, expire=0)
        assert same(reader.load("main"), state(0))
    with cas.open(path) as late:
        assert same(late.load("main"), state(0))


def overtake(store: cas.Store, path: Path) -> None:
    """Before `store` reads a list, another collector merges it into its own and deletes it."""
    read, done = store._backend.read, []

    def late(name: str, *args: Any) -> bytes:
        if name.startswith("lists/") and not done:
            done.append(name)
            with cas.open(path) as other:
                for seed in range(50, 53):
                    drop(other, seed)
                    for step in range(2):
                        other.load("short", default=None)
                        other.commit({"step": step, "seed": seed}, branch="short", step=step)
                    other.prune("short", keep_last=1)
                    other.gc(grace=0, expire=0)
        return read(name, *args)

    store._backend.read = late  # type: ignore[method-assign]


def test_a_collector_whose_root_is_stale_begins_again(path: Path) -> None:
    with cas.open(path) as store:
        commit(store, 0)
        drop(store, 1)
        store.gc(grace=0, expire=0)
        drop(store, 2)
        overtake(store, path)
        store.gc(grace=0, expire=0)
        assert same(store.load("main"), state(0))
        assert errors(store.fsck(data=True)) == []


def test_a_prune_whose_root_is_stale_chooses_again(path: Path) -> None:
    with cas.open(path) as store:
        for step in range(3):
            commit(store, step)
        store.prune(keep_last=2)
        assert same(store.load("main"), state(2))  # from now on its absent list is in memory
        overtake(store, path)
        assert len(store.prune(keep_last=1).dropped) == 1
        assert same(store.load("main"), state(2))
        with pytest.raises(NotFound, match="pruned"):
            store.load("main~1")
        assert errors(store.fsck(data=True)) == []


# -- extend ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sets(st.integers(0, 400), min_size=1, max_size=60), max_size=25))
def test_extending_keeps_every_item_in_few_lists(path: Path, parts: list[set[int]]) -> None:
    backend = LocalBackend(path)
    names: tuple[ListId, ...] = ()
    held: set[bytes] = set()
    for part in parts:
        items = {number.to_bytes(16, "little") for number in part}
        held |= items
        names = lists.extend(backend, names, What.CONDEMNED, items)
        read = [lists.read(backend, name, What.CONDEMNED) for name in names]
        assert {item for each in read for item in each} == held
        assert all(len(one) > 2 * len(other) for one, other in pairwise(read))
        assert len(names) <= 1 + math.log2(max(len(read[0]), 1))


def test_a_list_grows_no_larger_than_readers_take(path: Path) -> None:
    """Hundreds of thousands of states were pruned, and then as many again."""
    backend = LocalBackend(path)
    pairs = [number.to_bytes(64, "big") for number in range(600_000)]
    at_once = lists.extend(backend, (), What.ABSENT, pairs)
    assert [item for name in at_once for item in lists.read(backend, name, What.ABSENT)] == pairs
    assert all(len(backend.read(lists.name_of(name))) < 17 << 20 for name in at_once)
    names: tuple[ListId, ...] = ()
    for start in range(0, len(pairs), 200_000):
        names = lists.extend(backend, names, What.ABSENT, pairs[start : start + 200_000])
    read = [lists.read(backend, name, What.ABSENT) for name in names]
    assert sorted(item for each in read for item in each) == pairs


HEAD = "8943415376310d0a0100030000000000" + "00" * 48


def test_pinned_lists() -> None:
    condemned, absent = {b"\x02" * 16, b"\x01" * 16}, {b"\x03" * 64}
    body = "930100c420" + "01" * 16 + "02" * 16
    check = "7f572ac4c2b936ae063555a46ba1b55c538d4c243e75d6f8a15930b8430955eb"
    assert encode_list(What.CONDEMNED, condemned).hex() == HEAD + body + check
    body = "930101c440" + "03" * 64
    check = "7a045b518fb578479eb1ef9984134d4eebfe984656121ff6c4d3bdcb2a0431a8"
    assert encode_list(What.ABSENT, absent).hex() == HEAD + body + check


@given(items=st.sets(st.binary(min_size=16, max_size=16)))
def test_a_list_comes_back_sorted(items: set[bytes]) -> None:
    assert decode_list(encode_list(What.CONDEMNED, items), What.CONDEMNED, "a list") == sorted(items)


# -- damage ---------------------------------------------------------------------------------------------------------


def test_any_flipped_bit_is_found() -> None:
    good = encode_list(What.CONDEMNED, {bytes([n]) * 16 for n in range(3)})
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt, match="lists/x does not match its checksum; restore it"):
            decode_list(bytes(data), What.CONDEMNED, "lists/x")
    for at in range(len(good)):
        with pytest.raises(Corrupt):
            decode_list(good[:at], What.CONDEMNED, "lists/x")


def sealed(body: bytes, kind: envelope.FileKind = envelope.FileKind.LIST) -> bytes:
    data = envelope.header(kind) + body
    return data + blake3(data).digest()


A, B = b"a" * 16, b"b" * 16
HOSTILE = {
    "no msgpack": sealed(b"\xc1"),
    "nothing": sealed(b""),
    "a number": sealed(msgpack(5)),
    "a map": sealed(msgpack({"a": 1})),
    "another version": sealed(msgpack([2, 0, A])),
    "a version that is a bool": sealed(msgpack([True, 0, A])),
    "another kind of list": sealed(msgpack([1, 1, A * 4])),
    "an unknown kind of list": sealed(msgpack([1, 2, A])),
    "four fields": sealed(msgpack([1, 0, A, 0])),
    "text": sealed(msgpack([1, 0, "a" * 16])),
    "a list of ids": sealed(msgpack([1, 0, [A, B]])),
    "a cut id": sealed(msgpack([1, 0, A + b"b" * 15])),
    "out of order": sealed(msgpack([1, 0, B + A])),
    "an id twice": sealed(msgpack([1, 0, A + A])),
    "a pack": sealed(msgpack([1, 0, A]), envelope.FileKind.PACK),
    "more after it": sealed(msgpack([1, 0, A]) + b"\0"),
    "not canonical": sealed(b"\xdc\x00\x03" + msgpack([1, 0, A])[1:]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_list_of_the_right_checksum_and_the_wrong_form_is_refused(name: str) -> None:
    with pytest.raises(CasError, match="lists/x"):
        decode_list(HOSTILE[name], What.CONDEMNED, "lists/x")


def garbage(path: Path) -> list[Path]:
    return sorted(file for file in (path / "packs").rglob("*") if file.is_file())


@pytest.mark.parametrize("harm", ["flip", "empty", "cut", "missing", "swapped"])
@pytest.mark.parametrize("what", [What.CONDEMNED, What.ABSENT], ids=lambda what: what.name)
def test_a_damaged_list_stops_everything_and_deletes_nothing(path: Path, harm: str, what: What) -> None:
    with cas.open(path) as store:
        for step in range(3):
            store.commit(noise(step), step=step)
        store.prune(keep_last=1)
        store.gc(grace=0, expire=0)
        drop(store, 9)
        root = store._roots.current()
        file = path / lists.name_of(root.condemned[-1][1] if what is What.CONDEMNED else root.absent[-1])
        other = path / lists.name_of(root.absent[-1] if what is What.CONDEMNED else root.condemned[-1][1])
    data = bytearray(file.read_bytes())
    file.unlink()
    if harm == "flip":
        data[70] ^= 4
    if harm != "missing":
        file.write_bytes({"flip": data, "empty": b"", "cut": data[:-1], "swapped": other.read_bytes()}.get(harm, b""))
    before = garbage(path)
    for ask in (
        lambda store: store.gc(grace=0, expire=0),
        lambda store: store.load("main"),
        lambda store: store.commit({}, branch="new"),
        lambda store: store.prune(keep_last=1),
    ):
        with pytest.raises(Corrupt, match=f"lists/|{file.name[:8]}") as told, cas.open(path) as store:
            ask(store)
        assert "\n" not in str(told.value)
    assert garbage(path) == before
    with pytest.raises(Corrupt):
        cas.open(path)


@pytest.mark.parametrize("field", ["condemned", "absent"])
def test_a_record_that_names_a_list_that_is_not_there_is_refused(path: Path, field: str) -> None:
    with cas.open(path) as store:
        commit(store, 0)
        root = store._roots.current()
        more = {"condemned": ((1, MISSING),), "epoch": 1} if field == "condemned" else {"absent": (MISSING,)}
        assert store._roots.publish(root.successor("attack", **more))
        with pytest.raises(Corrupt, match=r"a list that log record 3 names is gone: .*; restore it"):
            store.gc(grace=0)
        with pytest.raises(Corrupt):
            store.load("main")
        assert len(garbage(path)) == 1
    with pytest.raises(Corrupt):
        cas.open(path)


def test_what_is_live_in_packs_that_a_record_condemns_is_copied_out(path: Path) -> None:
    """By a collector of an enemy, or one that is wrong."""
    with cas.open(path) as store:
        commit(store, 0)
        (live,) = garbage(path)
        root = store._roots.current()
        names = lists.extend(store._backend, [], What.CONDEMNED, {bytes.fromhex(live.name)})
        assert store._roots.publish(root.successor("attack", epoch=1, condemned=((1, names[0]),)))
    with cas.open(path) as store:
        with pytest.raises(NotFound):
            store.load()
        assert store.gc(grace=0).rescued > 0
        assert live not in garbage(path)
        assert same(store.load(), state(0))


@pytest.mark.parametrize("warm", [True, False], ids=["objects in memory", "nothing in memory"])
def test_what_an_incorrect_writer_leads_to_in_condemned_packs_is_copied_out(path: Path, warm: bool) -> None:
    """It publishes without the closure check while the collector waits for readers."""
    with cas.open(path) as store:
        store.commit(noise(1, 20), branch="lost")
        refs = store._roots.current().refs
        store.delete_branch("lost")
        commit(store, 0)
    old = [(file, os.utime(file, (time.time() - 100,) * 2)) for file in garbage(path)]
    with cas.open(path) as store, cas.open(path) as wrong:
        if warm:
            assert same(store.load("lost@{1}"), noise(1, 20))

        def publish(text: str) -> None:
            if text.startswith("waiting"):
                root = wrong._roots.current()
                assert wrong._roots.publish(root.successor("wrong", refs={**root.refs, **refs}))

        done = store.gc(grace=0.01, expire=0, progress=publish)
        assert done.rescued >= 20
        assert len(garbage(path)) == len(old)
        assert same(wrong.load("lost"), noise(1, 20))
        assert same(store.load("main"), state(0))
        assert errors(store.fsck(data=True)) == []


def test_a_record_whose_own_lists_are_condemned_is_not_followed_into_ruin(path: Path) -> None:
    with cas.open(path) as store:
        commit(store, 0)
        made = lists.extend(store._backend, [], What.CONDEMNED, {A})[0]
        more = lists.extend(store._backend, [], What.CONDEMNED, {bytes(made), B})[0]
        root = store._roots.current()
        assert store._roots.publish(root.successor("attack", epoch=2, condemned=((1, made), (2, more))))
        store.gc(grace=0)
        assert same(store.load("main"), state(0))
    with cas.open(path) as store:
        assert same(store.load("main"), state(0))


def test_absent_pairs_of_things_that_never_were_harm_nobody(path: Path) -> None:
    with cas.open(path) as store:
        name = bytes.fromhex(commit(store, 0))
        pairs = {bytes(32) + bytes(32), bytes(32) + name, name + bytes(32)}
        made = lists.extend(store._backend, [], What.ABSENT, pairs)
        root = store._roots.current()
        assert store._roots.publish(replace(root.successor("odd"), absent=made))
        os.utime(path, (time.time(),) * 2)
        store.gc(grace=0, expire=0)
        assert len(garbage(path)) == 1
        commit_again = store.resolve("main")
        assert commit_again.id == name.hex()
