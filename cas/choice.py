"""Choosing what a repack rewrites: packs of which much is not as planned, or dead, and small ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .block import Codec, Kind, ObjectId
from .finished import Finished
from .pack import Location, PackId
from .picking import Names, is_in
from .succession import KIN_CHAIN, Heir, Succession
from .survey import Pack, Survey

SMALL_PACK = 32 << 20
_FEW = 2
"""Small packs that are left alone: of each kind the last one of a repack may be small."""
_WORTH = 0.1
"""Of a pack's bytes that a plan must change, or that are dead, for the pack to be rewritten."""


Task = tuple[Location, Heir]


@dataclass(frozen=True, slots=True)
class Work:
    """What a repack does: blocks to rewrite, newest first, and what is copied as it is: of tips, and of history."""

    rewritten: list[Task]
    tips: list[Location]
    history: list[Location]

    @property
    def nbytes(self) -> int:
        """How much it takes at most, as stored."""
        copied = sum(place.row.stored for place in self.tips + self.history)
        return copied + sum(p.row.raw if heir.is_whole and p.row.chain else p.row.stored for p, heir in self.rewritten)


class Choice:
    """Chooses what of a survey is rewritten."""

    def __init__(self, survey: Survey, finished: Finished, level: int) -> None:
        self._survey = survey
        self._finished = finished
        self._level = level
        self._open = {
            number
            for number, held in enumerate(survey.packs)
            if held.live and not finished.is_history(held.name, level)
        }

    def open_blocks(self) -> frozenset[ObjectId]:
        """The needed blocks of packs that may hold what is not stored as it should be."""
        rows, picked = self._survey.rows, self._survey.picked.rows
        mine = picked[(rows.kind[picked] == Kind.BLOCK) & np.isin(rows.pack[picked], list(self._open))]
        return frozenset(ObjectId(name) for name in rows.id[mine].view("V32").tolist())

    def sources(self, succession: Succession) -> list[Pack]:
        """The packs to rewrite: much would change in them or is dead, or they are small."""
        _number(succession, self._survey)
        changing = self._changing(succession)
        packs = self._survey.packs
        small = [held for held in packs if 0 < held.live < SMALL_PACK]
        joined = {held.name for held in small} if len(small) > _FEW else set()
        return [
            held
            for number, held in enumerate(packs)
            if held.live and (held.name in joined or changing[number] + held.stored - held.live >= _WORTH * held.stored)
        ]

    def _changing(self, succession: Succession) -> list[int]:
        """For each pack the bytes of rows that are not as planned."""
        rows, bytes_of = self._survey.rows, [0] * len(self._survey.packs)
        for number in self._survey.picked.rows.tolist():
            heir = succession.heirs.get(_name(rows.id, number))
            pack = int(rows.pack[number])
            if heir is not None and self._differs(heir, number, self._survey.packs[pack].name):
                bytes_of[pack] += int(rows.stored[number])
        return bytes_of

    def _differs(self, heir: Heir, number: int, pack: PackId) -> bool:
        rows = self._survey.rows
        base = _name(rows.base, number)
        return differs(heir, int(rows.codec[number]), base, self._level, self._finished.is_tips(pack, self._level))

    def buried(self, succession: Succession, sources: Sequence[Pack]) -> dict[PackId, set[ObjectId]]:
        """By pack, the blocks of tips that lie as history outside of `sources`, since a branch was set back to there:
        they are written anew, and their packs stay."""
        rows, named = self._survey.rows, {held.name for held in sources}
        found: dict[PackId, set[ObjectId]] = {}
        for number in self._survey.picked.rows[rows.chain[self._survey.picked.rows] > 0].tolist():
            name = _name(rows.id, number)
            heir, pack = succession.heirs.get(name), self._survey.packs[rows.pack[number]].name
            if heir is not None and heir.kin and rows.chain[number] > max(heir.chain, KIN_CHAIN) and pack not in named:
                found.setdefault(pack, set()).add(name)
        return found

    def settle(self, places: Iterable[Location], succession: Succession) -> Work:
        """What is to be done with what lies at these places. All that is not rewritten has no heir any more."""
        held = {place.row.id: place for place in places}
        found = {
            name: place
            for name, place in held.items()
            if (heir := succession.heirs.get(name)) is not None
            and differs(
                heir,
                place.row.codec,
                place.row.base,
                self._level,
                self._finished.is_tips(place.pack, self._level),
            )
        }
        kin = {name for name in held if name in succession.heirs and succession.heirs[name].kin}
        succession.heirs = {name: heir for name, heir in succession.heirs.items() if name in found}
        _number(succession, self._survey)
        idle = self._idle_bases(found.keys())
        rest = [place for name, place in held.items() if name not in found and name not in idle]
        return Work(
            [(found[name], heir) for name, heir in succession.heirs.items()],
            [place for place in rest if place.row.id in kin],
            [place for place in rest if place.row.id not in kin],
        )

    def _idle_bases(self, rewritten: Collection[ObjectId]) -> set[ObjectId]:
        """Blocks that only deltas needed of which none is left once these are rewritten."""
        rows, picked = self._survey.rows, self._survey.picked.rows
        blocks = picked[rows.kind[picked] == Kind.BLOCK]
        dead = blocks[~is_in(rows.id[blocks], self._survey.marks.blocks())]
        base_of = {_name(rows.id, n): _name(rows.base, n) for n in blocks[rows.chain[blocks] > 0].tolist()}
        idle = {_name(rows.id, n) for n in dead.tolist()}
        todo = [base for name, base in base_of.items() if name not in idle and name not in rewritten] if idle else []
        while todo:
            name = todo.pop()
            if name in idle:
                idle.discard(name)
                todo += [base_of[name]] if name in base_of else []
        return idle


def _name(column: Names, number: int) -> ObjectId:
    return ObjectId(column[number : number + 1].tobytes())


def differs(heir: Heir, codec: int, base: bytes, level: int, is_judged: bool) -> bool:
    """Whether a row is not as planned. From the second level on what is raw is coded, at the third all deltas are coded
    anew, but what `is_judged` at that level."""
    if is_judged and heir.kin and heir.base is not None:
        return False  # another tip may resemble it more by now, but it would change for ever
    if heir.is_whole:
        return codec == Codec.DELTA or (level > 0 and codec == Codec.RAW and not is_judged)
    return codec != Codec.DELTA or base != heir.base or (level > 1 and not is_judged)


def _number(succession: Succession, survey: Survey) -> None:
    """Number the heirs beside all other rows, which stay as they are."""
    rows = survey.rows
    moving = succession.heirs.keys()
    limits: dict[ObjectId, int] = {}
    there: dict[ObjectId, int] = {}
    wanted = {heir.base for heir in succession.heirs.values() if heir.base is not None} - moving
    for number in survey.picked.rows.tolist():
        name = _name(rows.id, number)
        if name in moving:
            continue
        chain = int(rows.chain[number])
        if chain:
            base = _name(rows.base, number)
            limits[base] = min(limits.get(base, chain), chain - 1)
        if name in wanted:
            there[name] = chain
    succession.number(limits, there.get)
