"""Lists: immutable files of ids that the root names.

    lists/<id, 32 hex digits>:  header 64 | body | BLAKE3 32 of header and body
    body: [1, what, ids]        what: 0 condemned, ids of 16 bytes; 1 absent, pairs of 64 bytes; sorted, none twice

A condemned id is a pack's or a list's: nothing may lean on that file any more, and it will be deleted. An absent pair
is a commit and an object that is left out on the way down from that commit, though not from others. A root names few
lists: small ones are merged into the new one, so that their number grows with the logarithm of what they hold.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from enum import IntEnum
from itertools import pairwise
from typing import NewType

from blake3 import blake3

from . import envelope
from .backend import Backend
from .block import ID_SIZE, ObjectId
from .errors import Corrupt
from .nodes import expect, pack, unpack
from .verified import read_verified

ListId = NewType("ListId", bytes)
"""16 random bytes, never reused."""

FOLDER = "lists"
VERSION = 1
MAX_BYTES = 16 << 20
"""No list is larger; smaller ones are not merged into such."""
_DIGEST = 32


class What(IntEnum):
    """What a list holds. The numbers are part of the format."""

    CONDEMNED = 0
    ABSENT = 1


_ITEM_SIZE = {What.CONDEMNED: 16, What.ABSENT: 2 * ID_SIZE}


def name_of(name: ListId) -> str:
    return f"{FOLDER}/{name.hex()}"


def id_of(name: str) -> ListId | None:
    """The list that a listed file is, or None for a file that is no list."""
    try:
        found = ListId(bytes.fromhex(name.rpartition("/")[2]))
    except ValueError:
        return None
    return found if len(found) == 16 and name == name_of(found) else None


def pair(commit: ObjectId, name: ObjectId) -> bytes:
    """The item of an absent list."""
    return commit + name


def encode_list(what: What, items: Iterable[bytes]) -> bytes:
    body = pack([VERSION, what, b"".join(sorted(items))])
    data = envelope.header(envelope.FileKind.LIST) + body
    return data + blake3(data).digest()


def decode_list(data: bytes, what: What, where: str) -> list[bytes]:
    """The items of a list, verified and checked."""
    if len(data) < envelope.SIZE + _DIGEST or blake3(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise Corrupt(f"{where} does not match its checksum; restore it from another copy of the store")
    envelope.check_header(data, envelope.FileKind.LIST, where)
    body = unpack(data[envelope.SIZE : -_DIGEST], where)
    expect(type(body) is list and len(body) == 3, f"{where} has the wrong form")
    expect(pack(body[:2]) == pack([VERSION, what]), f"{where} is a list of another kind or version")
    size, ids = _ITEM_SIZE[what], body[2]
    expect(type(ids) is bytes and len(ids) % size == 0, f"{where} has a cut item")
    items = [ids[at : at + size] for at in range(0, len(ids), size)]
    expect(all(one < other for one, other in pairwise(items)), f"{where} is out of order")
    return items


def read(backend: Backend, name: ListId, what: What) -> list[bytes]:
    """The items of a list; `NotFound` where it is gone, because a newer root names another one instead."""
    return read_verified(backend, name_of(name), lambda data: decode_list(data, what, name_of(name)))


def extend(backend: Backend, lists: Sequence[ListId], what: What, items: Iterable[bytes]) -> tuple[ListId, ...]:
    """The lists of a root that holds `items` too: a new one, durable, in place of the small ones at the end.

    More than fit into one list of `MAX_BYTES` go into several.
    """
    held, kept, most = set(items), list(lists), MAX_BYTES // _ITEM_SIZE[what]
    while kept:
        last = read(backend, kept[-1], what)
        if len(last) > 2 * len(held) or len(last) + len(held) > most:
            break
        held.update(last)
        kept.pop()
    ordered = sorted(held)
    for at in range(0, len(ordered), most):
        made = ListId(secrets.token_bytes(16))
        backend.create(name_of(made), encode_list(what, ordered[at : at + most]))
        kept.append(made)
    return tuple(kept)
