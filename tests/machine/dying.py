"""Children that are killed at a chosen system call: the same one whenever the same is done."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from typing import Any

from faults import children

CHANGING = ("open", "mkdir", "write", "pwrite", "fsync", "link", "unlink", "rename", "replace")
"""Functions of `os` that are counted: what a store does to files."""


def run(work: Callable[[], Any], calls: int, limit: float = 60.0) -> Any:
    """What `work` returned in a child; None if it was killed after so many calls, before one more."""
    child = children.start(_killed_after, work, calls)
    data, status = child.end(limit)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    return children.unpack(data, status)


def _killed_after(work: Callable[[], Any], calls: int) -> Any:
    gc.disable()  # it would copy every page of the parent's
    left = calls

    def counted(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*args, **options)

        return call

    for name in CHANGING:
        setattr(os, name, counted(getattr(os, name)))
    return work()
