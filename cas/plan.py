"""What many ranks together commit: one tree to fill with what each of them reports, from commit to commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NoReturn

from .block import ID_SIZE, Kind, ObjectId, block_id
from .errors import Corrupt, Invalid
from .grid import Box, cell_size
from .holders import SHOWN, Census, Holders, duties_of, first_duties, ranks_text
from .nodes import EMPTY, Content, pack
from .objects import Layout, Put, Shard, encode_layout
from .outline import decode_reports, decode_values, value_of
from .paths import Path, format_path
from .slot import Slot
from .state import Leaf


@dataclass(slots=True)
class Pending:
    """A leaf whose content follows from one report for each of its boxes: those of their first holders, `firsts`.

    The last layout is kept: it is made again only when a report has changed.
    """

    leaf: Leaf
    boxes: list[Box]
    firsts: list[int]
    cell: int
    _reports: list[bytes] = field(default_factory=list)
    _layout: bytes = b""
    _between: list[bytes] = field(default_factory=list)

    @property
    def is_one_block(self) -> bool:
        """Whether all of the leaf is one block, which is then named in its entry and needs no layout."""
        return len(self.boxes) == 1 and self.leaf.nbytes <= self.cell

    def is_sound(self, report: bytes) -> bool:
        if self.is_one_block or not report:
            return len(report) == ID_SIZE
        return len(report) % ID_SIZE == 0

    def settle(self, reports: list[bytes], put: Put) -> None:
        if not reports:
            self.leaf.content = EMPTY
        elif self.is_one_block:
            self.leaf.content = Content(ObjectId(reports[0]), None)
        else:
            if reports != self._reports:
                self._reports, self._layout = reports, self._encoded(reports)
            self.leaf.content = Content(None, put(Kind.LAYOUT, self._layout))

    def _encoded(self, reports: list[bytes]) -> bytes:
        """The layout's bytes. Where each shard has one list, only ids differ from commit to commit: one ends it."""
        if any(len(report) != ID_SIZE for report in reports):
            return self._encode(reports)
        if not self._between:
            self._between = self._encode([_GAP] * len(reports)).split(_GAP)
        return b"".join([part for pair in zip(self._between, reports, strict=False) for part in pair])

    def _encode(self, reports: list[bytes]) -> bytes:
        shards = tuple(Shard(box, _ids(report)) for box, report in zip(self.boxes, reports, strict=True))
        return encode_layout(Layout(self.cell, shards))


_GAP = block_id(b"where the id of a list goes")


def _ids(report: bytes) -> tuple[ObjectId, ...]:
    return tuple(ObjectId(report[at : at + ID_SIZE]) for at in range(0, len(report), ID_SIZE))


