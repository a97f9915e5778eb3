"""The results as JSON, for programs, and as Markdown, whose tables go into the README as they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from . import layouts, ranks
from .contenders import BASELINE, CONTENDERS
from .machine import sentence
from .results import Amounts, Results, mebibytes, seconds
from .targets import Figure
from .timing import Timing

HOW = (
    "Whatever is saved ends durable: every file and every directory is fsynced. The contenders take turns in one run; "
    "times are medians, and in brackets stands the speed over torch.save, the median of the ratios within a round. "
    "`first` goes into an empty store or directory. `unchanged` and `5 % changed` are new copies at new addresses, so "
    "only hashing can tell what is the same; changed are whole tensors all over the state that hold 5 % of its bytes. "
    "Loads come from the page cache unless they are said to come from disk. cas verifies every byte that it loads; "
    "torch.load, safetensors and DCP verify nothing. safetensors maps its file, and every page is touched, no more; "
    "`into=` copies out of mapped files for torch.load (mmap=True) and safetensors. DCP runs in one process with the "
    "settings that it comes with. The stall is what a background save costs its caller; torch.save stands for a "
    "thread that saves a copy in kept memory, `copies alone` for that copy; safetensors has nothing of its own."
)


ALONE = {
    "commands": "whole processes, Python's start included; the state of *trained* as one safetensors file",
    "collecting": "gc without grace and undo, once; every pack of the first store is half garbage; the second has a "
    "million blocks in a thousand commits, all live",
    ranks.NAME: ranks.ABOUT,
}
"""Parts with a table of their own, and what they are."""


def as_json(where: dict[str, str], rounds: int, results: Results, figures: list[Figure]) -> dict[str, Any]:
    """Everything, seconds of every turn included."""
    return {
        "machine": where,
        "rounds": rounds,
        "workloads": results.about,
        "timings": [_timing(timing) for timing in results.timings],
        "bytes": [asdict(amounts) for amounts in results.amounts],
        "notes": results.notes,
        "figures": [asdict(figure) for figure in figures],
    }


def _timing(timing: Timing) -> dict[str, Any]:
    found = {**asdict(timing), "medians": {way: timing.median(way) for way in timing.seconds}}
    if BASELINE in timing.seconds:
        found["speed over torch.save"] = {way: timing.speedup(way, BASELINE) for way in timing.seconds}
    return found


def as_markdown(where: dict[str, str], results: Results, figures: list[Figure]) -> str:
    """Figures with their targets, a table for each workload, growth, the machine."""
    parts = [_figures(figures)] if figures else []
    parts += [_workload(name, about, results) for name, about in results.about.items()]
    growth = [timing for timing in results.timings if timing.workload == "growth"]
    parts += [_growth(growth)] if growth else []
    for name, about in ALONE.items():
        held = [timing for timing in results.timings if timing.workload == name]
        amounts = [found for found in results.amounts if found.workload == name]
        parts += [_medians(name, about, held, amounts)] if held else []
    if any(held.workload in layouts.MODELS for held in results.amounts):
        parts.append(_layouts(results))
    parts += [f"{sentence(where)}.", HOW, *results.notes]
    return "\n\n".join(parts) + "\n"


def _figures(figures: list[Figure]) -> str:
    rows = [(f.what, f"{f.value:.4g}{'' if f.met else ' (missed)'}", f.target, f.medians) for f in figures]
    return _table(("what", "measured", "should be", "medians"), rows)


def _workload(name: str, about: str, results: Results) -> str:
    timings = [timing for timing in results.timings if timing.workload == name]
    amounts = [held for held in results.amounts if held.workload == name]
    seen = {way for timing in timings for way in timing.seconds} | {way for held in amounts for way in held.values}
    columns = [contender for contender in CONTENDERS if contender in seen]
    rows = [[timing.operation, *(_cell(timing, column) for column in columns)] for timing in timings]
    rows += [[held.what, *(_size(held, column) for column in columns)] for held in amounts]
    return f"**{name}**: {about}.\n\n{_table(['', *columns], rows)}"


def _cell(timing: Timing, way: str) -> str:
    if way not in timing.seconds:
        return "–"
    return f"{seconds(timing.median(way))} ({timing.speedup(way, BASELINE):.2f}x)"


def _size(amounts: Amounts, way: str) -> str:
    return mebibytes(amounts.values[way]) if way in amounts.values else "–"


def _growth(timings: list[Timing]) -> str:
    sizes = list(timings[0].seconds)
    rows = [[timing.operation, *(seconds(timing.median(size)) for size in sizes)] for timing in timings]
    head = ["blocks in the store", *(f"{int(size):,}" for size in sizes)]
    about = "a small state is committed (256 tensors of 4 KiB, 13 of them changed), listed, and everything checked"
    return f"**growth**: {about}; commands include Python's start.\n\n{_table(head, rows)}"


def _medians(name: str, about: str, timings: list[Timing], amounts: list[Amounts]) -> str:
    rows = [
        (timing.operation, *(f"{way}: {seconds(timing.median(way))}" for way in timing.seconds)) for timing in timings
    ]
    rows += [(held.what, *(f"{way}: {mebibytes(held.values[way])}" for way in held.values)) for held in amounts]
    width = max(map(len, rows))
    padded = [(*row, *[""] * (width - len(row))) for row in rows]
    return f"**{name}**: {about}.\n\n{_table(('', 'medians', *[''] * (width - 2)), padded)}"


def _layouts(results: Results) -> str:
    """What each change adds to each model and lets the worst rank read, with the bound of either."""
    rows: list[tuple[str, ...]] = []
    for change in map(str, layouts.ROWS + layouts.MESHES):
        held = [results.amount(model, change) for model in layouts.MODELS]
        costs = [layouts.Cost(**amounts.values) for amounts in held if amounts]
        rows = rows or [("weights", "", *(mebibytes(cost.state) for cost in costs))]
        rows.append((change, "added", *(_added(cost) for cost in costs)))
        rows.append(("", "read", *(f"{_times(cost.read, cost)} ({_times(cost.beyond, cost)})" for cost in costs)))
    head = ["from, to", "", *layouts.MODELS]
    return f"**{layouts.NAME}**: {layouts.ABOUT}.\n\n{_table(head, rows)}"


def _added(cost: layouts.Cost) -> str:
    return f"{mebibytes(cost.extra)}, {_percent(cost.extra, cost)} ({_percent(cost.bound, cost)})"


def _percent(size: float, cost: layouts.Cost) -> str:
    share = 100 * size / cost.state
    return f"{share:.2g} %" if share < 10 else f"{share:,.0f} %"


def _times(size: float, cost: layouts.Cost) -> str:
    return f"{size / cost.part:.2f}x"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = list(head)
    lines = [cells, ["---"] * len(cells), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
