"""A state as files, in the containers that people use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.trees import State, leaves

FILES = 3
"""Of a state in several safetensors files."""


def flat(state: State) -> dict[str, Tensor]:
    return {"/".join(path): tensor for path, tensor in leaves(state)}


def one_safetensors(state: State, folder: Path) -> None:
    save_file(flat(state), folder / "model.safetensors")


def torch_save(state: State, folder: Path) -> None:
    torch.save(state, folder / "model.pt")


def sharded_safetensors(state: State, folder: Path) -> None:
    """Whole tensors in several files of about one size, and the index that Hugging Face has for them."""
    held = flat(state)
    each = -(-sum(tensor.nbytes for tensor in held.values()) // FILES)
    parts: list[dict[str, Tensor]] = [{} for _ in range(FILES)]
    taken = 0
    for name, tensor in held.items():
        parts[taken // each][name] = tensor
        taken += tensor.nbytes
    names = [f"model-{number:05}-of-{FILES:05}.safetensors" for number in range(1, FILES + 1)]
    for part, name in zip(parts, names, strict=True):
        save_file(part, folder / name)
    places = {tensor: name for part, name in zip(parts, names, strict=True) for tensor in part}
    index = {"metadata": {"total_size": taken}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def split_by_rows(ranks: int) -> Callable[[State, Path], None]:
    """A file a rank, with its rows of every tensor, as FSDP2 gives them out."""

    def write(state: State, folder: Path) -> None:
        for rank in range(ranks):
            held = {name: torch.chunk(tensor, ranks) for name, tensor in flat(state).items()}
            own = {name: parts[rank].contiguous() for name, parts in held.items() if rank < len(parts)}
            save_file(own, folder / f"rank-{rank}.safetensors")

    return write


FORMS: dict[str, Callable[[State, Path], None]] = {
    "safetensors": one_safetensors,
    "sharded safetensors": sharded_safetensors,
    "torch.save": torch_save,
    "rows, 2 ranks": split_by_rows(2),
    "rows, 4 ranks": split_by_rows(4),
}
RANKS = {"rows, 2 ranks": 2, "rows, 4 ranks": 4}
"""Forms that are what ranks hold."""