@dataclass(slots=True)
class Plan:
    """Serves for every commit with the same structures and boxes.

    `skeleton` is what `state.tree_node` takes after `settle`; `leaves` and `slots` are those in it, in its order.
    `kinds[r]` is the structure of rank r, and `slot_at[s][n]` the slot that value n of structure s fills.
    """

    skeleton: Any
    leaves: list[Leaf]
    slots: list[Slot]
    kinds: list[int]
    slot_at: list[list[int]]
    census: Census
    holders: list[Holders]
    _pending: list[Pending] = field(default_factory=list)
    _block_size: int = 0
    _duties: dict[bool, list[bytes]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves; of those that are tied together, once."""
        return sum(held.leaf.nbytes for held in self.holders)

    def duties(self, rank: int, first: bool = False) -> bytes:
        """A packed [position, replicas] for each box of the rank; with `first` only a box's first holder has work."""
        if first not in self._duties:
            duties = (first_duties if first else duties_of)(self.holders, self.census)
            offsets = self.census.offsets
            self._duties[first] = [pack(duties[a:b]) for a, b in pairwise(offsets)]
        return self._duties[first][rank]

    def settle(self, values: Sequence[bytes], reports: Sequence[bytes], put: Put, first: bool, block_size: int) -> None:
        """Give slots and leaves the values and contents that the ranks report; `put` takes the layouts.

        All holders of a box or value must say the same; with `first`, the first one's word counts.
        """
        self._expect_all(values)
        self._expect_all(reports)
        told = self._told(values)
        said = self._said(reports)
        if not first:
            _refuse_if_any([*self._differing_values(told), *self._differing_boxes(said)])
        for slot, answers in zip(self.slots, told, strict=True):
            slot.value = value_of(answers[0][0])
        for pending in self._pending_for(block_size):
            found = [said[number] for number in pending.firsts]
            if set(map(len, found)) != {ID_SIZE} and not all(map(pending.is_sound, found)):
                self._refuse_report(pending, found)
            pending.settle(found, put)

    def _pending_for(self, block_size: int) -> list[Pending]:
        if self._block_size != block_size:
            self._block_size = block_size
            self._pending = [_pending(held, block_size) for held in self.holders]
        return self._pending

    def _expect_all(self, messages: Sequence[bytes]) -> None:
        if len(messages) != len(self.kinds):
            raise Invalid(f"{len(messages)} ranks report where {len(self.kinds)} were to; settle with one of each rank")

    def _said(self, reports: Sequence[bytes]) -> list[bytes]:
        """The report of every box, by its number."""
        said: list[bytes] = []
        offsets = self.census.offsets
        for rank, data in enumerate(reports):
            said += decode_reports(data, offsets[rank + 1] - offsets[rank], self.census.known_as[rank])
        return said

    def _told(self, values: Sequence[bytes]) -> list[list[tuple[bytes, list[int]]]]:
        """For each slot what each of its holders told, by first rank; ranks that told the same of all are one."""
        groups: dict[tuple[int, bytes], list[int]] = {}
        for rank, (kind, data) in enumerate(zip(self.kinds, values, strict=True)):
            groups.setdefault((kind, data), []).append(rank)
        told: list[list[tuple[bytes, list[int]]]] = [[] for _ in self.slots]
        for (kind, data), ranks in groups.items():
            slots, known_as = self.slot_at[kind], self.census.known_as[ranks[0]]
            for slot, packed in zip(slots, decode_values(data, len(slots), known_as), strict=True):
                told[slot].append((packed, ranks))
        return told

    def _differing_values(self, told: list[list[tuple[bytes, list[int]]]]) -> Iterable[str]:
        for slot, ((first, holders), *others) in zip(self.slots, told, strict=True):
            if any(packed != first for packed, _ in others):
                known_as = self.census.known_as
                ranks = sorted(rank for packed, ranks in others if packed != first for rank in ranks)
                yield _difference(slot.path, [known_as[rank] for rank in ranks], known_as[holders[0]])

    def _differing_boxes(self, said: list[bytes]) -> Iterable[str]:
        for held in self.holders:
            for numbers in held.replicas:
                if len(numbers) > 1:
                    first = said[numbers[0]]
                    ranks = [self.census.rank(number) for number in numbers if said[number] != first]
                    if ranks:
                        yield _difference(held.leaf.path, ranks, self.census.rank(numbers[0]))

    def _refuse_report(self, pending: Pending, reports: list[bytes]) -> NoReturn:
        at = next(at for at, report in enumerate(reports) if not pending.is_sound(report))
        raise Corrupt(
            f"rank {self.census.rank(pending.firsts[at])} reports {len(reports[at])} bytes of ids for "
            f"state path {format_path(pending.leaf.path)}; run the same version of cas on every rank"
        )


def _pending(held: Holders, block_size: int) -> Pending:
    cell = min(held.leaf.cell or cell_size(held.leaf.nbytes, block_size), block_size)
    return Pending(held.leaf, held.boxes, [numbers[0] for numbers in held.replicas], cell)


def _difference(path: Path, ranks: list[int], first: int) -> str:
    return f"{format_path(path)} on {ranks_text(ranks)} is not that of rank {first}"


def _refuse_if_any(differences: list[str]) -> None:
    if differences:
        more = f", and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise Invalid(
            f"ranks hold different values: {', '.join(differences[:SHOWN])}{more}; "
            'wrap what is meant to differ in PerRank, or pass replicas="first" to keep the first rank\'s'
        )
