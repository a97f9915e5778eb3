"""Clients that take turns: each backend call is a place where another client may go on, and a seed says which.

A client is a thread that runs only while it holds the turn. It reaches the store through a backend of its own, so what
a worker thread of its `Store` calls is the client's call. Stores believe that there is one processor, so they have one
worker, which the client waits for: no two calls of a client overlap, and between two calls nobody else runs. Clients
see nothing of each other but the order of reads, listings, creates and deletes; the seed decides that order, and the
same seed gives the same one.

Half of the seeds switch clients at random, more or less often. The others give each client a priority, and take it
away at a few random calls (probabilistic concurrency testing: bugs that need few switches are found with a known
chance). On top of either, a client may stall at a call until others went on, or until they all ended, or die there.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

_START = 1_800_000_000.0
_TICK = 0.001
_DEADLINE = 60.0
"""Seconds of real time that one schedule may take before it counts as hung."""
_EXPECTED_CALLS = 250
FOR_EVER = 1_000_000
"""Steps: longer than any client lives."""
_SWITCHING = (0.05, 0.2, 0.5, 1.0)


class Crashed(BaseException):
    """Ends a client wherever it is. No `Exception`, so that nobody who catches errors goes on."""


@dataclass(slots=True)
class Trigger:
    """The `count`th call whose text starts with `prefix`."""

    prefix: str
    count: int

    def hit(self, call: str) -> bool:
        if not call.startswith(self.prefix):
            return False
        self.count -= 1
        return self.count == 0


@dataclass(slots=True)
class Client:
    """`stall` puts it to sleep for `nap` steps, `crash` ends it."""

    name: str
    work: Callable[[Client], None]
    stall: Trigger | None = None
    nap: int = 0
    crash: Trigger | None = None
    priority: float = 0.0
    wakes: int = 0
    dead: bool = False
    ended: bool = False
    gate: threading.Lock = field(default_factory=threading.Lock)


class Scheduler:
    """Runs clients to their ends, one at a time. `calls` is what they did, in order."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._clients: list[Client] = []
        self._current: Client | None = None
        self._done = threading.Event()
        self._switching = rng.choice(_SWITCHING) if rng.random() < 0.5 else None
        self._changes = {rng.randrange(_EXPECTED_CALLS) for _ in range(rng.randint(1, 5))}
        self.now = _START
        self.calls: list[tuple[str, str]] = []
        self.failure: BaseException | None = None

    def add(self, client: Client) -> None:
        client.priority = self._rng.random()
        client.gate.acquire()
        self._clients.append(client)

    def run(self) -> None:
        """Return when every client has ended; raise what one of them raised, but for `Crashed`."""
        threads = [threading.Thread(target=self._live, args=(client,), daemon=True) for client in self._clients]
        for thread in threads:
            thread.start()
        self._pass_on()
        if not self._done.wait(_DEADLINE):
            raise AssertionError(f"the clients hang; {self._current and self._current.name} has the turn")
        for thread in threads:
            thread.join()
        if self.failure is not None:
            raise self.failure

    def step(self, client: Client, call: str) -> None:
        """Another client may go on here, before `client` makes its call."""
        if client.dead or self.failure is not None:
            raise Crashed
        self.calls.append((client.name, call))
        self.now += _TICK
        if client.crash is not None and client.crash.hit(call):
            self.calls.append((client.name, "dies"))
            client.dead = True
            raise Crashed
        if client.stall is not None and client.stall.hit(call):
            self.calls.append((client.name, "stalls"))
            client.wakes = len(self.calls) + client.nap
        if len(self.calls) in self._changes:
            client.priority = -len(self.calls)
        if self._pass_on(client):
            client.gate.acquire()
            if self.failure is not None:
                raise Crashed
            self.calls.append((client.name, f"goes on: {call}"))

    def note(self, what: str) -> None:
        """Put into `calls` what became of the call of whoever has the turn."""
        self.calls.append((self._current.name if self._current else "-", what))

    def sleep(self, seconds: float) -> None:
        """What `time.sleep` does for whoever has the turn."""
        self.now += seconds
        if self._current is not None:
            self.step(self._current, f"sleep {seconds}")

    def _live(self, client: Client) -> None:
        client.gate.acquire()
        try:
            if self.failure is None:
                client.work(client)
        except Crashed:
            pass
        except BaseException as error:
            self.failure = self.failure or error
        client.ended = True
        self._pass_on()

    def _pass_on(self, client: Client | None = None) -> bool:
        """Give the turn to whoever is next; False if that is `client` itself, which has it."""
        after = self._next(client)
        self._current = after
        if after is None:
            self._done.set()
        elif after is not client:
            after.gate.release()
        return after is not client

    def _next(self, client: Client | None) -> Client | None:
        living = [other for other in self._clients if not other.ended]
        awake = [other for other in living if other.wakes <= len(self.calls)]
        if not awake:
            return min(living, key=lambda other: other.wakes, default=None)
        if self._switching is None:
            return max(awake, key=lambda other: other.priority)
        if client in awake and self._rng.random() >= self._switching:
            return client
        return self._rng.choice(awake)


@contextmanager
def repeatable(rng: random.Random, scheduler: Scheduler) -> Iterator[None]:
    """Clocks that the scheduler turns, ids from `rng`, and one processor: what else differs from run to run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secrets.token_bytes", rng.randbytes)
        patch.setattr("os.sched_getaffinity", lambda process: {0})
        patch.setattr("time.time", lambda: scheduler.now)
        patch.setattr("time.time_ns", lambda: int(scheduler.now * 1e9))
        patch.setattr("time.sleep", scheduler.sleep)
        yield
