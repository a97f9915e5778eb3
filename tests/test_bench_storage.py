"""The storage bench: every peer gives back what it was given, what cannot run is said, and a very small run of one
workload leaves its files."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bench.storage.figures import figures
from bench.storage.loads import WAYS, loads
from bench.storage.measure import Outcome, measure
from bench.storage.peer import same_files, same_states
from bench.storage.peers import PEERS
from bench.storage.plots import GAP, apart
from bench.storage.report import as_markdown
from bench.storage.results import Facts, Results
from bench.storage.training import QUICK, ensure_cached
from bench.storage.workloads import WORKLOADS, Workload

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.xdist_group("bench storage"),  # one trains, once
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),  # by zipnn
]


@pytest.fixture(scope="module")
def trained() -> None:
    ensure_cached(QUICK)


@pytest.fixture(scope="module")
def rotation(trained: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workload, Path]:
    """A workload that also deletes, and its files."""
    workload, files = WORKLOADS["rotation"](QUICK), tmp_path_factory.mktemp("files")
    workload.write(files)
    return workload, files


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_gives_back_every_byte_or_says_why_it_cannot_run(
    name: str, rotation: tuple[Workload, Path], tmp_path: Path
) -> None:
    workload, files = rotation
    found = measure(workload, PEERS[name], files, tmp_path / "peer", limit=60)
    if PEERS[name].missing():
        assert (found.notes, found.stored, found.exact) == ([PEERS[name].missing()], [], None)
        return
    count = len(workload.checkpoints)
    assert found.exact is True, found.notes
    assert len(found.stored) == len(found.save) == count
    assert set(found.restore) == workload.kept(count)
    assert all(size > 0 for size in found.stored)
    kept = sum(workload.raw()[0][number] for number in workload.kept(count))
    assert name == "Xet" or found.final < 1.1 * kept + (64 << 10), "what was dropped still takes its place"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cas commit", "DCP + zstd"])
def test_layouts_of_ranks_are_saved_by_ranks_and_come_back_whole(name: str, trained: None, tmp_path: Path) -> None:
    workload = WORKLOADS["layouts"](QUICK)
    workload.write(tmp_path / "files")
    found = measure(workload, PEERS[name], tmp_path / "files", tmp_path / "peer", limit=60)
    assert found.exact is True, found.notes
    assert len(found.restore) == 5


def test_one_bit_that_differs_is_seen(tmp_path: Path) -> None:
    state = {"weights": {"a": torch.zeros(8)}}
    negative = {"weights": {"a": torch.tensor([0.0, -0.0, *[0.0] * 6])}}
    assert same_states(state, {"weights": {"a": torch.zeros(8)}})
    assert not same_states(state, negative)
    assert not same_states(state, {"weights": {"a": torch.zeros(8, dtype=torch.int32)}})
    for name, data in (("one", b"abc"), ("two", b"abd"), ("three", b"abc")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(data)
    assert same_files(tmp_path / "one", tmp_path / "three")
    assert not same_files(tmp_path / "one", tmp_path / "two")
    (tmp_path / "three" / "more").touch()
    assert not same_files(tmp_path / "one", tmp_path / "three")


def test_a_peer_over_its_time_is_stopped_and_compared_with_nothing() -> None:
    facts = Facts("about", ["1", "2"], raw=[100, 100], distinct=200, kept=[[0], [0, 1]])
    outcomes = {
        "cas repack": Outcome("w", "cas repack", [60, 90], [0.1, 0.1], restore={1: 0.1}, exact=True),
        "torch.save": Outcome("w", "torch.save", [100, 200], [0.1, 0.1], restore={1: 0.1}, exact=True),
        "zstd -19": Outcome("w", "zstd -19", [10], [99.0], restore={0: 0.1}, exact=True, notes=["over 60 s"]),
        "ZipNN": Outcome("w", "ZipNN", [10, 20], [0.1, 0.1], restore={1: 0.1}, exact=False),
    }
    results = Results({"cpu": "a processor"}, 60, {"mixture": facts}, {"mixture": outcomes})
    (found,) = figures(results)
    assert (found.value, found.beside, found.met) == (0.45, "torch.save", True)
    text = as_markdown(results)
    assert "| zstd -19 | – | – | – | – | – | – | – | over 60 s |" in text
    assert "| ZipNN | 0.0 MiB | 0.100 | 0.100 | 0.100 | 0.20 s | 0.10 s | NO |  |" in text


def test_nothing_is_restored_of_a_peer_that_had_no_time(tmp_path: Path) -> None:
    workload = Workload("w", "about", ())
    assert measure(workload, PEERS["torch.save"], tmp_path, tmp_path / "peer", limit=60).exact is None


def test_names_of_lines_stand_apart_and_near_their_lines() -> None:
    close = apart([0.0, 0.5, 0.5, 0.51, 0.9])
    assert close[0] == 0.0
    assert close[-1] == 0.9
    assert all(two - one >= GAP - 1e-9 for one, two in pairwise(close))
    assert abs(sum(close[1:4]) / 3 - 0.5033) < 1e-3
    low = apart([0.0] * 5)
    assert low == pytest.approx([GAP * number for number in range(5)])


@pytest.mark.slow
def test_a_very_small_run_leaves_numbers_tables_and_a_picture_and_the_next_adds_to_them(
    trained: None, tmp_path: Path
) -> None:
    for arguments in (["--only", "codecs", "--only", "dense bf16", "--peers", "cas commit"], ["--only", "dense bf16"]):
        peers = [] if "--peers" in arguments else ["--peers", "torch.save"]
        line = [sys.executable, "-m", "bench.storage", "--quick", "--out", str(tmp_path), *arguments, *peers]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "storage.json").read_text())
    assert set(found["outcomes"]["dense bf16"]) == {"cas commit", "torch.save"}
    assert all(one["exact"] for one in found["outcomes"]["dense bf16"].values())
    assert {"machine", "limit", "workloads", "outcomes", "codecs", "loads", "seconds"} == set(found)
    assert {"delta", "planes", "zstd -1"} <= {coded["method"] for coded in found["codecs"]}
    text = (tmp_path / "storage.md").read_text()
    assert "**dense bf16**: " in text
    assert found["machine"]["cpu"] in text
    assert {path.name for path in tmp_path.iterdir()} == {"storage.json", "storage.md", "storage-dense-bf16.png"}
    assert (tmp_path / "storage-dense-bf16.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_loads_are_measured_for_every_way_and_checkpoint(trained: None, tmp_path: Path) -> None:
    found = list(loads(QUICK, tmp_path))
    assert [held.way for held in found] == list(WAYS)
    count = len(WORKLOADS["dense full"](QUICK).checkpoints)
    assert all(len(held.seconds) == count and min(held.seconds) > 0 for held in found)
    results = Results({"cpu": "a processor"}, 60, loads=found)
    assert [figure.what for figure in figures(results)] == [
        "load of what was committed last, over whole",
        "load at depth d after repack small, over (1 + d) times whole",
        "load at depth d after repack smallest, over (1 + d) times whole",
    ]
