"""Storing history anew, as the model has it: survey, write, survey again, and condemn what is no longer needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from .words import (
    NONE,
    WHOLE,
    Collector,
    Label,
    Log,
    Packs,
    Row,
    Scenario,
    Slip,
    State,
    Steps,
    bits,
    decodable,
    parts,
    put,
)


class Rules(Protocol):
    """What the model lends."""

    scenario: Scenario
    slips: frozenset[Slip]

    def live(self, log: Log, start: int) -> int: ...


def write(rules: Rules, state: State, i: int, me: Collector) -> Steps:
    """Mark, and write what is live of any packs into a new one, as it is stored or as planned."""
    head, root = state.log[-1], len(state.log) - 1
    live, usable = rules.live(state.log, head.floor), me.listed & state.exist & ~head.lists
    if live & ~decodable(state.packs, usable):
        return
    for sources in parts(usable):
        for rows in _rows(rules.scenario.anew, state.packs, sources, live):
            new = 1 << len(state.packs)
            after = state._replace(packs=(*state.packs, rows), exist=state.exist | new)
            if all(decodable(after.packs, usable | new) >> row.object & 1 for row in rows):
                written = Collector("written", me.runs, me.listed, root, head, sources=sources)
                text = f"marks root {{n}}, stores packs {{packs}} anew as pack {len(state.packs)}"
                yield Label(text, sources, root), put(after, i, written)


def _rows(anew: tuple[Row, ...], packs: Packs, sources: int, live: int) -> Iterator[tuple[Row, ...]]:
    """The rows of live objects in these packs, one of each: all as they are, or those planned as planned."""
    stored: dict[int, Row] = {}
    for pack in bits(sources):
        for row in packs[pack]:
            if live >> row.object & 1 and row.chain < stored.get(row.object, Row(NONE, chain=WHOLE)).chain:
                stored[row.object] = row
    planned = {row.object: row for row in anew if row.object in stored and (row.base == NONE or live >> row.base & 1)}
    for rows in {tuple(stored.values()), tuple({**stored, **planned}.values())}:
        if rows:
            yield rows


def mark_again(rules: Rules, state: State, i: int, me: Collector) -> Steps:
    """Survey the root of now. Of the old packs as many are given up as can be spared."""
    head, root = state.log[-1], len(state.log) - 1
    usable = state.exist & ~head.lists
    live = rules.live(
        state.log[: me.root + 1] if "repack by its first survey" in rules.slips else state.log, head.floor
    )
    found: list[int] = []
    for some in parts(me.sources & ~head.lists):
        if any(some & ~more == 0 for more in found) or live & ~_there(rules, state.packs, usable & ~some):
            continue
        found.append(some)
        marked = me._replace(phase="marked", root=root, read=head, packs=some, floor=head.floor)
        yield Label("marks root {n} again, gives up {packs}", some, root), put(state, i, marked)
    if not found:
        yield Label("marks root {n} again, all is needed", 0, root), put(state, i, Collector("idle", me.runs))


def _there(rules: Rules, packs: Packs, usable: int) -> int:
    """The objects that decode, or, by the slip, those that have a row."""
    if "pick without chains" not in rules.slips:
        return decodable(packs, usable)
    return sum(1 << item for item in {row.object for pack in bits(usable) for row in packs[pack]})
