"""A commit of parts that several processes store while another program leads them, as torch's dcp.save does.

    1. one process    `Begun`: what the commit says, and what it builds on
    2. each process   `PartWriter`: its blocks and lists, durable, and the epoch in which it looked anything up
    3. one process    `publish`: layouts, trees, the commit, the record

The other program goes on to 3 only when all have done 2, and it cannot start over. So where files were condemned since
one of them looked anything up, all that the commit needs is looked up again, and only what is gone is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from . import committing
from .block import ObjectId
from .branches import Base, Overtaken
from .codecs import CodecName
from .commits import Commit, commit_of
from .committing import Request, Stored
from .cutting import Cut, cuts_of
from .errors import CasError, NotFound
from .joint import Host
from .log import Record
from .objects import Put
from .packing import Counters
from .state import Leaf
from .writer import ObjectWriter


@dataclass(frozen=True, slots=True)
class Begun:
    """What the process that publishes said and saw before anything was stored."""

    request: Request
    base: Base


@dataclass(frozen=True, slots=True)
class Took:
    """What one part took: its blocks, and what of it was new. Nothing was looked up before `epoch`."""

    epoch: int
    blocks: int
    new: tuple[int, int, int]


class PartWriter:
    """Stores one process's part. `with` is the unit, as for `ObjectWriter`."""

    def __init__(self, host: Host, codec: CodecName) -> None:
        self._epoch = host.roots.current().epoch
        self._block_size = host.settings.block_size
        self._blocks = 0
        self._writer = ObjectWriter(host.backend, host.catalog, codec, host.settings)
        self.put = self._writer.put

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def store(self, leaves: Iterable[Leaf]) -> list[list[Cut]]:
        """Store what this process holds of each leaf, and return its shards cut; leaves are taken as they are needed.

        They may be shards of a tensor of which other processes hold the rest.
        """
        found: list[list[Cut]] = []

        def cuts() -> Iterator[Cut]:
            for leaf in leaves:
                found.append(cuts_of(leaf, self._block_size))
                yield from found[-1]

        self._writer.store_blocks(cuts())
        self._blocks += sum(len(cut.ids) for one in found for cut in one)
        return found

    def finish(self) -> Took:
        """Make everything durable."""
        self._writer.finish()
        new = self._writer.counters
        return Took(self._epoch, self._blocks, (new.new_blocks, new.new_raw, new.new_stored))


def publish(
    host: Host,
    check_whole: Callable[[ObjectId, Record], None],
    begun: Begun,
    build: Callable[[Put], Any],
    parts: Sequence[Took],
    raw: int,
) -> Commit:
    """Make the commit of parts that are durable. `build` gives the skeleton of its state, every leaf with its content,
    and has the layouts stored; `raw` is the state's size in bytes.
    """
    request, base = begun.request, begun.base
    epoch = min([host.roots.current().epoch, *(part.epoch for part in parts)])
    stored = Stored(raw, sum(part.blocks for part in parts))
    for part in parts:
        stored.new.add(Counters(*part.new))
    with ObjectWriter(host.backend, host.catalog, request.codec, host.settings) as writer:
        name, commit, stored = committing.seal_commit(request, base, build(writer.put), stored, writer)
    while True:
        try:
            made = host.publish(request, base, name, commit, stored, epoch)
        except Overtaken:
            epoch = _still_whole(host, check_whole, name)
            continue
        if made.stored is None:
            return commit_of(made.name, made.commit)
        return committing.result(name, commit, request, stored)


def _still_whole(host: Host, check_whole: Callable[[ObjectId, Record], None], name: ObjectId) -> int:
    """An epoch in which all that the commit needs was found outside of what is condemned."""
    root = host.roots.current()
    try:
        check_whole(name, root)
    except NotFound as error:
        raise CasError(f"files that the save leant on were collected while it ran: {error}; save again") from error
    return root.epoch
