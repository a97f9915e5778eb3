"""One leaf of a state, in a few words and as JSON."""

from __future__ import annotations

from typing import Any

from cas.leaves import Leaf, TensorLeaf, ValueLeaf

from .output import cut, jsonable, text

VALUE = 60
"""Characters of a value that are shown."""


def brief(leaf: ValueLeaf) -> str:
    """The first characters of its value; nothing where it is not known without reading."""
    if leaf.value is None:
        return ""
    return cut(text(leaf.value, repr if leaf.kind in ("str", "bytes") else str)[: VALUE + 1], VALUE)


def record(leaf: Leaf) -> dict[str, Any]:
    """What `--json` says of it beside its path."""
    if isinstance(leaf, TensorLeaf):
        return {"dtype": leaf.dtype, "shape": leaf.shape, "bytes": leaf.nbytes}
    return {"type": leaf.kind, "bytes": leaf.nbytes, "value": jsonable(leaf.value)}
