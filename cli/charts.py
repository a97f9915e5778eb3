"""Drawing the pictures of `cas plot`. Imported by that command alone: matplotlib takes a second to load.

Names come from whoever wrote the store: they are cleaned, cut, and never read as formulas. The colours are those of
Okabe and Ito, which colour-blind people tell apart. The same numbers give the same SVG, byte for byte.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

import cas
from cas.commits import human_bytes

from .changes import Changes
from .lines import Line, Point, have_steps, metric
from .output import clean, number, plural, width

Paint = Callable[[Figure], None]

PANELS = 12
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":")
_GREY = "#8c8c8c"
_NAMED = len(_COLOURS) * len(_DASHES)
_MARKED = 40  # points of a line up to which each is marked
_LARGEST = 1e100  # what is drawn; far beyond, the margins of an axis overflow
_TICKS = (1, 2, 2.5, 5, 10)
_LOG = 1e3  # from this ratio of largest to smallest on, the axis is logarithmic
_STYLE: Any = {
    "text.parse_math": False,
    "svg.hashsalt": "cas",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "axes.unicode_minus": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "savefig.dpi": 160,
}


def picture(form: str, paint: Paint) -> bytes:
    """The file that `paint` makes of an empty figure; `form` is `png` or `svg`."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a sign that no font has is drawn as a box
        matplotlib.rcdefaults()  # a matplotlibrc in the directory has no say: it could have LaTeX run on names
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(layout="constrained")
        paint(figure)
        made = io.BytesIO()
        figure.savefig(made, format=form, metadata={"Date": None} if form == "svg" else None)
        return made.getvalue()


def shown(text: object, limit: int) -> str:
    """A name that is safe to draw, its middle left out where it is long."""
    name = clean(text)
    limit = limit * len(name) // (width(name) or 1)  # fewer of the wide signs of East Asia
    return name if len(name) <= limit else f"{name[: limit // 2]}…{name[len(name) - (limit - 1) // 2 :]}"


def _title(figure: Figure, text: str) -> None:
    """A title, smaller where it is long."""
    points = figure.get_figwidth() * 72 / (0.7 * width(text))  # a sign is about 0.6 as wide as it is high
    figure.suptitle(text, fontsize=min(13, points))


# -- metrics against steps ----------------------------------------------------------------------------------------


def metrics(store: str, lines: Sequence[Line], names: Sequence[str]) -> Paint:
    """A panel for each metric, up to PANELS, and in it a line for each branch."""

    def paint(figure: Figure) -> None:
        panels = names[:PANELS]
        across = 1 if len(panels) == 1 else 2 if len(panels) <= 4 else 3
        down = math.ceil(len(panels) / across)
        figure.set_size_inches((8.4, 5.8, 4.9)[across - 1] * across, (4.8, 3.4, 3.0)[across - 1] * down + 1.0)
        steps = have_steps(lines)
        axes = figure.subplots(down, across, squeeze=False, sharex=True).flat
        for place, panel in zip(axes, panels, strict=False):
            _panel(place, lines, panel, steps)
        for empty in axes[len(panels) :]:
            empty.set_visible(False)
        for lowest in axes[max(0, len(panels) - across) : len(panels)]:
            lowest.set_xlabel("step" if steps else "commit number")
            lowest.tick_params(labelbottom=True)
        of = f", {len(panels)} of {len(names)}" if len(names) > len(panels) else ""
        single = f" of {shown(lines[0].name, 40)}" if len(lines) == 1 else ""
        _title(figure, f"{store}: metrics{single}{of}")
        _legend(figure, lines, panels)

    return paint


def _panel(axes: Axes, lines: Sequence[Line], name: str, steps: bool) -> None:
    drawn = []
    for at in reversed(range(len(lines))):  # the first lies on top
        points = [*([lines[at].fork] if lines[at].fork else []), *lines[at].points]
        held = [(_across(point, steps), metric(point.commit, name)) for point in points if point]
        xs = [x for x, value in held if value is not None]
        ys = [value if abs(value) < _LARGEST else math.nan for _, value in held if value is not None]
        marker = "o" if len(xs) <= _MARKED else None
        axes.plot(xs, ys, marker=marker, markersize=3, linewidth=1.6, solid_capstyle="round", **_look(at))
        lost = [x for x, y in zip(xs, ys, strict=True) if math.isnan(y)]
        axes.plot(lost, [0.03] * len(lost), "x", color=_look(at)["color"], transform=axes.get_xaxis_transform())
        drawn += [y for y in ys if not math.isnan(y)]
    title = shown(name, 36)
    axes.set_title(title, loc="left", fontsize=10.5 if width(title) <= 28 else 8.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=_TICKS, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _count(x)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: number(float(y))))
    if not drawn:
        axes.set_yticks([])  # it would be numbers of nothing
    elif min(drawn) > 1 / _LARGEST and max(drawn) / min(drawn) >= _LOG:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: number(float(y))))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel("log scale")


def _across(point: Point, steps: bool) -> float:
    return float(point.commit.step) if steps and point.commit.step is not None else float(point.number)


