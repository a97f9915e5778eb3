"""`cas diff` as a process: what it prints for people and programs, its exit codes, and what it does not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import environment, in_terminal, objects, refused, run
from test_diff import block_ids, damage

import cas


def make(tmp_path: Path, before: Any, after: Any, **options: Any) -> Path:
    """A store with two commits on main; the directory to run in."""
    with cas.open(tmp_path / ".cas", create=True) as store:
        for number, state in enumerate((before, after)):
            given = {name: values[number] for name, values in options.items()}
            store.commit(state, step=10 * number, codec="raw", **given)
    return tmp_path


def differs(cwd: Path, *arguments: str) -> list[str]:
    """The lines of a diff that finds something, without the ids on top, their spaces made one."""
    done = run(cwd, "diff", *arguments)
    assert (done.returncode, done.stderr) == (1, "")
    return [" ".join(line.split()) for line in done.stdout.splitlines()[1:]]


BEFORE: dict[str, Any] = {
    "model": {"w": np.arange(8, dtype=np.float32), "gone": np.zeros((2, 2), np.int8), "half": np.ones(4, np.float32)},
    "lr": 1e-3,
    "note": "n" * 100_000,
    "order": {"a": 1, "b": 2},
    "same": np.ones(100),
}
AFTER: dict[str, Any] = {
    "model": {"w": np.arange(8, dtype=np.float32), "half": np.ones(4, np.float16), "new": np.zeros(3)},
    "lr": 1e-4,
    "note": "m" * 100_000,
    "order": {"b": 2, "a": 1},
    "same": np.ones(100),
}
AFTER["model"]["w"][[1, 4]] = 2, np.nan


def test_every_difference_is_a_line_and_the_last_line_sums_up(tmp_path: Path) -> None:
    cwd = make(tmp_path, BEFORE, AFTER, metrics=[{"loss": 2.31}, {"loss": 1.98}], message=["a", "b\nmore"])
    assert differs(cwd, "main~1", "main") == [
        "step 0 -> 10",
        "loss 2.31 -> 1.98",
        "message a -> b",
        "~ model/w float32 [8] 2 of 8 (25%) largest 1 relative 1 1 NaN or infinite",
        "- model/gone int8 [2, 2] 4 B",
        "~ model/half float32 [4] -> float16 [4]",
        "+ model/new float64 [3] 24 B",
        "~ lr float 0.001 -> 0.0001",
        "~ note str 100 kB -> 100 kB",
        "~ order dict keys in another order",
        "1 added (24 B), 1 removed (4 B), 5 changed (100 kB)",
    ]


def test_equal_states_end_with_0(tmp_path: Path) -> None:
    cwd = make(tmp_path, BEFORE, BEFORE, metrics=[{}, {"loss": 1}])
    done = run(cwd, "diff", "main~1", "main")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "no differences")
    assert "loss  None -> 1" in done.stdout
    assert run(cwd, "diff", "main~1", "main", "--json").stdout.count("\n") == 1


def test_json_has_the_documented_keys(tmp_path: Path) -> None:
    done = run(make(tmp_path, BEFORE, AFTER), "diff", "main~1", "main", "--json")
    assert done.returncode == 1
    head, *found = objects(done.stdout)
    assert head["kind"] == "commits"
    assert head["after"].keys() == {"id", "step", "metrics", "meta", "message"}
    assert [record["kind"] for record in found] == ["changed", "removed", "changed", "added", *["changed"] * 3]
    by_path = {record["path"]: record for record in found}
    change = {"differing": 2, "total": 8, "nonfinite": 1, "largest": 1.0, "relative": 1.0}
    tensor = {"dtype": "float32", "shape": [8], "bytes": 32}
    assert by_path["model/w"] == {
        "kind": "changed",
        "path": "model/w",
        "before": tensor,
        "after": tensor,
        "change": change,
    }
    assert by_path["model/new"]["before"] is None
    assert by_path["model/gone"]["after"] is None
    assert by_path["lr"]["before"] == {"type": "float", "bytes": 0, "value": 1e-3}


def test_stat_counts_by_subtree_and_reads_no_content(tmp_path: Path) -> None:
    before, after = (
        {"w": np.full(2_000_000, number), "m": {"a": number, "b": [number] * 2}, "old": {"x": 1}} for number in (1, 2)
    )
    after["old"] = {}
    cwd = make(tmp_path, before, after)
    with cas.open(cwd / ".cas") as store:
        damage(store, *block_ids(store, "main"))
    assert run(cwd, "diff", "main~1", "main").returncode == 13
    assert differs(cwd, "main~1", "main", "--stat") == [
        "step 0 -> 10",
        "w ~1 (16.0 MB)",
        "m ~3",
        "old -1",
        "1 removed (0 B), 4 changed (16.0 MB)",
    ]
    found = objects(run(cwd, "diff", "main~1", "main", "--stat", "--json").stdout)
    nbytes = {"added": 0, "removed": 0, "changed": 16_000_000}
    assert found[1] == {"kind": "subtree", "path": "w", "added": 0, "removed": 0, "changed": 1, "bytes": nbytes}


def test_stat_of_a_flat_state_is_a_few_lines_that_add_up(tmp_path: Path) -> None:
    before = {f"h.{layer}.mlp.{part}.weight": np.zeros(4) for layer in range(60) for part in range(20)}
    cwd = make(tmp_path, before, {key: value + 1 for key, value in before.items()})
    _, *rows, total = differs(cwd, "main~1", "main", "--stat")
    assert 10 < len(rows) <= 40
    assert rows[0].startswith("h.0")
    assert sum(int(row.partition(" ~")[2].split()[0]) for row in rows) == len(before)
    assert total == "1,200 changed (38.4 kB)"
    assert run(cwd, "diff", "main~1", "main", "--stat", "--json").stdout.count("\n") == 1 + len(before)


def test_patterns_choose_and_one_that_names_nothing_is_not_found(tmp_path: Path) -> None:
    cwd = make(tmp_path, BEFORE, AFTER)
    assert differs(cwd, "main~1", "main", "model/*e*", "lr")[1:-1] == [
        "- model/gone int8 [2, 2] 4 B",
        "+ model/new float64 [3] 24 B",
        "~ lr float 0.001 -> 0.0001",
    ]
    assert run(cwd, "diff", "main~1", "main", "same").returncode == 0
    assert "has anything at nope" in refused(cwd, 11, "diff", "main~1", "main", "nope")
    assert run(cwd, "diff", "main~1", "main", "nope").stdout == ""


def test_side_files_that_differ_are_listed(tmp_path: Path) -> None:
    files = []
    for number in range(2):
        names = {"config.json": b"%d" % number, "same": b"same", f"only{number}": b"123"}
        for name, data in names.items():
            (tmp_path / f"{name}-{number}").write_bytes(data)
        files.append({name: tmp_path / f"{name}-{number}" for name in names})
    cwd = make(tmp_path, {"x": 1}, {"x": 1}, files=files)
    assert differs(cwd, "main~1", "main")[1:] == [
        "~ config.json side file 1 B -> 1 B",
        "- only0 side file 3 B",
        "+ only1 side file 3 B",
        "3 side files",
    ]
    found = objects(run(cwd, "diff", "main~1", "main", "--json").stdout)
    assert found[1] == {"kind": "file", "name": "config.json", "change": "changed", "before": 1, "after": 1}


def test_names_and_values_from_a_store_cannot_harm_a_terminal(tmp_path: Path) -> None:
    bad = "\x1b[31m\n\u202e"
    cwd = make(tmp_path, {bad: bad}, {bad: "x", "big": 1 << 20_000}, message=[bad, "x"], meta=[{bad: bad}, {}])
    done = run(cwd, "diff", "main~1", "main")
    assert (done.returncode, done.stderr) == (1, "")
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert "+ big" in done.stdout


def test_wrong_use_ends_with_2_and_an_unknown_revision_with_11(tmp_path: Path) -> None:
    cwd = make(tmp_path, {"x": 1}, {"x": 2})
    refused(cwd, 2, "diff", "main")
    assert "v9" in refused(cwd, 11, "diff", "main", "v9")


@pytest.mark.parametrize(("more", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_signs_have_colours_on_a_terminal_only(tmp_path: Path, more: dict[str, str], coloured: bool) -> None:
    cwd = make(tmp_path, {"a": 1, "b": 1}, {"a": 2, "c": 1})
    code, shown = in_terminal(cwd, "diff", "main~1", "main", env=environment(**more))
    assert code == 1
    for start, line in (("\x1b[33m", "~ a"), ("\x1b[31m", "- b"), ("\x1b[32m", "+ c")):
        assert line in shown
        assert (start + line in shown) is coloured
