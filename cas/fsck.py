"""Checking a store: log, packs, refs, and everything that commits name. Changes nothing.

Every finding has a stable name:

    log-record-missing, log-record-corrupt      a record of the log is gone or does not verify
    pack-corrupt                                a pack's header or table does not verify: its objects are out of reach
    pack-foreign-file                           a file among the packs that is none
    index-differs                               the index has other rows than the packs: close the store, delete index/
    object-missing, object-corrupt              a commit, tree, layout or list that something names
    block-missing                               a block that a tensor names is in no pack
    block-corrupt                               no stored copy of a block matches its name (with data=True)
    row-corrupt                                 a stored copy of an object is bad; others may be good (with data=True)
    leftover                                    a file that a crashed writer left in tmp/
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Literal

from . import envelope, pack
from .backend import Backend
from .block import Kind, ObjectId, short
from .catalog import Catalog
from .dtypes import DTYPES
from .errors import CasError, NotFound
from .extent import extent_of
from .log import Log, Record
from .nodes import KEYED_TAGS, MAX_DEPTH, Content, Node, Tag, long_of, tensor_of
from .objects import Commit, entries_of
from .pack import Location, Table
from .paths import Path, format_path
from .reader import BlockReader, Objects

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One result. `commits` (hex) and `paths` are those that it touches; `message` is one sentence."""

    name: str
    severity: Severity
    message: str
    commits: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


MAX_DAMAGES = 1000
"""The most of them that are told of one container: equal subtrees count as often as they stand there."""


@dataclass(frozen=True, slots=True)
class _Damage:
    """Something below a tree that is missing or bad."""

    path: Path
    name: str
    message: str


def check(backend: Backend, catalog: Catalog, log: Log, blocks: BlockReader | None) -> list[Finding]:
    """Every finding; none means that all which was checked is whole. With `blocks` all stored bytes are read."""
    catalog.refresh()
    found = list(_check_log(log))
    tables, damaged = _read_tables(backend)
    found += damaged
    found += _check_index(catalog, tables)
    objects = Objects(backend, catalog)
    rows = _check_rows(blocks, objects, tables) if blocks is not None else {}
    found += [_row_finding(place, error) for place, error in rows.items()]
    bad = {place.row.id for place in rows if _all_bad(place, rows, catalog)}
    found += _Reachable(objects, catalog, bad).findings(log.head())
    leftovers = (f"{info.name} was left by a writer that crashed" for info in backend.list("tmp"))
    return found + [Finding("leftover", "info", text) for text in leftovers]


def _check_log(log: Log) -> Iterator[Finding]:
    for seq in range(max(log.head().seq, log.newest_listed()), 0, -1):
        try:
            log.read(seq)
        except NotFound:
            yield Finding("log-record-missing", "error", f"log record {seq} is gone; restore it from another copy")
        except (CasError, OSError) as error:
            yield Finding("log-record-corrupt", "error", str(error))


def _read_tables(backend: Backend) -> tuple[list[Table], list[Finding]]:
    tables, found = [], []
    for info in backend.list(pack.FOLDER):
        name = pack.id_of(info.name)
        if name is None:
            found.append(Finding("pack-foreign-file", "warning", f"{info.name} is not a pack; remove it"))
            continue
        try:
            envelope.check_header(backend.read(info.name, 0, envelope.SIZE), envelope.FileKind.PACK, info.name)
            tables.append(pack.read_table(backend, name))
        except (CasError, OSError) as error:
            found.append(Finding("pack-corrupt", "error", str(error)))
    return tables, found


def _check_index(catalog: Catalog, tables: list[Table]) -> Iterator[Finding]:
    truth = {Location(table.pack, row) for table in tables for row in table}
    held = set(catalog.index.rows())
    packs = {table.pack for table in tables}
    extra = {place for place in held - truth if place.pack in packs}
    if truth - held or extra:
        text = f"the index lacks {len(truth - held)} rows and has {len(extra)} wrong ones; delete the folder index/"
        yield Finding("index-differs", "warning", text)


def _check_rows(blocks: BlockReader, objects: Objects, tables: list[Table]) -> dict[Location, CasError]:
    """Every row whose stored bytes are not what its id names, reachable or not."""
    bad: dict[Location, CasError] = {}
    places = [Location(table.pack, row) for table in tables for row in table]
    blocks.check((p for p in places if p.row.kind == Kind.BLOCK), lambda place, error: bad.update({place: error}))
    for place in places:
        try:
            if place.row.kind != Kind.BLOCK:
                objects.verify(place)
        except CasError as error:
            bad[place] = error
    return bad


def _all_bad(place: Location, bad: dict[Location, CasError], catalog: Catalog) -> bool:
    return all(other in bad for other in catalog.index.find(place.row.id))


def _row_finding(place: Location, error: CasError) -> Finding:
    what = Kind(place.row.kind).name.lower()
    text = f"a copy of {what} {short(place.row.id)} in pack {pack.name_of(place.pack)} is bad: {error}"
    return Finding("row-corrupt", "warning", text)


