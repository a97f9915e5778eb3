"""Calls that fail: EIO, ENOSPC, EDQUOT and EINTR at every system call on files that a commit makes; full disks.

The commit works all the same or raises one sentence that names the file; the branch is as it was, the same Store and
a new process read it, the next commit works. No descriptor whose fsync failed is synced again. After `CommitUnknown`
the next commit settles first, and the history has every commit once, in order.
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
from faults import children, strace
from faults.stores import check_whole, commit, errors, make, numbers, quick_folder, same, state

import cas
from cas.errors import CasError, CommitUnknown

ON_FILES = {
    *("open", "openat", "mkdir", "mkdirat", "link", "linkat", "unlink", "unlinkat", "rename", "renameat", "renameat2"),
    *("read", "pread64", "preadv", "preadv2", "write", "pwrite64", "writev", "pwritev", "pwritev2", "close", "fcntl"),
    *("fsync", "fdatasync", "msync", "sync_file_range", "ftruncate", "flock", "newfstatat", "fstat", "statx", "lstat"),
    *("stat", "lseek", "getdents64", "fstatfs"),
}
CHANGING = {
    *("open", "openat", "mkdir", "mkdirat", "link", "linkat", "unlink", "unlinkat", "rename", "renameat", "renameat2"),
    *("write", "pwrite64", "writev", "pwritev", "fsync", "fdatasync", "ftruncate", "close", "flock", "fcntl"),
}

TAKING_ROOM = {"open", "openat", "mkdir", "link", "linkat", "write", "pwrite64", "ftruncate", "fsync", "fdatasync"}


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A closed store with commits 0 and 1. Made here, so that every module a commit needs is imported."""
    with quick_folder() as folder:
        make(folder / "store", commits=2)
        assert faulty(folder / "store", 0)["failed"] == []
        shutil.rmtree(folder / "store")
        make(folder / "store", commits=2)
        yield folder / "store"


def large(number: int, size: int) -> dict[str, Any]:
    """A state that, with a `size` in bytes over 256 KiB, makes a pack of direct writes by a thread of its own."""
    noise = np.random.default_rng(number).integers(0, 255, size, np.uint8)
    return {**state(number), **({"noise": noise} if size else {})}


