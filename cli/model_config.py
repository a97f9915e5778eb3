"""config.json of a model whose weights are written as another dtype: loaders go by what it says. Pure."""

from __future__ import annotations

import json
from typing import Any

NAME = "config.json"
MAX_SIZE = 8 << 20  # bytes; a larger one is no config
_KEYS = ("dtype", "torch_dtype")
_FLOATS = ("bfloat16", "float16", "float32", "float64")
_APART = "quantization_config"  # its dtypes are not those of the weights


def with_dtype(data: bytes, dtype: str) -> bytes | None:
    """The config with `dtype` wherever it names a floating-point dtype of a model; None if there is none to change."""
    try:
        config = json.loads(data)
        changed = isinstance(config, dict) and _change(config, dtype)
        return (json.dumps(config, indent=2) + "\n").encode() if changed else None
    except (ValueError, RecursionError):  # no JSON that a loader would read
        return None


def _change(config: dict[str, Any], dtype: str) -> bool:
    changed = False
    for key, value in config.items():
        if key in _KEYS and value in _FLOATS and value != dtype:
            config[key] = dtype
            changed = True
        elif isinstance(value, dict) and key != _APART:
            changed = _change(value, dtype) or changed
    return changed
