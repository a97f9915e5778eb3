"""Filling packs one after the other, from many threads, while full ones are made durable in the background."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import NamedTuple

from .backend import Backend, Buffer
from .block import PLAIN, Coding, Kind, ObjectId
from .catalog import Catalog
from .pack import TARGET_SIZE, PackId, PackWriter
from .tensors import Array


@dataclass(slots=True)
class Counters:
    """What was stored: blocks, and bytes of all objects."""

    new_blocks: int = 0
    new_raw: int = 0
    new_stored: int = 0

    def add(self, other: Counters) -> None:
        self.new_blocks += other.new_blocks
        self.new_raw += other.new_raw
        self.new_stored += other.new_stored


class Stored(NamedTuple):
    """An object as it lies in a pack; `raw` is its length before it was encoded."""

    name: ObjectId
    kind: Kind
    coding: Coding
    raw: int
    data: bytes


class Packs:
    """The pack being filled, and the full ones on their way to the disk. Safe to use from many threads.

    A pack is full at `target_size` bytes. The first `hold` bytes stay in memory: where no more come, `release` gives
    them to be stored elsewhere.
    """

    def __init__(self, backend: Backend, catalog: Catalog, hold: int = 0, target_size: int = TARGET_SIZE) -> None:
        self._target_size = target_size
        self._hold = hold
        self._held: list[Stored] = []
        self._backend = backend
        self._catalog = catalog
        self._lock = threading.RLock()
        self._open: PackWriter | None = None
        self._closing: list[threading.Thread] = []
        self._failure: BaseException | None = None
        self.counters = Counters()
        self.published: list[PackId] = []
        """Packs that are durable."""
        self.appended = 0
        """Objects that were taken."""

    @property
    def congested(self) -> bool:
        pack = self._open
        return pack is not None and pack.congested

    def append(self, name: ObjectId, kind: Kind, coding: Coding, raw: int, stored: Array | Buffer) -> None:
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._hold:
                self._hold = max(0, self._hold - len(stored))
                self._held.append(Stored(name, kind, coding, raw, bytes(memoryview(stored))))
                if not self._hold:
                    self._write_held()
                return
            if self._open is None:
                self._open = PackWriter(self._backend, self._target_size)
            self._open.append(name, kind, coding, raw, memoryview(stored))
            self.appended += 1
            self.counters.new_blocks += kind is Kind.BLOCK
            self.counters.new_raw += raw
            self.counters.new_stored += len(stored)
            if self._open.is_full:
                self._close_in_background(self._open)
                self._open = None

    def append_raw(self, blocks: list[tuple[ObjectId, Array]]) -> None:
        """Append blocks side by side, so that the tensor they come from is read back in one go."""
        with self._lock:
            for name, data in blocks:
                self.append(name, Kind.BLOCK, PLAIN, len(data), data)

    def release(self) -> list[Stored]:
        """Everything that was taken, if all of it is still held in memory; it is then not this object's any more."""
        held, self._held = self._held, []
        return held

    def _write_held(self) -> None:
        self._hold = 0
        for item in self.release():
            self.append(*item)

    def _close_in_background(self, pack: PackWriter) -> None:
        thread = threading.Thread(target=self._publish, args=(pack,), name="cas-pack", daemon=True)
        self._closing.append(thread)
        thread.start()

    def _publish(self, pack: PackWriter) -> None:
        try:
            self._finish(pack)
        except BaseException as error:  # raised by the next append or by settle
            self._failure = error

    def settle(self) -> None:
        """Wait until every full pack is durable."""
        for thread in self._closing:
            thread.join()
        self._closing.clear()
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Make everything durable: the open pack, which holds what names the others, last."""
        self._write_held()
        self.settle()
        if self._open is not None:
            pack, self._open = self._open, None
            self._finish(pack)

    def _finish(self, pack: PackWriter) -> None:
        self._catalog.add(pack.publish())
        self.published.append(pack.id)

    def abandon(self) -> None:
        for thread in self._closing:
            thread.join()
        if self._open is not None:
            self._open.abandon()
