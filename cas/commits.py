"""A commit as people see it: what `commit`, `log` and `resolve` give."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from . import objects
from .arrays import scalar_value
from .block import ObjectId
from .nodes import KEYED_TAGS, LISTED_TAGS, Node, Tag, int_of


@dataclass(frozen=True, slots=True)
class Stats:
    """What making a commit took. `raw`: bytes of the state; `new`: those in no pack before; `stored`: as they lie now.

    `blocks` counts all blocks, `new_blocks` those stored. `seconds` run from the call to the acknowledgement.
    """

    raw: int
    new: int
    stored: int
    blocks: int
    new_blocks: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit. `id`, `tree` and `parents` are hex; equal states have equal trees. `origin` is the size in bytes of
    the files that the state was read from, where it was. `stats` is there where this process made it; When this was
    read, the state was absent on purpose if `pruned`, part of it if `partial`; so were parents, if `shallow`."""

    id: str
    tree: str
    parents: tuple[str, ...]
    time: datetime
    author: str
    message: str
    step: int | None
    metrics: dict[str, Any]
    meta: dict[str, Any]
    files: tuple[str, ...]
    origin: int | None
    raw: int
    new: int
    stored: int
    branch: str | None = None
    stats: Stats | None = None
    pruned: bool = False
    partial: bool = False
    shallow: bool = False

    def __str__(self) -> str:
        name = f"{self.branch} " if self.branch else ""
        step = "" if self.step is None else f" step {self.step}"
        took = "" if self.stats is None else f", {self.stats.seconds:.1f} s"
        smaller = f" ({human_bytes(self.stored)} stored)" if self.stored < 0.99 * self.new else ""
        return f"{name}{self.id[:8]}{step}: {human_bytes(self.raw)}, {human_bytes(self.new)} new{smaller}{took}"


def commit_of(
    name: ObjectId,
    held: objects.Commit,
    branch: str | None = None,
    stats: Stats | None = None,
    left_out: frozenset[ObjectId] = frozenset(),
) -> Commit:
    """The public form of a commit object, which lacks what is `left_out`."""
    return Commit(
        id=name.hex(),
        tree=held.tree.hex(),
        parents=tuple(parent.hex() for parent in held.parents),
        time=datetime.fromtimestamp(held.time / 1e6, UTC),
        author=held.author,
        message=held.message,
        step=held.step,
        metrics=plain(held.metrics),
        meta=plain(held.meta),
        files=tuple(pair[0] for pair in held.files[1]),
        origin=None if held.origin is None else held.origin.nbytes,
        raw=held.sizes.raw,
        new=held.sizes.new_raw,
        stored=held.sizes.new_stored,
        branch=branch,
        stats=stats,
        pruned=held.tree in left_out,
        partial=held.tree not in left_out and not left_out.issubset(held.parents),
        shallow=not left_out.isdisjoint(held.parents),
    )


def plain(node: Node) -> Any:
    """The value of a node that holds no references and no bytes in blocks."""
    if type(node) is not list:
        return node
    tag, items = node[0], node[1]
    if tag in KEYED_TAGS:
        return KEYED_TAGS[tag]({key: plain(child) for key, child in items})
    if tag in LISTED_TAGS:
        return LISTED_TAGS[tag](plain(child) for child in items)
    if tag == Tag.BIGINT:
        return int_of(node)
    return scalar_value(node[1], node[2]) if tag == Tag.SCALAR else None


def human_bytes(count: float) -> str:
    """Bytes for people, in powers of 1000: 41 MB, 1.02 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    digits = 0 if unit == "B" or count >= 100 else 1 if count >= 10 else 2
    return f"{count:.{digits}f} {unit}"
