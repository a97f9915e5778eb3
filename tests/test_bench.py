"""The bench itself: every contender keeps a state bit for bit, figures say what they should, and a very small run of
the whole leaves its files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.contenders import CONTENDERS, contender
from bench.report import as_markdown
from bench.results import Results
from bench.targets import figures
from bench.timing import Timing, take_turns
from bench.trees import State, changed, clone, empty_like, leaves, some, tensor_bytes
from bench.workloads import fitting

ROOT = Path(__file__).parent.parent


def some_state() -> State:
    generator = torch.Generator().manual_seed(1)
    named = {f"layer.{n}": torch.randn(40, 25, generator=generator) for n in range(40)}
    return {"step000001": {"weights": named, "exp_avg": {"layer.0": torch.randn(7, generator=generator)}}}


def same(found: State, wanted: State) -> bool:
    held = dict(leaves(wanted))
    return all(torch.equal(tensor, held[path]) for path, tensor in leaves(found)) and len(dict(leaves(found))) == 41


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("name", CONTENDERS)
def test_a_contender_gives_back_what_was_saved_last(name: str, tmp_path: Path) -> None:
    state, later = some_state(), changed(some_state(), [("step000001", "weights", "layer.3")], 1)
    one = contender(name, tmp_path)
    one.clear()
    one.save(state)
    one.make_room()
    one.save(later)
    one.close()
    target = empty_like(state)
    one.load_into(target)
    assert same(target, later)
    assert tensor_bytes(one.load()) == tensor_bytes(later)
    path = ("step000001", "weights", "layer.3")
    assert torch.equal(one.load_one(path), dict(leaves(later))[path])
    one.close()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("name", ["cas auto", "torch.save", "DCP"])
def test_a_state_may_change_as_soon_as_an_asynchronous_save_returns(name: str, tmp_path: Path) -> None:
    state = some_state()
    before = clone(state)
    one = contender(name, tmp_path)
    one.clear()
    wait = one.save_async(state)
    for _, tensor in leaves(state):
        tensor.zero_()
    wait()
    target = empty_like(state)
    one.load_into(target)
    one.close()
    assert same(target, before)


def test_five_percent_of_the_bytes_change_and_each_time_to_something_new() -> None:
    state = some_state()
    paths = some(state, 0.05)
    bytes_of = {path: tensor.nbytes for path, tensor in leaves(state)}
    assert 0.03 < sum(bytes_of[path] for path in paths) / tensor_bytes(state) < 0.07
    kept = dict(leaves(state))
    states = [dict(leaves(changed(state, paths, times))) for times in (1, 2)]
    for path, tensor in kept.items():
        versions = {bytes(held[path].numpy().tobytes()) for held in (kept, *states)}
        assert len(versions) == (3 if path in paths else 1), path
        assert torch.allclose(states[1][path], tensor, rtol=1e-4)


def test_every_way_is_first_in_turn_and_ratios_are_within_a_round() -> None:
    order: list[str] = []
    clocks = {"a": iter([1.0, 2.0, 4.0]), "b": iter([2.0, 6.0, 4.0])}

    def way(name: str) -> float:
        order.append(name)
        return next(clocks[name])

    found = take_turns({"a": lambda: way("a"), "b": lambda: way("b")}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert Timing("w", "o", found).speedup("a", "b") == 2.0


def test_a_missed_figure_is_marked() -> None:
    slow = {"10000": [1.0, 1.0], "1000000": [1.4, 1.4]}
    results = Results(timings=[Timing("growth", "commit", slow)])
    found = figures(results)
    assert [(figure.value, figure.met, figure.target) for figure in found] == [(1.4, False, "at most 1.3")]
    where = {"cpu": "a processor", "cores": "2"}
    assert "| 1.4 (missed) | at most 1.3 | 1.40 s against 1.00 s |" in as_markdown(where, results, found)
    quick = Results(timings=[Timing("growth", "commit", {"10000": [1.0], "1000000": [1.3]})])
    assert figures(quick)[0].met


def test_the_largest_state_says_why_it_is_as_large_as_it_is(tmp_path: Path) -> None:
    assert fitting(1000, tmp_path)[0] == 1000
    assert "asked for" in fitting(1000, tmp_path)[1]
    total, why = fitting(1 << 60, tmp_path)
    assert total < 1 << 60
    assert "half of the available memory" in why or "a third of the free disk" in why


@pytest.mark.slow
@pytest.mark.parametrize("part", ["trained", "tiny", "large", "growth", "commands"])
def test_a_very_small_run_leaves_numbers_tables_and_pictures(part: str, tmp_path: Path) -> None:
    arguments = ["--quick", "--rounds", "1", "--only", part, "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    assert {"machine", "rounds", "workloads", "timings", "bytes", "notes", "figures"} == set(found)
    assert {timing["workload"] for timing in found["timings"]} == {part}
    assert all(seconds > 0 for timing in found["timings"] for way in timing["seconds"].values() for seconds in way)
    text = (tmp_path / "bench.md").read_text()
    assert f"**{part}**: " in text
    assert found["machine"]["cpu"] in text
    assert all(f"| {timing['operation']} |" in text for timing in found["timings"])
    picture = {"growth": "growth", "commands": None}.get(part, f"speed-{part}")
    pictures = {f"{picture}.png", f"{picture}.svg"} if picture else set()
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.md", *pictures}
    if picture:
        assert (tmp_path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"{picture}.svg").read_text()
