"""Reading small files that prove themselves: records, lists, `cas.json`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from .backend import Backend
from .errors import Corrupt

T = TypeVar("T")


def read_verified(backend: Backend, name: str, decode: Callable[[bytes], T]) -> T:
    """What `decode` makes of a whole file. What came over a network and is `Corrupt` is asked for once more."""
    data = backend.read(name)
    try:
        return decode(data)
    except Corrupt:
        if not backend.is_remote:
            raise
    return decode(backend.read(name))
