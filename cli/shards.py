"""Which tensor goes into which file of an export, what the files are called, and the index over them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from cas.errors import Invalid

from .weights import Weight

DEFAULT_LIMIT = "5GB"
_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}
_UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([a-zA-Z]*)")
_WEIGHTS = re.compile(r"(?:model|pytorch_model)(?:-\d{5,}-of-\d{5,})?\.(?:safetensors|bin)(?:\.index\.json)?")


def parse_size(text: str) -> int:
    """Bytes from 5GB, 500MB, 2GiB, 123456."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].upper() not in _UNITS or not (size := int(float(match[1]) * _UNITS[match[2].upper()])):
        raise Invalid(f"{text!r} is no size; give one such as 5GB, 500MB or 2GiB")
    return size


def cut(weights: Sequence[Weight], limit: int) -> list[list[Weight]]:
    """Shards of at most `limit` bytes, filled one after another in the order given, as huggingface_hub does.

    A tensor that is larger has a shard of its own, which stands before the one that is being filled.
    """
    shards: list[list[Weight]] = []
    current: list[Weight] = []
    size = 0
    for weight in weights:
        if weight.nbytes > limit:
            shards.append([weight])
            continue
        if size + weight.nbytes > limit:
            shards.append(current)
            current, size = [], 0
        current.append(weight)
        size += weight.nbytes
    return [*shards, current] if current else shards


def file_names(stem: str, suffix: str, count: int) -> list[str]:
    """`stem.suffix` for one file, else `stem-00001-of-0000N.suffix`."""
    if count == 1:
        return [f"{stem}.{suffix}"]
    return [f"{stem}-{number:05}-of-{count:05}.{suffix}" for number in range(1, count + 1)]


def index(files: Mapping[str, Sequence[str]], nbytes: int, notes: Mapping[str, str]) -> bytes:
    """The index over several files: `files` are the names of the tensors in each, `nbytes` the sum of their sizes."""
    places = {name: file for file, names in files.items() for name in names}
    record = {"metadata": {**notes, "total_size": nbytes}, "weight_map": places}
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()


def is_weights(name: str) -> bool:
    """Whether loaders of Hugging Face may take a file of this name for weights or for their index."""
    return _WEIGHTS.fullmatch(name) is not None
