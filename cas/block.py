"""Names of stored objects, and how their bytes may be stored.

A data block is named by the plain BLAKE3 of its raw bytes, so that any BLAKE3 tool can compute it. Structured
objects use BLAKE3 in key-derivation mode with one context string a kind: bytes of one kind never pass for another.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, NewType

from blake3 import blake3

from .backend import Buffer

ObjectId = NewType("ObjectId", bytes)
"""32 bytes: the BLAKE3 that names a block, list, layout, tree or commit."""

ID_SIZE = 32
MAX_BLOCK_SIZE = 4 << 20
"""No reader accepts a larger data block, whatever the store's block_size."""
MIN_BLOCK_SIZE = 4 << 10
MAX_OBJECT_SIZE = 16 << 20
"""No reader accepts a larger structured object."""


class Kind(IntEnum):
    """What an object is. The numbers are part of the format."""

    BLOCK = 0
    LIST = 1
    LAYOUT = 2
    TREE = 3
    COMMIT = 4


class Codec(IntEnum):
    """How an object's bytes are stored. The numbers are part of the format."""

    RAW = 0
    ZSTD = 1
    PLANES = 2
    DELTA = 3


NO_BASE = bytes(ID_SIZE)
MAX_CHAIN = 8


class Coding(NamedTuple):
    """How the bytes of one object are stored.

    `width` is the element width in bytes for codecs that know elements, else 0. A delta's `base` is the id of the
    block that it changes, and its `chain`, 1 to `MAX_CHAIN`, is above that of a row which the base decodes from: so
    there are at most so many bases below. For all else they are `NO_BASE` and 0.
    """

    codec: Codec
    width: int = 0
    chain: int = 0
    base: bytes = NO_BASE


PLAIN = Coding(Codec.RAW)


CONTEXTS = {
    Kind.LIST: "cas-checkpoints 2026-11 list v1",
    Kind.LAYOUT: "cas-checkpoints 2026-11 layout v1",
    Kind.TREE: "cas-checkpoints 2026-11 tree v1",
    Kind.COMMIT: "cas-checkpoints 2026-11 commit v1",
}


def block_id(data: Buffer) -> ObjectId:
    return ObjectId(blake3(data).digest())


def object_id(kind: Kind, data: Buffer) -> ObjectId:
    """The name that `data` has as an object of `kind`."""
    if kind is Kind.BLOCK:
        return block_id(data)
    return ObjectId(blake3(data, derive_key_context=CONTEXTS[kind]).digest())


def max_size(kind: Kind) -> int:
    """The most raw bytes that an object of this kind may have."""
    return MAX_BLOCK_SIZE if kind is Kind.BLOCK else MAX_OBJECT_SIZE


def short(name: bytes) -> str:
    """The first eight hex digits, as people see ids."""
    return name.hex()[:8]
