"""`cas prune`: what it shows, when it asks, what stays of a pruned commit, and policies."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import COMMAND, array, environment, objects, ok, refused, run

import cas

KEYS = "branch dry_run kept dropped freed policy"
DROPPED = "the states of 4 commits, which frees 4.0{} MB at the next gc"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Eight commits of 1 MB on main, steps 0 to 700; step 100 has a tag, step 300 the least loss."""
    (tmp_path / "config.json").write_text('{"layers": 2}')
    with cas.open(tmp_path / ".cas", create=True) as store:
        for number in range(8):
            options: Any = {"metrics": {"loss": abs(3.0 - number)}, "message": f"number {number}"}
            files = {"config.json": tmp_path / "config.json"}
            store.commit({"w": array(500, 500, seed=number)}, step=100 * number, codec="raw", files=files, **options)
        store.tag("v1", "main~6")
    return tmp_path


RULES = ("--keep-last", "2", "--keep-best", "loss:min:1")  # with the tag: steps 700, 600, 300, 100


def pruned(place: Path) -> list[int]:
    """The steps of pruned commits."""
    return [commit["step"] for commit in objects(ok(place, "log", "--json")) if commit["pruned"]]


def asked(cwd: Path, answer: bytes, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a command that asks on a terminal and is answered."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=environment(TERM="xterm", COLUMNS="100"),
        stdin=follower,
        stdout=follower,
        stderr=follower,
    ) as child:
        os.close(follower)
        output = b""
        try:
            while select.select([leader], [], [], 60)[0] and (piece := os.read(leader, 65536)):
                output += piece
                if b"[y/N] " in output and answer:
                    os.write(leader, answer)
                    answer = b""
        except OSError:
            pass  # Linux reports the other end's closing as EIO
        os.close(leader)  # a child that still waits for an answer gets a hang-up
    return child.returncode, output.decode().replace("\r\n", "\n")


# -- showing and asking -------------------------------------------------------------------------------------------


def test_without_a_terminal_it_is_a_dry_run_that_shows_what_would_go(place: Path) -> None:
    *rows, freed, why = ok(place, "prune", "main", *RULES).splitlines()
    cells = [re.split(r"  +", row) for row in rows]
    assert [(cell[0], cell[2]) for cell in cells] == [
        *(("keep", f"step {step}") for step in (700, 600, 300, 100)),
        *(("drop", f"step {step}") for step in (500, 400, 200, 0)),
    ]
    assert [cell[4] for cell in cells[:4]] == ["last, tip", "last", "best loss", "tag v1"]
    assert [cell[1] for cell in cells[:2]] == [commit["id"][:8] for commit in objects(ok(place, "log", "--json"))[:2]]
    assert re.fullmatch(f"would drop {DROPPED.format('[0-9]')}", freed)
    assert why == "this was a dry run, as no terminal can ask here; pass --yes to go on"
    assert pruned(place) == []


def test_a_dry_run_goes_before_yes(place: Path) -> None:
    last = ok(place, "prune", "main", *RULES, "--dry-run", "--yes", "--always").splitlines()[-1]
    assert last.startswith("would drop the states of 4 commits")
    assert pruned(place) == []
    assert objects(ok(place, "prune", "--json")) == []


def test_yes_drops_the_states_and_gc_frees_what_was_said(place: Path) -> None:
    (planned,) = objects(ok(place, "prune", "main", *RULES, "--json"))
    last = ok(place, "prune", "main", *RULES, "--yes").splitlines()[-1]
    assert re.fullmatch(f"dropped {DROPPED.format('[0-9]')}", last)
    assert pruned(place) == [500, 400, 200, 0]
    (freed,) = objects(ok(place, "gc", "--grace", "0", "--json"))
    net = freed["freed"] - freed["moved"]
    assert planned["freed"] <= net < planned["freed"] + 20_000  # files also have headers and tables
    with cas.open(place / ".cas") as store:
        for rev, number in (("main", 7), ("main~1", 6), ("main~4", 3), ("v1", 1)):
            np.testing.assert_array_equal(store.load(rev)["w"], array(500, 500, seed=number))
    ok(place, "fsck", "--data")
    assert ok(place, "prune", "main", *RULES, "--yes").splitlines()[-1].startswith("nothing to drop")


