"""Commits and loads by many ranks: values and plain tensors that several ranks have, and what all ranks must mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from joint_jobs import blank, described, differences, numbers, said
from ranks import run
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import cas
from cas.errors import CasError
from cas.torch import PerRank

Said = dict[str, Any]


# -- values that differ -----------------------------------------------------------------------------------------------


def _unequal(rank: int) -> dict[str, Any]:
    """States of four ranks that do not make one, by name."""
    mesh = init_device_mesh("cpu", (2, 2))
    local = torch.full((2, 3), float(rank == 3))
    replicas = DTensor.from_local(local, mesh, [Replicate(), Shard(0)], run_check=False)
    return {
        "value": {"deep": [{"lr": 0.5 if rank in (1, 3) else 0.25}]},
        "type": {"flag": True if rank == 2 else 1},
        "sign": {"zero": -0.0 if rank == 2 else 0.0},
        "tensor": {"b": torch.full((3,), float(rank == 1)), "c": torch.zeros(3)},
        "many blocks": {"big": torch.arange(300_000) + (torch.arange(300_000) == 299_999) * (rank == 2)},
        "replicas of shards": {"w": replicas},
        "text": {"text": ("x" if rank else "y") * 100_000},
        "length": {"text": "x" * (100_000 + rank // 3)},
        "dtype": {"t": torch.zeros(3, dtype=torch.float64 if rank == 3 else torch.float32)},
        "shape": {"t": torch.zeros(3 + rank // 2)},
        "form": {"t": (1, 2) if rank == 1 else [1, 2]},
        "items": {"t": [1] * (1 + rank // 3)},
        "gap": {"w": DTensor.from_local(torch.zeros(1 + rank, 2), mesh, [Shard(0), Shard(0)], run_check=False)},
        "half a shard": {"own": PerRank(distribute_tensor(torch.zeros(4, 2), mesh, [Shard(0), Replicate()]))},
    }


def _commit_unequal(rank: int, place: str) -> Said:
    found: Said = {}
    with cas.open(place, create=True) as store:
        last = store.commit({"step": 0}, group=dist.group.WORLD)
        for step, (name, state) in enumerate(_unequal(rank).items(), 1):
            error = said(lambda state=state: store.commit(state, group=dist.group.WORLD))
            published = store.refs()["branches"]["main"] != last.id
            last = store.commit({"step": step}, group=dist.group.WORLD)
            found[name] = error, published
    return found


UNEQUAL = {
    "value": ["deep/[0]/lr on ranks 1, 3", "rank 0", "PerRank"],
    "type": ["flag on rank 2", "rank 0"],
    "sign": ["zero on rank 2", "rank 0"],
    "tensor": ["b on rank 1 is not that of rank 0"],
    "many blocks": ["big on rank 2 is not that of rank 0"],
    "replicas of shards": ["w on rank 3 is not that of rank 1"],
    "text": ["text on ranks 1, 2, 3 is not that of rank 0"],
    "length": ["state path text", "rank 0", "rank 3"],
    "dtype": ["state path t is float32 [3] on rank 0 and float64 [3] on rank 3"],
    "shape": ["state path t is float32 [3] on rank 0 and float32 [4] on rank 2"],
    "form": ["state path t is a list", "on rank 0", "a tuple of 2 on rank 1"],
    "items": ["state path t is a list of 1 on rank 0 and a list of 2 on rank 3"],
    "gap": ["state path w", "rank"],
    "half a shard": ["state path own"],
}


def test_unequal_states_are_refused_on_all_ranks_and_the_group_works_on(tmp_path: Path) -> None:
    for rank, found in enumerate(run(4, _commit_unequal, str(tmp_path / "s"))):
        assert found.keys() == UNEQUAL.keys()
        for name, words in UNEQUAL.items():
            error, published = found[name]
            assert not published, (name, rank)
            assert str(error).startswith("Invalid: "), (name, rank, error)
            assert [word for word in words if word not in error] == [], (name, rank, error)
    with cas.open(tmp_path / "s") as store:
        assert len(list(store.log())) == 1 + len(UNEQUAL)
        assert store.load("main") == {"step": len(UNEQUAL)}


def _commit_in_part(rank: int, place: str) -> Any:
    """Ranks 1 and 3 of four, with different values."""
    group = dist.new_group([1, 3])
    if rank not in (1, 3):
        return None
    with cas.open(place, create=True) as store:
        store.commit({"x": 1}, group=group)
        return [
            said(lambda: store.commit({"x": rank}, group=group)),
            said(lambda: store.commit({"x": [rank] * rank}, group=group)),
            said(lambda: store.commit({"x": 1}, group=group, branch=f"b{rank}")),
        ]


def test_errors_number_ranks_as_the_whole_job_does(tmp_path: Path) -> None:
    for errors in run(4, _commit_in_part, str(tmp_path / "s"))[1::2]:
        for error in errors:
            assert "rank 1" in error
            assert "rank 3" in error
            assert "rank 0" not in error


def _equal(rank: int) -> dict[str, Any]:
    """What four ranks have alike; some of it not all have."""
    own = {"only 1": {"x": math.nan}} if rank == 1 else {}
    some = {"not 0": torch.arange(4)} if rank else {}
    return {
        "nan": math.nan,
        "zero": -0.0,
        "t": torch.tensor([math.nan, 1.0]),
        "list": [1, ("a", 1 << 70)],
        **own,
        **some,
    }


def _commit_equal(rank: int, place: str) -> list[int]:
    with cas.open(place, create=True) as store:
        commit = store.commit(_equal(rank), group=dist.group.WORLD, branch="equal")
        assert commit.stats is not None
        first = {"t": torch.full((3,), rank), "v": rank, "deep": [{"x": f"rank {rank}"}], "same": 1}
        later = {"late": rank, "late t": torch.full((2,), rank)} if rank else {}
        big = {"big": torch.full((300_000,), rank)}
        store.commit({**first, **later, **big}, group=dist.group.WORLD, replicas="first", branch="first")
        return [commit.stats.raw, commit.stats.blocks]


def test_equal_values_are_one_and_with_first_the_lowest_ranks_is_taken(tmp_path: Path) -> None:
    stats = run(4, _commit_equal, str(tmp_path / "s"))
    assert stats == [[8 + 32, 2]] * 4
    with cas.open(tmp_path / "s") as store:
        loaded = store.load("equal")
        assert math.isnan(loaded.pop("only 1")["x"])
        assert math.isnan(loaded.pop("nan"))
        assert math.copysign(1, loaded.pop("zero")) == -1
        assert loaded.pop("not 0").tolist() == [0, 1, 2, 3]
        assert loaded.pop("t").tolist()[1] == 1.0
        assert loaded == {"list": [1, ("a", 1 << 70)]}
        first = store.load("first")
        assert (first["v"], first["deep"], first["late"], first["same"]) == (0, [{"x": "rank 0"}], 1, 1)
        assert first["t"].tolist() == [0, 0, 0]
        assert first["late t"].tolist() == [1, 1]
        assert torch.equal(first["big"], torch.zeros(300_000, dtype=torch.int64))


# -- values of each rank's own ----------------------------------------------------------------------------------------


def _own(rank: int) -> dict[str, Any]:
    return {"t": numbers(rank, 3), "big": numbers(rank, 200_000), "s": f"rank {rank}", "rng": (3, [rank] * 5, None)}


def _commit_own(rank: int, place: str) -> None:
    state = {"step": 1, "loader": PerRank(rank * 10), "deep": [{"own": PerRank(_own(rank))}], "w": numbers(9, 5)}
    with cas.open(place, create=True) as store:
        store.commit(state, group=dist.group.WORLD)
        some = {"some": PerRank(rank)} if rank in (1, 3) else {}
        store.commit({"x": 1, **some}, group=dist.group.WORLD, branch="some")


def _load_own(rank: int, place: str) -> Said:
    found: Said = {}
    with cas.open(place) as store:
        for policy in ("own", "skip"):
            try:
                found[policy] = store.load("main", group=dist.group.WORLD, per_rank=policy)
            except CasError as error:
                found[policy] = f"{type(error).__name__}: {error}"
        found["only"] = store.load("main", group=dist.group.WORLD, only="w")["w"].tolist()
        found["some"] = said(lambda: store.load("some", group=dist.group.WORLD))
        found["some skipped"] = store.load("some", group=dist.group.WORLD, per_rank="skip")
    for state in (found["own"], found["skip"]):
        if type(state) is dict:
            state["w"] = state["w"].tolist()
            for item in state.get("deep", ()):
                item["own"] |= {key: item["own"][key].tolist() for key in ("t", "big")}
    return found


def _expected(rank: int) -> dict[str, Any]:
    own = {**_own(rank), "t": numbers(rank, 3).tolist(), "big": numbers(rank, 200_000).tolist()}
    return {"step": 1, "loader": rank * 10, "deep": [{"own": own}], "w": numbers(9, 5).tolist()}


def test_each_rank_gets_its_own_and_more_ranks_must_say_what_then(tmp_path: Path) -> None:
    place = str(tmp_path / "s")
    run(4, _commit_own, place)
    for rank, found in enumerate(run(2, _load_own, place)):
        assert found["own"] == found["skip"] == _expected(rank)
        assert "some" in found["some"]
        assert "rank 0" in found["some"]
        assert found["some skipped"] == ({"x": 1, "some": 1} if rank == 1 else {"x": 1})
    for rank, found in enumerate(run(5, _load_own, place)):
        assert found["own"].startswith("Invalid: ")
        assert "loader" in found["own"]
        assert "rank 4" in found["own"]
        assert 'per_rank="skip"' in found["own"]
        if rank < 4:
            assert found["skip"] == _expected(rank)
        else:
            assert found["skip"] == {"step": 1, "w": numbers(9, 5).tolist()}
        assert found["only"] == numbers(9, 5).tolist()
    with cas.open(place) as store:
        alone = store.load("main")
        assert alone["loader"] == 0
        assert differences(described(alone["deep"][0]["own"]), described(_own(0))) == []


def _load_own_into(rank: int, place: str) -> list[Any]:
    own = _own(7)
    target = {"step": 0, "loader": PerRank(None), "deep": [{"own": PerRank(own)}], "w": torch.zeros(5)}
    bare = {"step": 0, "loader": None, "deep": [{"own": blank(_own(7))}], "w": torch.zeros(5)}
    with cas.open(place) as store:
        wrapped = store.load("main", into=target, group=dist.group.WORLD)
        assert type(wrapped["loader"]) is PerRank
        assert wrapped["deep"][0]["own"].value["t"] is own["t"]
        loaded = store.load("main", into=bare, group=dist.group.WORLD)
    wanted = {"step": 1, "loader": rank * 10, "deep": [{"own": _own(rank)}], "w": numbers(9, 5)}
    bare_wrapped = {**wrapped, "loader": wrapped["loader"].value, "deep": [{"own": wrapped["deep"][0]["own"].value}]}
    return [differences(described(one), described(wanted)) for one in (bare_wrapped, loaded)]


def test_own_values_go_into_what_is_there_wrapped_or_bare(tmp_path: Path) -> None:
    place = str(tmp_path / "s")
    run(4, _commit_own, place)
    assert run(2, _load_own_into, place) == [[[], []]] * 2


def test_one_process_is_rank_0(tmp_path: Path) -> None:
    place = str(tmp_path / "s")
    state = {"step": 1, "loader": PerRank(0), "deep": [{"own": PerRank(_own(0))}], "w": numbers(9, 5)}
    with cas.open(place, create=True) as store:
        store.commit(state)
        store.commit({"x": 1}, branch="some")
        assert store.load("main")["loader"] == 0
    first, second = run(2, _load_own, place)
    assert first["skip"] == _expected(0)
    assert "none for rank 1" in first["own"]
    assert first["own"].startswith("Invalid: rank 1: ")
    assert second["skip"].keys() == {"step", "w"}


# -- stages ------------------------------------------------------------------------------------------------------------


def _stages(rank: int, place: str) -> Said:
    """Each rank has keys of its own, and shares one."""
    own = {f"layer.{rank}": numbers(rank, 4), rank: {"deep": numbers(rank, 2)}}
    with cas.open(place, create=True) as store:
        store.commit({"model": {"shared": 1, **own}}, group=dist.group.WORLD)
        mine = store.load("main", into={"model": {"shared": 0, **blank(own)}}, group=dist.group.WORLD)
        found: Said = {"mine": differences(described(mine), described({"model": {"shared": 1, **own}}))}

        def load(model: dict[Any, Any], **options: Any) -> Any:
            return store.load("main", into={"model": model}, group=dist.group.WORLD, **options)

        kept = {key: value for key, value in own.items() if rank != 2 or key != "layer.2"}
        found["lacks"] = said(lambda: load({"shared": 0, **kept}))
        found["lacks both"] = said(lambda: load({"shared": 0, **(own if rank < 2 else {})}))
        found["extra"] = said(lambda: load({"shared": 0, **own, **({"new": 1} if rank == 1 else {})}))
        found["shape"] = said(
            lambda: load({"shared": 0, **own, **({rank: {"deep": torch.zeros(3)}} if rank == 1 else {})})
        )
        found["only"] = said(lambda: load({"shared": 0, **kept}, only=["model/shared", "model/layer.1"]))
        found["again"] = said(lambda: load({"shared": 0, **own}))
    return found


def test_every_key_needs_a_rank_that_takes_it(tmp_path: Path) -> None:
    for rank, found in enumerate(run(3, _stages, str(tmp_path / "s"))):
        assert found["mine"] == []
        assert found["lacks"].startswith("Invalid: into= lacks model/layer.2 ")
        assert "model/layer.2" in found["lacks both"]
        assert "model/[2]" in found["lacks both"]
        assert "has ['new']" in found["extra"]
        assert "layer" not in found["extra"]
        assert "model/[1]/deep" in found["shape"]
        assert rank == 1 or all(found[name].startswith("Invalid: rank 1: ") for name in ("extra", "shape"))
        assert found["only"] is None
        assert found["again"] is None
