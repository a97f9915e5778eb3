"""Garbage collection: what goes, what stays, and who may do what meanwhile.

Stores here have blocks of 4 KiB. After every collection what branches, tags and undo lead to reads back bit for bit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import children
from faults.stores import check_whole, commit, errors, files, make, numbers, quick_folder, same, state

import cas
from cas import envelope, pack
from cas.dtypes import DTYPES
from cas.errors import Corrupt, Invalid, NotFound, RefConflict
from cas.gc import Collected
from cas.moving import move
from cas.tensors import Tensor

LIMIT = 60.0
BIG = 1100 * 4096
"""Bytes of a tensor whose blocks make more than one batch, so that the first is looked up before the last is read."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


@pytest.fixture
def path(folder: Path) -> Path:
    cas.init(folder / "store", block_size=4096).close()
    return folder / "store"


@pytest.fixture
def store(path: Path) -> Iterator[cas.Store]:
    with cas.open(path) as opened:
        yield opened


def noise(seed: int, blocks: int = 8) -> dict[str, Any]:
    """A state whose blocks no other seed has."""
    return {"noise": np.random.default_rng(seed).integers(0, 256, blocks * 4096, np.uint8), "seed": seed}


def packs(path: Path) -> list[str]:
    return [name for name in files(path) if name.startswith("packs/")]


def records(store: cas.Store) -> int:
    return len(list(store.roots()))


def drop(store: cas.Store, seed: int, blocks: int = 8) -> None:
    """Garbage: a state that no ref leads to any more."""
    store.load("dropped", default=None)
    store.commit(noise(seed, blocks), branch="dropped")
    store.delete_branch("dropped")


def collect(store: cas.Store, **options: Any) -> Collected:
    """A collection that waits for nothing and holds nothing for undo, unless `options` say so."""
    return store.gc(**{"grace": 0, "expire": 0, **options})


def whole(store: cas.Store) -> bool:
    return errors(store.fsck(data=True)) == []


# -- what goes and what stays ---------------------------------------------------------------------------------------


def test_a_pack_that_nothing_leads_to_goes(store: cas.Store, path: Path) -> None:
    commit(store, 0)
    kept = packs(path)
    drop(store, 1)
    assert len(packs(path)) == len(kept) + 1
    size = sum((path / name).stat().st_size for name in set(packs(path)) - set(kept))
    done = collect(store)
    assert packs(path) == kept
    assert (done.deleted, done.freed, done.packs, done.rewritten) == (1, size, 1, 0)
    assert same(store.load("main"), state(0))
    assert whole(store)


def test_blocks_that_another_branch_needs_stay(store: cas.Store, path: Path) -> None:
    shared = noise(1, 64)
    store.commit(shared, branch="gone")
    assert store.commit({**shared, "own": 1}, branch="stays").stats.new_blocks == 0
    store.delete_branch("gone")
    collect(store)
    assert same(store.load("stays"), {**shared, "own": 1})
    assert whole(store)


def test_a_mostly_dead_pack_is_written_anew_with_what_is_live(store: cas.Store, path: Path) -> None:
    old, part = noise(1, 64), noise(2, 4)
    store.commit({**old, "part": part["noise"]}, branch="gone")
    (first,) = packs(path)
    store.commit(part, branch="stays", codec="zstd")
    store.delete_branch("gone")
    done = collect(store)
    assert (done.rewritten, done.deleted, done.rescued) == (1, 1, 0)
    assert first not in packs(path)
    assert 4 * 4096 <= done.moved < 8 * 4096
    assert same(store.load("stays"), part)
    assert whole(store)
    assert sum((path / name).stat().st_size for name in packs(path)) < 8 * 4096


@pytest.mark.parametrize("codec", ["raw", "zstd", "planes"])
def test_what_is_moved_reads_back_bit_for_bit_whatever_its_codec(store: cas.Store, codec: Any) -> None:
    rng = np.random.default_rng(3)
    part = {
        "smooth": np.cumsum(rng.normal(size=5000)).astype(np.float32),
        "half": rng.normal(size=3000).astype(np.float16),
        "odd": rng.integers(0, 4, 4097, np.uint8),
        "nan": np.array([np.nan, -0.0, np.inf] * 700),
        "text": "long text " * 400,
    }
    store.commit({**part, **noise(1, 64)}, branch="gone", codec=codec)
    store.commit(part, branch="stays", codec=codec)
    store.delete_branch("gone")
    assert collect(store).rewritten == 1
    assert same(store.load("stays"), part)
    assert whole(store)


