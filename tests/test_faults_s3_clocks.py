"""Clocks of this machine and of the S3 service, a day apart: a clear sentence, and nothing that is needed goes."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from faults import children
from faults.proxy import Fault, FaultProxy
from faults.s3_bench import check_sentence
from faults.stores import commit, errors, numbers, same, state
from servers.s3 import S3Server

import cas
from cas.errors import CasError
from cas.gc import Collected

DAY = 86_400.0
APART = pytest.mark.parametrize("apart", [DAY, -DAY], ids=["ahead", "behind"])
HELD = 4.0
"""Seconds for which a request without an answer holds a writer."""


@pytest.fixture
def place(real_s3_server: S3Server, tmp_path: Path) -> dict[str, Any]:
    """A store with two commits, for `cas.open`."""
    url = real_s3_server.url(real_s3_server.bucket(), "run")
    found = {"path": url, "storage_options": real_s3_server.options, "cache": tmp_path / "cache"}
    with cas.init(block_size=4096, **found) as store:
        commit(store, 0)
        commit(store, 1)
    return found


def check_whole(place: dict[str, Any], fresh: Path, steps: list[int]) -> None:
    with cas.open(**{**place, "cache": fresh}) as store:
        assert numbers(store) == steps
        for held in store.log("main"):
            assert same(store.load(held.id), state(held.step)), f"{held} does not load as it was made"
        assert errors(store.fsck(data=True)) == []


# -- when a request is signed -----------------------------------------------------------------------------------


def _commit_as_signed(place: dict[str, Any], apart: float) -> str:
    """In a child whose requests are signed at another time: what it is told."""
    import datetime

    import botocore.auth
    from botocore.compat import get_current_datetime

    def shifted(**options: Any) -> Any:
        return get_current_datetime(**options) + datetime.timedelta(seconds=apart)

    with patch.object(botocore.auth, "get_current_datetime", shifted):
        try:
            with cas.open(**place) as store:
                commit(store, 2)
        except (CasError, OSError) as error:
            return str(error)
    return ""


@APART
def test_a_clock_that_the_service_refuses_is_said_at_once(place: dict[str, Any], tmp_path: Path, apart: float) -> None:
    begin = time.monotonic()
    said = children.run(_commit_as_signed, {**place, "cache": tmp_path / "other"}, apart)
    assert time.monotonic() - begin < 10
    check_sentence(said, "testsecret", "testkey")
    assert re.search("s3://.* the clock of this machine is wrong .RequestTimeTooSkewed.: set it", said), said
    check_whole(place, tmp_path / "fresh", [0, 1])


# -- what the store itself takes from a clock -------------------------------------------------------------------


def _with_clock(apart: float, work: Any, *args: Any) -> Any:
    """In a child whose clock says another day."""
    real = time.time
    with patch("time.time", lambda: real() + apart):
        return work(*args)


def _gc(place: dict[str, Any], grace: float, dry_run: bool = False) -> Collected:
    with cas.open(**place) as store:
        return store.gc(grace=grace, expire=0, dry_run=dry_run)


def _commit(place: dict[str, Any], number: int) -> None:
    with cas.open(**place) as store:
        store.load("main")
        commit(store, number)


def leave_a_pack(place: dict[str, Any], proxy: FaultProxy) -> None:
    """A commit that was refused when it was all but done: its pack is there, and nothing names it."""
    proxy.faults[:] = [Fault("403", at="put-record")]
    with cas.open(**{**place, "storage_options": proxy.options}) as store:
        store.load("main")
        with pytest.raises(CasError, match="AccessDenied"):
            store.commit({"noise": np.random.default_rng(1).bytes(10_000)}, step=2)
    proxy.faults.clear()


@APART
@pytest.mark.slow
def test_what_is_young_is_so_by_the_clock_of_the_service(
    place: dict[str, Any], fault_proxy: FaultProxy, tmp_path: Path, apart: float
) -> None:
    leave_a_pack(place, fault_proxy)
    other = {**place, "cache": tmp_path / "other"}
    planned = children.run(_with_clock, apart, _gc, other, 600.0, True)
    assert (planned.young, planned.deleted) == (1, 0)
    time.sleep(2)
    done = children.run(_with_clock, apart, _gc, other, 1.0)
    assert (done.young, done.deleted) == (0, 1)
    check_whole(place, tmp_path / "fresh", [0, 1])


@APART
@pytest.mark.slow
def test_a_running_writer_loses_nothing_to_a_collector_of_another_day(
    place: dict[str, Any], fault_proxy: FaultProxy, tmp_path: Path, apart: float
) -> None:
    """The writer's packs are there and its record is on the way when the collection deletes all that nothing names."""
    options = {**fault_proxy.options, "config_kwargs": {"read_timeout": HELD}}
    with cas.open(**{**place, "storage_options": options}) as store, ThreadPoolExecutor(1) as pool:
        store.load("main")
        fault = Fault("timeout", at="put-record")
        fault_proxy.faults.append(fault)
        made = pool.submit(commit, store, 2)
        while not fault.hits:
            assert not made.done(), "the record was not held"
            time.sleep(0.01)
        time.sleep(1)  # S3 tells ages to a second
        done = children.run(_with_clock, apart, _gc, {**place, "cache": tmp_path / "other"}, 0.0)
        assert done.deleted >= 1, "the collection took nothing from the writer"
        assert not made.done(), "the writer was not running any more"
        made.result()
        assert same(store.load("main"), state(2))
    check_whole(place, tmp_path / "fresh", [0, 1, 2])


def test_writers_of_different_days_take_turns(place: dict[str, Any], tmp_path: Path) -> None:
    for number, apart in enumerate((DAY, -DAY, 0.0, DAY), 2):
        children.run(_with_clock, apart, _commit, {**place, "cache": tmp_path / f"{number}"}, number)
    children.run(_with_clock, -DAY, _gc, {**place, "cache": tmp_path / "other"}, 0.0)
    check_whole(place, tmp_path / "fresh", [0, 1, 2, 3, 4, 5])
