"""`cas show` and `cas ls`: what is in a commit, leaf by leaf or level by level."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

import cas
from cas.block import short
from cas.commits import human_bytes
from cas.errors import NotFound
from cas.leaves import ABSENT, Leaf, TensorLeaf, ValueLeaf
from cas.paths import Path, Patterns, format_key, format_path, parse_levels

from .completion import complete_revision
from .history import Names, names_of, record, refs_of
from .leaf import brief
from .leaf import record as leaf_record
from .options import example, json_option, with_store
from .output import age, clean, lines, number, paint, plural, say, say_json, table, text


@click.command(
    short_help="A commit and what is in it.",
    epilog=example("cas show", "cas show v1 'model/**'", "cas show main~2 optimizer --json"),
)
@click.argument("rev", required=False, shell_complete=complete_revision)
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1)
@json_option
@with_store
def show(store: cas.Store, rev: str | None, patterns: tuple[str, ...], as_json: bool) -> None:
    """A commit, and every leaf of its state: path, dtype, shape, bytes. `cas ls` lists one level.

    A PATTERN is a path prefix or a glob: * stands for anything in one level, ** for any levels. Of a pruned commit
    there are no leaves.

    JSON: first the commit, with the keys of `cas log --json` and kind: commit. Then a line for each leaf: kind:
    tensor, path, dtype, shape, bytes; or kind: value, path, type, bytes, value (null where it is long; hex digits of an
    integer that has over 600 decimal ones).
    """
    commit = store.resolve(rev)
    wanted = Patterns(patterns) if patterns else None
    bare = commit.pruned and wanted is None  # a leaf that is asked for is missed; the commit itself is there
    held = () if bare else store.leaves(commit.id)
    leaves = (leaf for leaf in held if wanted is None or wanted.match(leaf.path))
    first = next(leaves, None)
    if first is None and patterns:
        raise NotFound(f"commit {commit.id[:8]} has nothing at {' or '.join(patterns)}; see `cas show` without it")
    names = names_of(store)
    found = _chain(first, leaves)
    if as_json:
        say_json({"kind": "commit", **record(commit, names)})
        for leaf in found:
            say_json(_leaf_record(leaf))
    else:
        _say_commit(commit, names)
        if not bare:
            _say_leaves(found)


def _chain(first: Leaf | None, rest: Iterator[Leaf]) -> Iterator[Leaf]:
    if first is not None:
        yield first
    yield from rest


def _say_commit(commit: cas.Commit, names: Names) -> None:
    metrics = ", ".join(f"{name} {number(value)}" for name, value in commit.metrics.items())
    meta = ", ".join(f"{key}={text(value, repr):.80}" for key, value in commit.meta.items())
    size = f"{human_bytes(commit.raw)}, {human_bytes(commit.new)} new, {human_bytes(commit.stored)} stored for it"
    rows = [
        ("refs", ", ".join(refs_of(commit, names))),
        ("parents", f"{' '.join(commit.parents)}{' (not all are here: shallow)' if commit.shallow else ''}"),
        ("time", f"{commit.time.astimezone():%Y-%m-%d %H:%M:%S %z} ({age(commit.time)})"),
        ("author", commit.author),
        ("step", "" if commit.step is None else str(commit.step)),
        ("metrics", metrics),
        ("meta", meta),
        ("files", ", ".join(commit.files)),
        ("origin", "" if commit.origin is None else f"{human_bytes(commit.origin)} in files that were imported"),
        ("size", size),
        ("state", _missing(commit)),
    ]
    say(f"{paint('commit', 'dim')}   {paint(commit.id, 'yellow')}")
    for label, said in rows:
        if said:
            say(f"{paint(label.ljust(8), 'dim')} {paint(clean(said), 'green' if label == 'refs' else None)}")
    if commit.message:
        say()
        for line in lines(commit.message):
            say(f"    {line}")
    say()


def _missing(commit: cas.Commit) -> str:
    """What of the state is not here, and why."""
    if commit.pruned:
        return "pruned; `cas log --root` says when"
    return "partial: what is absent was not fetched or sent with the rest" if commit.partial else ""


@dataclass(slots=True)
class _Counts:
    """What leaves there are, and the bytes of them."""

    tensors: int = 0
    values: int = 0
    absent: int = 0
    nbytes: int = 0

    def add(self, leaf: Leaf) -> None:
        is_tensor = isinstance(leaf, TensorLeaf)
        is_absent = isinstance(leaf, ValueLeaf) and leaf.kind == ABSENT
        self.tensors += is_tensor
        self.absent += is_absent
        self.values += not is_tensor and not is_absent
        self.nbytes += leaf.nbytes


def _say_leaves(leaves: Iterable[Leaf]) -> None:
    total = _Counts()

    def rows() -> Iterator[tuple[str, ...]]:
        for leaf in leaves:
            total.add(leaf)
            yield _leaf_row(leaf)

    table(rows(), right={1}, colour={2: "cyan"})
    absent = [f"{total.absent:,} absent"] if total.absent else []
    counts = [plural(total.tensors, "tensor"), plural(total.values, "value"), *absent, human_bytes(total.nbytes)]
    say(paint(", ".join(counts), "dim"))


def _leaf_row(leaf: Leaf) -> tuple[str, ...]:
    path = format_path(leaf.path)
    if isinstance(leaf, TensorLeaf):
        return path, human_bytes(leaf.nbytes), leaf.dtype, str(list(leaf.shape))
    size = human_bytes(leaf.nbytes) if leaf.nbytes else ""
    return path, size, leaf.kind, _value(leaf)


def _value(leaf: ValueLeaf) -> str:
    if leaf.is_composite:
        return "its parts follow"
    if leaf.kind == ABSENT:
        return ""
    is_empty = leaf.value is None and not leaf.nbytes and leaf.kind != "None"
    return "empty" if is_empty else brief(leaf)


def _leaf_record(leaf: Leaf) -> dict[str, Any]:
    kind = "tensor" if isinstance(leaf, TensorLeaf) else "value"
    return {"kind": kind, "path": format_path(leaf.path), **leaf_record(leaf)}


@dataclass(slots=True)
class _Entry:
    """A leaf, or all leaves below a path in one line."""

    path: Path
    leaf: Leaf | None = None
    below: _Counts = field(default_factory=_Counts)

    def add(self, leaf: Leaf) -> None:
        if leaf.path == self.path:
            self.leaf = leaf
            self.below.nbytes += leaf.nbytes
            return
        self.leaf = None  # a composite, whose parts these are
        self.below.add(leaf)


@click.command(
    short_help="One level of a commit's state.",
    epilog=example("cas ls", "cas ls main model", "cas ls v1 'optimizer/state/*'", "cas ls main --json"),
)
@click.argument("rev", required=False, shell_complete=complete_revision)
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1)
@json_option
@with_store
def ls(store: cas.Store, rev: str | None, patterns: tuple[str, ...], as_json: bool) -> None:
    """What stands at the top of a state or, where a PATTERN is a path, right below that path.

    A subtree is one line with what is in it; `cas show` lists every leaf. A PATTERN with stars lists the first level
    that matches: * stands for anything in one level, ** for any levels.

    JSON: kind: subtree, path, tensors, values, absent, bytes; or kind: tensor, path, dtype, shape, bytes; or kind:
    value, path, type, bytes, value (null where it is long).
    """
    leaves = store.leaves(rev)
    entries = _entries(leaves, patterns or (".",))
    if not entries and patterns:
        raise NotFound(f"commit {short(leaves.commit)} has nothing at {' or '.join(patterns)}; see `cas ls` without it")
    if as_json:
        for entry in entries:
            say_json(_entry_record(entry))
    else:
        table(map(_entry_row, entries), right={1}, colour={2: "cyan"})


def _entries(leaves: Iterable[Leaf], patterns: Sequence[str]) -> list[_Entry]:
    places = [_Place(pattern) for pattern in patterns]
    found: dict[Path, _Entry] = {}
    for leaf in leaves:
        for path in dict.fromkeys(place.entry(leaf.path) for place in places):
            if path is not None:
                found.setdefault(path, _Entry(path)).add(leaf)
    return list(found.values())


class _Place:
    """What one pattern lists."""

    def __init__(self, pattern: str) -> None:
        self._levels = parse_levels(pattern)
        self._globs = Patterns(pattern) if "*" in pattern else None
        self._known: dict[Path, bool] = {}

    def entry(self, path: Path) -> Path | None:
        """The path of the line in which a leaf counts, if it does in any."""
        if self._globs is None:
            depth = len(self._levels)
            inside = [format_key(key) for key in path[:depth]] == self._levels
            return path[: depth + 1] if inside else None
        stems = (path[:depth] for depth in range(1, len(path) + 1))
        return next((stem for stem in stems if self._matches(stem, self._globs)), None)

    def _matches(self, stem: Path, globs: Patterns) -> bool:
        known = self._known.get(stem)
        if known is None:
            known = self._known[stem] = globs.match(stem)
        return known


def _entry_row(entry: _Entry) -> tuple[str, ...]:
    if entry.leaf is not None:
        return _leaf_row(entry.leaf)
    held = entry.below
    words = [(held.tensors, plural(held.tensors, "tensor")), (held.values, plural(held.values, "value"))]
    counts = [text for count, text in [*words, (held.absent, f"{held.absent:,} absent")] if count]
    return f"{format_path(entry.path)}/", human_bytes(held.nbytes), "", ", ".join(counts)


def _entry_record(entry: _Entry) -> dict[str, Any]:
    if entry.leaf is not None:
        return _leaf_record(entry.leaf)
    held = entry.below
    counts = {"tensors": held.tensors, "values": held.values, "absent": held.absent, "bytes": held.nbytes}
    return {"kind": "subtree", "path": format_path(entry.path), **counts}