def test_a_pack_of_which_more_than_half_is_live_is_left_alone(store: cas.Store, path: Path) -> None:
    store.commit({"a": noise(1, 10)["noise"], "b": noise(2, 20)["noise"]}, branch="gone")
    store.commit({"b": noise(2, 20)["noise"]}, branch="stays")
    store.delete_branch("gone")
    before = packs(path)
    done = collect(store)
    assert (done.rewritten, done.deleted) == (0, 0)
    assert packs(path) == before


@pytest.mark.parametrize("number", [1, 5])
def test_a_pack_of_small_live_objects_is_not_rewritten(store: cas.Store, path: Path, number: int) -> None:
    """Its table takes more than its objects do: a copy would be no smaller."""
    for step in range(number):
        store.commit({"a": np.arange(3) + step, "step": step}, step=step)
    before, published = packs(path), records(store)
    done = collect(store)
    assert (done.rewritten, done.deleted, packs(path), records(store)) == (0, 0, before, published)


def test_where_nothing_can_go_no_record_is_written(store: cas.Store, path: Path) -> None:
    for number in range(3):
        commit(store, number)
    published, before = records(store), files(path)
    done = collect(store)
    assert (done.deleted, done.freed, done.moved) == (0, 0, 0)
    assert records(store) == published
    assert [name for name in files(path) if not name.startswith("index/")] == [
        name for name in before if not name.startswith("index/")
    ]


def test_an_empty_store_can_be_collected(store: cas.Store) -> None:
    done = store.gc()
    assert (done.packs, done.deleted) == (0, 0)
    assert records(store) == 1


def test_collections_in_a_row_come_to_rest(store: cas.Store, path: Path) -> None:
    """Lists that were merged into others are condemned too, and with them it ends."""
    commit(store, 0)
    for seed in range(5):
        drop(store, seed)
        assert collect(store).freed > 8 * 4096
    for _ in range(4):
        collect(store)
    published = records(store)
    assert collect(store).deleted == 0
    assert records(store) == published
    assert same(store.load("main"), state(0))


def test_a_dry_run_says_what_goes_and_changes_nothing(store: cas.Store, path: Path) -> None:
    commit(store, 0)
    drop(store, 1)
    before = {name: (path / name).stat().st_mtime_ns for name in files(path) if not name.startswith("index/")}
    said = collect(store, dry_run=True)
    after = {name: (path / name).stat().st_mtime_ns for name in files(path) if not name.startswith("index/")}
    assert after == before
    assert said.dry_run
    done = collect(store)
    assert (said.deleted, said.freed, said.packs, said.size) == (done.deleted, done.freed, done.packs, done.size)
    assert done.freed > 8 * 4096


def test_tags_keep(store: cas.Store) -> None:
    store.commit(noise(1), branch="work")
    store.tag("best", "work")
    store.delete_branch("work")
    collect(store)
    assert same(store.load("best"), noise(1))
    store.delete_tag("best")
    assert collect(store).freed > 8 * 4096


def test_ancestors_side_files_and_origins_stay(store: cas.Store, folder: Path) -> None:
    (folder / "config.yaml").write_bytes(b"lr: 1\n" * 2000)
    store.commit(noise(1), files={"config.yaml": folder / "config.yaml"}, step=1)
    store.commit(noise(2), step=2)
    drop(store, 3)
    collect(store)
    assert same(store.load("main~1"), noise(1))
    assert store.files("main~1") == {"config.yaml": b"lr: 1\n" * 2000}
    assert whole(store)


def test_a_closed_store_is_not_collected(path: Path) -> None:
    store = cas.open(path)
    store.close()
    with pytest.raises(Invalid, match="was closed"):
        store.gc()


# -- grace ----------------------------------------------------------------------------------------------------------


def test_young_packs_stay_within_the_grace(store: cas.Store, path: Path) -> None:
    drop(store, 1)
    done = store.gc(grace=3600, expire=0)
    assert (done.young, done.deleted) == (1, 0)
    assert done.young_size > 8 * 4096
    assert len(packs(path)) == 1
    assert store.gc(grace=0, expire=0).deleted == 1
    assert packs(path) == []


