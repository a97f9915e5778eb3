"""Where a value stands in a tree that is used again with other values."""

from __future__ import annotations

from dataclasses import dataclass

from .nodes import Node
from .paths import Path


@dataclass(slots=True)
class Slot:
    """A place for one value. `value` is its finished node, set anew for each commit."""

    path: Path
    value: Node = None

    def node(self) -> Node:
        return self.value
