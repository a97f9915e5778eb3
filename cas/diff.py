"""What differs between the states of two commits. Their trees are walked side by side; equal parts are not read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .block import ObjectId
from .change import Change, Gauge
from .leaves import Leaf, TensorLeaf, leaf_of
from .nodes import KEYED_TAGS, MAX_DEPTH, MAX_ENTRIES, Node, Tag, expect, pack
from .objects import entries_of
from .paths import Key, Path, Patterns
from .present import Lacking
from .reader import BlockReader, Objects

_ABSENT: Any = object()
Sides = tuple[Objects, Objects]
"""Those of the commit before, and of the one after."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One path at which two states differ. `before` and `after` say what is there; None in one that has nothing.

    A container is named only where it is empty, of another type, or has its keys in another order (then `before`
    and `after` are equal); else what is in it is. `change` is there for tensors of the same dtype and shape where
    values were read. How a tensor is sharded, and what it is tied to, is no difference.
    """

    path: Path
    kind: Literal["added", "removed", "changed"]
    before: Leaf | None
    after: Leaf | None
    change: Change | None = None


def diff(
    objects: Sides,
    blocks: BlockReader,
    before: ObjectId,
    after: ObjectId,
    values: bool = True,
    only: Patterns | None = None,
) -> Iterator[Difference]:
    """What differs between two commits, at paths that match `only`.

    In the order of the state before; in each container, what only the one after has comes last. Without `values` no
    content is read: a tensor that is stored otherwise counts as changed, even where its bytes are the same.
    Equal parts may be absent; others that are, at paths that may match, are an error.
    """
    gauge = Gauge(objects, blocks, before, after) if values else None
    trees = [held.tree(held.commit(name).tree) for held, name in zip(objects, (before, after), strict=True)]
    for path, old, new in pairs(trees[0], trees[1], objects, only):
        if only is not None and not only.match(path):
            continue
        if new is None:
            yield Difference(path, "removed", old, None)
        elif old is None:
            yield Difference(path, "added", None, new)
        elif not (isinstance(old, TensorLeaf) and isinstance(new, TensorLeaf)) or _form(old) != _form(new):
            yield Difference(path, "changed", old, new)
        else:
            change = None if gauge is None else gauge.change(old, new)
            moved = old.entry.content != new.entry.content if change is None else change.differing > 0
            if moved or old.entry.framework != new.entry.framework:
                yield Difference(path, "changed", old, new, change)


def _form(leaf: TensorLeaf) -> tuple[str, tuple[int, ...]]:
    return leaf.dtype, leaf.shape


Pair = tuple[Path, Leaf | None, Leaf | None]


def pairs(before: Node, after: Node, objects: Sides, only: Patterns | None) -> Iterator[Pair]:
    """What stands at each path where two nodes differ, or may."""
    todo: list[tuple[Path, Node, Node]] = [((), before, after)]
    count = 0
    while todo:
        path, before, after = todo.pop()
        both = before is not _ABSENT and after is not _ABSENT
        if (both and pack(before) == pack(after)) or (only is not None and not only.may_match_below(path)):
            continue
        try:
            before, after = _opened(before, objects[0]), _opened(after, objects[1])
            shared = _shared_parts(before, after)
            old, new = _children(before, objects[0], shared), _children(after, objects[1], shared)
        except Lacking as error:
            raise error.at(path) from error
        yield from _here(path, (before, old), (after, new))
        old, new = old or {}, new or {}
        count += len(old) + len(new)
        fits = count <= 2 * MAX_ENTRIES and (len(path) < MAX_DEPTH or not (old or new))
        expect(fits, "a state is nested too deep or has too many entries")
        keys = [key for key in (old | new) if not isinstance(key, bytes)]
        todo += [((*path, key), old.get(key, _ABSENT), new.get(key, _ABSENT)) for key in reversed(keys)]


Children = dict[Key | bytes, Node]
"""What a container holds by key or index. A part that both sides have stands there by its id and was not read."""


def _opened(node: Node, objects: Objects) -> Node:
    is_ref = type(node) is list and node[0] == Tag.REF
    return objects.tree(ObjectId(node[1])) if is_ref else node


def _is_keyed_parts(node: Node) -> bool:
    return type(node) is list and node[0] == Tag.PARTS and node[1] in KEYED_TAGS


def _shared_parts(before: Node, after: Node) -> set[bytes]:
    """The parts of a dict that are the same on both sides. Keys are unique, so what is in them is equal."""
    return set(before[2]) & set(after[2]) if _is_keyed_parts(before) and _is_keyed_parts(after) else set()


def _children(node: Node, objects: Objects, shared: set[bytes]) -> Children | None:
    """What a container holds; None for a leaf, or where there is nothing."""
    if _is_keyed_parts(node):
        found: Children = {}
        for part in node[2]:
            held = entries_of([Tag.PARTS, node[1], [part]], objects.tree) if part not in shared else None
            found.update([(part, None)] if held is None else held[1])
            expect(len(found) <= MAX_ENTRIES, f"a container has over {MAX_ENTRIES} entries")
        return found
    held = entries_of(node, objects.tree)
    if held is None:
        return None
    return dict(held[1] if held[0] in KEYED_TAGS else enumerate(held[1]))


Side = tuple[Node, Children | None]


def _here(path: Path, old: Side, new: Side) -> Iterator[Pair]:
    """What is to be said of `path` itself, and not of what lies below it."""
    if old[1] is not None and new[1] is not None:
        one, other = _container(path, old[0]), _container(path, new[0])
        if one != other or [key for key in old[1] if key in new[1]] != [key for key in new[1] if key in old[1]]:
            yield path, one, other
        return
    before, after = _alone(path, *old), _alone(path, *new)
    if before is not None or after is not None:
        yield path, before, after


def _alone(path: Path, node: Node, children: Children | None) -> Leaf | None:
    """A leaf or an empty container."""
    if node is _ABSENT or children:
        return None
    return leaf_of(path, node) if children is None else _container(path, node)


def _container(path: Path, node: Node) -> Leaf:
    """A container as a leaf that names its type."""
    return leaf_of(path, [node[1], []] if node[0] == Tag.PARTS else node)
