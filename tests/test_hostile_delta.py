"""What a hostile user tried with delta commits and repack: nothing is lost, nothing hangs, nothing grows for ever."""

from __future__ import annotations

import contextlib
import gc
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.forge import Forge
from trainings import equal

import cas
from cas import CasError, Corrupt, NotFound, Store
from cas.block import MAX_CHAIN, Codec, Kind
from cas.committing import state_skeleton
from cas.delta import Delta, DeltaPlan
from cas.entropy import Setting
from cas.nodes import Tag

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    cas.init(tmp_path / "store", block_size=16 << 10).close()
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with cas.open(path) as opened:
        yield opened


def noise(seed: int, scale: float = 0.02, shape: tuple[int, ...] = (128, 256)) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def rest(store: Store) -> int:
    """Repack until nothing is left to do; how often something was."""
    for number in range(6):
        store.gc(grace=0, expire=0)
        if not store.repack().written:
            return number
    pytest.fail("repack does not come to rest")


# -- what repack leaves ---------------------------------------------------------------------------------------------


def test_repack_comes_to_rest_beside_tensors_that_have_no_deltas(store: Store) -> None:
    for number in range(20):
        store.commit({"w": noise(0) + noise(number, 1e-6), "m": noise(100 + number)}, delta="parent")
    store.commit({"w": noise(0) + noise(50, 1e-6), "m": noise(200)}, branch="tune", delta="parent")
    assert rest(store) <= 2
    store.commit({"w": noise(0) + noise(51, 1e-6), "m": noise(201)}, branch="tune", delta="parent")
    assert rest(store) <= 2


def test_fine_tunes_of_many_bases_take_no_more_after_a_repack(store: Store) -> None:
    for number in range(12):
        store.commit({"w": noise(number)}, branch=f"base{number}")
    for number in range(12):
        store.branch(f"tune{number}", f"base{number}")
        store.load(f"tune{number}")
        store.commit({"w": noise(number) + noise(99, 1e-6)}, branch=f"tune{number}", delta="parent")
    before = store.gc(grace=0, expire=0).size
    rest(store)
    assert store.gc(grace=0, expire=0).size < 1.05 * before


@pytest.mark.parametrize(
    "text", ['[1, {"%s": [Infinity, true]}]', "[" * 100_000, '[1, {"%s": [NaN, false]}]', "[1e999]"]
)
def test_any_memory_of_what_was_repacked_is_survived(store: Store, path: Path, text: str) -> None:
    store.commit({"w": noise(0)})
    store.repack()
    pack = next(file.name for file in (path / "packs").rglob("*") if file.is_file())
    (path / "index" / "repacked").write_text(text.replace("%s", pack))
    store.repack()
    assert equal(store.load("main"), {"w": noise(0)})


# -- bases ----------------------------------------------------------------------------------------------------------


def test_what_others_store_meanwhile_is_no_base_in_memory(store: Store) -> None:
    """A part that is stored beside a commit that keeps its bases lies in memory which its owner goes on changing."""
    staged: list[Array] = [noise(1)]

    def beside(nbytes: int) -> None:
        if staged:
            _, leaves = state_skeleton({"w": staged.pop()}, False)
            with store.part_writer() as part:
                part.store(leaves)
                part.finish()

    mine = staged[0]
    store.commit_async({"big": noise(0)}, keep_base=True, progress=beside, delta="none").wait()
    assert not staged
    mine += noise(2, 1e-6)
    store.commit({"w": noise(1)}, branch="other")
    state = {"w": noise(1) + noise(3, 1e-6)}
    store.commit(state, branch="other", delta="parent")
    assert equal(store.load("other"), state)


def test_a_commit_in_the_background_that_fails_keeps_nothing(store: Store) -> None:
    def fail(nbytes: int) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.commit_async({"w": noise(0)}, keep_base=True, progress=fail).wait()
    later = noise(1)
    seen = weakref.ref(later)
    store.commit({"w": later}, codec="raw")
    del later
    gc.collect()
    assert seen() is None, "a state is held after its commit"


