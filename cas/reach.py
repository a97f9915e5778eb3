"""Which objects commits need: the walk from commits down to blocks.

It follows names and judges nothing: an object that is missing or bad is the error of whoever asked. Whether all is
whole is for `fsck`, which goes on after damage. What a commit lacks on purpose is passed by on the way down from it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Set
from typing import TypeVar

from .block import Kind, ObjectId
from .nodes import KEYED_TAGS, LISTED_TAGS, Content, Node, Tag, content_of
from .objects import Commit
from .reader import Objects
from .roots import Absent

Edge = tuple[Kind, ObjectId]
"""An object that another one names, and as what."""

_CONTENT = {Tag.TENSOR: 4, Tag.TEXT: 2, Tag.BYTES: 2, Tag.PICKLE: 2}
"""Where the content stands in a node."""
T = TypeVar("T", bound=Hashable)


def reachable(edges: Iterable[Edge], objects: Objects, absent: Absent, but: Set[ObjectId] = frozenset()) -> set[Edge]:
    """Everything that these objects need, themselves included, `but` these commits. Each object is visited once."""
    found: set[Edge] = set()
    todo = list(edges)
    while todo:
        edge = todo.pop()
        if edge not in found and edge[1] not in but:
            found.add(edge)
            todo.extend(needs(edge, objects, absent))
    return found


def reached_by_one(tips: Mapping[T, ObjectId], objects: Objects, absent: Absent) -> dict[T, set[Edge]]:
    """What each commit of `tips` needs and none of the others does. Each object is visited twice at most."""
    owners: dict[Edge, T | None] = {}  # None: two of them need it
    for tip, commit in tips.items():
        todo: list[Edge] = [(Kind.COMMIT, commit)]
        while todo:
            edge = todo.pop()
            if edge not in owners:
                owners[edge] = tip
            elif owners[edge] in (tip, None):
                continue
            else:
                owners[edge] = None
            todo.extend(needs(edge, objects, absent))
    found: dict[T, set[Edge]] = {tip: set() for tip in tips}
    for edge, owner in owners.items():
        if owner is not None:
            found[owner].add(edge)
    return found


def needs(edge: Edge, objects: Objects, absent: Absent) -> Iterator[Edge]:
    """What one object names."""
    kind, name = edge
    if kind is Kind.COMMIT:
        commit, left_out = objects.commit(name), absent.get(name, frozenset())
        yield from ((Kind.COMMIT, parent) for parent in commit.parents)
        yield from (needed for needed in needs_of_state(commit) if needed[1] not in left_out)
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
