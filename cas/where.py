"""Where the objects of a commit lie: hints for a process that has no index yet, so that it reads few pack tables.

    where/<commit id, 64 hex digits>:  "where 1\n" | pack ids 16 each, sorted | BLAKE3 32 of all before

Derived and advisory: written after a commit was published, into remote stores alone. A hint that is missing, damaged or
out of date costs a listing of all packs and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable

from blake3 import blake3

from .backend import Backend
from .block import ID_SIZE, ObjectId
from .errors import CasError
from .pack import PackId

FOLDER = "where"
_MAGIC = b"where 1\n"
_PACK = 16
_DIGEST = 32


def name_of(commit: ObjectId) -> str:
    return f"{FOLDER}/{commit.hex()}"


def id_of(name: str) -> ObjectId | None:
    """The commit that a listed file is a hint for, or None for another file."""
    try:
        found = ObjectId(bytes.fromhex(name.rpartition("/")[2]))
    except ValueError:
        return None
    return found if len(found) == ID_SIZE and name == name_of(found) else None


def read(backend: Backend, commit: ObjectId) -> list[PackId]:
    """The packs that hold what the commit needs, as far as known; none without a hint that can be believed."""
    try:
        data = backend.read(name_of(commit))
    except (CasError, OSError):
        return []
    body = data[len(_MAGIC) : -_DIGEST]
    whole = data.startswith(_MAGIC) and data[-_DIGEST:] == blake3(data[:-_DIGEST]).digest() and not len(body) % _PACK
    return [PackId(body[at : at + _PACK]) for at in range(0, len(body), _PACK)] if whole else []


def write(backend: Backend, commit: ObjectId, packs: Iterable[PackId]) -> None:
    """Leave a hint."""
    data = _MAGIC + b"".join(sorted(set(packs)))
    backend.replace(name_of(commit), data + blake3(data).digest())
