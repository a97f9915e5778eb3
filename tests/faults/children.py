"""Work in forked children, so that a crash is a result and a hang is a failure."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


class ChildDied(AssertionError):
    """The child was ended by a signal. A bug, wherever the test did not send it."""


class ChildHung(AssertionError):
    """The child did not end in time and was killed."""


class ChildFailed(AssertionError):
    """The work raised; the message is the child's traceback."""


@dataclass
class Child:
    """A forked process that runs `work`; its result comes back pickled through a pipe."""

    pid: int
    results: int

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def end(self, limit: float = 60.0) -> tuple[bytes, int]:
        """Everything that the child wrote, and its wait status."""
        data, deadline = b"", time.monotonic() + limit
        while True:
            left = deadline - time.monotonic()
            ready = select.select([self.results], [], [], max(0.0, left))[0]
            if not ready:
                self.kill()
                self._reap()
                raise ChildHung(f"the child had not ended after {limit} s")
            part = os.read(self.results, 1 << 20)
            if not part:
                return data, self._reap()
            data += part

    def result(self, limit: float = 60.0) -> Any:
        """What `work` returned."""
        return unpack(*self.end(limit))

    def _reap(self) -> int:
        os.close(self.results)
        return os.waitpid(self.pid, 0)[1]


def unpack(data: bytes, status: int) -> Any:
    """The result in what a child wrote before it ended with this status."""
    if os.WIFSIGNALED(status):
        raise ChildDied(f"the child died of {signal.Signals(os.WTERMSIG(status)).name}")
    good, value = pickle.loads(data)
    if not good:
        raise ChildFailed(value)
    return value


def start(work: Callable[..., Any], *args: Any, memory: int | None = None) -> Child:
    """Fork; the child has at most `memory` bytes of address space beyond what it has now."""
    results, report = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the runner has threads; the child uses none of them
        pid = os.fork()
    if pid:
        os.close(report)
        return Child(pid, results)
    os.close(results)
    _run(work, args, memory, report)
    raise AssertionError("not reached")


def _run(work: Callable[..., Any], args: tuple[Any, ...], memory: int | None, report: int) -> None:
    gc.freeze()  # a collection would copy every page of the runner
    try:
        if memory is not None:
            limit = address_space() + memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        answer: tuple[bool, Any] = (True, work(*args))
    except BaseException:  # also SystemExit: nothing may go on into the test runner
        answer = (False, traceback.format_exc())
    with contextlib.suppress(BaseException):
        data = memoryview(pickle.dumps(answer))
        while data:
            data = data[os.write(report, data) :]
    os._exit(0)


def run(work: Callable[..., Any], *args: Any, memory: int | None = None, limit: float = 60.0) -> Any:
    """The result of `work(*args)` in a child; `ChildDied`, `ChildHung` or `ChildFailed` where there is none."""
    return start(work, *args, memory=memory).result(limit)


def stay_on_one_processor() -> None:
    """So that the store uses one thread; each of the runner's workers has another processor."""
    usable = sorted(os.sched_getaffinity(0))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {usable[worker % len(usable)]})


@contextlib.contextmanager
def on_one_processor() -> Iterator[None]:
    """As above, for this while only."""
    usable = os.sched_getaffinity(0)
    stay_on_one_processor()
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


def address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def killed_at_the_end(children: list[Child]) -> Iterator[None]:
    """Leave no child behind, whatever the test does."""
    try:
        yield
    finally:
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child.pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.waitpid(child.pid, 0)


class Gate:
    """Holds children back until they are all let through at once."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def wait(self) -> None:
        """In a child: go on when the parent opens the gate."""
        os.close(self._write)
        os.read(self._read, 1)
        os.close(self._read)

    def wait_for(self, child: Child) -> None:
        """In the parent: return when the child is at the gate."""
        while os.path.exists(f"/proc/{child.pid}/fd/{self._write}"):
            time.sleep(0.001)

    def open(self) -> None:
        os.close(self._write)
        os.close(self._read)
