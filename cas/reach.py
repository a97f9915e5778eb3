"""Which objects commits need: the walk from commits down to blocks.

It follows names and judges nothing: an object that is missing or bad is the error of whoever asked. Whether all is
whole is for `fsck`, which goes on after damage. What a commit lacks on purpose is passed by on the way down from it,
and on no other way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .absence import NOTHING
from .block import Kind, ObjectId
from .nodes import KEYED_TAGS, LISTED_TAGS, Content, Node, Tag, content_of
from .objects import Commit, Reads
from .reader import Objects
from .roots import Absent

Edge = tuple[Kind, ObjectId]
"""An object that another one names, and as what."""

_CONTENT = {Tag.TENSOR: 4, Tag.TEXT: 2, Tag.BYTES: 2, Tag.PICKLE: 2}
"""Where the content stands in a node."""
T = TypeVar("T", bound=Hashable)
V = TypeVar("V")


# -- walking ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Reached:
    """What was met on the way down from some objects, each followed once.

    Only what leads to something that a commit lacks is followed again, when it is met on the way down from another
    commit. `named` gives what an object names.
    """

    named: Callable[[Edge], Iterable[Edge]]
    absent: Absent
    met: dict[Edge, None] = field(default_factory=dict)
    """In the order in which they were met."""
    cut: set[Edge] = field(default_factory=set)
    """Those of them that were not followed to the end: something below them was passed by."""

    def add(self, edges: Iterable[Edge]) -> None:
        """Meet these and all that they lead to; what is no commit, as though no commit lacked any of it."""
        todo = list(edges)
        while todo:
            edge = todo.pop()
            if edge in self.met and edge not in self.cut:
                continue
            left_out = self.absent.get(edge[1]) if edge[0] is Kind.COMMIT else None
            if left_out is None:
                self.cut.discard(edge)
                self.met[edge] = None
                todo.extend(self.below(edge, NOTHING)[0])
            else:
                todo.extend(self._add_in_part(edge, left_out))

    def below(self, edge: Edge, left_out: Set[ObjectId]) -> tuple[Iterable[Edge], bool]:
        """What an object names without what is left out, and whether anything is."""
        if not left_out:
            return self.named(edge), False
        named = list(self.named(edge))
        there = [child for child in named if child[1] not in left_out]
        return there, len(there) < len(named)

    def _add_in_part(self, commit: Edge, left_out: Set[ObjectId]) -> list[Edge]:
        """Meet a commit and what is there of its state; its parents that are there are left to do."""
        self.met[commit] = None
        children = list(self.below(commit, left_out)[0])
        above: dict[Edge, list[Edge]] = {child: [] for child in children if child[0] is not Kind.COMMIT}
        todo, cut = list(above), []
        while todo:
            edge = todo.pop()
            if edge in self.met and edge not in self.cut:
                continue
            self.met[edge] = None
            there, is_cut = self.below(edge, left_out)
            if is_cut:
                cut.append(edge)
            for child in there:
                if child not in above:
                    above[child] = []
                    todo.append(child)
                above[child].append(edge)
        self.cut -= above.keys()
        self.cut |= _closed(cut, above)
        return [child for child in children if child[0] is Kind.COMMIT]


def _closed(edges: Iterable[Edge], above: Mapping[Edge, Iterable[Edge]]) -> set[Edge]:
    """These and all that lead to them."""
    found: set[Edge] = set()
    todo = list(edges)
    while todo:
        edge = todo.pop()
        if edge not in found:
            found.add(edge)
            todo.extend(above[edge])
    return found


def reachable(edges: Iterable[Edge], objects: Objects, absent: Absent, but: Set[ObjectId] = frozenset()) -> set[Edge]:
    """Everything that these objects need, themselves included, `but` these commits."""

    def named(edge: Edge) -> Iterable[Edge]:
        return (child for child in needs(edge, objects, {}) if child[1] not in but)

    reached = Reached(named, absent)
    reached.add(edge for edge in edges if edge[1] not in but)
    return set(reached.met)


def reachable_below(edges: Iterable[Edge], objects: Reads, left_out: Set[ObjectId]) -> set[Edge]:
    """Everything that these objects need on the way down from a commit that lacks what is `left_out`."""
    found: set[Edge] = set()
    todo = list(edges)
    while todo:
        edge = todo.pop()
        if edge not in found and edge[1] not in left_out:
            found.add(edge)
            todo.extend(needs(edge, objects, {}))
    return found


def reached_by_one(tips: Mapping[T, ObjectId], objects: Objects, absent: Absent) -> dict[T, set[Edge]]:
    """What each commit of `tips` needs and none of the others does.

    Each object is visited twice at most for each set of what commits above it lack.
    """
    owners: dict[tuple[Edge, frozenset[ObjectId]], T | None] = {}  # None: two of them need it
    for tip, commit in tips.items():
        todo: list[tuple[Edge, frozenset[ObjectId]]] = [((Kind.COMMIT, commit), NOTHING)]
        while todo:
            edge, left_out = way = todo.pop()
            if way not in owners:
                owners[way] = tip
            elif owners[way] in (tip, None):
                continue
            else:
                owners[way] = None
            if edge[0] is Kind.COMMIT:
                left_out = absent.get(edge[1], NOTHING)
            named = (child for child in needs(edge, objects, {}) if child[1] not in left_out)
            todo.extend((child, NOTHING if child[0] is Kind.COMMIT else left_out) for child in named)
    return _owned(tips, owners)


def _owned(tips: Iterable[T], owners: Mapping[tuple[Edge, frozenset[ObjectId]], T | None]) -> dict[T, set[Edge]]:
    """By tip, what only it reaches, whatever way leads there."""
    found: dict[T, set[Edge]] = {tip: set() for tip in tips}
    first: dict[Edge, T | None] = {}
    for (edge, _), owner in owners.items():
        if first.setdefault(edge, owner) != owner:
            first[edge] = None
    for edge, owner in first.items():
        if owner is not None:
            found[owner].add(edge)
    return found


@dataclass(slots=True)
class Below:
    """What was found out below objects, once each; below a commit that lacks something, anew where that matters.

    `left_out` is what the commit lacks that is being looked at.
    """

    left_out: frozenset[ObjectId] = NOTHING
    _known: dict[tuple[Hashable, frozenset[ObjectId]], Any] = field(default_factory=dict)
    _is_cut: bool = False

    def lacks(self, name: ObjectId) -> bool:
        """Whether to pass by an object. What is found out above it then holds for this commit only."""
        found = name in self.left_out
        self._is_cut |= found
        return found

    def known(self, key: Hashable) -> Any | None:
        """What was found out under this key, unless that held for other commits only."""
        found = self._known.get((key, NOTHING))
        if found is None and self.left_out:
            found = self._known.get((key, self.left_out))
            self._is_cut |= found is not None
        return found

    def begin(self) -> bool:
        """Begin to find something out: from now on `lacks` is asked of each object that is come to."""
        outer, self._is_cut = self._is_cut, False
        return outer

    def end(self, key: Hashable, found: V, outer: bool) -> V:
        """Note what was found out since `begin` gave `outer`. A pair of calls, not a callback: trees may be deep."""
        self._known[key, self.left_out if self._is_cut else NOTHING] = found
        self._is_cut |= outer
        return found


# -- what one object names ----------------------------------------------------------------------------------------


def needs(edge: Edge, objects: Reads, absent: Absent) -> Iterator[Edge]:
    """What one object names; of a commit, without what it lacks."""
    kind, name = edge
    if kind is Kind.COMMIT:
        commit, left_out = objects.commit(name), absent.get(name, NOTHING)
        named = (*((Kind.COMMIT, parent) for parent in commit.parents), *needs_of_state(commit))
        yield from (needed for needed in named if needed[1] not in left_out)
    elif kind is Kind.TREE:
        yield from needs_of_node(objects.tree(name))
    elif kind is Kind.LAYOUT:
        yield from ((Kind.LIST, part) for shard in objects.layout(name).shards for part in shard.lists)
    elif kind is Kind.LIST:
        yield from ((Kind.BLOCK, block) for block in objects.block_list(name))


def needs_of_state(commit: Commit) -> Iterator[Edge]:
    """What a commit names besides its parents: state, side files, origin."""
    yield Kind.TREE, commit.tree
    yield from needs_of_node(commit.files)
    if commit.origin is not None:
        yield Kind.TREE, commit.origin.tree


def needs_of_node(node: Node) -> Iterator[Edge]:
    """What a node names, and what all that stands inline in it does."""
    if type(node) is not list:
        return
    tag = Tag(node[0])
    if tag is Tag.REF:
        yield Kind.TREE, ObjectId(node[1])
    elif tag is Tag.PARTS:
        yield from ((Kind.TREE, ObjectId(part)) for part in node[2])
    elif tag in _CONTENT:
        yield from _needs_of_content(content_of(node[_CONTENT[tag]]))  # the node was checked when it was decoded
    else:
        for child in _children(tag, node):
            yield from needs_of_node(child)


def _children(tag: Tag, node: Node) -> Iterable[Node]:
    if tag in KEYED_TAGS:
        return (child for _, child in node[1])
    if tag in LISTED_TAGS:
        items: list[Node] = node[1]
        return items
    return [node[3]] if tag is Tag.COMPOSITE else []


def _needs_of_content(content: Content) -> Iterator[Edge]:
    if content.block is not None:
        yield Kind.BLOCK, content.block
    if content.layout is not None:
        yield Kind.LAYOUT, content.layout
