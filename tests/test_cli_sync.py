"""`cas push`, `fetch`, `pull` and `clone`: what they move, what they say, and how they end."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import COMMAND, array, environment, make_store, objects, ok, refused, run, training_state
from test_progress import Terminal

import cas

KEYS = "refs left objects sent present saved seconds"
UP_TO_DATE = "everything up to date\n"
ID = "[0-9a-f]{8}"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a store of three commits, and beside it an empty one that this calls `origin`."""
    make_store(tmp_path / ".cas")
    ok(tmp_path, "init", "far.cas")
    ok(tmp_path, "remote", "add", "origin", "far.cas")
    return tmp_path


def tip(place: Path, store: str, rev: str = "main") -> str:
    (found,) = objects(ok(place, "--store", store, "log", rev, "-n", "1", "--json"))
    return str(found["id"])


def commit(place: Path, store: str, step: int, branch: str = "main") -> str:
    with cas.open(place / store) as opened:
        parent = branch if branch in opened.refs()["branches"] else None
        return opened.commit(training_state(step), branch=branch, parent=parent, step=step).id


# -- pushing ------------------------------------------------------------------------------------------------------


def test_a_push_says_what_moved_and_what_it_took_and_the_next_that_there_is_nothing(place: Path) -> None:
    first = tip(place, ".cas")[:8]
    lines = ok(place, "push").splitlines()
    assert lines[0] == f"main  [new branch] {first}"
    assert re.fullmatch(r"\d+ objects, [\d.]+ kB sent in \d+\.\d s", lines[1])
    assert tip(place, "far.cas")[:8] == first
    assert ok(place, "push") == ok(place, "push", "origin", "main") == UP_TO_DATE
    second = commit(place, ".cas", 30)[:8]
    moved, took = ok(place, "push", "far.cas", "main").splitlines()
    assert moved == f"main  {first} -> {second}"
    assert re.fullmatch(r"\d+ objects, [\d.]+ kB sent in \d+\.\d s; [\d.]+ kB in \d+ objects? there already", took)
    ok(place, "--store", "far.cas", "fsck", "--data")


def test_json_has_the_keys_of_the_help_and_the_figures_are_those_of_the_stores(place: Path) -> None:
    (done,) = objects(ok(place, "push", "--json"))
    assert list(done) == KEYS.split()
    assert done["refs"] == [{"kind": "branch", "name": "main", "old": None, "new": tip(place, ".cas")}]
    (held,) = objects(ok(place, "stats", "--json"))
    assert (done["sent"], done["objects"]) == (held["stored"], sum(held["codecs"].values()))
    assert (done["present"], done["saved"]) == (0, 0)
    (again,) = objects(ok(place, "push", "--json"))
    assert (again["refs"], again["objects"], again["sent"]) == ([], 0, 0)
    for command in ("push", "fetch", "pull", "clone"):
        text = ok(place, command, "--help")
        assert [key for key in KEYS.split() if not re.search(rf"\b{key}\b", text)] == []


def test_branches_tags_and_revisions_go_by_name_and_all_of_them_with_all(place: Path) -> None:
    ok(place, "branch", "side", "main~1")
    ok(place, "tag", "v1", "main~2")
    ok(place, "push", "origin", "v1", "main~1:best")
    assert ok(place, "--store", "far.cas", "branch").split()[0] == "best"
    assert tip(place, "far.cas", "v1") == tip(place, ".cas", "main~2")
    moved = ok(place, "push", "--all").splitlines()[:-1]
    assert [line.split()[0] for line in moved] == ["main", "side"]
    names = [ref["name"] for ref in objects(ok(place, "--store", "far.cas", "branch", "--json"))]
    assert names == ["best", "main", "side"]


def test_what_would_take_commits_away_is_refused_unless_forced(place: Path) -> None:
    ok(place, "push")
    was = tip(place, "far.cas")
    ok(place, "reset", "main", "main~1")
    said = refused(place, 12, "push")
    assert re.match(rf"branch main of .* is at {ID}, which {ID} does not descend from; pull first", said)
    assert tip(place, "far.cas") == was
    assert ok(place, "push", "--force") == f"main  {was[:8]} -> {tip(place, '.cas')[:8]}\n"
    assert tip(place, "far.cas", "main@{1}") == was


# -- fetching and pulling -----------------------------------------------------------------------------------------


