"""The bench's part of many ranks: what it saves is what was given, what it counts is what happened, and figures say
what they should. A very small run leaves its numbers and its table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cas
from bench import beside, coordinator
from bench.beside import Span
from bench.contenders import contender
from bench.operations import CHANGED
from bench.ranks import (
    AFTER,
    BEFORE,
    COPIES,
    NAME,
    OURS,
    RANKS,
    STALL,
    THEIRS,
    commit_large,
    job,
    keep,
    large,
    many,
    read_large,
    slowest,
    stalls,
)
from bench.results import Amounts, Results
from bench.targets import figures
from bench.timing import Timing
from bench.trees import changed, leaves, some, tensor_bytes
from bench.workloads import Workload
from cas.leaves import TensorLeaf

ROOT = Path(__file__).parent.parent
SMALL = 1 << 20


@pytest.fixture
def made(tmp_path: Path) -> Workload:
    generator = torch.Generator().manual_seed(1)
    named = {f"layer.{n}": torch.randn(7 + n, 25, generator=generator) for n in range(20)}
    (tmp_path / "source").mkdir()
    torch.save({"weights": named, "exp_avg": {"layer.0": torch.randn(1)}}, tmp_path / "source" / "step000001.pt")
    return Workload(NAME, "a small state", tmp_path / "source", ())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_one_process_finds_what_two_ranks_saved_last(made: Workload, tmp_path: Path) -> None:
    found = list(slowest(job(RANKS, keep, made, tmp_path, 1)))
    assert [timing.operation for timing in found] == [
        "first",
        "unchanged",
        "5 % changed",
        "load into=, the same layout",
    ]
    assert all(list(timing.seconds) == [OURS, THEIRS] for timing in found)
    state = made.read()
    wanted = dict(leaves(changed(state, some(state, CHANGED), 1)))
    for name in (OURS, THEIRS):
        target = made.read()
        for _, tensor in leaves(target):
            tensor.zero_()
        one = contender(name, tmp_path)
        one.load_into(target)
        one.close()
        assert all(torch.equal(tensor, wanted[path]) for path, tensor in leaves(target)), name
    with cas.open(tmp_path / "cas-auto") as store:
        assert len(list(store.log())) == 3


def test_a_rank_that_fails_ends_the_job(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="terminated abruptly"):
        job(RANKS, keep, None, tmp_path, 1)


def test_the_stall_is_of_both_states_beside_their_copies(made: Workload, tmp_path: Path) -> None:
    found = list(slowest(job(RANKS, stalls, made, SMALL, tmp_path / "s", 2)))
    assert found[0].operation == STALL
    assert all(list(timing.seconds) == [OURS, COPIES] and len(timing.seconds[OURS]) == 2 for timing in found)


def test_simulated_ranks_publish_commits_of_all_their_parts(tmp_path: Path) -> None:
    found, nothing = job(2, coordinator.commits, tmp_path / "s", 3, 9)
    assert nothing == []
    assert len(found) == 1 + coordinator.AGAIN
    assert all(0 < one[coordinator.DECIDING] < one[coordinator.WALL] < 60 for one in found)
    assert all(0 < one[coordinator.CPU] < 60 for one in found)
    with cas.open(tmp_path / "s") as store:
        assert [commit.step for commit in store.log()] == [3, 2, 1, 0]
        assert len({commit.tree for commit in store.log()}) == 4
        held = [leaf for leaf in store.leaves() if isinstance(leaf, TensorLeaf)]
        assert [leaf.shape for leaf in held] == [(3 * coordinator.ROWS, coordinator.WIDTH)] * 9
        assert len({leaf.entry.content.layout for leaf in held}) == 9


def test_ranks_of_another_layout_hold_all_and_read_at_least_that(tmp_path: Path) -> None:
    nbytes = 8 << 20
    job(BEFORE, commit_large, nbytes, tmp_path / "s")
    found = job(AFTER, read_large, nbytes, tmp_path / "s")
    assert sum(one["its bytes"] for one in found) == tensor_bytes(large(nbytes))
    assert all(one["its bytes"] <= one["read"] <= one["its bytes"] + one["cells at inner edges"] for one in found)
    assert found[1]["cells at inner edges"] == 2 * found[0]["cells at inner edges"] > 0


def test_training_steps_are_taken_beside_a_commit(made: Workload, tmp_path: Path) -> None:
    ((commit, hashing, saves),) = job(1, beside.steps, made, tmp_path / "s", 1)
    for timing in (commit, hashing):
        assert len(timing.seconds[beside.BUSY]) == 2
        assert all(seconds > 0 for way in (beside.BUSY, beside.ALONE) for seconds in timing.seconds[way])
    assert all(seconds > 0 for seconds in saves.seconds["cas auto"])
    with cas.open(tmp_path / "s") as store:
        assert len({commit.tree for commit in store.log()}) == 4  # one alone, one for warmth, two that are measured


def test_the_parts_of_a_step_add_up() -> None:
    rounds = [(Span(5, 3, 1), Span(9, 4, 3), Span(7, 3, 2))]
    found = beside._timing(beside.COMMIT, rounds).seconds
    assert (found[beside.BUSY], found[beside.ALONE]) == ([9], [6])
    parts = [found[name][0] for name in ("ran longer", "waited for a processor", "waited otherwise")]
    assert parts == [1, 1.5, 0.5]
    assert sum(parts) == 9 - 6


def test_what_the_slowest_rank_took_counts() -> None:
    ranks = [[Timing(NAME, "first", {"a": [1.0, 5.0], "b": [2.0, 2.0]})]]
    ranks += [[Timing(NAME, "first", {"a": [3.0, 4.0], "b": [1.0, 9.0]})]]
    assert [timing.seconds for timing in slowest(ranks)] == [{"a": [3.0, 5.0], "b": [2.0, 9.0]}]


def results(worse: float) -> Results:
    """All figures of this part just met; `worse` times more makes them missed."""
    timings = [
        Timing(NAME, "first", {OURS: [1.0 * worse], THEIRS: [1.0]}),
        Timing(NAME, "unchanged", {OURS: [1.0 * worse], THEIRS: [4.0]}),
        Timing(NAME, STALL, {OURS: [1.2 * worse], COPIES: [1.0]}),
        Timing(NAME, beside.COMMIT, {beside.BUSY: [1.1 * worse], beside.ALONE: [1.0]}),
        Timing(NAME, coordinator.FIRST, {coordinator.CPU: [2.0 * worse], coordinator.DECIDING: [9.0]}),
        Timing(NAME, coordinator.REPEATED, {coordinator.CPU: [0.3 * worse], coordinator.DECIDING: [9.0]}),
    ]
    bytes_read = {"its bytes": 100.0, "read": 120.0 * worse, "cells at inner edges": 10.0}
    return Results(timings=timings, amounts=[Amounts(NAME, "4 to 3 ranks, rank 0", bytes_read)])


def test_figures_are_met_up_to_their_bounds() -> None:
    found = figures(results(1))
    assert [figure.value for figure in found] == [1.0, 4.0, 1.2, 1.1, 2.0, 0.3, 1.1]
    assert all(figure.met for figure in found)
    assert not any(figure.met for figure in figures(results(1.02)))


def test_the_ranks_are_many_in_full_and_few_in_a_quick_run() -> None:
    assert (many(1 << 30).simulated, many(1 << 30).tensors) == (64, 2000)
    assert many(SMALL).simulated < 10


@pytest.mark.slow
def test_a_very_small_run_leaves_numbers_and_a_table(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "bench", "--quick", "--rounds", "1", "--only", "ranks", "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    assert {one["workload"] for one in [*found["timings"], *found["bytes"]]} == {NAME}
    operations = [timing["operation"] for timing in found["timings"]]
    assert {"first", "unchanged", STALL, beside.COMMIT, coordinator.FIRST, coordinator.REPEATED} < set(operations)
    text = (tmp_path / "bench.md").read_text()
    assert f"**{NAME}**: " in text
    assert all(f"| {operation} |" in text for operation in operations)
    assert all(f"| {held['what']} | its bytes: " in text for held in found["bytes"])
    assert "file system" in found["machine"]
