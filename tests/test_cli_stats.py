"""`cas stats` and `cas branch -v`: what is held, shared, and would be freed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from cli_process import environment, in_terminal, make_store, objects, ok, refused

import cas
from cas.commits import human_bytes


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


def family(folder: Path) -> None:
    """Three commits whose model changes a little and whose backbone stays, and a branch that is gone."""
    drawn = np.random.default_rng(0).standard_normal(3 << 16).astype(np.float32)
    with cas.open(folder / ".cas", create=True) as store:
        for step in range(3):
            model = (drawn[: 1 << 16] * (1 + 1e-4 * step)).astype(np.float32)
            state = {"model": {"w": model}, "backbone": {"w": drawn[1 << 16 :]}, "step": np.arange(2)}
            options = {"parent": "main"} if step else {}
            store.commit(state, codec="planes", delta="parent", **options)
        store.commit({"w": drawn + 1}, codec="raw", branch="side")
        store.branch("old", "main~2")
        store.delete_branch("side")


def row(output: str, name: str) -> list[str]:
    """The numbers in the row of this name."""
    (found,) = (line for line in output.splitlines() if line.strip().startswith(name))
    return re.findall(r"[\d.]+ [kM]?B|[\d.]+", found.strip().removeprefix(name))


def test_savings_are_split_by_part_and_dtype(tmp_path: Path) -> None:
    family(tmp_path)
    (held,) = objects(ok(tmp_path, "stats", "--json"))
    saved, output = held["savings"], ok(tmp_path, "stats")
    whole = saved["whole"]
    assert (saved["commits"], whole["raw"], whole["dedup"]) == (3, 3 * (12 << 16) + 48, 2 * (8 << 16) + 32)
    assert whole["raw"] - whole["dedup"] - whole["delta"] - whole["entropy"] == whole["stored"]
    assert min(whole["delta"], whole["entropy"]) > 0
    parts = {part["name"]: part for part in saved["parts"]}
    assert (parts["model"]["dedup"], parts["backbone"]["delta"], parts["(leaves)"]["stored"]) == (0, 0, 16)
    assert [dtype["name"] for dtype in saved["dtypes"]] == ["float32", "int64"]
    sums = [human_bytes(whole[key]) for key in ("raw", "dedup", "delta", "entropy", "stored")]
    assert row(output, "3 commits") == [*sums, f"{whole['stored'] / whole['raw']:.3f}"]
    assert row(output, "backbone")[:2] == ["1.57 MB", "1.05 MB"]
    assert row(output, "(leaves)") == ["48 B", "32 B", "0 B", "0 B", "16 B", "0.333"]


def test_depths_of_chains_name_the_branches(tmp_path: Path) -> None:
    family(tmp_path)
    (held,) = objects(ok(tmp_path, "stats", "--json"))
    depths = held["savings"]["depths"]
    assert [(depth["depth"], depth["branches"]) for depth in depths] == [(0, ["old"]), (1, ["main"])]
    lines = ok(tmp_path, "stats").splitlines()
    header = next(at for at, line in enumerate(lines) if line.startswith("depth"))
    assert [line.split()[0] for line in lines[header + 1 :]] == ["0", "1"]
    assert [line.split()[-1] for line in lines[header + 1 :]] == ["old", "main"]


def test_what_is_dead_is_said_where_there_is_some(tmp_path: Path) -> None:
    family(tmp_path)
    (held,) = objects(ok(tmp_path, "stats", "--json"))
    assert held["savings"]["dead"] > 12 << 16
    assert row(ok(tmp_path, "stats"), "dead")[0] == human_bytes(held["savings"]["dead"])
    ok(tmp_path, "gc", "--grace", "0", "--expire", "now")
    assert objects(ok(tmp_path, "stats", "--json"))[0]["savings"]["dead"] == 0
    assert "dead" not in ok(tmp_path, "stats")


def test_an_empty_store_has_no_table(tmp_path: Path) -> None:
    ok(tmp_path, "init")
    assert "dedup" not in ok(tmp_path, "stats")
    assert objects(ok(tmp_path, "stats", "--json"))[0]["savings"]["commits"] == 0


def test_of_many_parts_the_small_ones_share_a_row(tmp_path: Path) -> None:
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit({f"part{number:02}": {"w": np.zeros(100 - number, np.uint8)} for number in range(20)})
    output = ok(tmp_path, "stats")
    assert "part11" in output
    assert "part12" not in output
    assert row(output, "8 more")[0] == f"{sum(100 - number for number in range(12, 20))} B"


def test_the_tables_fit_a_terminal_however_long_names_are(tmp_path: Path) -> None:
    family(tmp_path)
    with cas.open(tmp_path / ".cas") as store:
        store.commit({"long " * 50: {"w": np.arange(1000)}, "\x1b[2J": {"w": np.arange(3)}}, branch="b" * 200)
    code, output = in_terminal(tmp_path, "stats", columns=80)
    assert code == 0
    assert "\x1b[2m" in output
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    assert "\x1b" not in plain
    assert max(len(line) for line in plain.splitlines()) <= 80
    assert in_terminal(tmp_path, "stats", env=environment(NO_COLOR="1"))[1] == plain


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
