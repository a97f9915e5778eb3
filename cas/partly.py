"""Which part of one commit's state goes over, where that is not all of it, and what becomes absent instead.

A commit may lack objects at the source, and at the target where it is there in part; of what is wanted only some paths
may be. What is left out is cut off at the highest object that nothing wanted lies under, unless the commit needs that
object by another path as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from . import per_rank
from .block import Kind, ObjectId
from .errors import Corrupt
from .nodes import KEYED_TAGS, LISTED_TAGS, MAX_DEPTH, MAX_ENTRIES, Node, Tag, expect
from .objects import Commit
from .paths import Path, Patterns
from .reach import Edge, needs, needs_of_node, needs_of_state
from .sides import Sides

Ids = frozenset[ObjectId]


@dataclass(slots=True)
class Share:
    """What goes over of one commit's state.

    `lacking`: what the commit lacks at the source; `had`: what it lacks at the target, where it is there already. What
    is `reached` is needed, and marked True where the target does not have it by another way from this commit.
    """

    sides: Sides
    lacking: Ids
    had: Ids
    reached: dict[Edge, bool] = field(default_factory=dict)
    _cut: set[ObjectId] = field(default_factory=set)
    _filled: set[ObjectId] = field(default_factory=set)
    _entries: int = 0
    _depth: int = 0

    @property
    def add(self) -> set[ObjectId]:
        """What becomes absent on the way down from the commit."""
        return self._cut - {name for _, name in self.reached} - self.had

    @property
    def drop(self) -> set[ObjectId]:
        """What is absent no more."""
        return self._filled

    def take(self, edges: Iterable[Edge], is_new: bool) -> None:
        """All of these and all below them, but for what the commit lacks at the source."""
        todo = [(edge, is_new) for edge in edges]
        while todo:
            edge, is_new = todo.pop()
            before = self.reached.get(edge)
            below = self._enter(edge, is_new)
            if below is not None and (before is None or (below and not before)):
                todo.extend((child, below) for child in needs(edge, self.sides, {}))

    def leave(self, edges: Iterable[Edge], is_new: bool) -> None:
        """None of these."""
        if is_new:
            self._cut.update(name for _, name in edges)

    def _enter(self, edge: Edge, is_new: bool) -> bool | None:
        """Note that an object is needed. Whether what it names is new to the target; None where it is not to be had."""
        name = edge[1]
        if name in self.lacking:
            self.leave([edge], is_new)
            return None
        if name in self.had:
            self._filled.add(name)
            is_new = True
        self.reached[edge] = is_new or self.reached.get(edge, False)
        return is_new

    def take_state(self, tree: ObjectId, patterns: Patterns, is_new: bool) -> None:
        """Of a state all leaves that match."""
        below = self._enter((Kind.TREE, tree), is_new)
        if below is not None:
            self.take_matching(self.sides.tree(tree), (), patterns, below)

    def take_matching(self, node: Node, path: Path, patterns: Patterns, is_new: bool) -> None:
        """Of a node at `path` all leaves that match, and the containers that `Loader` looks into to find them."""
        if type(node) is not list:
            return
        if not patterns.may_match_below(path):
            self.leave(needs_of_node(node), is_new)
            return
        self._depth += 1
        if self._depth > 2 * MAX_DEPTH:  # the parts of a composite stand at the same path
            raise Corrupt(f"a commit is nested deeper than {MAX_DEPTH} levels: it was not written by this format")
        self._take_matching(node, path, patterns, is_new)
        self._depth -= 1

    def _take_matching(self, node: Node, path: Path, patterns: Patterns, is_new: bool) -> None:
        tag = Tag(node[0])
        if tag is Tag.COMPOSITE:
            self._take_composite(node, path, patterns, is_new)
        elif tag in _CONTAINERS:
            for key, child, below in self._children(node, is_new):
                self.take_matching(child, (*path, key), patterns, below)
        elif patterns.match(path):
            self.take(needs_of_node(node), is_new)
        else:
            self.leave(needs_of_node(node), is_new)

    def _take_composite(self, node: Node, path: Path, patterns: Patterns, is_new: bool) -> None:
        """A value of all its parts, or of none; but each rank's own part stands where the whole does."""
        if node[1:3] == [per_rank.FRAMEWORK, per_rank.KIND]:
            for _, child, below in self._children(node[3], is_new):
                self.take_matching(child, path, patterns, below)
        elif patterns.match(path):
            self.take(needs_of_node(node), is_new)
        else:
            for _, child, below in self._children(node[3], is_new):
                self.leave(needs_of_node(child), below)

    def _children(self, node: Node, is_new: bool) -> Iterator[tuple[str | int, Node, bool]]:
        """The entries of a container with their keys, and whether they are new to the target."""
        if node[0] == Tag.REF:
            below = self._enter((Kind.TREE, ObjectId(node[1])), is_new)
            if below is None:
                return
            node, is_new = self.sides.tree(ObjectId(node[1])), below
            expect(type(node) is list and node[0] in _OPENED, "a reference names no container")
        tag, number = node[1] if node[0] == Tag.PARTS else node[0], 0
        for entries, below in self._parts(node, is_new):
            for entry in entries:
                self._count()
                key, child = entry if tag in KEYED_TAGS else (number, entry)
                number += 1
                yield key, child, below

    def _parts(self, node: Node, is_new: bool) -> Iterator[tuple[list[Node], bool]]:
        if node[0] != Tag.PARTS:
            yield node[1], is_new
            return
        for part in node[2]:
            below = self._enter((Kind.TREE, ObjectId(part)), is_new)
            if below is not None:
                held = self.sides.tree(ObjectId(part))
                expect(type(held) is list and held[0] == node[1], "a part of a container is of another kind")
                yield held[1], below

    def _count(self) -> None:
        """Equal subtrees are stored once, so that a small tree could stand for endless paths."""
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise Corrupt(f"a commit has over {MAX_ENTRIES} entries: it was not written by this format")


_OPENED = {*KEYED_TAGS, *LISTED_TAGS, Tag.PARTS}
_CONTAINERS = {*_OPENED, Tag.REF}


@dataclass(frozen=True, slots=True)
class Chosen:
    """What of states is wanted: what matches. `whole` says that everything does."""

    patterns: Patterns
    whole: bool


def share_of(commit: Commit, sides: Sides, lacking: Ids, had: Ids, is_new: bool, chosen: Chosen | None) -> Share:
    """What goes over of a commit's state. `is_new` says that the target does not have the commit."""
    share = Share(sides, lacking, had)
    if chosen is None or chosen.whole:
        share.take(needs_of_state(commit), is_new)
        return share
    share.take_state(commit.tree, chosen.patterns, is_new)
    share.take(needs_of_node(commit.files), is_new)
    if commit.origin is not None:
        share.leave([(Kind.TREE, commit.origin.tree)], is_new)
    return share