@dataclass(slots=True)
class _Reachable:
    """Everything that refs name, each distinct tree once."""

    objects: Objects
    catalog: Catalog
    bad: set[ObjectId]
    _trees: dict[ObjectId, list[_Damage]] = field(default_factory=dict)
    _commits: dict[ObjectId, list[_Damage]] = field(default_factory=dict)
    _depth: int = 0

    def findings(self, root: Record) -> list[Finding]:
        for tip in dict.fromkeys(root.refs.values()):
            self._history(tip)
        merged: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
        for commit, damages in self._commits.items():
            for damage in damages:
                commits, paths = merged.setdefault((damage.name, damage.message), ([], []))
                commits.append(commit.hex())
                paths.append(format_path(damage.path))
        return [
            Finding(name, "error", message, tuple(dict.fromkeys(commits)), tuple(dict.fromkeys(paths)))
            for (name, message), (commits, paths) in merged.items()
        ]

    def _history(self, tip: ObjectId) -> None:
        todo = [tip]
        while todo:
            name = todo.pop()
            if name in self._commits:
                continue
            try:
                commit = self.objects.commit(name)
            except CasError as error:
                self._commits[name] = [_damage((), error)]
                continue
            self._commits[name] = self._commit(commit)
            todo.extend(commit.parents)

    def _commit(self, commit: Commit) -> list[_Damage]:
        found = [*self._tree(commit.tree, ()), *self._node(commit.files, ("files",))]
        return found if commit.origin is None else [*found, *self._tree(commit.origin.tree, ("origin",))]

    def _tree(self, name: ObjectId, path: Path) -> list[_Damage]:
        """Damage below a tree, its paths completed with `path`."""
        if name not in self._trees:
            self._trees[name] = []  # a hostile tree that leads back to itself ends here
            try:
                self._trees[name] = self._node(self.objects.tree(name), ())
            except CasError as error:
                self._trees[name] = [_damage((), error)]
        return [_Damage((*path, *damage.path), damage.name, damage.message) for damage in self._trees[name]]

    def _node(self, node: Node, path: Path) -> list[_Damage]:
        if type(node) is not list:
            return []
        if node[0] in (Tag.REF, Tag.COMPOSITE):
            return self._behind(node, path)
        try:
            held = entries_of(node, self.objects.tree)
            if held is None:
                return self._leaf(node, path)
        except CasError as error:
            return [_damage(path, error)]
        if self._depth >= MAX_DEPTH:
            return [_Damage(path, "object-corrupt", f"a tree is nested deeper than {MAX_DEPTH} levels")]
        tag, entries = held
        pairs = entries if tag in KEYED_TAGS else enumerate(entries)
        self._depth += 1
        found = (damage for key, child in pairs for damage in self._node(child, (*path, key)))
        some = list(islice(found, MAX_DAMAGES))
        self._depth -= 1
        return some

    def _behind(self, node: Node, path: Path) -> list[_Damage]:
        """Damage in the tree that a node refers to or in the parts of a composite, or that it is none of their kind."""
        found = self._tree(ObjectId(node[1]), path) if node[0] == Tag.REF else self._node(node[3], path)
        try:
            if not found:
                entries_of(node, self.objects.tree)
        except CasError as error:
            return [_damage(path, error)]
        return found

    def _leaf(self, node: Node, path: Path) -> list[_Damage]:
        if node[0] == Tag.TENSOR:
            entry = tensor_of(node)
            return self._content(entry.content, entry.shape, DTYPES[entry.dtype].itemsize, path)
        if node[0] in (Tag.TEXT, Tag.BYTES, Tag.PICKLE):
            held = long_of(node)
            return self._content(held.content, (held.nbytes,), 1, path)
        return []

    def _content(self, content: Content, shape: tuple[int, ...], itemsize: int, path: Path) -> list[_Damage]:
        extent = extent_of(content, shape, itemsize, self.objects)
        found = []
        for shard in extent.shards:
            sizes = {name: stop - start for name, (start, stop) in zip(shard.ids, pairwise(shard.edges), strict=True)}
            places = self.catalog.index.find_many(sizes)
            for name, size in sizes.items():
                rows = [place.row for place in places.get(name, []) if place.row.kind == Kind.BLOCK]
                if not any(row.raw == size for row in rows):
                    text = f"block {short(name)} is in no pack; restore it from another copy"
                    found.append(_Damage(path, "block-missing", text))
                elif name in self.bad:
                    text = f"block {short(name)} is damaged in every pack; restore it from another copy"
                    found.append(_Damage(path, "block-corrupt", text))
        return found


def _damage(path: Path, error: CasError) -> _Damage:
    name = "object-missing" if isinstance(error, NotFound) else "object-corrupt"
    return _Damage(path, name, str(error))
