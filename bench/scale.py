"""How large the bench is: in full, and for the smoke test."""

from __future__ import annotations

from dataclasses import dataclass

from . import states
from .contenders import CONTENDERS
from .model import Config


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes in bytes. `series` is the model whose states, one training step apart, make the largest workload.

    `cached`: the first workload is read from the states that bench/states.py keeps; else it too is such a series.
    `garbage_bytes` are half garbage; `marked_blocks` are those of each of `marked_commits`.
    """

    trained_bytes: int
    cached: bool
    tiny_tensors: int
    large_bytes: int
    series: Config
    contenders: tuple[str, ...]
    blocks: tuple[int, ...]
    commits: int
    log_commits: int
    garbage_bytes: int
    marked_commits: int
    marked_blocks: int


BLOCKS = (1_000, 10_000, 100_000, 1_000_000)
FULL = Scale(1 << 30, True, 20_000, 10**10, states.CONFIG, tuple(CONTENDERS), BLOCKS, 21, 10_000, 10**10, 1000, 1000)
SOME = ("cas auto", "cas raw", "torch.save")
QUICK = Scale(
    1 << 20,
    False,
    50,
    2 << 20,
    Config(width=64, layers=2, heads=2, context=16),
    SOME,
    (50, 200),
    2,
    40,
    32 << 20,
    3,
    20,
)
