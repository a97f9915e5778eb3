"""States that change as training changes them, and where a store keeps them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from cas.block import Codec, Kind
from cas.chains import chains_of
from cas.store import Store

SHAPES = {"in": (300, 256), "out": (256, 260), "bias": (1500,)}


class Training:
    """Weights that every step moves by a little, and a moment that every step makes anew."""

    def __init__(self, seed: int = 0, steps: int | None = None) -> None:
        """Weights that `seed` makes, and steps from them that `steps` makes."""
        self._random = np.random.default_rng(seed)
        self.weights = {name: self._noise(shape, 0.02) for name, shape in SHAPES.items()}
        self.moment = self._noise((200, 256), 1.0)
        if steps is not None:
            self._random = np.random.default_rng(steps)
        self.number = 0

    def _noise(self, shape: tuple[int, ...], scale: float) -> np.ndarray[Any, np.dtype[np.float32]]:
        return (self._random.standard_normal(shape) * scale).astype(np.float32)

    def step(self, size: float = 1e-5) -> None:
        self.number += 1
        for name, value in self.weights.items():
            self.weights[name] = value + self._noise(value.shape, size)
        self.moment = self._noise(self.moment.shape, 1.0)

    def state(self) -> dict[str, Any]:
        model = {name: value.copy() for name, value in self.weights.items()}
        return {"model": model, "moment": self.moment.copy(), "step": self.number}


def commits(store: Store, count: int, branch: str = "main", seed: int = 0, **options: Any) -> list[dict[str, Any]]:
    """Commit so many states of one training, and return them."""
    training, states = Training(seed), []
    for _ in range(count):
        states.append(training.state())
        store.commit(states[-1], branch=branch, step=training.number, **options)
        training.step()
    return states


def equal(one: Any, other: Any) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    return bool(one == other)


def check_all(store: Store, states: list[dict[str, Any]], branch: str = "main") -> None:
    """Every state of a branch loads, and nothing in the store is damaged."""
    for number, state in enumerate(states):
        assert equal(store.load(f"{branch}@step:{number}"), state), f"step {number} of {branch} changed"
    bad = [finding for finding in store.fsck(data=True) if finding.severity != "info"]
    assert not bad, bad


def codecs(store: Store) -> Counter[str]:
    """How the rows of blocks are stored."""
    rows = [place.row for place in store._catalog.index.rows() if place.row.kind == Kind.BLOCK]
    return Counter(Codec(row.codec).name.lower() for row in rows)


def depths(store: Store, rev: str) -> list[int]:
    """How many bases lie below each block of a commit's tensors, of which there are some."""
    from cas.reach import needs_of_state, reachable

    commit = store._objects.commit(bytes.fromhex(store.resolve(rev).id))  # type: ignore[arg-type]
    names = [name for kind, name in reachable(needs_of_state(commit), store._objects, {}) if kind is Kind.BLOCK]
    chains = chains_of(names, store._catalog.locate)
    assert len(chains) == len(names) > 0
    return [len(chain) - 1 for chain in chains.values()]
