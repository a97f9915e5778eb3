"""States: nested dicts of tensors, and what is done with all of their tensors at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]
Path = tuple[str, ...]
DECAY = 1 - 3e-5
"""What one step of AdamW with the bench's settings leaves of a weight whose gradient is zero."""


def leaves(state: Mapping[str, Any], above: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor with its path."""
    for key, value in state.items():
        if isinstance(value, Tensor):
            yield (*above, key), value
        else:
            yield from leaves(value, (*above, key))


def tensor_bytes(state: Mapping[str, Any]) -> int:
    return sum(tensor.nbytes for _, tensor in leaves(state))


def clone(state: Mapping[str, Any]) -> State:
    """The same state in memory of its own."""
    return {key: value.clone() if isinstance(value, Tensor) else clone(value) for key, value in state.items()}


def empty_like(state: Mapping[str, Any]) -> State:
    """The same shapes in memory of its own, not yet touched."""
    return {
        key: torch.empty_like(value) if isinstance(value, Tensor) else empty_like(value) for key, value in state.items()
    }


def copy_into(state: Mapping[str, Any], source: Mapping[str, Any]) -> None:
    """Fill the tensors of `state` from those at the same paths."""
    for key, value in state.items():
        if isinstance(value, Tensor):
            value.copy_(source[key])
        else:
            copy_into(value, source[key])


def touch(state: Mapping[str, Any]) -> None:
    """Read a byte of every page, so that a mapped file has been brought in."""
    for _, tensor in leaves(state):
        tensor.view(-1).view(torch.uint8)[::4096].max()


def some(state: Mapping[str, Any], share: float) -> list[Path]:
    """Paths of tensors all over the state that together hold about `share` of its bytes."""
    chosen, seen, taken = [], 0, 0
    for path, tensor in leaves(state):
        seen += tensor.nbytes
        if taken + tensor.nbytes <= share * seen + tensor.nbytes / 2:
            chosen.append(path)
            taken += tensor.nbytes
    return chosen


def changed(state: Mapping[str, Any], paths: list[Path], times: int) -> State:
    """The state with the tensors at `paths` decayed `times` times: new bytes of the same kind. Others are shared."""
    wanted = set(paths)

    def visit(node: Mapping[str, Any], above: Path) -> State:
        return {key: leaf(value, (*above, key)) for key, value in node.items()}

    def leaf(value: Any, path: Path) -> Any:
        if not isinstance(value, Tensor):
            return visit(value, path)
        return value * DECAY**times if path in wanted else value

    return visit(state, ())


def one_of(state: Mapping[str, Any], limit: int = 4 << 20) -> tuple[Path, Tensor]:
    """The largest tensor of at most `limit` bytes."""
    fitting = ((path, tensor) for path, tensor in leaves(state) if tensor.nbytes <= limit)
    return max(fitting, key=lambda item: item[1].nbytes)
