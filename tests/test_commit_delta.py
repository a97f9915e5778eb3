"""Commits that store blocks as changes of others: which, of what, and that every state stays what it is."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainings import Training, check_all, codecs, commits, depths, equal

import cas
from cas import Invalid, NotFound, Store
from cas.pack import name_of
from cas.state import Walk


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with cas.init(tmp_path / "store", block_size=64 << 10) as made:
        yield made


def test_slow_changes_take_fewer_bytes_than_whole_blocks(store: Store) -> None:
    states = commits(store, 3, codec="planes", delta="parent")
    first, *later = reversed([commit.stored for commit in store.log()])
    weights = sum(value.nbytes for value in states[0]["model"].values())
    assert all(stored < first - 0.15 * weights for stored in later)
    assert codecs(store)["delta"] > 0
    check_all(store, states)


def test_commits_in_the_background_are_deltas_and_others_are_not(store: Store) -> None:
    training = Training()
    store.commit(training.state(), step=0)
    training.step()
    store.commit(training.state(), step=1)
    assert codecs(store)["delta"] == 0
    training.step()
    store.commit_async(training.state(), step=2).wait()
    assert codecs(store)["delta"] > 0
    training.step()
    before = codecs(store)["delta"]
    store.commit_async(training.state(), step=3, delta="none").wait()
    assert codecs(store)["delta"] == before


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_codecs_that_say_how_all_is_stored_exclude_deltas(store: Store, codec: Any) -> None:
    commits(store, 3, codec=codec, delta="parent")
    assert codecs(store)["delta"] == 0


def test_what_was_committed_last_never_has_more_than_one_base_below(store: Store) -> None:
    states = commits(store, 6, delta="parent")
    assert all(max(depths(store, f"main@step:{number}")) == 1 for number in range(1, 6))
    check_all(store, states)


def test_what_is_made_anew_at_every_step_is_stored_whole(store: Store) -> None:
    random = np.random.default_rng(1)
    for _ in range(3):
        store.commit({"noise": random.standard_normal(100_000)}, delta="parent")
    assert codecs(store)["delta"] == 0


def test_a_tensor_that_was_hopeless_is_looked_at_again(store: Store) -> None:
    random = np.random.default_rng(1)
    for _ in range(3):
        noise = random.standard_normal(20_000)
        store.commit({"w": noise}, delta="parent")
    for _ in range(20):
        noise = noise + 1e-9
        store.commit({"w": noise}, delta="parent")
    assert codecs(store)["delta"] > 0


def test_rows_that_are_appended_leave_those_before_what_they_are(store: Store) -> None:
    random = np.random.default_rng(0)
    embedding = random.standard_normal((1000, 128)).astype(np.float32)
    store.commit({"e": embedding}, step=0, delta="parent")
    longer = np.concatenate([embedding + np.float32(1e-6), random.standard_normal((24, 128)).astype(np.float32)])
    store.commit({"e": longer}, step=1, delta="parent")
    assert codecs(store)["delta"] >= 7  # of 8 blocks; the last is longer
    check_all(store, [{"e": embedding}, {"e": longer}])


@pytest.mark.parametrize("other", [np.float64, np.int32])
def test_a_tensor_of_another_type_is_no_base(store: Store, other: Any) -> None:
    store.commit({"w": np.arange(50_000, dtype=np.float32)})
    store.commit({"w": np.arange(50_000).astype(other)}, delta="parent")
    assert codecs(store)["delta"] == 0


def test_a_tensor_whose_rows_have_another_length_is_no_base(store: Store) -> None:
    store.commit({"w": np.arange(51_200, dtype=np.float32).reshape(100, 512)})
    store.commit({"w": np.arange(51_200, dtype=np.float32).reshape(200, 256) + 1}, delta="parent")
    assert codecs(store)["delta"] == 0


def test_integers_of_every_width_and_complex_numbers_come_back(store: Store) -> None:
    random = np.random.default_rng(0)
    dtypes = ["int8", "uint8", "int16", "uint32", "int64", "float16", "float32", "float64", "complex64", "bool"]
    state = {name: random.integers(0, 2 if name == "bool" else 100, 50_000).astype(name) for name in dtypes}
    moved = {
        name: (value ^ (random.random(50_000) < 0.01) if name == "bool" else value + 1) for name, value in state.items()
    }
    moved = {name: value.astype(name) for name, value in moved.items()}
    store.commit(state, step=0)
    store.commit(moved, step=1, delta="parent")
    assert codecs(store)["delta"] >= 9
    check_all(store, [state, moved])


# -- bases in memory --------------------------------------------------------------------------------------------------


def test_bases_that_are_kept_in_memory_are_not_read(store: Store, tmp_path: Path) -> None:
    training = Training()
    store.commit_async(training.state(), step=0, keep_base=True).wait()
    damage(store, tmp_path / "store")
    training.step()
    store.commit_async(training.state(), step=1, keep_base=True).wait()
    assert codecs(store)["delta"] > 0


def test_states_with_bases_in_memory_are_what_they_were(store: Store) -> None:
    """Over changes so large that new bases are kept, of shapes that change, and with others in between."""
    training, states = Training(), []
    for number in range(12):
        state = training.state()
        if number > 5:
            state["more"] = np.full(30_000 + number, number)
        states.append(state)
        if number % 4 == 3:
            store.commit(state, step=number, delta="parent")
        else:
            store.commit_async(state, step=number, keep_base=number % 5 != 4)
        training.step(1e-5 if number % 3 else 1.0)
    store.close()
    with cas.open(store.path) as again:
        assert codecs(again)["delta"] > 0
        check_all(again, states)


# -- bases beyond the parent ------------------------------------------------------------------------------------------


def test_a_fine_tune_lies_near_the_base_that_is_named(store: Store) -> None:
    training = Training()
    base = training.state()
    store.commit(base, branch="foundation")
    training.step()
    tuned = training.state()
    made = store.commit(tuned, branch="tuned", base="foundation")
    assert codecs(store)["delta"] > 0
    assert made.stored < 0.9 * made.raw
    assert equal(store.load("tuned"), tuned)


def test_a_base_that_is_not_there_is_said_before_anything_is_stored(store: Store) -> None:
    store.commit(Training().state())
    with pytest.raises(NotFound, match="nothing"):
        store.commit(Training(1).state(), branch="tuned", base="nothing")
    assert [kind for kind in store.refs() if "tuned" in str(kind)] == []


def test_a_base_is_found_among_branches_by_what_the_state_resembles(store: Store) -> None:
    training = Training()
    store.commit(training.state(), branch="near")
    for seed in range(1, 4):
        store.commit(Training(seed).state(), branch=f"far{seed}")
    training.step()
    state = training.state()
    store.commit(state, branch="new", delta="parent")
    assert codecs(store)["delta"] > 0
    assert max(depths(store, "new")) == 1
    assert equal(store.load("new"), state)


def test_nothing_is_a_base_where_nothing_is_alike(store: Store) -> None:
    store.commit(Training(0).state(), branch="one")
    store.commit(Training(1).state(), branch="other", delta="parent")
    assert codecs(store)["delta"] == 0


# -- bases that are not to be had -----------------------------------------------------------------------------------


def damage(store: Store, path: Path) -> None:
    """Change a byte of every block."""
    for place in store._catalog.index.rows():
        file = path / name_of(place.pack)
        file.chmod(0o644)
        data = bytearray(file.read_bytes())
        if place.row.stored >= 4096:
            data[place.row.offset + 100] ^= 1
            file.write_bytes(data)


def test_a_damaged_base_is_not_leant_on(store: Store, tmp_path: Path) -> None:
    states = commits(store, 2)
    damage(store, tmp_path / "store")
    training = Training()
    for _ in states:
        training.step()
    state = training.state()
    store.commit(state, step=2, delta="parent")
    assert codecs(store)["delta"] == 0
    assert equal(store.load(), state)


def test_a_parent_that_was_pruned_has_no_blocks_to_lean_on(store: Store) -> None:
    states = commits(store, 3)
    store.prune(keep_last=1)
    store.gc(grace=0, expire=0)
    training = Training()
    for _ in states:
        training.step()
    store.commit(training.state(), step=3, delta="parent")
    assert equal(store.load(), training.state())


def test_garbage_whose_base_was_collected_is_stored_again(tmp_path: Path) -> None:
    """A delta that nothing needs may outlive its base; who commits its very block must not lean on it."""
    with cas.init(tmp_path / "store", block_size=64 << 10) as store:
        training = Training()
        base = training.state()
        store.commit(base, branch="one", step=0)
        training.step()
        moved = training.state()
        kept = {"kept": np.random.default_rng(5).standard_normal(400_000)}
        store.commit({**moved, **kept}, branch="two", step=1, base="one")  # one pack: deltas, and what stays live
        store.commit(kept, branch="three", parent=None)
        deltas = codecs(store)["delta"]
        assert deltas > 0
        store.delete_branch("one")
        store.delete_branch("two")
        store.gc(grace=0, expire=0)
        assert codecs(store)["delta"] == deltas, "the pack with the garbage deltas was to stay"
        store.commit(moved, branch="again", step=1)
        assert equal(store.load("again"), moved)
    shutil.rmtree(tmp_path / "store" / "index")
    with cas.open(tmp_path / "store") as store:
        assert equal(store.load("again"), moved)
        store.gc(grace=0, expire=0)
        assert equal(store.load("again"), moved)


def test_an_unknown_choice_is_refused(store: Store) -> None:
    with pytest.raises(Invalid, match="delta is one of none, parent"):
        store.commit({}, delta="always")  # type: ignore[arg-type]


def test_a_background_commit_that_failed_keeps_no_later_state_in_memory(store: Store) -> None:
    def stop(_: int) -> None:
        raise OSError("no more")

    state = Training().state()
    with pytest.raises(cas.CasError, match="no more"):
        store.commit_async(state, keep_base=True, progress=stop).wait()
    array = np.random.default_rng(0).standard_normal(100_000)
    held = weakref.ref(array)
    store.commit({"w": array})
    del array
    gc.collect()
    assert held() is None


def test_a_branch_that_cannot_be_read_does_not_keep_a_first_commit_from_being_made(store: Store) -> None:
    store.commit({"w": np.arange(5000)}, branch="damaged")
    store.close()
    for file in (store.path / "packs").rglob("*/*"):
        file.chmod(0o644)
        data = bytearray(file.read_bytes())
        data[64:-400] = bytes(len(data) - 464)
        file.write_bytes(data)
    state = Training().state()
    with cas.open(store.path) as again:
        again.commit_async(state, branch="new").wait()
        assert equal(again.load("new"), state)


def test_memory_that_others_write_is_no_base(store: Store) -> None:
    """What another writer of the same Store stores meanwhile lies in its caller's memory, which changes."""
    began, go_on = threading.Event(), threading.Event()

    def wait(_: int) -> None:
        began.set()
        go_on.wait(30)

    weights = np.random.default_rng(0).standard_normal(60_000).astype(np.float32)
    pending = store.commit_async(Training().state(), keep_base=True, progress=wait)
    began.wait(30)
    leaves = Walk(False)
    leaves.visit({"w": weights})
    with store.part_writer() as part:
        part.store(leaves.leaves)
        part.finish()
    go_on.set()
    pending.wait()
    first = weights.copy()
    store.commit({"w": first}, branch="w", delta="none")
    weights += np.float32(1e-6)  # training goes on in the memory that was stored
    store.commit({"w": weights}, branch="w", delta="parent")
    store.close()
    with cas.open(store.path) as again:
        assert equal(again.load("w"), {"w": weights})
        assert equal(again.load("w~1"), {"w": first})
