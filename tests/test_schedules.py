"""Clients that race on one store in every order that a seed can think of: nothing that is named is ever missing.

CAS_TEST_SCHEDULES schedules are run (5,000), from the seed CAS_TEST_SEED on (0). A failure prints its seed and all
calls in order; `play(seed)` runs that one again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from schedules.memory import MemoryBackend
from schedules.play import Failure, play

from cas.backend import Backend
from cas.branches import Branches
from cas.errors import Corrupt, Exists, Invalid, NotFound
from cas.fence import condemn
from cas.gc import Collector
from cas.local import LocalBackend
from cas.pack import PackId
from cas.repack import Repacker

SCHEDULES = int(os.environ.get("CAS_TEST_SCHEDULES", "5000"))
FIRST = int(os.environ.get("CAS_TEST_SEED", "0"))
CHUNKS = 8
SLIPS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {}
"""Rules of the protocol, each with a change to the code that breaks it."""


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_schedule_loses_anything(chunk: int) -> None:
    for seed in range(FIRST + chunk, FIRST + SCHEDULES, CHUNKS):
        play(seed)


def test_a_seed_gives_the_same_calls_again() -> None:
    threads = threading.active_count()
    first = [play(seed) for seed in range(FIRST, FIRST + 5)]
    assert [play(seed) for seed in range(FIRST, FIRST + 5)] == first
    assert len({tuple(calls) for calls in first}) == 5
    assert threading.active_count() == threads


# -- each rule is needed, and its breach is found -----------------------------------------------------------------


def slip(change: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    SLIPS[change.__name__] = change
    return change


@slip
def condemned_packs_are_not_heeded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("cas.catalog.Catalog.observe", lambda catalog, root: None)


@slip
def a_commit_does_not_ask_what_was_condemned_since(patch: pytest.MonkeyPatch) -> None:
    advance: Any = Branches.advance

    def careless(branches: Any, base: Any, commit: Any, epoch: int, why: str) -> Any:
        return advance(branches, base, commit, branches._roots.current().epoch, why)

    patch.setattr(Branches, "advance", careless)


@slip
def a_ref_to_what_was_collected_is_not_checked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("cas.closure.check", lambda *arguments: None)


@slip
def a_record_that_exists_is_taken_for_anothers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("cas.log.Log.settle", lambda log, record: False)


def publishing_otherwise(patch: pytest.MonkeyPatch, otherwise: Callable[[Any, Any, Any], Any]) -> None:
    """Let collectors call `otherwise` with themselves, the plan and the real `_publish`."""
    publish: Any = Collector._publish
    patch.setattr(Collector, "_publish", lambda collector, plan: otherwise(collector, plan, publish))


def with_survey(plan: Any, **changes: Any) -> Any:
    return replace(plan, survey=replace(plan.survey, **changes))


@slip
def packs_are_deleted_before_they_are_condemned(patch: pytest.MonkeyPatch) -> None:
    def hasty(collector: Any, plan: Any, publish: Any) -> Any:
        collector._delete(collector._files(plan))
        return publish(collector, plan)

    publishing_otherwise(patch, hasty)


@slip
def a_collector_that_lost_the_race_does_not_mark_again(patch: pytest.MonkeyPatch) -> None:
    def stubborn(collector: Any, plan: Any, publish: Any) -> Any:
        while not publish(collector, plan):
            plan = with_survey(plan, root=collector.surveyor.roots.current())
        return True

    publishing_otherwise(patch, stubborn)


@slip
def the_floor_of_undo_is_not_raised(patch: pytest.MonkeyPatch) -> None:
    publishing_otherwise(patch, lambda collector, plan, publish: publish(collector, with_survey(plan, floor=1)))


@slip
def a_repack_gives_up_what_it_wrote_anew_without_another_look(patch: pytest.MonkeyPatch) -> None:
    def hasty(repacker: Any, sources: set[PackId], *_: Any) -> set[PackId]:
        backend, roots = repacker.surveyor.backend, repacker.surveyor.roots
        while not condemn(backend, roots, roots.current(), roots.current().floor, sources, "repack"):
            pass
        return sources

    patch.setattr(Repacker, "_condemn", hasty)


@pytest.mark.parametrize("name", SLIPS)
def test_a_broken_rule_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    SLIPS[name](monkeypatch)
    with pytest.raises(Failure):
        for seed in range(1000):
            play(seed)


# -- the store in memory keeps the contract of the local one ------------------------------------------------------


@pytest.fixture(params=["memory", "local"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return LocalBackend(tmp_path) if request.param == "local" else MemoryBackend("memory", lambda: 5.0)


def test_files_of_both_backends_are_made_once_and_stay(backend: Backend) -> None:
    backend.create("a/b/one", b"0123456789")
    with pytest.raises(Exists):
        backend.create("a/b/one", b"other")
    file = backend.new_file("a/two", 100)
    file.write(b"ab")
    assert not backend.exists("a/two")
    file.write(memoryview(b"cd"))
    assert (file.size, file.congested) == (4, False)
    file.publish()
    file.abandon()
    taken = backend.new_file("a/two", 100)
    with pytest.raises(Exists):
        taken.publish()
    backend.new_file("a/three", 0).abandon()
    assert [(info.name, info.size) for info in backend.list("a")] == [("a/b/one", 10), ("a/two", 4)]
    assert backend.list("a/b")[0].modified > 0
    assert backend.list("b") == []
    backend.delete("a/two")
    with pytest.raises(NotFound):
        backend.delete("a/two")
    assert not backend.exists("a/two")


def test_both_backends_read_whole_files_ranges_and_ends(backend: Backend) -> None:
    backend.create("one", b"0123456789")
    assert backend.read("one") == b"0123456789"
    assert backend.read("one", 8, 5) == b"89"
    assert backend.read("one", 3, 2) == b"34"
    assert backend.read("one", 20) == b""
    assert backend.tail("one", 3) == (b"789", 10)
    assert backend.tail("one", 30) == (b"0123456789", 10)
    first, second = bytearray(2), bytearray(3)
    backend.readinto("one", 4, [memoryview(first), memoryview(second)])
    assert (first, second) == (b"45", b"678")
    with pytest.raises(Corrupt):
        backend.readinto("one", 8, [memoryview(bytearray(3))])
    for call in (backend.read, lambda name: backend.tail(name, 1), lambda name: backend.readinto(name, 0, [])):
        with pytest.raises(NotFound):
            call("missing")
    for name in ("../one", "a//b", "/one", "."):
        with pytest.raises(Invalid):
            backend.read(name)
    backend.replace("root", b"1")
    backend.replace("root", b"2")
    assert backend.read("root") == b"2"
    backend.sync("")
    backend.sync("nowhere")
    backend.sweep(0)
    backend.close()


def test_the_store_in_memory_refuses_what_no_caller_may_do() -> None:
    backend = MemoryBackend("memory", lambda: 5.0)
    backend.create("packs/one", b"1")
    with pytest.raises(AssertionError, match="immutable"):
        backend.replace("packs/one", b"2")
    backend.delete("packs/one")
    with pytest.raises(AssertionError, match="used again"):
        backend.create("packs/one", b"1")
    file = backend.new_file("packs/two", 0)
    file.publish()
    with pytest.raises(AssertionError, match="written to"):
        file.write(b"1")