def _look(at: int) -> dict[str, Any]:
    if at >= _NAMED:
        return {"color": "#d0d0d0", "linestyle": "-"}
    return {"color": _COLOURS[at % len(_COLOURS)], "linestyle": _DASHES[at // len(_COLOURS)]}


def _legend(figure: Figure, lines: Sequence[Line], panels: Sequence[str]) -> None:
    handles: list[Line2D] = []
    labels = []
    if len(lines) > 1:
        handles = [Line2D([], [], linewidth=2, **_look(at)) for at in range(min(len(lines), _NAMED + 1))]
        labels = [shown(line.name, 36) for line in lines[:_NAMED]]
        if len(lines) > _NAMED:
            labels.append(f"{len(lines) - _NAMED} more")
    values = (metric(point.commit, name) for line in lines for point in line.points for name in panels)
    if not all(value is None or abs(value) < _LARGEST for value in values):
        handles.append(Line2D([], [], linestyle="", marker="x", color="#444444"))
        labels.append("NaN or infinite")
    if labels:
        wide = max(map(width, labels)) * 0.085 + 0.6  # inches that the longest takes
        columns = max(1, min(len(labels), int(figure.get_figwidth() / wide)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _count(value: float) -> str:
    """A step, short: 1500, 200k, 1.5M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e5):
            return f"{value / size:g}{unit}"
    return f"{value:g}"


# -- bytes against commits ----------------------------------------------------------------------------------------


def storage(store: str, commits: Sequence[cas.Commit]) -> Paint:
    """What the commits, oldest first, take in all, against a file for each; below, what each added."""

    def paint(figure: Figure) -> None:
        figure.set_size_inches(8.6, 6.4)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 2))
        edges = np.arange(len(commits) + 1) + 0.5
        raw = [float(total) for total in accumulate(commit.raw for commit in commits)]
        stored = [float(total) for total in accumulate(commit.stored for commit in commits)]
        for totals, colour in ((raw, _GREY), (stored, _COLOURS[0])):
            above.stairs(totals, edges, baseline=None, color=colour, linewidth=2)
            above.stairs(totals, edges, color=colour, fill=True, alpha=0.12)
        keys = [Line2D([], [], color=colour, linewidth=2) for colour in (_GREY, _COLOURS[0])]
        above.legend(keys, _sums(raw[-1], stored[-1]), loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        above.set_ylabel("all commits so far")
        below.stairs([commit.stored for commit in commits], edges, color=_COLOURS[0], fill=True)
        below.set_ylabel("added by each")
        below.set_xlabel("commit, by time")
        below.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=_TICKS, min_n_ticks=1))
        for axes in (above, below):
            axes.set_ylim(bottom=0)
            axes.margins(x=0.01)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: human_bytes(y)))
        _title(figure, f"{store}: bytes stored by {plural(len(commits), 'commit')}")

    return paint


def _sums(raw: float, stored: float) -> list[str]:
    ratio = f", {raw / stored:.3g} times less" if 0 < stored < raw else ""
    return [f"a file for each commit: {human_bytes(raw)}", f"stored: {human_bytes(stored)}{ratio}"]


# -- tensors against commits --------------------------------------------------------------------------------------


def heat(store: str, name: str, changes: Changes) -> Paint:
    """A row for each group of tensors, a column for each commit; darker where more of the bytes are new."""

    def paint(figure: Figure) -> None:
        rows, columns = changes.nbytes.shape
        left = [shown(row.name, 46) for row in changes.rows]
        names = max(map(width, left)) * 0.075
        figure.set_size_inches(max(6.5, min(13.0, 0.22 * columns) + names + 3.2), 0.21 * rows + 2.3)
        axes = figure.add_subplot()
        axes.grid(False)
        _cells(figure, axes, changes)
        axes.set_yticks(np.arange(rows) + 0.5, left)
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        _sizes(axes, changes)
        _columns(axes, changes)
        _title(figure, f"{store}: bytes new in each commit of {shown(name, 40)}")

    return paint


def _cells(figure: Figure, axes: Axes, changes: Changes) -> None:
    here = changes.nbytes > 0
    fraction = np.divide(changes.new, changes.nbytes, out=np.zeros_like(changes.new), where=here)
    colours = LinearSegmentedColormap.from_list("new", ["#bcdcf0", "#56B4E9", "#0072B2", "#08306b"])
    colours.set_under("#eeeeee")
    line = 0.8 if fraction.shape[1] <= 120 else 0.0
    mesh = axes.pcolormesh(
        np.ma.masked_where(~here, fraction), cmap=colours, vmin=1e-9, vmax=1, edgecolors="white", linewidth=line
    )
    bar = figure.colorbar(
        mesh, ax=axes, location="bottom", aspect=45, shrink=0.55 if fraction.shape[1] > 20 else 1, pad=0.02
    )
    bar.ax.xaxis.set_major_locator(FixedLocator([1e-9, 0.25, 0.5, 0.75, 1]))
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
    bar.outline.set_visible(False)
    bar.set_label("of the bytes are in new blocks")
    kinds = [Patch(facecolor="#eeeeee"), Patch(facecolor="white", edgecolor="#bbbbbb")]
    labels = ["unchanged", "not in the state"]
    count = 2 if not here.all() else 1
    figure.legend(kinds[:count], labels[:count], loc="outside lower center", ncols=count)


def _sizes(axes: Axes, changes: Changes) -> None:
    """At the right, how much a row stands for."""
    largest = changes.nbytes.max(axis=1)
    right = axes.secondary_yaxis("right")
    texts = [
        f"{human_bytes(size)}" + (f", {plural(len(row.members), 'tensor')}" if len(row.members) > 1 else "")
        for row, size in zip(changes.rows, largest, strict=True)
    ]
    right.set_yticks(np.arange(len(texts)) + 0.5, texts)
    right.tick_params(length=0)
    right.spines[:].set_visible(False)


def _columns(axes: Axes, changes: Changes) -> None:
    """Up to ten columns by their steps or, where there are none, by their ids."""
    commits = changes.commits
    steps = all(commit.step is not None for commit in commits)
    every = math.ceil(len(commits) / 10)
    at = range(0, len(commits), every)
    axes.set_xticks(
        [column + 0.5 for column in at],
        [_count(float(commits[column].step or 0)) if steps else commits[column].id[:8] for column in at],
        rotation=0 if steps else 45,
    )
    axes.set_xlabel("step" if steps else "commit")
