"""Paths of leaves in a state, as people write them, and patterns over them.

`/` joins levels; dots belong to keys; a list index or int key prints as `[0]`. In keys `/` and `%` are escaped as
%2F and %25, a leading `[` as %5B, control characters by their UTF-8 bytes, an empty key is a lone `%`, and a path of
the one key `.` is %2E, since `.` is the state itself.
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
    text = "/".join(map(format_key, path))
    return "%2E" if text == "." else text or "."


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
        return self._whole.fullmatch(format_path(path) if path else "") is not None

    def may_match_below(self, path: Path) -> bool:
        """False when no path that begins with `path` can match."""
        levels = parse_levels(format_path(path))
        return any(all(a == b for a, b in zip(stem, levels, strict=False)) for stem in self._stems)


def _stem(text: str) -> list[str]:
    """The levels before the first one that holds a star."""
    return list(takewhile(lambda level: "*" not in level, parse_levels(text)))


def _regex(text: str) -> str:
    """One that takes time in proportion to the text: what lies between two stars is taken where it first fits."""
    levels = parse_levels(text)
    if not levels:
        return ".*"
    if "*" not in text:
        return re.escape("/".join(levels)) + "(?:/.*)?"
    runs: list[list[str]] = [[]]  # of levels between those that are **
    for level in levels:
        if level == "**":
            runs.append([])
        else:
            runs[-1].append(_level(level))
    joined = ["/".join(run) for run in runs]
    if len(joined) == 1:
        return joined[0]
    first, *middle, last = joined
    body = first + "/" if first else ""
    body += "".join(f"(?>(?:[^/]+/)*?{run}/)" for run in middle if run)
    return body + ("(?:[^/]+/)*" + last if last else "(?:[^/]+(?:/[^/]+)*)?")


def _level(level: str) -> str:
    first, *rest = map(re.escape, level.split("*"))
    if not rest:
        return first
    return first + "".join(f"(?>[^/]*?{part})" for part in rest[:-1]) + "[^/]*" + rest[-1]
