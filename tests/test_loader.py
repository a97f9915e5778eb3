"""Loading: parts by pattern, into an existing state, side files, metrics and metadata."""

from __future__ import annotations

from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cas
from cas import Corrupt, Invalid, NotFound, Store

STATE: dict[Any, Any] = {
    "model": {"wte.weight": 1, "h": [{"w": 2, "b": 3}, {"w": 4, "b": 5}], "empty": {}},
    "model2": 6,
    "optim": {"state": {0: {"step": 7}, 1: {"step": 8}}, "pair": (9, 10)},
    "a/b": {"c": 11},
}

ONLY: dict[Any, Any] = {
    "model": {"model": STATE["model"]},
    "/model/": {"model": STATE["model"]},
    "model2": {"model2": 6},
    "model/h": {"model": {"h": STATE["model"]["h"]}},
    "model/h/[1]": {"model": {"h": [None, {"w": 4, "b": 5}]}},
    "model/h/*/w": {"model": {"h": [{"w": 2}, {"w": 4}]}},
    "model/wte.weight": {"model": {"wte.weight": 1}},
    "*/wte*": {"model": {"wte.weight": 1}},
    "**/w": {"model": {"h": [{"w": 2}, {"w": 4}]}},
    "**/step": {"optim": {"state": {0: {"step": 7}, 1: {"step": 8}}}},
    "model/**": {"model": STATE["model"]},
    "optim/state/[1]": {"optim": {"state": {1: {"step": 8}}}},
    "optim/pair/[0]": {"optim": {"pair": (9, None)}},
    "a%2Fb": {"a/b": {"c": 11}},
    "*": {"model2": 6},
    "**": STATE,
    "": STATE,
    ".": STATE,
    ("model2", "a%2Fb/c"): {"model2": 6, "a/b": {"c": 11}},
}


@pytest.mark.parametrize("only", ONLY)
def test_only_loads_what_its_patterns_match(store: Store, only: Any) -> None:
    store.commit(STATE)
    assert store.load(only=only) == ONLY[only]


@pytest.mark.parametrize("only", ["mod", "model/h/w", "modelx", "a/b", "model/*/zzz", "Model", []])
def test_patterns_that_match_nothing_are_invalid(store: Store, only: Any) -> None:
    store.commit(STATE)
    with pytest.raises(Invalid, match="match nothing in this commit"):
        store.load(only=only)


def test_a_pattern_is_a_text(store: Store) -> None:
    store.commit(STATE)
    for only in ([3], 3, b"model", {"model"}, ["model", None]):
        with pytest.raises(Invalid, match="a pattern is a text"):
            store.load(only=only)  # type: ignore[arg-type]


def test_only_reads_only_what_it_loads(store: Store) -> None:
    store.commit({"a": np.ones(9), "b": np.random.default_rng(0).random(100_000)}, codec="raw")
    store.close()
    (file,) = store.path.glob("packs/*/*")
    data = bytearray(file.read_bytes())
    data[400_000] ^= 1
    file.write_bytes(data)
    with cas.open(store.path) as again:
        assert np.all(again.load(only="a")["a"] == 1)
        with pytest.raises(
            Corrupt, match=r"block [0-9a-f]{8} of b in commit [0-9a-f]{8} cannot be read: .*pack packs/"
        ):
            again.load()


# -- into ---------------------------------------------------------------------------------------------------------


def fresh() -> dict[Any, Any]:
    return {
        "w": np.zeros((30, 20), np.float32),
        "list": [np.zeros(5), {"n": 0}],
        "pair": (np.zeros(3, np.int64), "old"),
        "strided": np.zeros((40, 40), np.int32)[::2, ::4],
        "fortran": np.asfortranarray(np.zeros((300, 200))),
        "zero": np.zeros(()),
        "step": 0,
        "text": "old",
    }


def trained() -> dict[Any, Any]:
    state = fresh()
    for seed, array in enumerate(
        [state["w"], state["list"][0], state["pair"][0], state["strided"], state["fortran"], state["zero"]]
    ):
        array[...] = np.random.default_rng(seed).integers(1, 1000, array.shape)
    return {**state, "list": [state["list"][0], {"n": 7}], "pair": (state["pair"][0], "new"), "step": 9, "text": "new"}


