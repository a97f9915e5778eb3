"""A content-addressed store for training checkpoints: git's object database, made for tensors.

store = cas.open(".cas", create=True)
commit = store.commit(state, step=1000, metrics={"loss": 2.31})
state = store.load("main")

What the package offers is imported when it is first asked for, so that the command `cas` is in control of the
process, and of ^C, before that takes its time.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # what type checkers take for True, without the time that `typing` takes
if TYPE_CHECKING:
    from typing import Any

    from .background import Pending
    from .cloning import clone
    from .commits import Commit, Stats
    from .diff import Difference
    from .errors import CasError, CommitUnknown, Corrupt, Exists, Invalid, NotFound, RefConflict, Unsupported
    from .findings import Finding
    from .healing import Healed
    from .opening import init
    from .opening import open_store as open
    from .remotes import Remote
    from .stats import CommitStats, PartStats, StoreStats
    from .store import Store
    from .sync import Moved, Synced
    from .view import CompositeView, SequenceView, TensorView, View

_HOMES = {
    "CasError": "errors",
    "Commit": "commits",
    "CommitStats": "stats",
    "CommitUnknown": "errors",
    "CompositeView": "view",
    "Corrupt": "errors",
    "Difference": "diff",
    "Exists": "errors",
    "Finding": "findings",
    "Healed": "healing",
    "Invalid": "errors",
    "Moved": "sync",
    "NotFound": "errors",
    "PartStats": "stats",
    "Pending": "background",
    "RefConflict": "errors",
    "Remote": "remotes",
    "SequenceView": "view",
    "Stats": "commits",
    "Store": "store",
    "StoreStats": "stats",
    "Synced": "sync",
    "TensorView": "view",
    "Unsupported": "errors",
    "View": "view",
    "clone": "cloning",
    "init": "opening",
    "open": "opening",
}

__all__ = [
    "CasError",
    "Commit",
    "CommitStats",
    "CommitUnknown",
    "CompositeView",
    "Corrupt",
    "Difference",
    "Exists",
    "Finding",
    "Healed",
    "Invalid",
    "Moved",
    "NotFound",
    "PartStats",
    "Pending",
    "RefConflict",
    "Remote",
    "SequenceView",
    "Stats",
    "Store",
    "StoreStats",
    "Synced",
    "TensorView",
    "Unsupported",
    "View",
    "clone",
    "init",
    "open",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cas' has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), "open_store" if name == "open" else name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
