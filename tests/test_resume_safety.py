"""What a user does beside the plain loop: looking, tagging and loading while commits run, targets that share memory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import cas


def test_a_load_beside_a_background_commit_does_not_take_its_parent_back(tmp_path: Path) -> None:
    with cas.open(tmp_path / "s", create=True) as store:
        store.commit({"w": np.zeros(4 << 20)})
        for number in range(5):
            pending = store.commit_async({"w": np.full(4 << 20, number + 1.0)})
            store.load("main")
            pending.wait()
        store.commit({"w": np.zeros(3)})
        assert len(list(store.log("main"))) == 7


@pytest.mark.parametrize("peek", [lambda s: s.view("main")["v"], lambda s: s.load("main", only="v")])
def test_looking_at_a_branch_that_another_run_moved_does_not_let_this_run_write_on_top(tmp_path: Path, peek) -> None:  # type: ignore[no-untyped-def]
    with cas.open(tmp_path / "s", create=True) as ours, cas.open(tmp_path / "s") as theirs:
        ours.commit({"v": "ours 0"})
        theirs.load("main")
        theirs.commit({"v": "theirs 1"})
        peek(ours)
        with pytest.raises(cas.RefConflict):
            ours.commit({"v": "ours 1"})
        ours.load("main")
        ours.commit({"v": "on theirs"})


def test_a_first_look_through_a_view_is_enough_to_go_on(tmp_path: Path) -> None:
    with cas.open(tmp_path / "s", create=True) as store:
        store.commit({"v": 1})
    with cas.open(tmp_path / "s") as store:
        assert store.view("main")["v"] == 1
        assert store.commit({"v": 2}).parents


def test_into_whose_tensors_share_memory_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with cas.open(tmp_path / "s", create=True) as store:
        store.commit({"a": np.ones(3), "b": np.full(3, 2.0)})
        shared = np.zeros(3)
        with pytest.raises(cas.Invalid, match="a and b share memory"):
            store.load("main", into={"a": shared, "b": shared})
        assert not shared.any()
        store.commit({"a": (tied := np.ones(3)), "b": tied})
        store.load("main", into={"a": shared, "b": shared})
        assert (shared == 1).all()


def test_load_into_a_large_dict_takes_about_as_long_as_a_plain_load(tmp_path: Path) -> None:
    state = {f"k{number}": number for number in range(30_000)}
    with cas.open(tmp_path / "s", create=True) as store:
        store.commit(state)
        began = time.perf_counter()
        store.load("main", into=dict(state))
        assert time.perf_counter() - began < 5


def test_a_tag_after_commit_async_names_that_commit(tmp_path: Path) -> None:
    with cas.open(tmp_path / "s", create=True) as store:
        store.commit({"w": 0}, step=0)
        store.commit_async({"w": np.arange(1 << 20)}, step=1)
        assert store.tag("best", "main").step == 1
        store.commit_async({"w": np.arange(1 << 20) + 1}, step=2)
        store.delete_branch("main")
        assert not store.refs()["branches"]


def test_a_deleted_branch_comes_back_from_the_log(tmp_path: Path) -> None:
    with cas.open(tmp_path / "s", create=True) as store:
        first, second = store.commit({"w": 0}), store.commit({"w": 1})
        store.delete_branch("main")
        assert store.resolve("main@{1}").id == second.id
        assert store.resolve("main@{2}").id == first.id
        assert store.resolve("main@{1}~1").id == first.id
        store.branch("main", "main@{1}")
        assert store.load("main") == {"w": 1}


def test_a_metric_may_hold_an_at_sign(tmp_path: Path) -> None:
    with cas.open(tmp_path / "s", create=True) as store:
        best = store.commit({"w": 0}, metrics={"acc@5": 0.9})
        store.commit({"w": 1}, metrics={"acc@5": 0.8})
        assert store.resolve("main@max:acc@5").id == best.id
        assert store.resolve("main@min:acc@5~1").id == best.id


def test_a_clock_before_1970_makes_a_commit_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with cas.open(tmp_path / "s", create=True) as store:
        monkeypatch.setattr(time, "time_ns", lambda: -(10**18))
        store.commit({"w": 1})
        assert store.load("main") == {"w": 1}
        assert store.fsck(data=True) == []


def test_a_side_file_cannot_be_a_directory_of_another(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with cas.open(tmp_path / "s", create=True) as store, pytest.raises(cas.Invalid, match="file and a directory"):
        store.commit({}, files={"a": tmp_path / "f", "a/b": tmp_path / "f"})
    with pytest.raises(cas.Invalid, match="empty"):
        cas.open("", create=True)
