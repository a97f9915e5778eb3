"""`cas log` and `cas show`: commits, and what is in one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import click

import cas
from cas.commits import human_bytes
from cas.errors import NotFound
from cas.leaves import Leaf, TensorLeaf
from cas.paths import Patterns, format_path

from .options import example, json_option, with_store
from .output import age, clean, cut, jsonable, lines, number, paint, plural, say, say_json, table, title

_METRICS = 3  # as many stand in a line of the log
_VALUE = 60  # characters of a value that are shown


@click.command(
    short_help="A commit and its history.",
    epilog=example("cas log", "cas log main -n 5", "cas log main@min:loss --json"),
)
@click.argument("rev", required=False)
@click.option("-n", "count", type=click.IntRange(min=0), metavar="N", help="At most N commits.")
@json_option
@with_store
def log(store: cas.Store, rev: str | None, count: int | None, as_json: bool) -> None:
    """The commit REV and its history, newest first: id, step, age, new bytes, metrics, refs, message.

    JSON: id, parents, time, author, message, step, metrics, meta, files, raw, new, stored (bytes of the state, of it
    new, and as these are stored), branches, tags.
    """
    names = _names(store)
    commits = islice(store.log(rev), count)
    if as_json:
        for commit in commits:
            say_json(_record(commit, names))
    else:
        table((_row(commit, names) for commit in commits), right={2, 3}, colour={0: "yellow", 2: "dim", 5: "green"})


Names = dict[str, dict[str, list[str]]]
"""By commit id: what branches and tags name it."""


def _names(store: cas.Store) -> Names:
    found: Names = {}
    for kind, refs in store.refs().items():
        for name, commit in refs.items():
            found.setdefault(commit, {"branches": [], "tags": []})[kind].append(name)
    return found


def _refs_of(commit: cas.Commit, names: Names) -> list[str]:
    return [name for kind in names.get(commit.id, {}).values() for name in sorted(kind)]


def _record(commit: cas.Commit, names: Names) -> dict[str, Any]:
    fields = ("id", "parents", "time", "author", "message", "step", "metrics", "meta", "files", "raw", "new", "stored")
    held = names.get(commit.id, {"branches": [], "tags": []})
    return {name: getattr(commit, name) for name in fields} | {kind: sorted(held[kind]) for kind in held}


def _row(commit: cas.Commit, names: Names) -> tuple[str, ...]:
    metrics = [f"{name} {number(value)}" for name, value in commit.metrics.items()]
    more = ["…"] if len(metrics) > _METRICS else []
    return (
        commit.id[:8],
        "" if commit.step is None else f"step {commit.step}",
        age(commit.time),
        f"{human_bytes(commit.new)} new",
        ", ".join(metrics[:_METRICS] + more),
        ", ".join(_refs_of(commit, names)),
        title(commit.message),
    )


@click.command(
    short_help="A commit and what is in it.",
    epilog=example("cas show", "cas show v1 'model/**'", "cas show main~2 optimizer --json"),
)
@click.argument("rev", required=False)
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1)
@json_option
@with_store
def show(store: cas.Store, rev: str | None, patterns: tuple[str, ...], as_json: bool) -> None:
    """A commit, and every leaf of its state: path, dtype, shape, bytes.

    A PATTERN is a path prefix or a glob: * stands for anything in one level, ** for any levels.

    JSON: first the commit, with the keys of `cas log --json` and kind: commit. Then a line for each leaf: kind:
    tensor, path, dtype, shape, bytes; or kind: value, path, type, bytes, value (null where it is long).
    """
    commit = store.resolve(rev)
    wanted = Patterns(patterns) if patterns else None
    leaves = (leaf for leaf in store.leaves(commit.id) if wanted is None or wanted.match(leaf.path))
    first = next(leaves, None)
    if first is None and patterns:
        raise NotFound(f"commit {commit.id[:8]} has nothing at {' or '.join(patterns)}; see `cas show` without it")
    names = _names(store)
    found = _chain(first, leaves)
    if as_json:
        say_json({"kind": "commit", **_record(commit, names)})
        for leaf in found:
            say_json(_leaf_record(leaf))
    else:
        _say_commit(commit, names)
        _say_leaves(found)


def _chain(first: Leaf | None, rest: Iterator[Leaf]) -> Iterator[Leaf]:
    if first is not None:
        yield first
    yield from rest


def _say_commit(commit: cas.Commit, names: Names) -> None:
    metrics = ", ".join(f"{name} {number(value)}" for name, value in commit.metrics.items())
    meta = ", ".join(f"{key}={value!r:.80}" for key, value in commit.meta.items())
    size = f"{human_bytes(commit.raw)}, {human_bytes(commit.new)} new, {human_bytes(commit.stored)} stored for it"
    rows = [
        ("refs", ", ".join(_refs_of(commit, names))),
        ("parents", " ".join(commit.parents)),
        ("time", f"{commit.time.astimezone():%Y-%m-%d %H:%M:%S %z} ({age(commit.time)})"),
        ("author", commit.author),
        ("step", "" if commit.step is None else str(commit.step)),
        ("metrics", metrics),
        ("meta", meta),
        ("files", ", ".join(commit.files)),
        ("size", size),
    ]
    say(f"{paint('commit', 'dim')}   {paint(commit.id, 'yellow')}")
    for label, text in rows:
        if text:
            say(f"{paint(label.ljust(8), 'dim')} {paint(clean(text), 'green' if label == 'refs' else None)}")
    if commit.message:
        say()
        for line in lines(commit.message):
            say(f"    {line}")
    say()


def _say_leaves(leaves: Iterable[Leaf]) -> None:
    tensors, values, nbytes = 0, 0, 0

    def rows() -> Iterator[tuple[str, ...]]:
        nonlocal tensors, values, nbytes
        for leaf in leaves:
            nbytes += leaf.nbytes
            if isinstance(leaf, TensorLeaf):
                tensors += 1
                yield format_path(leaf.path), human_bytes(leaf.nbytes), leaf.dtype, str(list(leaf.shape))
            else:
                values += 1
                size = human_bytes(leaf.nbytes) if leaf.nbytes else ""
                yield format_path(leaf.path), size, leaf.kind, _value(leaf.kind, leaf.nbytes, leaf.value)

    table(rows(), right={1}, colour={2: "cyan"})
    say(paint(f"{plural(tensors, 'tensor')}, {plural(values, 'value')}, {human_bytes(nbytes)}", "dim"))


def _value(kind: str, nbytes: int, value: Any) -> str:
    if value is None:
        return "" if nbytes or kind == "None" else "empty"
    text = repr(value) if kind in ("str", "bytes") else str(value)
    return cut(text[: _VALUE + 1], _VALUE)


def _leaf_record(leaf: Leaf) -> dict[str, Any]:
    path = format_path(leaf.path)
    if isinstance(leaf, TensorLeaf):
        return {"kind": "tensor", "path": path, "dtype": leaf.dtype, "shape": leaf.shape, "bytes": leaf.nbytes}
    return {"kind": "value", "path": path, "type": leaf.kind, "bytes": leaf.nbytes, "value": jsonable(leaf.value)}
