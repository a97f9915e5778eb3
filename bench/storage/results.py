"""Everything that a run found, and the JSON that holds it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .codecs import Coded
from .loads import Loads
from .measure import Outcome

FILE = "storage.json"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is measured: each checkpoint of a workload, with the bytes of its tensors, and which are kept after each.

    `distinct` are the bytes of the tensors of all checkpoints, equal ones counted once.
    """

    about: str
    labels: list[str]
    raw: list[int]
    distinct: int
    kept: list[list[int]]

    @property
    def rotates(self) -> bool:
        return len(self.kept[-1]) < len(self.raw)

    def over_raw(self, outcome: Outcome) -> float:
        return outcome.final / sum(self.raw[number] for number in self.kept[-1])

    def after_first(self, outcome: Outcome) -> float:
        """For workloads that keep everything."""
        return (outcome.final - outcome.stored[0]) / sum(self.raw[1:])


@dataclass(slots=True)
class Results:
    """By workload its facts, and by peer what that made of it. `seconds` are those that each part took to measure."""

    machine: dict[str, str]
    limit: float
    workloads: dict[str, Facts] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Outcome]] = field(default_factory=dict)
    codecs: list[Coded] = field(default_factory=list)
    loads: list[Loads] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def write(self, out: Path) -> None:
        (out / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n")


def read(out: Path, machine: dict[str, str], limit: float) -> Results:
    """What a run before this one found, to be gone on from; empty where there was none."""
    found = Results(machine, limit)
    if (out / FILE).exists():
        held: dict[str, Any] = json.loads((out / FILE).read_text())
        found.workloads = {name: Facts(**one) for name, one in held["workloads"].items()}
        found.outcomes = {
            name: {peer: _outcome(one) for peer, one in peers.items()} for name, peers in held["outcomes"].items()
        }
        found.codecs = [Coded(**one) for one in held["codecs"]]
        found.loads = [Loads(**one) for one in held["loads"]]
        found.seconds = held["seconds"]
    return found


def _outcome(held: dict[str, Any]) -> Outcome:
    return Outcome(**{**held, "restore": {int(number): took for number, took in held["restore"].items()}})
