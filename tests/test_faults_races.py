"""Many processes and threads on one store: racing, stopped at bad moments, forked, and left behind by a new store."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import children
from faults.stores import BLOCK_SIZE, check_whole, commit, errors, make, numbers, quick_folder, same, state

import cas
from cas import CasError, NotFound, RefConflict, committing
from cas.branches import Branches
from cas.catalog import Catalog
from cas.index import Index
from cas.log import Log

RACERS = 8
LIMIT = 40.0
"""Seconds after which a child that waits for others gives up."""
MOVED = re.compile(
    r"branch main (was at [0-9a-f]+|did not exist) and is at [0-9a-f]+: another writer moved it; load it .*"
)
NEVER_LOADED = re.compile(
    r"branch main holds 1 commit \(last step \d\); load it to resume, name another branch, or pass parent=\"main\""
)
fork = multiprocessing.get_context("fork")


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


def together(works: list[Callable[[], Any]]) -> list[Any]:
    """What the works return, each in a process of its own."""
    begun = [children.start(work) for work in works]
    with children.killed_at_the_end(begun):
        return [child.result(LIMIT + 10) for child in begun]


def in_threads(works: list[Callable[[], Any]]) -> list[Any]:
    """What the works return, each in a thread of its own."""
    found: list[Any] = [None] * len(works)

    def run(number: int) -> None:
        try:
            found[number] = works[number]()
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive(), "a thread hangs"
    for result in found:
        if isinstance(result, BaseException):
            raise result
    return found


class Meeting:
    """Makes all racers meet before the first call of a method in every round, where the race is closest."""

    def __init__(self, place: tuple[type, str] | None, racers: int) -> None:
        self._barrier = fork.Barrier(racers)
        self._place = place
        self._armed = False

    def meet(self) -> None:
        self._barrier.wait(LIMIT)

    def install(self) -> None:
        """In a child: from now on the method waits for all, once after each `arm`."""
        if self._place is None:
            return
        original = getattr(*self._place)

        def waiting(*args: Any) -> Any:
            if self._armed:
                self._armed = False
                self.meet()
            return original(*args)

        setattr(*self._place, waiting)

    def arm(self) -> None:
        self._armed = True


PLACES = {"at the call": None, "with all packs written": (Branches, "advance"), "at the record": (Log, "publish")}


# -- one branch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_of_eight_processes_on_one_branch_one_wins_each_round_and_the_others_are_told(folder: Path, place: str) -> None:
    path, rounds = folder / "store", 5
    make(path, commits=0)
    meeting = Meeting(PLACES[place], RACERS)

    def racer(number: int) -> list[tuple[bool, str]]:
        meeting.install()
        outcomes = []
        with cas.open(path) as store:
            for turn in range(rounds):
                loaded = store.load("main", default=None)
                assert (loaded is None) == (turn == 0)
                meeting.meet()
                meeting.arm()
                try:
                    outcomes.append((True, commit(store, turn * 100 + number)))
                except RefConflict as error:
                    outcomes.append((False, str(error)))
                meeting.meet()
        return outcomes

    outcomes = together([lambda number=number: racer(number) for number in range(RACERS)])  # type: ignore[misc]
    winners, told = [], []
    for turn in range(rounds):
        (winner,) = [number for number in range(RACERS) if outcomes[number][turn][0]]
        winners.append((turn * 100 + winner, outcomes[winner][turn][1]))
        told += [text for won, text in (held[turn] for held in outcomes) if not won]
    assert len(told) == rounds * (RACERS - 1)
    clear = re.compile(f"{MOVED.pattern}|{NEVER_LOADED.pattern}") if place == "at the call" else MOVED
    assert [text for text in told if not clear.fullmatch(text)] == []
    assert check_whole(path) == [step for step, _ in winners]
    assert len(list(path.glob("log/*"))) == 1 + rounds
    with cas.open(path) as store:
        history = list(store.log("main"))[::-1]
    assert [held.id for held in history] == [name for _, name in winners]
    assert [list(held.parents) for held in history] == [[], *([name] for _, name in winners[:-1])]


def test_a_stopped_job_that_goes_on_after_its_successor_committed_is_told_and_leaves_no_trace(folder: Path) -> None:
    """The job was requeued while its first run, the zombie, stood still."""
    path = folder / "store"
    make(path, commits=2)

    def zombie() -> str:
        with cas.open(path) as store:
            store.load("main")
            stop_here()
            with pytest.raises(RefConflict) as told:
                commit(store, 90)
            with pytest.raises(RefConflict):
                store.commit_async(state(91), step=91).wait()
            with pytest.raises(RefConflict):
                commit(store, 92)
        return str(told.value)

    def successor() -> None:
        with cas.open(path) as store:
            assert same(store.load("main"), state(1))
            commit(store, 2)
            commit(store, 3)

    first = children.start(zombie)
    with children.killed_at_the_end([first]):
        wait_until_stopped(first)
        children.run(successor)
        first.kill(signal.SIGCONT)
        told = first.result()
    assert MOVED.fullmatch(told)
    assert check_whole(path) == [0, 1, 2, 3]
    assert len(list(path.glob("log/*"))) == 5


def stop_here() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def wait_until_stopped(child: children.Child) -> None:
    deadline = time.monotonic() + LIMIT
    while True:
        pid, status = os.waitpid(child.pid, os.WUNTRACED | os.WNOHANG)
        if pid and os.WIFSTOPPED(status):
            return
        assert not pid, "the child ended"
        assert time.monotonic() < deadline, "the child did not stop"
        time.sleep(0.005)


# -- many branches --------------------------------------------------------------------------------------------------


def mixed(number: int, turn: int) -> dict[str, Any]:
    """A state with blocks that all racers have, blocks of this racer that stay, and blocks that are new."""
    return {
        "all": np.arange(3000, dtype=np.int64) + 10_000 * turn,
        "mine": np.full(2000, number, np.float32),
        "new": np.random.default_rng([number, turn]).random(700),
        "turn": turn,
    }


def commit_all(store: cas.Store, number: int, turns: int, meet: Callable[[], None]) -> list[str]:
    """A racer's commits on its own branch; their ids."""
    names = []
    for turn in range(turns):
        meet()
        names.append(store.commit(mixed(number, turn), branch=f"b{number}", step=turn).id)
    return names


