"""How cost grows with the number of blocks that a store holds: stores of many small blocks, and the same work in each.

A small state, 256 tensors of 4 KiB, is committed again and again to a branch of its own, 13 of its tensors changed each
time. The blocks around it are random bytes of another branch: to the index one block is like another.

`python -m bench.growth STORE` commits once, in a new process, and prints the seconds.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import cas

from .machine import usual_environment
from .timing import Timed, Timing, clock, take_turns

BLOCK = 4096
BATCH = 100_000  # blocks a commit, so that no more than 400 MB are held
TENSORS, CHANGED = 256, 13
ROOT = Path(__file__).parent.parent


def grown(folder: Path, blocks: int) -> None:
    """A store that holds `blocks` blocks and a small commit on main."""
    random = np.random.default_rng(blocks)
    with cas.init(folder, block_size=BLOCK) as store:
        for start in range(0, blocks, BATCH):
            data = random.bytes(min(BATCH, blocks - start) * BLOCK)
            store.commit({"data": np.frombuffer(data, np.uint8)}, branch="many", codec="raw")
        store.commit(small_state(random, TENSORS))


def small_state(random: np.random.Generator, count: int) -> dict[str, Any]:
    return {f"tensor{number}": np.frombuffer(random.bytes(BLOCK), np.uint8) for number in range(count)}


def commit(store: cas.Store, random: np.random.Generator) -> float:
    """Seconds of a commit that changes a few tensors of the small state."""
    state = store.load("main") | small_state(random, CHANGED)
    return clock(lambda: store.commit(state))


def growth(folder: Path, sizes: tuple[int, ...], commits: int, rounds: int) -> list[Timing]:
    """Seconds of each operation, by how many blocks there are."""
    stores = {str(blocks): folder / str(blocks) for blocks in sizes}
    for blocks, path in stores.items():
        grown(path, int(blocks))
    return [
        _commits(stores, commits),
        _turns("open, commit, close; new process", stores, in_new_process, rounds),
        _turns("cas log", stores, lambda path: in_command(path, "log", "main", "-n", "20"), rounds),
        _turns("cas ls", stores, lambda path: in_command(path, "ls", "main"), rounds),
        _turns("cas fsck", stores, lambda path: in_command(path, "fsck"), 1),
    ]


def _commits(stores: dict[str, Path], rounds: int) -> Timing:
    """In stores that stay open."""
    opened = {blocks: cas.open(path) for blocks, path in stores.items()}
    random = np.random.default_rng(0)

    def way(path: Path) -> float:
        return commit(opened[path.name], random)

    try:
        return _turns("commit", stores, way, rounds)
    finally:
        for store in opened.values():
            store.close()


def _turns(operation: str, stores: dict[str, Path], way: Callable[[Path], float], rounds: int) -> Timing:
    def bound(path: Path) -> Timed:
        return lambda: way(path)

    return Timing("growth", operation, take_turns({blocks: bound(path) for blocks, path in stores.items()}, rounds))


def in_new_process(store: Path) -> float:
    """Seconds to open, commit and close; imports are not counted."""
    arguments = [sys.executable, "-m", "bench.growth", str(store)]
    return float(subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout)


def in_command(store: Path, *arguments: str) -> float:
    """Seconds of a whole command, Python's start included."""
    line = [sys.executable, "-m", "cas.cli", "--store", str(store), *arguments]
    return clock(lambda: subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=usual_environment()))


def main() -> None:
    random = np.random.default_rng()
    state = small_state(random, TENSORS)

    def once() -> None:
        with cas.open(sys.argv[1]) as store:
            store.commit(state, parent="main")

    print(clock(once))


if __name__ == "__main__":
    main()
