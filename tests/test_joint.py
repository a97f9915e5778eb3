"""Commits by several ranks: what each stores, in the background, and from one commit to the next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from joint_jobs import numbers
from ranks import run
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import cas
from cas.errors import CasError
from cas.torch import PerRank

MIB = 1 << 20


def sharded(full: torch.Tensor, dim: int = 0) -> DTensor:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return distribute_tensor(full, mesh, [Shard(dim)], src_data_rank=None)


def packs(place: str | Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in Path(place, "packs").rglob("*") if path.is_file()}


class New:
    """The sizes of the packs that came since the last call, seen by rank 0 while all others wait."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._before = packs(place)

    def sizes(self) -> list[int]:
        dist.barrier()
        now = packs(self._place)
        found = [size for name, size in now.items() if name not in self._before]
        self._before = now
        dist.barrier()
        return sorted(found)


# -- what is stored, and where ----------------------------------------------------------------------------------------


def _replicas(rank: int, place: str) -> list[int]:
    """Four ranks that all have the same 80 MiB."""
    state = {number: numbers(number, 4, MIB) for number in range(5)}
    with cas.open(place, create=True) as store:
        new = New(place)
        commit = store.commit(state, group=dist.group.WORLD, codec="raw")
        assert commit.stats is not None
        assert commit.stats.raw == 80 * MIB
        assert commit.stats.blocks == commit.stats.new_blocks
        return new.sizes()


@pytest.mark.slow
def test_replicas_are_stored_once_and_each_rank_stores_a_quarter(tmp_path: Path) -> None:
    for sizes in run(4, _replicas, str(tmp_path / "s")):
        assert len(sizes) == 4
        assert sizes[0] >= 20 * MIB
        assert sizes[-1] <= 20.5 * MIB


def _packs_of_commits(rank: int, place: str) -> dict[str, list[int]]:
    """Sizes of the new packs of every commit."""
    group, rows = dist.group.WORLD, 4 * MIB
    small = {"w": sharded(numbers(1, MIB)), "b": numbers(2, MIB), "own": PerRank(numbers(10 + rank, 1000))}
    with cas.open(place, create=True) as store:
        new, found = New(place), dict[str, list[int]]()
        store.commit(small, group=group)
        found["small"] = new.sizes()
        store.commit(small, group=group)
        found["unchanged"] = new.sizes()
        store.commit({**small, "value": 1}, group=group)
        found["a value"] = new.sizes()
        one = numbers(3, 5 * MIB if rank == 2 else 1000)
        store.commit({**small, "own": PerRank(one)}, group=group, codec="raw")
        found["one rank with much"] = new.sizes()
        large = {"large": sharded(numbers(4, 5 * rows)), "own": PerRank(rank)}
        with pytest.raises(cas.Invalid, match="differs on ranks 1, 2, 3"):
            store.commit({**large, "differs": bool(rank)}, group=group, codec="raw")
        found["failed"] = new.sizes()
        store.commit({**large, "differs": 0}, group=group, codec="raw")
        found["again"] = new.sizes()
    return found