def test_a_terminal_is_asked(place: Path) -> None:
    for answer in (b"\n", b"n\n"):
        code, output = asked(place, answer, "prune", "main", *RULES)
        assert re.search(rf"\ndrop {DROPPED.format('[0-9]')}\? \[y/N\] ", output)
        assert output.endswith("nothing was dropped\n")
        assert code == 0
        assert pruned(place) == []
    code, output = asked(place, b"\x04", "prune", "main", *RULES)
    assert (code, "cas: interrupted" in output) == (130, True)
    assert pruned(place) == []
    code, output = asked(place, b"y\n", "prune", "main", *RULES)
    assert (code, output.count("[y/N]"), "\ndropped the states of 4 commits" in output) == (0, 1, True)
    assert pruned(place) == [500, 400, 200, 0]
    code, output = asked(place, b"", "prune", "main", *RULES)
    assert (code, "nothing to drop" in output) == (0, True)  # and nothing to ask


def test_json_has_the_keys_of_the_help_and_never_asks(place: Path) -> None:
    code, output = asked(place, b"", "prune", "main", *RULES, "--json")
    (found,) = objects(output)
    assert (code, list(found)) == (0, KEYS.split())
    assert (found["branch"], found["dry_run"], found["policy"]) == ("main", True, None)
    assert [(list(commit), commit["step"]) for commit in found["dropped"]] == [
        (["id", "step"], step) for step in (500, 400, 200, 0)
    ]
    assert [(list(commit), commit["why"]) for commit in found["kept"]] == [
        (["id", "step", "why"], why) for why in (["last", "tip"], ["last"], ["best loss"], ["tag v1"])
    ]
    assert 4_000_000 < found["freed"] < 4_100_000
    assert pruned(place) == []
    (done,) = objects(ok(place, "prune", "main", *RULES, "--json", "--yes", "--always"))
    assert done == {**found, "dry_run": False, "policy": "keep last 2, best loss (min) 1, tags *"}
    assert len(pruned(place)) == 4
    help_text = ok(place, "prune", "--help")
    assert [key for key in KEYS.split() if not re.search(rf"\b{key}\b", help_text)] == []


@pytest.mark.parametrize(
    ("rules", "steps"),
    [
        ("--keep-every 300", [700, 600, 300, 100, 0]),
        ("--keep-best loss:min:1 --keep-best loss:max:1", [700, 300, 100]),
        ("--keep-daily 1 --keep-weekly 3", [700, 100]),
        ("--keep-last 1 --keep-tags x* --keep-tags y*", [700]),
    ],
)
def test_every_rule_reaches_the_store(rules: str, steps: list[int], place: Path) -> None:
    (found,) = objects(ok(place, "prune", "main", *rules.split(), "--json"))
    kept = {commit["step"] for commit in found["kept"]}
    # A night may fall between two of the commits: a second day or week then keeps one more.
    assert kept >= set(steps) if "weekly" in rules else kept == set(steps)
    assert len(kept) <= len(steps) + 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("main", 2, "the policy keeps nothing"),
        ("main --keep-tags v*", 2, "the policy keeps nothing"),
        ("main --keep-last 0", 2, "'--keep-last': 0 is not in the range"),
        ("main --keep-best loss", 2, "loss:min:3"),
        ("gone --keep-last 1", 11, "there is no branch gone to prune"),
        ("--keep-last 1", 2, "say which branch to prune"),
        ("--never", 2, "say which branch to prune"),
        ("main --never --keep-last 1", 2, "--never takes a branch alone"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments: str, code: int, words: str, place: Path) -> None:
    assert words in refused(place, code, "prune", *arguments.split())


# -- what stays of a pruned commit --------------------------------------------------------------------------------


