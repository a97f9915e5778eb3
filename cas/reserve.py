"""A file that takes up space so that there is some when the disk is full: freeing needs a little first.

Local only. It is given up when what leads to space being freed cannot be written, and made again when space was freed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
from collections.abc import Callable
from typing import TypeVar

from .backend import Backend
from .errors import CasError, CommitUnknown, Exists, NotFound

NAME = "reserve"
SIZE = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT}
_log = logging.getLogger("cas")
T = TypeVar("T")


def restore(backend: Backend) -> None:
    """Make the reserve where it is missing; without space there is none."""
    try:
        if not backend.is_remote and not backend.exists(NAME):
            backend.create(NAME, secrets.token_bytes(SIZE))  # zeros may take no space
    except Exists:
        pass
    except OSError as error:
        _log.info("the reserve was not made: %s", error)


def on_reserve(backend: Backend, work: Callable[[], T]) -> T:
    """The result of `work`, which is tried once more on the reserve's space if there is none left."""
    try:
        return work()
    except (OSError, CasError) as error:
        if not is_full(error) or not _spend(backend):
            raise
        return work()


def is_full(error: BaseException) -> bool:
    """Whether this failed, for certain, because there was no space."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in _FULL and not isinstance(error, CommitUnknown)


def _spend(backend: Backend) -> bool:
    with contextlib.suppress(NotFound):
        backend.delete(NAME)
        return True
    return False


def free_bytes(backend: Backend) -> int | None:
    """How much more fits, where that is known."""
    if backend.is_remote:
        return None
    try:
        held = os.statvfs(backend.url)
    except OSError:
        return None
    return held.f_bavail * held.f_frsize
