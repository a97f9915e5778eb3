"""Trying again: only what may pass, for a bounded time, with growing pauses that differ from one caller to the next."""

from __future__ import annotations

import time

import pytest

from cas import retries
from cas.retries import Patience, with_retries


class Flaky:
    """Fails `failures` times with `error`, then returns 7."""

    def __init__(self, failures: float, error: type[Exception] = TimeoutError) -> None:
        self.failures = failures
        self.error = error
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error(f"number {self.calls}")
        return 7


def is_timeout(error: Exception) -> bool:
    return isinstance(error, TimeoutError)


def test_what_passes_is_tried_until_it_succeeds() -> None:
    flaky = Flaky(3)
    assert with_retries(flaky, is_timeout) == 7
    assert flaky.calls == 4


def test_what_does_not_pass_is_raised_at_once() -> None:
    flaky = Flaky(3, PermissionError)
    with pytest.raises(PermissionError, match="number 1"):
        with_retries(flaky, is_timeout)
    assert flaky.calls == 1


def test_a_later_failure_that_does_not_pass_ends_it() -> None:
    errors = iter([TimeoutError(), PermissionError("refused")])

    def attempt() -> None:
        raise next(errors)

    with pytest.raises(PermissionError, match="refused"):
        with_retries(attempt, is_timeout)


def test_patience_ends_and_the_last_failure_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PATIENCE", 0.5)
    flaky, begin = Flaky(float("inf")), time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        with_retries(flaky, is_timeout)
    assert 0.5 <= time.monotonic() - begin < 5
    assert str(caught.value) == f"number {flaky.calls}"
    assert 3 <= flaky.calls <= 12


def test_patience_counts_from_the_first_failure_not_from_the_first_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PATIENCE", 0.3)
    calls = []

    def slow() -> int:
        calls.append(time.monotonic())
        if len(calls) == 1:
            time.sleep(0.5)
            raise TimeoutError
        return len(calls)

    assert with_retries(slow, is_timeout) == 2


def test_requests_that_share_their_patience_end_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PATIENCE", 0.3)
    patience = Patience()
    with pytest.raises(TimeoutError):
        with_retries(Flaky(float("inf")), is_timeout, patience)
    second = Flaky(float("inf"))
    with pytest.raises(TimeoutError):
        with_retries(second, is_timeout, patience)
    assert second.calls == 1


def test_pauses_grow_to_a_limit_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    first = Patience()
    while first.wait():
        pass
    mine = list(pauses)
    assert sum(mine) == pytest.approx(retries.PATIENCE)
    assert mine[0] <= 0.1
    assert max(mine) <= 8
    assert mine[3] > 2 * mine[0]
    pauses.clear()
    second = Patience()
    while second.wait():
        pass
    assert pauses != mine


def test_a_person_hears_once_that_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(retries, "_told_at", float("-inf"))
    for patience in (Patience(), Patience()):  # two threads that meet the same trouble
        while patience.wait() and clock[0] < 1030:
            pass
    (told,) = [record.getMessage() for record in caplog.records]
    assert "tried again for another 5" in told
