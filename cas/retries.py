"""Trying a failed request again: longer and longer pauses, with chance in them, until patience is over."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE = 60.0
"""Seconds for which a request is tried again, counted from its first failure."""
_FIRST = 0.1  # seconds
_LONGEST = 8.0  # seconds
_SILENT = 5.0
"""Seconds of failures before a person hears of it."""
_log = logging.getLogger("cas")
_told_at = float("-inf")

T = TypeVar("T")


class Patience:
    """The pauses between the tries of one request, or of several that are to end together.

    Chance keeps a thousand ranks, all refused at one moment, from coming back at one moment.
    """

    def __init__(self) -> None:
        self._until: float | None = None
        self._pause = _FIRST

    def wait(self) -> bool:
        """Pause after a failure; False, at once, when patience is over. The last try is made at the very end."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + PATIENCE
        left = self._until - now
        if left <= 0:
            return False
        if left < PATIENCE - _SILENT:
            _tell(left)
        time.sleep(min(left, self._pause * random.uniform(0.5, 1)))
        self._pause = min(2 * self._pause, _LONGEST)
        return True


def _tell(left: float) -> None:
    """Say that it takes long, once for all threads that meet the same trouble."""
    global _told_at
    now = time.monotonic()
    if now - _told_at > PATIENCE:
        _told_at = now
        _log.warning("requests to remote storage fail; they are tried again for another %.0f s", left)


def with_retries(attempt: Callable[[], T], passes: Callable[[Exception], bool], patience: Patience | None = None) -> T:
    """What `attempt` returns, called again while its error is one that `passes` and patience lasts; else that error.

    `attempt` must do no harm when it is done twice, nor when an earlier one lands late.
    """
    patience = patience or Patience()
    while True:
        try:
            return attempt()
        except Exception as error:
            if not passes(error) or not patience.wait():
                raise
