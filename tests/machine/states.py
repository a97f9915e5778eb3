"""Small states that share blocks with each other and return to what was stored before."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

BLOCK_SIZE = 4096
VARIANTS = 3


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
def state(contents: Contents) -> dict[str, Any]:
    """A tensor of two blocks, one of one block, and a table that is a tree of its own."""
    weights = np.concatenate([_block(0, contents.first), _block(1, contents.second)])
    table = {f"entry {number}": f"{contents.table} of {number}" * 15 for number in range(40)}
    return {"w": weights, "m": _block(2, contents.first), "table": table, "step": contents.step % VARIANTS}
