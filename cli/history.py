"""`cas log`: commits, or the records of the store's log; newest first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import click

import cas
from cas.audit import Entry, RefChange
from cas.commits import human_bytes

from .completion import complete_revision
from .graph import Graph
from .options import example, json_option, with_store
from .output import age, number, say_json, table, title

_FIELDS = (
    *("id", "parents", "time", "author", "message", "step", "metrics", "meta"),
    *("files", "origin", "raw", "new", "stored", "pruned", "partial", "shallow"),
)
_KINDS = ("branches", "tags", "tracking")
_METRICS = 3  # as many stand in a line of the log


@click.command(
    short_help="A commit and its history.",
    epilog=example(
        "cas log", "cas log main -n 5", "cas log --graph", "cas log main@min:loss --json", "cas log --root -n 5"
    ),
)
@click.argument("rev", required=False, shell_complete=complete_revision)
@click.option("-n", "count", type=click.IntRange(min=0), metavar="N", help="At most N lines.")
@click.option("--graph", is_flag=True, help="Draw how branches part and join: all of them, without REV.")
@click.option("--root", is_flag=True, help="The records of the store's log: who changed what, and where undo can go.")
@json_option
@with_store
def log(store: cas.Store, rev: str | None, count: int | None, graph: bool, root: bool, as_json: bool) -> None:
    """The commit REV and its history, newest first: id, step, age, new bytes or pruned, metrics, refs, message.

    The history goes from first parent to first parent; with --graph to all parents and, without REV, from all
    branches and tags. Of a pruned commit the state is gone; what stands here stays. Of a partial one a part of the
    state is not here, and of a shallow one the parents: `cas fetch` brings them.

    With --root every change of branches, tags and policies: number, age, who, why, what moved. `no undo` stands at
    records that `cas undo` can no longer go back to.

    JSON: id, parents, time, author, message, step, metrics, meta, files, origin (bytes of the files that it was
    imported from, or null), raw, new, stored (bytes of the state, of it new, and as these are stored), pruned, partial
    and shallow (true or false), branches, tags, tracking (of remotes, such as origin/main).

    JSON with --root: seq, time, who, host, why, changes (kind, name, old and new id or null), undoable.
    """
    if root:
        if rev is not None or graph:
            raise click.UsageError("--root takes no revision and no --graph", click.get_current_context())
        _say_entries(islice(store.roots(), count), as_json)
        return
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
        prefix, lines = graph.add(commit.id, () if commit.shallow else commit.parents)
        row = _row(commit, names)
        yield (prefix, *row)
        yield from ((line, *("" for _ in row)) for line in lines)


Names = dict[str, dict[str, list[str]]]
"""By commit id: what branches, tags and tracking branches name it."""


def names_of(store: cas.Store) -> Names:
    found: Names = {}
    for kind, refs in store.refs().items():
        for name, commit in refs.items():
            found.setdefault(commit, {kind: [] for kind in _KINDS})[kind].append(name)
    return found


def refs_of(commit: cas.Commit, names: Names) -> list[str]:
    return [name for kind in names.get(commit.id, {}).values() for name in sorted(kind)]


def record(commit: cas.Commit, names: Names) -> dict[str, Any]:
    held = names.get(commit.id, {})
    return {name: getattr(commit, name) for name in _FIELDS} | {kind: sorted(held.get(kind, [])) for kind in _KINDS}


def _row(commit: cas.Commit, names: Names) -> tuple[str, ...]:
    metrics = [f"{name} {number(value)}" for name, value in commit.metrics.items()]
    more = ["…"] if len(metrics) > _METRICS else []
    return (
        commit.id[:8],
        "" if commit.step is None else f"step {commit.step}",
        age(commit.time),
        _size(commit),
        ", ".join(metrics[:_METRICS] + more),
        ", ".join(refs_of(commit, names)),
        title(commit.message),
    )


def _size(commit: cas.Commit) -> str:
    """The bytes that were new, and what of them is not here."""
    size = "pruned" if commit.pruned else f"{human_bytes(commit.new)} new"
    return ", ".join([size, *(["partial"] if commit.partial else []), *(["shallow"] if commit.shallow else [])])


# -- the store's log ----------------------------------------------------------------------------------------------


def _say_entries(entries: Iterable[Entry], as_json: bool) -> None:
    if as_json:
        for entry in entries:
            say_json(asdict(entry))
        return
    table(map(_entry_row, entries), right={0, 1}, colour={0: "yellow", 1: "dim", 3: "dim"})


def _entry_row(entry: Entry) -> tuple[str, ...]:
    mark = "" if entry.undoable else "no undo"
    moved = "; ".join(change_text(change, "at") for change in entry.changes)
    return str(entry.seq), age(entry.time), f"{entry.who}@{entry.host}", mark, entry.why, moved


def change_text(change: RefChange, appeared: str) -> str:
    """What happened to a ref; `appeared` stands before the commit of one that was not there."""
    name = f"{change.kind} {change.name}"
    if change.new is None:
        return f"{name} gone, was at {(change.old or '')[:8]}"
    old = appeared if change.old is None else f"{change.old[:8]} ->"
    return f"{name} {old} {change.new[:8]}"
