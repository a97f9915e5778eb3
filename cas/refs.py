"""Refs: names of commits, and the rules for names."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from enum import IntEnum

from .block import ObjectId
from .errors import Exists, Invalid


class RefKind(IntEnum):
    """The numbers are part of the format. A tracking branch mirrors a remote's and is moved by fetch alone."""

    BRANCH = 0
    TAG = 1
    TRACKING = 2


Ref = tuple[RefKind, str]
Refs = Mapping[Ref, ObjectId]

MAX_NAME = 200
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff~^:@?*\[\]\\{}]")
_RESERVED = {"HEAD", "head", "root", "origin"}


def check_name(name: object, what: str) -> str:
    """The name, if a branch or tag may be called so; else `Invalid` with the rule that it breaks."""
    if not isinstance(name, str) or not name:
        raise Invalid(f"a {what} name is a non-empty text, not {name!r}")
    if _FORBIDDEN.search(name):
        raise Invalid(
            f"{what} name {name!r} holds a space, a control character or one of ~^:@?*[]{{}}\\; choose another"
        )
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME or not name.isprintable():
        raise Invalid(f"{what} name {name[:40]!r} is too long or not printable; use up to {MAX_NAME} bytes")
    parts = name.split("/")
    if any(part in ("", ".", "..") or part.startswith(("-", ".")) or part.endswith(".") for part in parts):
        raise Invalid(f"{what} name {name!r} has an empty part, or one that starts with - or . or ends with .")
    if name in _RESERVED:
        raise Invalid(f"{what} name {name!r} is reserved; choose another")
    return name


@functools.lru_cache(maxsize=1 << 16)  # each record of the log names all refs again
def is_name(name: object) -> bool:
    """Whether a branch may be called so."""
    try:
        check_name(name, "branch")
    except Invalid:
        return False
    return True


def check_free(refs: Refs, name: str) -> None:
    """`Exists` if a ref lies above or below `name` as a path would: `a` and `a/b` cannot both be."""
    for _, other in refs:
        if other.startswith(name + "/") or name.startswith(other + "/"):
            raise Exists(f"{name} cannot stand beside {other}; rename one of them")
