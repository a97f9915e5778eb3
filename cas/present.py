"""Objects as they are seen from one commit: what that lacks on purpose is not there, though others may have it."""

from __future__ import annotations

from collections.abc import Iterable

from .absence import NOTHING
from .block import ObjectId, short
from .errors import NotFound
from .nodes import KEYED_TAGS, LISTED_TAGS, Content, Node, Tag, long_of, tensor_of
from .objects import Commit, Layout
from .paths import Path, format_path
from .reader import Objects
from .roots import Absent


class Lacking(NotFound):
    """Something was needed that `commit` lacks on purpose; `advice` says where it may come from."""

    commit: ObjectId
    advice: str

    @classmethod
    def of(cls, commit: ObjectId, advice: str, what: str = "part") -> Lacking:
        error = cls(f"{what} of commit {short(commit)} is absent: it was not fetched or sent with the rest; {advice}")
        error.commit, error.advice = commit, advice
        return error

    def at(self, path: Path) -> Lacking:
        """The same, said of what stands at a path."""
        return Lacking.of(self.commit, self.advice, format_path(path))


class Present(Objects):
    """Reads what a commit has; `Lacking` for what it lacks."""

    def __init__(self, objects: Objects, commit: ObjectId, left_out: frozenset[ObjectId], advice: str) -> None:
        self._objects = objects
        self._commit = commit
        self.advice = advice
        self.left_out = left_out

    def renew_lock(self) -> None:
        """There is none of its own."""

    def tree(self, name: ObjectId) -> Node:
        self.check([name])
        return self._objects.tree(name)

    def layout(self, name: ObjectId) -> Layout:
        self.check([name])
        return self._objects.layout(name)

    def block_list(self, name: ObjectId) -> list[ObjectId]:
        self.check([name])
        found = self._objects.block_list(name)
        self.check(found)
        return found

    def commit(self, name: ObjectId) -> Commit:
        return self._objects.commit(name)

    def lacking(self) -> Lacking:
        return Lacking.of(self._commit, self.advice)

    def check(self, names: Iterable[ObjectId]) -> None:
        if not self.left_out.isdisjoint(names):
            raise self.lacking()

    def has(self, node: Node) -> bool:
        """Whether all is there that a node leads to by itself: the tree or the parts of a container, the blocks of a
        leaf. What else stands in a container may be absent."""
        if type(node) is not list:
            return True
        tag = Tag(node[0])
        if tag is Tag.REF:
            return ObjectId(node[1]) not in self.left_out and self._has_parts(self._objects.tree(ObjectId(node[1])))
        if tag is Tag.COMPOSITE:
            return self.has(node[3])
        if tag is Tag.TENSOR:
            return self._has_content(tensor_of(node).content)
        if tag in (Tag.TEXT, Tag.BYTES, Tag.PICKLE):
            return self._has_content(long_of(node).content)
        return self._has_parts(node)

    def _has_parts(self, node: Node) -> bool:
        return type(node) is not list or node[0] != Tag.PARTS or self.left_out.isdisjoint(node[2])

    def _has_content(self, content: Content) -> bool:
        try:
            self.check([content.block] if content.block is not None else [])
            shards = self.layout(content.layout).shards if content.layout is not None else ()
            for name in (name for shard in shards for name in shard.lists):
                self.block_list(name)
        except Lacking:
            return False
        return True


class Hollow(Present):
    """Reads what a commit has; in trees None stands for what it lacks."""

    def tree(self, name: ObjectId) -> Node:
        return None if name in self.left_out else self._hollowed(self._objects.tree(name))

    def _hollowed(self, node: Node) -> Node:
        if not self.has(node):
            return None
        if type(node) is not list or node[0] in (Tag.REF, Tag.PARTS):
            return node
        if node[0] in KEYED_TAGS:
            return [node[0], [[key, self._hollowed(child)] for key, child in node[1]]]
        if node[0] in LISTED_TAGS:
            return [node[0], [self._hollowed(child) for child in node[1]]]
        if node[0] == Tag.COMPOSITE:
            return [*node[:3], self._hollowed(node[3])]
        return node


def hollow(objects: Objects, commit: ObjectId, absent: Absent) -> Objects:
    """The objects with None in the place of what the commit lacks; its own tree may be None."""
    left_out = absent.get(commit, NOTHING)
    return Hollow(objects, commit, left_out, "") if left_out else objects