def test_fetch_moves_tracking_branches_and_pull_the_branch(place: Path) -> None:
    ok(place, "push")
    ok(place, "clone", "far.cas", "near.cas")
    ok(place, "--store", "far.cas", "tag", "v1", "main")
    old, new = tip(place, "near.cas"), commit(place, "far.cas", 30)
    fetched = ok(place, "--store", "near.cas", "fetch").splitlines()
    assert fetched[:-1] == [f"origin/main  {old[:8]} -> {new[:8]}", f"v1           [new tag] {old[:8]}"]
    assert tip(place, "near.cas") == old
    assert tip(place, "near.cas", "origin/main") == new
    assert ok(place, "--store", "near.cas", "pull") == f"main  {old[:8]} -> {new[:8]}\n"
    assert tip(place, "near.cas") == new
    assert ok(place, "--store", "near.cas", "pull") == ok(place, "--store", "near.cas", "fetch") == UP_TO_DATE


def test_a_pull_by_path_needs_no_remote(place: Path) -> None:
    ok(place, "push")
    ok(place, "init", "other.cas")
    first, took = ok(place, "--store", "other.cas", "pull", "far.cas", "main").splitlines()
    assert first == f"main  [new branch] {tip(place, 'far.cas')[:8]}"
    assert " received in " in took
    assert ok(place, "--store", "other.cas", "branch", "-r") == ""


def test_a_pull_that_would_need_a_merge_changes_nothing(place: Path) -> None:
    ok(place, "push")
    ok(place, "clone", "far.cas", "near.cas")
    ours, theirs = commit(place, "near.cas", 31), commit(place, "far.cas", 32)
    assert "`cas branch NEW main` keeps those here" in refused(place, 12, "--store", "near.cas", "pull")
    assert (tip(place, "near.cas"), tip(place, "near.cas", "origin/main")) == (ours, theirs)


# -- cloning ------------------------------------------------------------------------------------------------------


def test_a_clone_is_called_as_what_was_cloned_and_holds_everything(place: Path) -> None:
    ok(place, "branch", "side", "main~1")
    ok(place, "push", "--all")
    (place / "work").mkdir()
    said = ok(place / "work", "clone", "../far.cas").splitlines()
    assert said[0] == f"cloned {place / 'far.cas'} into {place / 'work' / 'far.cas'}"
    assert re.fullmatch(r"\d+ objects, [\d.]+ kB received in \d+\.\d s", said[-1])
    with cas.open(place / "work" / "far.cas") as store:
        np.testing.assert_array_equal(store.load("main")["model"]["wte.weight"], array(64, 32, seed=20))
        np.testing.assert_array_equal(store.load("side")["model"]["wte.weight"], array(64, 32, seed=10))
    inside = place / "work" / "far.cas"
    assert ok(inside, "remote", "-v") == f"origin  {place / 'far.cas'}\n"
    assert [ref["name"] for ref in objects(ok(inside, "branch", "-r", "--json"))] == ["origin/main", "origin/side"]
    everything = [ref["name"] for ref in objects(ok(inside, "branch", "-a", "--json"))]
    assert everything == ["main", "side", "origin/main", "origin/side"]
    assert "main, origin/main" in ok(inside, "log", "-n", "1")
    (first, *_) = objects(ok(inside, "log", "--json"))
    assert first["tracking"] == ["origin/main"]


def test_a_clone_of_some_branches_has_these_alone(place: Path) -> None:
    ok(place, "branch", "side", "main~1")
    ok(place, "clone", ".cas", "some.cas", "side")
    assert [ref["name"] for ref in objects(ok(place, "--store", "some.cas", "branch", "--json"))] == ["side"]


def test_a_directory_that_holds_a_store_or_points_to_one_is_cloned_by_its_name(place: Path) -> None:
    (place / "pointer").mkdir()
    (place / "pointer" / ".cas").write_text("../.cas")
    (place / "work").mkdir()
    ok(place / "work", "clone", "../pointer", "one")
    ok(place / "work", "clone", str(place), "two")
    assert ok(place / "work", "clone", "..").startswith(f"cloned {place / '.cas'} into {place / 'work' / place.name}\n")
    assert len({tip(place / "work", store) for store in ("one", "two", place.name)}) == 1


# -- parts of states and of histories -----------------------------------------------------------------------------


