"""Retention policies: which commits of a branch's history keep their state.

Only a plan: nothing is read or written here. The history decides what is newer, never a clock; a commit's time only
says which day and week (UTC, ISO) it counts for. So the days of a wrong clock age out like all others.
"""

from __future__ import annotations

import heapq
import math
import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypedDict, cast

from .block import ObjectId
from .errors import Corrupt, Invalid
from .nodes import MAX_BYTES, Node, Tag, check_node, expect, pack
from .objects import Commit
from .revisions import metric_of

MAX_POLICY = 64 << 10
"""Bytes."""
_DAY = 86_400_000_000
_MONDAY = 3
"""Days from a Monday to the first day of Unix time, a Thursday: ISO weeks start on Mondays."""
_BEST = re.compile(r"(.+):(min|max):([0-9]{1,19})", re.DOTALL)
# Not str.isprintable: what that accepts differs between releases of Python, and a policy is read by all of them.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_REASONS = ("last", "best", "every", "daily", "weekly", "tag", "tip")
"""The first words of the reasons to keep a commit, in the order in which they are given."""


@dataclass(frozen=True, slots=True)
class Best:
    """The `count` commits with the least or greatest `metric`; of equal ones the newer."""

    metric: str
    which: Literal["min", "max"]
    count: int

    def __str__(self) -> str:
        return f"{self.metric}:{self.which}:{self.count}"


@dataclass(frozen=True, slots=True)
class Policy:
    """What to keep, as `policy_of` makes it. A commit stays if any rule keeps it; None and () are no rule.

    `every` keeps the commits whose step is a multiple of it. `daily` and `weekly` keep the newest commit of each of
    so many days or weeks, counting only those that have one. `tags` are globs: what a matching tag names stays.
    """

    last: int | None
    best: tuple[Best, ...]
    every: int | None
    daily: int | None
    weekly: int | None
    tags: tuple[str, ...]


class Rules(TypedDict, total=False):
    """What to keep of a branch's history. A commit stays if any rule keeps it.

    keep_last: the newest so many. keep_best: texts such as loss:min:3, the best by a metric. keep_every: those whose
    step is a multiple of it. keep_daily, keep_weekly: the newest of each of so many days or weeks (UTC) that have one.
    keep_tags: globs, all unless given; what a matching tag names stays.
    """

    keep_last: int | None
    keep_best: str | Sequence[str] | None
    keep_every: int | None
    keep_daily: int | None
    keep_weekly: int | None
    keep_tags: str | Sequence[str]


def policy_of(
    *,
    keep_last: int | None = None,
    keep_best: str | Sequence[str] | None = None,
    keep_every: int | None = None,
    keep_daily: int | None = None,
    keep_weekly: int | None = None,
    keep_tags: str | Sequence[str] = ("*",),
) -> Policy:
    """The policy with these rules; `Invalid` if one of them is wrong, or if there is none besides tags.

    `keep_best` is a text such as loss:min:3, or a list of them; a metric's name may hold colons.
    """
    policy = Policy(
        last=_count(keep_last, "keep_last"),
        best=() if keep_best is None else tuple(map(_best, _texts(keep_best, "keep_best"))),
        every=_count(keep_every, "keep_every"),
        daily=_count(keep_daily, "keep_daily"),
        weekly=_count(keep_weekly, "keep_weekly"),
        tags=_texts(keep_tags, "keep_tags"),
    )
    if len({(best.metric, best.which) for best in policy.best}) < len(policy.best):
        raise Invalid(f"keep_best names a metric twice in {', '.join(map(str, policy.best))}; give each one count")
    if not policy.best and {policy.last, policy.every, policy.daily, policy.weekly} == {None}:
        raise Invalid("the policy keeps nothing; give keep_last, keep_best, keep_every, keep_daily or keep_weekly")
    size = len(pack(encode_policy(policy)))
    if size > MAX_POLICY:
        raise Invalid(f"the rules take {size} bytes, and every record would name them; keep them below {MAX_POLICY}")
    return policy


def _count(value: Any, argument: str) -> int | None:
    if value is None:
        return None
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if not 1 <= number <= MAX_BYTES:
        raise Invalid(f"{argument} is a whole number of 64 bits, at least 1; give one, or leave it out")
    return number


def _texts(value: Any, argument: str) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise Invalid(f"{argument} is a text or a list of texts, not {type(value).__name__}")
    for item in items:
        if not isinstance(item, str) or not item or _UNPRINTABLE.search(item):
            raise Invalid(f"{argument} holds printable texts, not {item!r:.60}")
    return tuple(items)


def _best(text: str) -> Best:
    found = _BEST.fullmatch(text)
    if found is None:
        raise Invalid(f"keep_best is a text such as loss:min:3 (metric, min or max, how many), not {text!r:.60}")
    which = cast(Literal["min", "max"], found[2])
    return Best(found[1], which, cast(int, _count(int(found[3]), f"the count in keep_best {text!r:.60}")))


