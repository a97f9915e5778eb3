"""Faults in threads other than the first.

strace counts the calls of each thread from 1, so the first write of a thread cannot be told from the first of the
process. A thread that is to be struck alone therefore first makes so many calls of the name, all in vain, that no
other thread gets as far.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

_NO_FILE = 1 << 30
IN_VAIN: dict[str, Callable[[], Any]] = {
    "openat": lambda: os.open("", os.O_RDONLY),
    "mkdir": lambda: os.mkdir(""),
    "link": lambda: os.link("", ""),
    "rename": lambda: os.rename("", ""),
    "unlink": lambda: os.unlink(""),
    "newfstatat": lambda: os.lstat(""),
    "read": lambda: os.read(_NO_FILE, 0),
    "pread64": lambda: os.pread(_NO_FILE, 0, 0),
    "preadv2": lambda: os.preadv(_NO_FILE, [bytearray(1)], 0),
    "write": lambda: os.write(_NO_FILE, b""),
    "pwrite64": lambda: os.pwrite(_NO_FILE, b"", 0),
    "fcntl": lambda: fcntl.fcntl(_NO_FILE, fcntl.F_GETFL),
    "flock": lambda: fcntl.flock(_NO_FILE, fcntl.LOCK_UN),
    "fsync": lambda: os.fsync(_NO_FILE),
    "fdatasync": lambda: os.fdatasync(_NO_FILE),
    "close": lambda: os.close(_NO_FILE),
}
"""One system call each, which fails."""


def lead(thread: int, name: str, calls: int) -> None:
    """In a child: the first thread, or the `thread`-th that it starts, begins with so many calls of the name."""
    if thread == 0:
        _call_in_vain(name, calls)
        return
    started, plain = count(1), threading.Thread.start

    def start(self: threading.Thread) -> None:
        if next(started) == thread:
            self.run = partial(_run_late, self.run, name, calls)  # type: ignore[method-assign]
        plain(self)

    threading.Thread.start = start  # type: ignore[method-assign]


def _run_late(run: Callable[[], None], name: str, calls: int) -> None:
    _call_in_vain(name, calls)
    run()


def _call_in_vain(name: str, calls: int) -> None:
    for _ in range(calls):
        with contextlib.suppress(OSError):
            IN_VAIN[name]()
