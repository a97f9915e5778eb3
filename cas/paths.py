"""Paths of leaves in a state, as people write them, and patterns over them.

`/` joins levels; dots belong to keys; a list index or int key prints as `[0]`. In keys `/` and `%` are escaped as
%2F and %25, a leading `[` as %5B, control characters by their UTF-8 bytes, and an empty key is a lone `%`.
A pattern without `*` is a prefix of levels; `*` stands for anything in one level, a level `**` for any levels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from .errors import Invalid

Key = str | int
Path = tuple[Key, ...]

_ESCAPED = re.compile(r"[/%\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]|^\[")


def is_file_name(name: str) -> bool:
    """Whether a side file may be called so: relative, normal and printable, so that it stays below its folder."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and all(part not in ("", ".", "..") for part in parts)


def format_key(key: Key) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    escaped = _ESCAPED.sub(lambda m: "".join(f"%{byte:02X}" for byte in m.group().encode()), key)
    return escaped or "%"


def format_path(path: Iterable[Key]) -> str:
    """The path as text; `.` for the state itself."""
    return "/".join(map(format_key, path)) or "."


def parse_levels(text: str) -> list[str]:
    """The levels of a path's text, still escaped."""
    text = text.strip("/")
    return text.split("/") if text and text != "." else []


class Patterns:
    """Any of some patterns."""

    def __init__(self, patterns: str | Sequence[str]) -> None:
        texts: Any = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise Invalid(f"a pattern is a text such as model/**, not {patterns!r}")
        self._whole = re.compile("|".join(f"(?:{_regex(text)})" for text in texts))
        self._stems = [_stem(text) for text in texts]

    def match(self, path: Path) -> bool:
        return self._whole.fullmatch("/".join(map(format_key, path))) is not None

    def may_match_below(self, path: Path) -> bool:
        """False when no path that begins with `path` can match."""
        levels = list(map(format_key, path))
        return any(all(a == b for a, b in zip(stem, levels, strict=False)) for stem in self._stems)


def _stem(text: str) -> list[str]:
    """The levels before the first one that holds a star."""
    return list(takewhile(lambda level: "*" not in level, parse_levels(text)))


def _regex(text: str) -> str:
    levels = parse_levels(text)
    if not levels:
        return ".*"
    if "*" not in text:
        return re.escape("/".join(levels)) + "(?:/.*)?"
    body = ""
    for at, level in enumerate(levels):
        slash = "/" if at + 1 < len(levels) else ""
        if level == "**":
            body += "(?:[^/]+/)*" if slash else "(?:[^/]+(?:/[^/]+)*)?"
        else:
            body += "[^/]*".join(map(re.escape, level.split("*"))) + slash
    return body
