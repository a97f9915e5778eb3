"""The README's own code, run as a reader would: Python, then the shell commands in the same directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the Python of the README ran twice."""
    folder = tmp_path_factory.mktemp("readme")
    first = run([sys.executable, "-c", blocks("python")[0]], folder)
    assert [line.split()[3] for line in first.splitlines()] == ["1:", "2:", "3:"]
    second = run([sys.executable, "-c", blocks("python")[0]], folder)
    assert [line.split()[3] for line in second.splitlines()] == ["4:", "5:", "6:"]
    return folder


def test_the_ten_lines_commit_and_resume_and_the_shell_lines_work_on_their_store(folder: Path) -> None:
    for line in blocks("sh")[0].splitlines():
        run(["sh", "-c", line], folder)
    assert (folder / "weights" / "model.safetensors").stat().st_size > 512 * 512 * 4
    assert (folder / "best" / "model.safetensors").exists()


def test_the_lines_on_what_you_have_already_work_on_a_pile(tmp_path: Path) -> None:
    checkpoint = tmp_path / "runs/checkpoint-500"
    checkpoint.mkdir(parents=True)
    save_file({"w": torch.ones(3)}, checkpoint / "model.safetensors", metadata={"format": "pt"})
    torch.save({"w": torch.ones(3)}, tmp_path / "runs/step_10.pt")
    (checkpoint / "config.json").write_text("{}")
    for line in blocks("sh")[1].splitlines():
        run(["sh", "-c", line], tmp_path)
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors"]
    for name in os.listdir(checkpoint):
        assert (tmp_path / "back" / name).read_bytes() == (checkpoint / name).read_bytes()


def test_the_lines_for_less_storage_work_on_a_model_and_its_fine_tune(tmp_path: Path) -> None:
    base = {f"layer{number}": torch.randn(256, 256) for number in range(4)}
    models = {"base": base, "tuned": {name: tensor * (1 + 1e-4 * torch.rand(1)) for name, tensor in base.items()}}
    for name, held in models.items():
        (tmp_path / name).mkdir()
        save_file(held, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / name / "config.json").write_text("{}")
    *_, repacked, collected, _, _ = (run(["sh", "-c", line], tmp_path) for line in blocks("sh")[2].splitlines())
    assert " saved\n" in repacked
    assert collected.startswith("freed ")
    for name in os.listdir(tmp_path / "tuned"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "tuned" / name).read_bytes()


@pytest.mark.slow
def test_the_lines_for_many_ranks_train_and_go_on_with_another_number(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(blocks("python")[1])
    steps = [run(["sh", "-c", line], tmp_path) for line in blocks("sh")[3].splitlines()]
    assert [re.findall(r"main \w+ step (\d+):", printed) for printed in steps] == [["3"], ["6"]]


def test_the_lines_for_remotes_work_on_a_place_that_stands_for_the_bucket(tmp_path: Path) -> None:
    setup = (
        "import cas, numpy as np\n"
        "with cas.open('.cas', create=True) as store:\n"
        "    store.commit({'model': {'w': np.ones(1000)}, 'optimizer': np.zeros(1000)})\n"
    )
    run([sys.executable, "-c", setup], tmp_path)
    lines = blocks("sh")[4].replace("s3://bucket", str(tmp_path / "bucket")).splitlines()
    said = [run(["sh", "-c", line], tmp_path) for line in lines]
    assert said[2].startswith("main  [new branch] ")
    assert said[4] == "everything up to date\n"
    assert said[5] == "all is well\n"


def test_the_lines_for_dcp_save_and_load(tmp_path: Path) -> None:
    setup = (
        "import cas, torch, warnings; warnings.simplefilter('ignore')\n"
        "store, state, step = cas.open('.cas', create=True), {'w': torch.ones(3)}, 7\n"
    )
    check = "assert store.resolve('main').step == 7 and torch.equal(store.load('main')['w'], torch.ones(3))\n"
    run([sys.executable, "-c", setup + blocks("python")[2] + check], tmp_path)


def test_the_rest_of_the_surface_runs_as_written(folder: Path) -> None:
    setup = (
        "import cas, pathlib; pathlib.Path('config.json').write_text('{}'); store = cas.open('.cas')\n"
        "state = store.load('main'); store.branch('old', 'main')\n"
    )
    run([sys.executable, "-c", setup + blocks("python")[3]], folder)


def test_the_readme_names_every_command_and_every_error() -> None:
    import cas
    from cas.cli.main import COMMANDS

    told = set(re.findall(r"cas (\w+)", README))
    assert not set(COMMANDS) - told
    assert all(name in README for name in vars(cas) if isinstance(vars(cas)[name], type) and "Error" in name)
