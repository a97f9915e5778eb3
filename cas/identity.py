"""`cas.json`: what makes a directory a store. Written once, never changed.

One line of JSON, keys in this order: magic, version, id (32 hex digits), block_size, and blake3, which is the BLAKE3
of the line as it would stand without it.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass

from blake3 import blake3

from .backend import Backend, NoPlace
from .block import MIN_BLOCK_SIZE
from .errors import Corrupt, Invalid, NotFound, Unsupported
from .grid import MAX_CELL
from .verified import read_verified

NAME = "cas.json"
_MAGIC = "cas-checkpoints"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a store is: a random id, and the largest block in bytes that new cuts make."""

    id: str
    block_size: int


def new_identity(block_size: int) -> Identity:
    if not _is_block_size(block_size):
        raise Invalid(f"block_size is a power of two from {MIN_BLOCK_SIZE} to {MAX_CELL} bytes, not {block_size!r}")
    return Identity(secrets.token_hex(16), block_size)


def _is_block_size(value: object) -> bool:
    return type(value) is int and MIN_BLOCK_SIZE <= value <= MAX_CELL and value & (value - 1) == 0


def _is_id(value: object) -> bool:
    return type(value) is str and re.fullmatch("[0-9a-f]{32}", value) is not None


def encode(identity: Identity) -> bytes:
    fields = {"magic": _MAGIC, "version": _VERSION, "id": identity.id, "block_size": identity.block_size}
    digest = blake3(json.dumps(fields).encode()).hexdigest()
    return json.dumps({**fields, "blake3": digest}).encode() + b"\n"


def read(backend: Backend) -> Identity:
    """The store's identity, checked; `NotFound` where there is no store."""
    try:
        return read_verified(backend, NAME, lambda data: _decode(data, backend))
    except NoPlace:
        raise
    except NotFound:
        raise NotFound(
            f"there is no store at {backend.url}; make one with `cas init` or cas.open(path, create=True)"
        ) from None


def _decode(data: bytes, backend: Backend) -> Identity:
    url = backend.url
    try:
        fields = json.loads(data)
        identity = Identity(fields["id"], fields["block_size"])
        version = fields["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        other = ", or something else answers there: check the address, or" if backend.is_remote else ";"
        raise Corrupt(f"{NAME} of {url} is damaged{other} restore it from another copy") from None
    if version != _VERSION and isinstance(version, int) and fields.get("magic") == _MAGIC:
        raise Unsupported(f"store {url} has format version {version}; this release reads version {_VERSION}")
    valid = _is_block_size(identity.block_size) and _is_id(identity.id)
    if not valid or encode(identity) != data:
        raise Corrupt(f"{NAME} of {url} does not match its checksum; restore it from another copy")
    return identity
