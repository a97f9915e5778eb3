"""Which commits a retention policy keeps, and why."""

from __future__ import annotations

import math
import re
import tracemalloc
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.block import ObjectId
from cas.errors import Corrupt, Invalid
from cas.nodes import Tag, check_node, pack, unpack
from cas.objects import MAX_TIME, Commit, Sizes
from cas.retention import Best, Policy, decode_policy, describe, encode_policy, kept, policy_of

History = list[tuple[ObjectId, Commit]]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
NOON = "2024-05-15T12:00:00"
NAN, INF = float("nan"), float("inf")


def at(text: str) -> int:
    """A time in UTC as a commit has it."""
    return (datetime.fromisoformat(text).replace(tzinfo=UTC) - EPOCH) // MICROSECOND


def made(time: int, step: int | None = None, **metrics: Any) -> Commit:
    pairs = [[name, value] for name, value in metrics.items()]
    tree, empty = ObjectId(bytes(32)), [Tag.DICT, []]
    return Commit(tree, (), time, "ann", "", step, [Tag.DICT, pairs], empty, empty, None, Sizes(0, 0, 0))


def named(commits: list[Commit]) -> History:
    """The commits with ids: the newest, which comes first, is 0."""
    return [(ObjectId(number.to_bytes(32, "big")), commit) for number, commit in enumerate(commits)]


def reasons(
    commits: list[Commit], policy: Policy, tags: Mapping[int, list[str]] | None = None
) -> dict[int, tuple[str, ...]]:
    """What is kept of these commits, by their places: 0 is the newest."""
    history = named(commits)
    held_by = {history[place][0]: names for place, names in (tags or {}).items()}
    found = kept(iter(history), policy, held_by)
    return {int.from_bytes(name, "big"): why for name, why in found.items()}


def places(reason: str, commits: list[Commit], policy: Policy) -> list[int]:
    """The places of the commits that stay for this reason."""
    return [place for place, why in reasons(commits, policy).items() if reason in why]


def by_steps(*steps: int | None) -> list[Commit]:
    return [made(at(NOON), step) for step in steps]


def by_losses(*losses: Any) -> list[Commit]:
    return [made(at(NOON), loss=loss) for loss in losses]


def by_times(*times: str) -> list[Commit]:
    return [made(at(time)) for time in times]


# -- the tip and the last ones ------------------------------------------------------------------------------------


def test_an_empty_history_keeps_nothing() -> None:
    everything = policy_of(keep_last=1, keep_best="loss:min:1", keep_every=1, keep_daily=1, keep_weekly=1)
    assert reasons([], everything) == {}


def test_a_history_of_one_keeps_the_tip_for_every_reason_there_is() -> None:
    policy = policy_of(keep_last=3, keep_best="loss:min:3", keep_every=10, keep_daily=3, keep_weekly=3)
    why = ("last", "best loss", "every 10", "daily", "weekly", "tag a", "tag v1", "tip")
    assert reasons([made(at(NOON), 20, loss=1)], policy, {0: ["v1", "a"]}) == {0: why}


def test_the_tip_stays_when_no_rule_keeps_it() -> None:
    assert reasons(by_steps(7, 10, 3), policy_of(keep_every=10)) == {0: ("tip",), 1: ("every 10",)}


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (2**63 - 1, [0, 1, 2])])
def test_last_keeps_the_newest(count: int, expected: list[int]) -> None:
    assert places("last", by_steps(3, 2, 1), policy_of(keep_last=count)) == expected


def test_kept_commits_come_in_the_order_of_the_history() -> None:
    commits = [made(at(NOON), step, loss=loss) for step, loss in [(5, 5), (4, 1), (10, 4), (2, 0), (20, 3)]]
    policy = policy_of(keep_best="loss:min:2", keep_every=10)
    assert list(reasons(commits, policy).items()) == [
        (0, ("tip",)),
        (1, ("best loss",)),
        (2, ("every 10",)),
        (3, ("best loss",)),
        (4, ("every 10",)),
    ]


# -- the best -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("which", "expected"), [("min", [1, 3]), ("max", [2, 4])])
def test_best_keeps_the_least_or_the_greatest(which: str, expected: list[int]) -> None:
    assert places("best loss", by_losses(5, 1, 9, 2.5, 8.5), policy_of(keep_best=f"loss:{which}:2")) == expected


@pytest.mark.parametrize("which", ["min", "max"])
def test_of_equal_metrics_the_newer_are_kept(which: str) -> None:
    assert places("best loss", by_losses(1, 1.0, 1, 1), policy_of(keep_best=f"loss:{which}:2")) == [0, 1]
    assert places("best loss", by_losses(-0.0, 0, 0.0), policy_of(keep_best=f"loss:{which}:1")) == [0]


@pytest.mark.parametrize("which", ["min", "max"])
def test_nan_and_missing_metrics_never_count(which: str) -> None:
    others = [made(at(NOON)), made(at(NOON), other=1), made(at(NOON), loss="1"), made(at(NOON), loss=True)]
    commits = by_losses(NAN, -NAN, None) + others + by_losses(4)
    assert places("best loss", commits, policy_of(keep_best=f"loss:{which}:3")) == [len(commits) - 1]


@pytest.mark.parametrize(("which", "expected"), [("min", [2, 3]), ("max", [1, 3])])
def test_infinite_metrics_count_as_numbers(which: str, expected: list[int]) -> None:
    commits = by_losses(NAN, INF, -INF, 3 if which == "min" else 5, 4)
    assert places("best loss", commits, policy_of(keep_best=f"loss:{which}:2")) == expected


def test_several_bests_are_kept_beside_each_other() -> None:
    commits = [made(at(NOON), loss=loss, acc=acc) for loss, acc in [(3, 0.1), (1, 0.9), (2, 0.8)]]
    policy = policy_of(keep_best=["loss:min:1", "acc:max:2"])
    assert reasons(commits, policy) == {0: ("tip",), 1: ("best loss", "best acc"), 2: ("best acc",)}


def test_least_and_greatest_of_one_metric_is_one_reason() -> None:
    policy = policy_of(keep_best=["loss:min:1", "loss:max:1"])
    assert reasons(by_losses(2), policy) == {0: ("best loss", "tip")}
    assert reasons(by_losses(2, 1, 2.5, 3), policy) == {0: ("tip",), 1: ("best loss",), 3: ("best loss",)}


# -- every so many steps ------------------------------------------------------------------------------------------


def test_every_keeps_multiples_out_of_order_negative_and_as_often_as_they_come() -> None:
    steps = [5, 30, 10, 30, None, 0, -10, -5, 20, 19]
    assert places("every 10", by_steps(*steps), policy_of(keep_every=10)) == [1, 2, 3, 5, 6, 8]


def test_a_commit_without_a_step_is_never_kept_by_its_step() -> None:
    assert places("every 1", by_steps(None, 3, None), policy_of(keep_every=1)) == [1]


def test_every_takes_the_largest_steps() -> None:
    most = 2**63 - 1
    assert places(f"every {most}", by_steps(1, most, -most, 0), policy_of(keep_every=most)) == [1, 2, 3]


# -- daily and weekly ---------------------------------------------------------------------------------------------


def test_daily_keeps_the_newest_of_each_day_and_days_without_commits_take_no_place() -> None:
    commits = by_times(
        "2024-05-15T09:00:00",
        "2024-05-15T08:00:00",
        "2024-05-01T23:00:00",
        "2024-05-01T01:00:00",
        "2020-01-01T00:00:00",
    )
    assert places("daily", commits, policy_of(keep_daily=1)) == [0]
    assert places("daily", commits, policy_of(keep_daily=2)) == [0, 2]
    assert places("daily", commits, policy_of(keep_daily=7)) == [0, 2, 4]


def test_a_day_begins_at_midnight_utc() -> None:
    commits = by_times(
        "2024-03-01T00:00:00", "2024-02-29T23:59:59.999999", "2024-02-29T00:00:00", "2024-02-28T23:59:59"
    )
    assert places("daily", commits, policy_of(keep_daily=9)) == [0, 1, 3]


def test_a_week_begins_on_monday_also_across_the_end_of_a_year() -> None:
    commits = by_times(
        "2025-01-06T00:00:00",  # Monday of week 2
        "2025-01-05T23:59:59.999999",  # Sunday of week 1
        "2024-12-30T00:00:00",  # Monday of the same week
        "2024-12-29T23:59:59.999999",  # Sunday of week 52 of 2024
        "1970-01-05T00:00:00",  # the first Monday
        "1970-01-04T23:59:59.999999",
        "1970-01-01T00:00:00",
    )
    assert places("weekly", commits, policy_of(keep_weekly=9)) == [0, 1, 3, 4, 5]
    assert places("weekly", commits, policy_of(keep_weekly=2)) == [0, 1]


def test_a_day_counts_once_when_clocks_go_backwards_and_forwards() -> None:
    commits = by_times(*(f"2024-05-{day}T12:00:00" for day in (13, 12, 13, 12, 11, 13, 10)))
    assert places("daily", commits, policy_of(keep_daily=3)) == [0, 1, 4]


def test_within_a_day_the_history_says_what_is_newest_not_the_clock() -> None:
    assert places("daily", by_times("2024-05-13T01:00:00", "2024-05-13T23:00:00"), policy_of(keep_daily=2)) == [0]


@pytest.mark.parametrize("rule", ["daily", "weekly"])
@pytest.mark.parametrize("wrong", ["2099-01-01T00:00:00", "1970-01-01T00:00:00"])
def test_the_day_of_a_wrong_clock_ages_out_like_any_other(rule: str, wrong: str) -> None:
    commits = by_times("2024-05-27T12:00:00", "2024-05-20T12:00:00", wrong, "2024-05-13T12:00:00")
    arguments: Any = {f"keep_{rule}": 2}
    assert places(rule, commits, policy_of(**arguments)) == [0, 1]
    assert places(rule, commits[2:], policy_of(**arguments)) == [0, 1]


def test_the_last_possible_time_has_a_day_and_a_week() -> None:
    commits = [made(MAX_TIME - 1), made(0)]
    assert reasons(commits, policy_of(keep_daily=2, keep_weekly=2)) == {
        0: ("daily", "weekly", "tip"),
        1: ("daily", "weekly"),
    }


# -- tags ---------------------------------------------------------------------------------------------------------


TAGS = {1: ["v1"], 2: ["best/a", "v1.1"], 3: ["V2"]}


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        ("*", {1: ("tag v1",), 2: ("tag best/a", "tag v1.1"), 3: ("tag V2",)}),
        ("v*", {1: ("tag v1",), 2: ("tag v1.1",)}),
        ("v1", {1: ("tag v1",)}),
        ("v?", {1: ("tag v1",)}),
        ("[vV]?", {1: ("tag v1",), 3: ("tag V2",)}),
        ("best*", {2: ("tag best/a",)}),
        (["v1.*", "best/*", "*1*"], {1: ("tag v1",), 2: ("tag best/a", "tag v1.1")}),
        ("1", {}),
        ([], {}),
    ],
)
def test_what_a_matching_tag_names_stays(globs: Any, expected: dict[int, tuple[str, ...]]) -> None:
    found = reasons(by_steps(4, 3, 2, 1), policy_of(keep_last=1, keep_tags=globs), TAGS)
    assert found == {0: ("last", "tip"), **expected}


def test_a_tag_on_a_commit_of_another_history_changes_nothing() -> None:
    elsewhere = ObjectId(b"\xff" * 32)
    history = named(by_steps(2, 1))
    assert kept(history, policy_of(keep_last=1), {elsewhere: ["v1"]}) == {history[0][0]: ("last", "tip")}


# -- against a naive reference ------------------------------------------------------------------------------------


def first_of_each(periods: list[Any], count: int | None) -> set[int]:
    order = list(dict.fromkeys(periods))[: count or 0]
    return {periods.index(period) for period in order}


def kept_naively(history: History, policy: Policy, held_by: Mapping[ObjectId, list[str]]) -> dict[ObjectId, set[str]]:
    """The same by sorting, with the calendar of the standard library."""
    commits = [commit for _, commit in history]
    dates = [(EPOCH + timedelta(microseconds=commit.time)).date() for commit in commits]
    why: list[set[str]] = [set() for _ in commits]
    for place in range(len(commits)):
        why[place] |= {"tip"} if place == 0 else set()
        why[place] |= {"last"} if place < (policy.last or 0) else set()
        step = commits[place].step
        why[place] |= (
            {f"every {policy.every}"} if policy.every and step is not None and not step % policy.every else set()
        )
        tags = held_by.get(history[place][0], [])
        why[place] |= {f"tag {tag}" for tag in tags if any(fnmatchcase(tag, glob) for glob in policy.tags)}
    for best in policy.best:
        numbers = {place: dict(commit.metrics[1]).get(best.metric) for place, commit in enumerate(commits)}
        valid = [place for place, n in numbers.items() if type(n) in (int, float) and not math.isnan(n)]
        valid.sort(key=lambda place: numbers[place] * (1 if best.which == "min" else -1))
        for place in valid[: best.count]:
            why[place].add(f"best {best.metric}")
    for reason, found in (
        ("daily", first_of_each(dates, policy.daily)),
        ("weekly", first_of_each([date.isocalendar()[:2] for date in dates], policy.weekly)),
    ):
        for place in found:
            why[place].add(reason)
    return {name: reasons for (name, _), reasons in zip(history, why, strict=True) if reasons}


counts = st.one_of(st.none(), st.integers(1, 6))
metric_names = st.sampled_from(["loss", "acc", "val:loss"])
bests = st.lists(
    st.tuples(metric_names, st.sampled_from(["min", "max"]), st.integers(1, 4)), max_size=3, unique_by=lambda b: b[:2]
)
tag_globs = st.lists(st.sampled_from(["*", "v*", "v1", "?", "[a-m]*", "run/*"]), max_size=2)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    best = [f"{metric}:{which}:{count}" for metric, which, count in draw(bests)]
    rules: dict[str, Any] = {f"keep_{rule}": draw(counts) for rule in ("last", "every", "daily", "weekly")}
    if not best and not any(rules.values()):
        rules["keep_last"] = draw(st.integers(1, 6))
    return policy_of(keep_best=best, keep_tags=draw(tag_globs), **rules)


near_midnight = st.builds(
    lambda day, off: day * 86_400_000_000 + off,
    st.integers(19_700, 19_730),
    st.sampled_from([0, 1, 43_200_000_000, -1]),
)
times = st.one_of(near_midnight, near_midnight, st.integers(0, MAX_TIME - 1))
values = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, -0.0, NAN, INF, -INF, "text", None, True]))
histories = st.lists(
    st.builds(
        lambda time, step, metrics: made(time, step, **metrics),
        times,
        st.one_of(st.none(), st.integers(-12, 12)),
        st.dictionaries(metric_names, values, max_size=3),
    ),
    max_size=30,
).map(named)


@given(
    histories, policies(), st.dictionaries(st.integers(0, 12), st.lists(st.sampled_from(["v1", "v2", "a", "run/x"])))
)
def test_the_same_is_kept_as_by_the_naive_reference(
    history: History, policy: Policy, tags: dict[int, list[str]]
) -> None:
    held_by = {ObjectId(place.to_bytes(32, "big")): names for place, names in tags.items()}
    found = kept(iter(history), policy, held_by)
    assert {name: set(why) for name, why in found.items()} == kept_naively(history, policy, held_by)
    assert list(found) == sorted(found)
    assert all(len(set(why)) == len(why) for why in found.values())


@given(histories, policies(), st.data())
def test_what_is_kept_is_kept_again_when_the_rest_is_gone(
    history: History, policy: Policy, data: st.DataObject
) -> None:
    """So a policy may be applied again and again: it never eats into what it has chosen."""
    found = kept(history, policy, {})
    left = [item for item in history if item[0] in found or data.draw(st.booleans())]
    assert kept(left, policy, {}) == found


def test_memory_follows_what_is_kept_not_the_history() -> None:
    def long() -> Iterator[tuple[ObjectId, Commit]]:
        for number in range(2_000):
            metrics = {"loss": number % 97, "pad": "x" * 1000 + str(number)}
            yield ObjectId(number.to_bytes(32, "big")), made(number * 86_400_000_000, number, **metrics)

    policy = policy_of(keep_last=5, keep_best="loss:min:5", keep_every=500, keep_daily=5, keep_weekly=5)
    tracemalloc.start()
    try:
        found = kept(long(), policy, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 12 <= len(found) <= 24
    assert peak < 100_000, f"{peak} bytes for {len(found)} commits kept"


# -- arguments ----------------------------------------------------------------------------------------------------


def test_arguments_become_a_policy() -> None:
    policy = policy_of(keep_last=3, keep_best="a:b:min:2", keep_every=1000, keep_daily=7, keep_weekly=4, keep_tags="v*")
    assert policy == Policy(3, (Best("a:b", "min", 2),), 1000, 7, 4, ("v*",))
    assert policy_of(keep_best=("loss:min:1", "x:max:max:007")).best == (
        Best("loss", "min", 1),
        Best("x:max", "max", 7),
    )
    assert policy_of(keep_daily=1) == Policy(None, (), None, 1, None, ("*",))


@pytest.mark.parametrize("argument", ["keep_last", "keep_every", "keep_daily", "keep_weekly"])
@pytest.mark.parametrize("value", [0, -1, True, False, 1.0, "3", 2**63, pytest.param(10**5000, id="huge"), NAN, [1]])
def test_a_count_that_is_none_is_invalid_and_named(argument: str, value: Any) -> None:
    arguments: Any = {"keep_last": 1, argument: value}
    with pytest.raises(Invalid, match=argument):
        policy_of(**arguments)


@pytest.mark.parametrize(
    "best",
    [
        *["", "loss", "loss:min", "loss:min:", "min:3", ":min:3", "loss:least:3", "loss:MIN:3", "loss:3:min"],
        *["loss:min:0", "loss:min:-1", "loss:min:1.5", "loss:min:٣", "loss:min: 3", "loss:min:9223372036854775808"],
        *[
            pytest.param("loss:min:" + "9" * 5000, id="huge"),
            "lo\nss:min:3",
            "lo\udc80ss:min:3",
            ["loss:min:1", "loss"],
            ["loss:min:1", 3],
        ],
        *[3, b"loss:min:3", b"", {"loss:min:3"}, [("loss", "min", 3)], ["loss:min:1", "loss:min:2"]],
    ],
)
def test_a_best_that_is_none_is_invalid_and_named(best: Any) -> None:
    with pytest.raises(Invalid, match="keep_best"):
        policy_of(keep_last=1, keep_best=best)


@pytest.mark.parametrize("tags", ["", None, 3, b"", {"v*"}, ["v*", ""], ["v*", None], "v\n*", ["\udc80"]])
def test_a_tag_glob_that_is_none_is_invalid_and_named(tags: Any) -> None:
    with pytest.raises(Invalid, match="keep_tags"):
        policy_of(keep_last=1, keep_tags=tags)


@pytest.mark.parametrize(
    "arguments", [{}, {"keep_tags": "*"}, {"keep_best": []}, {"keep_last": None, "keep_best": None}]
)
def test_a_policy_without_a_rule_is_invalid(arguments: Any) -> None:
    with pytest.raises(Invalid, match="keep_last, keep_best, keep_every, keep_daily or keep_weekly"):
        policy_of(**arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"keep_last": 3}, "keep last 3, tags *"),
        ({"keep_every": 1, "keep_tags": []}, "keep every 1 step, no tags"),
        ({"keep_weekly": 4, "keep_tags": ["v*", "best/*"]}, "keep weekly 4, tags v* best/*"),
        ({"keep_best": ["val:loss:min:2", "acc:max:1"]}, "keep best val:loss (min) 2, best acc (max) 1, tags *"),
        (
            {"keep_last": 3, "keep_best": "loss:min:2", "keep_every": 1000, "keep_daily": 7},
            "keep last 3, best loss (min) 2, every 1000 steps, daily 7, tags *",
        ),
    ],
)
def test_a_policy_reads_as_one_line(arguments: Any, expected: str) -> None:
    assert describe(policy_of(**arguments)) == expected


@given(policies())
def test_every_description_is_one_line(policy: Policy) -> None:
    assert re.fullmatch(r"keep [^\n]+", describe(policy))


# -- in the config ------------------------------------------------------------------------------------------------

printable = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=20)
any_count = st.integers(1, 2**63 - 1)


@st.composite
def any_policies(draw: st.DrawFn) -> Policy:
    """Policies with any names and numbers that there can be."""
    which = st.sampled_from(["min", "max"])
    best = draw(
        st.lists(st.builds(Best, printable, which, any_count), max_size=3, unique_by=lambda b: (b.metric, b.which))
    )
    numbers = [draw(st.one_of(st.none(), any_count)) for _ in range(4)]
    if not best and numbers == [None] * 4:
        numbers[draw(st.integers(0, 3))] = draw(any_count)
    last, every, daily, weekly = numbers
    return Policy(last, tuple(best), every, daily, weekly, tuple(draw(st.lists(printable, max_size=3))))


@given(any_policies())
def test_a_policy_comes_back_from_its_node(policy: Policy) -> None:
    node = encode_policy(policy)
    check_node(node)
    assert decode_policy(node) == policy
    assert decode_policy(unpack(pack(node), "a policy")) == policy


def test_a_node_is_a_dict_of_the_arguments() -> None:
    policy = policy_of(keep_last=3, keep_best=["a:b:min:2", "c:max:1"], keep_weekly=4)
    best, tags = [Tag.LIST, ["a:b:min:2", "c:max:1"]], [Tag.LIST, ["*"]]
    expected = [["keep_last", 3], ["keep_best", best], ["keep_weekly", 4], ["keep_tags", tags]]
    assert encode_policy(policy) == [Tag.DICT, expected]


NO_TAGS = ["keep_tags", [2, []]]
MALFORMED: dict[str, Any] = {
    "nil": None,
    "a text": "keep_last 3",
    "a list": [2, [3]],
    "an ordered dict": [4, [["keep_last", 3], NO_TAGS]],
    "a Python dict": {"keep_last": 3},
    "a reference": [0, bytes(32)],
    "an empty list": [],
    "a tag alone": [1],
    "a key without a value": [1, [["keep_last"]]],
    "an empty list as tags": [1, [["keep_last", 3], ["keep_tags", []]]],
    "nothing in it": [1, []],
    "tags alone": [1, [NO_TAGS]],
    "no tags": [1, [["keep_last", 3]]],
    "tags first": [1, [NO_TAGS, ["keep_last", 3]]],
    "a rule twice": [1, [["keep_last", 3], ["keep_last", 3], NO_TAGS]],
    "an unknown rule": [1, [["keep_last", 3], ["keep_monthly", 3], NO_TAGS]],
    "an int as a key": [1, [["keep_last", 3], [7, 3], NO_TAGS]],
    "a rule that is nil": [1, [["keep_last", 3], ["keep_every", None], NO_TAGS]],
    "a count of 0": [1, [["keep_last", 0], NO_TAGS]],
    "a boolean": [1, [["keep_last", True], NO_TAGS]],
    "a float": [1, [["keep_last", 3.0], NO_TAGS]],
    "a big int": [1, [["keep_last", [11, False, b"\x80" + bytes(7)]], NO_TAGS]],
    "a best that is a text": [1, [["keep_best", "loss:min:3"], NO_TAGS]],
    "bests in a tuple": [1, [["keep_best", [3, ["loss:min:3"]]], NO_TAGS]],
    "bests in a dict": [1, [["keep_best", [1, [["loss:min:3", 1]]]], NO_TAGS]],
    "no bests": [1, [["keep_last", 3], ["keep_best", [2, []]], NO_TAGS]],
    "a best with a zero in front": [1, [["keep_best", [2, ["loss:min:03"]]], NO_TAGS]],
    "a best without a count": [1, [["keep_best", [2, ["loss:min"]]], NO_TAGS]],
    "a best that is a list": [1, [["keep_best", [2, [[2, ["loss", "min", 3]]]]], NO_TAGS]],
    "a best twice": [1, [["keep_best", [2, ["loss:min:3", "loss:min:4"]]], NO_TAGS]],
    "tags that are a text": [1, [["keep_last", 3], ["keep_tags", "*"]]],
    "a tag that is no text": [1, [["keep_last", 3], ["keep_tags", [2, [3]]]]],
    "an empty tag": [1, [["keep_last", 3], ["keep_tags", [2, [""]]]]],
}


def test_the_node_that_the_malformed_ones_differ_from_is_a_policy() -> None:
    assert decode_policy([1, [["keep_last", 3], NO_TAGS]]) == policy_of(keep_last=3, keep_tags=[])
    assert decode_policy([1, [["keep_best", [2, ["loss:min:3"]]], NO_TAGS]]).best == (Best("loss", "min", 3),)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_policy_is_corrupt(name: str) -> None:
    with pytest.raises(Corrupt):
        decode_policy(MALFORMED[name])


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=4), st.text(max_size=4))
texts = st.one_of(scalars, st.sampled_from(["loss:min:3", "loss:max:1", "*", "keep_last", "keep_best", "keep_tags"]))
nodes = st.recursive(
    texts,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(st.integers(0, 15), st.lists(st.one_of(inner, st.lists(inner, max_size=2)), max_size=4)).map(list),
    ),
    max_leaves=12,
)
rules = st.tuples(st.sampled_from(["keep_last", "keep_best", "keep_every", "keep_daily", "keep_tags", "keep"]), nodes)


@given(st.one_of(nodes, st.lists(rules.map(list), max_size=4).map(lambda pairs: [1, pairs])))
def test_any_node_is_a_policy_or_corrupt(node: Any) -> None:
    try:
        policy = decode_policy(node)
    except Corrupt:
        return
    assert encode_policy(policy) == node
