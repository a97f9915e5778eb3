"""The nested state of an export as torch sees it: tensors without memory stand for those that are streamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cas.errors import Unsupported
from cas.leaves import Leaves
from cas.loader import Loader
from cas.nodes import KEYED_TAGS, LISTED_TAGS, Node, Tag, long_of
from cas.objects import entries_of
from cas.paths import Path, format_path

from .weights import Weight

MAX_VALUES = 64 << 20
"""Bytes of long texts and the like in one state: they are held in memory, unlike tensors."""
_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_MAX_INT_BITS = 8 * 254  # what the weights-only unpickler reads


class TorchState:
    """`state` is made of plain containers, plain values and stand-ins; `weight` says what a stand-in stands for."""

    def __init__(self, state: Any, weights: Mapping[int, Weight]) -> None:
        self.state = state
        self._weights = weights

    def weight(self, value: Any) -> Weight | None:
        return self._weights.get(id(value))

    def part(self, value: Any) -> TorchState:
        """A value out of this state as one of its own."""
        return TorchState(value, self._weights)


def flat(weights: Sequence[Weight]) -> TorchState:
    """A dict of the weights by their names; tied ones are one tensor."""
    standing = {weight.name: _stand_in() for weight in weights}
    named = {name: standing[weight.name] for weight in weights for name in weight.names}
    return TorchState(named, {id(standing[weight.name]): weight for weight in weights})


def nested(leaves: Leaves, weights: Sequence[Weight], paths: Mapping[str, Path]) -> TorchState:
    """The whole state in its own form, `paths` saying where each name of a weight stands in it."""
    standing = {weight.name: _stand_in() for weight in weights}
    places = {paths[name]: standing[weight.name] for weight in weights for name in weight.names}
    tree = leaves.objects.tree(leaves.objects.commit(leaves.commit).tree)
    state = _Rebuilder(leaves, places.__getitem__).rebuilt(tree, ())
    return TorchState(state, {id(standing[weight.name]): weight for weight in weights})


def dtype_of(weight: Weight) -> torch.dtype:
    found = getattr(torch, weight.dtype, None)
    if not isinstance(found, torch.dtype):
        path = format_path(weight.leaf.path)
        raise Unsupported(f"{path} is {weight.dtype}, which torch {torch.__version__} does not have; use a newer one")
    return found


def _stand_in() -> torch.Tensor:
    return torch.empty(0, device="meta")


class _Rebuilder:
    def __init__(self, leaves: Leaves, tensor: Callable[[Path], Any]) -> None:
        self._leaves = leaves
        self._tensor = tensor
        self._loader = Loader(leaves.objects, leaves.blocks, leaves.commit)
        self._held = 0

    def rebuilt(self, node: Node, path: Path) -> Any:
        held = entries_of(node, self._leaves.objects.tree)
        if held is None:
            return self._leaf(node, path)
        tag, entries = held
        if tag in KEYED_TAGS:
            return KEYED_TAGS[tag]({key: self.rebuilt(child, (*path, key)) for key, child in entries})
        return LISTED_TAGS[tag](self.rebuilt(child, (*path, at)) for at, child in enumerate(entries))

    def _leaf(self, node: Node, path: Path) -> Any:
        if type(node) is not list:
            return _plain(node, path)
        if node[0] == Tag.TENSOR:
            return self._tensor(path)
        if node[0] == Tag.PICKLE:
            raise Unsupported(f"{format_path(path)} is a pickled object; check out a subtree without it")
        if node[0] in (Tag.TEXT, Tag.BYTES):
            self._held += long_of(node).nbytes
        if self._held > MAX_VALUES:
            raise Unsupported(f"the state has over {MAX_VALUES} bytes of texts and bytes; check out a subtree")
        return _plain(self._loader.values(node), path)


def _plain(value: Any, path: Path) -> Any:
    """The value as torch.load takes it with weights_only=True: numpy's numbers become Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    is_long = type(value) is int and value.bit_length() > _MAX_INT_BITS
    if is_long or value == b"" or not (value is None or isinstance(value, _PLAIN)):
        what = f"{format_path(path)} is a {type(value).__name__} that torch.load does not take with weights_only=True"
        raise Unsupported(f"{what}; check out a subtree without it, or load the state")
    return value
