"""Whether a backend keeps what a store leans on: of racing creates exactly one wins, and nothing is overwritten.

Some servers say that they have no conditional writes, some ignore the condition and overwrite without a word: only
trying tells.
"""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from .backend import Backend
from .errors import Exists, NotFound, Unsupported

_ROUNDS = 5
_RACERS = 8


def has_honest_create(backend: Backend) -> bool:
    """Try it with some small files under `tmp/`, which are gone afterwards.

    Errors that say nothing about it go through: no such bucket, wrong credentials, no connection.
    """
    if not backend.has_honest_create:
        return False
    try:
        return all(_is_fair(backend) for _ in range(_ROUNDS))
    except Unsupported:
        return False


def _is_fair(backend: Backend) -> bool:
    """One race, and one who comes late."""
    name = f"tmp/probe-{secrets.token_hex(16)}"
    bodies = [secrets.token_bytes(64) for _ in range(_RACERS)]
    together = threading.Barrier(_RACERS)

    def race(body: bytes) -> bool:
        together.wait()
        return _creates(backend, name, body)

    try:
        with ThreadPoolExecutor(_RACERS) as pool:
            won = list(pool.map(race, bodies))
        if won.count(True) != 1:
            return False
        late = _creates(backend, name, secrets.token_bytes(64))
        winner = bodies[won.index(True)]
        return not late and any(backend.read(name) == winner for _ in range(2))  # a network may damage an answer
    finally:
        with suppress(NotFound, OSError):  # a sweep finds what is left
            backend.delete(name)


def _creates(backend: Backend, name: str, body: bytes) -> bool:
    try:
        backend.create(name, body)
    except Exists:
        return False
    return True
