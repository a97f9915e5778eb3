"""What the command `cas` costs as people run it, whole processes: taking a file in and out against `cp`, and the log.

`cp` is followed by an fsync of the copy. All files that are read lie in the page cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

import cas

from .child import anonymous
from .machine import usual_environment
from .results import Amounts
from .timing import Timing, clock, take_turns
from .trees import State, leaves

NAME = "commands"
CP = "cp + fsync"
FIRST_SCREEN = "30"  # lines
_SAMPLE = 0.002  # seconds


def commands(state: State, commits: int, folder: Path, rounds: int) -> Iterator[Timing | Amounts]:
    """Import and checkout of the state as one safetensors file; the log of a long history and of a short one."""
    file = folder / "weights.safetensors"
    save_file({".".join(path): tensor for path, tensor in leaves(state)}, file, metadata={"format": "pt"})
    state.clear()
    yield _in_and_out(folder, file, rounds, "import")
    yield _in_and_out(folder, file, rounds, "checkout")
    held = {way: float(_peak(_line(folder, file, way))) for way in ("import", "checkout")}
    yield Amounts(NAME, "anonymous memory at the peak", held)
    yield _log(folder, commits, rounds)


def _line(folder: Path, file: Path, way: str) -> list[str]:
    """The command, after what it needs was made."""
    store, out = folder / "store", folder / "out"
    if way == "import":
        shutil.rmtree(store, ignore_errors=True)
        cas.init(store).close()
        return _cas(store, "commit", file)
    shutil.rmtree(out, ignore_errors=True)
    return _cas(store, "checkout", "main", "-o", out)


def _cas(store: Path, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "cas.cli", "--store", str(store), *map(str, arguments)]


def _in_and_out(folder: Path, file: Path, rounds: int, way: str) -> Timing:
    def ours() -> float:
        line = _line(folder, file, way)
        os.sync()
        return clock(lambda: subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=usual_environment()))

    def theirs() -> float:
        copy = folder / "copy"
        copy.unlink(missing_ok=True)
        os.sync()
        return clock(lambda: subprocess.run(["sh", "-c", 'cp "$1" "$2" && sync "$2"', "-", file, copy], check=True))

    take_turns({"cas": ours, CP: theirs}, 1)  # brings the files into the page cache
    return Timing(NAME, way, take_turns({"cas": ours, CP: theirs}, rounds))


def _peak(line: list[str]) -> int:
    """Bytes of anonymous memory (RssAnon, looked at every 2 ms) that a command has at its peak."""
    peak = 0
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, env=usual_environment()) as process:
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(_SAMPLE)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, line)
    return peak


def _log(folder: Path, commits: int, rounds: int) -> Timing:
    """The first screen of a history, and all of a history of one commit, which is the command's start."""
    for name, count in (("long", commits), ("short", 1)):
        with cas.init(folder / name) as store:
            for step in range(count):
                store.commit({"w": np.full(8, step)}, step=step, metrics={"loss": 1 / (step + 1)})

    def log(name: str) -> float:
        line = _cas(folder / name, "log", "-n", FIRST_SCREEN)
        return clock(lambda: subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=usual_environment()))

    ways = {f"{commits:,} commits": lambda: log("long"), "1 commit": lambda: log("short")}
    take_turns(ways, 1)
    return Timing(NAME, "log, first screen", take_turns(ways, rounds))