def check_branches(path: Path, acknowledged: list[list[str]]) -> None:
    with cas.open(path) as store:
        for number, names in enumerate(acknowledged):
            assert [held.id for held in store.log(f"b{number}")] == names[::-1]
            for turn, name in enumerate(names):
                assert same(store.load(name), mixed(number, turn))
        assert errors(store.fsck(data=True)) == []


@pytest.mark.parametrize("place", PLACES)
def test_eight_processes_on_eight_branches_all_keep_every_commit(folder: Path, place: str) -> None:
    path, turns = folder / "store", 4
    make(path, commits=0)
    meeting = Meeting(PLACES[place], RACERS)

    def racer(number: int) -> list[str]:
        meeting.install()
        with cas.open(path) as store:

            def meet() -> None:
                meeting.meet()
                meeting.arm()

            return commit_all(store, number, turns, meet)

    acknowledged = together([lambda number=number: racer(number) for number in range(RACERS)])  # type: ignore[misc]
    assert len(list(path.glob("log/*"))) == 1 + RACERS * turns
    check_branches(path, acknowledged)


@pytest.mark.parametrize("shared", [True, False], ids=["one Store", "a Store each"])
def test_eight_threads_on_eight_branches_all_keep_every_commit(folder: Path, shared: bool) -> None:
    path = folder / "store"
    make(path, commits=0)
    barrier = threading.Barrier(RACERS)

    with ExitStack() as stack:
        store = stack.enter_context(cas.open(path))

        def racer(number: int) -> list[str]:
            if shared:
                return commit_all(store, number, 4, lambda: barrier.wait(LIMIT) and None)
            with cas.open(path) as own:
                return commit_all(own, number, 4, lambda: barrier.wait(LIMIT) and None)

        acknowledged = in_threads([lambda number=number: racer(number) for number in range(RACERS)])  # type: ignore[misc]
    check_branches(path, acknowledged)