def test_into_fills_the_arrays_in_place_and_replaces_values(store: Store) -> None:
    wanted, target = trained(), fresh()
    arrays = [target["w"], target["list"][0], target["pair"][0], target["strided"], target["fortran"], target["zero"]]
    inner, items = target["list"][1], target["list"]
    store.commit(wanted)
    result = store.load(into=target)
    assert result is target
    assert target["list"] is items
    assert target["list"][1] is inner
    assert inner == {"n": 7}
    assert (target["step"], target["text"], target["pair"][1]) == (9, "new", "new")
    now = [target["w"], target["list"][0], target["pair"][0], target["strided"], target["fortran"], target["zero"]]
    assert all(a is b for a, b in zip(arrays, now, strict=True))
    then = [wanted["w"], wanted["list"][0], wanted["pair"][0], wanted["strided"], wanted["fortran"], wanted["zero"]]
    assert all(np.array_equal(a, b) for a, b in zip(now, then, strict=True))


def test_into_a_part_with_only_leaves_the_rest_alone(store: Store) -> None:
    store.commit(trained())
    target = fresh()
    store.load(into=target, only=["w", "list/[1]"])
    assert np.array_equal(target["w"], trained()["w"])
    assert target["list"][1] == {"n": 7}
    assert target["step"] == 0
    assert not target["list"][0].any()
    assert target["pair"][1] == "old"


def test_into_with_only_needs_no_more_than_it_fills(store: Store) -> None:
    store.commit({"model": trained(), "optim": {"m": np.ones(5)}})
    target = {"model": fresh(), "mine": 3}
    store.load(into=target, only="model")
    assert np.array_equal(target["model"]["w"], trained()["w"])
    assert target["mine"] == 3
    with pytest.raises(Invalid, match=r"into= at \. lacks 'optim', which only= asks for"):
        store.load(into={"model": fresh()}, only=["model", "optim/m"])


WRONG: dict[str, tuple[Any, str]] = {
    "missing key": ({"a": [np.zeros(3)]}, r"into= at \. lacks \['b'\] and has \[\]"),
    "extra key": ({"a": [np.zeros(3)], "b": {"c": 1}, "d": 2}, r"into= at \. lacks \[\] and has \['d'\]"),
    "inner key": ({"a": [np.zeros(3)], "b": {"x": 1}}, r"into= at b lacks \['c'\] and has \['x'\]"),
    "list for dict": ({"a": [np.zeros(3)], "b": [1]}, "into= at b is a list, the commit has a dict"),
    "tuple for list": ({"a": (np.zeros(3),), "b": {"c": 1}}, "into= at a is not a list of 1 items"),
    "shorter list": ({"a": [], "b": {"c": 1}}, "into= at a is not a list of 1 items"),
    "other shape": (
        {"a": [np.zeros(4)], "b": {"c": 1}},
        r"^a/\[0\] in commit .* is not a numpy array of dtype float64",
    ),
    "other dtype": ({"a": [np.zeros(3, "f4")], "b": {"c": 1}}, r"^a/\[0\] in commit .*float64 and shape \(3,\)"),
    "no array": ({"a": [None], "b": {"c": 1}}, r"^a/\[0\] in commit .* is not a numpy array"),
    "read-only": ({"a": [np.broadcast_to(0.0, 3)], "b": {"c": 1}}, r"^a/\[0\] in commit .* is a read-only array"),
    "none": (None, r"into= at \. is a NoneType"),
}


@pytest.mark.parametrize("name", WRONG)
def test_into_of_another_form_is_invalid_with_its_path(store: Store, name: str) -> None:
    store.commit({"a": [np.arange(3.0)], "b": {"c": 1}})
    target, reason = WRONG[name]
    with pytest.raises(Invalid, match=reason):
        store.load(into=target)


def test_into_tied_arrays_fills_both(store: Store) -> None:
    w = np.arange(5)
    store.commit({"a": w, "b": w})
    target = {"a": np.zeros(5, w.dtype), "b": np.zeros(5, w.dtype)}
    store.load(into=target)
    assert np.array_equal(target["a"], w)
    assert np.array_equal(target["b"], w)


