"""Many tensors as a few rows: neighbours whose names start alike, so that hundreds stay readable. Pure.

Names are a tree whose levels end at `/` and at the dots inside keys. Starting from all in one row, the heaviest row
is split into its parts as long as the rows stay few enough; rows with more parts than that are cut into runs of
neighbours. Numbered parts (h.0, h.1, ...) come last, and are split together or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cas.paths import Path, format_key

_LEVELS = 24  # deeper ones stay together: a key can hold any number of dots


@dataclass(frozen=True, slots=True)
class Row:
    """Tensors shown together: the numbers of their paths in the list that was given, and a name for them."""

    name: str
    members: list[int]


@dataclass(slots=True, eq=False)
class _Node:
    name: str
    token: str
    family: _Node | None = None
    children: dict[str, _Node] = field(default_factory=dict)
    members: list[int] = field(default_factory=list)
    weight: int = 0

    def parts(self) -> list[_Node]:
        """What the next split gives; nodes with a single child are passed over."""
        found = []
        for child in self.children.values():
            family = self if _is_number(child.token) else None
            while len(child.children) == 1:
                child = next(iter(child.children.values()))
            child.family = family
            found.append(child)
        return found


def group(paths: Sequence[Path], weights: Sequence[int], limit: int) -> list[Row]:
    """At most `limit` rows that hold every path once, in the order of the paths; heavy ones in more detail."""
    rows, before = [_tree(paths, weights)], 0
    while len(rows) > before:
        before = len(rows)
        rows = _split(rows, limit, numbered=False)
        rows = _cut(rows, limit)
        rows = _split(rows, limit, numbered=True)
    return [Row(row.name, row.members) for row in rows]


def _tree(paths: Sequence[Path], weights: Sequence[int]) -> _Node:
    root = _Node("", "")
    for number, (path, weight) in enumerate(zip(paths, weights, strict=True)):
        node = root
        for token in ("", *_tokens(path), ""):  # the last keeps `a` apart from `a.b`
            if token not in node.children:
                node.children[token] = _Node(node.name + token, token)
            node.members.append(number)
            node.weight += weight
            node = node.children[token]
        node.members.append(number)
        node.weight += weight
    return root.parts()[0]


def _tokens(path: Path) -> list[str]:
    found: list[str] = []
    for level, key in enumerate(path):
        first, *others = format_key(key).split(".")
        found.append(("/" if level else "") + first)
        found += [f".{other}" for other in others]
    return [*found[:_LEVELS], "".join(found[_LEVELS:])] if len(found) > _LEVELS else found


def _is_number(token: str) -> bool:
    return token.strip("/.[]").isdecimal()


def _split(rows: list[_Node], limit: int, numbered: bool) -> list[_Node]:
    """Rows split into their parts, the heaviest first, while there is room; numbered ones with all their siblings."""
    while True:
        families: dict[_Node, list[_Node]] = {}
        for row in rows:
            if row.children and numbered == (row.family is not None):
                families.setdefault(row.family or row, []).append(row)
        room = limit - len(rows)
        fitting = [family for family in families.values() if sum(len(row.children) - 1 for row in family) <= room]
        if not fitting:
            return rows
        chosen = set(max(fitting, key=lambda family: sum(row.weight for row in family)))
        rows = [part for row in rows for part in (row.parts() if row in chosen else [row])]


def _cut(rows: list[_Node], limit: int) -> list[_Node]:
    """Rows with more parts than there is room for cut into runs, all of about as many."""
    wide = sorted((row for row in rows if row.children and row.family is None), key=lambda row: -row.weight)
    room, runs = limit - len(rows), {}
    for left, row in zip(range(len(wide), 0, -1), wide, strict=True):
        runs[row] = [row] if room < left else list(_runs(row, 1 + room // left))
        room -= len(runs[row]) - 1
    return [made for row in rows for made in runs.get(row, [row])]


def _runs(row: _Node, count: int) -> Iterator[_Node]:
    """At most `count` runs of neighbouring parts, of the same length but for the last."""
    parts = list(row.children.values())
    size = math.ceil(len(parts) / count)
    for at in range(0, len(parts), size):
        run = parts[at : at + size]
        name = run[0].name + (f" … {run[-1].token.lstrip('/.')}" if len(run) > 1 else "")
        yield _Node(name, "", members=[member for part in run for member in part.members])
