"""`cas stats` and `cas branch -v`: what is held, shared, and would be freed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from cli_process import make_store, objects, ok, refused

import cas


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_store(tmp_path / ".cas")
    return tmp_path


def on_disk(folder: Path) -> int:
    return sum(os.lstat(os.path.join(top, name)).st_size for top, _, names in os.walk(folder) for name in names)


def test_the_first_line_is_the_sum_of_all_file_sizes(place: Path) -> None:
    before = on_disk(place / ".cas")
    first = ok(place, "stats").splitlines()[0]
    (held,) = objects(ok(place, "stats", "--json"))
    assert held["disk"] == before == on_disk(place / ".cas")
    assert f"{before:,} bytes" in first


def test_commits_as_files_are_counted_once_for_each_that_refs_lead_to(place: Path) -> None:
    with cas.open(place / ".cas") as store:
        raw = sum(commit.raw for commit in store.log())
        store.branch("side", "main~1")
    (held,) = objects(ok(place, "stats", "--json"))
    assert (held["files"], held["history"]) == (raw, 3)


def test_what_was_read_from_files_counts_as_these_files(tmp_path: Path) -> None:
    from cas.files import KnownFile

    (tmp_path / "file").write_bytes(bytes(5000))
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit({}, origin={"file": [KnownFile.at(tmp_path / "file").whole()]})
    assert objects(ok(tmp_path, "stats", "--json"))[0]["files"] == 5000


def test_the_stats_of_a_commit_tell_what_its_parent_shares(tmp_path: Path) -> None:
    same, other = np.random.default_rng(0).integers(0, 256, (2, 600_000), np.uint8)
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit({"a": same, "b": same[:1000], "step": 1}, codec="raw")
        store.commit({"a": same, "b": {"x": other, "y": other}, "step": 2}, codec="raw", parent="main")
    (held,) = objects(ok(tmp_path, "stats", "main", "--json"))
    parts = {part["path"]: part for part in held["parts"]}
    assert list(parts) == ["a", "b", "step"]
    assert parts["a"] == {
        "path": "a",
        "blocks": 3,
        "raw": 600_000,
        "stored": 600_000,
        "shared": 3,
        "shared_stored": 600_000,
    }
    assert (parts["b"]["raw"], parts["b"]["shared"], parts["step"]["blocks"]) == (600_000, 0, 0)
    assert (held["whole"]["blocks"], held["whole"]["raw"], held["whole"]["shared"]) == (6, 1_200_000, 3)
    (first,) = objects(ok(tmp_path, "stats", "main~1", "--json"))
    assert (first["whole"]["blocks"], first["whole"]["shared"]) == (4, 0)
    assert "the commit" in ok(tmp_path, "stats", "main")
    refused(tmp_path, 11, "stats", "nope")


def freed(place: Path) -> dict[str, int]:
    return {ref["name"]: ref["frees"] for ref in objects(ok(place, "branch", "-v", "--json"))}


def test_a_branch_frees_what_no_other_branch_or_tag_leads_to(tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (3, 600_000), np.uint8)
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit({"a": arrays[0]}, codec="raw")
        store.commit({"a": arrays[0], "b": arrays[1]}, branch="side", parent="main", codec="raw")
        store.commit({"deep": [{"a": arrays[0]}, {"c": arrays[2]}]}, branch="side", codec="raw")
    assert freed(tmp_path)["main"] == 0
    assert 1_200_000 < freed(tmp_path)["side"] < 1_210_000
    assert "frees 1.2" in ok(tmp_path, "branch", "-v")
    ok(tmp_path, "tag", "kept", "side~1")
    assert 600_000 < freed(tmp_path)["side"] < 605_000
    ok(tmp_path, "branch", "twin", "side")
    assert freed(tmp_path) == {"main": 0, "side": 0, "twin": 0}
    refused(tmp_path, 2, "branch", "-v", "new")


def test_side_files_and_origins_are_freed_too(tmp_path: Path) -> None:
    from cas.files import KnownFile

    for name in ("side", "source"):
        (tmp_path / name).write_bytes(os.urandom(500_000))
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit({}, branch="one")
        origin = {"source": [KnownFile.at(tmp_path / "source").whole()]}
        store.commit({}, branch="two", files={"side": tmp_path / "side"}, origin=origin, codec="raw")
    assert freed(tmp_path)["one"] < 1000
    assert 1_000_000 < freed(tmp_path)["two"] < 1_010_000