@pytest.mark.slow
def test_ranks_with_little_make_no_packs_and_a_retry_stores_nothing_again(tmp_path: Path) -> None:
    for found in run(4, _packs_of_commits, str(tmp_path / "s")):
        assert len(found["small"]) == len(found["unchanged"]) == len(found["a value"]) == 1
        assert found["small"][0] <= 8.1 * MIB
        assert found["unchanged"][0] <= 2000
        assert [size // MIB for size in found["one rank with much"]] == [0, 20]
        assert sum(found["failed"]) >= 60 * MIB, "what three ranks had stored should stay"
        assert sum(found["failed"]) + sum(found["again"]) <= 80.5 * MIB
    with cas.open(tmp_path / "s") as store:
        assert torch.equal(store.load("main")["large"], numbers(4, 20 * MIB))
        assert store.fsck(data=True) == []


# -- in the background ------------------------------------------------------------------------------------------------


class Held:
    """A commit that stays in flight, by its progress, until it is let go."""

    def __init__(self) -> None:
        self._go = threading.Event()

    def progress(self, nbytes: int) -> None:
        assert self._go.wait(30)

    def let_go(self, after: float = 0.0) -> None:
        threading.Timer(after, self._go.set).start()


def _changed(rank: int, place: str) -> str:
    """What is committed is what stood there at the call, on every rank."""
    own = numbers(rank, 1000)
    state = {"w": sharded(numbers(5, 7, 100_000)), "b": numbers(6, 300_000), "own": PerRank(own), "list": [1], "n": 1}
    with cas.open(place, create=True) as store:
        pending = store.commit_async(state, group=dist.group.WORLD)
        state["w"].to_local().fill_(-1)
        for tensor in (state["b"], own):
            tensor.fill_(-1)
        state["list"].append(2)
        state |= {"n": 2, "new": 3}
    assert pending.done  # closing the store has waited
    return pending.wait().id


def test_a_background_commit_has_the_values_of_the_call(tmp_path: Path) -> None:
    ids = run(3, _changed, str(tmp_path / "s"))
    assert len(set(ids)) == 1
    with cas.open(tmp_path / "s") as store:
        loaded = store.load(ids[0])
    assert torch.equal(loaded["w"], numbers(5, 7, 100_000))
    assert torch.equal(loaded["b"], numbers(6, 300_000))
    assert torch.equal(loaded["own"], numbers(0, 1000))
    assert (loaded["list"], loaded["n"]) == ([1], 1)
    assert "new" not in loaded


def _busy(rank: int, place: str, holder: int) -> dict[str, Any]:
    """What calls do while the commit before is in flight, since rank `holder` does not get on with it."""
    group, state, found = dist.group.WORLD, {"w": sharded(numbers(7, 90))}, dict[str, Any]()
    with cas.open(place, create=True) as store:
        held = Held()
        first = store.commit_async(state, group=group, step=1, progress=held.progress if rank == holder else None)
        skipped = store.commit_async(state, group=group, step=2, when_busy="skip")
        found["skipped"] = skipped.skipped
        with pytest.raises(CasError, match="skipped"):
            skipped.wait()
        with pytest.raises(CasError, match="still in flight"):
            store.commit_async(state, group=group, step=3, when_busy="raise")
        assert not first.done
        held.let_go(0.2)
        waited = store.commit_async(state, group=group, step=4)
        assert first.done
        waited.wait()
        free = store.commit_async(state, group=group, step=5, when_busy="skip")
        found["free"] = not free.skipped
        last = free.wait()
        found["steps"] = [commit.step for commit in store.log(last.id)]
    return found


def test_one_is_in_flight_and_the_next_waits_is_skipped_or_raises(tmp_path: Path) -> None:
    for holder in (0, 2):
        for found in run(3, _busy, str(tmp_path / f"s{holder}"), holder):
            assert found["skipped"]
            assert found["free"]
            assert found["steps"] == [5, 4, 1]


def _decided(rank: int, place: str, busy: int) -> Any:
    """One rank has a commit of its own in flight: only that of rank 0 counts."""
    held = Held()
    with cas.open(place, create=True) as store:
        if rank == busy:
            own = store.commit_async({"w": numbers(1, 50)}, group=None, branch="own", progress=held.progress)
        dist.barrier()
        if busy:
            held.let_go(0.3)
        pending = store.commit_async({"w": 1}, group=dist.group.WORLD, when_busy="skip")
        skipped = pending.skipped
        held.let_go()
        if rank == busy:
            own.wait()
    return skipped


def test_rank_0_decides_whether_a_commit_is_in_flight(tmp_path: Path) -> None:
    assert run(3, _decided, str(tmp_path / "a"), 0) == [True] * 3
    assert run(3, _decided, str(tmp_path / "b"), 1) == [False] * 3


def _beside(rank: int, place: str) -> list[Any]:
    """What is loaded while a commit is in flight is what was there before."""
    group, held = dist.group.WORLD, Held()
    with cas.open(place, create=True) as store:
        store.commit({"n": 0}, group=group)
        pending = store.commit_async({"n": 1, "w": sharded(numbers(1, 100))}, group=group, progress=held.progress)
        before = [store.load("main", group=group), store.load("main", into={"n": 5}, group=group)]
        before.append(store.view("main", group=group)["n"])
        assert not pending.done
        held.let_go()
        commit = pending.wait()
        assert store.commit({"n": 2}, group=group).parents == (commit.id,)
        return [*before, store.load(commit.id, group=group)["n"]]


def test_ranks_load_while_a_commit_is_in_flight(tmp_path: Path) -> None:
    assert run(2, _beside, str(tmp_path / "s")) == [[{"n": 0}, {"n": 0}, 0, 1]] * 2


def _failing(rank: int, place: str) -> list[str]:
    group, errors = dist.group.WORLD, []

    def refused(call: Callable[[], Any]) -> None:
        with pytest.raises(cas.Invalid) as caught:
            call()
        errors.append(str(caught.value))

    with cas.open(place, create=True) as store:
        first = store.commit_async({"n": rank}, group=group)
        refused(first.wait)
        store.commit({"n": 1}, group=group, step=1)
        store.commit_async({"n": rank}, group=group)
        refused(lambda: store.commit({"n": 2}, group=group, step=2))
        store.commit({"n": 3}, group=group, step=3)
        store.commit_async({"n": rank}, group=group)
        refused(lambda: store.commit_async({"n": 4}, group=group, step=4))
        assert [commit.step for commit in store.log()] == [3, 1]
        unseen = store.commit_async({"n": rank}, group=group)
        refused(store.close)
        assert unseen.done
    return errors


def test_a_failure_in_the_background_is_raised_on_all_by_wait_or_what_comes_next(tmp_path: Path) -> None:
    for rank, errors in enumerate(run(3, _failing, str(tmp_path / "s"))):
        assert len(errors) == 4
        for error in errors:
            assert "n on ranks 1, 2 is not that of rank 0" in error, (rank, error)


# -- from commit to commit --------------------------------------------------------------------------------------------


def _states() -> list[dict[str, Any]]:
    """What is committed one after the other: what repeats, and what changes in keys, shapes and values."""
    base = {"model": {"w": numbers(1, 7, 9), "v": numbers(2, 200_000)}, "n": 1}
    model = base["model"]
    return [
        base,
        base,
        {**base, "model": {**model, "w": numbers(3, 7, 9)}, "n": 2},
        {**base, "model": {**model, "new": numbers(4, 2, 2)}},
        {**base, "model": {**model, "w": numbers(5, 8, 9)}},
        {**base, "model": {"v": model["v"]}},
        {**base, "model": {**model, "v": numbers(2, 200_000).double()}},
        {**base, "model": {**model, "w": numbers(6, 2, 9)}},
        {**base, "model": {"v": model["v"], "w": model["w"]}},
        base,
    ]


def _spread(state: dict[str, Any], dim: int) -> dict[str, Any]:
    return {**state, "model": {name: sharded(full, dim % full.ndim) for name, full in state["model"].items()}}


def _sequence(rank: int, place: str) -> list[str]:
    ids, group = [], dist.group.WORLD
    store = cas.open(place, create=True)
    for at, state in enumerate(_states()):
        if at in (2, 4) and rank == 1:
            store.close()
            store = cas.open(place)
        if at == 6:
            if rank == 0:
                store.close()
                store = cas.open(place)
            with pytest.raises(cas.RefConflict, match="load it to resume"):
                store.commit(_spread(state, 0), group=group)
            ids.append(store.commit(_spread(state, 0), group=group, parent="main").id)
            continue
        with pytest.raises(cas.Invalid, match="n on rank"):
            store.commit({**_spread(state, 0), "n": rank}, group=group)
        ids.append(store.commit(_spread(state, at), group=group).id)
    assert [commit.id for commit in store.log()] == ids[::-1]
    store.close()
    return ids


def test_every_commit_of_a_sequence_is_whole_whatever_changes_between(tmp_path: Path) -> None:
    every = run(3, _sequence, str(tmp_path / "s"))
    assert every[0] == every[1] == every[2]
    with cas.open(tmp_path / "s") as store:
        for commit, state in zip(every[0], _states(), strict=True):
            loaded = store.load(commit)
            assert list(loaded["model"]) == list(state["model"])
            assert loaded["n"] == state["n"]
            for name, full in state["model"].items():
                assert loaded["model"][name].dtype == full.dtype
                assert torch.equal(loaded["model"][name], full)
        assert store.fsck(data=True) == []


def _moved(rank: int, place: str) -> list[str]:
    """Another writer moves the branch between two commits: all are told, and go on after a load."""
    group = dist.group.WORLD
    with cas.open(place, create=True) as store:
        store.commit({"n": 1}, group=group)
        if rank == 1:
            with cas.open(place) as other:
                other.load("main", group=None)
                other.commit({"n": 2}, group=None)
        dist.barrier()
        with pytest.raises(cas.RefConflict) as caught:
            store.commit({"n": 3}, group=group)
        assert store.load("main", group=group) == {"n": 2}
        store.commit({"n": 4}, group=group)
        assert len(list(store.log())) == 3
    return [str(caught.value)]


def test_a_branch_that_another_writer_moved_is_a_conflict_on_all(tmp_path: Path) -> None:
    for errors in run(3, _moved, str(tmp_path / "s")):
        assert "another writer moved it" in errors[0]


def _collected(rank: int, place: str) -> bool:
    """What the commit finds in packs is collected under it: it is stored anew."""
    group, collected = dist.group.WORLD, list[Any]()
    state = {"w": sharded(numbers(1, 3 * MIB)), "b": numbers(2, 100_000)}

    def collect(nbytes: int) -> None:
        if rank == 1 and not collected:
            collected.append(None)
            with cas.open(place) as other:
                collected.append(other.gc(grace=0, expire=0))

    with cas.open(place, create=True) as store:
        store.commit(state, group=group, branch="gone")
        store.commit({"n": 1}, group=group)
        if rank == 0:
            store.delete_branch("gone")
        dist.barrier()
        before = packs(place)
        dist.barrier()
        store.commit(state, group=group, progress=collect)
        return bool(before.keys() - packs(place).keys())


def test_a_commit_does_not_lean_on_what_was_collected_meanwhile(tmp_path: Path) -> None:
    assert run(2, _collected, str(tmp_path / "s")) == [True, True]
    with cas.open(tmp_path / "s") as store:
        assert [finding for finding in store.fsck(data=True) if finding.severity != "info"] == []
        loaded = store.load("main")
    assert torch.equal(loaded["w"], numbers(1, 3 * MIB))
    assert torch.equal(loaded["b"], numbers(2, 100_000))
