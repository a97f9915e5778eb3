"""What the core asks of many ranks that commit or load together: messages to and from rank 0, and deadlines.

The core knows ranks through these protocols only; `cas.torch` makes them from a group of torch.distributed. Ranks are
numbered inside the group, and rank 0 is the coordinator. Every wait ends by `Call.timeout`, for each message anew,
with `LostRank` on all the ranks that are there; the team goes on working with its next call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .errors import CasError


class LostRank(CasError):
    """A rank did not come within the deadline, or is gone; the message names it.

    `in_doubt`: rank 0 had sealed the call before, and what it did then is not known here.
    """

    def __init__(self, text: str, in_doubt: bool = False) -> None:
        super().__init__(text)
        self.in_doubt = in_doubt


class Channel(Protocol):
    """All ranks use it in the same order, each from one thread at a time."""

    def gather(self, data: bytes) -> list[bytes]:
        """At rank 0 what every rank gave, by rank, its own included; elsewhere []."""
        ...

    def scatter(self, parts: Sequence[bytes]) -> bytes:
        """What rank 0 has for this rank; elsewhere `parts` is ignored."""
        ...


class Line(Channel, Protocol):
    """A channel for bulk. It connects when it is first used, and again after a failure: all ranks must come to it."""

    def send(self, data: bytes, to: int) -> None: ...

    def receive(self, source: int) -> bytes: ...

    def close(self) -> None:
        """Give up this rank's connections: the others find it gone at once, and the next call makes new ones."""
        ...

    def seal(self) -> None:
        """At rank 0, before what cannot be taken back: `LostRank` if the call has failed for any rank.

        Later failures are `in_doubt` on the others.
        """
        ...


class Call(Protocol):
    """One call that all ranks make together. Messages of different calls never meet.

    It begins with a gather and a scatter through the door. From then on the line may be used too, also by another
    thread and while this one makes the next call; two calls may be under way, not three.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def timeout(self) -> float:
        """Seconds that one message may take."""
        ...

    @property
    def node(self) -> str:
        """The host that this rank runs on."""
        ...

    @property
    def door(self) -> Channel:
        """For small messages; needs no connections between ranks."""
        ...

    @property
    def line(self) -> Line: ...

    @property
    def ranks(self) -> Sequence[int]:
        """The ranks' numbers in the whole job, which errors go by."""
        ...

    def name(self, rank: int) -> str:
        """A rank as errors name it: `rank 5`, by its number in the whole job."""
        ...


class Team(Protocol):
    """The ranks of a group."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def call(self, timeout: float) -> Call:
        """Begin the next call; every rank of the group must, in the same order."""
        ...