def test_eight_threads_of_one_store_take_turns_on_one_branch(folder: Path) -> None:
    make(folder / "store", commits=1)
    with cas.open(folder / "store") as store:
        store.load("main")

        def racer(number: int) -> list[str]:
            made = [commit(store, number * 10), store.commit_async(state(number * 10 + 1), step=number * 10 + 1)]
            return [made[0], made[1].wait().id]

        names = in_threads([lambda number=number: racer(number) for number in range(1, 9)])  # type: ignore[misc]
        assert {held.id for held in store.log("main")} >= {name for pair in names for name in pair}
    steps = check_whole(folder / "store")
    assert sorted(steps) == [0, *(number * 10 + more for number in range(1, 9) for more in (0, 1))]
    assert all(steps.index(number * 10) < steps.index(number * 10 + 1) for number in range(1, 9))


def test_of_eight_threads_with_a_store_each_one_wins_on_one_branch(folder: Path) -> None:
    make(folder / "store", commits=1)
    barrier = threading.Barrier(RACERS)

    def racer(number: int) -> bool:
        with cas.open(folder / "store") as store:
            store.load("main")
            barrier.wait(LIMIT)
            try:
                commit(store, number)
            except RefConflict as error:
                assert MOVED.fullmatch(str(error))
                return False
            return True

    won = in_threads([lambda number=number: racer(number) for number in range(1, 9)])  # type: ignore[misc]
    assert sum(won) == 1
    assert check_whole(folder / "store") == [0, won.index(True) + 1]


def test_threads_that_open_and_close_stores_all_the_time_share_one_index(folder: Path) -> None:
    """A Store that opens while the last other one of the process closes uses the index, not its memory."""
    path = folder / "store"
    make(path, commits=1)

    def racer(number: int) -> list[bool]:
        shared = []
        for turn in range(12):
            with cas.open(path) as store:
                store.load(f"b{number}", default=None)
                store.commit(mixed(number, turn), branch=f"b{number}", step=turn)
                shared.append(store._catalog.index._env is not None)
        return shared

    shared = in_threads([lambda number=number: racer(number) for number in range(4)])  # type: ignore[misc]
    assert all(map(all, shared)), shared
    with cas.open(path) as store:
        for number in range(4):
            assert numbers(store, f"b{number}") == list(range(12))
            assert same(store.load(f"b{number}"), mixed(number, 11))
        assert errors(store.fsck(data=True)) == []


def test_a_store_that_opens_while_another_thread_closes_the_index_waits_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "store"
    make(path, commits=1)
    closing, opened = threading.Event(), threading.Event()
    original = fcntl.flock

    def flock(lock: int, mode: int) -> None:
        if threading.current_thread().name == "closer":
            closing.set()
            opened.wait(0.5)
        original(lock, mode)

    first = cas.open(path)
    first.load("main")
    monkeypatch.setattr(fcntl, "flock", flock)
    closer = threading.Thread(target=first.close, name="closer")
    closer.start()
    assert closing.wait(LIMIT)
    with cas.open(path) as second:
        assert same(second.load("main"), state(0))
        opened.set()
        assert second._catalog.index._env is not None, "the index is kept in memory"
        closer.join()
        commit(second, 1)
    assert check_whole(path) == [0, 1]


# -- making a store -------------------------------------------------------------------------------------------------


def test_eight_processes_that_make_one_store_all_get_the_same(folder: Path) -> None:
    rounds = 10
    barrier = fork.Barrier(RACERS)

    def racer(number: int) -> list[str]:
        found = []
        for turn in range(rounds):
            barrier.wait(LIMIT)
            with cas.open(folder / f"deep{turn}" / "store", create=True) as store:
                found.append(store.identity.id)
                commit(store, number, branch=f"b{number}")
        return found

    found = together([lambda number=number: racer(number) for number in range(RACERS)])  # type: ignore[misc]
    assert [held for held in found if held != found[0]] == []
    assert len(set(found[0])) == rounds
    for turn in range(rounds):
        with cas.open(folder / f"deep{turn}" / "store") as store:
            assert store.identity.id == found[0][turn]
            assert sorted(store.refs()["branches"]) == [f"b{number}" for number in range(RACERS)]
            assert all(same(store.load(f"b{number}"), state(number)) for number in range(RACERS))
            assert errors(store.fsck(data=True)) == []


