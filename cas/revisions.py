"""Revisions: the ways to say which commit.

    main  v1  1f3a9c  main~2  main@{1}  main@step:1000  main@min:loss  main@max:acc

A ref wins over an id prefix. Suffixes are applied from left to right to what stands before them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from .absence import cut_text, parent_of
from .block import Kind, ObjectId
from .catalog import Catalog
from .errors import Invalid, NotFound
from .log import Log, Record
from .nodes import Node, Tag
from .objects import Commit
from .refs import RefKind
from .roots import Absent

MIN_PREFIX = 4
_SUFFIX = re.compile(r"~(\d{0,9})|@\{(\d{1,9})\}|@step:(-?\d{1,19})|@(min|max):(.+?)(?=~|@\{|@step:|@min:|@max:|$)")
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Revisions:
    """Resolves revisions against one store. `commit` reads a commit object by id, `absent` says what commits lack.

    Where history was cut, an answer beyond the cut is `NotFound`; the best of what is there counts as the best.
    """

    log: Log
    catalog: Catalog
    commit: Callable[[ObjectId], Commit]
    absent: Callable[[Record], Absent]

    def resolve(self, revision: str | None, root: Record) -> ObjectId:
        """The commit that `revision` names under `root`; None means `main`, else the only branch."""
        text: Any = default_branch(root) if revision is None else revision
        if not isinstance(text, str) or not text:
            raise Invalid(f"a revision is a text such as main, main~2 or an id, not {text!r}")
        name, suffixes = _split(text, root)
        if suffixes and suffixes[0].group(2) is not None:  # the branch may be deleted: the log still knows it
            found = self._earlier(name, int(suffixes.pop(0).group(2)), text, root)
        else:
            found = self._base(name, root)
        for suffix in suffixes:
            found = self._step(name, found, suffix, text, root)
        return found

    def _base(self, name: str, root: Record) -> ObjectId:
        for kind in RefKind:
            if (kind, name) in root.refs:
                return root.refs[(kind, name)]
        if _HEX.fullmatch(name.lower()) and MIN_PREFIX <= len(name) <= 64:
            return self._by_prefix(name.lower())
        raise NotFound(f"no branch, tag or commit is called {name}; {_known(root)}")

    def _by_prefix(self, prefix: str) -> ObjectId:
        low, high = (bytes.fromhex(prefix.ljust(64, digit)) for digit in "0f")
        places = self.catalog.match(low, high, limit=10_000)
        found = {place.row.id for place in places if place.row.kind == Kind.COMMIT}
        if not found:
            raise NotFound(f"no commit's id starts with {prefix}; see `cas log`")
        if len(found) > 1:
            raise Invalid(f"{len(found)} commits start with {prefix}; give more digits")
        return found.pop()

    def _step(self, name: str, start: ObjectId, suffix: re.Match[str], text: str, root: Record) -> ObjectId:
        back, earlier, step, which, metric = suffix.groups()
        if back is not None:
            return self._ancestor(start, int(back or 1), text, root)
        if earlier is not None:
            return self._earlier(name, int(earlier), text, root)
        if step is not None:
            return self._at_step(start, int(step), text, root)
        return self._best(start, which, metric, text, root)

    def history(self, start: ObjectId, root: Record) -> Iterator[tuple[ObjectId, Commit]]:
        """A commit and its first parents, newest first, as far as they are there under `root`."""
        absent = self.absent(root)
        name: ObjectId | None = start
        while name is not None:
            commit = self.commit(name)
            yield name, commit
            name = parent_of(name, commit, absent)

    def _ancestor(self, start: ObjectId, count: int, text: str, root: Record) -> ObjectId:
        found = list(islice(self.history(start, root), count + 1))
        name, commit = found[-1]
        if len(found) > count:
            return name
        raise _beyond(name, commit, text, f"goes back further than the history, which has {len(found)} commits")

    def _earlier(self, name: str, count: int, text: str, root: Record) -> ObjectId:
        """The branch's value `count` of its own log records ago."""
        value = root.refs.get((RefKind.BRANCH, name))
        for seq in range(root.seq, 0, -1):
            before = self.log.read(seq).refs.get((RefKind.BRANCH, name))
            if before != value:
                value = before
                count -= 1 if value is not None else 0
            if count == 0 and value is not None:
                return value
        raise NotFound(f"{text} goes back further than the log of branch {name}")

    def _at_step(self, start: ObjectId, step: int, text: str, root: Record) -> ObjectId:
        for name, commit in self.history(start, root):
            if commit.step == step:
                return name
        raise _beyond(name, commit, f"{text}:", f"no commit in that history has step {step}; see `cas log`")

    def _best(self, start: ObjectId, which: str, metric: str, text: str, root: Record) -> ObjectId:
        sign = 1 if which == "min" else -1
        best: tuple[float, ObjectId] | None = None
        for name, commit in self.history(start, root):
            value = metric_of(commit, metric)
            if value is not None and not math.isnan(value) and (best is None or sign * value < best[0]):
                best = (sign * value, name)
        if best is None:
            what = f"no commit in that history has a metric called {metric}; see `cas log`"
            raise _beyond(name, commit, f"{text}:", what)
        return best[1]


def _beyond(oldest: ObjectId, commit: Commit, text: str, what: str) -> NotFound:
    """What to raise for what no commit down to the `oldest` is: that was cut off, where it has parents all the same."""
    return NotFound(f"{text} {cut_text(oldest) if commit.parents else what}")


def metric_of(commit: Commit, metric: str) -> float | None:
    """A commit's metric as a number, or None."""
    pairs: list[Node] = commit.metrics[1] if commit.metrics[0] == Tag.DICT else []
    for key, value in pairs:
        if key == metric and type(value) in (int, float):
            return float(value)
    return None


def default_branch(root: Record) -> str:
    """`main`, else the only branch; an error that lists the branches otherwise."""
    branches = [name for kind, name in root.refs if kind is RefKind.BRANCH]
    if "main" in branches:
        return "main"
    if len(branches) == 1:
        return branches[0]
    if not branches:
        raise NotFound("the store has no commits yet; make one with `cas commit FILE` or store.commit(state)")
    raise Invalid(f"say which revision: there is no branch main, but {', '.join(sorted(branches))}")


def _split(text: str, root: Record) -> tuple[str, list[re.Match[str]]]:
    start = min((at for at in (text.find("~"), text.find("@")) if at >= 0), default=len(text))
    suffixes, at = [], start
    while at < len(text):
        suffix = _SUFFIX.match(text, at)
        if suffix is None:
            raise Invalid(f"{text!r:.200} is no revision; try main~2, main@{{1}}, main@step:1000 or main@min:loss")
        suffixes.append(suffix)
        at = suffix.end()
    return text[:start] or default_branch(root), suffixes


def _known(root: Record) -> str:
    names = sorted(name for _, name in root.refs)
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"there are {shown}" if names else "the store has no commits yet"
