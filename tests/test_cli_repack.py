"""`cas repack`: what it says that it saved is saved, and everything comes out as it went in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_process import COMMAND, array, environment, objects, ok, refused
from safetensors.torch import save_file
from test_progress import Terminal

import cas

KEYS = "level packs written before after saved dropped freed"
ALL_SAVED = r"gave up 4 packs with [\d.]+ MB for [12] with [\d.]+ [kM]B; [\d.]+ MB saved\n"
NOTHING = "nothing to repack: all is stored as it should be"
FREES = r"`cas gc` frees ([\d.]+ [kM]B) after 10 min for readers, `cas gc --grace 0` at once\n"


def trained(step: int) -> np.ndarray[Any, Any]:
    """Weights of which every one changes a little from step to step."""
    held = array(500, 500)
    for number in range(step):
        held = held * (1 + 1e-4 * array(500, 500, seed=number + 1))
    return held


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Four commits of 1 MB each, none of them stored as a change."""
    with cas.open(tmp_path / ".cas", create=True) as store:
        for step in range(4):
            store.commit({"w": trained(step)}, step=step, codec="raw")
    return tmp_path


def packs(place: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (place / ".cas" / "packs").rglob("*") if path.is_file()}


def repacked(place: Path, *arguments: str) -> dict[str, Any]:
    (found,) = objects(ok(place, "repack", *arguments, "--json"))
    return found


def check_whole(place: Path) -> None:
    with cas.open(place / ".cas") as store:
        for step in range(4):
            np.testing.assert_array_equal(store.load(f"main@step:{step}")["w"], trained(step))
    ok(place, "fsck", "--data")


# -- a model and what was made of it --------------------------------------------------------------------------------


def save_model(folder: Path, weights: dict[str, torch.Tensor]) -> bytes:
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return (folder / "model.safetensors").read_bytes()


def checked_out(place: Path, rev: str) -> bytes:
    ok(place, "checkout", rev, "--as-imported", "-o", f"out/{rev}", "--force")
    return (place / "out" / rev / "model.safetensors").read_bytes()


def test_a_fine_tune_lies_near_its_base_and_both_come_out_byte_for_byte(tmp_path: Path) -> None:
    made = torch.Generator().manual_seed(1)
    base = {f"layers.{n}.weight": torch.randn(512, 512, generator=made).bfloat16() for n in range(4)}
    noise = {name: 1 + 1e-3 * torch.randn(512, 512, generator=made) for name in base}
    tuned = {name: (tensor.float() * noise[name]).bfloat16() for name, tensor in base.items()}
    assert all(not torch.equal(tuned[name], tensor) for name, tensor in base.items())
    files = {"main": save_model(tmp_path / "base", base), "tuned": save_model(tmp_path / "tuned", tuned)}
    ok(tmp_path, "init")
    ok(tmp_path, "commit", "base")
    (plain,) = objects(ok(tmp_path, "commit", "tuned", "-b", "plain", "--no-delta", "--json"))
    ok(tmp_path, "branch", "-d", "plain")
    ok(tmp_path, "gc", "--grace", "0", "--expire", "now")
    (near,) = objects(ok(tmp_path, "commit", "tuned", "-b", "tuned", "--base", "main", "--json"))
    assert near["stored"] < 0.1 * plain["stored"]
    assert {rev: checked_out(tmp_path, rev) for rev in files} == files

    before = sum(packs(tmp_path).values())
    done = repacked(tmp_path, "--level", "smallest")
    assert done["saved"] > 0.2 * before
    ok(tmp_path, "gc", "--grace", "0")
    assert sum(packs(tmp_path).values()) < 0.8 * before
    assert {rev: checked_out(tmp_path, rev) for rev in files} == files
    ok(tmp_path, "fsck", "--data")


# -- what it says -----------------------------------------------------------------------------------------------------


def test_it_says_what_it_saved_and_what_gc_frees_which_gc_then_does(place: Path) -> None:
    said = ok(place, "repack")
    match = re.fullmatch(ALL_SAVED + FREES, said)
    assert match, said
    assert all(len(line) <= 80 for line in said.splitlines())
    assert ok(place, "gc", "--grace", "0").startswith(f"freed {match[1]} in 4 files; ")
    check_whole(place)


