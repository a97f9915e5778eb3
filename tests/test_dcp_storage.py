"""torch.distributed.checkpoint over a store: `CasStorageWriter` and `CasStorageReader`."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import dcp_worker
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from ranks import run
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    _EmptyStateDictLoadPlanner,
    create_default_global_save_plan,
)
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.state_dict import get_model_state_dict

import cas
from cas.torch import CasStorageReader, CasStorageWriter
from cas.torch.dcp_names import nested
from cas.torch.train_state import PerRank

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:.*TypedStorage")


def save(store: cas.Store, state: dict[str, Any], planner: Any = None, **options: Any) -> str:
    metadata = dcp.save(state, storage_writer=CasStorageWriter(store, **options), planner=planner)
    assert metadata.storage_data is None
    found: str = metadata.storage_meta.save_id
    return found


def load(store: cas.Store, state: dict[str, Any], planner: Any = None, rev: str | None = None, **options: Any) -> None:
    dcp.load(state, storage_reader=CasStorageReader(store, rev, **options), planner=planner)


def assert_whole(store: cas.Store) -> None:
    assert [finding for finding in store.fsck(data=True) if finding.severity != "info"] == []


@pytest.fixture
def state() -> dict[str, Any]:
    """Everything that torch's flattening keeps as it is."""
    return {
        "model": {"w": torch.randn(600, 1000), "half": torch.randn(9).bfloat16(), "none": torch.empty(0, 4)},
        "scalar": torch.tensor(2.5),
        "strided": torch.randn(40, 30).t(),
        "layers": [torch.ones(3), 4, {"a": "x"}],
        "plain": [0.1, [2, "three"], None],
        "pair": (1, torch.arange(4), b"four"),
        "dtype": torch.float16,
        "array": np.arange(6.0).reshape(2, 3),
        "big": 1 << 90,
        "text": "long" * 30_000,
        "step": 7,
    }


def zeroed(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, dict):
        return {key: zeroed(child) for key, child in value.items()}
    return [zeroed(child) for child in value] if isinstance(value, list) else None


def assert_equal(one: Any, other: Any, path: str = "") -> None:
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for at, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{path}/{at}")
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other), path
    else:
        assert one == other, path


# -- one process --------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(store: cas.Store, state: dict[str, Any]) -> None:
    saved = save(store, state, step=3, message="as planned", metrics={"loss": torch.tensor(0.5)}, meta={"run": 1})
    found = zeroed(state)
    load(store, found)
    assert_equal(found, state)
    commit = store.resolve("main")
    assert (commit.id, commit.step, commit.message) == (saved, 3, "as planned")
    assert (commit.metrics, commit.meta) == ({"loss": 0.5}, {"run": 1})


def test_the_commit_is_the_one_that_the_store_would_make(store: cas.Store, state: dict[str, Any]) -> None:
    save(store, state)
    assert_equal(store.load("main"), state)
    assert store.commit(state, branch="other").tree == store.resolve("main").tree


def test_a_second_save_of_the_same_stores_no_block(store: cas.Store, state: dict[str, Any]) -> None:
    first, second = (save(store, state, step=step) for step in (1, 2))
    one, two = store.resolve(first), store.resolve(second)
    assert (two.parents, two.tree) == ((one.id,), one.tree)
    packs = sorted(path.stat().st_size for path in (store.path / "packs").rglob("*") if path.is_file())
    assert len(packs) == 3, "blocks and trees of the first, the commit object of the second"
    assert packs[0] < 2000


def test_a_save_continues_its_branch_and_the_store_goes_on_from_it(store: cas.Store) -> None:
    first = store.commit({"step": 1})
    with cas.open(store.path) as other:
        second = save(other, {"step": 2})
    third = save(store, {"step": 3})
    fourth = store.commit({"step": 4})
    assert [commit.id for commit in store.log()] == [fourth.id, third, second, first.id]


