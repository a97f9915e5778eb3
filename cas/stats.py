"""What a store holds and takes on disk, and what one commit has in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .ancestry import newest_first
from .backend import Backend
from .block import Codec, Kind, ObjectId
from .catalog import Catalog
from .log import Record
from .nodes import KEYED_TAGS, Node, long_of
from .objects import Commit, entries_of
from .paths import format_path
from .reach import Edge, needs_of_node, needs_of_state, reachable, reached_by_one
from .reader import Objects
from .refs import RefKind
from .roots import Absent


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Bytes and counts. `disk` is the sum of all file sizes, index included; `raw` is what the distinct objects
    would take uncompressed, `stored` what they take in packs; `codecs` counts objects by how they are stored.
    `history` counts the commits that refs lead to, and `files` is what these would take as files of their own."""

    disk: int
    files: int
    history: int
    packs: int
    commits: int
    blocks: int
    raw: int
    stored: int
    branches: int
    tags: int
    codecs: dict[str, int]


@dataclass(frozen=True, slots=True)
class PartStats:
    """A commit, or one level below the top of its state. `raw`: bytes of its distinct blocks, `stored`: as they lie in
    packs, of all copies; `shared` of the `blocks`, with `shared_stored` bytes, its first parent needs as well."""

    path: str
    blocks: int
    raw: int
    stored: int
    shared: int
    shared_stored: int


@dataclass(frozen=True, slots=True)
class CommitStats:
    """`whole` counts the state, side files and origin of the commit `id` (hex), each distinct block once; a block that
    several of `parts` need counts in each of them."""

    id: str
    whole: PartStats
    parts: tuple[PartStats, ...]


def measure(backend: Backend, catalog: Catalog, objects: Objects, root: Record) -> StoreStats:
    rows = [place.row for place in catalog.index.rows()]
    kinds = Counter(row.kind for row in rows)
    codecs = Counter(Codec(row.codec).name.lower() for row in rows)
    refs = Counter(kind for kind, _ in root.refs)
    files = [_file_bytes(commit) for _, commit in newest_first(root.refs.values(), objects.commit)]
    return StoreStats(
        disk=sum(info.size for info in backend.list("")),
        files=sum(files),
        history=len(files),
        packs=len(catalog.index.packs()),
        commits=kinds[Kind.COMMIT],
        blocks=kinds[Kind.BLOCK],
        raw=sum(row.raw for row in rows),
        stored=sum(row.stored for row in rows),
        branches=refs[RefKind.BRANCH],
        tags=refs[RefKind.TAG],
        codecs=dict(sorted(codecs.items())),
    )


def _file_bytes(commit: Commit) -> int:
    """What a commit would take as files: those that it was read from, else the bytes of its state."""
    if commit.origin is None:
        return commit.sizes.raw
    return commit.origin.nbytes + sum(long_of(node).nbytes for _, node in commit.files[1])


def measure_commit(name: ObjectId, objects: Objects, catalog: Catalog, absent: Absent) -> CommitStats:
    """A commit whose state is there; a parent's that was pruned shares nothing with it."""
    commit = objects.commit(name)
    before = set() if not commit.parents or commit.parents[0] in absent else _blocks_of_parent(commit, objects)
    parts = [(format_path((key,)), needs_of_node(node)) for key, node in _top_level(commit, objects)]
    return CommitStats(
        id=name.hex(),
        whole=_part(".", needs_of_state(commit), before, objects, catalog),
        parts=tuple(_part(path, edges, before, objects, catalog) for path, edges in parts),
    )


def _blocks_of_parent(commit: Commit, objects: Objects) -> set[ObjectId]:
    return _blocks(needs_of_state(objects.commit(commit.parents[0])), objects)


def _top_level(commit: Commit, objects: Objects) -> list[tuple[str | int, Node]]:
    held = entries_of(objects.tree(commit.tree), objects.tree)
    if held is None:
        return []
    return [(key, node) for key, node in (held[1] if held[0] in KEYED_TAGS else enumerate(held[1]))]


def _part(path: str, edges: Iterable[Edge], before: set[ObjectId], objects: Objects, catalog: Catalog) -> PartStats:
    held = _blocks(edges, objects)
    shared = held & before
    raw, stored = stored_bytes(held, catalog)
    return PartStats(path, len(held), raw, stored, len(shared), stored_bytes(shared, catalog)[1])


def _blocks(edges: Iterable[Edge], objects: Objects) -> set[ObjectId]:
    return {name for kind, name in reachable(edges, objects, {}) if kind is Kind.BLOCK}


def stored_bytes(names: Iterable[ObjectId], catalog: Catalog) -> tuple[int, int]:
    """Bytes of objects, once each, and as they lie in packs, all copies."""
    places = catalog.locate(names).values()
    return sum(rows[0].row.raw for rows in places), sum(place.row.stored for rows in places for place in rows)


def bytes_by_branch(root: Record, absent: Absent, objects: Objects, catalog: Catalog) -> dict[str, int]:
    """For each branch the stored bytes of all objects that no other ref leads to."""
    alone = reached_by_one(root.refs, objects, absent)
    kept = {name: {item for _, item in held} for (kind, name), held in alone.items() if kind is RefKind.BRANCH}
    return {name: stored_bytes(held, catalog)[1] for name, held in kept.items()}
