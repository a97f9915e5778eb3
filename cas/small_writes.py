"""Ranks with little to store hand it to their node's lead, who packs it with its own: not a small file from each.

Every lead hears from each of its members, also from one that failed and has nothing to give, and takes everything
off the line, also when it has failed itself: nobody waits for the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .block import Codec, Kind, ObjectId
from .nodes import expect, is_id, pack, unpack
from .packing import Stored
from .team import Call

SMALL = 16 << 20
"""Stored bytes, in one commit, below which a rank makes no pack of its own."""


def message_of(given: Iterable[Stored]) -> bytes:
    """What `Line.send` takes to the lead."""
    return pack([list(item) for item in given])


def give_up(call: Call, lead: int, members: Sequence[int]) -> None:
    """What a rank that failed owes the others of its node. If it cannot even do that, they lose its connections."""
    try:
        if lead != call.rank:
            call.line.send(message_of([]), lead)
        for member in members:
            call.line.receive(member)
    except BaseException:
        call.line.close()
        raise


def decoded(message: bytes) -> Iterator[Stored]:
    """What `message_of` made, its form checked."""
    for name, kind, codec, width, raw, data in unpack(message, "a rank's small writes"):
        sound = is_id(name) and kind in set(Kind) and codec in set(Codec) and type(data) is bytes
        expect(sound and type(width) is int and type(raw) is int, "a rank's small writes have the wrong form")
        yield Stored(ObjectId(name), Kind(kind), Codec(codec), width, raw, data)
