"""Where damage shows: the commits and paths that need what is missing or bad."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, pairwise

from .absence import NOTHING, parents_of
from .block import Kind, ObjectId, short
from .dtypes import DTYPES
from .errors import CasError, Corrupt
from .extent import extent_of
from .findings import Finding
from .log import Record
from .nodes import KEYED_TAGS, MAX_DEPTH, Content, Node, Tag, long_of, tensor_of
from .objects import Commit, entries_of
from .paths import Path, format_path
from .reach import Below, Edge
from .reader import Objects
from .roots import Absent

MAX_DAMAGES = 1000
"""The most of them that are told of one container: equal subtrees count as often as they stand there."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with an object: the finding's name and message."""

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class _Damage:
    """Trouble below a tree, and the object whose it is if there is one."""

    path: Path
    trouble: Trouble
    edge: Edge | None


@dataclass(slots=True)
class Walk:
    """Everything that refs name, each distinct tree once; what commits lack on purpose is passed by.

    `bad` are the objects that cannot be had, `blocks` those blocks that can: id and raw size (u32) of good rows.
    """

    objects: Objects
    absent: Absent
    bad: Mapping[Edge, Trouble]
    blocks: Container[bytes]
    told: set[Edge] = field(default_factory=set)
    """Those of `bad` that were met."""
    _below: Below = field(default_factory=Below)
    _open: set[ObjectId] = field(default_factory=set)
    _commits: dict[ObjectId, list[_Damage]] = field(default_factory=dict)
    _depth: int = 0

    def findings(self, root: Record) -> list[Finding]:
        """One for each trouble."""
        for tip in dict.fromkeys(root.refs.values()):
            self._history(tip)
        merged: dict[Trouble, tuple[list[str], list[str]]] = {}
        for commit, damages in self._commits.items():
            for damage in damages:
                commits, paths = merged.setdefault(damage.trouble, ([], []))
                commits.append(commit.hex())
                paths.append(format_path(damage.path))
        return [
            Finding(trouble.name, "error", trouble.message, tuple(dict.fromkeys(commits)), tuple(dict.fromkeys(paths)))
            for trouble, (commits, paths) in merged.items()
        ]

    def check(self, name: ObjectId) -> None:
        """`Corrupt` where a commit's state is not sound."""
        self._below.left_out = self.absent.get(name, NOTHING)
        for damage in self._commit(self.objects.commit(name)):
            raise Corrupt(f"commit {short(name)} is not sound at {format_path(damage.path)}: {damage.trouble.message}")

    def _history(self, tip: ObjectId) -> None:
        todo = [tip]
        while todo:
            name = todo.pop()
            if name in self._commits:
                continue
            if (Kind.COMMIT, name) in self.bad:
                self._commits[name] = [self._bad((), (Kind.COMMIT, name))]
                continue
            try:
                commit = self.objects.commit(name)
            except CasError as error:
                self._commits[name] = [_malformed((), error)]
                continue
            self._below.left_out = self.absent.get(name, NOTHING)
            self._commits[name] = list(self._commit(commit))
            todo.extend(parents_of(name, commit, self.absent))

    def _commit(self, commit: Commit) -> Iterator[_Damage]:
        yield from self._tree(commit.tree, ())
        yield from self._node(commit.files, ("files",))
        if commit.origin is not None:
            yield from self._tree(commit.origin.tree, ("origin",))

    def _tree(self, name: ObjectId, path: Path) -> list[_Damage]:
        """Damage below a tree, its paths completed with `path`."""
        if self._below.lacks(name) or name in self._open:
            return []
        found: list[_Damage] | None = self._below.known(name)
        if found is None:
            outer = self._below.begin()
            self._open.add(name)  # a hostile tree that leads back to itself ends here
            if (Kind.TREE, name) in self.bad:
                found = [self._bad((), (Kind.TREE, name))]
            elif len(self._open) > MAX_DEPTH:  # references to references, too, which are no containers
                found = [_malformed((), f"a tree is nested deeper than {MAX_DEPTH} levels")]
            else:
                try:
                    found = self._node(self.objects.tree(name), ())
                except CasError as error:
                    found = [_malformed((), error)]
            self._open.discard(name)
            self._below.end(name, found, outer)
        return [_Damage((*path, *damage.path), damage.trouble, damage.edge) for damage in found]

    def _node(self, node: Node, path: Path) -> list[_Damage]:
        if type(node) is not list:
            return []
        if node[0] in (Tag.REF, Tag.COMPOSITE):
            return self._behind(node, path)
        if node[0] == Tag.PARTS:
            node = self._without_absent(node)
            parts = ((Kind.TREE, ObjectId(part)) for part in node[2])
            bad = [self._bad(path, part) for part in parts if part in self.bad]
            if bad:
                return bad
        try:
            held = entries_of(node, self._tree_there)
            if held is None:
                return self._leaf(node, path)
        except CasError as error:
            return [_malformed(path, error)]
        if self._depth >= MAX_DEPTH:
            return [_malformed(path, f"a tree is nested deeper than {MAX_DEPTH} levels")]
        tag, entries = held
        pairs = entries if tag in KEYED_TAGS else enumerate(entries)
        self._depth += 1
        found = (damage for key, child in pairs for damage in self._node(child, (*path, key)))
        some = list(islice(found, MAX_DAMAGES))
        self._depth -= 1
        return some

    def _behind(self, node: Node, path: Path) -> list[_Damage]:
        """Damage in the tree that a node refers to or in the parts of a composite, or that it is none of their kind."""
        if node[0] == Tag.REF and self._below.lacks(ObjectId(node[1])):
            return []
        found = self._tree(ObjectId(node[1]), path) if node[0] == Tag.REF else self._node(node[3], path)
        try:
            if not found and self._is_there(node):
                entries_of(node, self._tree_there)
        except CasError as error:
            return [_malformed(path, error)]
        return found

    def _leaf(self, node: Node, path: Path) -> list[_Damage]:
        if node[0] == Tag.TENSOR:
            entry = tensor_of(node)
            return self._content(entry.content, entry.shape, DTYPES[entry.dtype].itemsize, path)
        if node[0] in (Tag.TEXT, Tag.BYTES, Tag.PICKLE):
            held = long_of(node)
            return self._content(held.content, (held.nbytes,), 1, path)
        return []

    def _is_there(self, node: Node) -> bool:
        """Whether the parts of a composite are there."""
        return node[0] != Tag.COMPOSITE or node[3][0] != Tag.REF or not self._below.lacks(ObjectId(node[3][1]))

    def _tree_there(self, name: ObjectId) -> Node:
        return self._without_absent(self.objects.tree(name))

    def _without_absent(self, node: Node) -> Node:
        """The node, of a container in parts with those that are there."""
        if not self._below.left_out or type(node) is not list or node[0] != Tag.PARTS:
            return node
        return [*node[:2], [part for part in node[2] if not self._below.lacks(ObjectId(part))]]

    def _content(self, content: Content, shape: tuple[int, ...], itemsize: int, path: Path) -> list[_Damage]:
        if (self.bad or self._below.left_out) and content.layout is not None:
            edges = list(self._structure(content.layout))
            there = [edge for edge in edges if not self._below.lacks(edge[1])]
            bad = [self._bad(path, edge) for edge in there if edge in self.bad]
            if len(there) < len(edges):
                return bad + [self._bad(path, edge) for edge in self._blocks_of(there) if edge in self.bad]
            if bad:
                return bad
        if content.block is not None and self._below.lacks(content.block):
            return []
        missing: dict[ObjectId, None] = {}
        for shard in extent_of(content, shape, itemsize, self.objects).shards:
            for name, (start, stop) in zip(shard.ids, pairwise(shard.edges), strict=True):
                if name + (stop - start).to_bytes(4, "little") not in self.blocks and not self._below.lacks(name):
                    missing[name] = None
        return [self._bad(path, (Kind.BLOCK, name)) for name in missing]

    def _structure(self, layout: ObjectId) -> Iterator[Edge]:
        """A layout and, where it can be read, its lists."""
        yield Kind.LAYOUT, layout
        if (Kind.LAYOUT, layout) not in self.bad and not self._below.lacks(layout):
            for shard in self.objects.layout(layout).shards:
                yield from ((Kind.LIST, part) for part in shard.lists)

    def _blocks_of(self, edges: Iterable[Edge]) -> Iterator[Edge]:
        """The blocks that are there of those lists that can be read, without looking at their sizes."""
        for edge in edges:
            if edge[0] is Kind.LIST and edge not in self.bad:
                names = (name for name in self.objects.block_list(edge[1]) if not self._below.lacks(name))
                yield from ((Kind.BLOCK, name) for name in dict.fromkeys(names))

    def _bad(self, path: Path, edge: Edge) -> _Damage:
        self.told.add(edge)
        return _Damage(path, self.bad.get(edge) or _missized(edge[1]), edge)


def _malformed(path: Path, error: object) -> _Damage:
    """What verifies and cannot be: it was written so."""
    return _Damage(path, Trouble("object-corrupt", str(error)), None)


def _missized(name: ObjectId) -> Trouble:
    return Trouble("block-missing", f"block {short(name)} has another size than its tensor needs; restore the tensor")
