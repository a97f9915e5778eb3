"""What a long command does right now: one line on a terminal, redrawn twice a second; elsewhere nothing at all."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType

from .output import clean, cut
from .progress import columns

_PERIOD = 0.5  # seconds from one drawing to the next
_CLEAR = "\r\x1b[K"


class Status:
    """Draws what was last given to `show`, from a thread of its own. Leaving the `with` block clears the line."""

    def __init__(self) -> None:
        self._line: Callable[[], str] = str
        self._drawn = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> Status:
        if self._shown:
            self._thread.start()
        return self

    def show(self, line: Callable[[], str]) -> None:
        """From now on draw what `line` says; it is asked at each drawing."""
        self._line = line

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._shown:
            self._thread.join()
        if self._drawn:
            self._write(_CLEAR)

    def _run(self) -> None:
        while not self._ended.wait(_PERIOD):
            self._drawn = True
            self._write(_CLEAR + cut(clean(self._line()), columns() - 1))

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that went away is no reason to fail
            sys.stderr.write(text)
            sys.stderr.flush()
