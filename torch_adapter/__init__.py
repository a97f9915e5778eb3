"""cas for PyTorch: the state of a training run. `adapter`, which the core finds by its entry point, stores tensors.

What works through torch.distributed.checkpoint is imported when it is first asked for, as importing that takes long.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cas.per_rank import PerRank

from .train_state import TrainState

if TYPE_CHECKING:
    from .dcp_reader import CasStorageReader
    from .dcp_writer import CasStorageWriter

_HOMES = {"CasStorageReader": "dcp_reader", "CasStorageWriter": "dcp_writer"}

__all__ = ["CasStorageReader", "CasStorageWriter", "PerRank", "TrainState"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
