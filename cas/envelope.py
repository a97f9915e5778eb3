"""The 64 bytes that every file but `cas.json` and the hint starts with.

    magic 8 | version u16 | kind u8 | cipher u8 | zero u32 | key id 16 | salt 32        (little-endian)

Cipher 0 means plain; key id and salt are then zero. They stand here so that encryption can come without a break.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from .errors import Corrupt, Unsupported

MAGIC = b"\x89CASv1\r\n"
VERSION = 1
SIZE = 64
_HEADER = struct.Struct("<8sHBBI16s32s")


class FileKind(IntEnum):
    PACK = 1
    RECORD = 2
    LIST = 3


def header(kind: FileKind) -> bytes:
    return _HEADER.pack(MAGIC, VERSION, kind, 0, 0, bytes(16), bytes(32))


def check_header(data: bytes, kind: FileKind, name: str) -> None:
    """`Corrupt` if `data` does not start a file of `kind`; `Unsupported` if a newer version or a cipher wrote it."""
    if len(data) < SIZE or data[:8] != MAGIC:
        raise Corrupt(f"{name} does not start like a file of a store; restore it from another copy")
    _, version, found, cipher, zero, key_id, salt = _HEADER.unpack_from(data)
    if version != VERSION or cipher != 0:
        raise Unsupported(f"{name} has format version {version}, cipher {cipher}; this release reads version 1, plain")
    if found != kind or zero or any(key_id) or any(salt):
        raise Corrupt(f"{name} has a damaged header; restore it from another copy")
