"""Page-aligned memory from which files are written."""

from __future__ import annotations

import contextlib
import mmap
import threading
from typing import Protocol

BUFFER_SIZE = 8 << 20
BUFFERS = 3


class Holder(Protocol):
    """Whoever takes buffers; the pool counts in `held`, under its lock, how many it has."""

    held: int


class BufferPool:
    """Page-aligned buffers, kept and reused because fresh memory costs as much as the write.

    At most `limit` exist, except that a stream that holds none always gets one: two half-filled streams of
    one thread would otherwise wait for each other forever. So memory is at most
    `size * max(limit, open streams)`.
    """

    def __init__(self, limit: int = BUFFERS, size: int = BUFFER_SIZE) -> None:
        self.size = size
        self._limit = limit
        self._made = 0
        self._free: list[memoryview] = []
        self._returned = threading.Condition(threading.Lock())

    def acquire(self, stream: Holder) -> memoryview:
        """A buffer for `stream`; waits for one when the pool is used up and the stream holds some already."""
        with self._returned:
            while self._must_wait(stream):
                self._returned.wait()
            if self._free:
                buffer = self._free.pop()
            else:
                buffer = _allocate(self.size)
                self._made += 1
            stream.held += 1
            return buffer

    def release(self, stream: Holder, buffer: memoryview) -> None:
        with self._returned:
            stream.held -= 1
            if self._made > self._limit:
                self._made -= 1
            else:
                self._free.append(buffer)
            self._returned.notify_all()

    def must_wait(self, stream: Holder) -> bool:
        with self._returned:
            return self._must_wait(stream)

    def clear(self) -> None:
        """Give the memory of unused buffers back."""
        with self._returned:
            self._made -= len(self._free)
            self._free.clear()

    def _must_wait(self, stream: Holder) -> bool:
        return not self._free and self._made >= self._limit and stream.held > 0


def _allocate(size: int) -> memoryview:
    # Private: mmap's default is memory shared with forked children, which also gets no huge pages.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages: only slower
            memory.madvise(mmap.MADV_HUGEPAGE)  # 4 page faults in place of 2,048
    return memoryview(memory)
