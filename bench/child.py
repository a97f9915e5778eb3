"""What is measured in a process of its own: loads as a resumed job does them, and the memory that they take.

`child_seconds` and `peak_memory` start the process; it runs this file. Imports are never counted, opening is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .contenders import CONTENDERS, Contender, contender
from .timing import clock
from .trees import State, tensor_bytes
from .workloads import read

ROOT = Path(__file__).parent.parent
_SAMPLE = 0.002  # seconds


def load(found: Contender, _: Path) -> State:
    """Everything that was saved."""
    state: State = found.load()
    return state


def save(found: Contender, source: Path) -> State:
    """Save a state that is mapped from its files, so that it is no anonymous memory; nothing is loaded."""
    found.save(read(source, mmap=True))
    return {}


ACTIONS: dict[str, Callable[[Contender, Path], State]] = {"load": load, "save": save}


def child_seconds(action: str, name: str, parent: Path, source: Path) -> float:
    """Seconds that an action of a contender takes in a new process."""
    done = subprocess.run(
        _command(action, name, parent, source), check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    return float(done.stdout.split()[-2])


def peak_memory(action: str, name: str, parent: Path, source: Path) -> int:
    """Bytes of anonymous memory (RssAnon, looked at every 2 ms) that an action needs at its peak, beside what the
    process held before and beside the state that a load gives. A load that maps its file gives 0."""
    with subprocess.Popen(
        _command(action, name, parent, source), stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        before = int(process.stdout.readline())
        peak = before
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(_SAMPLE)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        given = int(process.stdout.read().split()[-1])
    return max(0, peak - before - given)


def anonymous(pid: int | str) -> int:
    """Anonymous bytes of a process; 0 once it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


def _command(action: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "bench.child", action, *map(str, arguments)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("parent", type=Path)
    parser.add_argument("source", type=Path)
    options = parser.parse_args()
    found = contender(options.name, options.parent)
    print(anonymous("self"), flush=True)
    loaded: list[State] = []  # kept until the clock has stopped
    seconds = clock(lambda: loaded.append(ACTIONS[options.action](found, options.source)))
    found.close()
    print(seconds, tensor_bytes(loaded[0]))


if __name__ == "__main__":
    main()
