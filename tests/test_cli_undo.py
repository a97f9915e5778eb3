"""`cas undo`, `cas reset` and `cas log --root`: going back, and where one can go."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest
from cli_process import make_store, objects, ok, refused, run, training_state

import cas

KEYS = "seq time who host why changes undoable"
BACK = "`cas undo` takes that back"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Steps 0, 10, 20 on main."""
    make_store(tmp_path / ".cas")
    return tmp_path


def ids(place: Path) -> list[str]:
    return [commit["id"][:8] for commit in objects(ok(place, "log", "--json"))]


def refs(place: Path) -> dict[str, dict[str, str]]:
    with cas.open(place / ".cas") as store:
        return store.refs()


# -- undo ---------------------------------------------------------------------------------------------------------


def test_undo_takes_back_the_last_change_and_itself(place: Path) -> None:
    newest, older, _ = ids(place)
    ok(place, "branch", "main", "main~1", "--force")
    assert ok(place, "undo").splitlines() == [f"branch main {older} -> {newest}", BACK]
    assert ids(place)[0] == newest
    assert ok(place, "undo").splitlines() == [f"branch main {newest} -> {older}", BACK]
    assert ids(place)[0] == older


def test_undo_says_what_went_and_what_is_back(place: Path) -> None:
    newest = ids(place)[0]
    ok(place, "tag", "v1")
    assert ok(place, "undo").splitlines() == [f"tag v1 gone, was at {newest}", BACK]
    ok(place, "branch", "x")
    ok(place, "branch", "-d", "x")
    assert ok(place, "undo").splitlines() == [f"branch x is back at {newest}", BACK]
    assert refs(place) == {
        "branches": {"main": refs(place)["branches"]["main"], "x": refs(place)["branches"]["main"]},
        "tags": {},
    }


def test_undo_to_a_record_restores_all_that_it_says(place: Path) -> None:
    before = refs(place)
    seq = objects(ok(place, "log", "--root", "--json", "-n", "1"))[0]["seq"]
    newest, older, _ = ids(place)
    ok(place, "tag", "v1")
    ok(place, "branch", "main", "main~1", "--force")
    ok(place, "branch", "x")
    said = [f"branch main {older} -> {newest}", f"branch x gone, was at {older}", f"tag v1 gone, was at {newest}", BACK]
    assert ok(place, "undo", str(seq)).splitlines() == said
    assert refs(place) == before
    assert ok(place, "undo", str(seq)) == "nothing moved: all was so already\n"


def test_undo_takes_back_a_policy_too(place: Path) -> None:
    ok(place, "prune", "main", "--keep-last", "9", "--always", "--yes")
    assert ok(place, "undo").splitlines() == ["policy of main: none", BACK]
    assert ok(place, "undo").splitlines() == ["policy of main: keep last 9, tags *", BACK]


def test_json_of_undo_is_its_record_and_the_policies(place: Path) -> None:
    newest = objects(ok(place, "log", "--json"))[0]["id"]
    ok(place, "prune", "main", "--keep-last", "9", "--always", "--yes")
    ok(place, "tag", "v1")
    (made,) = objects(ok(place, "undo", "--json"))
    assert list(made) == [*KEYS.split(), "policies"]
    assert made["changes"] == [{"kind": "tag", "name": "v1", "old": newest, "new": None}]
    assert made["policies"] == {"main": "keep last 9, tags *"}
    assert {key: made[key] for key in KEYS.split()} == objects(ok(place, "log", "--root", "--json", "-n", "1"))[0]
    for command in (["undo"], ["log"]):
        help_text = ok(place, *command, "--help")
        assert [key for key in KEYS.split() if not re.search(rf"\b{key}\b", help_text)] == []


def test_where_undo_cannot_go_is_one_sentence(place: Path) -> None:
    assert "the records 1 to 4, not to 9; `cas log --root` lists them" in refused(place, 11, "undo", "9")
    refused(place, 2, "undo", "0")
    ok(place, "branch", "main", "main~2", "--force")
    ok(place, "gc", "--grace", "0", "--expire", "now")
    assert "undo can go to the records 5 to 6, not to 4" in refused(place, 11, "undo", "4")
    assert "nothing was changed since record 5" in refused(place, 11, "undo")
    with cas.open(place / ".cas") as store:
        assert store.load("main")["step"] == 0


