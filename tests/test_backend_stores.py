"""Whole stores on every medium: what the backends promise is enough for all that a store does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import S3, SFTP, Place, place_of
from together import run_together

import cas
from cas.errors import Corrupt, Exists, NotFound
from cas.store import Store

RANDOM = np.random.default_rng(3)
FROZEN = RANDOM.standard_normal(200_000).astype(np.float32)


@pytest.fixture(params=["local", "memory", SFTP, S3])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    yield from place_of(request.param, request, tmp_path)


@pytest.fixture
def opened(place: Place, tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Opens the store, each time as another machine would: with a cache of its own, still empty."""
    stores: list[Store] = []

    def open_store() -> Store:
        cache = tmp_path / f"cache{len(stores)}"
        stores.append(cas.open(place.url, create=True, storage_options=place.options, cache=cache))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def state(step: int) -> dict[str, Any]:
    """A model in training: a frozen part, one that drifts, one that is new each time, small things."""
    drift = FROZEN[:100_000] * np.float32(1 + step / 10_000)
    new = np.random.default_rng(step).standard_normal(50_000).astype(np.float32)
    small = {f"layer{number}": np.full(100, step + number, np.float32) for number in range(30)}
    return {"frozen": FROZEN, "drift": drift, "new": new, "small": small, "step": step, "name": f"schritt {step} ü"}


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and found.tobytes() == expected.tobytes()
    return bool(found == expected)


def wrong(store: Store) -> list[str]:
    """What fsck finds, apart from the second copies that writers make who do not see each other."""
    return [finding.name for finding in store.fsck(data=True) if finding.severity != "info"]


def test_commits_load_on_another_machine(opened: Callable[[], Store]) -> None:
    here = opened()
    ids = [here.commit(state(step), step=step, delta="parent").id for step in range(4)]
    here.branch("side", ids[1])
    here.tag("v1", ids[2])
    there = opened()
    for rev, step in [("main", 3), ("main~3", 0), ("side", 1), ("v1", 2), (ids[0], 0)]:
        assert same(there.load(rev), state(step)), rev
    assert [commit.id for commit in there.log("main")] == ids[::-1]
    assert there.fsck(data=True) == []


def test_a_load_goes_on_where_another_commits(opened: Callable[[], Store]) -> None:
    here, there = opened(), opened()
    for step in range(3):
        here.commit(state(step), step=step)
        assert same(there.load("main"), state(step))
    there.commit(state(3), step=3)
    assert same(here.load("main"), state(3))


def test_two_stores_are_not_made_at_one_place(place: Place, opened: Callable[[], Store]) -> None:
    opened()
    with pytest.raises(Exists):
        cas.init(place.url, storage_options=place.options)


def test_a_place_without_a_store_is_not_found(place: Place, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cas init"):
        cas.open(place.url, storage_options=place.options, cache=tmp_path / "cache")


def test_writers_that_race_all_get_in(opened: Callable[[], Store]) -> None:
    stores = [opened() for _ in range(4)]

    def write(number: int) -> None:
        for step in range(3):
            stores[number].commit(state(100 * number + step), branch=f"run{number}", step=step)

    assert run_together([lambda number=number: write(number) for number in range(4)]) == [None] * 4
    reader = opened()
    for number in range(4):
        assert same(reader.load(f"run{number}"), state(100 * number + 2))
        assert same(reader.load(f"run{number}~2"), state(100 * number))
    assert wrong(reader) == []


def packs(store: Store) -> set[str]:
    return {info.name for info in store._backend.list("packs")}


def test_a_collection_frees_what_nobody_names(opened: Callable[[], Store]) -> None:
    store = opened()
    store.commit(state(1))
    store.branch("other", "main")
    before = packs(store)
    store.commit({"only here": RANDOM.standard_normal(100_000)}, branch="gone")
    added = packs(store) - before
    store.delete_branch("gone")
    collected = store.gc(grace=0, expire=0)
    assert collected.deleted == len(added)
    assert packs(store) == before
    reader = opened()
    assert same(reader.load("other"), state(1))
    assert wrong(reader) == []


def test_pruned_states_go_and_the_others_stay(opened: Callable[[], Store]) -> None:
    store = opened()
    for step in range(5):
        store.commit(state(step), step=step)
    store.prune("main", keep_last=2)
    store.gc(grace=0, expire=0)
    reader = opened()
    for step in (3, 4):
        assert same(reader.load(f"main@step:{step}"), state(step))
    with pytest.raises(NotFound, match="pruned"):
        reader.load("main@step:0")
    assert len(list(reader.log("main"))) == 5
    assert wrong(reader) == []


def test_a_repacked_store_holds_the_same_in_less(opened: Callable[[], Store]) -> None:
    store = opened()
    for step in range(4):
        store.commit(state(step), step=step, delta="none")
    size = sum(info.size for info in store._backend.list("packs"))
    store.repack(expire=0)
    store.gc(grace=0, expire=0)
    assert sum(info.size for info in store._backend.list("packs")) < size
    reader = opened()
    for step in range(4):
        assert same(reader.load(f"main@step:{step}"), state(step))
    assert wrong(reader) == []


def test_damage_is_named_and_never_returned(place: Place, opened: Callable[[], Store]) -> None:
    store = opened()
    store.commit(state(1))
    store.close()
    store = opened()
    name = max(store._backend.list("packs"), key=lambda info: info.size).name
    data = bytearray(store._backend.read(name, 0, 64 << 20))
    data[random.Random(1).randrange(1000, len(data) // 2)] ^= 1
    place.overwrite(name, bytes(data))
    reader = opened()
    with pytest.raises(Corrupt):
        reader.load("main")
    assert wrong(reader)