def test_a_store_that_only_loaded_with_torch_may_commit(store: cas.Store) -> None:
    save(store, {"step": 1})
    with cas.open(store.path) as other:
        with pytest.raises(cas.RefConflict, match="load it to resume"):
            other.commit({"step": 2})
        load(other, {"step": 0})
        other.commit({"step": 2})


def test_the_parent_that_was_asked_for_must_be_the_tip(store: cas.Store) -> None:
    first = save(store, {"step": 1})
    save(store, {"step": 2}, parent=first)
    with pytest.raises(CheckpointException, match="RefConflict"):
        save(store, {"step": 3}, parent=first)
    assert store.resolve("main").parents == (first,)


def test_a_branch_that_moves_during_a_save_is_a_conflict(store: cas.Store) -> None:
    save(store, {"step": 1})

    class Slow(DefaultSavePlanner):
        def finish_plan(self, new_plan: SavePlan) -> SavePlan:
            with cas.open(store.path) as other:
                other.commit({"step": 9}, parent="main")
            return super().finish_plan(new_plan)

    with pytest.raises(CheckpointException, match="another writer moved it"):
        save(store, {"step": 2}, Slow())
    assert store.load("main") == {"step": 9}


def test_a_checkpoint_id_names_the_branch_and_the_revision(store: cas.Store) -> None:
    writer = CasStorageWriter(store)
    dcp.save({"step": 1}, checkpoint_id="runs/a", storage_writer=writer)
    assert store.refs()["branches"].keys() == {"runs/a"}
    state = {"step": 0}
    dcp.load(state, checkpoint_id="runs/a", storage_reader=CasStorageReader(store, "main"))
    assert state == {"step": 1}
    assert CasStorageWriter.validate_checkpoint_id("runs/a")
    assert not CasStorageWriter.validate_checkpoint_id("a~1")
    assert CasStorageReader.validate_checkpoint_id("runs/a~1")
    assert not CasStorageReader.validate_checkpoint_id("")


def test_bad_arguments_are_refused_before_anything_is_stored(store: cas.Store) -> None:
    for options in ({"step": "one"}, {"branch": "a~1"}, {"codec": "best"}, {"metrics": {"loss": "low"}}):
        with pytest.raises(CheckpointException, match="Invalid"):
            save(store, {"w": torch.zeros(3)}, **options)  # type: ignore[arg-type]
    assert not list((store.path / "packs").rglob("*"))


def test_without_collectives_there_is_no_commit(store: cas.Store) -> None:
    with pytest.raises(cas.Unsupported, match="all ranks"):
        dcp.save({"step": 1}, storage_writer=CasStorageWriter(store), use_collectives=False)


