"""Remotes: what a store keeps of others, what it refuses to keep, and how their branches stand beside its own."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from faults.stores import commit, make

import cas
from cas.errors import Exists, Invalid, NotFound, RefConflict
from cas.log import Log, encode_record


def test_a_remote_is_kept_with_its_url_and_options(store: cas.Store, tmp_path: Path) -> None:
    store.add_remote("lab", "s3://bucket/a run", endpoint_url="http://127.0.0.1:9000", anon=True)
    store.add_remote("origin", tmp_path / "other")
    store.add_remote("part", tmp_path / "other", only="model/**")
    with cas.open(store.path) as again:
        assert again.remotes() == {
            "lab": cas.Remote("lab", "s3://bucket/a run", {"anon": True, "endpoint_url": "http://127.0.0.1:9000"}),
            "origin": cas.Remote("origin", str(tmp_path / "other")),
            "part": cas.Remote("part", str(tmp_path / "other"), {}, ("model/**",)),
        }
    assert list(store.remotes()) == ["lab", "origin", "part"]


def test_a_part_that_is_none_is_refused(store: cas.Store) -> None:
    with pytest.raises(Invalid):
        store.add_remote("part", "s3://bucket/run", only=[7])  # type: ignore[list-item]
    assert store.remotes() == {}


def test_a_path_is_kept_absolute(store: cas.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store.add_remote("near", "other").url == str(tmp_path / "other")
    assert store.remotes()["near"].url == str(tmp_path / "other")


@pytest.mark.parametrize(
    "options",
    [
        {"key": "AKIA", "secret": "hunter2"},
        {"password": "hunter2"},
        {"token": "hunter2"},
        {"profile": ["hunter2"]},
        {"client_kwargs": {"aws_secret_access_key": "hunter2"}},
        {"endpoint_url": "http://me:hunter2@host"},
    ],
)
def test_secrets_are_refused_and_never_written(store: cas.Store, options: dict[str, object]) -> None:
    with pytest.raises(Invalid) as raised:
        store.add_remote("lab", "s3://bucket/run", **options)  # type: ignore[arg-type]
    assert "storage-option" in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert store.remotes() == {}
    assert not any(b"hunter2" in file.read_bytes() for file in store.path.rglob("*") if file.is_file())


def test_a_password_in_a_url_is_refused(store: cas.Store) -> None:
    with pytest.raises(Invalid) as raised:
        store.add_remote("lab", "sftp://me:hunter2@host/run")
    assert "hunter2" not in str(raised.value)
    with pytest.raises(Invalid):
        store.push("sftp://me:hunter2@host/run")


@pytest.mark.parametrize("name", ["", "a/b", "a b", "..", "-x", "HEAD", "a:b", "x" * 201, 7])
def test_names_that_no_branch_could_begin_with_are_refused(store: cas.Store, name: str) -> None:
    with pytest.raises(Invalid):
        store.add_remote(name, "s3://bucket/run")


def test_a_name_is_taken_once(store: cas.Store, tmp_path: Path) -> None:
    store.add_remote("origin", tmp_path / "a")
    with pytest.raises(Exists, match=str(tmp_path / "a")):
        store.add_remote("origin", tmp_path / "b")


def test_no_branch_or_tag_may_look_like_a_remotes(store: cas.Store) -> None:
    commit(store, 1)
    store.add_remote("lab", "s3://bucket/run")
    for name in ("lab", "lab/main"):
        with pytest.raises(Exists, match="lab"):
            store.branch(name, "main")
        with pytest.raises(Exists, match="lab"):
            store.tag(name, "main")
        with pytest.raises(Exists, match="lab"):
            store.commit({"a": 1}, branch=name)
    store.branch("laboratory", "main")


@pytest.mark.parametrize("name", ["lab", "lab/main"])
def test_a_remote_may_not_stand_where_branches_do(store: cas.Store, name: str) -> None:
    commit(store, 1)
    store.branch(name, "main")
    with pytest.raises(Exists, match=name):
        store.add_remote("lab", "s3://bucket/run")


def test_removing_a_remote_removes_its_tracking_branches(tmp_path: Path) -> None:
    make(tmp_path / "a", 2)
    with cas.clone(tmp_path / "a", tmp_path / "b") as store:
        store.add_remote("orig", tmp_path / "a")
        store.fetch("orig")
        seq = next(store.roots()).seq
        store.remove_remote("orig")
        assert list(store.refs()["tracking"]) == ["origin/main"]
        store.remove_remote("origin")
        assert next(store.roots()).seq == seq + 2, "a remote and its branches go in one record"
        assert "tracking" not in store.refs()
        assert store.remotes() == {}
        store.undo()
        assert list(store.remotes()) == ["origin"]
        assert list(store.refs()["tracking"]) == ["origin/main"]


def test_a_push_moves_the_tracking_branch_of_what_it_moved(tmp_path: Path) -> None:
    with cas.init(tmp_path / "here") as here, cas.init(tmp_path / "there"):
        here.add_remote("origin", tmp_path / "there")
        first = here.commit({"step": 0}).id
        here.push()
        assert here.refs()["tracking"] == {"origin/main": first}
        second = here.commit({"step": 1}).id
        here.push("origin", "main:exp/a")
        assert here.refs()["tracking"] == {"origin/main": first, "origin/exp/a": second}
        here.branch("main", first, force=True)
        here.push("origin", f"{second}:exp/b")  # held by origin/exp/a
        assert here.refs()["tracking"]["origin/exp/b"] == second
        here.push(tmp_path / "there", "main", force=True)  # a place without a name
        assert set(here.refs()["tracking"]) == {"origin/main", "origin/exp/a", "origin/exp/b"}


def test_a_push_of_what_no_branch_holds_leaves_the_tracking_to_the_next_fetch(tmp_path: Path) -> None:
    with cas.init(tmp_path / "here") as here, cas.init(tmp_path / "there"):
        here.add_remote("origin", tmp_path / "there")
        old = here.commit({"step": 0}).id
        here.commit({"step": 1})
        here.push("origin", f"{old}:old")
        assert "tracking" not in here.refs()
        here.fetch()
        assert here.refs()["tracking"] == {"origin/old": old}


def test_an_unknown_remote_is_named_with_those_that_there_are(store: cas.Store) -> None:
    with pytest.raises(NotFound, match="cas remote add"):
        store.push()
    store.add_remote("lab", "s3://bucket/run")
    for call in (lambda: store.remove_remote("lap"), lambda: store.push("lap"), lambda: store.fetch("lap")):
        with pytest.raises(NotFound, match="lab"):
            call()


def test_fetching_needs_a_name_and_pulling_does_not(tmp_path: Path, store: cas.Store) -> None:
    make(tmp_path / "a", 2)
    with pytest.raises(Invalid, match="cas remote add"):
        store.fetch(str(tmp_path / "a"))
    assert [moved.kind for moved in store.pull(tmp_path / "a").refs] == ["branch"]
    assert "tracking" not in store.refs()


def test_no_store_at_the_other_end_is_said(tmp_path: Path, store: cas.Store) -> None:
    commit(store, 1)
    with pytest.raises(NotFound, match="nowhere"):
        store.push(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_an_older_root_than_seen_last_is_warned_of(
    tmp_path: Path, store: cas.Store, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "a", 3)
    store.add_remote("origin", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "old")
    with cas.open(tmp_path / "a") as other:
        other.tag("v1", "main")
    store.fetch()
    store.fetch()
    assert not caplog.records
    shutil.rmtree(tmp_path / "a")
    shutil.copytree(tmp_path / "old", tmp_path / "a")
    with caplog.at_level(logging.WARNING, "cas"):
        store.fetch()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "at log record 4, and was at 5 before" in caplog.text


def test_another_store_in_the_same_place_is_warned_of(
    tmp_path: Path, store: cas.Store, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "a", 1)
    store.add_remote("origin", tmp_path / "a")
    store.fetch()
    shutil.rmtree(tmp_path / "a")
    make(tmp_path / "a", 3)
    store.fetch()
    assert "another store" in caplog.text


def test_a_clone_knows_where_it_came_from(tmp_path: Path) -> None:
    make(tmp_path / "a", 2)
    with cas.clone(tmp_path / "a", tmp_path / "b") as store:
        assert store.remotes() == {"origin": cas.Remote("origin", str(tmp_path / "a"))}
        assert store.pull().refs == ()


def test_a_clone_goes_where_nothing_else_is(tmp_path: Path) -> None:
    make(tmp_path / "a", 1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tmp").mkdir()  # an init that was cut off
    cas.clone(tmp_path / "a", tmp_path / "b").close()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").touch()
    with pytest.raises(Exists, match=r"c is no store and holds 'notes.txt': clone to a new or an empty directory"):
        cas.clone(tmp_path / "a", tmp_path / "c")
    assert [file.name for file in (tmp_path / "c").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "wrong",
    [
        ["url", 7],
        ["only", "model"],
        ["only", [2, [7]]],
        ["options", [1, [["a", [1, []]]]]],
    ],
)
def test_a_config_that_no_writer_makes_is_refused(store: cas.Store, wrong: list[object]) -> None:
    root = Log(store._backend).head()
    fields = {"options": [1, []], "url": "s3://bucket/run"} | {str(wrong[0]): wrong[1]}
    held = [1, [[name, value] for name, value in sorted(fields.items())]]
    bad = root.successor("bad", config={"remotes": [1, [["origin", held]]]})
    store._backend.create(f"log/{bad.seq:020}", encode_record(bad))
    with pytest.raises(cas.Corrupt, match="remote"):
        store.remotes()


def test_the_parent_of_the_next_commit_does_not_change_by_pulling(tmp_path: Path) -> None:
    make(tmp_path / "a", 1)
    with cas.clone(tmp_path / "a", tmp_path / "b") as store, cas.open(tmp_path / "a") as other:
        store.load("main")
        other.load("main")
        commit(other, 1)
        store.pull()
        with pytest.raises(RefConflict, match="load it"):
            commit(store, 7)
        store.load("main")
        commit(store, 2)
        assert [held.step for held in store.log()] == [2, 1, 0]


def test_a_pull_that_moves_nothing_leaves_the_parent_as_it_is(tmp_path: Path) -> None:
    make(tmp_path / "a", 1)
    with cas.clone(tmp_path / "a", tmp_path / "b") as store:
        store.load("main")
        assert store.pull().refs == ()
        commit(store, 1)
        store.pull()
        commit(store, 2)
        assert [held.step for held in store.log()] == [2, 1, 0]


def test_a_remote_set_back_to_before_our_last_push_is_warned_of(
    tmp_path: Path, store: cas.Store, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "a", 0)
    commit(store, 1)
    shutil.copytree(tmp_path / "a", tmp_path / "old")
    store.push(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    shutil.copytree(tmp_path / "old", tmp_path / "a")
    store.push(tmp_path / "a")
    assert "was restored from an older copy" in caplog.text
