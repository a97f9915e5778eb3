"""What dedup, delta and entropy coding have saved, how long chains are, and what lies in packs for nothing.

Of all that refs lead to and that is there: raw - dedup - delta - entropy = stored. Raw are the bytes of every commit's
state, side files and origin, each counted whole but for what the commit lacks on purpose; dedup is what is saved as
each distinct block is there once.
What a block that is stored as a delta would take without its base is not known, so no byte is split among the codecs:
delta is raw minus stored of the blocks that are stored as deltas, their own entropy coding included, and entropy is
raw minus stored of all others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import pack
from .absence import NOTHING, is_pruned
from .backend import Backend
from .block import Codec, Kind
from .crew import mapped
from .errors import CasError, NotFound
from .log import Record
from .pack import PackId, Table
from .picking import NAME, Names, Numbers, Rows, is_in, pick
from .reach import Below, Edge, needs
from .reader import Objects
from .refs import RefKind
from .roots import Absent
from .uses import Uses

SMALL_PACK = 32 << 20
_log = logging.getLogger("cas")
Column = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Saved:
    """Bytes of the part or dtype `name`, and how `stored` comes of `raw`: raw - dedup - delta - entropy.

    `blocks` are distinct; one that several parts or dtypes use counts in one of them, and for the others is all dedup.
    """

    name: str
    raw: int
    dedup: int
    delta: int
    entropy: int
    stored: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Depth:
    """The blocks that decode through `depth` bases; bytes. `branches` are those whose tip has none deeper."""

    depth: int
    blocks: int
    raw: int
    stored: int
    branches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Savings:
    """The `commits` whose state is there: as a whole, by part of the state (one level below its top) and by dtype.

    In packs besides their `stored` bytes: `records`, stored bytes of commits, trees, layouts and lists; `bases`, of
    blocks that no commit has and deltas need; `dead`, of what nothing needs that refs lead to, though undo or a commit
    that is being made may. `condemned` are the bytes of packs that are given up and not deleted yet. `small` packs are
    under 32 MiB. `missing` live objects are in no pack.
    """

    commits: int
    whole: Saved
    parts: tuple[Saved, ...]
    dtypes: tuple[Saved, ...]
    depths: tuple[Depth, ...]
    records: int
    bases: int
    dead: int
    condemned: int
    small: int
    missing: int


@dataclass(frozen=True, slots=True)
class Packs:
    """The listed packs, with all rows of those that are whole and not condemned; `raw` is one more column."""

    sizes: list[int]
    rows: Rows
    raw: Column
    condemned: int

    @classmethod
    def read(cls, backend: Backend, condemned: frozenset[bytes]) -> Packs:
        sizes: list[int] = []
        raw: list[Column] = [np.empty(0, np.uint32)]
        listed = [(info, name) for info in backend.list(pack.FOLDER) if (name := pack.id_of(info.name)) is not None]

        def tables() -> Iterator[Table]:
            wanted = [(info, name) for info, name in listed if name not in condemned]
            found = mapped(partial(_table, backend), [name for _, name in wanted], backend.parallel)
            for (info, _), table in zip(wanted, found, strict=True):
                if table is not None:
                    sizes.append(info.size)
                    raw.append(table.rows["raw"].copy())
                    yield table

        rows = Rows.of(tables())
        given_up = sum(info.size for info, name in listed if name in condemned)
        return cls(sizes, rows, np.concatenate(raw), given_up)


def _table(backend: Backend, name: PackId) -> Table | None:
    try:
        return pack.read_table(backend, name)
    except NotFound:  # deleted since it was listed
        return None
    except CasError as error:
        _log.warning("left out of the figures: %s", error)
        return None


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The blocks that are decoded, ordered by name: `rows` are those that they are read from, `depth` counts bases."""

    names: Names
    rows: Numbers
    depth: Numbers

    @classmethod
    def of(cls, rows: Rows, picked: Numbers) -> _Blocks:
        mine = picked[rows.kind[picked] == Kind.BLOCK]
        mine = mine[np.argsort(rows.id[mine])]
        names, chain = rows.id[mine], rows.chain[mine]
        deltas = np.flatnonzero(chain)
        below = np.zeros(len(mine), np.int64)
        below[deltas] = np.searchsorted(names, rows.base[mine[deltas]])  # what was picked has all its bases
        depth = np.zeros(len(mine), np.int64)
        at, base = deltas, below[deltas]
        while len(at):
            depth[at] += 1
            deeper = chain[base] > 0
            at, base = at[deeper], below[base[deeper]]
        return cls(names, mine, depth)

    def deepest(self, names: Names) -> int:
        """The depth of the deepest of these blocks that are there."""
        at = np.searchsorted(self.names, names)
        there = at < len(self.names)
        there[there] = self.names[at[there]] == names[there]
        return int(self.depth[at[there]].max(initial=0))


