"""Exclusive locks between processes, on descriptors of files that exist for nothing else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time


def lock_within(fd: int, seconds: float) -> bool:
    """Take the lock; False if others hold it all that time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)


def unlock(fd: int) -> None:
    """Give up a lock and its descriptor; closing alone would leave it with a forked child that inherited it."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    with contextlib.suppress(OSError):
        os.close(fd)
