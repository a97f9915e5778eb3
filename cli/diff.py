"""`cas diff`: what differs between two commits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from typing import Any

import click

import cas
from cas.change import Change
from cas.commits import human_bytes
from cas.errors import NotFound
from cas.leaves import Leaf, StoredFile, TensorLeaf
from cas.paths import Path, Patterns, format_path

from .completion import complete_revision
from .grouping import group
from .leaf import VALUE, brief, record
from .options import example, json_option, with_store
from .output import clean, cut, jsonable, number, paint, plural, say, say_json, table, title, width

_KINDS = ("added", "removed", "changed")
_SIGNS = {"added": "+", "removed": "-", "changed": "~"}
_COLOURS = {"added": "green", "removed": "red", "changed": "yellow"}
_ROWS = 40  # of `--stat`
_NAME = 40  # cells that a path takes where it is shorter


@dataclass(slots=True)
class Totals:
    """How many paths differ in each way, and the bytes that stand there: after, or before where removed."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0))
    nbytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0))

    def add(self, found: cas.Difference) -> None:
        leaf = found.after or found.before
        self.counts[found.kind] += 1
        self.nbytes[found.kind] += 0 if leaf is None else leaf.nbytes


def _sum(parts: Iterable[Totals]) -> Totals:
    found = Totals()
    for part in parts:
        for kind in _KINDS:
            found.counts[kind] += part.counts[kind]
            found.nbytes[kind] += part.nbytes[kind]
    return found


@dataclass(frozen=True, slots=True)
class FileDifference:
    """A side file that differs: what happened to it, and its bytes in each commit that has it."""

    name: str
    kind: str
    before: int | None
    after: int | None


@click.command(
    short_help="What differs between two commits.",
    epilog=example("cas diff main~1 main", "cas diff v1 main 'model/**'", "cas diff main@{1} main --stat"),
)
@click.argument("a", shell_complete=complete_revision)
@click.argument("b", shell_complete=complete_revision)
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1)
@click.option("--stat", is_flag=True, help="Counts and bytes of each subtree, or of groups; no content is read.")
@json_option
@with_store
def diff(store: cas.Store, a: str, b: str, patterns: tuple[str, ...], stat: bool, as_json: bool) -> int:
    """What was added (+), removed (-) and changed (~) from the state of A to that of B, and its side files.

    Of a changed tensor it tells how many elements have other bits, the largest change of one, and the relative
    change: the norm of the change over the norm of the old values, of the elements that differ. NaN and infinities
    are counted apart. A PATTERN is a path prefix or a glob: * stands for anything in one level, ** for any levels.
    With one, side files are left out.

    Ends with 1 if there are differences, with 0 if not; step, metrics and message do not count.

    JSON: first kind: commits, with before and after: each id, step, metrics, meta, message. Then a line for each
    difference: kind: added, removed or changed, path, before and after (dtype, shape, bytes of a tensor; type, bytes,
    value of a value; or null), and change: differing, total, nonfinite, largest, relative, or null. With --stat
    instead a line for each subtree: kind: subtree, path, added, removed, changed and bytes, which has the same three.
    Then a line for each side file: kind: file, name, change, before and after in bytes.
    """
    commits = store.resolve(a), store.resolve(b)
    found = store.diff(commits[0].id, commits[1].id, only=patterns or None, values=not stat)
    first = list(islice(found, 1))
    if patterns and not first:
        _check_patterns(store, commits, patterns)
    (_say_commits_json if as_json else _say_commits)(*commits)
    totals = (_subtrees if stat else _leaves)(chain(first, found), as_json)
    files = [] if patterns else list(_files(store, *commits))
    for file in files:
        _say_file(file, as_json)
    if not as_json:
        say(_summary(totals, files))
    return 1 if files or any(totals.counts.values()) else 0


def _check_patterns(store: cas.Store, commits: tuple[cas.Commit, cas.Commit], patterns: tuple[str, ...]) -> None:
    """Nothing differs: it may be that nothing is there."""
    wanted = Patterns(patterns)
    if not any(wanted.match(leaf.path) for commit in commits for leaf in store.leaves(commit.id)):
        raise NotFound(f"neither commit has anything at {' or '.join(patterns)}; `cas show` lists what there is")


# -- what is not in the state -------------------------------------------------------------------------------------


def _say_commits_json(before: cas.Commit, after: cas.Commit) -> None:
    keys = ("id", "step", "metrics", "meta", "message")
    sides = {name: {key: getattr(held, key) for key in keys} for name, held in (("before", before), ("after", after))}
    say_json({"kind": "commits", **sides})


def _say_commits(before: cas.Commit, after: cas.Commit) -> None:
    say(f"{paint(before.id[:8], 'yellow')} -> {paint(after.id[:8], 'yellow')}")
    rows: list[tuple[str, Any, Any]] = [("step", before.step, after.step)]
    rows += _changed(before.metrics, after.metrics)
    rows += [("message", title(before.message) or None, title(after.message) or None)]
    rows += _changed(before.meta, after.meta)
    for name, old, new in rows:
        if repr(jsonable(old)) != repr(jsonable(new)):
            one, other = (clean(cut(number(value), VALUE)) for value in (old, new))
            say(f"  {paint(clean(name), 'dim')}  {one} -> {other}")


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(str(key), before.get(key), after.get(key)) for key in before | after]


