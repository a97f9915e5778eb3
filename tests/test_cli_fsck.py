"""`cas fsck`: what it says, how it ends, and repairing from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_process import in_terminal, objects, ok, refused, run

import cas

W = np.random.default_rng(0).random(50_000)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a store in which a block of `w` is bad, and a whole copy of it in `clone`."""
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit({"m": {"w": W}, "n": 1}, codec="raw")
    shutil.copytree(tmp_path / ".cas", tmp_path / "clone")
    (file,) = (file for file in (tmp_path / ".cas" / "packs").glob("*/*") if W[:9].tobytes() in file.read_bytes())
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    return tmp_path


def test_structure_alone_is_well_and_data_is_not(place: Path) -> None:
    assert ok(place, "fsck") == "all is well; --data also reads every stored byte\n"
    done = run(place, "fsck", "--data")
    assert done.returncode == 1
    assert done.stderr == ""
    assert "error block-corrupt: block " in done.stdout
    assert "    paths    m/w" in done.stdout
    assert done.stdout.endswith("1 error, 1 warning\n")


def test_every_finding_is_an_object(place: Path) -> None:
    done = run(place, "fsck", "--data", "--json")
    found = objects(done.stdout)
    assert done.returncode == 1
    assert {finding["name"] for finding in found} == {"row-corrupt", "block-corrupt"}
    assert all(set(finding) == {"name", "severity", "message", "commits", "paths"} for finding in found)


def test_what_cannot_be_repaired_is_said_to_be_lost(place: Path) -> None:
    done = run(place, "fsck", "--data", "--repair")
    assert done.returncode == 1
    assert "error lost: block " in done.stdout
    assert "--from" in done.stdout
    assert done.stdout.endswith("1 object lost, 1 error, 1 warning\n")


def test_repair_from_another_store(place: Path) -> None:
    run(place, "fsck", "--data")
    said = ok(place, "fsck", "--repair", "--from", "clone")  # what was found before is known
    assert "info repaired: repaired 1 object of 1 pack; `cas gc` deletes what was given up" in said
    assert "    paths    m/w" in said
    assert said.endswith("repaired; all is well; --data also reads every stored byte\n")
    assert "pack-condemned" in ok(place, "fsck", "--data")
    with cas.open(place / ".cas") as store:
        assert np.array_equal(store.load()["m"]["w"], W)
        store.gc(grace=0)
    assert ok(place, "fsck", "--data").endswith("all is well\n")


def test_samples_go_round(place: Path) -> None:
    said = [run(place, "fsck", "--sample", "40%").stdout for _ in range(3)]
    assert all(" % of the stored bytes, " in text for text in said)
    assert any("100 % of this round so far" in text for text in said)
    assert "block-corrupt" in said[-1]


@pytest.mark.parametrize("part", ["0%", "101%", "5", "x", "-3%", ""])
def test_a_sample_is_a_percentage(place: Path, part: str) -> None:
    assert "percentage" in refused(place, 2, "fsck", "--sample", part)


def test_a_source_must_be_a_store_and_is_for_repairs(place: Path) -> None:
    assert "repair" in refused(place, 2, "fsck", "--from", "clone")
    assert "nor a store at" in refused(place, 11, "fsck", "--repair", "--from", "nothing")


def test_reading_draws_progress_on_a_terminal(tmp_path: Path) -> None:
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit({str(n): np.random.default_rng(n).random(2 << 20) for n in range(24)}, codec="raw")
    code, output = in_terminal(tmp_path, "fsck", "--data")
    assert code == 0
    assert "fsck [" in output
    assert "of 403 MB" in output
    assert output.rstrip().endswith("all is well")


def test_help_has_an_example_and_the_options(tmp_path: Path) -> None:
    said = ok(tmp_path, "fsck", "--help")
    for text in ("--sample", "--repair", "--from", "Example:"):
        assert text in said
