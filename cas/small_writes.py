"""Ranks with little to store hand it to their node's lead, who packs it with its own: not a small file from each.

Every lead hears from each of its members, also from one that failed and has nothing to give, and takes everything
off the line, also when it has failed itself: nobody waits for the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .block import Codec, Coding, Kind, ObjectId
from .nodes import expect, is_id, pack, unpack
from .packing import Stored
from .team import Call

SMALL = 16 << 20
"""Stored bytes, in one commit, below which a rank makes no pack of its own."""


def message_of(given: Iterable[Stored]) -> bytes:
    """What `Line.send` takes to the lead."""
    return pack([list(item) for item in given])


@dataclass(slots=True)
class Dues:
    """What a rank still owes the others of its node: a message to the `lead`, if it has one, and to hear `members`."""

    lead: int | None
    members: list[int]

    def give_up(self, call: Call) -> None:
        """Nobody is to wait for a rank that failed; if it cannot even do this, the others lose its connections."""
        try:
            if self.lead is not None:
                call.line.send(message_of([]), self.lead)
            for member in self.members:
                call.line.receive(member)
        except BaseException:  # the failure that led here is the one to raise
            call.line.close()


def decoded(message: bytes) -> Iterator[Stored]:
    """What `message_of` made, its form checked."""
    for name, kind, (codec, width, chain, base), raw, data in unpack(message, "a rank's small writes"):
        sound = is_id(name) and kind in set(Kind) and codec in set(Codec) and is_id(base) and type(data) is bytes
        sound = sound and all(type(number) is int for number in (width, chain, raw))
        expect(sound, "a rank's small writes have the wrong form")
        yield Stored(ObjectId(name), Kind(kind), Coding(Codec(codec), width, chain, base), raw, data)
