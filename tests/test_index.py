"""The index: a cache that can be lost, shared, forked over and outgrown."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cas
from cas import Corrupt, NotFound, Store
from cas.index import open_index
from cas.pack import _DTYPE, PackId, Table


def rows(path: Path) -> list[Any]:
    with cas.open(path) as store:
        return sorted(store._catalog.index.rows())


def grow(store: Store, count: int = 50) -> None:
    """Some commits, so several packs."""
    for step in range(3):
        store.commit({f"w{i}": np.full(5, i + step * count, np.int64) for i in range(count)}, step=step)


def test_a_deleted_index_is_rebuilt_equal(store: Store) -> None:
    grow(store)
    store.close()
    before = rows(store.path)
    assert len(before) > 150
    shutil.rmtree(store.path / "index")
    assert rows(store.path) == before


def test_an_index_deleted_while_in_use_costs_nothing(store: Store) -> None:
    grow(store)
    shutil.rmtree(store.path / "index")
    with cas.open(store.path) as other:
        other.load()
        other.commit({"a": 1})
    assert store.load() == {"a": 1}
    store.commit({"a": 2})
    store.close()
    with cas.open(store.path) as again:
        assert again.load() == {"a": 2}
        assert again.fsck(data=True) == []


def test_close_leaves_the_flag_and_opening_takes_it(store: Store) -> None:
    flag = store.path / "index" / "clean"
    grow(store)
    assert not flag.exists()
    store.close()
    assert flag.exists()
    with cas.open(store.path) as again:
        again.load()
        assert not flag.exists()
    assert flag.exists()


def test_the_last_of_two_stores_leaves_the_flag(store: Store) -> None:
    grow(store)
    with cas.open(store.path) as other:
        other.load()
        store.close()
        assert not (store.path / "index" / "clean").exists()
        other.commit({"a": 1})
    assert (store.path / "index" / "clean").exists()


@pytest.mark.parametrize("name", ["data.mdb", "clean"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_index_is_built_anew(store: Store, name: str, damage: str) -> None:
    grow(store)
    store.close()
    before, file = rows(store.path), store.path / "index" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"flip": data, "cut": data[:-3], "empty": b""}[damage])
    assert rows(store.path) == before


def test_a_killed_process_leaves_no_flag_and_nothing_to_repair(tmp_path: Path) -> None:
    script = (
        "import sys, time, cas\ns = cas.open(sys.argv[1], create=True)\ns.commit({'a': 1})\n"
        "print('x', flush=True)\ntime.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "x\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "s" / "index" / "clean").exists()
    with cas.open(tmp_path / "s") as store:
        assert store.load() == {"a": 1}
        assert store.fsck(data=True) == []


def test_packs_of_another_process_are_seen(store: Store) -> None:
    store.commit({"a": 1})
    script = "import sys, cas\nwith cas.open(sys.argv[1]) as s: s.load(); s.commit({'a': 2, 'b': 'x' * 100_000})"
    subprocess.run([sys.executable, "-c", script, str(store.path)], check=True)
    assert store.load()["b"] == "x" * 100_000


def test_a_pack_that_appears_without_the_index_is_seen(store: Store, tmp_path: Path) -> None:
    """As from a copy of packs and log that brings no index."""
    store.commit({"a": 1})
    copy = tmp_path / "copy"
    shutil.copytree(store.path, copy, ignore=shutil.ignore_patterns("index"))
    with cas.open(copy) as other:
        other.load()
        other.commit({"a": "x" * 100_000})
    for folder in ("packs", "log"):
        shutil.copytree(copy / folder, store.path / folder, dirs_exist_ok=True)
    assert store.load() == {"a": "x" * 100_000}


def test_rows_of_lost_packs_are_dropped(store: Store) -> None:
    grow(store)
    with cas.open(store.path) as other:
        other.commit({"b": 1}, branch="side")
    before = len(store._catalog.index.packs())
    store.close()
    saved = {file: file.read_bytes() for file in store.path.glob("packs/*/*")}
    victim = next(file for file, data in saved.items() if len(data) < 1500)
    victim.unlink()
    with cas.open(store.path) as again:
        assert len(again._catalog.index.packs()) == before - 1
        assert any(finding.severity == "error" for finding in again.fsck())
    victim.write_bytes(saved[victim])
    with cas.open(store.path) as again:
        assert len(again._catalog.index.packs()) == before
        assert again.fsck(data=True) == []


def test_what_a_lost_pack_held_is_stored_again(store: Store) -> None:
    state = {"w": np.arange(100_000)}
    store.commit(state)
    store.close()
    for file in store.path.glob("packs/*/*"):
        file.unlink()
    with cas.open(store.path) as again:
        with pytest.raises(NotFound, match="in no pack"):
            again.load()
        commit = again.commit(state, branch="side")
        assert commit.stats is not None
        assert commit.stats.new_blocks == commit.stats.blocks
        assert np.array_equal(again.load("side")["w"], state["w"])


def test_a_map_that_is_full_grows(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cas.index._INITIAL_MAP", 64 << 10)
    with cas.open(tmp_path / "small", create=True) as small:
        grow(small, 1000)
        assert small._catalog.index._env.info()["map_size"] > 64 << 10
        assert small.load()["w7"].tolist() == [2007] * 5
        assert small.fsck() == []


def test_a_map_that_another_process_grew_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cas.index._INITIAL_MAP", 64 << 10)
    script = (
        "import sys, cas, cas.index\ncas.index._INITIAL_MAP = 64 << 10\n"
        "with cas.open(sys.argv[1]) as s:\n"
        "    s.load()\n    s.commit({f'{i}': b'%d' % i * 20_000 for i in range(2000)})"
    )
    with cas.open(tmp_path / "s", create=True) as store:
        store.commit({"a": 1})
        subprocess.run([sys.executable, "-c", script, str(store.path)], check=True)
        assert store.load()["1999"] == b"1999" * 20_000
        store.commit({"a": 2})
        assert store.load() == {"a": 2}


def in_child(work: Any) -> int:
    """Exit status of a forked child that does `work`."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_forked_child_reads_and_commits_with_the_parents_store(store: Store) -> None:
    grow(store)

    def work() -> None:
        assert store.load()["w7"].tolist() == [107] * 5
        store.commit({"child": 1})
        store.close()

    assert in_child(work) == 0
    assert store.load() == {"child": 1}
    store.commit({"parent": 1})
    store.close()
    with cas.open(store.path) as again:
        assert again.fsck(data=True) == []


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_child_that_outlives_close_does_not_keep_the_lock(store: Store) -> None:
    """A data loader's worker inherits every descriptor, and with it the lock of the index."""
    store.commit({"a": 1})
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        store.close()
        script = "import sys, cas\nwith cas.open(sys.argv[1]) as s: assert s.load() == {'a': 1}"
        subprocess.run([sys.executable, "-c", script, str(store.path)], check=True, timeout=20)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_while_another_holds_the_write_lock_rows_stay_in_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cas.index._LOCK_DEADLINE", 0.05)
    store.commit({"a": 0})
    with open(store.path / "index" / "write.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = {"w": np.arange(50_000)}
        store.commit(state)
        assert np.array_equal(store.load()["w"], state["w"])
        again = store.commit(state)
        assert again.stats is not None
        assert again.stats.new_blocks == 0
        assert store.resolve(again.id[:12]).id == again.id
    store.close()
    with cas.open(store.path) as reopened:
        assert np.array_equal(reopened.load()["w"], state["w"])
        assert reopened.fsck(data=True) == []


def test_an_index_that_cannot_be_a_folder_is_kept_in_memory(store: Store) -> None:
    store.commit({"a": 1})
    store.close()
    shutil.rmtree(store.path / "index")
    (store.path / "index").write_text("in the way")
    with cas.open(store.path) as again:
        assert again.load() == {"a": 1}
        again.commit({"a": 2})
        assert again.load() == {"a": 2}


def test_a_damaged_block_is_read_from_its_other_pack(store: Store) -> None:
    """Two writers that did not know of each other stored the same block: either copy serves."""
    state = {"w": np.random.default_rng(0).random(10_000)}
    store.commit({"a": 1})
    copy = store.path.parent / "copy"
    shutil.copytree(store.path, copy)
    with cas.open(copy) as other:
        other.commit(state, branch="side", codec="raw")
    store.commit(state, codec="raw")
    store.close()
    before = set(store.path.glob("packs/*/*"))
    shutil.copytree(copy / "packs", store.path / "packs", dirs_exist_ok=True)
    copies = [file for file in store.path.glob("packs/*/*") if file.stat().st_size > 80_000]
    assert len(copies) == 2
    assert len(before & set(copies)) == 1
    for file in copies:
        data = file.read_bytes()
        at = data.index(state["w"][100:110].tobytes())
        file.write_bytes(data[:at] + b"\0" + data[at + 1 :])
        with cas.open(store.path) as again:
            assert np.array_equal(again.load()["w"], state["w"])
            assert [found.name for found in again.fsck(data=True) if found.severity != "info"] == ["row-corrupt"]
        file.write_bytes(data)
    for file in copies:
        data = bytearray(file.read_bytes())
        data[data.index(state["w"][100:110].tobytes())] ^= 1
        file.write_bytes(data)
    with cas.open(store.path) as again, pytest.raises(Corrupt, match=r"block .* of w in commit"):
        again.load()


@given(st.lists(st.sets(st.integers(0, 12), min_size=1), min_size=1, max_size=5), st.sets(st.integers(0, 4)))
def test_rows_of_dropped_packs_go_and_those_of_others_stay(packs: list[set[int]], gone: set[int]) -> None:
    """Also where one object lies in several packs."""
    with tempfile.TemporaryDirectory() as folder:
        index = open_index(Path(folder) / "index")
        for number, held in enumerate(packs):
            rows = np.zeros(len(held), _DTYPE)
            rows["id"] = [bytes([value]) * 32 for value in held]
            index.add(Table(PackId(bytes([number]) * 16), 1, rows))
        index.drop({PackId(bytes([number]) * 16) for number in gone})
        found = {(place.pack[0], place.row.id[0]) for place in index.rows()}
        index.close()
    assert found == {(n, value) for n, held in enumerate(packs) if n not in gone for value in held}
