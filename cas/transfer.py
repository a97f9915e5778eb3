"""Sending objects from store to store as they are stored, each decoded and compared with its name on the way.

A delta goes as it is where the target can decode it: its base lies there, or goes as well, in a row of a smaller chain
number. Objects go so that a run which is cut off leaves nothing that the next could not use: bases before what changes
them, blocks before what names them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from .block import MAX_CHAIN, Kind, ObjectId, short
from .chains import chains_of
from .errors import Corrupt, NotFound
from .moving import copy
from .pack import TARGET_SIZE, Location
from .packing import Packs
from .sides import Side

Progress = Callable[[int, int, int, int], None]
"""Told objects done, objects in all, stored bytes done, stored bytes in all."""
_BATCH = 1 << 14
_SMALLEST_PACK = 8 << 20
_PACKS = 128
"""Into so many packs at least a transfer goes, so that one which is cut off has lost little."""


def rows_to_send(missing: Mapping[Kind, Iterable[ObjectId]], source: Side, target: Side) -> list[list[Location]]:
    """The rows of these objects, and of the bases that the target lacks, in groups that go one after the other."""
    blocks = _Chooser(source, target)
    blocks.choose(missing[Kind.BLOCK])
    groups: list[list[Location]] = [[] for _ in range(MAX_CHAIN + 1)]
    for place in blocks.chosen:
        groups[place.row.chain].append(place)
    groups += [_rows(kind, missing[kind], source) for kind in Kind if kind is not Kind.BLOCK]
    return [group for group in groups if group]


def _rows(kind: Kind, names: Iterable[ObjectId], source: Side) -> list[Location]:
    chosen = []
    wanted = list(names)
    for at in range(0, len(wanted), _BATCH):
        part = wanted[at : at + _BATCH]
        found = source.catalog.locate(part)
        for name in part:
            rows = [place for place in found.get(name, []) if place.row.kind == kind and not place.row.chain]
            if not rows:
                raise NotFound(f"{kind.name.lower()} {short(name)} is in no pack; {source.catalog.why_missing()}")
            chosen.append(min(rows, key=lambda place: place.row.stored))
    return chosen


class _Chooser:
    """Picks rows of blocks."""

    def __init__(self, source: Side, target: Side) -> None:
        self._source = source
        self._target = target
        self._picked: dict[ObjectId, Location] = {}

    @property
    def chosen(self) -> Iterable[Location]:
        return self._picked.values()

    def choose(self, names: Iterable[ObjectId]) -> None:
        wanted = list(names)
        for at in range(0, len(wanted), _BATCH):
            part = wanted[at : at + _BATCH]
            found = self._source.catalog.locate(part)
            chained = []
            for name in part:
                whole = [place for place in found.get(name, []) if not place.row.chain and place.row.kind == Kind.BLOCK]
                if whole:
                    self._picked[name] = min(whole, key=lambda place: place.row.stored)
                else:
                    chained.append(name)
            if chained:
                self._choose_deltas(chained)

    def _choose_deltas(self, names: list[ObjectId]) -> None:
        chains = chains_of(names, self._source.catalog.locate)
        for name in names:
            if name not in chains:
                why = self._source.catalog.why_missing()
                raise NotFound(f"block {short(name)} is in no pack, or a base of it is not; {why}")
            self._picked[name] = chains[name][0]
        self._choose_bases(list(chains.values()))

    def _choose_bases(self, chains: list[tuple[Location, ...]]) -> None:
        """Of chains whose first row goes, as much as the target needs to decode that."""
        bases = {chain[1].row.id for chain in chains}
        held = chains_of(bases, self._find_at_target) if bases else {}
        longer = []
        for chain in chains:
            row, base = chain[0].row, chain[1]
            there = held.get(base.row.id)
            if there is not None and there[0].row.chain < row.chain and there[0].row.raw == row.raw:
                continue
            goes = self._picked.get(base.row.id)
            if goes is None or goes.row.chain >= row.chain:
                self._picked[base.row.id] = base
            if base.row.chain:
                longer.append(chain[1:])
        if longer:
            self._choose_bases(longer)

    def _find_at_target(self, names: Iterable[ObjectId]) -> dict[ObjectId, list[Location]]:
        """As `Catalog.locate`, without looking for what is not known: it most often is not there."""
        known = self._target.catalog.known(list(names))
        return self._target.catalog.locate(known)


@dataclass(slots=True)
class Throttle:
    """Holds threads back so that they move `rate` bytes a second together. Safe to use from many threads."""

    rate: float
    _lock: threading.Lock
    _free_at: float = 0.0

    @classmethod
    def of(cls, rate: float) -> Throttle:
        return cls(rate, threading.Lock())

    def take(self, nbytes: int) -> None:
        """Return when so many bytes that were moved are due."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + nbytes / self.rate
            wait = self._free_at - now
        time.sleep(wait)


def send(
    groups: list[list[Location]],
    source: Side,
    target: Side,
    threads: int,
    rate: float | None,
    progress: Progress,
) -> tuple[int, int]:
    """Write these rows into packs of the target, durable on return; how many objects, and their stored bytes.

    `Corrupt` names the first that is not what it should be. What was sent before an error stays, for the next run.
    """
    objects, total = sum(map(len, groups)), sum(place.row.stored for group in groups for place in group)
    packs = Packs(target.backend, target.catalog, target_size=max(_SMALLEST_PACK, min(TARGET_SIZE, total // _PACKS)))
    throttle = None if rate is None else Throttle.of(rate)
    lock = threading.Lock()
    done = 0

    def told(nbytes: int) -> None:
        nonlocal done
        if throttle is not None:
            throttle.take(nbytes)
        with lock:
            done += nbytes
            progress(packs.appended, objects, done, total)

    progress(0, objects, 0, total)
    try:
        for group in groups:
            copy(group, packs, source.backend, source.catalog, threads, progress=told)
        packs.finish()
    except (NotFound, Corrupt):
        packs.finish()
        raise
    except BaseException:
        packs.abandon()
        raise
    return objects, total
