"""A picture for each workload: bytes stored after each checkpoint, a line for each peer, named at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .measure import Outcome
from .peers import OURS
from .results import Facts, Results

COLOURS = {
    "cas commit": "#0b4f8a",
    "cas repack": "#0b4f8a",
    "torch.save": "#8a8a8a",
    "zstd -1": "#d0a11c",
    "zstd -19": "#8f6f0e",
    "DCP + zstd": "#b0503c",
    "ZipNN": "#59a14f",
    "ZipNN delta": "#2f6b2a",
    "restic": "#8e6bb0",
    "borg": "#c2569b",
    "Xet": "#1f9c9c",
}
GAP = 0.046
"""Between the names of two lines, as a share of the height."""
MARKED = 15
"""Points on a line; where there are more they are not marked."""
MIB = 2**20


@dataclass(frozen=True, slots=True)
class End:
    """Where a line ends, as a share of the height, and what is written there."""

    height: float
    text: str
    colour: str
    bold: bool = False


def draw(results: Results, out: Path) -> None:
    """`storage-WORKLOAD.png` for each workload."""
    for name, outcomes in results.outcomes.items():
        figure = picture(name, results.workloads[name], list(outcomes.values()))
        figure.savefig(out / f"storage-{slug(name)}.png", dpi=150)


def slug(name: str) -> str:
    return name.replace(" %", "-percent").replace(" ", "-")


def picture(name: str, facts: Facts, outcomes: list[Outcome]) -> Figure:
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    drawn = [outcome for outcome in outcomes if outcome.stored]
    count, raw = len(facts.raw), [sum(facts.raw[number] for number in kept) for kept in facts.kept]
    top = 1.04 * max(*raw, *(max(outcome.stored) for outcome in drawn)) / MIB
    axes.set_title(f"{name}: MiB stored{'' if facts.rotates else ', cumulative'}", loc="left")
    axes.set_xlabel("checkpoints saved")
    axes.set_xlim(0.8, count)
    axes.set_ylim(0, top)
    axes.plot(range(1, count + 1), [size / MIB for size in raw], color="black", linewidth=1, linestyle=":")
    ends = [End(raw[-1] / MIB / top, f"raw  {raw[-1] / MIB:,.0f}", "black")]
    for outcome in drawn:
        _line(axes, outcome)
        if len(outcome.stored) == count:
            ends.append(_end(outcome, top, facts))
    _stopped(axes, [outcome for outcome in outcomes if len(outcome.stored) < count])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    _name(axes, ends)
    return figure


def _end(outcome: Outcome, top: float, facts: Facts) -> End:
    text = f"{outcome.peer}  {outcome.final / MIB:,.0f}  ({facts.over_raw(outcome):.3f})"
    return End(outcome.final / MIB / top, text, COLOURS[outcome.peer], outcome.peer in OURS)


def _line(axes: Any, outcome: Outcome) -> None:
    """Ours thick and above the others; what is done once after all saves, as repack, is a point at the end."""
    colour, ours = COLOURS[outcome.peer], outcome.peer in OURS
    if outcome.finished is not None:
        place = [len(outcome.stored)], [outcome.finished / MIB]
        axes.plot(*place, color=colour, marker="D", markersize=7, clip_on=False, zorder=4)
        return
    stored = [size / MIB for size in outcome.stored]
    marker = "o" if len(stored) <= MARKED else ""
    style = {"linewidth": 2.5 if ours else 1.2, "marker": marker, "markersize": 3, "zorder": 3 if ours else 2}
    axes.plot(range(1, len(stored) + 1), stored, color=colour, **style)


def _stopped(axes: Any, outcomes: list[Outcome]) -> None:
    """Whose line ends early, and why, where no line is: above all of them at the left."""
    text = "\n".join(f"{outcome.peer}: {'; '.join(outcome.notes)}" for outcome in outcomes)
    axes.text(0.02, 0.97, text, fontsize=8, color="#555555", va="top", transform=axes.transAxes)


def _name(axes: Any, ends: list[End]) -> None:
    """Names beside the ends of their lines, and a thin line from each to its own."""
    ordered = sorted(ends, key=lambda end: end.height)
    for end, place in zip(ordered, apart([end.height for end in ordered]), strict=True):
        axes.plot(
            [1.0, 1.04],
            [end.height, place],
            color=end.colour,
            linewidth=0.6,
            transform=axes.transAxes,
            clip_on=False,
        )
        weight = "bold" if end.bold else "normal"
        axes.text(
            1.05,
            place,
            end.text,
            color=end.colour,
            fontsize=8,
            fontweight=weight,
            va="center",
            transform=axes.transAxes,
        )


def apart(heights: list[float]) -> list[float]:
    """Ascending places, at least `GAP` from each other, as near to ascending heights as groups of them allow."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _low(groups[-1]) < _high(groups[-2]) + GAP:
            last = groups.pop()
            groups[-1] += last
    return [_low(group) + GAP * number for group in groups for number in range(len(group))]


def _low(group: list[float]) -> float:
    """The lowest place of a group that stands around its mean height, but not below the axis."""
    return max(0.0, sum(group) / len(group) - GAP * (len(group) - 1) / 2)


def _high(group: list[float]) -> float:
    return _low(group) + GAP * (len(group) - 1)
