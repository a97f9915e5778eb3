"""The figures that have a target. Each names two ways of one operation and how they must compare.

A figure of another part of the bench is one more line here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cas.crew import default_threads

from . import beside, collecting, coordinator, layouts, ranks
from .commands import CP
from .results import Results, seconds
from .scale import FULL
from .timing import Timing


@dataclass(frozen=True, slots=True)
class Target:
    """`speed`: ours is at least `bound` times as fast as theirs; `time`: ours takes at most `bound` times theirs;
    `more`: ours takes at most `bound` seconds more than theirs."""

    what: str
    workload: str
    operation: str
    ours: str
    theirs: str
    kind: Literal["speed", "time", "more"]
    bound: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number, what it should be, and the median seconds behind it."""

    what: str
    value: float
    target: str
    met: bool
    medians: str


SAVE = "torch.save"
MIN_PLANES = 0.84
MAX_MEMORY = 512 << 20
MIN_MARKED = 500_000
MAX_READ = 1.1
MAX_COORDINATED = {coordinator.FIRST: 2.0, coordinator.REPEATED: 0.3}
TARGETS = (
    Target("first commit, auto: speed over torch.save", "trained", "first", "cas auto", SAVE, "speed", 1.5),
    Target("first commit, auto: speed over raw", "trained", "first", "cas auto", "cas raw", "speed", 0.9),
    Target("first commit, planes: speed over torch.save", "trained", "first", "cas planes", SAVE, "speed", 0.8),
    Target("unchanged commit: speed over torch.save", "trained", "unchanged", "cas auto", SAVE, "speed", 5),
    Target(
        f"unchanged commit: speed over BLAKE3 alone on {default_threads()} threads",
        "trained",
        "unchanged",
        "cas auto",
        "BLAKE3 alone",
        "speed",
        0.7,
    ),
    Target(
        "verified load in a new process: speed over torch.load",
        "trained",
        "load, new process",
        "cas raw",
        SAVE,
        "speed",
        1.0,
    ),
    Target(
        "verified load, repeated in one process: speed over torch.load",
        "trained",
        "load, repeated",
        "cas raw",
        SAVE,
        "speed",
        1.0,
    ),
    Target(
        "one 4 MiB tensor: time over the whole load", "trained", "one tensor", "cas raw", "all of cas raw", "time", 0.01
    ),
    Target(
        "caller blocked by commit_async: time over the same copies",
        "trained",
        "stall",
        "cas auto",
        "copies alone",
        "time",
        1.2,
    ),
    Target("20,000 tensors of 1 KiB, first: time over torch.save", "tiny", "first", "cas auto", SAVE, "time", 3),
    Target(
        "20,000 tensors of 1 KiB, unchanged: time over torch.save", "tiny", "unchanged", "cas auto", SAVE, "time", 1.5
    ),
    Target(
        "commit with a million blocks in the index: time over that with ten thousand",
        "growth",
        "commit",
        "1000000",
        "10000",
        "time",
        1.3,
    ),
    Target("import of a safetensors file: speed over cp + fsync", "commands", "import", "cas", CP, "speed", 0.8),
    Target("checkout of a safetensors file: speed over cp + fsync", "commands", "checkout", "cas", CP, "speed", 0.8),
    Target(
        "log of 10,000 commits, first screen: seconds after the command's start",
        "commands",
        "log, first screen",
        "10,000 commits",
        "1 commit",
        "more",
        0.2,
    ),
    Target("first commit, 2 ranks: speed over dcp.save", ranks.NAME, "first", ranks.OURS, ranks.THEIRS, "speed", 1.0),
    Target(
        "unchanged commit, 2 ranks: speed over dcp.save", ranks.NAME, "unchanged", ranks.OURS, ranks.THEIRS, "speed", 4
    ),
    Target(
        "ranks blocked by commit_async, large tensors: time over the same copies",
        ranks.NAME,
        ranks.STALL,
        ranks.OURS,
        ranks.COPIES,
        "time",
        1.2,
    ),
    Target(
        "training step beside a commit: time over that before and after",
        ranks.NAME,
        beside.COMMIT,
        beside.BUSY,
        beside.ALONE,
        "time",
        1.1,
    ),
)


