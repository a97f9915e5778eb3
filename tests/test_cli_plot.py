"""`cas plot`: the numbers behind the pictures, the files, and what may stand in a store. How they look is for eyes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from cli_process import array, environment, make_store, objects, ok, refused, run

import cas
from cas.cli import main as entry
from cas.cli.grouping import group

PNG = b"\x89PNG\r\n\x1a\n"
KINDS = ["metrics", "storage", "changes"]
HOSTILE = ["<script>alert(1)</script>", "$x^2$", "$\\frac{", "_hidden", "n" * 300, "長" * 80, "\\input{/etc/passwd}"]
BLOCK = 4096


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """main with steps 0, 10, 20, and a branch with one commit more that leaves it at step 10."""
    (tmp_path / "runs").mkdir()
    make_store(tmp_path / "runs" / ".cas")
    with cas.open(tmp_path / "runs" / ".cas") as store:
        store.branch("fork", "main~1")
        store.commit({"model": {"wte.weight": array(64, 32)}}, branch="fork", step=20, metrics={"loss": 0.5, "acc": 1})
    return tmp_path / "runs"


def drawn(place: Path, *arguments: str) -> str:
    """All text in an SVG, which must be well-formed: matplotlib keeps what it draws in comments."""
    assert ok(place, "plot", *arguments, "-o", "a.svg") == "drew a.svg\n"
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    root = ElementTree.parse(place / "a.svg", parser).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not [e for e in root.iter() if isinstance(e.tag, str) and e.tag.endswith("script")]
    return "\n".join((e.text or "").strip() for e in root.iter() if e.tag is ElementTree.Comment)


# -- the numbers --------------------------------------------------------------------------------------------------


def test_the_metrics_of_shared_history_belong_to_main_alone(place: Path) -> None:
    points = objects(ok(place, "plot", "metrics", "--json"))
    assert [(p["branch"], p["metric"], p["step"], p["number"], p["value"]) for p in points] == [
        ("main", "loss", 0, 1, 2.0),
        ("main", "loss", 10, 2, 1.0),
        ("main", "loss", 20, 3, 3.0),
        ("fork", "loss", 20, 3, 0.5),
        ("fork", "acc", 20, 3, 1.0),
    ]


def test_the_first_revision_named_has_the_shared_history(place: Path) -> None:
    points = objects(ok(place, "plot", "metrics", "fork", "main", "-m", "loss", "--json"))
    assert [(p["branch"], p["step"]) for p in points] == [("fork", 0), ("fork", 10), ("fork", 20), ("main", 20)]


def test_n_limits_each_history(place: Path) -> None:
    points = objects(ok(place, "plot", "metrics", "main", "-n", "2", "--json"))
    assert [p["step"] for p in points] == [10, 20]


def test_storage_adds_up_what_commits_took(place: Path) -> None:
    points = objects(ok(place, "plot", "storage", "--json"))
    logged = {c["id"]: c for rev in ("main", "fork") for c in objects(ok(place, "log", rev, "--json"))}
    assert [p["id"] for p in points] == sorted(logged, key=lambda name: logged[name]["time"])
    assert points[-1]["total_raw"] == sum(c["raw"] for c in logged.values())
    assert points[-1]["total_stored"] == sum(c["stored"] for c in logged.values())
    assert points[1]["total_stored"] - points[0]["total_stored"] == points[1]["stored"]


def test_changes_count_the_bytes_of_new_blocks(tmp_path: Path) -> None:
    big = np.arange(2 * BLOCK, dtype=np.float32)
    states: list[dict[str, Any]] = [{"same": array(100), "big": big.copy(), "gone": array(10)}]
    states.append({"same": array(100), "big": big.copy(), "new": array(20)})
    states[1]["big"][0] = -1
    states.append(states[1] | {"big": big})
    with cas.init(tmp_path / ".cas", block_size=BLOCK) as store:
        for step, state in enumerate(states):
            store.commit(state, step=step)
    cells = objects(ok(tmp_path, "plot", "changes", "--json"))
    assert {(c["step"], c["row"]): (c["tensors"], c["bytes"], c["new"]) for c in cells} == {
        (1, "same"): (1, 400, 0),
        (1, "big"): (1, big.nbytes, BLOCK),
        (1, "new"): (1, 80, 80),
        (2, "same"): (1, 400, 0),
        (2, "big"): (1, big.nbytes, BLOCK),
        (2, "new"): (1, 80, 0),
    }


def test_a_commit_of_the_same_state_changes_nothing(tmp_path: Path) -> None:
    with cas.open(tmp_path / ".cas", create=True) as store:
        for step in range(3):
            store.commit({"w": array(100)}, step=step)
    assert [(c["step"], c["new"]) for c in objects(ok(tmp_path, "plot", "changes", "--json"))] == [(1, 0), (2, 0)]


# -- many tensors in few rows -------------------------------------------------------------------------------------


def rows(paths: list[tuple[str | int, ...]], limit: int) -> dict[str, list[int]]:
    found = group(paths, [1] * len(paths), limit)
    assert len(found) <= limit
    members = [member for row in found for member in row.members]
    assert sorted(members) == list(range(len(paths)))
    assert members == sorted(members)
    return {row.name: row.members for row in found}


def test_tensors_that_fit_have_a_row_each() -> None:
    assert list(rows([("a",), ("a.b",), ("m", "w.x"), ("m", 3)], 9)) == ["a", "a.b", "m/w.x", "m/[3]"]


def test_layers_are_split_together_or_not_at_all() -> None:
    paths: list[tuple[str | int, ...]] = [("m", f"h.{i}.{part}") for i in range(6) for part in ("q", "k")]
    assert list(rows(paths, 11)) == [f"m/h.{i}" for i in range(6)]
    assert list(rows(paths, 12)) == [f"m/h.{i}.{part}" for i in range(6) for part in ("q", "k")]


def test_too_many_parts_are_cut_into_runs_of_neighbours() -> None:
    names = rows([*(("h", i) for i in range(100)), ("head",)], 6)
    assert list(names) == ["h/[0] … [19]", "h/[20] … [39]", "h/[40] … [59]", "h/[60] … [79]", "h/[80] … [99]", "head"]


def test_one_row_is_enough_for_any_number_of_tensors() -> None:
    assert list(rows([("a", f"{i}.w") for i in range(500)], 1)) == ["a"]


def test_a_key_of_dots_is_no_deep_tree() -> None:
    assert len(rows([("." * 50_000 + "a",), ("." * 50_000 + "b",)], 40)) == 2


# -- the files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_drawn_and_nothing_else_left(kind: str, place: Path) -> None:
    assert ok(place, "plot", kind) == f"drew cas-{kind}.png\n"
    assert (place / f"cas-{kind}.png").read_bytes().startswith(PNG)
    assert {path.name for path in place.iterdir()} == {".cas", "side-config.json", f"cas-{kind}.png"}


def test_an_svg_is_the_same_byte_for_byte_and_names_store_and_branches(place: Path) -> None:
    text = drawn(place, "metrics")
    first = (place / "a.svg").read_bytes()
    assert {"runs: metrics", "main", "fork", "loss", "acc", "step"} <= set(text.splitlines())
    drawn(place, "metrics")
    assert (place / "a.svg").read_bytes() == first


def test_a_commit_without_a_step_puts_the_number_of_the_commit_below(place: Path) -> None:
    with cas.open(place / ".cas") as store:
        store.commit({"w": array(2)}, branch="fork", parent="fork", metrics={"loss": 1.0})
    assert "commit number" in drawn(place, "metrics").splitlines()


def test_wide_ranges_have_a_logarithmic_axis(place: Path) -> None:
    assert "log scale" not in drawn(place, "metrics")
    with cas.open(place / ".cas") as store:
        store.commit({"w": array(2)}, parent="main", step=30, metrics={"loss": 1e5})
    assert "log scale" in drawn(place, "metrics")


def test_numbers_that_cannot_be_drawn_are_marked(tmp_path: Path) -> None:
    values = [math.nan, math.inf, 1e308, 5e-324, -1.0, 1]
    with cas.open(tmp_path / ".cas", create=True) as store:
        for number, value in enumerate(values):
            store.commit({"w": array(2)}, step=(-1) ** number * (2**62 + number), metrics={"x": value, "nan": math.nan})
    assert "NaN or infinite" in drawn(tmp_path, "metrics").splitlines()
    points = objects(ok(tmp_path, "plot", "metrics", "-m", "x", "--json"))
    assert [p["value"] for p in points] == ["nan", "inf", 1e308, 5e-324, -1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_names_are_drawn_as_they_stand_and_cut(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "$x_store$<b>"
    with cas.open(place / ".cas", create=True) as store:
        metrics = dict.fromkeys(HOSTILE, 1.0)
        for seed in range(3):
            store.commit({**{name: array(9, seed=seed) for name in HOSTILE}, "\x1b[31m\n": array(9)}, metrics=metrics)
        store.branch("$a$<b>&amp;", "main~1")
        store.commit({"w": array(9)}, branch="$a$<b>&amp;", metrics=metrics)
    text = drawn(place, kind)
    assert "$x_store$" in text
    assert "\x1b" not in text
    assert "n" * 60 not in text
    if kind == "metrics":
        assert {"$x^2$", "_hidden", "$\\frac{"} <= set(text.splitlines())


def test_settings_in_the_directory_and_the_environment_have_no_say(place: Path) -> None:
    (place / "matplotlibrc").write_text("text.usetex: True\nbackend: junk\n")
    env = environment(MPLBACKEND="junk", MPLCONFIGDIR=str(place / "side-config.json"))  # a file: it makes another
    done = run(place, "plot", "storage", env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "drew cas-storage.png\n", "")


# -- what is refused ----------------------------------------------------------------------------------------------


def test_an_unknown_suffix_is_refused(place: Path) -> None:
    assert refused(place, 2, "plot", "metrics", "-o", "a.pdf") == (
        "a.pdf ends with neither .png nor .svg, which says what to draw; rename it"
    )


def test_a_file_that_cannot_be_written_leaves_nothing(place: Path) -> None:
    (place / "a.png").mkdir()
    assert refused(place, 3, "plot", "metrics", "-o", "a.png").endswith("a.png")
    assert refused(place, 3, "plot", "metrics", "-o", "nowhere/a.png").endswith(": nowhere/a.png")
    assert {path.name for path in place.iterdir()} == {".cas", "side-config.json", "a.png"}


def test_without_matplotlib_the_numbers_are_still_there(place: Path, tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "matplotlib.py").write_text("raise ModuleNotFoundError(__name__)")
    above = os.environ.get("PYTHONPATH")
    env = environment(PYTHONPATH=os.pathsep.join(filter(None, [str(tmp_path / "without"), above])))
    said = refused(place, 3, "plot", "metrics", env=env)
    assert said == "drawing needs matplotlib; pip install 'cas-checkpoints[plot]'"
    done = run(place, "plot", "changes", "--json", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[0])["step"] == 10


def test_without_metrics_it_says_how_to_give_them(tmp_path: Path) -> None:
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit({"w": array(4)}, metrics={})
    assert "store.commit(state, metrics={...})" in refused(tmp_path, 11, "plot", "metrics")


def test_a_metric_that_is_not_there_is_refused_with_those_that_are(place: Path) -> None:
    assert refused(place, 11, "plot", "metrics", "-m", "los") == "no commit has a metric los; there are loss, acc"


def test_a_single_commit_has_storage_but_no_changes(tmp_path: Path) -> None:
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit({"w": array(4)}, metrics={"loss": 1.0})
    assert "no commit before it" in refused(tmp_path, 11, "plot", "changes")
    assert ok(tmp_path, "plot", "storage")
    assert ok(tmp_path, "plot", "metrics")


def test_states_without_tensors_have_no_changes(tmp_path: Path) -> None:
    with cas.open(tmp_path / ".cas", create=True) as store:
        for step in range(2):
            store.commit({"step": step})
    assert "hold no tensors" in refused(tmp_path, 11, "plot", "changes")


def test_an_empty_store_has_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cas.init(tmp_path / ".cas").close()
    for kind in KINDS:
        assert entry.main(["plot", kind, "--store", str(tmp_path)]) == 11
        assert "commit" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    ["", "pie", "metrics --json -o a.svg", "changes main fork", "storage -m loss", "metrics -n 0"],
)
def test_a_wrong_call_is_a_usage_error(arguments: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--store", str(place), "plot", *arguments.split()]) == 2
    assert "see `cas plot --help`" in capsys.readouterr().err
