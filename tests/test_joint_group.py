"""Commits and loads by many ranks: who must call, what all must mean, and mistakes that are named on all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from joint_jobs import said
from ranks import run, start
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import cas
from cas.torch import PerRank

Said = dict[str, Any]


def _without_group(rank: int, place: str) -> Said:
    mesh = init_device_mesh("cpu", (2,))
    sharded = {"deep": {"w": distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])}}
    with cas.open(place, create=True) as store:
        found: Said = {
            "commit": said(lambda: store.commit({"x": 1})),
            "commit_async": said(lambda: store.commit_async({"x": 1})),
            "load": said(lambda: store.load("main")),
            "view": said(lambda: store.view("main")),
            "sharded": said(lambda: store.commit(sharded, group=None)),
            "sharded async": said(lambda: store.commit_async(sharded, group=None)),
        }
        for number, group in enumerate(["WORLD", 5, True, [0, 1], dist.new_group([1 - rank]), object()]):
            found[f"nonsense {number}"] = said(lambda group=group: store.commit({"x": 1}, group=group))
        gone = dist.new_group([0, 1])
        dist.destroy_process_group(gone)
        found["nonsense gone"] = said(lambda: store.commit({"x": 1}, group=gone))
        store.commit({"x": 2}, group=dist.group.WORLD)
        alone = store.commit({"rank": rank}, group=None, branch=f"alone{rank}")
        assert store.load(f"alone{rank}", group=None) == {"rank": rank}
        assert alone.parents == ()
        assert store.load("main", group=None) == {"x": 2}
        assert store.view("main", group=None)["x"] == 2
        assert store.view("main", group=dist.group.WORLD)["x"] == 2
        found["refs"] = sorted(store.refs()["branches"])
    return found


def test_a_job_of_several_processes_must_say_who_commits(tmp_path: Path) -> None:
    with start(2, _without_group, str(tmp_path / "s")) as job:
        found = job.results(timeout=60)
    for one in found:
        assert "main" in one.pop("refs")
        for name, error in one.items():
            assert str(error).startswith("Invalid: "), (name, error)
        for name in ("commit", "commit_async", "load", "view"):
            assert "group=" in one[name]
            assert "2 processes" in one[name]
        assert "state path deep/w" in one["sharded"]
        assert one["sharded"] == one["sharded async"]


def _subset(rank: int, place: str) -> Any:
    group = dist.new_group([1, 2])
    with cas.open(place, create=True) as store:
        if rank in (1, 2):
            commit = store.commit({"own": PerRank(rank), "x": 5}, group=group, branch="both")
            return commit.id, store.load("both", group=group)
        if rank == 0:
            return [store.commit({"n": n}, group=None, branch="zero").id for n in range(3)]
    return None


def test_a_part_of_the_ranks_commits_while_others_do_something_else(tmp_path: Path) -> None:
    zero, one, two, nothing = run(4, _subset, str(tmp_path / "s"))
    assert one[0] == two[0]
    assert one[1] == {"own": 1, "x": 5}
    assert two[1] == {"own": 2, "x": 5}
    assert nothing is None
    with cas.open(tmp_path / "s") as store:
        assert store.load("both") == {"own": 1, "x": 5}
        assert store.refs()["branches"]["zero"] == zero[-1]


def _disagree(rank: int, place: str) -> Said:
    """What two of three ranks mean by a call, and what the third does; after each the group commits."""
    one, found = rank == 1, dict[str, Any]()
    group = dist.group.WORLD
    with cas.open(place, create=True) as store, cas.open(f"{place}-other", create=True) as other:
        store.commit({"x": 0}, group=group)
        pair = {False: store, True: other}
        calls: dict[str, Callable[[], Any]] = {
            "branch": lambda: store.commit({"x": 1}, group=group, branch="b" if one else "main"),
            "step": lambda: store.commit({"x": 1}, group=group, step=2 if one else 1),
            "no step": lambda: store.commit({"x": 1}, group=group, step=None if one else 1),
            "codec": lambda: store.commit({"x": 1}, group=group, codec="zstd" if one else "raw"),
            "replicas": lambda: store.commit({"x": 1}, group=group, replicas="first" if one else "equal"),
            "store": lambda: pair[one].commit({"x": 1}, group=group),
            "store to load": lambda: pair[one].load("main", default=None, group=group),
            "call": lambda: store.load("main", group=group) if one else store.commit({"x": 1}, group=group),
            "call 1": lambda: store.commit({"x": 1}, group=group) if one else store.load("main", group=group),
            "call 2": lambda: store.view("main", group=group) if one else store.load("main", group=group),
            "rev": lambda: store.load("b" if one else "main", group=group),
            "default": lambda: store.load("main", group=group, **({"default": 1} if one else {})),
            "when_busy": lambda: store.commit_async({"x": 1}, group=group, when_busy="skip" if one else "raise"),
        }
        for step, (name, call) in enumerate(calls.items(), 10):
            before = store.refs()["branches"]["main"]
            error = said(call)
            assert store.refs()["branches"] == {"main": before}
            found[name] = error
            store.commit({"x": step}, group=group, step=step)
    return found


def test_ranks_that_do_not_mean_the_same_are_named_and_the_group_works_on(tmp_path: Path) -> None:
    for found in run(3, _disagree, str(tmp_path / "s")):
        for name, error in found.items():
            assert str(error).startswith("Invalid: "), (name, error)
            assert "rank 0" in error, (name, error)
            assert "rank 1" in error, (name, error)
            assert (
                name.split()[-1].isdigit() or name.split()[0] == "no" or error.startswith(f"Invalid: {name.split()[0]}")
            )


def _what_rank_0_says(rank: int, place: str) -> None:
    with cas.open(place, create=True) as store:
        options: dict[str, Any] = {"message": f"from {rank}", "metrics": {"loss": rank}, "meta": {"rank": rank}}
        commit = store.commit({"x": 1}, group=dist.group.WORLD, step=1, **options)
        assert (commit.message, commit.metrics, commit.meta) == ("from 0", {"loss": 0}, {"rank": 0})


def _other_options(rank: int, place: str) -> Said:
    group = dist.group.WORLD
    mine = dist.new_group([0]), dist.new_group([1])
    with cas.open(place, create=True) as store:
        state: dict[str, Any] = {"set": {1, 2}, "t": torch.ones(3)}
        source = Path(f"{place}-file")
        if rank == 0:
            source.write_text("{}")
        told: list[int] = []
        first = store.commit(
            state, group=group, allow_pickle=True, files={"config.json": source}, progress=told.append, step=1
        )
        files = store.files("main")
        same = store.commit(
            state, group=group, allow_pickle=True, files={"config.json": source}, unless_in="main", step=1
        )
        other = store.commit({"x": 1}, group=group, unless_in="main", metrics={"loss": torch.tensor(0.5)})
        sharded = distribute_tensor(torch.ones(4), init_device_mesh("cpu", (2,)), [Shard(0)], src_data_rank=None)
        half, branch = {"deep": {"w": sharded}}, f"r{rank}"
        found: Said = {"half": said(lambda: store.commit(half, group=mine[rank], branch=branch))}
        store.commit({"own": PerRank(rank)}, group=mine[rank], branch=branch)
        found["alone"] = store.load(branch, group=mine[rank])
        for number, root in enumerate([{}, [1, sharded], sharded, 5, PerRank(rank)]):
            commit = store.commit(root, group=group, branch="bare")
            loaded = store.load("bare", group=group)
            found[f"root {number}"] = loaded if number in (0, 3, 4) else repr(loaded)
            assert store.load(commit.id, group=group) is not None
        assert same.id == first.id
        assert other.parents == (first.id,)
        assert other.metrics == {"loss": 0.5}
    return {**found, "files": files, "told": sum(told)}


def test_all_other_options_work_with_a_group(tmp_path: Path) -> None:
    found = run(2, _other_options, str(tmp_path / "s"))
    for rank, one in enumerate(found):
        assert "state path deep/w" in one["half"]
        assert one["alone"] == {"own": rank}
        assert one["files"] == {"config.json": b"{}"}
        assert one["root 0"] == {}
        assert one["root 1"] == "[1, tensor([1., 1., 1., 1.])]"
        assert one["root 2"] == "tensor([1., 1., 1., 1.])"
        assert one["root 3"] == 5
        assert one["root 4"] == rank


def test_beside_the_state_rank_0_speaks_for_all(tmp_path: Path) -> None:
    run(3, _what_rank_0_says, str(tmp_path / "s"))


def _mistakes(rank: int, place: str) -> Said:
    """What rank 1 of three does wrong, and then whether the group commits."""
    group, one, found = dist.group.WORLD, rank == 1, dict[str, Any]()
    with cas.open(place, create=True) as store:
        store.commit({"x": 1}, group=group)
        mistakes: dict[str, Callable[[], Any]] = {
            "state": lambda: store.commit({"deep": object() if one else 1}, group=group, timeout=5),
            "message": lambda: store.commit({"x": 1}, group=group, message=5 if one else "", timeout=5),
            "into": lambda: store.load("main", into=5 if one else {"x": 0}, group=group, timeout=5),
            "codec": lambda: store.commit({"x": 1}, group=group, codec="gzip" if one else "raw", timeout=5),
            "only": lambda: store.load("main", group=group, only=5 if one else None, timeout=5),
        }
        for name, call in mistakes.items():
            found[name] = [said(call), said(lambda: store.commit({"x": 2}, group=group, timeout=5))]
    return found


def test_a_mistake_of_one_rank_is_named_on_all(tmp_path: Path) -> None:
    found = run(3, _mistakes, str(tmp_path / "s"))
    for name in found[0]:
        for rank, (error, after) in enumerate(one[name] for one in found):
            assert str(error).split(":")[0] in ("Invalid", "Unsupported"), (name, rank, error)
            assert rank == 1 or "rank 1: " in error, (name, rank, error)
            assert after is None, (name, rank, after)
