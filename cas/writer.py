"""Storing the bytes of leaves: cut, hash, dedup, encode, pack. Steps 1 and 2 of the write order.

1. Blocks go into packs; full packs are made durable while the next one fills.
2. Lists, layouts, trees and the commit close the last pack, which is made durable when all others are.
Publishing (step 3, `publish.py`) comes after. A crash or failure before it leaves packs that nothing names.

Every worker copies a block before it hashes it, so a name always fits the bytes that are stored under it, even
when the caller's tensors change meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

import numpy as np

from .backend import Backend
from .bases import Bases
from .block import MAX_BLOCK_SIZE, MAX_OBJECT_SIZE, NO_BASE, PLAIN, Kind, ObjectId, block_id, object_id, short
from .catalog import Catalog
from .codecs import Changes, CodecName, Encoder, Format
from .counterparts import Counterparts
from .crew import Crew, Shelf
from .cutting import Cut, content_of, cuts_of
from .deltas import Decisions, Deltas, Lineage, Noted, Recent
from .errors import Corrupt, Invalid
from .packing import Counters, Packs, Stored
from .reader import Objects
from .state import Leaf
from .tensors import Array, ArraySource

BATCH_BYTES = MAX_BLOCK_SIZE
BATCH_BLOCKS = 1024
COMPRESS_OBJECT_FROM = 512


@dataclass(slots=True)
class _Run:
    """Consecutive blocks of one cut."""

    cut: Cut
    format: Format
    blocks: range
    lineage: Lineage | None

    @property
    def start(self) -> int:
        return self.cut.edges[self.blocks.start]

    @property
    def nbytes(self) -> int:
        return self.cut.edges[self.blocks.stop] - self.start


@dataclass(slots=True)
class _View:
    """A block that was named, and what it may be stored as a change of."""

    name: ObjectId
    data: Array
    format: Format
    base: ObjectId | None
    changes: Changes | None
    kept: Array | None
    """Where the same bytes stand in memory that may be kept."""


class Workbench:
    """What one worker thread reuses from batch to batch, and from commit to commit."""

    def __init__(self, backend: Backend, catalog: Catalog) -> None:
        self.encoder = Encoder()
        self.bases = Bases(backend, catalog, self.encoder)
        self.scratch: Array = np.empty(BATCH_BYTES, np.uint8)

    def verify(self, item: Stored) -> None:
        """`Corrupt` unless the object decodes to what its name says."""
        base = self.bases.block(ObjectId(item.coding.base), item.raw) if item.coding.chain else NO_BASE
        raw = memoryview(self.scratch)[: item.raw] if item.raw <= BATCH_BYTES else memoryview(bytearray(item.raw))
        self.encoder.decode(item.coding, item.data, raw, base)
        if object_id(item.kind, raw) != item.name:
            raise Corrupt(f"{item.kind.name.lower()} {short(item.name)} was damaged on its way; commit again")


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """What all commits of one Store share. `block_size` in bytes."""

    block_size: int
    threads: int
    benches: Shelf[Workbench]
    decisions: Decisions = field(default_factory=Decisions)
    recent: Recent = field(default_factory=Recent)
    notes: Noted | None = None
    """Of one commit alone: what it stores whole out of memory that nobody changes."""

    @classmethod
    def of(cls, block_size: int, threads: int, backend: Backend, catalog: Catalog) -> WriterSettings:
        return cls(block_size, threads, Shelf(partial(Workbench, backend, catalog)))

    def deltas(self, commits: Sequence[ObjectId], objects: Objects, catalog: Catalog) -> Deltas | None:
        """Deltas of the blocks of these commits; None without any."""
        sources = [Counterparts(objects, name) for name in commits]
        return Deltas(sources, self.recent, catalog) if sources else None


class ObjectWriter:
    """Stores one commit's objects. `with` is the unit: leaving it by an exception drops the open pack.

    Not thread-safe; it runs its own threads.
    """

    def __init__(
        self,
        backend: Backend,
        catalog: Catalog,
        codec: CodecName,
        settings: WriterSettings,
        progress: Callable[[int], None] | None = None,
        hold: int = 0,
        deltas: Deltas | None = None,
    ) -> None:
        self._catalog = catalog
        self._deltas = deltas
        self._settings = settings
        self._codec = codec
        self._progress = progress
        self._packs = Packs(backend, catalog, hold)
        self._claimed: set[ObjectId] = set()
        self._claim = threading.Lock()
        self._objects: dict[ObjectId, tuple[Kind, bytes]] = {}

    def __enter__(self) -> ObjectWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._packs.abandon()

    # -- leaves -------------------------------------------------------------------------------------------------

    def store(self, leaves: Iterable[Leaf]) -> int:
        """Store the bytes of every leaf, all of which are held here, and set its content; returns its blocks."""
        block_size = self._settings.block_size
        plans = [(leaf, cuts_of(leaf, block_size)) for leaf in leaves if leaf.tied_to is None]
        self.store_blocks([cut for _, cuts in plans for cut in cuts])
        for leaf, cuts in plans:
            leaf.content = content_of(cuts, self.put)
        return sum(len(cut.ids) for _, cuts in plans for cut in cuts)

    def store_blocks(self, cuts: Iterable[Cut]) -> None:
        """Name the blocks of every cut, and store those that are this process's to store."""
        with Crew(self._settings.threads) as crew:
            for batch in self._batches(cuts):
                crew.submit(partial(self._store_batch, batch))

    def _batches(self, cuts: Iterable[Cut]) -> Iterator[list[_Run]]:
        """Runs of blocks in the order of the cuts, up to `BATCH_BYTES` together."""
        batch: list[_Run] = []
        size = blocks = 0
        for cut in cuts:
            if not cut.duty.replicas:
                continue
            tensor, edges = cut.leaf.tensor, cut.edges
            form, lineage = Format(None), None
            if tensor is not None:
                habits = self._settings.decisions.habits(cut.leaf.path, tensor.dtype)
                form = habits.format
                lineage = None if self._deltas is None else self._deltas.lineage(cut, habits.changes)
            first, count = 0, len(cut.ids)
            while first < count:
                last = first + 1
                while last < count and size + edges[last + 1] - edges[first] <= BATCH_BYTES:
                    last += 1
                if batch and (size + edges[last] - edges[first] > BATCH_BYTES or blocks >= BATCH_BLOCKS):
                    yield batch
                    batch, size, blocks = [], 0, 0
                    continue
                batch.append(_Run(cut, form, range(first, last), lineage))
                size, blocks, first = size + edges[last] - edges[first], blocks + last - first, last
        if batch:
            yield batch

    def _store_batch(self, batch: list[_Run]) -> None:
        with self._settings.benches.borrow() as bench:
            self._store_on(bench, batch)
        if self._progress is not None:
            self._progress(sum(run.nbytes for run in batch))

    def _store_on(self, bench: Workbench, batch: list[_Run]) -> None:
        views: list[_View] = []
        position = 0
        for run in batch:
            position = self._hash_run(run, bench.scratch, position, views)
        known = self._catalog.known([view.name for view in views])
        fresh = [view for view in views if view.name not in known and self._claims(view.name)]
        raw: list[tuple[ObjectId, Array]] = []
        for view in fresh if self._deltas is None else self._without_deltas(bench, fresh, self._deltas):
            if self._settings.notes is not None and view.kept is not None:
                self._settings.notes[view.name] = view.kept
            coding, stored = bench.encoder.encode(view.data, view.format, self._effort())
            if coding is PLAIN:
                raw.append((view.name, view.data))
            else:
                self._packs.append(view.name, Kind.BLOCK, coding, len(view.data), stored)
        self._packs.append_raw(raw)

    def _without_deltas(self, bench: Workbench, views: list[_View], deltas: Deltas) -> list[_View]:
        """Store as deltas those of these blocks where it pays, and return the others."""
        rows = deltas.rows(view.base for view in views if view.base is not None)
        # That may have listed packs of other writers: what they hold by now is no block of ours to store.
        known = self._catalog.known([view.name for view in views])
        rest = []
        for view in views:
            if view.name in known:
                continue
            row = None if view.base is None else rows.get(view.base)
            made = None
            if row is not None and view.changes is not None:
                made = deltas.encode(view.data, view.changes, row, bench.bases, bench.encoder)
            if made is None:
                rest.append(view)
            else:
                coding, stored = made
                self._packs.append(view.name, Kind.BLOCK, coding, len(view.data), stored)
        return rest

    def _hash_run(self, run: _Run, scratch: Array, position: int, views: list[_View]) -> int:
        """Copy a run's bytes to `scratch` from `position` on, then name its blocks; those of ours go to `views`."""
        cut, start, length = run.cut, run.start, run.nbytes
        copy = scratch[position : position + length]
        cut.source.read_into(start, copy)
        edges, own = cut.edges, cut.own
        for number in run.blocks:
            view = copy[edges[number] - start : edges[number + 1] - start]
            name = block_id(view)  # type: ignore[arg-type]  # an array of bytes is a buffer
            cut.ids[number] = name
            if number in own:
                known = run.lineage
                base, changes = (None, None) if known is None else (known.bases[number], known.changes)
                kept = (
                    cut.source.view(edges[number], edges[number + 1]) if isinstance(cut.source, ArraySource) else None
                )
                views.append(_View(name, view, run.format, base, changes, kept))
        return position + length

    def _claims(self, name: ObjectId) -> bool:
        with self._claim:
            fresh = name not in self._claimed
            self._claimed.add(name)
        return fresh

    def _effort(self) -> CodecName:
        """`auto` compresses exactly while the disk is behind: then the processors have nothing better to do."""
        if self._codec != "auto":
            return self._codec
        return "planes" if self._packs.congested else "raw"

    # -- structured objects -------------------------------------------------------------------------------------

    def put(self, kind: Kind, data: bytes) -> ObjectId:
        """Take a structured object to be stored with the next `finish`; `Invalid` if no reader would accept it."""
        if len(data) > MAX_OBJECT_SIZE:
            raise Invalid(f"the {kind.name.lower()} takes {len(data)} bytes; give a shorter message, meta or files")
        name = object_id(kind, data)
        self._objects[name] = (kind, data)
        return name

    @property
    def counters(self) -> Counters:
        """What was new so far, structured objects taken and not yet written included."""
        counted = self._packs.counters
        fresh = self._fresh()
        size = sum(len(self._objects[name][1]) for name in fresh)
        return Counters(counted.new_blocks, counted.new_raw + size, counted.new_stored + size)

    def _fresh(self) -> list[ObjectId]:
        known = self._catalog.known(list(self._objects))
        return [name for name in self._objects if name not in known]

    def finish(self) -> None:
        """Write the structured objects and make everything durable."""
        self._append_objects()
        self._packs.finish()

    def finish_or_give(self) -> list[Stored]:
        """As `finish`; but if it is all less than was to be held in memory, that is given to be stored by another."""
        self._append_objects()
        held = self._packs.release()
        if held:
            self._objects.clear()
        else:
            self._packs.finish()
        return held

    def take(self, given: Iterable[Stored]) -> None:
        """Store what another writer gave, every object verified and none twice."""
        items = list(given)
        known = self._catalog.known([item.name for item in items])
        with self._settings.benches.borrow() as bench:
            for item in items:
                bench.verify(item)
                if item.name not in known and self._claims(item.name):
                    self._packs.append(*item)

    def _append_objects(self) -> None:
        self._packs.settle()
        with self._settings.benches.borrow() as bench:
            for name in self._fresh():
                kind, data = self._objects[name]
                effort: CodecName = "zstd" if kind is Kind.TREE and len(data) >= COMPRESS_OBJECT_FROM else "raw"
                coding, stored = bench.encoder.encode(np.frombuffer(data, np.uint8), Format(None), effort)
                self._packs.append(name, kind, coding, len(data), stored)
