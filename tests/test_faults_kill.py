"""SIGKILL a few hundred times at random moments of a loop of commits; `test_faults_points` has it at each system call.

Afterwards the branch is old or new, what was acknowledged is there, everything loads bit for bit, fsck finds nothing,
and the next commit works without anybody repairing anything.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import children
from faults.stores import check_whole, commit, errors, make, numbers, quick_folder, same, state

import cas


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A closed store with commits 0 and 1. Made here, so that every module a commit needs is imported."""
    with quick_folder() as folder:
        make(folder / "store", commits=2)
        check_whole(folder / "store")
        yield folder / "store"


def loop(path: Path, branch: str, acknowledge: int) -> None:
    """Commit for ever, acknowledging each."""
    with cas.open(path) as store:
        store.load(branch, default=None)
        number = store.resolve(branch).step + 1 if branch in store.refs()["branches"] else 0
        while True:
            commit(store, number, branch)
            os.write(acknowledge, number.to_bytes(4, "little"))
            number += 1


@pytest.mark.parametrize("seed", range(5))
def test_a_kill_at_a_random_moment_loses_nothing(template: Path, seed: int) -> None:
    """50 kills each: one job that is killed and resumed; at the end everything is checked."""
    dice = random.Random(seed)
    with quick_folder() as folder:
        path = folder / "store"
        shutil.copytree(template, path)
        last = 1
        for _ in range(50):
            last = kill_one(path, "main", dice.uniform(0.0, 0.03), last)
        assert children.run(check_whole, path) == list(range(last + 1))
        assert last > 50, "the kills left no time to commit anything"


def kill_one(path: Path, branch: str, after: float, last: int) -> int:
    """Run the loop, kill it `after` seconds after its first commit; the newest commit, which is in order."""
    acks, acknowledge = os.pipe()
    child = children.start(loop, path, branch, acknowledge)
    os.close(acknowledge)
    with children.killed_at_the_end([child]):
        wait_for_first = after > 0.006
        if wait_for_first:
            assert select.select([acks], [], [], 30)[0], "no commit in 30 s"
        time.sleep(after)
        child.kill()
        child.end()
    acknowledged = read_all(acks)
    tip = children.run(tip_of, path, branch)
    expected = [*range(last + 1, last + 1 + len(acknowledged))]
    assert acknowledged == expected, "a resumed job did not go on from the newest commit"
    newest = acknowledged[-1] if acknowledged else last
    assert tip in (newest, newest + 1), f"the branch is at {tip}, commit {newest} was acknowledged"
    return int(tip)


def read_all(acks: int) -> list[int]:
    data = b""
    while part := os.read(acks, 1 << 16):
        data += part
    os.close(acks)
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data) // 4 * 4, 4)]


def tip_of(path: Path, branch: str) -> int:
    with cas.open(path) as store:
        tip = store.resolve(branch).step
        assert same(store.load(branch), state(tip))
        return int(tip)


def test_kills_among_processes_that_share_an_index_lose_nothing(template: Path) -> None:
    """Four jobs on four branches; one at a time is killed while the others go on, and started again."""
    dice = random.Random(8)
    branches = ["main", "b1", "b2", "b3"]
    with quick_folder() as folder:
        path = folder / "store"
        shutil.copytree(template, path)
        running: dict[str, tuple[children.Child, int]] = {}
        kept = {branch: [0, 1] if branch == "main" else [] for branch in branches}
        try:
            for _ in range(30):
                for branch in branches:
                    if branch not in running:
                        running[branch] = start_loop(path, branch)
                time.sleep(dice.uniform(0.0, 0.08))
                branch = dice.choice(branches)
                kept[branch] = stop_loop(path, branch, kept[branch], *running.pop(branch))
        finally:
            for branch, (child, acks) in running.items():
                kept[branch] = stop_loop(path, branch, kept[branch], child, acks)
        for branch in branches:
            assert children.run(check_whole, path, branch) == kept[branch]
        assert sum(map(len, kept.values())) > 50


def start_loop(path: Path, branch: str) -> tuple[children.Child, int]:
    acks, acknowledge = os.pipe()
    child = children.start(loop, path, branch, acknowledge)
    os.close(acknowledge)
    return child, acks


def stop_loop(path: Path, branch: str, kept: list[int], child: children.Child, acks: int) -> list[int]:
    """Kill a loop; all that the branch must hold now, one that was not acknowledged perhaps included."""
    child.kill(signal.SIGKILL)
    child.end()
    kept = kept + read_all(acks)
    found = children.run(steps_of, path, branch)
    assert found[: len(kept)] == kept, f"{branch} lost an acknowledged commit"
    assert len(found) <= len(kept) + 1
    return list(found)


def steps_of(path: Path, branch: str) -> list[int]:
    with cas.open(path) as store:
        return numbers(store, branch) if branch in store.refs()["branches"] else []


def test_leftovers_of_crashed_writers_are_told_and_never_in_the_way(template: Path) -> None:
    """Whatever stands in tmp/ and under half-made folders; init's probe with two names included."""
    with quick_folder() as folder:
        path = folder / "store"
        shutil.copytree(template, path)
        (path / "tmp").mkdir(exist_ok=True)
        for number in range(50):
            (path / "tmp" / f"{number:032x}").write_bytes(bytes(number))
        (path / "tmp" / "folder").mkdir()
        (path / "packs" / "zz").mkdir()
        (path / "packs" / "00").mkdir(exist_ok=True)
        (path / "packs" / "strange").write_bytes(b"")
        (path / "log" / "0000").write_bytes(b"half")
        (path / "index" / "clean.new").write_bytes(b"half")
        with cas.open(path) as store:
            findings = store.fsck(data=True)
            assert sum(found.name == "leftover" for found in findings) == 50
            assert [found.name for found in errors(findings)] == ["pack-foreign-file"]
            store.load("main")
            commit(store, 2)
        with cas.open(path) as store:
            assert numbers(store) == [0, 1, 2]
