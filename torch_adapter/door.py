"""The door of a team: small messages over the job's own rendezvous store, without connections between ranks.

Keys, under a prefix of the group's own, `c` the number of the call and `n` that of the exchange in it:

    c/n/r           what rank r gives to rank 0, more of it in c/n/r/1 and so on; rank 0 deletes it
    c/n/to/r        what rank 0 has for rank r, likewise; rank r deletes it
    begun           the number of the newest call that any rank has begun
    c/here          rank 0 has come and waits for others
    c/verdict       the call has failed: why, in the words that every rank raises

The first verdict of a call stands. Rank 0 deletes it when there are a few newer ones: ranks that come late read it,
and one call may run in the background while many others come and go.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import DistError

from cas.team import LostRank

T = TypeVar("T")

# Seconds that the others give rank 0 beyond the deadline to tell them what happened.
MARGIN = 5.0
# Bytes of a message that the store takes at once.
_PART = 4 << 20
_COUNT = struct.Struct("<I")
# Seconds after which rank 0 says that it waits.
SHORT = 0.5
# Waits look again after a pause that grows to the longest, in seconds. A blocking wait of the store would hold its
# connection, cannot be interrupted, and prints warnings when it ends.
_BEGUN = "begun"
# Seconds: a store whose host cannot look up names takes 5 or 10 for each of many clients that connect at once.
_FIRST_CONNECT = 120.0
_KEPT = 8
_SEAL = "\0sealed"
_FIRST_PAUSE, _PAUSE_GROWTH, _LONGEST_PAUSE = 0.0002, 1.2, 0.25


def patiently(job: Callable[[], T], seconds: float) -> T:
    """`job` in a thread of its own: it may block for good, where neither deadlines nor Ctrl-C reach.

    `TimeoutError` if it takes longer; the thread is left behind, and with it whatever the job was using.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(job())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="cas-team", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no end after {seconds:.0f} s")
    if errors:
        raise errors[0]
    return results[0]


class Client:
    """One user's connection to the job's store; a store that fails or does not answer is `LostRank`."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._shared, self._prefix = store, prefix
        self._own: Store | None = None
        self._was_there = False

    def run(self, job: Callable[[Store], T], seconds: float) -> T:
        """`job` with the store; it should end by itself within `seconds`."""
        try:
            if self._own is None:
                self._own = patiently(self._connect, 2 * MARGIN if self._was_there else _FIRST_CONNECT)
                self._was_there = True
            own = self._own
            return patiently(lambda: job(own), seconds + MARGIN)
        except (DistError, TimeoutError) as error:
            self._own = None
            raise LostRank(
                "the job's rendezvous store does not answer: the process that hosts it, most often rank 0 or the "
                "launcher's agent, is gone; start the job again",
                in_doubt=True,
            ) from error
        except BaseException:  # an interrupt: the thread left behind still uses the connection
            self._own = None
            raise

    def _connect(self) -> Store:
        # torch before 2.9 cannot clone, and the training's own connection serves.
        clone = getattr(self._shared, "clone", None)
        return PrefixStore(self._prefix, clone() if clone else self._shared)


def wait_for(found: Callable[[], bool], deadline: float) -> bool:
    """Whether `found` by the deadline."""
    pause = _FIRST_PAUSE
    while not found():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * _PAUSE_GROWTH, _LONGEST_PAUSE)
    return True


class Verdict:
    """Whether one call has failed, and why: known to all its ranks through the store."""

    def __init__(self, call: int, kept: deque[str] | None = None) -> None:
        self._key, self._here = f"{call}/verdict", f"{call}/here"
        self._kept = kept

    def publish(self, store: Store, text: str) -> LostRank:
        """What to raise: `text`, or what another rank has published before."""
        said = self._first(store, text)
        return LostRank(text, in_doubt=True) if said == _SEAL else LostRank(said)

    def seal(self, store: Store) -> None:
        """At rank 0: from now on no verdict says that the call failed."""
        said = self._first(store, _SEAL)
        if said != _SEAL:
            raise LostRank(said)

    def _first(self, store: Store, text: str) -> str:
        said: str = store.compare_set(self._key, "", text).decode()
        if self._kept is not None and self._key not in self._kept:
            self._kept.append(self._key)
            while len(self._kept) > _KEPT:
                store.delete_key(self._kept.popleft())
        return said

    def stands(self, store: Store) -> bool:
        return bool(store.check([self._key]))

    def come(self, store: Store) -> None:
        """Rank 0 says that it waits for others: they are not to take it for the one that is missing."""
        store.set(self._here, "")

    def leave(self, store: Store) -> None:
        store.delete_key(self._here)

    def await_coordinator(self, store: Store, found: Callable[[], bool], timeout: float, deadline: float) -> bool:
        """Whether `found` before there was a verdict, and by the deadline; rank 0's own ends later if it came later."""
        seen = wait_for(lambda: found() or self.stands(store), deadline)
        if not seen and store.check([self._here]):
            wait_for(lambda: found() or self.stands(store), deadline + timeout)
        return found()


