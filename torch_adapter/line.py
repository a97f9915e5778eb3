"""The line of a team: bulk messages over connections of its own, a gloo context that nobody else uses.

A message is its length, 8 bytes little-endian, then the bytes; its tag is the number of the call. A wait that ends by
its deadline breaks all connections of a context, a peer that dies breaks its own. So a context is dropped after any
failure, and contexts are numbered by generation: with the first exchange at the door of each call the ranks agree on
the generation that all of them still hold, or on a new one.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store, Work

from cas.errors import Invalid
from cas.team import LostRank

from .door import MARGIN, Client, Door, Seat, Verdict, wait_for

T = TypeVar("T")

_NUMBER = struct.Struct("<Q")
_TAGS = 1 << 29  # of calls: for what all ranks exchange, then for what two do; one more is for no message
# Seconds in which a rank that closed its connections publishes why.
_GRACE = 1.0
# The shortest wait, in seconds: none at all would be one without end.
_SOON = 0.05


class _Lost(Exception):
    """Ranks cannot be reached, and which if that is known; `late` if because the deadline passed."""

    def __init__(self, text: str, late: bool = False, ranks: Sequence[int] = ()) -> None:
        super().__init__(text)
        self.text, self.late, self.ranks = text, late, list(ranks)


class Wire:
    """A rank's end of the connections, for all calls of its team."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._lock = threading.Lock()
        self._generation = 0  # 0: none
        self._newest = 0  # at rank 0: the newest that there was
        self._group: ProcessGroupGloo | None = None

    @property
    def held(self) -> int:
        return self._generation

    def choose(self, held: list[int]) -> int:
        """At rank 0: the generation to use, given the ones that the ranks hold."""
        if held[0] and len(set(held)) == 1:
            return held[0]
        self._newest += 1
        return self._newest

    def adopt(self, generation: int) -> None:
        with self._lock:
            if generation != self._generation:
                self._generation, self._group = generation, None

    def drop(self, generation: int) -> None:
        """Close the connections: who waits at another end learns it at once."""
        with self._lock:
            if generation != self._generation:
                return
            group, self._generation, self._group = self._group, 0, None
        if group is not None:
            _close(group, self._seat)

    def connected(self, store: Store, generation: int, timeout: float, deadline: float) -> ProcessGroupGloo:
        """The context of this generation; `_Lost` if it broke, or if not all came to connect by the deadline."""
        with self._lock:
            if generation != self._generation:
                raise _Lost(f"{self._seat.name(self._seat.rank)} lost its connections in an earlier call; commit again")
            if self._group is not None:
                return self._group
        group = self._connect(store, generation, timeout, deadline)
        with self._lock:
            if generation == self._generation:
                self._group = group
        return group

    def _connect(self, store: Store, generation: int, timeout: float, deadline: float) -> ProcessGroupGloo:
        seat = self._seat
        places = [f"line/{generation}/{rank}" for rank in range(seat.size)]
        store.set(places[seat.rank], "")
        if not wait_for(lambda: bool(store.check(places)), deadline):
            missing = [rank for rank, place in enumerate(places) if not store.check([place])]
            raise _Lost(seat.late(missing, timeout), late=True, ranks=missing)
        left = timedelta(seconds=max(deadline - time.monotonic(), _SOON))
        rendezvous = PrefixStore(f"line/{generation}/gloo", store)
        try:
            return ProcessGroupGloo(rendezvous, seat.rank, seat.size, left)
        except RuntimeError as error:
            text = f"{seat.name(seat.rank)} could not connect to the other ranks; see GLOO_SOCKET_IFNAME ({error})"
            raise _Lost(text) from error


def _close(group: Any, seat: Seat) -> None:
    """Break all connections of a context by a wait that ends too early; `abort` and `shutdown` do nothing here, and
    the context itself lives for as long as the traceback of an error that somebody keeps.
    """
    for rank in range(seat.size):
        if rank != seat.rank:
            try:
                group.recv([torch.empty(1, dtype=torch.uint8)], rank, 2 * _TAGS).wait(timedelta(milliseconds=1))
            except RuntimeError:
                pass


class Entry:
    """The door of a call, with the agreement on the line's generation in its first gather and scatter."""

    def __init__(self, door: Door, wire: Wire) -> None:
        self._door, self._wire = door, wire
        self._chosen = self.generation = 0

    def gather(self, data: bytes) -> list[bytes]:
        if self.generation:
            return self._door.gather(data)
        parts = self._door.gather(_NUMBER.pack(self._wire.held) + data)
        if parts:
            self._chosen = self._wire.choose([_NUMBER.unpack_from(part)[0] for part in parts])
        return [part[_NUMBER.size :] for part in parts]

    def scatter(self, parts: Sequence[bytes]) -> bytes:
        if self.generation:
            return self._door.scatter(parts)
        answer = self._door.scatter([_NUMBER.pack(self._chosen) + part for part in parts])
        self.generation = _NUMBER.unpack_from(answer)[0]
        self._wire.adopt(self.generation)
        return answer[_NUMBER.size :]


