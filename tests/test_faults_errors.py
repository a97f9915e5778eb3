"""Full disks, limits and short writes, without strace; `test_faults_points` has errors at each system call.

The commit works all the same or raises one sentence that names the file; the branch is as it was, the same Store and
a new process read it, the next commit works. What was loaded after `CommitUnknown` is the parent of the next commit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import children
from faults.stores import check_whole, commit, errors, make, numbers, quick_folder, same, state

import cas
from cas.errors import CasError, CommitUnknown


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A closed store with commits 0 and 1. Made here, so that every module a commit needs is imported."""
    with quick_folder() as folder:
        make(folder / "store", commits=2)
        yield folder / "store"


def large(number: int, size: int) -> dict[str, Any]:
    """A state that, with a `size` in bytes over 256 KiB, makes a pack of direct writes by a thread of its own."""
    noise = np.random.default_rng(number).integers(0, 255, size, np.uint8)
    return {**state(number), **({"noise": noise} if size else {})}


def read_back(path: Path, size: int) -> list[int]:
    """A new process reads every commit; nothing needs repair."""
    with cas.open(path) as store:
        for held in store.log("main"):
            wanted = large(2, size) if held.step == 2 else state(held.step)
            assert same(store.load(held.id), wanted), f"{held} does not load as it was made"
        assert errors(store.fsck(data=True)) == []
        steps = numbers(store)
        store.load("main")
        commit(store, 4)
        return steps


def test_what_was_loaded_after_an_unknown_commit_stays_the_parent_of_the_next(template: Path) -> None:
    """The record was there after all, and another job went on from it: settling must not take the branch back."""
    with quick_folder() as folder:
        shutil.copytree(template, folder / "store")
        children.run(commit_unknown_then_load, folder / "store")


def commit_unknown_then_load(path: Path) -> None:
    fsync = os.fsync

    def fail_on_log(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/log"):
            raise OSError(errno.EIO, "Input/output error")
        fsync(fd)

    with cas.open(path) as store:
        store.load("main")
        commit(store, 2, "other")
        os.fsync = fail_on_log
        with pytest.raises(CommitUnknown):
            commit(store, 2)
        os.fsync = fsync
        children.run(go_on, path)
        assert store.load("main")["step"] == 3
        commit(store, 4)
        assert numbers(store) == [0, 1, 2, 3, 4]


def go_on(path: Path) -> None:
    with cas.open(path) as store:
        assert store.load("main")["step"] == 2
        commit(store, 3)


# -- full disks -----------------------------------------------------------------------------------------------------


def commit_on_full_disk(path: Path, free: Callable[[], None]) -> None:
    """Commit until the disk is full: said so, nothing lost; with space again the same Store goes on."""
    with cas.open(path) as store:
        store.load("main")
        done, failure = 1, None
        for number in range(2, 60):
            try:
                store.commit(large(number, 600_000), step=number)
                done = number
            except (CasError, OSError) as error:
                failure = error
                break
        assert failure is not None, "the disk did not fill"
        assert str(path) in str(failure)
        assert numbers(store) == list(range(done + 1))
        assert store.load("main")["step"] == done
        free()
        store.commit(state(100), step=100)
    with cas.open(path) as store:
        assert numbers(store) == [*range(done + 1), 100]
        assert same(store.load("main"), state(100))
        assert done < 2 or same(store.load(f"main@step:{done}"), large(done, 600_000))
        assert errors(store.fsck(data=True)) == []


def test_a_full_disk_is_told_and_costs_nothing(template: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=False).returncode:
        pytest.skip("NOT COVERED: a file system that is really full; needs root and mount")
    try:
        shutil.copytree(template, disk / "store")
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(300_000))
        children.run(commit_on_full_disk, disk / "store", ballast.unlink)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("room", [0, 100, 5_000, 60_000, 200_000])
def test_no_room_left_at_all(template: Path, tmp_path: Path, room: int) -> None:
    """A disk with `room` bytes: everything is read, the index too large to be kept or not, and nothing is lost."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode:
        pytest.skip("NOT COVERED: a file system that is really full; needs root and mount")
    try:
        shutil.copytree(template, disk / "store", ignore=shutil.ignore_patterns("index", "reserve"))
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        os.truncate(ballast, max(0, ballast.stat().st_size - room))
        children.run(read_without_room, disk / "store")
        ballast.unlink()
        assert children.run(check_whole, disk / "store") == [0, 1]
    finally:
        subprocess.run(["umount", disk], check=True)


def read_without_room(path: Path) -> None:
    with cas.open(path) as store:
        assert same(store.load("main"), state(1))
        assert numbers(store) == [0, 1]
        assert errors(store.fsck(data=True)) == []
        with pytest.raises((CasError, OSError), match="store"):
            store.commit(large(2, 2_000_000), step=2)
        assert same(store.load("main"), state(1))


def test_a_limit_on_the_size_of_files_is_an_error_like_any_other(template: Path) -> None:
    with quick_folder() as folder:
        shutil.copytree(template, folder / "store")
        children.run(commit_within_limit, folder / "store")


def commit_within_limit(path: Path) -> None:
    def free() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
    commit_on_full_disk(path, free)


def test_short_writes_change_nothing(template: Path) -> None:
    with quick_folder() as folder:
        shutil.copytree(template, folder / "store")
        children.run(commit_with_short_writes, folder / "store")


def commit_with_short_writes(path: Path) -> None:
    write, pwrite = os.write, os.pwrite
    os.write = lambda fd, data: write(fd, data[:701])
    os.pwrite = lambda fd, data, offset: pwrite(fd, data[:70_001], offset)
    try:
        with cas.open(path) as store:
            store.load("main")
            store.commit(large(2, 3_000_000), step=2)
    finally:
        os.write, os.pwrite = write, pwrite
    assert read_back(path, 3_000_000) == [0, 1, 2]
