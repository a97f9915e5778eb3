"""What a store holds and takes on disk, and what one commit has in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .absence import NOTHING, parent_of
from .ancestry import newest_first
from .backend import Backend
from .block import Codec, Kind, ObjectId
from .catalog import Catalog
from .log import Record
from .nodes import KEYED_TAGS, Node, long_of
from .objects import Commit, entries_of
from .paths import format_path
from .present import hollow
from .reach import Edge, needs_of_node, needs_of_state, reachable_below, reached_by_one
from .reader import Objects
from .refs import RefKind
from .roots import Absent
from .savings import Packs, Savings, savings


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Bytes and counts. `disk` is the sum of all file sizes, index included; `raw` is what all objects in packs that
    are not condemned would take uncompressed, `stored` what they take; `codecs` counts them by how they are stored.
    `history` counts the commits that refs lead to, and `files` is what these would take as files of their own.
    `savings` splits what is saved."""

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
    savings: Savings


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


def measure(backend: Backend, catalog: Catalog, objects: Objects, root: Record, absent: Absent) -> StoreStats:
    packs = Packs.read(backend, catalog.condemned)
    kinds = Counter(packs.rows.kind.tolist())
    codecs = Counter(packs.rows.codec.tolist())
    refs = Counter(kind for kind, _ in root.refs)
    files = [_file_bytes(commit) for _, commit in newest_first(root.refs.values(), objects.commit, absent)]
    return StoreStats(
        disk=sum(info.size for info in backend.list("")),
        files=sum(files),
        history=len(files),
        packs=len(packs.sizes),
        commits=kinds[Kind.COMMIT],
        blocks=kinds[Kind.BLOCK],
        raw=int(packs.raw.sum(dtype=np.int64)),
        stored=int(packs.rows.stored.sum(dtype=np.int64)),
        branches=refs[RefKind.BRANCH],
        tags=refs[RefKind.TAG],
        codecs=dict(sorted((Codec(codec).name.lower(), count) for codec, count in codecs.items())),
        savings=savings(packs, Objects(backend, catalog, cached=0), root, absent),
    )


def _file_bytes(commit: Commit) -> int:
    """What a commit would take as files: those that it was read from, else the bytes of its state."""
    if commit.origin is None:
        return commit.sizes.raw
    return commit.origin.nbytes + sum(long_of(node).nbytes for _, node in commit.files[1])


def measure_commit(name: ObjectId, objects: Objects, catalog: Catalog, absent: Absent) -> CommitStats:
    """What is there of a commit's state; what its parent lacks on purpose it does not share."""
    commit, left_out = objects.commit(name), absent.get(name, NOTHING)
    parent = parent_of(name, commit, absent)
    before = set() if parent is None else _blocks_of(parent, objects, absent)

    def part(path: str, edges: Iterable[Edge]) -> PartStats:
        return _part(path, _blocks(edges, objects, left_out), before, catalog)

    top = _top_level(commit, hollow(objects, name, absent))
    return CommitStats(
        id=name.hex(),
        whole=part(".", needs_of_state(commit)),
        parts=tuple(part(format_path((key,)), needs_of_node(node)) for key, node in top),
    )


def _blocks_of(name: ObjectId, objects: Objects, absent: Absent) -> set[ObjectId]:
    return _blocks(needs_of_state(objects.commit(name)), objects, absent.get(name, NOTHING))


def _top_level(commit: Commit, objects: Objects) -> list[tuple[str | int, Node]]:
    held = entries_of(objects.tree(commit.tree), objects.tree)
    if held is None:
        return []
    return [(key, node) for key, node in (held[1] if held[0] in KEYED_TAGS else enumerate(held[1]))]


def _part(path: str, held: set[ObjectId], before: set[ObjectId], catalog: Catalog) -> PartStats:
    shared = held & before
    raw, stored = stored_bytes(held, catalog)
    return PartStats(path, len(held), raw, stored, len(shared), stored_bytes(shared, catalog)[1])


def _blocks(edges: Iterable[Edge], objects: Objects, left_out: frozenset[ObjectId]) -> set[ObjectId]:
    return {name for kind, name in reachable_below(edges, objects, left_out) if kind is Kind.BLOCK}


def stored_bytes(names: Iterable[ObjectId], catalog: Catalog) -> tuple[int, int]:
    """Bytes of objects, once each, and as they lie in packs, all copies."""
    places = catalog.locate(names).values()
    return sum(rows[0].row.raw for rows in places), sum(place.row.stored for rows in places for place in rows)


def bytes_by_branch(root: Record, absent: Absent, objects: Objects, catalog: Catalog) -> dict[str, int]:
    """For each branch the stored bytes of all objects that no other ref leads to."""
    alone = reached_by_one(root.refs, objects, absent)
    kept = {name: {item for _, item in held} for (kind, name), held in alone.items() if kind is RefKind.BRANCH}
    return {name: stored_bytes(held, catalog)[1] for name, held in kept.items()}