def test_a_damaged_tip_elsewhere_is_no_base_and_no_error(store: Store, path: Path) -> None:
    store.commit({"w": noise(0)}, branch="other")
    for file in (path / "packs").rglob("*"):
        if file.is_file():
            data = bytearray(file.read_bytes())
            table = int.from_bytes(data[-48:-40], "little")
            data[table - 20] ^= 0xFF  # the commit is the last object
            file.chmod(0o644)
            file.write_bytes(data)
    with cas.open(path) as fresh:
        with pytest.raises(CasError):
            fresh.resolve("other")
        fresh.commit_async({"w": noise(1)}, branch="new").wait()
        assert equal(fresh.load("new"), {"w": noise(1)})


@pytest.mark.parametrize("copies", [1, 12])
def test_rows_that_fan_out_over_a_bad_base_are_told_at_once(tmp_path: Path, copies: int) -> None:
    """With 12 rows of each base on eight levels there are 430 million ways down."""
    forge = Forge(tmp_path / "forged")
    blocks = [bytes([level]) * 4096 for level in range(MAX_CHAIN + 1)]
    below = forge.add(Kind.BLOCK, blocks[0], b"\xff" * 4096)
    for level in range(1, MAX_CHAIN + 1):
        data = Delta().encode_delta(blocks[level], blocks[level - 1], DeltaPlan(1, (0,), (Setting.TUNED,)))
        assert data is not None
        stored = bytes(data)
        row = {"codec": Codec.DELTA, "width": 1, "chain": level, "base": below}
        for _ in range(copies):
            name = forge.add(Kind.BLOCK, blocks[level], stored, **row)
        below = name
    tree = forge.tree([Tag.DICT, [["w", [7, "numpy", "uint8", [4096], below, None]]]])
    forge.publish(forge.commit(tree))
    started = time.perf_counter()
    with cas.open(tmp_path / "forged") as store, pytest.raises((Corrupt, NotFound)):
        store.load("main")
    assert time.perf_counter() - started < 5


# -- anything in any order ------------------------------------------------------------------------------------------


def _steps(store: Store, path: Path, seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    choose = np.random.default_rng(seed)
    while True:
        level: Any = ["fast", "smallest"][choose.integers(2)]
        expire = [0.0, 86_400.0][choose.integers(2)]
        yield "repack", lambda level=level: store.repack(level)
        yield "gc", lambda expire=expire: store.gc(grace=0, expire=expire)
        yield "undo", store.undo
        yield "prune", lambda: store.prune("main", keep_last=5)
        yield "index", lambda: shutil.rmtree(path / "index", ignore_errors=True)


@pytest.mark.parametrize("seed", range(3))
def test_states_are_what_they_were_after_anything_in_any_order(path: Path, seed: int) -> None:
    """Bits of every kind, which drift, jump and come back, with repack, gc, undo and prune between commits."""
    random = np.random.default_rng(seed)
    states: dict[str, dict[str, Any]] = {}
    now: dict[str, Any] = {"a": noise(0), "b": np.zeros((0, 3)), "c": np.float64(0), "d": random.bytes(70_000)}
    for _ in range(12):
        with cas.open(path) as store:
            if "main" in store.refs()["branches"]:
                now = dict(states[store.resolve("main").id])
                store.load("main")
            for _ in range(3):
                now["a"] = now["a"].copy()
                bits = now["a"].reshape(-1).view(np.uint32)
                at = random.integers(0, len(bits), 500)
                bits[at] = [0x80000000, 0x7FC00001, 1, 0xFFFFFFFF][random.integers(4)]
                bits += random.integers(0, 3, len(bits)).astype(np.uint32)
                now["b"] = now["a"].T if random.random() < 0.5 else now["a"]
                delta: Any = ["parent", "none"][random.integers(2)]
                states[store.commit(now, delta=delta).id] = {**now, "b": np.ascontiguousarray(now["b"])}
            steps = dict(step for step, _ in zip(_steps(store, path, int(random.integers(99))), range(5), strict=False))
            for name in random.permutation(list(steps))[:3].tolist():
                if name != "index":
                    with contextlib.suppress(NotFound if name == "undo" else ()):  # nothing is left to go back to
                        steps[name]()
        if "index" in steps and random.random() < 0.3:
            steps["index"]()
        with cas.open(path) as store:
            for commit in store.log("main"):
                assert commit.pruned or equal(store.load(commit.id), states[commit.id])
    with cas.open(path) as store:
        assert not [found for found in store.fsck(data=True) if found.severity != "info"]
