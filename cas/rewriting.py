"""Storing blocks anew, each as a change of another or whole, and comparing what was stored with what it came from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from .backend import Backend, Buffer
from .bases import Bases
from .block import MAX_BLOCK_SIZE, NO_BASE, Codec, Coding, Kind, ObjectId, short
from .catalog import Catalog
from .choice import Task
from .codecs import Encoder, Habits
from .crew import Crew, Shelf
from .deltas import MIN_SIZE
from .errors import Corrupt
from .pack import Location
from .packing import Packs
from .succession import Heir, Subject
from .tensors import Array

Level = Literal["fast", "small", "smallest"]
LEVELS: tuple[Level, ...] = ("fast", "small", "smallest")
_BATCH_BYTES = 4 << 20


class _Bench:
    """What one thread reuses from batch to batch."""

    def __init__(self, backend: Backend, catalog: Catalog) -> None:
        self.encoder = Encoder()
        self.blocks = Bases(backend, catalog, self.encoder)
        self.bases = Bases(backend, catalog, self.encoder)
        self.check: Array = np.empty(MAX_BLOCK_SIZE, np.uint8)


@dataclass(slots=True)
class Rewriter:
    """Rewrites blocks into packs: those of tips lie together, and so do those of history.

    `fast` leaves whole blocks as they are and deltas in the order of their elements; `small` codes all planes;
    `smallest` also sorts where that makes deltas smaller, which takes some three times as long, and so do loads.
    """

    backend: Backend
    catalog: Catalog
    threads: int
    level: Level
    tips: Packs
    history: Packs
    progress: Callable[[int, int], None]
    """Told from any thread how many stored bytes were rewritten, and in how many."""
    _habits: dict[tuple[Subject, bool], Habits] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def rewrite(self, tasks: Iterable[Task]) -> None:
        """Append every block to a pack of its kind. `Corrupt` names one that cannot be read or did not come back."""
        benches = Shelf(partial(_Bench, self.backend, self.catalog))

        def work(batch: list[Task]) -> None:
            with benches.borrow() as bench:
                for place, heir in batch:
                    stored = self._rewrite(place, heir, bench)
                    self.progress(place.row.stored, stored)

        with Crew(self.threads) as crew:
            for batch in _batches(tasks):
                crew.submit(partial(work, batch))

    def _rewrite(self, place: Location, heir: Heir, bench: _Bench) -> int:
        row = place.row
        raw = np.frombuffer(bench.blocks.block(row.id, row.raw), np.uint8)
        habits = self._habits_of(heir)
        base: Buffer = NO_BASE
        made: tuple[Coding, Array | memoryview] | None = None
        if heir.base is not None and not heir.is_whole and row.raw >= MIN_SIZE and not habits.changes.hopeless:
            base = bench.bases.block(heir.base, row.raw)
            delta = bench.encoder.encode_delta(raw, base, habits.changes)
            if delta is not None:
                made = Coding(Codec.DELTA, heir.subject[1].width, heir.chain, heir.base), delta
        if made is None:
            made = bench.encoder.encode(raw, habits.format, "planes" if self._compresses(row.codec) else "raw")
        coding, stored = made[0], bytes(made[1])
        self._compare(row.id, coding, stored, base, raw, bench)
        packs = self.tips if heir.kin else self.history
        packs.append(row.id, Kind.BLOCK, coding, row.raw, stored)
        return len(stored)

    def _compresses(self, codec: int) -> bool:
        return self.level != "fast" or codec != Codec.RAW

    def _habits_of(self, heir: Heir) -> Habits:
        key, dtype = (heir.subject, heir.kin), heir.subject[1]
        with self._lock:
            if key not in self._habits:
                self._habits[key] = Habits(dtype, self.level == "smallest")
            return self._habits[key]

    @staticmethod
    def _compare(name: ObjectId, coding: Coding, stored: bytes, base: Buffer, raw: Array, bench: _Bench) -> None:
        """Decode what is about to be stored: it is the only copy once the old one is given up."""
        if coding.codec is Codec.RAW:
            return
        out = bench.check[: len(raw)]
        bench.encoder.decode(coding, stored, memoryview(out), base)
        if not np.array_equal(out, raw):
            raise Corrupt(f"block {short(name)} did not come back as it was from codec {coding.codec.name.lower()}")


def _batches(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    batch: list[Task] = []
    size = 0
    for task in tasks:
        batch.append(task)
        size += task[0].row.raw
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