def test_only_and_depth_leave_out_the_rest_and_log_and_show_and_loads_say_so(place: Path) -> None:
    ok(place, "clone", ".cas", "part.cas", "--only", "model/**", "--depth", "2")
    found = objects(ok(place, "--store", "part.cas", "log", "--json"))
    assert [(c["step"], c["pruned"], c["partial"], c["shallow"]) for c in found] == [
        (20, False, True, False),
        (10, False, True, True),
    ]
    lines = ok(place, "--store", "part.cas", "log").splitlines()
    assert re.search(r" new, partial ", lines[0])
    assert re.search(r" new, partial, shallow ", lines[1])
    shown = ok(place, "--store", "part.cas", "show")
    assert "state    partial: what is absent was not fetched or sent with the rest" in shown
    assert re.search(r"^optimizer/state/\[0\]/exp_avg +absent$", shown, re.MULTILINE)
    assert re.search(r"^2 tensors, 3 values, 2 absent, 8.32 kB$", shown, re.MULTILINE)
    (row,) = [row for row in objects(ok(place, "--store", "part.cas", "ls", "--json")) if row["path"] == "optimizer"]
    assert (row["tensors"], row["values"], row["absent"]) == (0, 2, 1)
    with cas.open(place / "part.cas") as store:
        np.testing.assert_array_equal(store.load("main", only="model")["model"]["head"]["bias"], array(32, seed=21))
    said = refused(place, 11, "--store", "part.cas", "cat", "main", "note")
    assert "absent" in said
    assert "`cas fetch origin --only . --depth 0` brings it" in said
    ok(place, "--store", "part.cas", "fsck", "--data")


def test_what_was_left_out_comes_later(place: Path) -> None:
    ok(place, "clone", ".cas", "part.cas", "--only", "model/**", "--depth", "1")
    ok(place, "--store", "part.cas", "fetch", "--depth", "0", "--only", ".")
    found = objects(ok(place, "--store", "part.cas", "log", "--json"))
    assert [(c["step"], c["partial"], c["shallow"]) for c in found] == [(s, False, False) for s in (20, 10, 0)]
    with cas.open(place / "part.cas") as store, cas.open(place / ".cas") as source:
        assert store.load("main~2")["note"] == source.load("main~2")["note"]


def test_a_shallow_part_goes_forward_with_the_other_side(place: Path) -> None:
    part = ("--only", "model/**", "--depth", "1")
    ok(place, "clone", ".cas", "part.cas", *part)
    commit(place, ".cas", 30)
    newest = commit(place, ".cas", 40)
    assert re.match(
        f"origin/main +{ID} -> {newest[:8]}\nmain +{ID} -> {newest[:8]}\n",
        ok(place, "--store", "part.cas", "pull", *part),
    )
    (found,) = objects(ok(place, "--store", "part.cas", "log", "--json"))
    assert (found["step"], found["partial"], found["shallow"]) == (40, True, True)


def test_a_push_of_a_part_is_for_those_who_need_no_more(place: Path) -> None:
    (whole,) = objects(ok(place, "push", "origin", "main", "--json"))
    ok(place, "init", "serving.cas")
    (part,) = objects(ok(place, "push", "serving.cas", "main", "--only", "model/**", "--depth", "1", "--json"))
    assert part["sent"] < 0.5 * whole["sent"]
    with cas.open(place / "serving.cas") as store:
        np.testing.assert_array_equal(store.load("main", only="model")["model"]["head"]["bias"], array(32, seed=21))


# -- rates, progress, interrupts ----------------------------------------------------------------------------------


def big(place: Path, megabytes: int) -> None:
    with cas.open(place / "big.cas", create=True) as store:
        store.commit({"w": array(megabytes * 250, 1000)}, codec="raw")


@pytest.mark.slow
def test_a_rate_is_kept_and_a_terminal_sees_how_far_it_is(tmp_path: Path) -> None:
    big(tmp_path, 24)
    ok(tmp_path, "init", "far.cas")
    terminal = Terminal(columns=100)
    command = [*COMMAND, "--store", "big.cas", "push", "far.cas", "main", "--limit-rate", "8M", "--json"]
    assert terminal.run(command, tmp_path, environment(TERM="xterm")) == 0
    lines = terminal.lines()
    pattern = r"push \[[#-]+\] [\d.]+ k?M?B of 24\.0 MB, \d+ of \d+ objects, [\d.]+ .?B/s(, \d+ s left)?"
    assert len([line for line in lines if re.fullmatch(pattern, line) and line.endswith(" left")]) >= 2
    assert all(re.fullmatch(pattern, line) or line == "push: looking for what is missing" for line in lines)
    assert terminal.text.endswith("\r\x1b[K")


@pytest.mark.slow
def test_an_interrupt_says_that_the_next_run_goes_on_which_it_does(tmp_path: Path) -> None:
    big(tmp_path, 64)
    ok(tmp_path, "init", "far.cas")
    terminal = Terminal(columns=100)
    command = [*COMMAND, "--store", "big.cas", "push", "far.cas", "main", "--limit-rate", "16M"]
    assert terminal.run(command, tmp_path, environment(TERM="xterm"), "push [####") == 130
    said = "cas: interrupted: what was moved stays, and the next run goes on from there"
    assert terminal.lines()[-1] == said
    assert ok(tmp_path, "--store", "far.cas", "branch") == ""
    (rest,) = objects(ok(tmp_path, "--store", "big.cas", "push", "far.cas", "main", "--json"))
    assert rest["sent"] < 64_000_000
    assert rest["saved"] > 0
    ok(tmp_path, "--store", "far.cas", "fsck", "--data")


