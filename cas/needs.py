"""What objects name, remembered from one collection to the next.

    needs:  "needs 1\n" | count of objects, count of names (both u64) | kinds u8 | ids 32 | where each begins u64, and
            the end | kinds u8 of the names | ids 32 of the names

An object never changes, so what it names is remembered for ever; only what was reached in the last collection is kept.
The file lies beside the index and is as dispensable. Liveness rests on it, so it is believed only where its imprint
fits: a file that is damaged, or came with the store from elsewhere, counts for nothing, and objects are read again.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import imprint
from .block import ID_SIZE, Kind, ObjectId
from .picking import NAME, Names
from .reach import Edge, needs
from .reader import Objects

_COUNTS = struct.Struct("<8sQQ")
_MAGIC = b"needs 1\n"
_FLAG = ".clean"


class Needed(NamedTuple):
    """What one object names: structured objects one by one, blocks as an array in any order."""

    objects: tuple[Edge, ...]
    blocks: Names


_NOTHING = np.empty(0, NAME)


class Needs:
    """What objects name: from memory where they were met before, else from the objects themselves."""

    def __init__(self, objects: Objects, path: Path) -> None:
        self._objects = objects
        self._path = path
        self._known: dict[Edge, Needed] = {}
        self._loaded: _Loaded | None = _load(path)

    def of(self, edge: Edge) -> Needed:
        """What this object names, what its commit lacks on purpose included."""
        found = self._known.get(edge)
        if found is None:
            found = None if self._loaded is None else self._loaded.of(edge)
            if found is None:
                found = _needed(needs(edge, self._objects, {}))
            self._known[edge] = found
        return found

    def save(self, reached: Iterable[Edge]) -> None:
        """Remember these, in place of what was remembered. `OSError` where they cannot be written."""
        self._known = {edge: self.of(edge) for edge in reached}
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            with temporary.open("wb") as file:
                file.writelines(_encode(self._known))
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)
        imprint.take(self._path, _flag(self._path))


def _needed(edges: Iterable[Edge]) -> Needed:
    objects, blocks = [], []
    for kind, name in edges:
        if kind is Kind.BLOCK:
            blocks.append(name)
        else:
            objects.append((kind, name))
    return Needed(tuple(objects), np.frombuffer(b"".join(blocks), NAME) if blocks else _NOTHING)


def _encode(known: dict[Edge, Needed]) -> list[bytes]:
    lengths = [len(held.objects) + len(held.blocks) for held in known.values()]
    begins = np.concatenate([[0], np.cumsum(lengths, dtype=np.uint64)]).astype("<u8")
    return [
        _COUNTS.pack(_MAGIC, len(known), int(begins[-1])),
        bytes(kind for kind, _ in known),
        b"".join(name for _, name in known),
        begins.tobytes(),
        b"".join(bytes(kind for kind, _ in held.objects) + bytes(len(held.blocks)) for held in known.values()),
        *(b"".join(name for _, name in held.objects) + held.blocks.tobytes() for held in known.values()),
    ]


class _Loaded:
    """A file that is believed: objects are looked up in it, and become Python only when they are."""

    def __init__(self, data: bytes) -> None:
        _, count, total = _COUNTS.unpack_from(data)
        at = _COUNTS.size

        def take(dtype: Any, number: int) -> np.ndarray[Any, Any]:
            nonlocal at
            found = np.frombuffer(data, dtype, number, at)
            at += found.nbytes
            return found

        kinds, ids = take(np.uint8, count).tolist(), take(f"V{ID_SIZE}", count).tolist()
        self._begins = take("<u8", count + 1).tolist()
        self._kinds, self._names = take(np.uint8, total), take(NAME, total)
        self._numbers = {(Kind(kind), ObjectId(name)): n for n, (kind, name) in enumerate(zip(kinds, ids, strict=True))}

    def of(self, edge: Edge) -> Needed | None:
        number = self._numbers.get(edge)
        if number is None:
            return None
        begin, end = self._begins[number], self._begins[number + 1]
        kinds, names = self._kinds[begin:end], self._names[begin:end]
        first = int(np.count_nonzero(kinds))  # the structured ones stand before the blocks, whose kind is 0
        listed = names[:first].view(f"V{ID_SIZE}").tolist()
        objects = tuple((Kind(kind), ObjectId(name)) for kind, name in zip(kinds[:first].tolist(), listed, strict=True))
        return Needed(objects, names[first:])


def _load(path: Path) -> _Loaded | None:
    """What was remembered; None where there is nothing that can be believed."""
    if not imprint.fits(path, _flag(path)):
        return None
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return _Loaded(data) if data.startswith(_MAGIC) else None


def _flag(path: Path) -> Path:
    return path.with_name(path.name + _FLAG)