def test_the_log_marks_what_was_pruned(place: Path) -> None:
    ok(place, "prune", "main", *RULES, "--yes")
    for arguments in (["log"], ["log", "--graph"]):
        marks = ["pruned" in line for line in ok(place, *arguments).splitlines()]
        assert marks == [False, False, True, True, False, True, False, True]
    found = objects(ok(place, "log", "--graph", "--json"))
    assert [commit["step"] for commit in found if commit["pruned"]] == [500, 400, 200, 0]


def test_show_has_all_but_the_leaves_of_a_pruned_commit(place: Path) -> None:
    assert "pruned" not in ok(place, "show", "main~2")
    ok(place, "prune", "main", *RULES, "--yes")
    ok(place, "gc", "--grace", "0")
    said = ok(place, "show", "main~2")
    for part in ("step     500", "loss 2", "number 5", "state    pruned; `cas log --root` says when"):
        assert part in said
    assert "float32" not in said
    (found,) = objects(ok(place, "show", "main~2", "--json"))
    assert (found["kind"], found["step"], found["pruned"]) == ("commit", 500, True)
    assert "prune main: keep last 2, best loss (min) 1, tags *" in ok(place, "log", "--root")


@pytest.mark.parametrize(
    "command",
    ["show main~2 w", "ls main~2", "cat main~2 w", "checkout main~2 -o out", "diff main~2 main", "stats main~2"],
)
def test_what_needs_the_state_says_that_it_was_pruned(command: str, place: Path) -> None:
    ok(place, *command.split()) if not command.startswith("diff") else None
    ok(place, "prune", "main", *RULES, "--yes")
    said = refused(place, 11, *command.replace("-o out", "-o other").split())
    when = "`cas log --root` says when"
    assert re.fullmatch(rf"the state of commit [0-9a-f]{{8}} was pruned or never fetched; {when}", said)
    assert not (place / "other").exists()


# -- policies -----------------------------------------------------------------------------------------------------


def test_a_policy_is_stored_applied_by_commits_listed_and_removed(place: Path) -> None:
    assert "no branch is pruned by its commits" in ok(place, "prune")
    last = ok(place, "prune", "main", *RULES, "--always", "--yes").splitlines()[-1]
    text = "keep last 2, best loss (min) 1, tags *"
    assert last == f"every commit on main prunes it from now on: {text}"
    assert re.split("  +", ok(place, "prune").strip()) == ["main", text]
    assert objects(ok(place, "prune", "--json")) == [{"branch": "main", "policy": text}]
    with cas.open(place / ".cas") as store:
        store.commit({"w": np.ones(3)}, step=800, parent="main")
    assert pruned(place) == [600, 500, 400, 200, 0]
    assert ok(place, "prune", "main", "--never") == f"branch main is no longer pruned by its commits; it was: {text}\n"
    assert ok(place, "prune", "main", "--never") == "branch main had no policy\n"
    assert objects(ok(place, "prune", "main", "--never", "--json")) == [{"branch": "main", "policy": None}]
    assert objects(ok(place, "prune", "--json")) == []
    with cas.open(place / ".cas") as store:
        store.commit({"w": np.ones(4)}, step=900, parent="main")
    assert 700 not in pruned(place)


def test_a_policy_is_asked_for_even_where_nothing_goes_now(place: Path) -> None:
    question = "have every commit on main prune it like this from now on? [y/N] "
    for answer, policies in ((b"n\n", 0), (b"y\n", 1)):
        code, output = asked(place, answer, "prune", "main", "--keep-last", "8", "--always")
        assert (code, f"\n{question}" in output) == (0, True)
        assert len(objects(ok(place, "prune", "--json"))) == policies
    code, output = asked(place, b"n\n", "prune", "main", *RULES, "--always")
    assert f" at the next gc, and {question}" in output
    assert pruned(place) == []


def test_a_policy_that_no_terminal_confirmed_is_not_stored(place: Path) -> None:
    assert "this was a dry run" in ok(place, "prune", "main", "--keep-last", "8", "--always")
    assert objects(ok(place, "prune", "--json")) == []
    assert run(place, "prune", "main", "--keep-last", "8", "--always", "--json").returncode == 0
    assert objects(ok(place, "prune", "--json")) == []