def test_a_thread_saves_while_the_caller_goes_on(store: cas.Store, state: dict[str, Any]) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert not isinstance(CasStorageWriter(store), AsyncStager)
        kept = {"w": state["model"]["w"].clone()}
        saving = dcp.async_save({"w": state["model"]["w"]}, storage_writer=CasStorageWriter(store))
        state["model"]["w"].zero_()
        assert saving.result().storage_meta.save_id == store.resolve("main").id
        assert_equal(store.load("main", group=None), kept)
        failing = dcp.async_save({"f": print}, storage_writer=CasStorageWriter(store))
        with pytest.raises(CheckpointException, match="Unsupported"):
            failing.result()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_another_process_saves(store: cas.Store) -> None:
    worker = Path(dcp_worker.__file__)
    done = subprocess.run([sys.executable, worker, store.path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- names --------------------------------------------------------------------------------------------------------

NESTED: dict[str, Any] = {
    "a": {"b.c": torch.zeros(2), 3: {"x": 1}, "empty": {}, "none": None},
    "lists": [[1, 2], [torch.zeros(1), [3]], [{}], [[]], [], [{"k": [4, [torch.ones(1)]]}]],
    "pair": (torch.zeros(1), {"in": 1}),
    "ordered": OrderedDict(z=1, y=[2]),
    "sparse": [torch.eye(3).to_sparse()],
    "alone": torch.zeros(1),
}


def test_names_are_those_that_torch_gives(store: cas.Store) -> None:
    store.commit(NESTED)
    flat, paths = flatten_state_dict(NESTED)
    metadata = CasStorageReader(store).read_metadata()
    assert list(metadata.state_dict_metadata) == list(flat)
    assert metadata.planner_data == paths
    whole = CasStorageReader(store, flatten=False).read_metadata()
    assert list(whole.state_dict_metadata) == list(NESTED)
    assert whole.planner_data is None


def test_what_torch_flattens_comes_back_as_torch_leaves_it(store: cas.Store) -> None:
    save(store, NESTED)
    found = store.load("main")
    assert found["a"] == {"b.c": found["a"]["b.c"], "3": {"x": 1}, "none": None}
    assert found["lists"][1:5] == [[torch.zeros(1), [3]], None, [[]], []]
    assert found["pair"] == NESTED["pair"]
    assert found["ordered"] == {"z": 1, "y": [2]}
    assert torch.equal(found["sparse"][0].to_dense(), torch.eye(3))
    state = {"sparse": [torch.zeros(3, 3).to_sparse()]}
    load(store, state)
    assert torch.equal(state["sparse"][0].to_dense(), torch.eye(3))


def test_tensors_that_were_tied_are_equal(store: cas.Store) -> None:
    one, two = torch.ones(5), torch.zeros(5)
    save(store, {"a": (one, one), "b": (two, two), "c": one, "d": one})
    found = store.load("main")
    assert_equal(found, {"a": (one, one), "b": (two, two), "c": one, "d": one})


def test_two_paths_of_one_name_are_refused(store: cas.Store) -> None:
    store.commit({"a": {"b": 1}, "a.b": 2})
    with pytest.raises(CheckpointException, match=r"a/b and a\.b are both a.b to"):
        load(store, {"a": {"b": 0}})


def test_a_state_that_is_no_dict_is_refused(store: cas.Store) -> None:
    store.commit([1, 2])
    with pytest.raises(CheckpointException, match="states that are dicts"):
        load(store, {"a": 0})


@pytest.mark.parametrize("paths", [None, {}, {"a.b": "no path", "c": ()}])
def test_without_paths_the_state_is_flat(paths: Any) -> None:
    made = nested({"a.b": 1, "c": 2}, paths)
    assert (made.keys, made.children) == (["a.b", "c"], [1, 2])


@pytest.mark.parametrize(
    "paths",
    [{"x": ("a",), "y": ("a", "b")}, {"y": ("a", "b"), "x": ("a",)}, {"x": ("a", 0), "y": ("a", "b")}],
)
def test_paths_that_do_not_make_one_state_are_refused(paths: Any) -> None:
    with pytest.raises(cas.Invalid, match="where the state has something else"):
        nested({"x": 1, "y": 2}, paths)


def test_a_planner_that_does_not_flatten(store: cas.Store) -> None:
    state = {"nested": {1: "one", "e": {}}, "w": torch.ones(2)}
    save(store, state, DefaultSavePlanner(False, False))
    assert_equal(store.load("main"), state)
    found = {"nested": None, "w": torch.zeros(2)}
    load(store, found, DefaultLoadPlanner(False, False), flatten=False)
    assert_equal(found, state)


# -- planners -----------------------------------------------------------------------------------------------------


class RenamingSave(DefaultSavePlanner):
    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        super().set_up_planner({f"old_{k}": v for k, v in state_dict.items()}, storage_meta, is_coordinator)


class RenamingLoad(DefaultLoadPlanner):
    def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None:
        super().set_up_planner({f"old_{k}": v for k, v in state_dict.items()}, metadata, is_coordinator)
        self.target = state_dict

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.target[read_item.dest_index.fqn.removeprefix("old_")] = torch.load(value, weights_only=True)


class HalvingSave(DefaultSavePlanner):
    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        data = super().resolve_data(write_item)
        return data if write_item.type is WriteItemType.BYTE_IO else data.half()  # type: ignore[union-attr]


class OpaqueSave(DefaultSavePlanner):
    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        return io.BytesIO(repr(object).encode()) if write_item.type is WriteItemType.BYTE_IO else object


class OpaqueLoad(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.original_state_dict[read_item.dest_index.fqn] = value.read()


def test_a_planner_that_renames(store: cas.Store) -> None:
    save(store, {"w": torch.ones(3), "step": 4}, RenamingSave())
    assert list(store.load("main")) == ["old_w", "old_step"]
    found = {"w": torch.zeros(3), "step": 0}
    load(store, found, RenamingLoad())
    assert_equal(found, {"w": torch.ones(3), "step": 4})


def test_the_dtype_is_that_of_the_tensor_and_loading_converts(store: cas.Store) -> None:
    save(store, {"w": torch.full((3,), 1.5), "n": 1}, HalvingSave())
    assert_equal(store.load("main"), {"w": torch.full((3,), 1.5).half(), "n": 1})
    found = {"w": torch.zeros(3, dtype=torch.float64), "n": 0}
    load(store, found)
    assert_equal(found, {"w": torch.full((3,), 1.5).double(), "n": 1})


class OddSave(DefaultSavePlanner):
    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        data = super().resolve_data(write_item)
        assert isinstance(data, torch.Tensor)
        return data.view(torch.bits8)


class NarrowSave(DefaultSavePlanner):
    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        data = super().resolve_data(write_item)
        assert isinstance(data, torch.Tensor)
        return data[1:]


def test_tensors_that_cannot_be_stored_are_refused_by_name(store: cas.Store) -> None:
    state = {"w": torch.zeros(3, dtype=torch.uint8)}
    with pytest.raises(CheckpointException, match=r"Unsupported: state path w is a tensor of torch\.bits8"):
        save(store, state, OddSave())
    with pytest.raises(CheckpointException, match=r"Invalid: w is planned as a box of shape \(3,\), and its data has"):
        save(store, state, NarrowSave())
    with pytest.raises(CheckpointException, match=r"Unsupported: state path pair/.0. is a mkldnn tensor"):
        save(store, {"pair": (torch.zeros(3).to_mkldnn(),)})
    assert store.refs()["branches"] == {}


class CuttingSave(DefaultSavePlanner):
    """Plans each tensor as the rows before and after `at`; the second part may have another dtype."""

    at, dtype = 200, torch.float32

    def create_local_plan(self) -> SavePlan:
        items = []
        for item in super().create_local_plan().items:
            assert item.tensor_data is not None
            rows, columns = item.tensor_data.size
            for first, last in ((0, self.at), (self.at, rows)):
                chunk = ChunkStorageMetadata(torch.Size([first, 0]), torch.Size([last - first, columns]))
                index = MetadataIndex(item.index.fqn, chunk.offsets)
                items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=replace(item.tensor_data, chunk=chunk)))
        return SavePlan(items)

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        assert write_item.tensor_data is not None
        first, rows = write_item.tensor_data.chunk.offsets[0], write_item.tensor_data.chunk.sizes[0]
        part: torch.Tensor = self.state_dict[write_item.index.fqn][first : first + rows]
        return part.to(self.dtype) if first else part

    def create_global_plan(self, all_plans: list[SavePlan]) -> Any:
        plans, metadata = create_default_global_save_plan(all_plans)
        return plans, metadata


class ForgettingSave(CuttingSave):
    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return replace(new_plan, items=new_plan.items[1:])


class RepeatingSave(DefaultSavePlanner):
    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return replace(new_plan, items=new_plan.items * 2)


class DroppingSave(DefaultSavePlanner):
    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return replace(new_plan, items=[])


def test_a_planner_may_cut_tensors_as_it_likes(store: cas.Store) -> None:
    full = torch.randn(600, 1000)
    save(store, {"w": full}, CuttingSave())
    assert torch.equal(store.load("main")["w"], full)
    found = {"w": torch.zeros(600, 1000)}
    load(store, found)
    assert torch.equal(found["w"], full)


def test_nothing_is_lost_or_doubled_without_an_error(store: cas.Store) -> None:
    state, mixed = {"w": torch.randn(600, 1000)}, CuttingSave()
    mixed.dtype = torch.float64
    for saved, planner, text in (
        (state, ForgettingSave(), "Invalid: w of shape .* is not tiled by"),
        (state, mixed, "Invalid: w is float32 of shape .* on one rank and float64"),
        (state, RepeatingSave(), "Invalid: w of shape .* is not tiled by"),
        ({"step": 1}, RepeatingSave(), "Invalid: step is written by several ranks as a value"),
        (state, DroppingSave(), "Invalid: w is in the plan and was written by no rank"),
    ):
        with pytest.raises(CheckpointException, match=text):
            save(store, saved, planner)
    assert store.refs()["branches"] == {}


def test_tensors_that_a_planner_makes_are_let_go_once_they_are_read(store: cas.Store) -> None:
    import weakref

    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    class Making(DefaultSavePlanner):
        def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
            nonlocal most
            made = torch.full((1 << 20,), float(write_item.index.fqn))
            alive.add(made)
            most = max(most, len(alive))
            return made

    save(store, {str(n): torch.empty(1 << 20) for n in range(48)}, Making())
    assert most < 20
    assert float(store.view("main")["47"][5:6].item()) == 47


def test_bytes_of_a_planners_own_are_refused_or_kept_as_they_are(store: cas.Store) -> None:
    with pytest.raises(CheckpointException, match="Unsupported: step is bytes that OpaqueSave makes"):
        save(store, {"step": 4}, OpaqueSave())
    save(store, {"step": 4}, OpaqueSave(), allow_pickle=True)
    found: dict[str, Any] = {"step": 0}
    with pytest.raises(CheckpointException, match="pass allow_pickle=True if you trust"):
        load(store, found, OpaqueLoad())
    load(store, found, OpaqueLoad(), allow_pickle=True)
    assert found == {"step": b"4"}


class Thing:
    """Known to pickle only."""

    def __eq__(self, other: object) -> bool:
        return type(other) is Thing

    __hash__ = None  # type: ignore[assignment]


def test_what_only_pickle_knows_needs_leave(store: cas.Store) -> None:
    with pytest.raises(CheckpointException, match=r"state path thing.here is a .*Thing; convert it to plain values"):
        save(store, {"thing": {"here": Thing()}})
    save(store, {"thing": Thing(), "raw": io.BytesIO(b"raw")}, allow_pickle=True)
    with pytest.raises(CheckpointException, match="pass allow_pickle=True if you trust"):
        load(store, {"thing": None})
    found: dict[str, Any] = {"thing": None, "raw": None}
    load(store, found, allow_pickle=True)
    assert found["thing"] == Thing()
    assert found["raw"].getvalue() == b"raw"


def test_nothing_that_is_loaded_was_pickled_before(store: cas.Store, state: dict[str, Any]) -> None:
    class Safe(DefaultLoadPlanner):
        def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
            torch.load(value, weights_only=True)
            value.seek(0)
            super().load_bytes(read_item, value)

    del state["array"]  # torch's safe unpickler knows no numpy
    store.commit(state)
    found = zeroed(state)
    load(store, found, Safe())
    assert_equal(found, state)


def test_a_state_is_made_from_the_metadata_alone(store: cas.Store, state: dict[str, Any]) -> None:
    save(store, state)
    found: dict[str, Any] = {}
    reader = CasStorageReader(store)
    dcp.state_dict_loader._load_state_dict(
        found, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True
    )
    assert_equal(found, state)


def test_plans_that_are_cached_follow_the_state(store: cas.Store) -> None:
    planner = DefaultSavePlanner(enable_plan_caching=True)
    for step in range(3):
        saved = save(store, {"w": torch.full((4,), float(step)), "step": step}, planner)
        assert store.resolve("main").id == saved
        assert_equal(store.load("main"), {"w": torch.full((4,), float(step)), "step": step})


# -- partial loads, and what does not fit -------------------------------------------------------------------------


def test_part_of_a_commit_is_loaded(store: cas.Store, state: dict[str, Any]) -> None:
    save(store, state)
    found = {"model": {"w": torch.zeros(600, 1000)}}
    load(store, found)
    assert torch.equal(found["model"]["w"], state["model"]["w"])


def test_what_the_commit_lacks_is_missed_unless_that_is_allowed(store: cas.Store) -> None:
    save(store, {"w": torch.ones(3)})
    found = {"w": torch.zeros(3), "new": torch.full((2,), 7.0)}
    with pytest.raises(CheckpointException, match="Missing key in checkpoint state_dict: new"):
        load(store, found)
    load(store, found, DefaultLoadPlanner(allow_partial_load=True))
    assert_equal(found, {"w": torch.ones(3), "new": torch.full((2,), 7.0)})


def test_another_shape_is_refused(store: cas.Store) -> None:
    save(store, {"w": torch.ones(3)})
    with pytest.raises(CheckpointException, match="Size mismatch between saved"):
        load(store, {"w": torch.zeros(4)})


def test_a_revision_that_is_not_there_is_named(store: cas.Store) -> None:
    save(store, {"w": torch.ones(3)})
    with pytest.raises(CheckpointException, match="no branch, tag or commit is called mian"):
        load(store, {"w": torch.zeros(3)}, rev="mian")


def test_any_box_is_read_into_any_place(store: cas.Store) -> None:
    """Several items of one tensor, into memory that is not contiguous, and one that nobody wants."""
    full = torch.arange(600.0 * 1000).view(600, 1000)
    save(store, {"w": full})
    found = torch.zeros(600, 1000)

    class Pieces(DefaultLoadPlanner):
        def create_local_plan(self) -> LoadPlan:
            (item,) = super().create_local_plan().items
            pieces = [((0, 0), (600, 10)), ((17, 500), (100, 333)), ((599, 999), (1, 1)), ((3, 30), (0, 5))]
            return LoadPlan(
                [
                    ReadItem(
                        item.type, item.dest_index, torch.Size(a), item.storage_index, torch.Size(a), torch.Size(n)
                    )
                    for a, n in pieces
                ]
            )

    load(store, {"w": found}, Pieces())
    wanted = torch.zeros(600, 1000)
    wanted[:, :10], wanted[17:117, 500:833], wanted[599, 999] = full[:, :10], full[17:117, 500:833], full[599, 999]
    assert torch.equal(found, wanted)


def test_tensors_that_share_memory_are_filled_one_after_the_other(store: cas.Store) -> None:
    one, two = torch.full((100, 256), 1.0), torch.full((100, 256), 2.0)
    save(store, {"in": one, "out": two, "part": torch.full((10, 256), 3.0)})
    target = torch.zeros(100, 256)
    load(store, {"in": target, "out": target, "part": target[20:30]})
    two[20:30] = 3.0
    assert torch.equal(target, two)


def test_a_model_is_filled_in_place(store: cas.Store) -> None:
    model, other = torch.nn.Linear(30, 20), torch.nn.Linear(30, 20)
    save(store, {"model": get_model_state_dict(model)})
    places = [parameter.data_ptr() for parameter in other.parameters()]
    load(store, {"model": other.state_dict()})
    assert [parameter.data_ptr() for parameter in other.parameters()] == places
    assert torch.equal(other.weight, model.weight)
    load(store, {"model": dict(other.named_parameters())})
    assert other.weight.requires_grad


def test_damaged_bytes_are_never_loaded(store: cas.Store) -> None:
    save(store, {"w": torch.zeros(1 << 16), "v": torch.arange(1 << 16)}, codec="raw")
    pack = max((p for p in (store.path / "packs").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[1 << 18] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)
    with pytest.raises(CheckpointException, match=r"Corrupt: block .* of w in commit"):
        load(store, {"w": torch.ones(1 << 16)})
    load(store, {"v": torch.zeros(1 << 16, dtype=torch.int64)})


def test_values_of_each_rank_are_refused(store: cas.Store) -> None:
    with pytest.raises(CheckpointException, match="rng is PerRank"):
        save(store, {"rng": PerRank(torch.arange(3))})


# -- collections --------------------------------------------------------------------------------------------------


class Collected(CasStorageWriter):
    """A collection ends between what the ranks store and the commit."""

    def finish(self, metadata: Any, results: Any) -> None:
        with self._open() as other:
            assert other.gc(grace=0, expire=0).packs
        super().finish(metadata, results)


def test_a_collection_that_took_what_was_stored_fails_the_save(store: cas.Store, state: dict[str, Any]) -> None:
    first = save(store, {"step": 1})
    with pytest.raises(CheckpointException, match=r"collected while it ran: .*; save again"):
        dcp.save(state, storage_writer=Collected(store))
    assert store.resolve("main").id == first
    save(store, state)
    assert_equal(store.load("main"), state)
    assert_whole(store)


def test_a_collection_of_other_files_does_not(store: cas.Store, state: dict[str, Any]) -> None:
    save(store, state)
    store.commit({"garbage": torch.randn(1000)}, branch="gone")
    store.delete_branch("gone")
    metadata = dcp.save(state, storage_writer=Collected(store))
    assert store.resolve("main").id == metadata.storage_meta.save_id
    assert_whole(store)


# -- ranks --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ranks_save_and_others_load(store: cas.Store) -> None:
    (saved, *others) = run(4, dcp_worker.save, store.path)
    assert others == [saved] * 3
    one, two, *_ = map(store.resolve, saved)
    assert one.tree == two.tree
    assert len({commit.id for commit in store.log("main")}) == 2
    state = dcp_worker.empty_like(dcp_worker.whole())
    load(store, state, rev=saved[3])
    dcp_worker.assert_same(state, dcp_worker.whole(4))
    dcp_worker.assert_same(store.load(saved[0]), dcp_worker.whole())
    assert one.raw == sum(leaf.nbytes for leaf in store.leaves(saved[0]))
    assert one.new < 1.01 * one.raw, "what all ranks hold is stored once"
    for ratio in run(3, dcp_worker.load, store.path, saved):
        assert ratio < 1.1
    run(3, dcp_worker.other_commits, store.path)
    assert_whole(store)


@pytest.mark.slow
def test_meshes_of_two_dimensions(store: cas.Store) -> None:
    run(4, dcp_worker.meshes, store.path)


def test_shards_of_the_older_kind(store: cas.Store) -> None:
    run(2, dcp_worker.old_shards, store.path)


@pytest.mark.slow
def test_a_rank_that_fails_fails_all_and_publishes_nothing(store: cas.Store) -> None:
    said, *others = run(3, dcp_worker.faults, store.path)
    assert others == [said] * 2
    device, rows, parent, kind, clash, moved = said
    assert device == {1: "OSError: the device is gone"}
    assert rows.keys() == {0, 1}
    assert "model.rows is planned at [3, 0] of shape [3, 300000], and this rank holds it at [0, 0]" in rows[0]
    assert parent[0].startswith("NotFound: no commit")
    assert kind[1].startswith("Unsupported: state path bad/[0] is a mkldnn tensor")
    assert clash[0].startswith("Invalid: a stands where")
    assert "moved while ranks began to load it" in moved[0]


@pytest.mark.slow
def test_boxes_that_torch_plans_wrongly_are_refused(store: cas.Store) -> None:
    saving, loading = run(6, dcp_worker.wrong_boxes, store.path)[0]
    assert saving
    assert loading
    for text in (*saving.values(), *loading.values()):
        assert text.startswith("Invalid: 0.")
        assert "use store.commit and store.load with group=" in text


@pytest.mark.slow
def test_training_resumes_from_a_save_in_the_background(store: cas.Store) -> None:
    assert run(2, dcp_worker.train, store.path) == run(2, dcp_worker.resume, store.path)
