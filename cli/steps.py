"""Which step of its training a checkpoint is of, from its names and contents. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_STEP = re.compile(
    r"(?<![a-z])(?:checkpoint|ckpt|global[-_]?step|step|iteration|iter|it)[-_=]?0*([0-9]{1,18})(?![0-9])", re.IGNORECASE
)
_EPOCH = re.compile(r"(?<![a-z])(?:epoch|ep)[-_=]?0*([0-9]{1,9})(?![0-9])", re.IGNORECASE)
_KEYS = ("global_step", "step", "iteration", "iter", "it")
_PLAIN = {"epoch", "step", "total_flos"}


def from_name(name: str) -> int | None:
    """The step that a path ends in naming: checkpoint-500, step_1000.pt, epoch=1-step=100.ckpt."""
    found = [int(match[1]) for match in _STEP.finditer(name.rpartition("/")[2])]
    return found[-1] if found else None


def epoch_from_name(name: str) -> int | None:
    found = [int(match[1]) for match in _EPOCH.finditer(name.rpartition("/")[2])]
    return found[-1] if found else None


def from_state(state: Any) -> int | None:
    """The step that a saved state holds at its top."""
    held = state if isinstance(state, Mapping) else {}
    return next((held[key] for key in _KEYS if _is_step(held.get(key))), None)


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def from_trainer(data: bytes) -> tuple[int | None, dict[str, float]]:
    """Step and last metrics of a Trainer's trainer_state.json; nothing where it is not one."""
    try:
        held = json.loads(data)
    except (ValueError, RecursionError):
        return None, {}
    if not isinstance(held, dict):
        return None, {}
    step, history = held.get("global_step"), held.get("log_history")
    metrics: dict[str, float] = {}
    for entry in history if isinstance(history, list) else []:
        metrics |= _numbers(entry) if isinstance(entry, dict) else {}
    return (step if _is_step(step) else None), metrics


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one entry: not what says how long something took."""
    return {
        name: value
        for name, value in entry.items()
        if type(value) in (int, float) and abs(value) < math.inf and name not in _PLAIN and name.isprintable() and name
        if not name.endswith(("_runtime", "_per_second")) and abs(value) < 1 << 62
    }
