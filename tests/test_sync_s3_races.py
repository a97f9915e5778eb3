"""Moving commits to and from a bucket while processes are killed, and while others push, collect and repack there."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from buckets import Bucket, carried
from faults import children
from faults.children import Child
from faults.proxy import FaultProxy
from faults.stores import errors, quick_folder, same, state
from servers.s3 import S3Server
from test_sync_s3 import noise

import cas
from cas.errors import CasError, RefConflict

MIB = 1 << 20
KILLS = 10
SECONDS = float(os.environ.get("CAS_TEST_SECONDS", "15"))


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


@pytest.fixture
def bucket(real_s3_server: S3Server, folder: Path) -> Bucket:
    return Bucket(real_s3_server, folder / "cache")


# -- killed ---------------------------------------------------------------------------------------------------------


def killed_on_the_way(work: Callable[[], None], proxy: FaultProxy, total: int, dice: random.Random) -> int:
    """Do it in processes killed at moments all over the transfer of `total` bytes, and then to the end.

    Returns the bytes of all bodies that passed.
    """
    proxy.requests.clear()
    for moment in sorted(dice.randrange(total) for _ in range(KILLS)):
        child = children.start(work)
        while carried(list(proxy.requests)) < moment:
            assert not ended(child), "it was done before it was killed"
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.3))
        child.kill()
        child.end()
    children.start(work).result()
    return carried(list(proxy.requests))


def ended(child: Child) -> bool:
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@pytest.mark.slow
def test_what_is_killed_at_any_moment_goes_on(fault_proxy: FaultProxy, folder: Path) -> None:
    """In all at most 1.1 times the bytes plus 16 MiB for each kill, out and in."""
    bucket, dice = (
        Bucket(fault_proxy.server, folder / "cache"),
        random.Random(int(os.environ.get("CAS_TEST_SEED", "0"))),
    )
    bucket.open(create=True).close()
    with cas.init(folder / "here") as here:
        for number in range(2):
            made = here.commit({f"t{n}": noise(100 * number + n, 8 * MIB) for n in range(16)}, step=number)
        total, refs = 2 * made.stored, here.refs()
    most = 1.1 * total + KILLS * 16 * MIB

    def push() -> None:
        with cas.open(folder / "here", cache=folder / "cache") as store:
            store.push(bucket.url(), storage_options=bucket.options)

    def clone() -> None:
        cas.clone(bucket.url(), folder / "copy", storage_options=bucket.options, cache=folder / "other").close()

    sent = killed_on_the_way(push, fault_proxy, total, dice)
    assert sent <= most
    with bucket.open(cache=folder / "fresh") as there:
        assert there.refs() == refs
        assert errors(there.fsck()) == []
    received = killed_on_the_way(clone, fault_proxy, total, dice)
    assert received <= most
    print(f"sent {sent / total:.2f} of {total}, received {received / total:.2f}")
    with cas.open(folder / "copy") as copy:
        assert copy.refs()["branches"] == refs["branches"]
        assert errors(copy.fsck(data=True)) == []


# -- beside others --------------------------------------------------------------------------------------------------


def test_of_two_that_push_one_branch_one_wins(bucket: Bucket, folder: Path) -> None:
    bucket.open(create=True).close()
    with bucket.open() as there:
        there.commit(state(0), step=0)
    for name in ("a", "b"):
        cas.clone(bucket.url(), folder / name, storage_options=bucket.options, cache=folder / f"cache-{name}").close()

    def push(name: str, step: int, gate: children.Gate) -> str:
        with cas.open(folder / name, cache=folder / f"cache-{name}") as store:
            store.load("main")
            store.commit(state(step), step=step)
            gate.wait()
            try:
                store.push(storage_options=bucket.options)
            except RefConflict as error:
                return str(error)
            return "pushed"

    for turn in range(1, 5):
        gate = children.Gate()
        pushers = {name: children.start(push, name, 10 * turn + at, gate) for at, name in enumerate("ab")}
        with children.killed_at_the_end(list(pushers.values())):
            for pusher in pushers.values():
                gate.wait_for(pusher)
            gate.open()
            said = {name: pusher.result() for name, pusher in pushers.items()}
        winner = "a" if said["a"] == "pushed" else "b"
        loser = "ab".replace(winner, "")
        assert said[winner] == "pushed"
        assert "pull first" in said[loser]
        give_way(bucket, folder, winner, loser, turn)
    with bucket.open(cache=folder / "fresh") as there:
        for held in [*there.log("main"), *(there.resolve(f"lost{turn}") for turn in range(1, 5))]:
            assert same(there.load(held.id), state(held.step or 0))
        assert len(list(there.log("main"))) == 5
        assert errors(there.fsck(data=True)) == []


def give_way(bucket: Bucket, folder: Path, winner: str, loser: str, turn: int) -> None:
    """The bucket has the winner's commit; the loser's goes to a branch of its own, and it goes on from the other."""
    with cas.open(folder / winner) as store:
        tip = store.resolve("main").id
    with cas.open(folder / loser, cache=folder / f"cache-{loser}") as store:
        store.push(None, f"main:lost{turn}", storage_options=bucket.options)
        store.fetch(storage_options=bucket.options)
        assert store.resolve("origin/main").id == tip
        store.branch("main", "origin/main", force=True)


def drifting(step: int) -> dict[str, Any]:
    return {**state(step), "w": noise(step % 40, 300_000)}


def write(bucket: Bucket, cache: Path, end: float) -> int:
    """Commit, leave garbage, prune; how many commits."""
    with bucket.open(cache=cache) as store:
        for step in itertools.count(1):
            if time.monotonic() > end:
                return step
            store.load("main", default=None)
            store.commit(drifting(step), step=step, delta="parent")
            store.commit({"garbage": noise(1000 + step, 200_000)}, branch="gone")
            store.delete_branch("gone")
            if step % 5 == 4:
                store.prune("main", keep_last=3)
    raise AssertionError("not reached")


def collect(bucket: Bucket, cache: Path, end: float) -> int:
    with bucket.open(cache=cache) as store:
        return sum(store.gc(grace=0, expire=0).deleted for _ in until(end))


def repack(bucket: Bucket, cache: Path, end: float) -> int:
    with bucket.open(cache=cache) as store:
        return sum(store.repack(expire=0).packs for _ in until(end))


def pull(bucket: Bucket, cache: Path, end: float, rate: float | None = None) -> tuple[int, list[str]]:
    """Pull into one new store after the other; how many, and what went wrong on the way."""
    said: list[str] = []
    options: dict[str, Any] = {"storage_options": bucket.options, "limit_rate": rate}
    for turn in until(end):
        with cas.open(f"{cache}-{turn}", create=True, cache=cache) as store:
            said += tries(lambda store=store: store.pull(bucket.url(), "main", **options))
            tip = store.resolve("main")
            assert same(store.load(tip.id), drifting(tip.step or 0))
            assert errors(store.fsck(data=True)) == []
    return turn, said


def pull_slowly(bucket: Bucket, cache: Path, end: float) -> tuple[int, list[str]]:
    """So that packs go while they are read."""
    return pull(bucket, cache, end, MIB)


def tries(work: Callable[[], object]) -> list[str]:
    """Do it until it is done; what was said before."""
    said: list[str] = []
    while True:
        try:
            work()
            return said
        except CasError as error:
            said.append(f"{type(error).__name__}: {error}")
            assert len(said) < 5, said


def until(end: float) -> Iterator[int]:
    return itertools.takewhile(lambda _: time.monotonic() < end, itertools.count(1))


@pytest.mark.slow
def test_a_pull_while_the_bucket_is_collected_and_repacked(bucket: Bucket, folder: Path) -> None:
    """Every one ends well or with one sentence, and then the next ends well."""
    with bucket.open(create=True) as store:
        store.commit(drifting(0), step=0)
    end = time.monotonic() + SECONDS
    works = {"writer": write, "collector": collect, "repacker": repack, "puller": pull, "slow puller": pull_slowly}
    running = {name: children.start(work, bucket, folder / name, end) for name, work in works.items()}
    with children.killed_at_the_end(list(running.values())):
        done: dict[str, Any] = {name: child.result(SECONDS + 120) for name, child in running.items()}
    print(done)
    assert done["writer"] > 5
    assert min(done["collector"], done["repacker"]) > 0
    for turns, said in (done["puller"], done["slow puller"]):
        assert turns > 1
        assert not any("\n" in text for text in said)
