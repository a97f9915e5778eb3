"""Which blocks of a commit are stored as changes of others, and of which."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .backend import Buffer
from .bases import Bases
from .block import Codec, Coding, ObjectId, block_id
from .catalog import Catalog
from .chains import chains_of
from .codecs import Changes, Encoder, Habits
from .counterparts import Counterparts
from .cutting import Cut
from .dtypes import DType
from .errors import CasError
from .pack import Row
from .paths import Path
from .tensors import Array

COMMIT_CHAIN = 1
"""The longest chain that a commit makes, so that what was committed last loads at most twice as slowly."""
MIN_SIZE = 4 << 10
"""Bytes below which a block has no delta: to read its base would cost more than it saves."""
_RENEW = 16
_log = logging.getLogger("cas")


@dataclass(slots=True)
class Lineage:
    """What the blocks of one cut may be stored as changes of, in their order."""

    changes: Changes
    bases: list[ObjectId | None]


@dataclass(slots=True)
class Decisions:
    """How the tensors of a state are coded, from commit to commit: sampling costs a third of encoding."""

    _held: dict[tuple[Path, DType], tuple[Habits, int]] = field(default_factory=dict)

    def habits(self, path: Path, dtype: DType) -> Habits:
        """What was found out about the tensor at `path`, forgotten every few commits."""
        held, uses = self._held.get((path, dtype), (None, 0))
        if held is None or uses >= _RENEW:
            held, uses = Habits(dtype), 0
        self._held[path, dtype] = held, uses + 1
        return held


Noted = dict[ObjectId, Array]
"""Raw bytes of blocks that one commit stored whole, where they lie in memory that nobody changes."""


@dataclass(slots=True)
class Recent:
    """Bases that need not be read: what a commit noted."""

    blocks: Noted = field(default_factory=dict)

    def get(self, name: ObjectId) -> Buffer | None:
        """The raw bytes of a block, if they are here and still what they were."""
        held = self.blocks.get(name)
        if held is None or block_id(held.data) != name:
            return None
        return held.data


class Deltas:
    """The deltas of one commit. `sources` are the commits whose blocks are bases, the first that has one first."""

    def __init__(self, sources: Sequence[Counterparts], recent: Recent, catalog: Catalog) -> None:
        self._sources = sources
        self._recent = recent
        self._catalog = catalog

    def lineage(self, cut: Cut, changes: Changes) -> Lineage | None:
        """None where nothing is known to be a base for any block of the cut. Not thread-safe."""
        leaf, tensor = cut.leaf, cut.leaf.tensor
        if tensor is None or cut.edges[-1] < MIN_SIZE:
            return None
        bases: list[ObjectId | None] = [None] * len(cut.ids)
        for source in self._sources:
            found = source.of(leaf.path, tensor.dtype, leaf.shape, cut.box, cut.edges)
            bases = [base or other for base, other in zip(bases, found, strict=True)]
        if not any(bases):
            return None
        return Lineage(changes, bases)

    def rows(self, bases: Iterable[ObjectId]) -> dict[ObjectId, Row]:
        """For each of these, if it is there, the row of it or of a base of its own on which a short chain can end."""
        chains = chains_of(bases, self._catalog.locate)
        return {
            name: next(place.row for place in chain if place.row.chain < COMMIT_CHAIN) for name, chain in chains.items()
        }

    def encode(
        self, data: Array, changes: Changes, base: Row, bases: Bases, encoder: Encoder
    ) -> tuple[Coding, memoryview] | None:
        """Coding and stored bytes of a block as a change of `base`; None where that does not pay or cannot be."""
        if changes.hopeless or len(data) < MIN_SIZE or base.raw != len(data):
            return None
        try:
            raw = self._recent.get(base.id) or bases.block(base.id, base.raw)
        except CasError as error:
            _log.warning("a block is stored whole: %s", error)
            return None
        stored = encoder.encode_delta(data, raw, changes)
        if stored is None:
            return None
        return Coding(Codec.DELTA, changes.dtype.width, base.chain + 1, base.id), stored
