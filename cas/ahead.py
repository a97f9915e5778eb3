"""Stored bytes of bases, read before they are asked for and many with one request: what deltas cost on a network.

Deltas that lie side by side mostly have bases that lie side by side. What is read here is a guess that nobody relies
on: what is not, or cannot be, is read when it is needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from .backend import Backend
from .bases import Lookup
from .block import MAX_BLOCK_SIZE, MAX_CHAIN, ObjectId
from .errors import CasError
from .pack import Location, Row, name_of

_MOST = 8 * MAX_BLOCK_SIZE
"""Bytes that are held at most."""
HOLE = 512 << 10
"""Bytes that are rather read than left out with a request more."""


class Ahead:
    """What was read ahead, by place. Not thread-safe: one for each thread."""

    def __init__(self, backend: Backend, catalog: Lookup) -> None:
        self._backend = backend
        self._catalog = catalog
        self._held: dict[tuple[bytes, int], memoryview] = {}

    def get(self, place: Location) -> memoryview | None:
        """The stored bytes of a row, once."""
        return self._held.pop((place.pack, place.row.offset), None)

    def read(self, rows: Iterable[Row]) -> None:
        """Read the bases of these rows, the bases of those and so on, in place of what was held."""
        self._held.clear()
        left, level = _MOST, list(rows)
        for _ in range(MAX_CHAIN):
            wanted = {ObjectId(row.base): row.chain for row in level if row.chain}
            places = list(self._nearest(wanted)) if wanted else []
            for run in _runs(places):
                end = run[-1].row.offset + run[-1].row.stored
                left -= end - run[0].row.offset
                if left < 0:
                    return
                self._take(run, end)
            level = [place.row for place in places]

    def _nearest(self, wanted: dict[ObjectId, int]) -> Iterator[Location]:
        """For each base the row with the shortest chain, if that is short enough."""
        with contextlib.suppress(CasError, OSError):
            for name, places in self._catalog.locate(wanted).items():
                place = min(places, key=lambda place: place.row.chain)
                if place.row.chain < wanted[name]:
                    yield place

    def _take(self, run: list[Location], end: int) -> None:
        start, pack = run[0].row.offset, run[0].pack
        data = memoryview(bytearray(end - start))
        with contextlib.suppress(CasError, OSError):
            self._backend.readinto(name_of(pack), start, [data])
            for place in run:
                at = place.row.offset - start
                self._held[pack, place.row.offset] = data[at : at + place.row.stored]


def _runs(places: list[Location]) -> Iterator[list[Location]]:
    """Neighbours in one pack, up to a block's largest size together."""
    run: list[Location] = []
    for place in sorted(places, key=lambda place: (place.pack, place.row.offset)):
        row = place.row
        if run:
            last = run[-1].row
            near = run[0].pack == place.pack and row.offset - last.offset - last.stored <= HOLE
            if not near or row.offset + row.stored - run[0].row.offset > MAX_BLOCK_SIZE:
                yield run
                run = []
        run.append(place)
    if run:
        yield run