def test_readers_are_waited_for(store: cas.Store, path: Path) -> None:
    drop(store, 1)
    for name in packs(path):
        os.utime(path / name, (time.time() - 100,) * 2)
    seen: list[tuple[str, bool]] = []
    before = time.monotonic()
    done = store.gc(grace=0.5, expire=0, progress=lambda text: seen.append((text.split()[0], bool(packs(path)))))
    assert time.monotonic() - before >= 0.5
    assert done.deleted == 1
    assert ("waiting", True) in seen
    assert seen[-1] == ("deleting", True)


NO_TIMES: list[Any] = [-1, -1e-9, float("nan"), float("inf"), 1e300, "600", None]


@pytest.mark.parametrize("name", ["grace", "expire"])
@pytest.mark.parametrize("value", NO_TIMES, ids=map(repr, NO_TIMES))
def test_a_time_that_is_none_is_refused_before_anything_is_done(store: cas.Store, name: str, value: Any) -> None:
    if name == "expire" and value in (float("inf"), 1e300):
        return  # for ever is a window like any other
    drop(store, 1)
    published = records(store)
    with pytest.raises(Invalid, match=name):
        collect(store, **{name: value})
    assert records(store) == published


# -- beside writers -------------------------------------------------------------------------------------------------


class Held:
    """A tensor's bytes that are only given out once `gate` is open. See `cas.tensors.Source`."""

    device = None

    def __init__(self, data: np.ndarray[Any, Any]) -> None:
        self.nbytes = data.nbytes
        self.reached, self.gate = threading.Event(), threading.Event()
        self._data = data.view(np.uint8)

    def read_into(self, start: int, out: np.ndarray[Any, Any]) -> None:
        self.reached.set()
        assert self.gate.wait(LIMIT)
        out[:] = self._data[start : start + len(out)]


class Slow:
    """A commit in a thread that has looked up every block of `first` and stands before its last tensor."""

    def __init__(self, store: cas.Store, first: dict[str, Any], branch: str) -> None:
        self._last = np.arange(2048, dtype=np.uint8)
        self._held = Held(self._last)
        self._found = threading.Event()
        tensor = Tensor.whole("numpy", DTYPES["uint8"], (2048,), self._held, None)
        self.wanted = {**first, "last": self._last}
        self._thread = threading.Thread(target=self._run, args=(store, {**first, "last": tensor}, branch))
        self._thread.start()
        assert self._held.reached.wait(LIMIT)
        assert self._found.wait(LIMIT)

    def _run(self, store: cas.Store, value: dict[str, Any], branch: str) -> None:
        self.made = store.commit(value, branch=branch, progress=lambda nbytes: self._found.set())

    def go_on(self) -> cas.Commit:
        self._held.gate.set()
        self._thread.join(LIMIT)
        return self.made


