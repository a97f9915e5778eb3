"""What commits use: how many bytes, part by part and dtype by dtype, and which blocks.

Every tree, layout and list is read once, however many commits have it. A block that several groups use belongs to the
one that is met first, from the newest commit back. What a commit lacks on purpose is none of its bytes, and neither is
a tensor of which a part is absent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .absence import NOTHING
from .ancestry import newest_first
from .block import Kind, ObjectId
from .dtypes import DTYPES
from .nodes import KEYED_TAGS, LISTED_TAGS, MAX_BYTES, MAX_DEPTH, Node, Tag, expect
from .objects import Commit
from .paths import format_path
from .picking import NAME, Names, Numbers, distinct
from .reach import Below
from .reader import Objects
from .roots import Absent

LEAVES = "(leaves)"
"""The part of tensors and values that stand at the top of a state: there may be very many."""
SIDE_FILES = "(side files)"
ORIGIN = "(origin)"
BYTES = "bytes"
"""The dtype of what is no tensor."""

_TREES = 2 * MAX_DEPTH
"""The most trees inside each other: one, or one of its parts, a container."""
_GATHER = 1 << 20
"""Blocks that are held before what stands there twice is dropped."""
_STATE = "state"
_PLAIN = (Tag.TENSOR, Tag.TEXT, Tag.BYTES, Tag.PICKLE, Tag.BIGINT, Tag.SCALAR, Tag.FOREIGN)


class Group(NamedTuple):
    """`path` is one level below the top of a state, or one of the above."""

    path: str
    dtype: str


class _Sum(NamedTuple):
    """Bytes of a subtree by dtype; those of tied tensors apart, by tie, for each counts once in a commit."""

    nbytes: Counter[str]
    ties: dict[int, tuple[str, int]]


@dataclass(slots=True)
class Uses:
    """`groups[n]` uses `nbytes[n]` bytes, every use counted. `commits` counts those whose state is there, in
    part at least."""

    objects: Objects
    groups: dict[Group, int] = field(default_factory=dict)
    nbytes: Counter[int] = field(default_factory=Counter)
    commits: int = 0
    _met: list[ObjectId] = field(default_factory=list)
    _below: Below = field(default_factory=Below)
    _trees: set[ObjectId] = field(default_factory=set)
    _layouts: set[ObjectId] = field(default_factory=set)
    _lists: set[ObjectId] = field(default_factory=set)
    _names: list[ObjectId] = field(default_factory=list)
    _numbers: list[int] = field(default_factory=list)
    _gathered: tuple[Names, Numbers] = field(default_factory=lambda: (np.empty(0, NAME), np.empty(0, np.int64)))

    @classmethod
    def of(cls, tips: Iterable[ObjectId], objects: Objects, absent: Absent) -> Uses:
        """Of these commits and all their ancestors; an object that cannot be read raises."""
        uses = cls(objects)
        for name, commit in newest_first(tips, objects.commit, absent):
            uses._below.left_out = absent.get(name, NOTHING)
            uses._add(name, commit)
        return uses

    def blocks(self) -> tuple[Names, Numbers]:
        """The blocks that are used, sorted, each once, and the number of the group that each belongs to."""
        names = np.concatenate([self._gathered[0], np.frombuffer(b"".join(self._names), NAME)])
        numbers = np.concatenate([self._gathered[1], np.array(self._numbers, np.int64)])
        order = np.argsort(names, kind="stable")
        ordered = names[order]
        first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else order
        self._names, self._numbers, self._gathered = [], [], (ordered[first], numbers[order[first]])
        return self._gathered

    def live(self) -> dict[Kind, Names]:
        """The names of all that was met, by kind: sorted, each once."""
        held = {Kind.LIST: self._lists, Kind.LAYOUT: self._layouts, Kind.TREE: self._trees, Kind.COMMIT: self._met}
        found = {kind: distinct(np.frombuffer(b"".join(names), NAME)) for kind, names in held.items()}
        return {Kind.BLOCK: self.blocks()[0], **found}

    # -- walking ------------------------------------------------------------------------------------------------

    def _add(self, name: ObjectId, commit: Commit) -> None:
        self._met.append(name)
        there = Counter[int]()
        is_there = not self._below.lacks(commit.tree)
        if is_there:
            self.commits += 1
            there += self._state(commit.tree)
        there += self._of_part(SIDE_FILES, self._sum(commit.files, SIDE_FILES, 0))
        if commit.origin is not None and not self._below.lacks(commit.origin.tree):
            self._tree(commit.origin.tree, ORIGIN, 0)
            # What is part of the state as well is no byte more; the tree does not say which pieces are.
            own = min(commit.origin.nbytes, commit.sizes.raw - there.total())
            there[self._number(ORIGIN, BYTES)] = max(0, own) if is_there else 0
        self.nbytes += there

    def _state(self, tree: ObjectId) -> Counter[int]:
        """Bytes of a whole state by group."""
        found: Counter[int] | None = self._below.known((_STATE, tree))
        if found is not None:
            return found
        outer, found = self._below.begin(), Counter[int]()
        ties: dict[int, tuple[int, int]] = {}
        for path, node in self._top(tree):
            held = self._sum(node, path, 1)
            for tie, (dtype, nbytes) in held.ties.items():
                ties.setdefault(tie, (self._number(path, dtype), nbytes))
            found.update(self._of_part(path, _Sum(held.nbytes, {})))
        for number, nbytes in ties.values():
            found[number] += nbytes
        return self._below.end((_STATE, tree), found, outer)

    def _top(self, tree: ObjectId) -> Iterator[tuple[str, Node]]:
        """The parts of a state: containers at its top, and all else there as one.

        A top of thousands of entries, which is cut into trees of its own, is one part.
        """
        self._trees.add(tree)
        node = root = self.objects.tree(tree)
        if _tag(root) == Tag.REF:
            if self._below.lacks(root[1]):
                return
            node = self.objects.tree(root[1])
        if _tag(node) not in KEYED_TAGS and _tag(node) not in LISTED_TAGS:
            yield LEAVES, root
            return
        if node is not root:
            self._trees.add(root[1])
        leaves = []
        for key, child in node[1] if node[0] in KEYED_TAGS else enumerate(node[1]):
            if _tag(child) is None or child[0] in _PLAIN:
                leaves.append(child)
            else:
                yield format_path((key,)), child
        yield LEAVES, [Tag.LIST, leaves]

    def _tree(self, name: ObjectId, path: str, depth: int) -> _Sum:
        found: _Sum | None = self._below.known(name)
        if found is None:
            expect(depth < _TREES, "a tree is nested too deep")
            self._trees.add(name)
            outer = self._below.begin()
            found = self._below.end(name, self._sum(self.objects.tree(name), path, depth), outer)
            expect(found.nbytes.total() <= MAX_BYTES, "trees that name each other again and again hold too many bytes")
            if len(self._names) > _GATHER + len(self._gathered[0]):
                self.blocks()
        return found

    def _sum(self, node: Node, path: str, depth: int) -> _Sum:
        """The bytes of what a node holds; its blocks are taken down."""
        found = _Sum(Counter(), {})
        todo = [node]
        while todo:
            node = todo.pop()
            if type(node) is not list:
                continue
            tag = node[0]
            if tag == Tag.TENSOR:
                self._tensor(node, path, found)
            elif tag in KEYED_TAGS:
                todo.extend(pair[1] for pair in reversed(node[1]))
            elif tag in LISTED_TAGS:
                todo.extend(reversed(node[1]))
            elif tag in (Tag.REF, Tag.PARTS):
                for name in [node[1]] if tag == Tag.REF else node[2]:
                    if self._below.lacks(name):
                        continue
                    below = self._tree(name, path, depth + 1)
                    found.nbytes.update(below.nbytes)
                    found.ties.update(below.ties)
            elif tag == Tag.COMPOSITE:
                todo.append(node[3])
            elif tag in (Tag.TEXT, Tag.BYTES, Tag.PICKLE) and self._has(node[2]):
                found.nbytes[BYTES] += node[1]
                self._content(node[2], self._number(path, BYTES))
        return found

    def _tensor(self, node: Node, path: str, found: _Sum) -> None:
        _, _, dtype, shape, content, tie = node
        if not self._has(content):
            return
        nbytes = math.prod(shape) * DTYPES[dtype].itemsize
        if tie is None:
            found.nbytes[dtype] += nbytes
        else:
            found.ties[tie] = dtype, nbytes
        self._content(content, self._number(path, dtype))

    def _has(self, content: Any) -> bool:
        """Whether nothing of it is absent."""
        if content is None or not self._below.left_out:
            return True
        if type(content) is bytes:
            return not self._below.lacks(ObjectId(content))
        if self._below.lacks(content[0]):
            return False
        names = [name for shard in self.objects.layout(content[0]).shards for name in shard.lists]
        if any(map(self._below.lacks, names)):
            return False
        return not any(self._below.lacks(block) for name in names for block in self.objects.block_list(name))

    def _content(self, content: Any, number: int) -> None:
        if type(content) is bytes:
            self._names.append(ObjectId(content))
            self._numbers.append(number)
        elif content is not None and content[0] not in self._layouts:
            self._layouts.add(content[0])
            for shard in self.objects.layout(content[0]).shards:
                for name in shard.lists:
                    if name not in self._lists:
                        self._lists.add(name)
                        names = self.objects.block_list(name)
                        self._names += names
                        self._numbers += [number] * len(names)

    # -- taking down --------------------------------------------------------------------------------------------

    def _number(self, path: str, dtype: str) -> int:
        return self.groups.setdefault(Group(path, dtype), len(self.groups))

    def _of_part(self, path: str, held: _Sum) -> Counter[int]:
        return Counter({self._number(path, dtype): nbytes for dtype, nbytes in held.nbytes.items()})


def _tag(node: Node) -> int | None:
    return node[0] if type(node) is list else None