def _files(store: cas.Store, before: cas.Commit, after: cas.Commit) -> Iterator[FileDifference]:
    """Side files with other contents, told by their ids."""
    old, new = ({file.name: file for file in store.leaves(commit.id).files()} for commit in (before, after))
    for name in old | new:
        one, other = old.get(name), new.get(name)
        if one is None or other is None:
            kind = "added" if one is None else "removed"
        elif _content(one) != _content(other):
            kind = "changed"
        else:
            continue
        yield FileDifference(name, kind, one.nbytes if one else None, other.nbytes if other else None)


def _content(file: StoredFile) -> list[Any]:
    return [(part.nbytes, part.entry.content) for part in file.parts]


def _say_file(file: FileDifference, as_json: bool) -> None:
    if as_json:
        say_json({"kind": "file", "name": file.name, "change": file.kind, "before": file.before, "after": file.after})
        return
    sizes = " -> ".join(human_bytes(size) for size in (file.before, file.after) if size is not None)
    _say_line(file.kind, file.name, f"side file  {sizes}")


# -- the state ----------------------------------------------------------------------------------------------------


def _leaves(found: Iterable[cas.Difference], as_json: bool) -> Totals:
    totals = Totals()
    for difference in found:
        totals.add(difference)
        if as_json:
            say_json(_record(difference))
        else:
            _say_line(difference.kind, format_path(difference.path), _told(difference))
    return totals


def _subtrees(found: Iterable[cas.Difference], as_json: bool) -> Totals:
    """A line for each entry at the top of the state; for people few lines, also of a state with thousands there."""
    totals, parts = Totals(), dict[Path, Totals]()
    for difference in found:
        totals.add(difference)
        parts.setdefault(difference.path[:1], Totals()).add(difference)
    if as_json:
        for path, part in parts.items():
            say_json({"kind": "subtree", "path": format_path(path), **part.counts, "bytes": part.nbytes})
    else:
        rows = [(name, *(cell for kind in _KINDS for cell in _counted(part, kind))) for name, part in _grouped(parts)]
        table(rows, right=range(1, 7), colour={at: _COLOURS[_KINDS[(at - 1) // 2]] for at in range(1, 7)})
    return totals


def _grouped(parts: dict[Path, Totals]) -> Iterator[tuple[str, Totals]]:
    if len(parts) <= _ROWS:
        yield from ((format_path(path), part) for path, part in parts.items())
        return
    paths, held = list(parts), list(parts.values())
    for row in group(paths, [sum(part.nbytes.values()) for part in held], _ROWS):
        yield row.name, _sum(held[member] for member in row.members)


def _counted(part: Totals, kind: str) -> tuple[str, str]:
    """Two cells: how many, and their bytes."""
    count, nbytes = part.counts[kind], part.nbytes[kind]
    return f"{_SIGNS[kind]}{count:,}" if count else "", f"({human_bytes(nbytes)})" if nbytes else ""


def _summary(totals: Totals, files: list[FileDifference]) -> str:
    parts = [f"{totals.counts[kind]:,} {kind} ({human_bytes(totals.nbytes[kind])})" for kind in _KINDS]
    said = [part for part, kind in zip(parts, _KINDS, strict=True) if totals.counts[kind]]
    said += [plural(len(files), "side file")] if files else []
    return paint(", ".join(said) or "no differences", "dim")


def _say_line(kind: str, name: str, text: str) -> None:
    name = clean(name)
    pad = " " * (_NAME - width(name))
    say(f"{paint(f'{_SIGNS[kind]} {name}', _COLOURS[kind])}{pad}  {clean(text)}".rstrip())


def _told(found: cas.Difference) -> str:
    before, after = found.before, found.after
    if before is None or after is None:
        leaf = after or before
        return f"{_form(leaf)}  {_content_of(leaf)}" if leaf else ""
    if isinstance(before, TensorLeaf) and isinstance(after, TensorLeaf):
        return _form_change(before, after) + (_measured(found.change) if found.change else "")
    if _form(before) == _form(after) and not _content_of(after):
        return f"{_form(after)}  keys in another order"
    if _form(before) == _form(after):
        return f"{_form(after)}  {_content_of(before)} -> {_content_of(after)}"
    return " -> ".join(f"{_form(leaf)} {_content_of(leaf)}".rstrip() for leaf in (before, after))


def _form(leaf: Leaf) -> str:
    return f"{leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, TensorLeaf) else leaf.kind


def _form_change(before: TensorLeaf, after: TensorLeaf) -> str:
    forms = [_form(before), _form(after)]
    if before.entry.framework != after.entry.framework:
        forms = [f"{leaf.entry.framework} {form}" for leaf, form in zip((before, after), forms, strict=True)]
    return " -> ".join(dict.fromkeys(forms))


def _content_of(leaf: Leaf) -> str:
    if isinstance(leaf, TensorLeaf) or leaf.nbytes:
        return human_bytes(leaf.nbytes)
    return brief(leaf)


def _measured(change: Change) -> str:
    text = f"  {change.differing:,} of {change.total:,} ({100 * change.differing / change.total:.3g}%)"
    text += f"  largest {change.largest:.3g}  relative {change.relative:.3g}"
    return text + (f"  {change.nonfinite:,} NaN or infinite" if change.nonfinite else "")


def _record(found: cas.Difference) -> dict[str, Any]:
    sides = {name: leaf and record(leaf) for name, leaf in (("before", found.before), ("after", found.after))}
    change = None if found.change is None else asdict(found.change)
    return {"kind": found.kind, "path": format_path(found.path), **sides, "change": change}