def test_into_a_single_array_and_special_dicts(store: Store) -> None:
    store.commit(np.arange(4))
    target = np.zeros(4, np.int64)
    assert store.load(into=target) is target
    assert target.tolist() == [0, 1, 2, 3]
    store.commit({"o": OrderedDict(a=1), "c": Counter(b=2)})
    state = {"o": OrderedDict(a=0), "c": Counter(b=0)}
    store.load(into=state)
    assert state == {"o": OrderedDict(a=1), "c": Counter(b=2)}


def test_device_does_not_concern_numpy(store: Store) -> None:
    store.commit({"a": np.arange(4)})
    assert type(store.load(device="cuda")["a"]) is np.ndarray


# -- side files, metrics, metadata --------------------------------------------------------------------------------


def test_files_come_back_by_name(store: Store, tmp_path: Path) -> None:
    contents = {"config.json": b"{}", "deep/down/tok.model": bytes(range(256)) * 30_000, "empty": b""}
    paths: dict[str, Any] = {}
    for number, (name, data) in enumerate(contents.items()):
        (tmp_path / str(number)).write_bytes(data)
        paths[name] = tmp_path / str(number) if number else str(tmp_path / str(number))
    commit = store.commit({"a": 1}, files=paths)
    assert commit.files == tuple(contents)
    assert store.files() == contents
    again = store.commit({"a": 2}, files=paths)
    assert again.stats is not None
    assert again.stats.new_blocks == 0
    assert store.commit({"a": 3}).files == ()
    assert store.files() == {}
    assert store.files("main~2") == contents


def test_files_are_read_before_an_async_commit_returns(store: Store, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    pending = store.commit_async({"a": np.ones(1_000_000)}, files={"f": tmp_path / "f"})
    (tmp_path / "f").write_bytes(b"new")
    pending.wait()
    assert store.files() == {"f": b"old"}


BAD_FILES = ["", "/a", "../a", "a/../b", "./a", "a//b", "a/", "a\nb", "a\\b", ".", "..", "a\0b", "\u202ea", 3]


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_name_that_could_leave_its_folder_is_invalid(store: Store, tmp_path: Path, name: Any) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(Invalid, match="is no safe file name"):
        store.commit({}, files={name: tmp_path / "f"})


def test_metrics_are_numbers(store: Store) -> None:
    given = {"int": 3, "float": 0.1, "zero-dim": np.array(2.5), "one": np.array([[7]]), "scalar": np.float32(0.5)}
    commit = store.commit({}, metrics={**given, "int8": np.int8(4), "huge": 1 << 70, "nan": float("nan")})
    metrics = store.resolve().metrics
    assert list(metrics) == [*given, "int8", "huge", "nan"]
    assert [metrics[key] for key in given] == [3, 0.1, 2.5, 7, 0.5]
    assert {type(value) for value in metrics.values()} == {int, float}
    assert metrics["int8"] == 4
    assert metrics["huge"] == float(1 << 70)
    assert metrics["nan"] != metrics["nan"]
    assert repr(commit.metrics) == repr(metrics)


def test_meta_keeps_plain_values(store: Store) -> None:
    meta = {"host": "n1", "n": [1, (2, None)], 5: {"x": b"\0", "big": 1 << 90}, "np": np.float16(1.5), "no": {}}
    commit = store.commit({}, meta=meta)
    assert commit.meta == store.resolve().meta == meta
    assert type(store.resolve().meta["np"]) is np.float16


def test_meta_takes_no_framework_values(store: Store) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(Invalid, match="meta= holds a dtype of torch"):
        store.commit({}, meta={"d": torch.float32})


def test_a_commit_knows_what_it_was_given(store: Store) -> None:
    commit = store.commit({"a": np.ones(10)}, step=np.int64(7), message="line\nline")
    found = store.resolve(commit.id)
    assert (found.step, found.message, found.raw) == (7, "line\nline", 80)
    assert type(found.step) is int
    assert (found.id, found.time, found.author) == (commit.id, commit.time, commit.author)
    assert "@" in found.author
    assert found.stats is None


def test_loading_what_is_not_there_names_what_is(store: Store) -> None:
    store.commit({})
    with pytest.raises(NotFound, match="no branch, tag or commit is called mian; there are main"):
        store.load("mian")