class Line:
    """The line of one call."""

    def __init__(
        self, seat: Seat, wire: Wire, client: Client, entry: Entry, verdict: Verdict, call: int, timeout: float
    ) -> None:
        self._seat, self._wire, self._client, self._entry, self._timeout = seat, wire, client, entry, timeout
        self._tag = call % _TAGS
        self._verdict = verdict

    def gather(self, data: bytes) -> list[bytes]:
        if self._seat.rank:
            self._run(lambda post: post.send([0], [data]))
            return []
        others = range(1, self._seat.size)
        return [data, *self._run(lambda post: post.receive(others))] if others else [data]

    def scatter(self, parts: Sequence[bytes]) -> bytes:
        if self._seat.rank:
            return self._run(lambda post: post.receive([0]))[0]
        others = range(1, self._seat.size)
        if others:
            self._run(lambda post: post.send(others, parts[1:]))
        return parts[0]

    def send(self, data: bytes, to: int) -> None:
        self._run(lambda post: post.send([to], [data]), _TAGS)

    def receive(self, source: int) -> bytes:
        return self._run(lambda post: post.receive([source]), _TAGS)[0]

    def close(self) -> None:
        self._wire.drop(self._entry.generation)

    def seal(self) -> None:
        self._client.run(self._verdict.seal, self._timeout)

    def _run(self, job: Callable[[_Post], T], tags: int = 0) -> T:
        generation = self._entry.generation
        if not generation:
            raise Invalid("the line of a call opens with the first gather and scatter at its door; make them first")
        deadline = time.monotonic() + self._timeout

        def work(store: Store) -> T:
            if not self._seat.rank:
                self._verdict.come(store)
            try:
                group = self._wire.connected(store, generation, self._timeout, deadline)
                return job(_Post(group, self._seat, tags + self._tag, self._timeout, deadline))
            except _Lost as lost:
                raise self._settle(store, lost) from lost
            finally:
                if not self._seat.rank:
                    self._verdict.leave(store)

        try:
            return self._client.run(work, 2 * self._timeout + 2 * MARGIN)
        except BaseException as error:
            if not isinstance(error, LostRank):
                self._say_interrupted()
            self._wire.drop(generation)  # only now: who sees the connections close looks for the verdict
            raise

    def _say_interrupted(self) -> None:
        text = f"{self._seat.name(self._seat.rank)} was interrupted; see its own output"
        with contextlib.suppress(LostRank):
            self._client.run(lambda store: self._verdict.publish(store, text), MARGIN)

    def _settle(self, store: Store, lost: _Lost) -> LostRank:
        """The verdict of whoever knows best what went wrong, or else one's own: a rank that waited for a third one
        lets others down, and whose wait ends by its deadline closes its connections before it can say why.
        """
        if self._seat.rank and lost.late and lost.ranks == [0]:
            self._verdict.await_coordinator(store, lambda: False, self._timeout, time.monotonic() + MARGIN)
        elif not (self._seat.rank and lost.late):
            wait_for(lambda: self._verdict.stands(store), time.monotonic() + _GRACE)
        return self._verdict.publish(store, lost.text)


class _Post:
    """Messages of one call, through one context, until the deadline."""

    def __init__(self, group: ProcessGroupGloo, seat: Seat, tag: int, timeout: float, deadline: float) -> None:
        self._group: Any = group  # torch's stubs lack send and recv
        self._seat, self._tag, self._timeout, self._deadline = seat, tag, timeout, deadline

    def send(self, ranks: Sequence[int], parts: Sequence[bytes]) -> None:
        """All are under way before the first is waited for; who can be reached is reached before others are `_Lost`."""
        works = []
        lost = set()
        for rank, part in zip(ranks, parts, strict=True):
            try:
                works += [(rank, self._send(rank, tensor)) for tensor in _message(part)]
            except _Lost:
                lost.add(rank)
        for rank, work in works:
            try:
                self._wait(rank, work)
            except _Lost:
                lost.add(rank)
        if lost:
            raise self._lost(*sorted(lost))

    def receive(self, ranks: Sequence[int]) -> list[bytes]:
        heads = [self._receive(rank, _NUMBER.size) for rank in ranks]
        bodies = []
        for rank, (work, head) in zip(ranks, heads, strict=True):
            self._wait(rank, work)
            bodies.append(self._receive(rank, _NUMBER.unpack(head.numpy())[0]))
        for rank, (work, _) in zip(ranks, bodies, strict=True):
            self._wait(rank, work)
        return [body.numpy().tobytes() for _, body in bodies]

    def _send(self, rank: int, tensor: torch.Tensor) -> Work:
        try:
            work: Work = self._group.send([tensor], rank, self._tag)
        except RuntimeError as error:
            raise self._lost(rank) from error
        return work

    def _receive(self, rank: int, length: int) -> tuple[Work | None, torch.Tensor]:
        room = torch.empty(length, dtype=torch.uint8)
        try:
            return self._group.recv([room], rank, self._tag) if length else None, room
        except RuntimeError as error:
            raise self._lost(rank) from error

    def _wait(self, rank: int, work: Work | None) -> None:
        try:
            if work is not None:
                work.wait(timedelta(seconds=max(self._deadline - time.monotonic(), _SOON)))
        except RuntimeError as error:
            raise self._lost(rank) from error

    def _lost(self, *ranks: int) -> _Lost:
        if time.monotonic() >= self._deadline - _SOON:
            return _Lost(self._seat.late(ranks, self._timeout), late=True, ranks=ranks)
        who = ", ".join(map(self._seat.name, ranks))
        return _Lost(f"{who} is gone: its connection closed; see how that process ended", ranks=ranks)


class _Shown:
    """What numpy takes for an array: memory that is only read, though torch cannot be told so without a warning."""

    __slots__ = ("__array_interface__", "_owner")

    def __init__(self, data: bytes) -> None:
        self._owner = np.frombuffer(data, np.uint8)
        place = (self._owner.__array_interface__["data"][0], False)
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "shape": self._owner.shape,
            "typestr": "|u1",
            "data": place,
        }


def _message(data: bytes) -> list[torch.Tensor]:
    """What is sent for `data`; the tensors keep its memory."""
    parts = [_NUMBER.pack(len(data)), data] if data else [_NUMBER.pack(0)]
    return [torch.from_numpy(np.asarray(_Shown(part))) for part in parts]
