"""How far a long command is: one line on a terminal, redrawn a few times a second; elsewhere nothing at all.

    checkout [########--------] 512 MB of 1.07 GB, 1.31 GB/s, 1 s left
    push [########--------] 512 MB of 1.07 GB, 211 of 400 objects, 88.1 MB/s, 7 s left

It has no colours, so NO_COLOR changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from types import TracebackType

from cas.commits import human_bytes

_PERIOD = 1 / 8  # seconds from one drawing to the next
_BAR = 24
_SHORTEST_BAR = 4
_CLEAR = "\r\x1b[K"


class Progress:
    """Counts bytes, from any thread; `total` is None where nobody knows. Leaving the `with` block clears the line."""

    def __init__(self, total: int | None, what: str) -> None:
        self._total = total
        self._what = what
        self._done = 0
        self._shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._drawn = False
        self._lock = threading.Lock()
        self._start = self._last = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def advance(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            now = time.monotonic()
            if self._shown and now - self._last >= _PERIOD:
                self._last = now
                self._drawn = True  # first: ^C may come in the middle of the writing, and the line must go then too
                self._write(_CLEAR + _line(self._what, self._done, self._total, now - self._start))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            self._write(_CLEAR)

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that went away is no reason to fail
            sys.stderr.write(text)
            sys.stderr.flush()


class Transfer:
    """What `Store.push` and the like call: counts, from any thread, what goes from one store to another.

    `line` says how far it is; before the first call it is known only that something is being looked for.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._start: float | None = None
        self._now = (0, 0, 0, 0)

    def __call__(self, objects: int, of_objects: int, nbytes: int, of_bytes: int) -> None:
        if self._start is None:
            self._start = time.monotonic()
        self._now = (objects, of_objects, nbytes, of_bytes)

    def line(self) -> str:
        objects, of_objects, nbytes, of_bytes = self._now
        if self._start is None:
            return f"{self._what}: looking for what is missing"
        counted = f"{objects:,} of {of_objects:,} objects"
        return _line(self._what, nbytes, of_bytes, time.monotonic() - self._start, counted)


def _line(what: str, done: int, total: int | None, seconds: float, counted: str = "") -> str:
    """What fits into the terminal: the bar gives way to the numbers."""
    width = columns() - 1
    rate = done / seconds if seconds else 0.0
    if not total:
        return f"{what} {human_bytes(done)}, {human_bytes(rate)}/s"[:width]
    part = min(1.0, done / total)
    left = f"{_duration(max(0, total - done) / rate)} left" if rate else ""
    amounts = f"{human_bytes(done)} of {human_bytes(total)}", counted, f"{human_bytes(rate)}/s", left
    said = ", ".join(filter(None, amounts))
    length = min(_BAR, width - len(f"{what} [] {said}"))
    bar = f"[{('#' * int(length * part)).ljust(length, '-')}] " if length >= _SHORTEST_BAR else ""
    return f"{what} {bar}{said}"[:width]


def columns() -> int:
    """How wide the terminal is to which this is drawn."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return 80


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
