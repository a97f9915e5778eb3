"""`cas log`: commits, newest first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import click

import cas
from cas.commits import human_bytes

from .completion import complete_revision
from .graph import Graph
from .options import example, json_option, with_store
from .output import age, number, say_json, table, title

_FIELDS = (
    *("id", "parents", "time", "author", "message", "step", "metrics", "meta"),
    *("files", "origin", "raw", "new", "stored"),
)
_METRICS = 3  # as many stand in a line of the log


@click.command(
    short_help="A commit and its history.",
    epilog=example("cas log", "cas log main -n 5", "cas log --graph", "cas log main@min:loss --json"),
)
@click.argument("rev", required=False, shell_complete=complete_revision)
@click.option("-n", "count", type=click.IntRange(min=0), metavar="N", help="At most N commits.")
@click.option("--graph", is_flag=True, help="Draw how branches part and join: all of them, without REV.")
@json_option
@with_store
def log(store: cas.Store, rev: str | None, count: int | None, graph: bool, as_json: bool) -> None:
    """The commit REV and its history, newest first: id, step, age, new bytes, metrics, refs, message.

    The history goes from first parent to first parent; with --graph to all parents and, without REV, from all
    branches and tags.

    JSON: id, parents, time, author, message, step, metrics, meta, files, origin (bytes of the files that it was
    imported from, or null), raw, new, stored (bytes of the state, of it new, and as these are stored), branches, tags.
    """
    names = names_of(store)
    commits = islice(store.graph(rev) if graph else store.log(rev), count)
    if as_json:
        for commit in commits:
            say_json(record(commit, names))
        return
    rows = _drawn(commits, names) if graph else (_row(commit, names) for commit in commits)
    first = int(graph)  # the drawing takes a column
    table(rows, right={first + 2, first + 3}, colour={first: "yellow", first + 2: "dim", first + 5: "green"})


def _drawn(commits: Iterable[cas.Commit], names: Names) -> Iterator[tuple[str, ...]]:
    graph = Graph[str]()
    for commit in commits:
        prefix, lines = graph.add(commit.id, commit.parents)
        row = _row(commit, names)
        yield (prefix, *row)
        yield from ((line, *("" for _ in row)) for line in lines)


Names = dict[str, dict[str, list[str]]]
"""By commit id: what branches and tags name it."""


def names_of(store: cas.Store) -> Names:
    found: Names = {}
    for kind, refs in store.refs().items():
        for name, commit in refs.items():
            found.setdefault(commit, {"branches": [], "tags": []})[kind].append(name)
    return found


def refs_of(commit: cas.Commit, names: Names) -> list[str]:
    return [name for kind in names.get(commit.id, {}).values() for name in sorted(kind)]


def record(commit: cas.Commit, names: Names) -> dict[str, Any]:
    held = names.get(commit.id, {"branches": [], "tags": []})
    return {name: getattr(commit, name) for name in _FIELDS} | {kind: sorted(held[kind]) for kind in held}


def _row(commit: cas.Commit, names: Names) -> tuple[str, ...]:
    metrics = [f"{name} {number(value)}" for name, value in commit.metrics.items()]
    more = ["…"] if len(metrics) > _METRICS else []
    return (
        commit.id[:8],
        "" if commit.step is None else f"step {commit.step}",
        age(commit.time),
        f"{human_bytes(commit.new)} new",
        ", ".join(metrics[:_METRICS] + more),
        ", ".join(refs_of(commit, names)),
        title(commit.message),
    )