def faulty(path: Path, size: int) -> dict[str, Any]:
    """Open, load, commit, load, commit, close; every step is tried again after an error. What happened."""
    failed: list[tuple[str, str, str]] = []

    def persist(what: str, work: Callable[[], Any]) -> Any:
        for _ in range(3):
            try:
                return work()
            except (CasError, OSError) as error:
                failed.append((what, type(error).__name__, str(error)))
        raise AssertionError(f"{what} failed again and again: {failed}")

    def once(what: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (CasError, OSError) as error:
            failed.append((what, type(error).__name__, str(error)))
            return error

    store = persist("open", lambda: cas.open(path))
    assert same(persist("load", lambda: store.load("main")), state(1))
    made = once("commit", lambda: store.commit(large(2, size), step=2))
    seen = persist("look", lambda: store.resolve("main").step)
    if isinstance(made, CommitUnknown):
        assert seen in (1, 2)
    else:
        assert seen == (1 if isinstance(made, Exception) else 2), f"the branch is at {seen} after {made!r}"
    second = persist("next commit", lambda: store.commit(state(3), step=3))
    assert same(persist("load again", lambda: store.load("main")), state(3))
    steps = persist("log", lambda: numbers(store))
    assert steps[:2] == [0, 1]
    assert steps[-1] == 3
    assert steps.count(2) == 1 if seen == 2 else 2 not in steps
    assert second.id == persist("resolve", lambda: store.resolve("main").id)
    once("close", store.close)
    return {"failed": failed, "steps": steps, "close": [what for what, *_ in failed if what == "close"]}


def points_of(folder: Path, template: Path, size: int) -> list[strace.Call]:
    _, _, text = fail(folder, template, size, "")
    found = [call for call in strace.calls(text) if call.name in ON_FILES and "<pipe:" not in call.text]
    assert len(found) > 100
    return found


def fail(folder: Path, template: Path, size: int, inject: str) -> tuple[dict[str, Any], str, str]:
    """One run on a copy of the store with one call made to fail; checks all that must hold."""
    path = folder / "store"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(template, path)
    data, status, text = strace.traced(folder, faulty, path, size, inject=inject)
    try:
        happened = children.unpack(data, status)
        for what, kind, message in happened["failed"]:
            assert "\n" not in message, f"{kind} is more than a sentence: {message}"
            assert "None" not in message, f"{kind} {message}"
            assert str(path) in message or "log record" in message or "pack" in message, f"{what}: {kind} {message}"
        assert happened["close"] == [], "close is not the place to hear of the index"
        assert "EINTR" in inject or strace.fsyncs_after_a_failed_one(text) == []  # EINTR says nothing of the data
        steps = children.run(read_back, path, size)
        assert steps == happened["steps"]
    except AssertionError as error:
        injected = "\n".join(line for line in text.splitlines() if "(INJECTED)" in line)
        raise AssertionError(f"with {inject}: {error}\n{injected}") from error
    return happened, inject, text


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


@strace.needs_strace
@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_any_call_on_a_file_may_fail(template: Path, error: str, part: int) -> None:
    with quick_folder() as folder:
        points = points_of(folder, template, 0)
        chosen = [p for p in points if error == "EIO" or p.name in CHANGING][part::3]
        outcomes = [fail(folder, template, 0, f"{p.name}:error={error}:when={p.nth}")[0] for p in chosen]
        assert any(outcome["failed"] for outcome in outcomes), "no fault was felt"


@strace.needs_strace
@pytest.mark.parametrize(("error", "names"), [("EDQUOT", TAKING_ROOM), ("EINTR", CHANGING - {"close", "flock"})])
def test_a_quota_or_an_interrupt_at_any_changing_call(template: Path, error: str, names: set[str]) -> None:
    with quick_folder() as folder:
        scandir = "O_NONBLOCK|O_CLOEXEC|O_DIRECTORY"  # Python tries all but this one again by itself
        points = [p for p in points_of(folder, template, 0) if p.name in names and scandir not in p.text]
        for point in points:
            outcome, *_ = fail(folder, template, 0, f"{point.name}:error={error}:when={point.nth}")
            if error == "EINTR" and point.name not in ("mkdir", "link", "unlink", "rename"):  # which never say so
                assert outcome["failed"] == [], f"an interrupted {point} was not tried again"


@strace.needs_strace
def test_a_large_pack_may_fail_anywhere_too(template: Path) -> None:
    """Direct writes by a thread of their own; only the calls that a small pack does not make."""
    with quick_folder() as folder:
        points = [p for p in points_of(folder, template, 9 << 20) if p.name in ("pwrite64", "fcntl", "fsync", "link")]
        assert sum(p.name == "pwrite64" for p in points) >= 3
        for point in points:
            for error in ("EIO", "ENOSPC") if point.name == "pwrite64" else ("EIO",):
                fail(folder, template, 9 << 20, f"{point.name}:error={error}:when={point.nth}")


@strace.needs_strace
def test_a_record_that_cannot_be_made_durable_is_unknown_and_settled(template: Path) -> None:
    """Every fsync and link of the run fails in turn: among them are the record's, whose fate is open."""
    with quick_folder() as folder:
        points = [p for p in points_of(folder, template, 0) if p.name in ("fsync", "link", "linkat")]
        kinds = set()
        for point in points:
            outcome, *_ = fail(folder, template, 0, f"{point.name}:error=EIO:when={point.nth}")
            kinds |= {kind for _, kind, _ in outcome["failed"]}
        assert {"CommitUnknown", "CasError"} <= kinds


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
        shutil.copytree(template, disk / "store", ignore=shutil.ignore_patterns("index"))
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