def figures(results: Results) -> list[Figure]:
    """The figures of those operations that were measured."""
    found = []
    for target in TARGETS:
        timing = results.timing(target.workload, target.operation)
        if timing is not None and {target.ours, target.theirs} <= timing.seconds.keys():
            found.append(_figure(target, timing))
    held = results.amount("commands", "anonymous memory at the peak")
    if held is not None:
        found += [_memory(way, held.values[way]) for way in ("import", "checkout")]
    found += _collecting(results)
    found += _layouts(results)
    found += _ranks(results)
    stored = results.amount("trained", "stored")
    if stored is not None and "cas planes" in stored.values:
        found.append(_planes(stored.values["cas planes"] / stored.values["state"]))
    return found


def _figure(target: Target, timing: Timing) -> Figure:
    if target.kind == "more":
        value = timing.excess(target.ours, target.theirs)
    else:
        speed = timing.speedup(target.ours, target.theirs)
        value = speed if target.kind == "speed" else 1 / speed
    met = value >= target.bound if target.kind == "speed" else value <= target.bound
    bound = f"at {'least' if target.kind == 'speed' else 'most'} {target.bound}"
    medians = f"{seconds(timing.median(target.ours))} against {seconds(timing.median(target.theirs))}"
    return Figure(target.what, round(value, 4), bound, met, medians)


def _collecting(results: Results) -> Iterator[Figure]:
    """Figures of the part that collects garbage; the mark has as many blocks a second as the store has in all."""
    half = next((t for t in results.timings if t.workload == collecting.NAME and "cas gc" in t.seconds), None)
    if half is not None:
        what = f"gc, {half.operation}: time over {collecting.CP}"
        yield _figure(Target(what, collecting.NAME, half.operation, "cas gc", collecting.CP, "time", 1.5), half)
    nothing = results.timing(collecting.NAME, collecting.NOTHING)
    if nothing is not None:
        rate = FULL.marked_commits * FULL.marked_blocks / nothing.median(collecting.MARK)
        medians = f"whole gc {seconds(nothing.median(collecting.AGAIN))}"
        yield Figure("mark, blocks a second", round(rate), f"at least {MIN_MARKED}", rate >= MIN_MARKED, medians)
    held = results.amount(collecting.NAME, "anonymous memory at the peak")
    if held is not None:
        yield _memory("gc of a million blocks", max(held.values.values()))


def _layouts(results: Results) -> Iterator[Figure]:
    """Figures of changes that split dimension 0 only: the worst of all models."""
    changes = [str(change) for change in layouts.ROWS]
    costs = {
        f"{held.workload}, {held.what}": layouts.Cost(**held.values)
        for held in results.amounts
        if held.workload in layouts.MODELS and held.what in changes
    }
    if not costs:
        return
    edges, reads = "(inner edges of both) x cell", "its part, but for a cell at each inner edge"
    added = {name: cost.tensor_extra / cost.tensor_bound for name, cost in costs.items()}
    yield _worst(f"bytes that a second layout adds to a tensor, over {edges}", added, 1)
    read = {name: cost.beyond / cost.part for name, cost in costs.items()}
    yield _worst(f"bytes that a rank reads of another layout, over {reads}", read, MAX_READ)


def _ranks(results: Results) -> Iterator[Figure]:
    """Figures of number 0's work, and of the rank that reads most beyond its own."""
    for operation, bound in MAX_COORDINATED.items():
        timing = results.timing(ranks.NAME, operation)
        if timing is not None:
            value = timing.median(coordinator.CPU)
            medians = f"{seconds(timing.median(coordinator.DECIDING))} on the clock"
            yield Figure(
                f"{operation}: seconds of processor", round(value, 4), f"at most {bound}", value <= bound, medians
            )
    read = {
        held.what: (held.values["read"] - held.values["cells at inner edges"]) / held.values["its bytes"]
        for held in results.amounts
        if held.workload == ranks.NAME
    }
    if read:
        yield _worst(
            "bytes read by a rank of another layout, but for cells at inner edges, over its own", read, MAX_READ
        )


def _worst(what: str, values: dict[str, float], bound: float) -> Figure:
    name = max(values, key=lambda name: values[name])
    return Figure(what, round(values[name], 4), f"at most {bound}", values[name] <= bound, name)


def _memory(way: str, peak: float) -> Figure:
    bound = f"at most {MAX_MEMORY >> 20}"
    return Figure(f"anonymous memory of {way} at the peak, MiB", round(peak / 2**20, 1), bound, peak <= MAX_MEMORY, "")


def _planes(share: float) -> Figure:
    what = "first commit, planes: bytes on disk over those of the state"
    return Figure(what, round(share, 4), f"at most {MIN_PLANES}", share <= MIN_PLANES, "")
