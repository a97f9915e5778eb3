"""How far a long command is: one line on a terminal, redrawn a few times a second; elsewhere nothing at all.

    checkout [########--------] 512 MB of 1.07 GB, 1.31 GB/s, 1 s left

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
                self._write(_CLEAR + self._line(now - self._start))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            self._write(_CLEAR)

    def _line(self, seconds: float) -> str:
        """What fits into the terminal: the bar gives way to the numbers."""
        columns = _columns() - 1
        rate = self._done / seconds
        if not self._total:
            return f"{self._what} {human_bytes(self._done)}, {human_bytes(rate)}/s"[:columns]
        part = min(1.0, self._done / self._total)
        left = _duration((self._total - self._done) / rate) if rate and part < 1 else "0 s"
        said = f"{human_bytes(self._done)} of {human_bytes(self._total)}, {human_bytes(rate)}/s, {left} left"
        width = min(_BAR, columns - len(f"{self._what} [] {said}"))
        bar = f"[{('#' * int(width * part)).ljust(width, '-')}] " if width >= _SHORTEST_BAR else ""
        return f"{self._what} {bar}{said}"[:columns]

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that went away is no reason to fail
            sys.stderr.write(text)
            sys.stderr.flush()


def _columns() -> int:
    with contextlib.suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return 80


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