def test_the_next_one_finds_nothing_and_says_what_waits_for_gc(place: Path) -> None:
    *_, frees = ok(place, "repack").splitlines()
    after = packs(place)
    assert ok(place, "repack").splitlines() == [NOTHING, frees]
    assert packs(place) == after
    ok(place, "gc", "--grace", "0")
    assert ok(place, "repack") == f"{NOTHING}\n"
    check_whole(place)


def test_the_figures_are_those_of_the_packs_and_the_keys_those_of_the_help(place: Path) -> None:
    before = packs(place)
    done = repacked(place)
    assert list(done) == KEYS.split()
    assert (done["level"], done["packs"], done["dropped"]) == ("fast", 4, 0)
    assert done["saved"] == done["before"] - done["after"]
    assert done["freed"] == sum(before.values())
    new = {name: size for name, size in packs(place).items() if name not in before}
    assert done["written"] == len(new)
    assert 0 < sum(before.values()) - done["before"] < 0.02 * sum(before.values())  # heads and tables of packs
    assert 0 < sum(new.values()) - done["after"] < 0.02 * sum(before.values())
    help_text = ok(place, "repack", "--help")
    assert [key for key in KEYS.split() if not re.search(rf"\b{key}\b", help_text)] == []


def test_smallest_is_smaller_than_fast(place: Path) -> None:
    fast = repacked(place, "--level", "fast")
    smallest = repacked(place, "--level", "smallest")
    assert 0 < smallest["after"] < 0.97 * fast["after"]
    assert smallest["level"] == "smallest"
    check_whole(place)


def test_what_nothing_needs_is_dropped_and_said(tmp_path: Path) -> None:
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit({"big": array(500, 500), "kept": array(200, 200)}, codec="raw")
        store.commit({"kept": array(200, 200)}, codec="raw")
    ok(tmp_path, "prune", "main", "--keep-last", "1", "--yes")
    assert "; 1.00 MB saved, 1.00 MB of it needed by nothing" in ok(tmp_path, "repack")
    with cas.open(tmp_path / ".cas") as store:
        np.testing.assert_array_equal(store.load("main")["kept"], array(200, 200))


def test_an_empty_store_has_nothing_to_repack(tmp_path: Path) -> None:
    ok(tmp_path, "init")
    assert ok(tmp_path, "repack") == f"{NOTHING}\n"


# -- mistakes, damage, interrupts ---------------------------------------------------------------------------------


def test_mistakes_are_answered_in_one_sentence(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert "'tiny' is not one of 'fast', 'small', 'smallest'" in refused(place, 2, "repack", "--level", "tiny")
    assert "there is no store" in refused(tmp_path_factory.mktemp("none"), 10, "repack")


def test_damage_is_named_and_nothing_is_given_up(place: Path) -> None:
    broken = max((place / ".cas" / "packs").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 1
    broken.chmod(0o644)
    broken.write_bytes(data)
    before = packs(place)
    said = refused(place, 13, "repack", "--level", "smallest")
    assert re.search(r"\bblock [0-9a-f]{8}", said)
    assert before.items() <= packs(place).items()


def test_a_terminal_sees_how_far_it_is_and_an_interrupt_leaves_the_store_whole(tmp_path: Path) -> None:
    made, held = np.random.default_rng(0), [array(8192, 1024)]
    with cas.open(tmp_path / ".cas", create=True) as store:
        for _ in range(8):
            store.commit({"w": held[-1]}, codec="raw")
            held.append(held[-1] * (1 + 1e-4 * made.standard_normal((8192, 1024), dtype="f4")))
    before = packs(tmp_path)
    terminal = Terminal(columns=100)
    command = [*COMMAND, "repack", "--level", "smallest"]
    assert terminal.run(command, tmp_path, environment(TERM="xterm"), "repack: ") == 130
    *lines, last = terminal.lines()
    pattern = r"repack: (marking|planning|rewriting [\d.]+ .?B of [\d.]+ MB, .+)"
    assert all(re.fullmatch(pattern, line) for line in lines)
    why = "the store is whole; run it again, and `cas gc` deletes what this one left"
    assert last == f"cas: interrupted: {why}"
    assert before.items() <= packs(tmp_path).items()
    ok(tmp_path, "fsck", "--data")
    assert re.match(r"gave up 7 packs with [\d.]+ MB for ", ok(tmp_path, "repack"))
    with cas.open(tmp_path / ".cas") as store:
        np.testing.assert_array_equal(store.load("main~7")["w"], held[0])