def describe(policy: Policy) -> str:
    """The policy as one line for people."""
    rules = [] if policy.last is None else [f"last {policy.last}"]
    rules += [f"best {best.metric} ({best.which}) {best.count}" for best in policy.best]
    if policy.every is not None:
        rules.append(f"every {policy.every} step{'s' if policy.every > 1 else ''}")
    rules += [] if policy.daily is None else [f"daily {policy.daily}"]
    rules += [] if policy.weekly is None else [f"weekly {policy.weekly}"]
    rules.append(f"tags {' '.join(policy.tags)}" if policy.tags else "no tags")
    return f"keep {', '.join(rules)}"


# -- in the store's config ----------------------------------------------------------------------------------------


def encode_policy(policy: Policy) -> Node:
    """A dict of the arguments of `policy_of`: those that are set, and always the tags, which have a default."""
    best = _list_node(map(str, policy.best)) if policy.best else None
    pairs = [
        ["keep_last", policy.last],
        ["keep_best", best],
        ["keep_every", policy.every],
        ["keep_daily", policy.daily],
        ["keep_weekly", policy.weekly],
        ["keep_tags", _list_node(policy.tags)],
    ]
    return [int(Tag.DICT), [pair for pair in pairs if pair[1] is not None]]


def _list_node(texts: Iterable[str]) -> Node:
    return [int(Tag.LIST), list(texts)]


def decode_policy(node: Node) -> Policy:
    """The policy that `encode_policy` made this of; `Corrupt` for anything else."""
    check_node(node)
    expect(type(node) is list and node[0] == Tag.DICT, "a retention policy is no dict")
    given = dict(node[1])
    for key in ("keep_best", "keep_tags"):
        if key in given:
            listed = type(given[key]) is list and given[key][0] == Tag.LIST
            expect(listed, f"a retention policy has no list as {key}")
            given[key] = given[key][1]
    try:
        policy = policy_of(**given)
    except (Invalid, TypeError) as error:  # TypeError: a key that is no argument
        raise Corrupt(f"a retention policy is malformed: {error}") from error
    expect(encode_policy(policy) == node, "a retention policy is not in canonical form")
    return policy


# -- applied to a history -----------------------------------------------------------------------------------------


def kept(
    history: Iterable[tuple[ObjectId, Commit]], policy: Policy, held_by: Mapping[ObjectId, Collection[str]]
) -> dict[ObjectId, tuple[str, ...]]:
    """The commits that `policy` keeps, newest first, each with the reasons; the tip always.

    `history` is newest first and is read once. Every commit in it counts, so leave out those whose state is gone
    already: they would take the places of others. `held_by` has the names of the tags on a commit.
    """
    reasons: dict[tuple[int, ObjectId], list[str]] = {}
    ranks: list[list[tuple[float, int, ObjectId]]] = [[] for _ in policy.best]
    days: set[int] = set()
    weeks: set[int] = set()
    for position, (name, commit) in enumerate(history):
        day = commit.time // _DAY
        why = ["tip"] if position == 0 else []
        if policy.last is not None and position < policy.last:
            why.append("last")
        if policy.every is not None and commit.step is not None and commit.step % policy.every == 0:
            why.append(f"every {policy.every}")
        if _is_new(day, days, policy.daily):
            why.append("daily")
        if _is_new((day + _MONDAY) // 7, weeks, policy.weekly):
            why.append("weekly")
        why += [f"tag {tag}" for tag in sorted(held_by.get(name, ())) if _matches(tag, policy.tags)]
        if why:
            reasons[position, name] = why
        for best, ranked in zip(policy.best, ranks, strict=True):
            _rank(best, ranked, position, name, commit)
    for best, ranked in zip(policy.best, ranks, strict=True):
        for _, age, name in ranked:
            reasons.setdefault((-age, name), []).append(f"best {best.metric}")
    return {name: _in_order(why) for (_, name), why in sorted(reasons.items())}


def _is_new(period: int, seen: set[int], count: int | None) -> bool:
    """Whether this is the first commit of one of the first `count` periods; they are added to `seen`."""
    if count is None or len(seen) == count or period in seen:
        return False
    seen.add(period)
    return True


def _matches(tag: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(tag, glob) for glob in globs)


def _rank(best: Best, ranked: list[tuple[float, int, ObjectId]], position: int, name: ObjectId, commit: Commit) -> None:
    """Put the commit into the heap `ranked` if it is among the best so far; the worst of them comes first there."""
    value = metric_of(commit, best.metric)
    if value is None or math.isnan(value):
        return
    item = (value if best.which == "max" else -value, -position, name)
    if len(ranked) < best.count:
        heapq.heappush(ranked, item)
    else:
        heapq.heappushpop(ranked, item)


def _in_order(why: list[str]) -> tuple[str, ...]:
    """The reasons in the order of _REASONS, each once: a metric may be kept for its least and its greatest values."""
    return tuple(sorted(dict.fromkeys(why), key=lambda reason: _REASONS.index(reason.split(" ")[0])))