def _put(store: Store, key: str, data: bytes) -> None:
    """The store closes the connection over a message of more than 8 MiB: the first part counts the others."""
    parts = [data[start : start + _PART] for start in range(0, len(data), _PART)] or [b""]
    for number, part in enumerate(parts[1:], 1):
        store.set(f"{key}/{number}", part)  # type: ignore[arg-type]  # torch's stub forgets that it takes bytes
    store.set(key, _COUNT.pack(len(parts)) + parts[0])  # type: ignore[arg-type]


def _take(store: Store, key: str) -> bytes:
    """What was put there, which is the whole once the key is there."""
    first = store.get(key)
    more = [f"{key}/{number}" for number in range(1, _COUNT.unpack_from(first)[0])]
    parts = [first[_COUNT.size :], *(store.get(name) for name in more)]
    for name in (key, *more):
        store.delete_key(name)
    return b"".join(parts)


def number_of_call(store: Store, number: int, timeout: float) -> int:
    """The number of the call that a rank begins which has counted up to `number`.

    A rank that missed calls takes part in the newest that another has begun. One that is late to a call which failed
    without it waits a moment for a newer one: ranks that call in lockstep begin that now.
    """
    begun = _begun(store)
    number = max(number, begun)
    if number > begun:
        store.set(_BEGUN, str(number))
    elif Verdict(number).stands(store):
        wait_for(lambda: _begun(store) > number, time.monotonic() + min(MARGIN, timeout))
    return max(number, _begun(store))


def _begun(store: Store) -> int:
    return int(store.get(_BEGUN)) if store.check([_BEGUN]) else 0


@dataclass(frozen=True, slots=True)
class Seat:
    """A rank's place in its group; `ranks` are the numbers in the whole job, by the number in the group."""

    rank: int
    ranks: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.ranks)

    def name(self, rank: int) -> str:
        return f"rank {self.ranks[rank]}"

    def late(self, missing: Sequence[int], seconds: float) -> str:
        """Why a call failed that `missing` did not come to in time."""
        who = ", ".join(map(self.name, missing))
        return f"{who} did not come within {seconds:.3g} s; see what that process does, or raise the timeout"


class Door:
    """The door of one call."""

    def __init__(self, seat: Seat, client: Client, verdict: Verdict, call: int, timeout: float) -> None:
        self._seat, self._client, self._call, self._timeout = seat, client, call, timeout
        self._verdict = verdict
        self._exchanges = 0
        self._given = ""

    def gather(self, data: bytes) -> list[bytes]:
        place = self._next()
        if self._seat.rank:
            self._given = f"{place}/{self._seat.rank}"
            self._client.run(lambda store: _put(store, self._given, data), self._timeout)
            return []
        keys = [f"{place}/{rank}" for rank in range(1, self._seat.size)]
        return [data, *self._client.run(lambda store: self._collect(store, keys), self._timeout)] if keys else [data]

    def scatter(self, parts: Sequence[bytes]) -> bytes:
        place = self._next()
        if self._seat.rank:
            key = f"{place}/to/{self._seat.rank}"
            return self._client.run(lambda store: self._answer(store, key), 2 * self._timeout + MARGIN)

        def give(store: Store) -> None:
            for rank in range(1, self._seat.size):
                _put(store, f"{place}/to/{rank}", parts[rank])

        if self._seat.size > 1:
            self._client.run(give, self._timeout)
        return parts[0]

    def _next(self) -> str:
        self._exchanges += 1
        return f"{self._call}/{self._exchanges}"

    def _collect(self, store: Store, keys: list[str]) -> list[bytes]:
        deadline = time.monotonic() + self._timeout
        if not wait_for(lambda: bool(store.check(keys)), min(deadline, time.monotonic() + SHORT)):
            self._verdict.come(store)
            wait_for(lambda: bool(store.check(keys)) or self._verdict.stands(store), deadline)
            missing = [rank for rank, key in enumerate(keys, 1) if not store.check([key])]
            lost = self._verdict.publish(store, self._seat.late(missing, self._timeout)) if missing else None
            self._verdict.leave(store)
            if lost:
                for key in keys:
                    store.delete_key(key)
                raise lost
        return [_take(store, key) for key in keys]

    def _answer(self, store: Store, key: str) -> bytes:
        came = self._verdict.await_coordinator(
            store, lambda: bool(store.check([key])), self._timeout, time.monotonic() + self._timeout + MARGIN
        )
        if not came:
            store.delete_key(self._given)
            raise self._verdict.publish(store, self._seat.late([0], self._timeout))
        return _take(store, key)
