"""`cas gc`: what it says that it frees, what it leaves and why, and how it waits on a terminal."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import COMMAND, array, environment, in_terminal, objects, ok, refused, run
from test_progress import Terminal

import cas

KEYS = "dry_run packs size deleted freed rewritten moved young young_size undo rescued"
NOW = ("--grace", "0", "--expire", "now")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Four commits of 1 MB each, of which main was moved back over two."""
    with cas.open(tmp_path / ".cas", create=True) as store:
        for step in range(4):
            store.commit({"w": array(500, 500, seed=step)}, step=step, codec="raw")
    ok(tmp_path, "reset", "main", "main~2")
    return tmp_path


def packs(place: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (place / ".cas" / "packs").rglob("*") if path.is_file()}


def collected(place: Path, *arguments: str) -> dict[str, Any]:
    (found,) = objects(ok(place, "gc", *arguments, "--json"))
    return found


def make_old(place: Path) -> None:
    """Age the packs by an hour, so that no grace takes them for those of a running commit."""
    then = time.time() - 3600
    for path in (place / ".cas" / "packs").rglob("*"):
        os.utime(path, (then, then))


def check_whole(place: Path) -> None:
    with cas.open(place / ".cas") as store:
        np.testing.assert_array_equal(store.load("main")["w"], array(500, 500, seed=1))
        np.testing.assert_array_equal(store.load("main~1")["w"], array(500, 500, seed=0))
    ok(place, "fsck", "--data")


def test_what_undo_needs_stays_and_the_way_to_free_it_is_named(place: Path) -> None:
    before = packs(place)
    first, held = ok(place, "gc", "--grace", "0").splitlines()
    assert first == "nothing to collect"
    pattern = r"2\.0\d MB are held so that the last 3 days can be undone; `cas gc --expire now` frees them"
    assert re.fullmatch(pattern, held)
    assert "the last 12 h can be undone" in ok(place, "gc", "--grace", "0", "--expire", "12h")
    assert packs(place) == before
    ok(place, "undo")


def test_it_frees_what_a_dry_run_says_and_then_finds_nothing(place: Path) -> None:
    before = packs(place)
    said = ok(place, "gc", "--dry-run", *NOW)
    assert re.fullmatch(r"would free 2\.0\d MB in 2 files; 2 packs with 2\.0\d MB stay\n", said)
    assert packs(place) == before
    planned = collected(place, "--dry-run", *NOW)
    assert ok(place, "gc", *NOW) == said.replace("would free", "freed")
    after = packs(place)
    assert (len(before) - len(after), sum(before.values()) - sum(after.values())) == (2, planned["freed"])
    assert (len(after), sum(after.values())) == (planned["packs"], planned["size"])
    assert ok(place, "gc", *NOW) == "nothing to collect\n"
    check_whole(place)


def test_young_packs_stay_and_the_way_to_free_them_is_named(place: Path) -> None:
    before = packs(place)
    first, young = ok(place, "gc", "--expire", "now").splitlines()
    assert first == "nothing to collect"
    assert re.fullmatch(r"2 packs with 2\.0\d MB are younger than 10 min and stay; `--grace 0` takes them", young)
    assert "are younger than 90 s and stay" in ok(place, "gc", "--expire", "now", "--grace", "90")
    assert packs(place) == before


def test_a_mostly_dead_pack_is_rewritten(tmp_path: Path) -> None:
    shared = array(100, 100, seed=1)
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit({"big": array(500, 500), "shared": shared}, codec="raw")
        store.commit({"shared": shared}, codec="raw")
    ok(tmp_path, "prune", "main", "--keep-last", "1", "--yes")
    pattern = r" 1\.0\d MB in 1 file; 1 mostly dead pack {} rewritten \(4\d\.\d kB copied\); {} with [\d.]+ k?B {}\n"
    dry = ok(tmp_path, "gc", "--dry-run", "--grace", "0")
    assert re.fullmatch("would free" + pattern.format("would be", "2 packs", "stay"), dry)
    done = ok(tmp_path, "gc", "--grace", "0")
    assert re.fullmatch("freed" + pattern.format("was", "2 packs", "stay"), done)
    with cas.open(tmp_path / ".cas") as store:
        np.testing.assert_array_equal(store.load("main")["shared"], shared)
    ok(tmp_path, "fsck", "--data")


def test_json_has_the_keys_of_the_help(place: Path) -> None:
    found = collected(place, "--dry-run", *NOW)
    assert list(found) == KEYS.split()
    assert (found["dry_run"], found["deleted"], found["undo"]) == (True, 2, 0)
    held = collected(place, "--grace", "0")
    assert (held["dry_run"], held["deleted"], held["packs"]) == (False, 0, 4)
    assert 2_000_000 < held["undo"] < 2_100_000
    help_text = ok(place, "gc", "--help")
    assert [key for key in KEYS.split() if not re.search(rf"\b{key}\b", help_text)] == []


@pytest.mark.parametrize(
    ("option", "time"),
    [("--grace", ""), ("--grace", "3x"), ("--grace", "10001d"), ("--expire", "-1"), ("--expire", "1.5h")],
)
def test_what_is_no_time_is_refused(option: str, time: str, place: Path) -> None:
    said = refused(place, 2, "gc", option, time)
    assert said.startswith(f"invalid value for '{option}': a time is such as 600, 10m, 12h or 3d")


def test_the_units_of_time_and_the_defaults(place: Path) -> None:
    for same in ("600s", "10m", "10min"):
        assert "younger than 10 min" in ok(place, "gc", "--expire", "0", "--grace", same)
    assert "last 3 days" in ok(place, "gc", "--expire", "72h")
    assert "last 1 day " in ok(place, "gc", "--expire", "1d")


# -- waiting ------------------------------------------------------------------------------------------------------


def test_a_terminal_sees_how_long_it_waits(place: Path) -> None:
    make_old(place)
    code, output = in_terminal(place, "gc", "--grace", "2s", "--expire", "now")
    assert code == 0
    pattern = r"\r\x1b\[Kwaiting for readers: 0:00:0(\d) left; \^C is safe, the next gc goes on"
    waits = re.findall(pattern, output)
    assert waits == sorted(waits, reverse=True)
    assert len(set(waits)) >= 2
    assert re.search(r"\r\x1b\[Kfreed 2\.0\d MB in 2 files", output)


def test_elsewhere_it_waits_in_silence(place: Path) -> None:
    make_old(place)
    done = run(place, "gc", "--grace", "1", "--expire", "now")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("freed 2.0")


def test_an_interrupt_while_it_waits_loses_nothing_and_the_next_one_goes_on(place: Path) -> None:
    make_old(place)
    before = packs(place)
    terminal = Terminal(columns=100)
    command = [*COMMAND, "gc", "--grace", "500", "--expire", "now"]
    assert terminal.run(command, place, environment(TERM="xterm"), "waiting for readers: 0:08:") == 130
    assert terminal.lines()[-1] == "cas: interrupted"
    assert packs(place) == before
    check_whole(place)
    assert ok(place, "gc", *NOW).startswith("freed 2.0")
    check_whole(place)
