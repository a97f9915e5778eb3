"""What is done with a state that fits in memory: each operation gives the seconds of every contender, turn by turn.

An unchanged or changed state is always a new copy at new addresses, so that only its bytes can tell what is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from cas.crew import default_threads

from .child import child_seconds
from .contenders import BASELINE, Contender
from .timing import Timed, Timing, clock, hash_alone, take_turns
from .trees import State, changed, clone, copy_into, empty_like, leaves, one_of, some
from .workloads import Workload

CHANGED = 0.05  # of the bytes
STALLING = ("cas auto", BASELINE, "DCP")
"""The codec does not matter to a stall, and safetensors has nothing of its own for it."""
WHOLE = "cas raw"
"""Whose load of everything runs beside the loads of one tensor: with no block compressed, bytes are what counts."""


@dataclass(slots=True)
class Trial:
    """One workload, its state in memory, and the contenders with their folders under `parent`."""

    workload: Workload
    state: State
    contenders: Mapping[str, Contender]
    parent: Path
    rounds: int

    def turns(
        self, operation: str, way: Callable[[Contender], float], extra: Mapping[str, Timed] | None = None
    ) -> Timing:
        """Every contender, and the `extra` ways, in turn."""

        def bound(one: Contender) -> Timed:
            return lambda: way(one)

        ways = {name: bound(one) for name, one in self.contenders.items()} | dict(extra or {})
        return Timing(self.workload.name, operation, take_turns(ways, self.rounds))


class Copies:
    """New copies of a state; the last one lives until the next is made, so their addresses differ."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._last: State = {}

    def next(self) -> State:
        self._last = clone(self._state)
        return self._last


def first(trial: Trial) -> Timing:
    """Into an empty store or directory."""

    def way(one: Contender) -> float:
        one.clear()
        return clock(lambda: one.save(trial.state))

    return trial.turns("first", way)


def unchanged(trial: Trial) -> Timing:
    """The same bytes again."""
    copies, threads = Copies(trial.state), default_threads()

    def way(one: Contender) -> float:
        fresh = copies.next()
        one.make_room()
        return clock(lambda: one.save(fresh))

    def hashing() -> float:
        fresh = [tensor for _, tensor in leaves(copies.next())]
        return clock(lambda: hash_alone(fresh, threads))

    return trial.turns("unchanged", way, {"BLAKE3 alone": hashing})


def five_percent(trial: Trial) -> Timing:
    """5 % of the bytes, whole tensors all over the state, new in every round; the same for every contender."""
    copies, paths = Copies(trial.state), some(trial.state, CHANGED)
    times: dict[int, Iterator[int]] = {id(one): count(1) for one in trial.contenders.values()}

    def way(one: Contender) -> float:
        fresh = changed(copies.next(), paths, next(times[id(one)]))
        one.make_room()
        return clock(lambda: one.save(fresh))

    return trial.turns("5 % changed", way)


def load_in_new_process(trial: Trial) -> Timing:
    """As a resumed job does it; from the page cache, which a load before the first turn has filled."""
    names = {id(one): name for name, one in trial.contenders.items()}

    def way(one: Contender) -> float:
        return child_seconds("load", names[id(one)], trial.parent, trial.workload.folder)

    for one in trial.contenders.values():
        way(one)
    return trial.turns("load, new process", way)


def load_again(trial: Trial) -> Timing:
    """By a process that has loaded before."""
    return trial.turns("load, repeated", lambda one: clock(one.load))


def load_into(trial: Trial) -> Timing:
    """Into tensors that are there."""
    target = clone(trial.state)
    return trial.turns("load into=", lambda one: clock(lambda: one.load_into(target)))


def load_one(trial: Trial) -> Timing:
    """The largest tensor of at most 4 MiB, by a process that has loaded before."""
    path, _ = one_of(trial.state)
    whole = trial.contenders[WHOLE]
    extra = {f"all of {WHOLE}": lambda: clock(whole.load)}
    return trial.turns("one tensor", lambda one: clock(lambda: one.load_one(path)), extra)


def stall(trial: Trial) -> Timing:
    """How long the caller is blocked by a save in the background; it has ended before the next turn begins."""
    state, held = trial.state, empty_like(trial.state)

    def way(one: Contender) -> float:
        one.make_room()
        waits = []
        seconds = clock(lambda: waits.append(one.save_async(state)))
        waits[0]()
        return seconds

    stalling = {name: trial.contenders[name] for name in STALLING if name in trial.contenders}
    for one in stalling.values():
        way(one)  # memory that is kept for the copy is had once
    copy_into(held, state)
    some_of = Trial(trial.workload, state, stalling, trial.parent, trial.rounds)
    return some_of.turns("stall", way, {"copies alone": lambda: clock(lambda: copy_into(held, state))})


OPERATIONS = (first, unchanged, five_percent, load_in_new_process, load_again, load_into, load_one, stall)
"""In this order: each load reads what the saves before it have left."""
