"""What gc costs: in a store half of which goes, against copying; in one of many blocks of which nothing goes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import cas
from cas.gc import Collected

from .child import anonymous
from .machine import usual_environment
from .results import Amounts
from .timing import Timing, clock

NAME = "collecting"
CP = "cp + fsync of the live half"
FIRST, AGAIN, MARK = "first time", "again", "mark alone, again"
NOTHING = "nothing to collect"
TENSOR = 4 << 20
_SAMPLE = 0.002  # seconds
_COLLECT = """
import sys, time, cas
with cas.open(sys.argv[1]) as store:
    began = time.perf_counter()
    store.gc(grace=0, expire=0)
    collected = time.perf_counter()
    store._surveyor().reached(store._roots.current(), {}, float("inf")).live()
    print(collected - began, time.perf_counter() - collected)
"""


def collecting(folder: Path, nbytes: int, commits: int, blocks: int) -> Iterator[Timing | Amounts]:
    """`nbytes` of which half is garbage, in every pack; then `commits` of `blocks` new blocks each."""
    yield _half(folder, nbytes)
    store = folder / "many"
    _many(store, commits, blocks)
    seconds, peaks = {}, {}
    for way in (FIRST, AGAIN):
        took, peaks[way] = _in_child(store)
        seconds[way] = [took[0]]
    seconds[MARK] = [took[1]]
    yield Timing(NAME, NOTHING, seconds)
    yield Amounts(NAME, "anonymous memory at the peak", peaks)


def _half(folder: Path, nbytes: int) -> Timing:
    """A state of which every other tensor goes with its branch. Random bytes: what they say costs nothing here."""
    path, random = folder / "half", np.random.default_rng(0)
    with cas.init(path) as store:
        for number in range(max(1, nbytes >> 30)):
            tensors = [np.frombuffer(random.bytes(TENSOR), np.uint8) for _ in range(min(nbytes, 1 << 30) // TENSOR)]
            whole = {str(n): tensor for n, tensor in enumerate(tensors)}
            store.commit(whole, branch=f"whole{number}", codec="raw")
            kept = {key: tensor for n, (key, tensor) in enumerate(whole.items()) if n % 2}
            store.commit(kept, branch=f"half{number}")
            store.delete_branch(f"whole{number}")
        copied = clock(lambda: _copy_half(path, folder / "copy"))
        done: list[Collected] = []
        collected = clock(lambda: done.append(store.gc(grace=0, expire=0)))
        assert 4 * done[0].moved >= nbytes, "the store was not made of packs that are half garbage"
    shutil.rmtree(path)
    return Timing(NAME, f"half of {nbytes / 1e9:.2g} GB is garbage", {"cas gc": [collected], CP: [copied]})


def _copy_half(store: Path, out: Path) -> None:
    """Copy packs that hold half of all bytes, as far as whole packs go."""
    packs = sorted((store / "packs").glob("*/*"), key=lambda pack: -pack.stat().st_size)
    left = sum(pack.stat().st_size for pack in packs) // 2
    out.mkdir()
    for pack in packs:
        if pack.stat().st_size <= left:
            left -= pack.stat().st_size
            subprocess.run(["sh", "-c", 'cp "$1" "$2" && sync "$2"', "-", pack, out / pack.name], check=True)
    shutil.rmtree(out)


def _many(path: Path, commits: int, blocks: int) -> None:
    """Each commit has tensors of one block, all new."""
    random = np.random.default_rng(1)
    with cas.init(path, block_size=4096) as store:
        for step in range(commits):
            data = np.frombuffer(random.bytes(blocks * 4096), np.uint8).reshape(blocks, 4096)
            store.commit({f"t{n}": data[n] for n in range(blocks)}, step=step, codec="raw")


def _in_child(store: Path) -> tuple[list[float], float]:
    """Seconds of a collection in a new process and of marking alone, and its peak of anonymous memory."""
    peak, line = 0, [sys.executable, "-c", _COLLECT, str(store)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=usual_environment()) as process:
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(_SAMPLE)
        assert process.stdout is not None
        found = [float(word) for word in process.stdout.read().split()]
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, line)
    return found, float(peak)
