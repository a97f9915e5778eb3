"""Small reads of packs on remote storage, served from large windows that are kept.

Trees, layouts and commits of one commit lie side by side at the end of its packs: who walks them asks for a
hundred small ranges of the same few windows. Only packs go through here: they are immutable and appear whole,
while log records and the hint are polled for change.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future

Fetch = Callable[[str, int, int], bytes]
"""Reads from a file (`name`, `start`, `length`): fewer bytes only where the file ends, none from there on."""

SMALL = 64 << 10
"""Bytes of the largest read that is served from windows."""
_WINDOW = 256 << 10  # bytes; a request of this size costs little more than one of a kilobyte
_LIMIT = 32 << 20  # bytes kept
_TAILS = 128  # kept besides, each of at most SMALL bytes


class Windows:
    """The windows read last. Safe from many threads, which wait for a window that one of them is fetching.

    Not usable after a fork: another thread may have been fetching; make a new one.
    """

    def __init__(self, fetch: Fetch, window: int = _WINDOW, limit: int = _LIMIT) -> None:
        self._fetch = fetch
        self._size = window
        self._most = max(1, limit // window)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._tails: OrderedDict[str, tuple[int, bytes]] = OrderedDict()

    @staticmethod
    def serves(name: str, length: int) -> bool:
        """Whether a read of `length` bytes of the file pays and is safe to serve from here."""
        return length <= SMALL and name.startswith("packs/")

    def read(self, name: str, start: int, length: int) -> bytes:
        """Bytes from `start`; fewer than `length` only where the file ends."""
        tail = self._tails.get(name)
        if tail is not None and start >= tail[0]:
            return tail[1][start - tail[0] : start - tail[0] + length]
        parts, at, end = [], start, start + length
        while at < end:
            number, offset = divmod(at, self._size)
            window = self._window(name, number)
            part = window[offset : offset + end - at]
            parts.append(part)
            at += len(part)
            if len(window) < self._size:  # the file ends in this window
                break
        return b"".join(parts)

    def readinto(self, name: str, start: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers one after the other; the bytes that there were, fewer only where the file ends."""
        data = memoryview(self.read(name, start, sum(view.nbytes for view in buffers)))
        at = 0
        for view in buffers:
            part = data[at : at + view.nbytes]
            view.cast("B")[: len(part)] = part
            at += len(part)
        return at

    def keep_tail(self, name: str, start: int, data: bytes) -> None:
        """Keep what a file ends with: before the table of a pack, which is read so, lie its trees and commits."""
        if self.serves(name, len(data)):
            with self._lock:
                self._tails[name] = start, data
                while len(self._tails) > _TAILS:
                    self._tails.popitem(last=False)

    def forget(self, name: str) -> None:
        """Drop what is kept of a file: the next read asks the medium itself."""
        with self._lock:
            self._tails.pop(name, None)
            for key in [key for key in self._kept if key[0] == name]:
                del self._kept[key]

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._tails.clear()

    def _window(self, name: str, number: int) -> bytes:
        key = name, number
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                mine = self._kept[key] = Future[bytes]()
            else:
                self._kept.move_to_end(key)
        if found is None:
            return self._fill(key, mine)
        if found.exception() is None:  # waits for whoever is fetching it
            return found.result()
        return self._fetch(name, number * self._size, self._size)  # that one failed: its error was its own

    def _fill(self, key: tuple[str, int], future: Future[bytes]) -> bytes:
        name, number = key
        try:
            data = self._fetch(name, number * self._size, self._size)
        except BaseException as error:
            with self._lock:
                if self._kept.get(key) is future:
                    del self._kept[key]
            future.set_exception(error)
            raise
        future.set_result(data)
        with self._lock:
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return data
