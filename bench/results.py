"""What a run of the bench finds, and how a number of it is shown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from .timing import Timing


@dataclass(frozen=True, slots=True)
class Amounts:
    """Bytes of something on one workload, by contender."""

    workload: str
    what: str
    values: Mapping[str, float]


@dataclass(slots=True)
class Results:
    """All that was measured. `about` says of each workload what it is; `notes` what was left out, and why."""

    about: dict[str, str] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    amounts: list[Amounts] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, found: Timing | Amounts) -> None:
        """Keep what was measured and say it."""
        if isinstance(found, Timing):
            self.timings.append(found)
            parts = [f"{way} {seconds(statistics.median(times))}" for way, times in found.seconds.items()]
        else:
            self.amounts.append(found)
            parts = [f"{name} {mebibytes(value)}" for name, value in found.values.items()]
        what = found.operation if isinstance(found, Timing) else found.what
        print(f"{found.workload}, {what}: {', '.join(parts)}", flush=True)

    def timing(self, workload: str, operation: str) -> Timing | None:
        return next((t for t in self.timings if (t.workload, t.operation) == (workload, operation)), None)

    def amount(self, workload: str, what: str) -> Amounts | None:
        return next((a for a in self.amounts if (a.workload, a.what) == (workload, what)), None)


def seconds(value: float) -> str:
    """Three digits, in the unit that suits."""
    return f"{value * 1000:.3g} ms" if value < 0.1 else f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def mebibytes(value: float) -> str:
    return f"{value / 2**20:,.0f} MiB"
