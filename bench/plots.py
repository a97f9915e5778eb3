"""The results as pictures: speed over torch.save as bars, growth as lines. PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from .contenders import BASELINE, CONTENDERS
from .results import Results
from .timing import Timing

COLOURS = dict(zip(CONTENDERS, ("#1b5e9e", "#5b9bd5", "#12365c", "#8a8a8a", "#e08e2b", "#b0503c"), strict=True))
mpl.rcParams["svg.hashsalt"] = "bench"  # the same picture for the same numbers


def draw(results: Results, out: Path) -> list[Path]:
    """A picture of speeds for each workload, and one of growth; the files that were written."""
    written = []
    for workload in results.about:
        timings = [t for t in results.timings if t.workload == workload and BASELINE in t.seconds]
        written += _write(_speeds(workload, timings), out / f"speed-{workload}")
    growth = [timing for timing in results.timings if timing.workload == "growth"]
    if growth:
        written += _write(_growth(growth), out / "growth")
    return written


def _write(figure: Figure, stem: Path) -> list[Path]:
    paths = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    figure.savefig(paths[0], dpi=150)
    figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _speeds(workload: str, timings: list[Timing]) -> Figure:
    """Groups of bars, one group an operation; a bar goes up from 1 where the contender is faster than torch.save."""
    names = [name for name in CONTENDERS if any(name in timing.seconds for timing in timings)]
    names.remove(BASELINE)
    figure, axes = _axes(f"{workload}: speed over torch.save")
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [group + (number - (len(names) - 1) / 2) * width for group in range(len(timings))]
        speeds = [timing.speedup(name, BASELINE) if name in timing.seconds else 1.0 for timing in timings]
        heights = [speed - 1 for speed in speeds]
        axes.bar(places, heights, width * 0.92, bottom=1, label=name, color=COLOURS[name])
    axes.set_yscale("log")
    axes.axhline(1, color=COLOURS[BASELINE], linewidth=1)
    axes.set_ylabel("times as fast as torch.save")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.set_xticks(range(len(timings)), [timing.operation.replace(", ", ",\n") for timing in timings], fontsize=8)
    _finish(axes)
    return figure


def _growth(timings: list[Timing]) -> Figure:
    """A line for each operation: seconds against blocks, both logarithmic."""
    figure, axes = _axes("cost against the number of blocks in the store")
    for timing in timings:
        blocks = [int(size) for size in timing.seconds]
        axes.plot(blocks, [timing.median(size) for size in timing.seconds], marker="o", label=timing.operation)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(blocks, [f"{count:,}" for count in blocks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("blocks")
    axes.set_ylabel("seconds")
    _finish(axes)
    return figure


def _axes(title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def _finish(axes: Any) -> None:
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=3)
