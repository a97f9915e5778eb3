"""The points at which a fault may strike an operation: its system calls, told apart by name and kind of file.

A call that fails, or is the last, is the same experiment wherever the name and the kind of file are the same, more or
less: so of every such class one call is taken, by some faults the first and by others the last, and every call where
CAS_TEST_EVERY_CALL is set.
A file in tmp/ is of the kind that it will be when it gets its name.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import threads
from .strace import Call, calls

EVERY_CALL = bool(os.environ.get("CAS_TEST_EVERY_CALL"))
SEED = int(os.environ.get("CAS_TEST_SEED", "0"))

SLACK = 20
"""Calls that a thread may make more than in the trace, because the first try failed."""

_KINDS = [
    (r"packs/../[^/]+", "pack"),
    (r"log/\d{20}", "record"),
    (r"root", "hint"),
    (r"lists/[^/]+", "list"),
    (r"cas\.json", "identity"),
    (r"reserve", "reserve"),
    (r"(.*/)?[^/]*(lock|lock\.mdb)", "lock"),
    (r"index/[^/]+", "index"),
    (r"tmp/[^/]+", "tmp"),
    (r"|packs|packs/..|log|lists|index|tmp", "directory"),
]

OPENING = {"open", "openat", "mkdir", "mkdirat", "fstatfs", "getdents64"}
LOOKING = {"newfstatat", "fstat", "statx", "lstat", "stat", "lseek"}
NAMING = {"link", "linkat", "rename", "renameat", "renameat2", "unlink", "unlinkat"}
READING = {"read", "pread64", "preadv", "preadv2"}
WRITING = {"write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "fallocate"}
SYNCING = {"fsync", "fdatasync", "msync", "sync_file_range"}
LOCKING = {"flock", "fcntl"}
ON_FILES = OPENING | LOOKING | NAMING | READING | WRITING | SYNCING | LOCKING | {"close"}
TAKING_ROOM = WRITING | SYNCING | {"open", "openat", "mkdir", "mkdirat", "link", "linkat", "rename", "renameat"}
CHANGING = NAMING | WRITING | SYNCING | {"open", "openat", "mkdir", "mkdirat", "flock"}
INTERRUPTIBLE = READING | WRITING | SYNCING | {"open", "openat", "flock"}
TRIED_AGAIN = INTERRUPTIBLE - {"openat"}
"""After an interrupt, by Python or by the store; Python opens directories that it lists once only."""

WRITES = ("write", "pwrite")
"""Names of the functions of `os` through which the store writes; they may write less than they were given."""


@dataclass(frozen=True)
class Point:
    """The `nth` call of `name` in its thread, from 1; `on` is the kind of file, empty where there is none.

    `thread` is 0 for the first one. `lead` is more than any other thread's calls of the name, or 0 where there are
    no others; see `threads`.
    """

    name: str
    nth: int
    on: str
    thread: int = 0
    lead: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.nth}" + (f"@{self.thread}" if self.thread else "")


@dataclass(frozen=True)
class Fault:
    """What strace does at the calls `at`: `inject` has the number of the call for {n}. None is a short write.

    With `lasting` all calls of the name fail from the point on.
    """

    name: str
    inject: str | None
    at: frozenset[str] | set[str]
    lasting: bool = False

    def lead(self, point: Point) -> int:
        """In how many calls in vain the thread of the point begins: none where the fault is to strike all threads."""
        return 0 if self.lasting and not point.thread else point.lead

    def injection(self, point: Point) -> str:
        """For strace, at this point."""
        assert self.inject is not None
        nth = self.lead(point) + point.nth
        return f"{point.name}:{self.inject.format(n=nth, last=nth + 9)}"


def _error(name: str, at: set[str]) -> list[Fault]:
    return [
        Fault(name, f"error={name}:when={{n}}", at),
        Fault(f"{name}-lasting", f"error={name}:when={{n}}+", at, lasting=True),
    ]


KILL = Fault("kill", "signal=KILL:when={n}", set())
_ALL = [
    KILL,
    *_error("EIO", ON_FILES),
    *_error("ENOSPC", TAKING_ROOM),
    *_error("EDQUOT", TAKING_ROOM),
    Fault("EINTR", "error=EINTR:when={n}", INTERRUPTIBLE),
    # Not for ever: who tries again after an interrupt, as Python does, would never come to an end.
    Fault("EINTR-lasting", "error=EINTR:when={n}..{last}", INTERRUPTIBLE),
    Fault("short", None, set(WRITES)),
    Fault("short-lasting", None, set(WRITES), lasting=True),
]
FAULTS = {fault.name: fault for fault in _ALL}


def points_of(trace: str, store: Path) -> list[Point]:
    """Every call of a trace as a point, in order; of threads but the first those on files alone."""
    found = [call for call in calls(trace) if "<pipe:" not in call.text]  # without the gate, before the work
    kinds = _kinds_of_temporary_files(found, store)
    most: dict[str, dict[int, int]] = {}
    for call in found:
        most.setdefault(call.name, {})[call.thread] = call.nth
    points = []
    for call in found:
        on = kind_of(_path(call), store, kinds)
        others = [count for thread, count in most[call.name].items() if thread != call.thread]
        shared = bool(others or call.thread) and call.name in threads.IN_VAIN  # with threads of a second try as well
        lead = max(others, default=0) + SLACK if shared else 0
        if not call.thread or (on and call.name in threads.IN_VAIN):
            points.append(Point(call.name, call.nth, on, call.thread, lead))
    return points


def _kinds_of_temporary_files(found: Iterable[Call], store: Path) -> dict[str, str]:
    kinds = {}
    for call in found:
        paths = _paths(call)
        if call.name.startswith(("link", "rename")) and len(paths) > 1:
            kinds[paths[0]] = f"tmp {kind_of(paths[-1], store, {})}"
    return kinds


def kind_of(path: str, store: Path, temporary: dict[str, str]) -> str:
    """What a file of the store is for; empty for a path outside."""
    if path in temporary:
        return temporary[path]
    if path != str(store) and not path.startswith(f"{store}/"):
        return ""
    name = path[len(str(store)) + 1 :]
    for pattern, kind in _KINDS:
        if re.fullmatch(pattern, name):
            return f"{kind} {re.split('/', name)[0]}".strip() if kind == "directory" else kind
    return "other"


def _path(call: Call) -> str:
    """The file that a call is about: the name that it gives last, else that of its descriptor."""
    return (_paths(call) or [""])[-1]


def _paths(call: Call) -> list[str]:
    names = [name for name in re.findall(r'"((?:[^"\\]|\\.)*)"', call.text) if name.startswith("/")]
    return names or re.findall(r"^\d+<(/[^>]*?)(?: \(deleted\))?>", call.text)


def chosen(points: list[Point], fault: Fault) -> list[Point]:
    """The points at which this fault is to strike."""
    some = [p for p in points if (p.on and p.name in fault.at) or fault is KILL]
    return some if EVERY_CALL else one_of_each(some, fault.name)


def one_of_each(points: list[Point], fault: str) -> list[Point]:
    """Of all points that are alike the first or the last, in order; which of them depends on class and fault."""
    classes: dict[tuple[str, str, bool], list[Point]] = {}
    for point in points:
        classes.setdefault((point.name, point.on, point.thread > 0), []).append(point)
    wanted = {alike[-(zlib.crc32(f"{fault} {key}".encode()) & 1)] for key, alike in classes.items()}
    return [point for point in points if point in wanted]
