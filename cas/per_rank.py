"""Values of which every rank of a job has its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FRAMEWORK, KIND = "cas", "per_rank"
"""How such a value stands in a tree: a composite of these names, its parts by rank."""


@dataclass(slots=True)
class PerRank:
    """A value that differs from rank to rank, such as the state of random generators or of a data loader.

    All ranks' values are committed; loading gives each rank its own, without this wrapper. One process is rank 0.
    """

    value: Any
