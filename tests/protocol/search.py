"""Breadth-first search through every state of a scenario, and what must hold in each of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .model import Model
from .words import HOLE, NONE, Label, Log, Scenario, Slip, State, World, Writer, bits, closure, decodable

Property = Literal["lost", "undo", "wedged", "unacknowledged", "twice", "hole"]


@dataclass(frozen=True)
class Found:
    """How many states were reached, and the shortest way to the first that breaks a property, as sentences."""

    states: int
    broken: Property | None
    trace: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.trace) if self.broken else f"{self.states} states, none of them broken"


def search(scenario: Scenario, slips: frozenset[Slip] = frozenset(), only: Property | None = None) -> Found:
    """Visit every reachable state, nearest first; stop at one that breaks a property, or `only` that one."""
    model = Model(scenario, slips)
    start = model.start()
    before: dict[State, State | None] = {start: None}
    todo = [start]
    gc.disable()  # nothing here is cyclic, and looking for cycles would walk through all states again and again
    try:
        for state in todo:  # grows meanwhile
            for broken, sentence in violations(model, state, before[state]):
                if only in (None, broken):
                    return Found(len(before), broken, (*_trace(model, before, state), sentence))
            if HOLE in state.log:  # nobody can open this store
                continue
            for _, after in model.steps(state):
                if after not in before:
                    before[after] = state
                    todo.append(after)
    finally:
        gc.enable()
    return Found(len(before), None, ())


def violations(model: Model, state: State, previous: State | None) -> Iterator[tuple[Property, str]]:
    """What does not hold in this state, with a sentence each.

    lost: all that the refs reach, less what was pruned, decodes from packs that exist. undo: so does every root from
    the floor up. wedged: a collector that now ran alone would find a row outside the lists for every live object;
    where a fault has condemned live rows, it saves them first. unacknowledged: what was acknowledged is in the log.
    twice: no update is published twice. hole: the log's records follow each other.
    """
    if HOLE in state.log:
        yield "hole", f"Hole: record {state.log.index(HOLE)} is missing below record {len(state.log) - 1}."
        return
    same = previous and state.log is previous.log and state.packs is previous.packs and state.exist == previous.exist
    if not same:  # an actor that only thinks breaks nothing
        yield from _store(model, state)
    for i, actor in enumerate(state.actors):
        if isinstance(actor, Writer):
            mine = [seq for seq, record in enumerate(state.log) if record.by == i]
            if actor.phase == "done" and not mine and not _named(model.scenario.jobs[i].commit, state.log):
                yield "unacknowledged", f"Forgotten: {model.who(i)} was acknowledged and is not in the log."
            if len(mine) > 1:
                yield "twice", f"Twice: {model.who(i)} is in the log as records {mine}."


def _store(model: Model, state: State) -> Iterator[tuple[Property, str]]:
    log, world, head = state.log, model.world, state.log[-1]
    there = decodable(state.packs, state.exist)
    for branch, commit in enumerate(head.refs):
        if commit != NONE and (gone := closure(world, (commit,), head.absent) & ~there):
            yield (
                "lost",
                f"Lost: branch {branch} names {world.show(commit)}, and no row is left for {_names(world, gone)}.",
            )
    for seq in range(head.floor, len(log) - 1):
        tops = tuple(commit for commit in log[seq].refs if commit != NONE)
        if gone := closure(world, tops, head.absent) & ~there:
            yield "undo", f"Undo: root {seq} is not below the floor, and no row is left for {_names(world, gone)}."
    outside = there if model.scenario.damaged else decodable(state.packs, state.exist & ~head.lists)
    oldest = 0 if "no undo floor" in model.slips else head.floor
    if gone := model.live(log, oldest) & ~outside:
        yield "wedged", f"Wedged: gc finds no row outside the lists for {_names(world, gone)}, which is live."


def _named(commit: int, log: Log) -> bool:
    return commit != NONE and any(commit in record.refs for record in log)


def _names(world: World, mask: int) -> str:
    return " and ".join(world.show(item) for item in bits(mask))


def _trace(model: Model, before: dict[State, State | None], last: State) -> list[str]:
    """The steps from the start to `last`, one sentence each."""
    sentences = []
    state, previous = last, before[last]
    while previous is not None:
        label = next(label for label, after in model.steps(previous) if after == state)
        sentences.append(_sentence(model, previous, state, label))
        state, previous = previous, before[previous]
    return [f"{n}. {sentence}" for n, sentence in enumerate(reversed(sentences), 1)]


def _sentence(model: Model, previous: State, state: State, label: Label) -> str:
    packs = ", ".join(str(pack) for pack in bits(label.packs)) or "none"
    text = label.text.format(packs=packs, n=label.n)
    moved = [i for i, actors in enumerate(zip(previous.actors, state.actors, strict=True)) if actors[0] != actors[1]]
    mover = f"{model.who(moved[0])} " if len(moved) == 1 else ""
    return f"{mover}{text}."
