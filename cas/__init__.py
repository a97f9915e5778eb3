"""A content-addressed store for training checkpoints: git's object database, made for tensors.

store = cas.open(".cas", create=True)
commit = store.commit(state, step=1000, metrics={"loss": 2.31})
state = store.load("main")
"""

from .background import Pending
from .commits import Commit, Stats
from .errors import CasError, CommitUnknown, Corrupt, Exists, Invalid, NotFound, RefConflict, Unsupported
from .fsck import Finding
from .stats import StoreStats
from .store import Store, init
from .store import open_store as open
from .view import SequenceView, TensorView, View

__all__ = [
    "CasError",
    "Commit",
    "CommitUnknown",
    "Corrupt",
    "Exists",
    "Finding",
    "Invalid",
    "NotFound",
    "Pending",
    "RefConflict",
    "SequenceView",
    "Stats",
    "Store",
    "StoreStats",
    "TensorView",
    "Unsupported",
    "View",
    "init",
    "open",
]
