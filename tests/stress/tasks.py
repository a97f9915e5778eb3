"""What each process does in a loop. What a store acknowledged is noted outside of it before the process goes on."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from faults.stores import same

import cas
from cas.errors import NotFound, RefConflict
from cas.rewriting import LEVELS
from cas.store import Store
from cas.urls import backend_of

BLOCK_SIZE = 4096
SHARED = 2
"""Branches on which several writers commit."""
VARIANTS = 300
"""Of each of the three blocks of a state."""
KEEPS = 4
"""A prune keeps at least the newest so many states."""
SUSPICIONS = 5
"""A finding of fsck that is still there after so many checks is no trace of what happened beside the first."""


class Notes:
    """Lines in a file outside the store. A kill takes none of them back."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def add(self, what: str, **more: Any) -> None:
        os.write(self._file, json.dumps({"what": what, "time": time.time(), **more}).encode() + b"\n")


def read_notes(path: Path) -> list[dict[str, Any]]:
    """Those that are whole: the last may be being written."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [json.loads(line) for line in whole.splitlines()]


@cache
def _blocks(place: int, variant: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng([place, abs(variant), variant < 0]).random(BLOCK_SIZE // 8)


def step_of(number: int, life: int, count: int, is_scratch: bool) -> int:
    """Unlike every other step of every writer."""
    return number << 40 | life << 24 | is_scratch << 23 | count


def state(step: int) -> dict[str, Any]:
    """About half of the blocks that there are is garbage at any time, and may be committed again.

    A writer returns to the same two states on the branch that it deletes, where nobody else holds their blocks. One
    block changes slowly.
    """
    if step >> 23 & 1:
        variants = [-(step >> 40) * 2 - step % 2 - 1] * 3
    else:
        variants = [random.Random(step + place).randrange(VARIANTS) for place in range(3)]
    weights = np.concatenate([_blocks(place, variant) for place, variant in enumerate(variants)])
    return {"w": weights, "slow": _blocks(3, 0) * (1 + (step & 0xFF) * 1e-9), "own": np.full(100, step), "step": step}


@dataclass(frozen=True)
class Place:
    """Where the store is, and a folder for what stands beside it.

    A writer waits up to `writers_pause` seconds between two turns, so that branches are not thousands of commits long
    and collections, whose records race with those of all writers, get through; all others wait `pause` seconds.
    """

    url: str
    options: dict[str, str] | None
    folder: Path
    writers_pause: float
    pause: float

    def make(self) -> None:
        cas.init(self.url, block_size=BLOCK_SIZE, storage_options=self.options, cache=self.folder / "cache").close()

    def open(self) -> Store:
        return cas.open(self.url, storage_options=self.options, cache=self.folder / "cache")

    @contextmanager
    def opened(self, number: int) -> Iterator[Store]:
        """The store; every other process has an index of its own, as on another machine."""
        backend = backend_of(self.url, self.options)
        with Store(backend, self.folder / "cache", None if number % 2 else self.folder / f"index{number}") as store:
            yield store


# -- writers --------------------------------------------------------------------------------------------------------


def write(place: Place, number: int, life: int, notes: Notes) -> None:
    """Commit on a branch of its own, on shared ones, and on one that is deleted again and again."""
    dice = random.Random(f"{number} {life}")
    with place.opened(number) as store:
        for count in range(1 << 30):
            branch = dice.choice([f"own{number}", f"own{number}", f"scratch{number}", f"shared{number % SHARED}"])
            step = step_of(number, life, count, branch.startswith("scratch"))
            if branch.startswith("scratch") and dice.random() < 0.5:
                _delete(store, branch, notes)
            else:
                _commit(store, branch, step, dice.random() < 0.3, dice.choice(("none", "parent")), notes)
            time.sleep(dice.random() * place.writers_pause)


def _commit(store: Store, branch: str, step: int, beside: bool, delta: Any, notes: Notes) -> None:
    if not _load(store, branch, notes):
        return
    notes.add("commit", branch=branch, step=step)
    try:
        made = store.commit_async(state(step), branch=branch, step=step).wait() if beside else None
        made = made or store.commit(state(step), branch=branch, step=step, delta=delta)
    except RefConflict:
        assert branch.startswith("shared"), f"{branch} was moved by another"
        notes.add("conflict", branch=branch, step=step)
        return
    notes.add("committed", branch=branch, step=step, id=made.id)


def _load(store: Store, branch: str, notes: Notes) -> bool:
    """Take up the branch; False if its tip was pruned while this process stood still."""
    try:
        found = store.load(branch, default=None)
    except NotFound:
        if not branch.startswith("shared"):
            raise
        notes.add("overtaken", branch=branch)
        return False
    assert found is None or same(found, state(found["step"])), f"{branch} does not load as it was committed"
    return True


def _delete(store: Store, branch: str, notes: Notes) -> None:
    if branch in store.refs()["branches"]:
        notes.add("delete", branch=branch)
        store.delete_branch(branch)
        notes.add("deleted", branch=branch)


# -- all others -----------------------------------------------------------------------------------------------------


def collect(place: Place, number: int, life: int, notes: Notes) -> None:
    with place.opened(number) as store:
        while True:
            started = time.monotonic()
            done = store.gc(grace=0, expire=0)
            assert done.rescued == 0, f"{done.rescued} objects were live in condemned packs"
            notes.add("collected", deleted=done.deleted, freed=done.freed, seconds=time.monotonic() - started)
            time.sleep(place.pause)


def prune(place: Place, number: int, life: int, notes: Notes) -> None:
    dice = random.Random(f"{number} {life}")
    with place.opened(number) as store:
        while True:
            branches = [name for name in store.refs()["branches"] if not name.startswith("scratch")]
            if branches:
                pruned = store.prune(dice.choice(branches), keep_last=dice.randrange(KEEPS, 2 * KEEPS))
                notes.add("pruned", dropped=len(pruned.dropped))
            time.sleep(place.pause)


def repack(place: Place, number: int, life: int, notes: Notes) -> None:
    dice = random.Random(f"{number} {life}")
    with place.opened(number) as store:
        while True:
            notes.add("repacked", packs=store.repack(dice.choice(LEVELS)).packs)
            time.sleep(place.pause)


def check(place: Place, number: int, life: int, notes: Notes) -> None:
    """What collections, which wait for nobody here, take from under a check is not found again by the next."""
    with place.opened(number) as store:
        suspicions: dict[str, int] = {}
        while True:
            found = {str(finding) for finding in store.fsck(data=True) if finding.severity == "error"}
            suspicions = {finding: suspicions.get(finding, 0) + 1 for finding in found}
            certain = [finding for finding, count in suspicions.items() if count >= SUSPICIONS]
            assert not certain, certain[0]
            notes.add("checked", suspicions=len(suspicions))
            time.sleep(place.pause)


TASKS: dict[str, Callable[[Place, int, int, Notes], None]] = {
    "writer": write,
    "collector": collect,
    "pruner": prune,
    "repacker": repack,
    "checker": check,
}
