"""A commit that runs beside the training loop."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable

from .commits import Commit
from .errors import CasError

_log = logging.getLogger("cas")
_NICE = 5


def _give_way() -> None:
    """Let the training threads go first: this one, and those that it starts, take a processor that they leave."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICE))


class Pending:
    """A commit on its way. The interpreter does not exit before it has ended. Without `work` it was skipped."""

    def __init__(self, work: Callable[[], Commit] | None) -> None:
        self._work = work
        self._result: Commit | None = None
        self._failure: BaseException | None = None
        self._raised = False
        self._caller_goes_on = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cas-commit", daemon=False)
        try:
            self._thread.start()
        finally:
            self._caller_goes_on.set()

    def _run(self) -> None:
        _give_way()
        self._caller_goes_on.wait()  # else this thread would keep the interpreter for a while, and the caller waiting
        try:
            self._result = None if self._work is None else self._work()
        except BaseException as error:  # kept for whoever waits; logged for the case that nobody does
            self._failure = error
            _log.error("the background commit failed: %s", error)

    @property
    def skipped(self) -> bool:
        """Whether nothing was committed, since another commit was in flight; `wait` then raises."""
        return self._work is None

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return not self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> Commit:
        """The durable commit; raises what went wrong. `TimeoutError` after `timeout` seconds; it then goes on."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"the commit is still running after {timeout} s")
        if self._failure is not None:
            self._raised = True
            raise self._failure
        if self._result is None:
            raise CasError("this commit was skipped, as when_busy='skip' asks while another is in flight")
        return self._result

    def settle(self) -> None:
        """Wait; raise a failure that nobody has seen yet."""
        self._thread.join()
        if self._failure is not None and not self._raised:
            self.wait()