def savings(packs: Packs, objects: Objects, root: Record, absent: Absent) -> Savings:
    """Those under `root`; what cannot be read raises."""
    uses = Uses.of(root.refs.values(), objects, absent)
    live, (names, owners) = uses.live(), uses.blocks()
    rows = packs.rows
    picked = pick(rows, live, packs.sizes)
    blocks = _Blocks.of(rows, picked.rows)
    is_live = is_in(blocks.names, names)
    at = blocks.rows[is_live]
    groups = _Groups.of(uses, packs, at, owners[is_in(names, blocks.names)])
    stored = rows.stored.astype(np.int64)
    records = int(stored[picked.rows[rows.kind[picked.rows] != Kind.BLOCK]].sum())
    return Savings(
        commits=uses.commits,
        whole=groups.saved("", list(range(len(uses.groups)))),
        parts=groups.by(group.path for group in uses.groups),
        dtypes=groups.by(group.dtype for group in uses.groups),
        depths=_depths(blocks.depth[is_live], packs.raw[at], stored[at], _tips(root, absent, objects, blocks)),
        records=records,
        bases=int(stored[blocks.rows[~is_live]].sum()),
        dead=int(stored.sum() - stored[picked.rows].sum()),
        condemned=packs.condemned,
        small=sum(size < SMALL_PACK for size in packs.sizes),
        missing=sum(map(len, picked.lost.values())),
    )


@dataclass(frozen=True, slots=True)
class _Groups:
    """By number of a group: bytes of all uses, and of the distinct blocks that belong to it."""

    uses: Mapping[int, int]
    raw: Column
    delta: Column
    entropy: Column
    blocks: Column

    @classmethod
    def of(cls, uses: Uses, packs: Packs, at: Numbers, owners: Numbers) -> _Groups:
        """`at` are the rows of all live blocks, `owners` the groups that these belong to."""
        count = len(uses.groups)
        raw = packs.raw[at].astype(np.float64)
        saved, is_delta = raw - packs.rows.stored[at], packs.rows.codec[at] == Codec.DELTA

        def summed(values: Column) -> Column:
            return np.bincount(owners, values, count).astype(np.int64)

        return cls(uses.nbytes, *map(summed, (raw, saved * is_delta, saved * ~is_delta, np.ones(len(at)))))

    def by(self, names: Iterable[str]) -> tuple[Saved, ...]:
        """Sums of the groups that have the same name, the most raw bytes first.

        A group without any has tensors that are tied to those of others.
        """
        members: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            members.setdefault(name, []).append(number)
        found = [self.saved(*item) for item in members.items()]
        return tuple(sorted((saved for saved in found if saved.raw), key=lambda saved: -saved.raw))

    def saved(self, name: str, numbers: list[int]) -> Saved:
        columns = (self.raw, self.delta, self.entropy, self.blocks)
        raw, delta, entropy, blocks = (int(column[numbers].sum()) for column in columns)
        uses = sum(self.uses[number] for number in numbers)
        return Saved(name, uses, uses - raw, delta, entropy, raw - delta - entropy, blocks)


def _depths(depth: Numbers, raw: Column, stored: Column, tips: Mapping[str, int]) -> tuple[Depth, ...]:
    found = []
    for level in range(int(depth.max(initial=-1)) + 1):
        mine = depth == level
        branches = tuple(name for name, deepest in tips.items() if deepest == level)
        nbytes = int(raw[mine].sum(dtype=np.int64)), int(stored[mine].sum())
        found.append(Depth(level, int(mine.sum()), *nbytes, branches))
    return tuple(found)


def _tips(root: Record, absent: Absent, objects: Objects, blocks: _Blocks) -> dict[str, int]:
    """How deep the deepest block of each branch's tip lies."""
    below = Below()

    def deepest(edges: Iterable[Edge]) -> int:
        names, found = [], [0]
        for edge in edges:
            if below.lacks(edge[1]):
                continue
            if edge[0] is Kind.BLOCK:
                names.append(edge[1])
            else:
                known = below.known(edge)
                if known is None:
                    outer = below.begin()
                    known = below.end(edge, deepest(needs(edge, objects, {})), outer)
                found.append(known)
        return max(*found, blocks.deepest(np.frombuffer(b"".join(names), NAME)))

    tips = {name: tip for (kind, name), tip in sorted(root.refs.items()) if kind is RefKind.BRANCH}
    depths = {}
    for name, tip in tips.items():
        commit = objects.commit(tip)
        if not is_pruned(tip, commit, absent):
            below.left_out = absent.get(tip, NOTHING)
            depths[name] = deepest([(Kind.TREE, commit.tree)])
    return depths