# -- stopped with a lock --------------------------------------------------------------------------------------------


def stop_with_write_lock(path: Path) -> None:
    with open(path / "index" / "write.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stop_here()


def stop_in_transaction(path: Path) -> None:
    """Stop with the rows of a commit put and their transaction open; then finish the commit."""
    original = Index._write

    def stopping(index: Index, change: Callable[[Any], None]) -> bool:
        def put(txn: Any) -> None:
            change(txn)
            stop_here()

        return original(index, put)

    with cas.open(path) as store:
        store.load("main")
        Index._write = stopping  # type: ignore[method-assign]
        commit(store, 50, branch="stopped")
        Index._write = original  # type: ignore[method-assign]


def stop_in_check(path: Path) -> None:
    """Stop as the first that opens the index, while it is compared with its flag."""
    original = Index._check_or_discard

    def stopping(index: Index) -> None:
        stop_here()
        original(index)

    Index._check_or_discard = stopping  # type: ignore[method-assign]
    with cas.open(path) as store:
        store.load("main")
        commit(store, 50, branch="stopped")


STOPS = {"write lock": stop_with_write_lock, "transaction": stop_in_transaction, "check": stop_in_check}


@pytest.mark.parametrize(
    ("stop", "early"),
    [("write lock", True), ("write lock", False), ("transaction", True), ("transaction", False), ("check", False)],
)  # an index that is open already is not checked
def test_a_process_stopped_with_a_lock_of_the_index_delays_others_and_no_more(
    folder: Path, stop: str, early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cas.index._LOCK_DEADLINE", 0.5)
    monkeypatch.setattr("cas.index._OPEN_DEADLINE", 0.5)
    path = folder / "store"
    make(path, commits=2)
    wait_for, go = os.pipe()  # the stopped process holds both ends too, so no `Gate`

    def other() -> float:
        with ExitStack() as stack:
            if early:
                store = stack.enter_context(cas.open(path))
                store.load("main")
                os.write(ready, b"x")
                os.read(wait_for, 1)
            begun = time.monotonic()
            if not early:
                store = stack.enter_context(cas.open(path))
                assert same(store.load("main"), state(1))
            commit(store, 2)
            commit(store, 3)
            assert same(store.load("main"), state(3))
        return time.monotonic() - begun

    is_ready, ready = os.pipe()
    second = children.start(other) if early else None
    if early:
        os.read(is_ready, 1)
    first = children.start(STOPS[stop], path)
    begun = [child for child in (first, second) if child is not None]
    with children.killed_at_the_end(begun):
        wait_until_stopped(first)
        if second is None:
            second = children.start(other)
            begun.append(second)
        os.write(go, b"x")
        seconds = second.result(20)
        assert seconds < 6
        assert children.run(check_whole, path, limit=20) == [0, 1, 2, 3]
        first.kill(signal.SIGCONT)
        first.result(20)
    for end in (is_ready, ready, wait_for, go):
        os.close(end)
    assert check_whole(path) == [0, 1, 2, 3]
    with cas.open(path) as store:
        assert ("stopped" in store.refs()["branches"]) == (stop != "write lock")
        commit(store, 99, branch="later")
        assert store._catalog.index._env is not None
    if stop != "write lock":
        assert check_whole(path, "stopped") == [50]


# -- fork -----------------------------------------------------------------------------------------------------------


def large(number: int) -> dict[str, Any]:
    """Many batches of blocks, so that several threads of a commit start at once."""
    return {f"w{at}": np.full(600_000, number * 100 + at, np.float64) for at in range(6)}


def test_parent_and_child_of_a_fork_go_on_with_one_store_on_their_own_branches(folder: Path) -> None:
    with cas.open(folder / "store", create=True) as store:
        store.load("main", default=None)
        commit(store, 0)

        def work(number: int) -> list[str]:
            names = [store.commit(large(number), branch=f"b{number}", step=0).id]
            assert store._catalog.index._env is not None, "the child lost its index"
            names.append(store.commit(large(number + 10), branch=f"b{number}", step=1).id)
            assert same(store.load("main"), state(0))
            store.close()
            return names

        begun = [children.start(work, number) for number in range(1, 4)]
        with children.killed_at_the_end(begun):
            names = [[store.commit(large(turn), branch="b0", step=turn // 10).id for turn in (0, 10)]]
            names += [child.result() for child in begun]
        assert numbers(store) == [0]
        commit(store, 1)
    with cas.open(folder / "store") as store:
        for number, pair in enumerate(names):
            assert [held.id for held in store.log(f"b{number}")] == pair[::-1]
            assert same(store.load(pair[0]), large(number))
            assert same(store.load(pair[1]), large(number + 10))
        assert numbers(store) == [0, 1]
        assert errors(store.fsck(data=True)) == []


def test_threads_of_a_forked_child_wait_until_one_of_them_has_opened_the_index(folder: Path) -> None:
    with cas.open(folder / "store", create=True) as store:
        store.commit(large(1), branch="b1")

        def work() -> tuple[int, int, bool]:
            original = cas.index.lmdb.open

            def slow(*args: Any, **options: Any) -> Any:
                time.sleep(0.3)
                return original(*args, **options)

            cas.index.lmdb.open = slow
            made = store.commit(large(1), branch="b2").stats
            return made.blocks, made.new_blocks, store._catalog.index._env is not None

        blocks, new_blocks, with_index = children.run(work)
    assert blocks > 100
    assert new_blocks == 0, "a thread looked blocks up before the index was open"
    assert with_index


def test_a_child_that_goes_on_from_the_parents_branch_races_with_it_like_any_other(folder: Path) -> None:
    make(folder / "store", commits=1)
    with cas.open(folder / "store") as store:
        store.load("main")

        child_gate = children.Gate()

        def work() -> None:
            child_gate.wait()
            with pytest.raises(RefConflict, match="another writer moved it"):
                commit(store, 2)
            assert same(store.load("main"), state(1))
            commit(store, 3)

        child = children.start(work)
        with children.killed_at_the_end([child]):
            commit(store, 1)
            child_gate.open()
            child.result()
        with pytest.raises(RefConflict, match="another writer moved it"):
            commit(store, 4)
    assert check_whole(folder / "store") == [0, 1, 3]


def blocked(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> tuple[threading.Event, threading.Event]:
    """Events: a background thread of this process has come into the method; it may go on."""
    entered, leave = threading.Event(), threading.Event()
    original, parent, mine = getattr(owner, name), os.getpid(), threading.current_thread()

    def waiting(*args: Any) -> Any:
        if os.getpid() == parent and threading.current_thread() is not mine:
            entered.set()
            assert leave.wait(LIMIT)
        return original(*args)

    monkeypatch.setattr(owner, name, waiting)
    return entered, leave


HELD = {
    "opening the index": (Catalog, "_refresh"),
    "with the pack unwritten": (Catalog, "known"),
    "with the pack durable": (Index, "add"),
    "before the record": (Branches, "_publish"),
}


@pytest.mark.parametrize("place", HELD)
def test_a_fork_while_a_commit_is_in_flight_leaves_both_processes_a_working_store(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "store"
    make(path, commits=1)
    entered, leave = blocked(monkeypatch, *HELD[place])
    with cas.open(path) as store:

        def work() -> str:
            name = commit(store, 2, branch="child")
            assert same(store.load("child"), state(2))
            assert same(store.load("main"), state(0))
            store.close()
            return name

        pending = store.commit_async(state(1), branch="parent", step=1)
        assert entered.wait(LIMIT)
        try:
            in_child = children.run(work, limit=20)
            assert not pending.done
        finally:
            leave.set()
        in_parent = pending.wait(LIMIT).id
        assert store.resolve("child").id == in_child
        assert store.resolve("parent").id == in_parent
        commit(store, 3, branch="parent")
    assert check_whole(path) == [0]
    assert check_whole(path, "child") == [2]
    assert check_whole(path, "parent") == [1, 3]


def test_a_fork_while_another_thread_holds_the_stores_own_locks_does_not_hang_the_child(folder: Path) -> None:
    path = folder / "store"
    make(path, commits=1)
    with cas.open(path) as store:
        store.load("main")
        locks = [store._turn, store._branches._lock, store._objects._lock, store._catalog._opening]
        held, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with ExitStack() as stack:
                for lock in locks:
                    stack.enter_context(lock)
                held.set()
                leave.wait(LIMIT)

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(LIMIT)

        def work() -> None:
            assert same(store.load("main"), state(0))
            commit(store, 1)
            store.close()

        try:
            children.run(work, limit=20)
        finally:
            leave.set()
            thread.join()
    assert check_whole(path) == [0, 1]


def test_workers_that_never_touch_the_store_exit_cleanly_and_hold_no_lock(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a data loader's are: forked by multiprocessing while a commit writes the index, and alive after `close`."""
    path = folder / "store"
    make(path, commits=1)
    inside, leave = threading.Event(), threading.Event()
    original = Index._write

    def pausing(index: Index, change: Callable[[Any], None]) -> bool:
        def put(txn: Any) -> None:
            change(txn)
            inside.set()
            assert leave.wait(LIMIT)

        return original(index, put)

    store = cas.open(path)
    store.load("main")
    monkeypatch.setattr(Index, "_write", pausing)
    pending = store.commit_async(state(1), step=1)
    assert inside.wait(LIMIT)
    stop = fork.Event()
    workers = [fork.Process(target=stop.wait, args=(LIMIT,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        leave.set()
        pending.wait(LIMIT)
        store.close()
        assert (path / "index" / "clean").exists(), "the index was not closed alone"
        for name in ("write.lock", "open.lock"):
            with open(path / "index" / name, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert all(worker.is_alive() for worker in workers)
    finally:
        stop.set()
        for worker in workers:
            worker.join(LIMIT)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert check_whole(path) == [0, 1]


def test_a_worker_that_outlives_its_killed_parent_holds_no_lock(folder: Path) -> None:
    """It was forked in the middle of a write to the index."""
    path = folder / "store"
    make(path, commits=1)
    alive, keep = os.pipe()  # the worker lives until the test closes `keep`; it tells by `said` that it runs
    heard, said = os.pipe()

    def job() -> None:
        original = Index._write

        def forking(index: Index, change: Callable[[Any], None]) -> bool:
            def put(txn: Any) -> None:
                change(txn)
                if os.fork() == 0:
                    os.close(keep)
                    os.write(said, b"x")
                    os.read(alive, 1)
                    os._exit(0)
                stop_here()

            return original(index, put)

        with cas.open(path) as store:
            store.load("main")
            Index._write = forking  # type: ignore[method-assign]
            commit(store, 1)

    child = children.start(job)
    with children.killed_at_the_end([child]):
        wait_until_stopped(child)
        assert os.read(heard, 1) == b"x"
    try:
        for name in ("write.lock", "open.lock"):
            with open(path / "index" / name, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        for end in (keep, alive, heard, said, child.results):
            os.close(end)
    assert check_whole(path) == [0]


# -- a store that is replaced ---------------------------------------------------------------------------------------


def remade(path: Path, commits: int) -> None:
    shutil.rmtree(path)
    with cas.init(path, block_size=BLOCK_SIZE) as new:
        for number in range(commits):
            commit(new, 1000 + number)


ACTS: dict[str, Callable[[cas.Store], object]] = {
    "load": lambda store: store.load("main"),
    "load an id": lambda store: store.load(store.known),  # type: ignore[attr-defined]
    "view": lambda store: store.view("main"),
    "commit": lambda store: commit(store, 7),
    "commit on a new branch": lambda store: commit(store, 1, branch="new"),
    "commit_async": lambda store: store.commit_async(state(1), branch="new").wait(),
    "branch": lambda store: store.branch("new", "main"),
    "delete": lambda store: store.delete_branch("main"),
    "log": lambda store: list(store.log("main")),
    "refs": lambda store: store.refs(),
    "stats": lambda store: store.stats(),
    "fsck": lambda store: store.fsck(data=True),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("commits", [None, 0, 2, 5], ids=["gone", "empty", "as long", "longer"])
def test_a_store_object_whose_store_was_replaced_says_so_and_touches_nothing(
    folder: Path, act: str, commits: int | None
) -> None:
    path = folder / "store"
    names = make(path, commits=2)
    with cas.open(path) as store:
        store.known = names[-1]  # type: ignore[attr-defined]
        store.load("main")
        if commits is None:
            shutil.rmtree(path)
        else:
            remade(path, commits)
        with pytest.raises(CasError) as told:
            ACTS[act](store)
    assert str(path) in str(told.value), told.value
    assert "\n" not in str(told.value)
    if commits is None:
        assert not path.exists()
        return
    with cas.open(path) as store:
        assert len(list(path.glob("log/*"))) == 1 + commits
        assert set(store.refs()["branches"]) == ({"main"} if commits else set())
        if commits:
            assert numbers(store) == [1000 + number for number in range(commits)]
            assert same(store.load("main"), state(1000 + commits - 1))
        assert errors(store.fsck(data=True)) == []


def test_a_commit_whose_store_is_replaced_before_its_record_is_not_published_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "store"
    make(path, commits=2)
    original = committing.write

    def replacing(*args: Any) -> Any:
        written = original(*args)
        monkeypatch.undo()
        remade(path, 3)
        return written

    with cas.open(path) as store:
        store.load("main")
        monkeypatch.setattr(committing, "write", replacing)
        with pytest.raises(NotFound, match=f"{path} was replaced"):
            commit(store, 1, branch="new")
    with cas.open(path) as store:
        assert set(store.refs()["branches"]) == {"main"}
        assert errors(store.fsck(data=True)) == []


# -- readers beside writers -----------------------------------------------------------------------------------------


def test_every_load_beside_writers_is_exactly_one_commit_and_never_an_older_one_than_before(folder: Path) -> None:
    path, last, kinds = folder / "store", 60, range(4)
    make(path, commits=1)

    def keep_pace(step: int) -> None:
        """Every reader sees one commit of ten at least, however slow it is."""
        while any(len(list(folder.glob(f"reader {kind} saw *"))) < step // 10 for kind in kinds):
            time.sleep(0.01)

    def writer() -> list[int]:
        mine: list[int] = []
        with cas.open(path) as store:
            while (step := store.load("main")["step"] + 1) <= last:
                keep_pace(step)
                try:
                    commit(store, step)
                except RefConflict as error:
                    assert MOVED.fullmatch(str(error))
                    continue
                mine.append(step)
        return mine

    def reader(kind: int) -> list[int]:
        seen = [0]
        with ExitStack() as stack:
            store = stack.enter_context(cas.open(path))
            into = store.load("main")
            while seen[-1] < last:
                if kind == 0:
                    found = store.load("main")
                elif kind == 1:
                    with cas.open(path) as fresh:
                        found = fresh.load("main")
                elif kind == 2:
                    found = store.load("main", into=into)
                else:
                    view = store.view("main")
                    found = {key: view[key] for key in view}
                    found = {key: value[...] if key in "wb" else value for key, value in found.items()}
                assert same(found, state(found["step"])), f"a mix was loaded: {found}"
                seen.append(found["step"])
                (folder / f"reader {kind} saw {seen[-1]}").touch()
        return seen

    works: list[Callable[[], Any]] = [writer, writer]
    works += [lambda kind=kind: reader(kind) for kind in kinds]  # type: ignore[misc]
    first, second, *seen = together(works)
    assert sorted(first + second) == list(range(1, last + 1))
    assert [held for held in seen if held != sorted(held)] == []
    assert check_whole(path) == list(range(last + 1))


def test_threads_load_whole_states_from_the_store_that_another_thread_commits_with(folder: Path) -> None:
    path, last = folder / "store", 40
    make(path, commits=1)
    with cas.open(path) as store:
        store.load("main")

        def writer() -> list[int]:
            for step in range(1, last + 1):
                commit(store, step)
            return [last]

        def reader() -> list[int]:
            seen = [0]
            while seen[-1] < last:
                found = store.load(store.refs()["branches"]["main"])
                assert same(found, state(found["step"]))
                seen.append(found["step"])
            return seen

        for seen in in_threads([writer, reader, reader, reader]):
            assert seen == sorted(seen)
    assert check_whole(path) == list(range(last + 1))