def test_elsewhere_there_is_no_progress(place: Path) -> None:
    done = run(place, "push", "--limit-rate", "100K")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("rate", ["", "fast", "0", "-1M", "1T", "10 MB per second", "0.5"])
def test_what_is_no_rate_is_refused(place: Path, rate: str) -> None:
    assert "a rate is in bytes per second, such as 500000, 10M or 1.5G" in refused(
        place, 2, "push", "--limit-rate", rate
    )


def test_the_units_of_rates() -> None:
    from cas.cli.syncing import _rate

    given: dict[str, Any] = {"500000": 5e5, "10M": 1e7, "1.5G": 1.5e9, "3k": 3e3, "2Mi": 2 << 20, "4MiB/s": 4 << 20}
    assert {text: _rate(None, None, text) for text in given} == given  # type: ignore[arg-type]


# -- mistakes -----------------------------------------------------------------------------------------------------


def test_mistakes_are_answered_in_one_sentence(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("none")
    for command in ("push", "pull", "fetch"):
        assert "there is no store" in refused(elsewhere, 10, command)
        said = refused(place, 11, command, "nowhere")
        assert said.startswith("there is no remote called nowhere, nor a store at that path; `cas remote list`")
    assert "there is no store at " in refused(elsewhere, 10, "clone", "nowhere")
    assert "no branch or tag is called nope" in refused(place, 11, "push", "origin", "nope")
    assert "has no branch or tag called nope" in refused(place, 11, "fetch", "origin", "nope")
    assert "--all and names exclude each other" in refused(place, 2, "push", "origin", "main", "--all")
    refused(place, 2, "pull", "origin", "main", "side")
    refused(place, 2, "push", "--depth", "-1")
    refused(place, 2, "clone")
    ok(place, "remote", "remove", "origin")
    for command in ("push", "pull", "fetch"):
        assert "there is no remote 'origin'; add one with `cas remote add NAME URL`" in refused(place, 11, command)
    ok(place, "push", "far.cas")
    assert "is a store already" in refused(place, 3, "clone", ".cas", "far.cas")
    assert "has no name here" in refused(place, 2, "fetch", "far.cas")


def test_pulling_from_an_empty_store_says_whose_commits_there_are_none_of(place: Path) -> None:
    ok(place, "init", "empty.cas")
    assert re.search(
        r"store .*empty\.cas has no branches yet.*push to it first", refused(place, 11, "pull", "empty.cas")
    )


def test_a_tag_that_is_another_here_is_left_and_said(place: Path) -> None:
    ok(place, "tag", "v1", "main")
    ok(place, "push", "--all")
    ok(place, "tag", "-d", "v1")
    ok(place, "tag", "v1", "main~1")
    assert re.match(
        rf"tag v1 of .* is at {ID}, not at {ID}: tags do not move", refused(place, 3, "push", "origin", "v1")
    )
    done = run(place, "fetch", "--json")
    assert done.returncode == 0
    text = rf"cas: warning: tag v1 is at {ID} at origin and stays at {ID} here; delete it to take theirs\n"
    assert re.fullmatch(text, done.stderr)
    assert [ref["name"] for ref in objects(done.stdout)[0]["left"]] == ["v1"]


def test_a_remote_that_went_back_in_time_is_warned_of(place: Path) -> None:
    ok(place, "push")
    shutil.copytree(place / "far.cas", place / "older")
    commit(place, ".cas", 30)
    ok(place, "push")
    shutil.rmtree(place / "far.cas")
    (place / "older").rename(place / "far.cas")
    done = run(place, "fetch")
    assert done.returncode == 0
    assert re.fullmatch(
        r"cas: warning: store .*far\.cas is at log record \d+, and was at \d+ before: .*\n", done.stderr
    )


def test_repair_takes_blocks_from_a_remote_by_its_name(place: Path) -> None:
    ok(place, "push")
    pack = max((place / ".cas" / "packs").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)
    assert run(place, "fsck", "--data").returncode == 1
    assert "repaired" in run(place, "fsck", "--data", "--repair", "--from", "origin").stdout
    assert ok(place, "fsck", "--data").endswith("\nall is well\n")
    refused(place, 11, "fsck", "--repair", "--from", "nowhere")
