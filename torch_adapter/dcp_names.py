"""The flat names by which torch.distributed.checkpoint knows what stands in a state, and the way back.

A name is the path's keys as text, joined by dots. Dicts are taken apart, and lists that hold a dict or a tensor at
some depth; all else is one value. So int keys become text, and empty dicts have no name at all.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cas.block import ObjectId
from cas.errors import Invalid
from cas.nodes import KEYED_TAGS, MAX_DEPTH, MAX_ENTRIES, Node, Tag, expect
from cas.objects import entries_of
from cas.paths import Path, format_path
from cas.state import Container

Keys = tuple[str | int, ...]
"""A path as torch has it: places of a list are numbers, all keys of dicts are texts."""


class PlannerBytes(io.BytesIO):
    """What a planner has encoded in a way of its own: kept, pickled, and given back to a planner as it is."""


@dataclass(frozen=True, slots=True)
class Named:
    """A tensor or value of a commit."""

    path: Path
    keys: Keys
    node: Node


def named(tree: Node, load_tree: Callable[[ObjectId], Node], flatten: bool) -> dict[str, Named]:
    """What a state holds by the names that a planner gives it which does, or does not, flatten."""
    found: dict[str, Named] = {}
    held = _entries(tree, load_tree)
    if held is None or held[0] not in KEYED_TAGS:
        raise Invalid("torch.distributed.checkpoint loads states that are dicts, and this is none; use store.load")
    for item in _Naming(load_tree, MAX_DEPTH if flatten else 1).walk(tree, (), ()):
        name = ".".join(map(str, item.keys))
        if name in found:
            raise Invalid(
                f"{format_path(found[name].path)} and {format_path(item.path)} are both {name} to "
                "torch.distributed.checkpoint; use store.load"
            )
        found[name] = item
    return found


@dataclass(slots=True)
class _Naming:
    """One walk through a tree; from `depth` levels on all is a value."""

    load_tree: Callable[[ObjectId], Node]
    depth: int
    _entries: int = field(default=0)

    def walk(self, node: Node, path: Path, keys: Keys) -> Iterator[Named]:
        held = _entries(node, self.load_tree)
        if held is None or len(path) >= self.depth or (held[0] not in KEYED_TAGS and self._is_value(node)):
            yield Named(path, keys, node)
            return
        tag, entries = held
        self._entries += len(entries)
        expect(len(path) < MAX_DEPTH and self._entries <= MAX_ENTRIES, "a state is too deep or has too many entries")
        for at, entry in enumerate(entries):
            if tag in KEYED_TAGS:
                yield from self.walk(entry[1], (*path, entry[0]), (*keys, str(entry[0])))
            else:
                yield from self.walk(entry, (*path, at), (*keys, at))

    def _is_value(self, node: Node, depth: int = 0) -> bool:
        """Whether torch takes this for one value. Of sequences it takes only lists apart."""
        if _is_tensor(node):
            return False
        held = _entries(node, self.load_tree)
        if held is None or held[0] is Tag.TUPLE:
            return True
        expect(depth < MAX_DEPTH, "a state is nested too deep")
        return held[0] is Tag.LIST and all(self._is_value(child, depth + 1) for child in held[1])


def _entries(node: Node, load_tree: Callable[[ObjectId], Node]) -> tuple[Tag, list[Node]] | None:
    """As `entries_of`, but what is stored by its parts has none."""
    return None if type(node) is list and node[0] == Tag.COMPOSITE else entries_of(node, load_tree)


def _is_tensor(node: Node) -> bool:
    """Whether this is a tensor of torch, be it one that is stored by its parts."""
    return type(node) is list and node[0] in (Tag.TENSOR, Tag.COMPOSITE) and node[1] == "torch"


# -- back ---------------------------------------------------------------------------------------------------------


def nested(items: Mapping[str, Any], planner_data: Any) -> Container:
    """The skeleton of a state with `items` at the paths that a planner noted for their names, else by their names."""
    paths = planner_data if isinstance(planner_data, Mapping) else {}
    known = [name for name in paths if name in items]
    root = _Level()
    for name in (*known, *(name for name in items if name not in paths)):
        root.place(_keys(paths.get(name), name), name, items[name])
    return Container(Tag.DICT, list(root.children), [_built(child) for child in root.children.values()])


def _keys(path: Any, name: str) -> Keys:
    """The path that a planner noted for a name, if it is one."""
    is_path = isinstance(path, tuple) and bool(path) and all(type(key) in (str, int) for key in path)
    return path if is_path else (name,)


@dataclass(slots=True)
class _Level:
    """A container in the making; `kind` is that of its keys, numbers for a list."""

    children: dict[str | int, Any] = field(default_factory=dict)

    def place(self, path: Keys, name: str, item: Any) -> None:
        level = self
        for at, key in enumerate(path):
            last = at + 1 == len(path)
            mixed = bool(at) and bool(level.children) and type(next(iter(level.children))) is not type(key)
            below = level.children.setdefault(key, item if last else _Level())
            if mixed or (below is not item if last else type(below) is not _Level):
                raise Invalid(f"{name} stands where the state has something else on another rank; rename one of them")
            level = below


def _built(child: Any) -> Any:
    if type(child) is not _Level:
        return child
    children = {key: _built(below) for key, below in child.children.items()}
    places = [key for key in children if type(key) is int]
    if not places:
        return Container(Tag.DICT, list(children), list(children.values()))
    return Container(Tag.LIST, None, [children.get(at) for at in range(max(places) + 1)])
