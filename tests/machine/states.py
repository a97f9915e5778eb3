"""Small states that share blocks with each other and return to what was stored before."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

BLOCK_SIZE = 4096
VARIANTS = 3
DRIFT = 10
"""States in a row of which each changes the slow weights of the one before."""


class Contents(NamedTuple):
    """Which of the `VARIANTS` each part of a state has."""

    first: int
    second: int
    table: int
    step: int


@cache
def _block(place: int, variant: int) -> np.ndarray[Any, Any]:
    if variant == 0:
        return np.full(BLOCK_SIZE // 4, place, np.float32)
    return np.random.default_rng([place, variant]).random(BLOCK_SIZE // 4, np.float32)


@cache
def _slow(step: int) -> np.ndarray[Any, Any]:
    """Weights of two blocks that a step changes a little. They come back after some steps."""
    dice = np.random.default_rng(VARIANTS)
    weights, change = (dice.standard_normal(BLOCK_SIZE // 2).astype(np.float32) for _ in range(2))
    return weights + step % DRIFT * np.float32(1e-4) * change


@cache
def state(contents: Contents) -> dict[str, Any]:
    """Tensors of two blocks, of one block, and of two that change slowly, and a table that is a tree of its own."""
    weights = np.concatenate([_block(0, contents.first), _block(1, contents.second)])
    table = {f"entry {number}": f"{contents.table} of {number}" * 15 for number in range(40)}
    own = {"m": _block(2, contents.first), "slow": _slow(contents.step)}
    return {"w": weights, **own, "table": table, "step": contents.step % VARIANTS}
