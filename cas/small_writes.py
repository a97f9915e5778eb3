"""Ranks with little to store hand it to their node's lead, who packs it with its own: not a small file from each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from .block import Codec, Kind, ObjectId
from .nodes import expect, is_id, pack, unpack
from .packing import Stored
from .team import Call
from .writer import ObjectWriter

SMALL = 16 << 20
"""Stored bytes, in one commit, below which a rank makes no pack of its own."""


@contextlib.contextmanager
def hand_over(call: Call, lead: int) -> Iterator[list[Stored]]:
    """What the block appends goes to the lead when it ends; nothing where it fails, for the lead waits in any case."""
    given: list[Stored] = []
    complete = False
    try:
        yield given
        complete = True
    finally:
        call.line.send(pack([list(item) for item in given] if complete else []), lead)


@contextlib.contextmanager
def collect(call: Call, members: Sequence[int], writer: ObjectWriter) -> Iterator[None]:
    """When the block ends, store what the node's other ranks hand over; where it fails, only take it off the line."""
    try:
        yield
    finally:
        arrived = [call.line.receive(member) for member in members]
    for message in arrived:
        writer.take(_decoded(message))


def _decoded(message: bytes) -> Iterator[Stored]:
    for name, kind, codec, width, raw, data in unpack(message, "a rank's small writes"):
        sound = is_id(name) and kind in set(Kind) and codec in set(Codec) and type(data) is bytes
        expect(sound and type(width) is int and type(raw) is int, "a rank's small writes have the wrong form")
        yield Stored(ObjectId(name), Kind(kind), Codec(codec), width, raw, data)
