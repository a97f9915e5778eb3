"""What commits lack on purpose: pruned states, parts that were not fetched, the history beyond a depth.

It stands in the root's absent lists as pairs of a commit and an object. A walk that comes down from the commit stops
at the object: a parent, its tree, or a tree, layout, list or block anywhere below. From other commits the walk goes on
there, unless they have such a pair too.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import lists
from .backend import Backend
from .block import ObjectId, short
from .lists import ListId, What
from .log import Record
from .nodes import Tag, expect
from .objects import Commit
from .roots import Absent

NOTHING: frozenset[ObjectId] = frozenset()
"""What most commits lack."""
_REMOTES = "remotes"


def parents_of(name: ObjectId, commit: Commit, absent: Absent) -> tuple[ObjectId, ...]:
    """The parents that are there."""
    left_out = absent.get(name)
    return commit.parents if left_out is None else tuple(one for one in commit.parents if one not in left_out)


def parent_of(name: ObjectId, commit: Commit, absent: Absent) -> ObjectId | None:
    """The first parent, if there is one and it is there."""
    first = commit.parents[:1]
    return first[0] if first and first[0] not in absent.get(name, NOTHING) else None


def is_pruned(name: ObjectId, commit: Commit, absent: Absent) -> bool:
    """Whether the whole state is absent."""
    return commit.tree in absent.get(name, NOTHING)


def is_whole(name: ObjectId, commit: Commit, absent: Absent) -> bool:
    """Whether nothing of the state is absent; parents may be."""
    return absent.get(name, NOTHING) <= set(commit.parents)


def cut_text(name: ObjectId) -> str:
    """What to say where an answer lies beyond the parents of this commit, which are absent."""
    return f"the history here begins at {short(name)}: it was fetched with a depth; `cas fetch --depth 0` brings all"


def remote_names(root: Record) -> tuple[str, ...]:
    """The remotes that are configured, `origin` first: they may have what is absent."""
    node = root.config.get(_REMOTES, [Tag.DICT, []])
    expect(type(node) is list and node[0] == Tag.DICT, "the store's remotes have the wrong form")
    return tuple(sorted((str(name) for name, _ in node[1]), key=lambda name: (name != "origin", name)))


def advice(root: Record) -> str:
    """Where what is absent may come from."""
    names = remote_names(root)
    if not names:
        return "`cas pull URL --only . --depth 0` brings it from a store that has it"
    others = f", or from {', '.join(names[1:])}" if names[1:] else ""
    return f"`cas fetch {names[0]} --only . --depth 0` brings it if {names[0]} has it{others}"


def without(
    backend: Backend, names: Iterable[ListId], pairs: Iterable[tuple[ObjectId, ObjectId]]
) -> tuple[ListId, ...]:
    """A root's absent lists less these pairs: new lists, durable, in place of those that held any of them."""
    gone = {lists.pair(commit, name) for commit, name in pairs}
    kept: list[ListId] = []
    rest: set[bytes] = set()
    for name in names:
        items = set(lists.read(backend, name, What.ABSENT))
        if items.isdisjoint(gone):
            kept.append(name)
        else:
            rest |= items - gone
    return lists.extend(backend, kept, What.ABSENT, rest) if rest else tuple(kept)
