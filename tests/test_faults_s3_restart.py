"""The S3 server killed with SIGKILL, and started again, while a store in it is written to."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.s3_bench import check_sentence
from faults.stores import errors, same
from servers.ceph import Cluster

import cas
from cas.errors import CasError
from cas.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("restart")]

MIB = 1 << 20
COMMITS = 6
KILLS = 2
LONG, SHORT = 120.0, 0.5
"""Seconds of patience: more than a restart takes, and less."""


def content(number: int) -> dict[str, Any]:
    """8 MiB that no other state has."""
    return {"noise": np.random.default_rng(number).integers(0, 255, 8 * MIB, np.uint8), "step": number}


@pytest.fixture
def server(restartable_s3_server: Cluster) -> Iterator[Cluster]:
    """Running before and after the test."""
    restartable_s3_server.start()
    yield restartable_s3_server
    restartable_s3_server.start()


@pytest.fixture(scope="module")
def bucket(restartable_s3_server: Cluster) -> str:
    """Made before all kills: Ceph would wait for the dead before it makes another."""
    return restartable_s3_server.server.bucket()


@pytest.fixture
def place(server: Cluster, bucket: str, tmp_path: Path) -> dict[str, Any]:
    """A new, empty store in the bucket, for `cas.open`."""
    found = {"storage_options": server.server.options, "cache": tmp_path / "cache"}
    found["path"] = server.server.url(bucket, tmp_path.name)
    cas.init(block_size=1 << 20, **found).close()
    return found


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Store]:
    with cas.init(tmp_path / "local", block_size=1 << 20) as store:
        for number in range(COMMITS):
            store.commit(content(number), step=number, codec="raw")
        yield store


def check_whole(place: dict[str, Any], fresh: Path, steps: list[int]) -> None:
    """All that was acknowledged is there, seen by one who knows nothing yet."""
    with cas.open(**{**place, "cache": fresh}) as store:
        assert [held.step for held in store.log("main")][::-1] == steps
        for held in store.log("main"):
            assert same(store.load(held.id), content(held.step)), f"{held} does not load as it was made"
        assert errors(store.fsck(data=True)) == []


class Push:
    """A push in a thread; more than half of it is done when `halfway` returns."""

    def __init__(self, local: Store, place: dict[str, Any], pool: ThreadPoolExecutor) -> None:
        self._halfway = threading.Event()
        self._local, self._place = local, place
        self.result: Future[cas.Synced] = pool.submit(self._run)

    def _run(self) -> cas.Synced:
        try:
            return self._local.push(
                self._place["path"],
                "main",
                limit_rate=20 * MIB,
                storage_options=self._place["storage_options"],
                progress=self._progress,
            )
        finally:
            self._halfway.set()

    def _progress(self, objects: int, of_objects: int, nbytes: int, of_bytes: int) -> None:
        if of_bytes and nbytes > of_bytes * 0.6:
            self._halfway.set()

    def halfway(self) -> None:
        self._halfway.wait()
        assert not self.result.done(), "it was over before the server was killed"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_a_push_goes_on_when_the_server_comes_back(
    server: Cluster,
    place: dict[str, Any],
    local: Store,
    pool: ThreadPoolExecutor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cas.retries.PATIENCE", LONG)
    push = Push(local, place, pool)
    push.halfway()
    server.kill()
    server.start()
    assert push.result.result().refs
    check_whole(place, tmp_path / "fresh", list(range(COMMITS)))


def test_a_push_that_gave_up_goes_on_where_it_was(
    server: Cluster,
    place: dict[str, Any],
    local: Store,
    pool: ThreadPoolExecutor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cas.retries.PATIENCE", SHORT)
    push = Push(local, place, pool)
    push.halfway()
    server.kill()
    with pytest.raises(CasError) as caught:
        push.result.result()
    check_sentence(str(caught.value), "testsecret", "testkey")
    assert "the push to s3://" in str(caught.value)
    assert "run it again to go on" in str(caught.value)
    server.start()
    monkeypatch.setattr("cas.retries.PATIENCE", LONG)
    again = local.push(place["path"], "main", storage_options=place["storage_options"])
    assert again.refs
    assert again.sent < 0.8 * COMMITS * 8 * MIB, "what was sent before was sent again"
    check_whole(place, tmp_path / "fresh", list(range(COMMITS)))


def test_a_commit_goes_on_when_the_server_comes_back(
    server: Cluster,
    place: dict[str, Any],
    pool: ThreadPoolExecutor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server is away when the commit begins, and when it ends for all that the commit knows."""
    monkeypatch.setattr("cas.retries.PATIENCE", LONG)
    with cas.open(**place) as store:
        store.commit(content(0), step=0)
        server.kill()
        made = pool.submit(store.commit, content(1), step=1)
        server.start()
        made.result()
    check_whole(place, tmp_path / "fresh", [0, 1])


def test_nothing_acknowledged_is_lost(
    server: Cluster, place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cas.retries.PATIENCE", SHORT)
    over = threading.Event()
    done: list[int] = []
    said: list[str] = []

    def commit_all_the_time() -> None:
        number = 0
        while not over.is_set():
            try:
                with cas.open(**place) as store:
                    store.load("main", default=None)
                    while not over.is_set():
                        number += 1
                        store.commit(content(number), step=number)
                        done.append(number)
            except (CasError, OSError) as error:
                said.append(str(error))
                time.sleep(0.2)

    dice = random.Random(7)
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(commit_all_the_time)
        try:
            for _ in range(KILLS):
                _wait_until_longer(done)
                time.sleep(dice.uniform(0, 0.5))
                server.kill()
                server.start()
        finally:
            over.set()
        writer.result()
    for error in said:
        check_sentence(error, "testsecret", "testkey")
    with cas.open(**{**place, "cache": tmp_path / "fresh"}) as store:
        steps = [held.step for held in store.log("main")][::-1]
    assert set(done) <= set(steps), f"acknowledged and gone: {set(done) - set(steps)}"
    assert steps == sorted(set(steps))
    assert said, "no kill was felt"
    check_whole(place, tmp_path / "fresh", steps)


def _wait_until_longer(done: list[int], seconds: float = 90) -> None:
    deadline, before = time.monotonic() + seconds, len(done)
    while len(done) == before:
        assert time.monotonic() < deadline, "nothing was committed for a long time"
        time.sleep(0.02)