@pytest.mark.parametrize("own", [True, False], ids=["a Store of its own", "the collector's Store"])
def test_a_writer_that_leant_on_what_was_collected_meanwhile_stores_it_again(path: Path, own: bool) -> None:
    with contextlib.ExitStack() as stack:
        collector = stack.enter_context(cas.open(path))
        writer = stack.enter_context(cas.open(path)) if own else collector
        shared = noise(1, BIG // 4096)
        assert collector.commit(shared, branch="gone").stats.new_blocks == 1100
        collector.delete_branch("gone")
        slow = Slow(writer, shared, "new")
        assert collect(collector).freed > BIG
        made = slow.go_on()
        assert made.stats is not None
        assert made.stats.new_blocks == 1024  # all but those of the last batch, which the first attempt stored
        assert same(writer.load("new"), slow.wanted)
        assert whole(collector)
    assert collect_in_a_child(path) == 0
    with cas.open(path) as store:
        assert same(store.load("new"), slow.wanted)


def collect_in_a_child(path: Path) -> int:
    def work() -> int:
        with cas.open(path) as store:
            collect(store)
            return store.gc(grace=0, expire=0).deleted

    return int(children.run(work))


def test_a_writer_whose_own_new_pack_was_condemned_writes_it_again(path: Path) -> None:
    """Without a grace a pack that is being published is garbage to the collector, and the fence must hold."""
    with cas.open(path) as store, cas.open(path) as other:
        advance, done = other._branches.advance, []

        def collect_before(*args: Any) -> Any:
            if not done:
                done.append(collect(store))
            return advance(*args)

        other._branches.advance = collect_before  # type: ignore[method-assign]
        made = other.commit(noise(1, 40), branch="new")
        assert done[0].freed > 40 * 4096
        assert same(other.load("new"), noise(1, 40))
        assert store.resolve("new").id == made.id
        assert whole(store)


def test_a_background_commit_across_a_collection_is_whole(path: Path) -> None:
    with cas.open(path) as collector, cas.open(path) as writer:
        shared = noise(1, 600)
        collector.commit(shared, branch="gone")
        collector.delete_branch("gone")
        value = {**shared, "n": 1}
        pending = [writer.commit_async(value, branch="new")]
        value["noise"] = np.zeros(4)  # staged: what is changed now must not be seen, not even by a second attempt
        done = collect(collector)
        pending[0].wait()
        assert done.deleted <= 3
        assert same(writer.load("new"), {**shared, "n": 1})
        collect(collector)
        assert same(writer.load("new"), {**shared, "n": 1})
        assert whole(collector)


def test_a_tree_that_is_found_again_but_lies_in_a_condemned_pack_is_stored_again(path: Path) -> None:
    """The very same state: all its objects are remembered by the writer, and none may be leant on."""
    with cas.open(path) as writer, cas.open(path) as collector:
        writer.commit(noise(1), branch="gone")
        assert same(writer.load("gone"), noise(1))
        collector.delete_branch("gone")
        collect(collector)
        made = writer.commit(noise(1), branch="new")
        assert made.stats.new_blocks == 8
        assert same(collector.load("new"), noise(1))
        assert whole(collector)


def test_rows_of_condemned_packs_that_another_process_puts_back_are_not_leant_on(path: Path) -> None:
    with cas.open(path) as store:
        store.commit(noise(1), branch="gone")
        (name,) = packs(path)
        pack_id = pack.id_of(name)
        assert pack_id is not None
        table = pack.read_table(store._backend, pack_id)
        store.delete_branch("gone")
        collect(store)

        def put_back() -> None:
            with cas.open(path) as other:
                other._catalog.index.add(table)

        children.run(put_back)
        assert pack_id in store._catalog.index.packs()
        assert store.commit(noise(1), branch="new").stats.new_blocks == 8
        assert same(store.load("new"), noise(1))
        assert whole(store)


def test_a_commit_that_lands_while_packs_are_listed_again_is_not_taken_for_lost(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the second marking, after its pack could have been listed and before the root is read."""
    with cas.open(path) as store, cas.open(path) as writer:
        drop(store, 1)
        for name in packs(path):
            os.utime(path / name, (time.time() - 100,) * 2)
        current, waited, made = store._roots.current, threading.Event(), []

        def commit_before() -> Any:
            if waited.is_set() and not made:
                made.append(writer.commit(noise(2)))
            return current()

        store._roots.current = commit_before  # type: ignore[method-assign]
        done = store.gc(grace=0.01, expire=0, progress=lambda text: waited.set() if text.startswith("wait") else None)
        assert len(made) == 1
        assert (done.deleted, done.rescued) == (1, 0)
        assert caplog.text == ""
        assert same(store.load("main"), noise(2))
        assert whole(store)


def test_a_reader_with_a_view_from_before_finds_what_was_moved(path: Path) -> None:
    with cas.open(path) as reader, cas.open(path) as collector:
        part = noise(2, 4)
        collector.commit({**noise(1, 64), "part": part["noise"]}, branch="gone")
        collector.commit(part, branch="stays")
        view = reader.view("stays")
        leaves = reader.leaves("stays")
        collector.delete_branch("gone")
        assert collect(collector).rewritten == 1
        assert view["noise"].load().tobytes() == part["noise"].tobytes()
        assert len(list(leaves)) == 2
        assert same(reader.load("stays"), part)


def test_a_fork_inherits_no_view_of_the_index(path: Path) -> None:
    with cas.open(path) as store:
        store.commit(noise(1), branch="gone")
        store.delete_branch("gone")
        gate = children.Gate()

        def child() -> int:
            gate.wait()
            made = store.commit(noise(1), branch="new")
            assert same(store.load("new"), noise(1))
            assert made.stats is not None
            return made.stats.new_blocks

        started = children.start(child)
        with children.killed_at_the_end([started]):
            gate.wait_for(started)
            collect(store)
            gate.open()
            assert started.result() == 8
        assert same(store.load("new"), noise(1))
        assert whole(store)


def test_collectors_and_writers_in_threads_lose_nothing(path: Path) -> None:
    """Four writers that make and drop branches of the same few blocks, and two collectors without any grace."""
    stop, failures = threading.Event(), []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)
                stop.set()

        return run

    def write(number: int) -> None:
        with cas.open(path) as store:
            for turn in range(12):
                name, seed = f"b{number}-{turn % 2}", (number + turn) % 3
                store.load(name, default=None)
                store.commit({**noise(seed, 16), "turn": turn}, branch=name)
                assert same(store.load(name), {**noise(seed, 16), "turn": turn})
                if turn % 2 and turn < 11:
                    store.delete_branch(name)

    def keep_collecting() -> None:
        with cas.open(path) as store:
            while not stop.is_set():
                collect(store)
                time.sleep(0.02)

    writers = [threading.Thread(target=guarded(lambda n=n: write(n))) for n in range(4)]  # type: ignore[misc]
    collectors = [threading.Thread(target=guarded(keep_collecting)) for _ in range(2)]
    for thread in writers + collectors:
        thread.start()
    for thread in writers:
        thread.join(LIMIT)
    stop.set()
    for thread in collectors:
        thread.join(LIMIT)
    assert failures == []
    with cas.open(path) as store:
        for number in range(4):
            for turn in (10, 11):
                assert same(store.load(f"b{number}-{turn % 2}"), {**noise((number + turn) % 3, 16), "turn": turn})
        assert whole(store)
        assert collect(store).rescued == 0
        for _ in range(4):
            collect(store)
        assert collect(store).deleted == 0


# -- collectors that die --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["marking", "copying", "waiting", "deleting 1 ", "deleting 2 "])
def test_a_killed_collection_is_taken_up_by_the_next(folder: Path, moment: str) -> None:
    path = folder / "store"
    make(path, commits=1)
    with cas.open(path) as store:
        store.commit({**noise(1, 64), "part": noise(2, 4)["noise"]}, branch="gone")
        store.commit(noise(2, 4), branch="stays")
        store.delete_branch("gone")
        drop(store, 3)
    for name in packs(path):
        os.utime(path / name, (time.time() - 100,) * 2)

    def die(text: str) -> None:
        if text.startswith(moment):
            os.kill(os.getpid(), signal.SIGKILL)

    def collector() -> None:
        with cas.open(path) as store:
            store.gc(grace=0.01, expire=0, progress=die)

    with pytest.raises(children.ChildDied):
        children.run(collector)
    with cas.open(path) as store:
        assert same(store.load("stays"), noise(2, 4))
        published = records(store)
        condemned = moment in ("waiting", "deleting 1 ", "deleting 2 ")
        done = collect(store)
        assert records(store) - published == (0 if condemned else 1)
        assert done.deleted >= 1
        assert store.gc(grace=0, expire=0).deleted == 0
        assert len(packs(path)) == 3
        assert same(store.load("stays"), noise(2, 4))
        assert whole(store)
    assert check_whole(path) == [0]


def test_two_collectors_at_once_both_succeed(path: Path) -> None:
    with cas.open(path) as store:
        commit(store, 0)
        for seed in range(6):
            drop(store, seed)
        results: list[Collected] = []

        def run() -> None:
            with cas.open(path) as own:
                results.append(collect(own))

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert len(results) == 3
        assert len(packs(path)) == 1
        assert same(store.load("main"), state(0))
        assert whole(store)


def test_a_collection_that_another_overtakes_in_the_middle_of_its_copy_begins_again(path: Path) -> None:
    """The mostly dead pack that it reads is copied, condemned and deleted by the other."""
    with cas.open(path) as store, cas.open(path) as other:
        store.commit({**noise(1, 64), "part": noise(2, 4)["noise"]}, branch="gone")
        store.commit(noise(2, 4), branch="stays")
        store.delete_branch("gone")
        done: list[Collected] = []

        def overtake(text: str) -> None:
            if text.startswith("copying") and not done:
                done.append(collect(other))

        collect(store, progress=overtake)
        assert done[0].rewritten == 1
        assert same(store.load("stays"), noise(2, 4))
        assert whole(store)
        for _ in range(3):
            collect(store)
        assert len(packs(path)) == 2


@pytest.mark.parametrize("late", ["when it plans", "when it looks again"])
def test_what_another_collection_of_this_store_gives_up_meanwhile_is_not_taken_for_lost(
    store: cas.Store, path: Path, caplog: pytest.LogCaptureFixture, late: str
) -> None:
    """One thread holds a root of which undo leads to more than the newest root does; the other condemns that."""
    commit(store, 0)
    drop(store, 1)
    store.gc(grace=0, expire=0)  # the floor: the two that follow are within undo's reach
    drop(store, 2)
    commit(store, 1)
    (path / "lists" / ("ab" * 16)).write_bytes(b"no list")  # something to give up
    for name in (*packs(path), "lists/" + "ab" * 16):
        os.utime(path / name, (time.time() - 100,) * 2)
    current, ready, done = store._roots.current, [late == "when it plans"], []

    def overtaken() -> Any:
        root = current()
        if ready[0] and not done:
            done.append(None)
            done[0] = collect(store)
        return root

    store._roots.current = overtaken  # type: ignore[method-assign]
    made = store.gc(grace=0.01, progress=lambda text: ready.__setitem__(0, ready[0] or text.startswith("waiting")))
    assert done[0].freed > 8 * 4096
    assert made.rescued == 0
    assert caplog.text == ""
    assert same(store.load("main"), state(1))
    assert whole(store)


# -- damage ---------------------------------------------------------------------------------------------------------


def damage(file: Path, at: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.unlink()
    file.write_bytes(data)


def test_a_live_pack_that_is_missing_stops_the_collection_with_nothing_deleted(folder: Path) -> None:
    path = folder / "store"
    make(path, commits=2)
    (live, *_) = packs(path)
    with cas.open(path) as store:
        drop(store, 1)
        (path / live).rename(folder / "aside")
        before = packs(path)
        with pytest.raises((Corrupt, NotFound), match=r"fsck|restore"):
            collect(store)
        assert packs(path) == before
        (path / live).parent.mkdir(exist_ok=True)
        (folder / "aside").rename(path / live)
        assert collect(store).deleted == 1
        assert whole(store)


def test_a_missing_block_stops_the_collection_even_if_what_names_it_is_remembered(path: Path, folder: Path) -> None:
    with cas.open(path) as store:
        store.commit(noise(1), branch="blocks")
        (blocks,) = packs(path)
        store.commit({**noise(1), "more": 1})
        drop(store, 2)
        store.gc(grace=3600)
        (path / blocks).unlink()
        before = packs(path)
        with pytest.raises(Corrupt, match=r"and 1?\d more objects are in no pack.*nothing was deleted; run `cas fsck`"):
            collect(store)
        assert packs(path) == before


def test_a_dead_pack_whose_table_cannot_be_read_harms_nobody(store: cas.Store, path: Path) -> None:
    commit(store, 0)
    (live,) = packs(path)
    drop(store, 1)
    (bad,) = set(packs(path)) - {live}
    drop(store, 2)
    damage(path / bad)
    collect(store)
    assert set(packs(path)) == {live, bad}
    assert same(store.load("main"), state(0))


def test_a_live_pack_whose_table_cannot_be_read_stops_the_collection(path: Path) -> None:
    with cas.open(path) as store:
        commit(store, 0)
        (live,) = packs(path)
        drop(store, 1)
    damage(path / live)
    before = packs(path)
    with cas.open(path) as store:
        with pytest.raises((Corrupt, NotFound)):
            collect(store)
        assert packs(path) == before


def test_a_live_block_that_is_damaged_is_not_moved(store: cas.Store, path: Path) -> None:
    """Its pack stays as it is, for whatever can be saved from it."""
    store.commit({**noise(1, 64), "part": noise(2, 4)["noise"]}, branch="gone")
    (first,) = packs(path)
    store.commit(noise(2, 4), branch="stays")
    store.delete_branch("gone")
    at = (path / first).read_bytes().find(noise(2, 4)["noise"][:64].tobytes())
    damage(path / first, at + 5)
    before = packs(path)
    with pytest.raises(Corrupt, match="does not match its name; run `cas fsck --repair`"):
        collect(store)
    assert packs(path) == before


@pytest.mark.parametrize("bit", [0, 100, 5000, -1])
def test_a_damaged_memory_of_what_objects_name_is_ignored(store: cas.Store, path: Path, bit: int) -> None:
    store.commit(noise(1, 40), step=1)
    collect(store)
    needs = path / "index" / "needs"
    data = bytearray(needs.read_bytes())
    data[bit % len(data)] ^= 1
    needs.write_bytes(data)
    drop(store, 2)
    assert collect(store).deleted == 1
    assert same(store.load("main"), noise(1, 40))
    assert needs.read_bytes() != bytes(data)


def test_an_index_that_was_lost_costs_nothing(path: Path) -> None:
    with cas.open(path) as store:
        commit(store, 0)
        drop(store, 1)
    shutil.rmtree(path / "index")
    with cas.open(path) as store:
        assert collect(store).deleted == 1
    assert check_whole(path) == [0]


def test_a_copy_of_a_store_is_collected_on_its_own(path: Path, folder: Path) -> None:
    with cas.open(path) as store:
        commit(store, 0)
        drop(store, 1)
        shutil.copytree(path, folder / "copy")
        with cas.open(folder / "copy") as copy:
            assert collect(copy).deleted == 1
            assert same(copy.load("main"), state(0))
        assert len(packs(path)) == 2
    assert check_whole(folder / "copy") == [0]


def test_one_file_that_cannot_be_deleted_does_not_keep_the_others(
    store: cas.Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store, 0)
    kept = packs(path)
    for seed in range(4):
        drop(store, seed)
    stuck = sorted(set(packs(path)) - set(kept))[0]
    unlink = os.unlink

    def refuse(file: Any, **options: Any) -> None:
        if str(file).endswith(stuck):
            raise PermissionError(errno.EPERM, "Operation not permitted", str(file))
        unlink(file, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises((cas.CasError, OSError), match=stuck):
            collect(store)
    assert set(packs(path)) == {*kept, stuck}
    assert collect(store).deleted >= 1
    assert packs(path) == kept
    assert same(store.load("main"), state(0))


def test_empty_folders_that_are_removed_beneath_an_open_store_are_made_again(store: cas.Store, path: Path) -> None:
    for number in range(40):
        store.commit({"n": number}, branch="gone")
    store.delete_branch("gone")
    collect(store)
    for folder in (path / "packs").iterdir():
        with contextlib.suppress(OSError):
            folder.rmdir()
    assert list((path / "packs").iterdir()) == []
    for number in range(40):
        store.load("main", default=None)
        commit(store, number)
    assert len(packs(path)) == 40
    assert whole(store)


# -- leftovers ------------------------------------------------------------------------------------------------------


def test_leftovers_of_crashed_writers_are_swept_and_what_is_being_written_stays(store: cas.Store, path: Path) -> None:
    commit(store, 0)
    left, young, held = (path / "tmp" / (name * 16) for name in ("a1", "b2", "c3"))
    for file in (left, young, held):
        file.write_bytes(b"half a pack")
    for file in (left, held):
        os.utime(file, (time.time() - 1000,) * 2)
    with held.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        store.gc(grace=900)
        assert sorted((path / "tmp").iterdir()) == [young, held]
        store.gc(grace=0)
        assert sorted((path / "tmp").iterdir()) == [held]
    store.gc(grace=0)
    assert sorted((path / "tmp").iterdir()) == []


# -- full disks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], check=False).returncode:
        pytest.skip("NOT COVERED: a file system that is really full; needs root and mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "ballast").open("ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    assert os.statvfs(disk).f_bavail == 0


def prepare(disk: Path) -> None:
    with cas.init(disk / "store", block_size=4096) as store:
        store.commit(noise(1, 200), step=1)
        store.commit(noise(2, 4), step=2)
        store.commit(noise(3, 200), branch="gone")
    fill(disk)


def test_space_is_freed_on_a_disk_without_any(disk: Path) -> None:
    prepare(disk)
    children.run(free_by_deleting, disk / "store")
    assert (disk / "store" / "reserve").stat().st_size == 1 << 20
    (disk / "ballast").unlink()


def free_by_deleting(path: Path) -> None:
    with cas.open(path) as store:
        with pytest.raises(cas.CasError, match="No space left"):
            store.commit(noise(9, 50), branch="other")
        fill(path.parent)
        store.delete_branch("gone")
        assert not (path / "reserve").exists()
        done = collect(store)
        assert done.freed > 200 * 4096
        assert os.statvfs(path).f_bavail * 4096 < done.freed + (1 << 20)
        assert (path / "reserve").exists()
        assert same(store.load("main"), noise(2, 4))
        assert whole(store)
        store.gc(grace=0, expire=0)


def test_pruning_and_collecting_work_on_a_disk_without_space(disk: Path) -> None:
    prepare(disk)
    children.run(free_by_pruning, disk / "store")
    (disk / "ballast").unlink()


def free_by_pruning(path: Path) -> None:
    with cas.open(path) as store:
        fill(path.parent)
        done = store.prune(keep_last=1)
        assert len(done.dropped) == 1
        assert not (path / "reserve").exists()
        assert collect(store).freed > 200 * 4096
        assert (path / "reserve").exists()
        store.load("main")
        store.commit(noise(4, 4), step=3)
        assert numbers(store) == [1, 2, 3]
        assert same(store.load("main"), noise(4, 4))
        assert whole(store)


def test_a_mostly_dead_pack_stays_where_its_copy_has_no_room(disk: Path) -> None:
    with cas.init(disk / "store", block_size=4096) as store:
        store.commit({**noise(1, 700), "part": noise(2, 300)["noise"]}, branch="gone")
        store.commit(noise(2, 300))
        store.delete_branch("gone")
    fill(disk)
    children.run(collect_without_room, disk / "store")
    (disk / "ballast").unlink()
    children.run(collect_with_room, disk / "store")


def collect_without_room(path: Path) -> None:
    with cas.open(path) as store:
        before = packs(path)
        done = collect(store)
        assert (done.rewritten, done.deleted) == (0, 0)
        assert packs(path) == before
        assert files(path / "tmp") == []
        assert same(store.load("main"), noise(2, 300))


def collect_with_room(path: Path) -> None:
    with cas.open(path) as store:
        assert collect(store).rewritten == 1
        assert same(store.load("main"), noise(2, 300))
        assert whole(store)


# -- places ---------------------------------------------------------------------------------------------------------


def test_a_collection_from_inside_of_a_commit_works(store: cas.Store) -> None:
    """A source of bytes, or `progress`, may call anything."""
    drop(store, 1)
    done: list[Collected] = []

    def now(nbytes: int) -> None:
        if not done:
            done.append(collect(store))

    store.commit(noise(1), progress=now)
    assert done[0].deleted == 1
    assert same(store.load("main"), noise(1))
    assert whole(store)


def test_branches_by_the_hundred(store: cas.Store) -> None:
    for number in range(150):
        store.commit({"n": number, **noise(number % 5, 2)}, branch=f"b/{number}")
    for number in range(0, 150, 2):
        store.delete_branch(f"b/{number}")
    collect(store)
    for number in range(1, 150, 2):
        assert same(store.load(f"b/{number}"), {"n": number, **noise(number % 5, 2)})
    with pytest.raises(RefConflict):
        store.commit({}, branch="b/1", parent="b/3")
    assert whole(store)


def test_the_last_good_copy_stays_while_the_one_that_was_to_stay_is_bad(folder: Path) -> None:
    """Both copies are whole packs of the same objects; whichever is damaged, a collection may not delete the other."""
    for damaged in (0, 1):
        path = folder / f"store{damaged}"
        with cas.init(path, block_size=4096) as store:
            commit(store, 0)
        with cas.open(path) as store:
            places = store._catalog.index.rows()
            move(places, store._backend, store._catalog, 1)
            first, second = packs(path)
            damage(path / (first, second)[damaged], at=envelope.SIZE + 10)
        with cas.open(path) as store:
            store.gc(grace=0, expire=0)
            store.gc(grace=0, expire=0)
            assert (second, first)[damaged] in packs(path)
            assert same(store.load("main"), state(0))


def test_what_is_held_for_undo_leaves_out_what_a_tag_holds(store: cas.Store) -> None:
    """Also where all blocks of what the tag names stand in one list, in the order of the tensor."""
    blocks = np.random.default_rng(0).integers(0, 255, 100 * 4096, dtype=np.uint8)
    store.commit({"kept": blocks}, branch="gone", codec="raw")
    store.tag("v1", "gone")
    store.commit({"gone": noise(1, 10)}, branch="gone", codec="raw")
    store.delete_branch("gone")
    assert 0 < store.gc(grace=0, dry_run=True).undo < 50 * 4096
