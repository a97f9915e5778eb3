"""`cas plot`: what happened in a store, as pictures or as the numbers behind them."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import click

import cas
from cas.directfile import about
from cas.errors import Invalid, NotFound, Unsupported

from . import places
from .changes import Changes, changes
from .completion import complete_revision
from .lines import Line, in_time, lines, metric, metrics
from .options import example, json_option, with_store
from .output import clean, listed, say, say_json

_FORMS = (".png", ".svg")
_COLUMNS = 50
_ROWS = 40


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the user asked for: of which histories, which metrics (all if empty), at most how many commits."""

    revs: Sequence[str]
    metrics: Sequence[str]
    count: int | None


@dataclass(frozen=True, slots=True)
class _Drawing:
    """A picture that can be drawn: its numbers as JSON, and what makes its painter of the module charts and a title."""

    numbers: Iterator[dict[str, Any]]
    paint: Callable[[ModuleType, str], Any]


@click.command(
    short_help="Pictures: metrics, bytes, what changed.",
    epilog=example("cas plot metrics", "cas plot storage -o bytes.svg", "cas plot changes main -n 20 --json"),
)
@click.argument("kind", type=click.Choice(["metrics", "storage", "changes"]), metavar="metrics|storage|changes")
@click.argument("revs", metavar="[REV]...", nargs=-1, shell_complete=complete_revision)
@click.option("-o", "out", metavar="FILE", help="A .png or .svg file, replaced if it is there. Else cas-KIND.png.")
@click.option("-m", "--metric", "names", metavar="NAME", multiple=True, help="Only this metric; may be repeated.")
@click.option("-n", "count", type=click.IntRange(min=1), metavar="N", help="At most N commits of each history.")
@json_option
@with_store
def plot(
    store: cas.Store,
    kind: str,
    revs: tuple[str, ...],
    out: str | None,
    names: tuple[str, ...],
    count: int | None,
    as_json: bool,
) -> None:
    """Draw the history of REVs or of all branches.

    metrics: each metric against the step, a line for each branch from where it leaves another. storage: the bytes
    that all commits take, against a file for each of them. changes: which tensors of one REV changed from commit to
    commit, the last 50 unless -n says otherwise, related tensors in one row. Needs the extra `plot`, --json does not.

    JSON, a line for each point: metrics: branch, id, number (of the commit in its history), step, time, metric,
    value. storage: branch, id, step, time, raw, stored (bytes of the commit), total_raw, total_stored (of all so
    far). changes: id, step, time, row, tensors, bytes (0 where the commit has none of them), new (of these, in
    blocks that the commit before does not have there).
    """
    if as_json and out is not None:
        raise click.UsageError("--json prints and -o draws; give one of them", click.get_current_context())
    if names and kind != "metrics":
        raise click.UsageError("--metric is for `cas plot metrics`", click.get_current_context())
    target = Path(out or f"cas-{kind}.png")
    if target.suffix.lower() not in _FORMS:
        raise Invalid(f"{target} ends with neither {' nor '.join(_FORMS)}, which says what to draw; rename it")
    charts = None if as_json else _charts()
    drawing = _KINDS[kind](store, _Wish(revs, names, count))
    if charts is None:
        for record in drawing.numbers:
            say_json(record)
        return
    paint = drawing.paint(charts, charts.shown(_name(store), 60))
    _write(target, charts.picture(target.suffix.lower().removeprefix("."), paint))
    say(f"drew {clean(target)}")


def _charts() -> ModuleType:
    """The module that draws. What matplotlib logs as it starts, about fonts and folders, is not for our users."""
    os.environ["MPLBACKEND"] = "agg"  # one that matplotlib does not know would fail its import
    logging.getLogger("matplotlib").setLevel(logging.CRITICAL)
    try:
        from . import charts
    except ImportError as error:
        raise Unsupported("drawing needs matplotlib; pip install 'cas-checkpoints[plot]'") from error
    return charts


def _name(store: cas.Store) -> str:
    """What people call the store: the directory it is, or the one it stands in."""
    return places.name(store.url)


def _write(target: Path, data: bytes) -> None:
    """The file at once and whole, or not at all."""
    hidden = target.with_name(f".cas-plot-{secrets.token_hex(8)}")
    try:
        with about(str(target)):
            hidden.write_bytes(data)
            os.replace(hidden, target)
    finally:
        hidden.unlink(missing_ok=True)


# -- the kinds ----------------------------------------------------------------------------------------------------


def _metrics(store: cas.Store, wish: _Wish) -> _Drawing:
    found = lines(store, wish.revs, wish.count)
    held = metrics(found)
    missing = [name for name in wish.metrics if name not in held]
    if not held:
        raise NotFound("these commits have no metrics; give them with store.commit(state, metrics={...})")
    if missing:
        raise NotFound(f"no commit has a metric {missing[0]}; there are {listed(held)}")
    names = list(dict.fromkeys(wish.metrics)) or held
    return _Drawing(_points(found, names), lambda charts, title: charts.metrics(title, found, names))


def _points(found: Sequence[Line], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for line in found:
        for point in line.points:
            about = {"branch": line.name, "id": point.commit.id, "number": point.number}
            about |= {"step": point.commit.step, "time": point.commit.time}
            for name in names:
                value = metric(point.commit, name)
                if value is not None:
                    yield {**about, "metric": name, "value": value}


def _storage(store: cas.Store, wish: _Wish) -> _Drawing:
    pairs = in_time(lines(store, wish.revs, wish.count))
    commits = [commit for _, commit in pairs]
    return _Drawing(_sums(pairs), lambda charts, title: charts.storage(title, commits))


def _sums(pairs: Sequence[tuple[str, cas.Commit]]) -> Iterator[dict[str, Any]]:
    raw = accumulate(commit.raw for _, commit in pairs)
    stored = accumulate(commit.stored for _, commit in pairs)
    for (branch, commit), total_raw, total_stored in zip(pairs, raw, stored, strict=True):
        about = {"branch": branch, "id": commit.id, "step": commit.step, "time": commit.time}
        about |= {"raw": commit.raw, "stored": commit.stored}
        yield {**about, "total_raw": total_raw, "total_stored": total_stored}


def _changes(store: cas.Store, wish: _Wish) -> _Drawing:
    if len(wish.revs) > 1:
        raise click.UsageError("changes are drawn of one history; name one revision", click.get_current_context())
    rev = wish.revs[0] if wish.revs else None
    held = (commit for commit in store.log(rev) if not commit.pruned)
    history = list(islice(held, (wish.count or _COLUMNS) + 1))[::-1]
    if len(history) < 2:
        tip = store.resolve(rev).id[:8]
        raise NotFound(f"commit {tip} has no commit before it to compare with that was not pruned; commit again first")
    found = changes(store, history, _ROWS)
    if not found.rows:
        raise NotFound(f"the commits up to {history[-1].id[:8]} hold no tensors; see `cas show`")
    branches = store.refs()["branches"]
    name = rev or ("main" if "main" in branches else next(iter(branches)))
    return _Drawing(_cells(found), lambda charts, title: charts.heat(title, name, found))


def _cells(found: Changes) -> Iterator[dict[str, Any]]:
    for column, commit in enumerate(found.commits):
        about = {"id": commit.id, "step": commit.step, "time": commit.time}
        for row, nbytes, new in zip(found.rows, found.nbytes[:, column], found.new[:, column], strict=True):
            sizes = {"bytes": int(nbytes), "new": int(new)}
            yield {**about, "row": row.name, "tensors": len(row.members), **sizes}


_KINDS = {"metrics": _metrics, "storage": _storage, "changes": _changes}
