"""Small stores with known states, and what must hold for a store after a fault."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import cas
from cas import pack
from cas.block import Codec
from cas.local import LocalBackend

BLOCK_SIZE = 4096


def state(number: int) -> dict[str, Any]:
    """A state that differs for every number, in a tensor of several blocks, a small one and plain values."""
    weights = np.arange(1500, dtype=np.float32)
    weights[::100] += number
    return {"w": weights, "b": np.full(3, number, np.float64), "step": number, "name": f"state {number}", "none": None}


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, types and order included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return bool(a == b)


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of stores are opened and closed, each with its fsyncs."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = tempfile.mkdtemp(prefix="cas-faults-", dir=base)
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def make(path: Path, commits: int = 1, branch: str = "main") -> list[str]:
    """A closed store whose branch holds state(0), state(1), ...; the ids of its commits."""
    with cas.init(path, block_size=BLOCK_SIZE) as store:
        return [commit(store, number, branch) for number in range(commits)]


def commit(store: Any, number: int, branch: str = "main") -> str:
    made = store.commit(state(number), step=number, branch=branch, metrics={"loss": float(number)}, message="small")
    return str(made.id)


def numbers(store: Any, branch: str = "main") -> list[int]:
    """The steps of a branch's commits, oldest first."""
    return [held.step for held in store.log(branch)][::-1]


def errors(findings: list[Any]) -> list[Any]:
    """Findings that say that something is wrong; a file left in tmp/ is none."""
    return [found for found in findings if found.severity != "info"]


def files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def count_deltas(path: Path) -> int:
    """How many rows of all packs are changes of others."""
    backend = LocalBackend(path)
    tables = [pack.read_table(backend, pack.id_of(info.name)) for info in backend.list(pack.FOLDER)]
    backend.close()
    return sum(row.codec == Codec.DELTA for table in tables for row in table)


def check_whole(path: Path, branch: str = "main") -> list[int]:
    """Everything reads back, bit for bit, and fsck has no complaint; the steps of the branch, oldest first."""
    with cas.open(path) as store:
        steps = numbers(store, branch)
        for held in store.log(branch):
            assert same(store.load(held.id), state(held.step)), f"commit {held} does not load as it was made"
        assert errors(store.fsck(data=True)) == []
    return steps