def test_a_trainer_whose_branch_was_undone_gets_a_conflict(place: Path) -> None:
    with cas.open(place / ".cas") as store:
        state = store.load("main")
        ok(place, "undo")
        with pytest.raises(cas.RefConflict, match="branch main was at"):
            store.commit(state, step=30)
        assert store.load("main")["step"] == 10
        store.commit(training_state(30), step=30)
    assert "RefConflict" in ok(place, "undo", "--help")
    assert "RefConflict" in ok(place, "reset", "--help")


# -- reset --------------------------------------------------------------------------------------------------------


def test_reset_moves_a_branch_and_says_from_where_to_where(place: Path) -> None:
    newest, older, oldest = ids(place)
    assert ok(place, "reset", "main", "main~1").splitlines() == [f"branch main {newest} -> {older}", BACK]
    assert ok(place, "reset", "main", oldest).splitlines() == [f"branch main {older} -> {oldest}", BACK]
    assert ok(place, "reset", "main", "main") == f"branch main is at {oldest} already\n"
    ok(place, "undo")
    assert ids(place) == [older, oldest]
    assert len(objects(ok(place, "log", "--root", "--json"))) == 7  # init, 3 commits, 2 resets, undo


def test_reset_makes_no_branch(place: Path) -> None:
    assert refused(place, 11, "reset", "x", "main") == "there is no branch x to move; `cas branch x main` makes it"
    refused(place, 11, "reset", "main", "gone")
    refused(place, 2, "reset", "main")
    assert list(refs(place)["branches"]) == ["main"]


def test_reset_to_a_pruned_commit_says_that_it_cannot_be_loaded(place: Path) -> None:
    ok(place, "prune", "main", "--keep-last", "1", "--yes")
    lines = ok(place, "reset", "main", "main~1").splitlines()
    assert lines[1:] == ["the state of that commit was pruned: it cannot be loaded", BACK]


# -- the records --------------------------------------------------------------------------------------------------


def test_the_records_are_listed_newest_first(place: Path) -> None:
    newest, older, oldest = ids(place)
    ok(place, "tag", "v1")
    ok(place, "branch", "main", "main~1", "--force")
    ok(place, "tag", "-d", "v1")
    rows = [re.split("  +", line.strip()) for line in ok(place, "log", "--root").splitlines()]
    assert [row[0] for row in rows] == ["7", "6", "5", "4", "3", "2", "1"]
    assert [row[3:] for row in rows] == [
        ["delete tag v1", f"tag v1 gone, was at {newest}"],
        ["branch main forced", f"branch main {newest} -> {older}"],
        ["tag v1", f"tag v1 at {newest}"],
        ["commit main step 20", f"branch main {older} -> {newest}"],
        ["commit main step 10", f"branch main {oldest} -> {older}"],
        ["commit main step 0", f"branch main at {oldest}"],
        ["init"],
    ]
    assert all(re.fullmatch(r"\d+ (s|min) ago", row[1]) and re.fullmatch(r"\S+@\S+", row[2]) for row in rows)
    assert len(ok(place, "log", "--root", "-n", "2").splitlines()) == 2


def test_json_of_the_records(place: Path) -> None:
    found = objects(ok(place, "log", "--root", "--json"))
    assert [list(record) for record in found] == [KEYS.split()] * 4
    assert [record["seq"] for record in found] == [4, 3, 2, 1]
    commits = objects(ok(place, "log", "--json"))
    assert found[0]["changes"] == [{"kind": "branch", "name": "main", "old": commits[1]["id"], "new": commits[0]["id"]}]
    assert found[0]["who"]
    assert found[0]["host"]
    times = [datetime.fromisoformat(held["time"]) for held in (found[0], commits[0])]
    assert abs((times[0] - times[1]).total_seconds()) < 60
    assert all(record["undoable"] is True for record in found)


def test_records_that_undo_cannot_reach_any_more_are_marked(place: Path) -> None:
    ok(place, "reset", "main", "main~1")
    assert "no undo" not in ok(place, "log", "--root")
    ok(place, "gc", "--grace", "0", "--expire", "now")
    marks = ["no undo" in line for line in ok(place, "log", "--root").splitlines()]
    assert marks == [False, False, True, True, True, True]
    records = objects(ok(place, "log", "--root", "--json"))
    assert [not record["undoable"] for record in records] == marks
    assert run(place, "undo", str(records[1]["seq"])).returncode == 0
    assert run(place, "undo", str(records[2]["seq"])).returncode == 11


def test_records_take_no_revision(place: Path) -> None:
    for more in ("main", "--graph"):
        assert "--root takes no revision and no --graph" in refused(place, 2, "log", "--root", more)
