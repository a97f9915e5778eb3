"""The root as this process sees it, and the one way to replace it.

Every update is published from a root whose condemned lists were heeded: what it makes reachable is outside all of
them. So a writer that stalls for a year, while collectors delete what it leant on, fails to publish or stores again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from . import lists
from .backend import Backend
from .block import ID_SIZE, ObjectId
from .catalog import Catalog
from .errors import CasError, Corrupt, NotFound
from .lists import ListId, What
from .log import Log, Record

_VISIBLE_WITHIN = 90.0
"""Seconds: network file systems show new files to other hosts within 60 at most, as they come."""
T = TypeVar("T")
Absent = Mapping[ObjectId, frozenset[ObjectId]]
"""By commit, the objects that are left out on the way down from it."""


class Roots:
    """Reads and replaces the root. Safe to use from many threads."""

    def __init__(self, backend: Backend, log: Log, catalog: Catalog) -> None:
        self._backend = backend
        self._log = log
        self._catalog = catalog
        self._absent: tuple[tuple[ListId, ...], Absent] = ((), {})
        self.renew_lock()

    def renew_lock(self) -> None:
        """Also after a fork: another thread of the parent may have held the old one."""
        self._lock = threading.RLock()

    def current(self) -> Record:
        """The root, verified. From now on nothing is found in packs that it condemns."""
        while True:
            root = self._log.head()
            try:
                self._catalog.observe(root)
                self.absent(root)
                return root
            except NotFound as error:
                if self._log.head().seq == root.seq:
                    raise Corrupt(f"a list that log record {root.seq} names is gone: {error}; restore it") from error

    def wait_for(self, seq: int) -> None:
        """Return when this process sees record `seq`, which another says is there, or a newer one."""
        deadline = time.monotonic() + _VISIBLE_WITHIN
        while (seen := self.current().seq) < seq:
            if time.monotonic() > deadline:
                raise CasError(
                    f"another rank sees log record {seq}, this one only {seen} after {_VISIBLE_WITHIN:.0f} s: is "
                    f"{self._backend.url} the same directory on both?"
                )
            time.sleep(0.05)

    def absent(self, root: Record) -> Absent:
        """What commits lack on purpose under `root`."""
        with self._lock:
            names, held = self._absent
            if names != root.absent:
                held = _absent(self._backend, root)
                self._absent = (root.absent, held)
            return held

    def under(self, work: Callable[[Record], T]) -> T:
        """The result of `work` for the root; done again where it misses something that a newer root has given up."""
        while True:
            root = self.current()
            try:
                return work(root)
            except NotFound:
                if self._log.head().seq == root.seq:
                    raise

    def update(
        self,
        change: Callable[[Record], Mapping[str, Any]],
        why: str,
        attempt: Callable[[Record], None] = lambda record: None,
    ) -> Record:
        """Publish the root with the fields that `change` gives; it is asked again for every root that came first.

        `attempt` sees each record before it is published: after `CommitUnknown` or an interrupt it may be in the log.
        """
        while True:
            record = self.under(lambda root: root.successor(why, **change(root)))
            attempt(record)
            if self.publish(record):
                return record

    def publish(self, record: Record) -> bool:
        """Make this the root, durably, in place of the very one that it follows; False if another did so first."""
        try:
            return self._log.publish(record)
        except OSError as error:
            why = record.update.why
            raise CasError(f"{why} was not published: {error}; nothing has changed, try again") from error


def _absent(backend: Backend, root: Record) -> Absent:
    found: dict[ObjectId, set[ObjectId]] = {}
    for name in root.absent:
        for item in lists.read(backend, name, What.ABSENT):
            found.setdefault(ObjectId(item[:ID_SIZE]), set()).add(ObjectId(item[ID_SIZE:]))
    return {commit: frozenset(names) for commit, names in found.items()}
