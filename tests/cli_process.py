"""Running the real command in a process of its own, for the tests of the command."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import cas

COMMAND = [sys.executable, "-m", "cas.cli"]


def environment(**more: str) -> dict[str, str]:
    """The environment without what would choose a store or a colour."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CAS_", "NO_COLOR", "COLUMNS"))}
    return {**env, **more}


def run(cwd: Path, *arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env or environment(), capture_output=True, text=True, check=False)


def ok(cwd: Path, *arguments: str | Path) -> str:
    done = run(cwd, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def refused(cwd: Path, code: int, *arguments: str | Path, env: dict[str, str] | None = None) -> str:
    """The one sentence of an error that ends with `code`."""
    done = run(cwd, *arguments, env=env)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("cas: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
    return done.stderr.removeprefix("cas: ").strip()


def in_terminal(cwd: Path, *arguments: str, env: dict[str, str] | None = None, columns: int = 80) -> tuple[int, str]:
    """Exit code of the command, and all that it writes to a terminal of so many columns."""
    leader, follower = pty.openpty()
    variables = {**(env or environment()), "COLUMNS": str(columns), "TERM": "xterm"}
    child = subprocess.Popen([*COMMAND, *arguments], cwd=cwd, env=variables, stdout=follower, stderr=follower)
    os.close(follower)
    output = b""
    try:
        while piece := os.read(leader, 65536):
            output += piece
    except OSError:
        pass  # Linux reports the other end's closing as EIO
    finally:
        os.close(leader)
    return child.wait(), output.decode()


def objects(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def array(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def training_state(step: int) -> dict[str, Any]:
    model = {"wte.weight": array(64, 32, seed=step), "head": {"bias": array(32, seed=step + 1)}}
    moments = {0: {"exp_avg": array(64, 32, seed=9), "step": step}}
    return {"model": model, "optimizer": {"state": moments, "lr": 1e-3}, "step": step, "note": "n" * 100_000}


def make_store(path: Path, commits: int = 3) -> None:
    """`commits` training states on main, steps 0, 10, ...; loss falls, then rises in the last."""
    side = path.parent / "side-config.json"
    side.write_text('{"layers": 2}')
    with cas.open(path, create=True) as store:
        for number in range(commits):
            loss = 2.0 - number if number < commits - 1 else 3.0
            options: Any = {"metrics": {"loss": loss}, "message": f"number {number}", "meta": {"host": "a"}}
            store.commit(training_state(10 * number), step=10 * number, files={"config.json": side}, **options)
