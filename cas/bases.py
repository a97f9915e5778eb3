"""The raw bytes of the blocks that deltas change, verified on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

from .backend import Backend, Buffer
from .block import MAX_BLOCK_SIZE, MAX_CHAIN, NO_BASE, Kind, ObjectId, block_id, short
from .codecs import Encoder
from .errors import CasError, Corrupt, NotFound
from .pack import Location, Row, name_of


class Lookup(Protocol):
    """Finds the rows of objects."""

    def locate(self, ids: Iterable[ObjectId]) -> dict[ObjectId, list[Location]]: ...
    def refresh(self) -> None: ...
    def why_missing(self) -> str: ...


class MissingBase(NotFound):
    """No row leads to a base any more. Whoever looked up its delta a while ago looks again; else that is damage."""


class Bases:
    """Reads blocks through their chains. Not thread-safe: one for each thread, which may share its `encoder`.

    What it returns lies in buffers of this object and is good until the next call. `ahead` gives the stored bytes of
    rows that were read before.
    """

    def __init__(
        self,
        backend: Backend,
        catalog: Lookup,
        encoder: Encoder,
        ahead: Callable[[Location], memoryview | None] = lambda place: None,
    ) -> None:
        self._backend = backend
        self._ahead = ahead
        self._catalog = catalog
        self._encoder = encoder
        self._buffers: list[memoryview] = []
        """Made when they are first needed: one for stored bytes, and as a block is made from its base, and the base
        from its own, two for raw ones, which take turns."""
        self._failed: dict[ObjectId, tuple[int, CasError]] = {}

    def of(self, row: Row) -> Buffer:
        """The raw bytes of the base of a row; none where it has no base. `Corrupt` or `MissingBase` name a base that is
        not to be had.

        Only rows of the base with a smaller chain number count, so no circle is ever followed.
        """
        if not row.chain:
            return NO_BASE
        if not 0 < row.chain <= MAX_CHAIN or row.raw > MAX_BLOCK_SIZE:
            raise Corrupt(f"block {short(row.id)} has a chain of {row.chain} bases; it was not written by this format")
        return self._sought(ObjectId(row.base), row.raw, row.chain)

    def block(self, name: ObjectId, size: int) -> Buffer:
        """The raw bytes of a block."""
        return self._sought(name, size, MAX_CHAIN + 1)

    def _sought(self, name: ObjectId, size: int, below: int) -> Buffer:
        self._failed.clear()
        try:
            return self._found(name, size, below, 0)
        except NotFound:  # a collection may have moved it and deleted the pack that it lay in
            self._catalog.refresh()
        self._failed.clear()
        try:
            return self._found(name, size, below, 0)
        except (NotFound, Corrupt) as error:
            raise MissingBase(f"base block {short(name)} is gone: {error}") from error

    def _found(self, name: ObjectId, size: int, below: int, level: int) -> Buffer:
        tried, failure = self._failed.get(name, (-1, None))
        if failure is not None and below <= tried:  # else rows that fan out could be tried for years
            raise failure
        try:
            return self._read(name, size, below, level)
        except CasError as error:
            self._failed[name] = below, error
            raise

    def _read(self, name: ObjectId, size: int, below: int, level: int) -> Buffer:
        places = self._catalog.locate([name]).get(name, [])
        if not places:
            raise MissingBase(f"base block {short(name)} is in no pack; {self._catalog.why_missing()}")
        usable = [place for place in places if place.row.chain < below and place.row.kind == Kind.BLOCK]
        fitting = [place for place in usable if place.row.raw == size]
        failure: Exception | None = None
        for place in sorted(fitting, key=lambda place: place.row.chain):
            try:
                return self._decoded(place, level)
            except (CasError, OSError) as error:
                failure = error
        if isinstance(failure, NotFound):
            raise failure
        if not usable:
            raise MissingBase(f"base block {short(name)} has as long a chain of bases, which may lead in a circle")
        raise Corrupt(f"base block {short(name)} cannot be read: {failure or 'it has another size'}") from failure

    def _decoded(self, place: Location, level: int) -> memoryview:
        row = place.row
        base: Buffer = NO_BASE
        if row.chain:
            base = self._found(ObjectId(row.base), row.raw, row.chain, level + 1)
        if not self._buffers:
            self._buffers = [memoryview(np.empty(MAX_BLOCK_SIZE, np.uint8)) for _ in range(3)]
        raw, stored = self._buffers[level % 2][: row.raw], self._ahead(place)
        if stored is None:
            stored = self._buffers[2][: row.stored]
            self._backend.readinto(name_of(place.pack), row.offset, [stored])
        self._encoder.decode(row.coding, stored, raw, base)
        if block_id(raw) != row.id:
            self._backend.forget(name_of(place.pack))
            raise Corrupt(f"its bytes in pack {name_of(place.pack)} do not match its name")
        return raw
