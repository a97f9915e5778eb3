"""Commits in the background: what they hold, in which order, and who hears of a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import cas
from cas import RefConflict, Store, Unsupported

MIB = 1 << 20


def test_the_commit_has_the_values_of_the_call_though_they_change_at_once(store: Store) -> None:
    w = np.arange(8 * MIB, dtype=np.float32)
    state = {"w": w, "t": w[:1000].reshape(10, 100).T, "tied": w, "list": [1], "long": "x" * 100_000}
    pending = store.commit_async(state)
    w[:] = -1
    state["list"].append(2)
    state["new"] = 1
    pending.wait()
    loaded = store.load()
    assert np.array_equal(loaded["w"], np.arange(8 * MIB, dtype=np.float32))
    assert np.array_equal(loaded["t"], np.arange(1000, dtype=np.float32).reshape(10, 100).T)
    assert loaded["tied"] is loaded["w"]
    assert loaded["list"] == [1]
    assert "new" not in loaded


def test_wait_gives_the_commit_again_and_again(store: Store) -> None:
    pending = store.commit_async({"a": 1}, step=3)
    commit = pending.wait()
    assert pending.done
    assert pending.wait() is commit
    assert store.resolve().id == commit.id
    assert commit.step == 3


def test_commits_keep_their_order_and_share_the_stage(store: Store) -> None:
    w = np.zeros(MIB, np.float64)
    pendings = []
    for step in range(5):
        w[:] = step
        pendings.append(store.commit_async({"w": w}, step=step))
    commits = [pending.wait() for pending in pendings]
    assert [commit.step for commit in store.log()] == [4, 3, 2, 1, 0]
    for step, commit in enumerate(commits):
        assert np.all(store.load(commit.id)["w"] == step)


def test_a_larger_and_a_smaller_state_after_each_other_are_whole(store: Store) -> None:
    for size in (1000, 2 * MIB, 10, 0, 3 * MIB):
        store.commit_async({"w": np.full(size, size, np.int32), "n": size})
    store.close()
    with cas.open(store.path) as again:
        sizes = [again.load(commit.id) for commit in again.log()]
    assert [state["n"] for state in sizes] == [3 * MIB, 0, 10, 2 * MIB, 1000]
    assert all(np.array_equal(state["w"], np.full(state["n"], state["n"], np.int32)) for state in sizes)


def test_a_synchronous_commit_waits_for_the_one_before(store: Store) -> None:
    pending = store.commit_async({"w": np.ones(4 * MIB)}, message="1")
    second = store.commit({"a": 1}, message="2")
    assert pending.done
    assert second.parents == (pending.wait().id,)


def test_what_the_state_may_not_hold_is_said_at_once(store: Store) -> None:
    with pytest.raises(Unsupported, match=r"state path a is a builtins\.set"):
        store.commit_async({"a": {1}})
    assert store.commit({"a": 1}).parents == ()


def conflict(store: Store) -> None:
    """Make the next publication on main fail: after staging another writer moves the branch."""
    with cas.open(store.path) as other:
        other.load()
        other.commit({"other": True})


@pytest.fixture
def broken(store: Store) -> cas.Pending:
    """A background commit that lost the race for its branch."""
    store.commit({"a": 0})
    started = threading.Event()
    real = store._execute

    def held(*given: object) -> object:
        started.wait(10)
        return real(*given)  # type: ignore[arg-type]

    store._execute = held  # type: ignore[method-assign,assignment]
    pending = store.commit_async({"a": 1})
    conflict(store)
    started.set()
    pending._thread.join()
    store._execute = real  # type: ignore[method-assign]
    return pending


def test_a_failure_is_raised_by_wait_and_then_no_more(store: Store, broken: cas.Pending) -> None:
    for _ in range(2):
        with pytest.raises(RefConflict, match="another writer moved it"):
            broken.wait()
    store.load()
    store.commit({"a": 2})
    store.close()


def test_a_failure_that_nobody_waited_for_is_raised_by_the_next_commit_once(store: Store, broken: cas.Pending) -> None:
    store.load()
    with pytest.raises(RefConflict, match="another writer moved it"):
        store.commit({"a": 2})
    assert store.load() == {"other": True}
    store.commit({"a": 2})
    assert store.load() == {"a": 2}


def test_a_failure_that_nobody_waited_for_is_raised_by_close_once(store: Store, broken: cas.Pending) -> None:
    with pytest.raises(RefConflict):
        store.close()
    store.close()


def test_a_failed_background_commit_changes_nothing(store: Store, broken: cas.Pending) -> None:
    with cas.open(store.path) as other:
        assert other.load() == {"other": True}
        assert [found for found in other.fsck(data=True) if found.severity != "info"] == []
    with pytest.raises(RefConflict):
        broken.wait()


EXIT = """
import sys, numpy as np, cas
store = cas.open(sys.argv[1], create=True)
w = np.arange(30_000_000, dtype=np.float32)
store.commit_async({"w": w}, step=7)
w[:] = 0
"""


def run(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)


def test_interpreter_exit_waits_for_the_commit(tmp_path: Path) -> None:
    done = run(EXIT, tmp_path / "s")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "s" / "index" / "clean").exists()
    with cas.open(tmp_path / "s") as store:
        assert np.array_equal(store.load()["w"], np.arange(30_000_000, dtype=np.float32))
        assert store.resolve().step == 7


def test_a_failure_at_interpreter_exit_is_on_stderr(tmp_path: Path) -> None:
    script = EXIT.replace("w[:] = 0", "import os; os.rename(sys.argv[1], sys.argv[1] + 'x')")
    done = run(script, tmp_path / "s")
    assert "the background commit failed: " in done.stderr
    shutil.rmtree(tmp_path / "s", ignore_errors=True)
    with cas.open(tmp_path / "sx") as store:
        assert store.load(default="nothing") == "nothing"


def test_close_waits_for_the_commit(tmp_path: Path) -> None:
    with cas.open(tmp_path / "s", create=True) as store:
        pending = store.commit_async({"w": np.ones(4 * MIB)})
    assert pending.done
    with cas.open(tmp_path / "s") as again:
        assert np.all(again.load()["w"] == 1)


def test_wait_with_a_timeout_lets_it_go_on(store: Store) -> None:
    looks = []
    for number in range(5):  # one commit may be done before the first look at it, five are not
        pending = store.commit_async({"w": np.full(16 * MIB, number, np.uint8)})
        try:
            pending.wait(timeout=0)
        except TimeoutError as error:
            looks.append(str(error))
        assert pending.wait().id == store.resolve().id
    assert "still running after 0 s" in looks[0]


def test_a_background_commit_gives_way_to_the_threads_of_the_caller(store: Store) -> None:
    seen: set[int] = set()

    def note(nbytes: int) -> None:
        seen.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    store.commit_async({"w": np.arange(8 * MIB)}, progress=note).wait()
    assert seen
    assert min(seen) > mine
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine
