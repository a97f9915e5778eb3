"""Numbering of chains: whatever was planned, what is written decodes, and so does all that stays as it is."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cas.block import MAX_CHAIN, ObjectId
from cas.dtypes import DTYPES
from cas.succession import Heir, Succession

SUBJECT = (("w",), DTYPES["float32"])


def name(number: int) -> ObjectId:
    return ObjectId(number.to_bytes(32, "big"))


@st.composite
def plans(draw: Any) -> tuple[dict[ObjectId, Heir], dict[ObjectId, int], dict[ObjectId, int]]:
    """Heirs, newest first, the numbers of rows that stay, and limits that rows which stay set."""
    count = draw(st.integers(1, 40))
    stays = {name(1000 + n): draw(st.integers(0, MAX_CHAIN)) for n in range(draw(st.integers(0, 5)))}
    heirs: dict[ObjectId, Heir] = {}
    for number in range(count):
        known = [*heirs, *stays, None]
        linear = name(number - 1) if number else None
        base = draw(st.one_of(st.just(linear), st.sampled_from(known)))
        heirs[name(number)] = Heir(SUBJECT, base, kin=draw(st.booleans()) and number < 5)
    limited = draw(st.lists(st.sampled_from(list(heirs)), max_size=5))
    return heirs, stays, {item: draw(st.integers(0, MAX_CHAIN - 1)) for item in limited}


@given(plans())
@settings(max_examples=400, deadline=None)
def test_every_chain_number_is_above_that_of_its_base_and_within_all_limits(plan: Any) -> None:
    heirs, stays, limits = plan
    succession = Succession(None, {}, lambda *_: None, lambda _: True, heirs=heirs)  # type: ignore[arg-type]
    succession.number(limits, stays.get)
    for item, heir in heirs.items():
        assert 0 <= heir.chain <= MAX_CHAIN
        assert heir.chain <= limits.get(item, MAX_CHAIN)
        if heir.chain:
            below = heirs[heir.base].chain if heir.base in heirs else stays[heir.base]
            assert below < heir.chain


@given(st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_a_long_history_is_whole_at_every_ninth_from_the_oldest_on(count: int) -> None:
    heirs = {name(n): Heir(SUBJECT, name(n - 1) if n else None, kin=n == 0) for n in range(count)}
    Succession(None, {}, lambda *_: None, lambda _: True, heirs=heirs).number({}, {}.get)  # type: ignore[arg-type]
    oldest_first = [heir.chain for heir in reversed(heirs.values())]
    expected = [MAX_CHAIN - n % (MAX_CHAIN + 1) for n in range(count)]
    expected[-1] = 0
    assert oldest_first == expected


@given(st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_what_was_numbered_stays_when_newer_commits_come(before: int, after: int) -> None:
    """Two repacks: the second numbers the tip of the first and what came since, beside what the first wrote."""
    first = {name(n): Heir(SUBJECT, name(n - 1) if n else None, kin=n == 0) for n in range(before)}
    Succession(None, {}, lambda *_: None, lambda _: True, heirs=first).number({}, {}.get)  # type: ignore[arg-type]
    limits = {heir.base: heir.chain - 1 for heir in first.values() if heir.chain and heir.base is not None}
    newer = [name(100 + n) for n in range(after)]
    second = {item: Heir(SUBJECT, newer[n - 1] if n else None, kin=n == 0) for n, item in enumerate(newer)}
    second[name(0)] = Heir(SUBJECT, newer[-1], kin=False)
    Succession(None, {}, lambda *_: None, lambda _: True, heirs=second).number(limits, {}.get)  # type: ignore[arg-type]
    if name(1) in first and first[name(1)].chain:
        assert second[name(0)].chain < first[name(1)].chain
    assert second[newer[0]].chain == 0
