"""An opened store: its parts, how they live and end, and what every operation begins with."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import closure, frameworks, identity, objects
from .backend import Backend
from .background import Pending
from .block import ObjectId, short
from .branches import UNSET, Branches
from .catalog import Catalog, CondemnedToo
from .crew import default_threads
from .errors import Invalid, NotFound
from .joint import Memory
from .log import Log, Record
from .needs import Needs
from .reader import BlockReader, Objects
from .revisions import Revisions
from .roots import Roots
from .stage import Stage
from .survey import Surveyor
from .team import Team
from .writer import WriterSettings


class Opened:
    """The part of `Store` that knows no operation. A context manager."""

    def __init__(self, backend: Backend, index: Path) -> None:
        self._backend = backend
        self.path = Path(backend.url)
        self.identity = identity.read(backend)
        threads = default_threads()
        self._settings = WriterSettings(self.identity.block_size, threads)
        self._aside = replace(self._settings, threads=max(1, threads // 2))
        """For what runs beside training, which wants the processors too."""
        self._catalog = Catalog(backend, index)
        self._needs = index / "needs"
        self._log = Log(backend)
        self._roots = Roots(backend, self._log, self._catalog)
        self._objects = Objects(backend, self._catalog)
        self._blocks = BlockReader(backend, self._catalog, threads)
        self._branches = Branches(backend, self._log, self._roots, self._check_whole)
        self._stage = Stage(threads)
        self._turn = threading.RLock()
        self._pending: Pending | None = None
        self._memory = Memory()
        self._closed = False
        self._roots.current()
        _open_stores.add(self)

    def __repr__(self) -> str:
        return f"<cas.Store {self.path}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for a background commit, raise its failure if nobody has seen it, and give everything back."""
        with self._turn:
            try:
                self._settle_pending()
            finally:
                if not self._closed:
                    self._closed = True
                    self._catalog.close()
                    self._backend.close()

    def _settle_pending(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.settle()

    def _ready(self) -> None:
        if self._closed:
            raise Invalid(f"store {self.path} was closed; open it again with cas.open")
        self._check_in_place()

    def _team(self, group: Any) -> Team | None:
        """The ranks that make a call together; None where this process makes it alone."""
        if group is None:
            return None
        if group is not UNSET:
            return frameworks.team(group)
        size = max(adapter.world_size() for adapter in frameworks.imported())
        if size > 1:
            raise Invalid(
                f"the job has {size} processes; pass group= the torch.distributed group whose ranks all call, or "
                "group=None to mean this process alone"
            )
        return None

    def _check_in_place(self) -> None:
        """A store made anew at the same path has none of the packs that a commit through this object leans on."""
        if identity.read(self._backend) != self.identity:
            raise NotFound(f"store {self.path} was replaced by another since it was opened; open it again")

    def _renew_after_fork(self) -> None:
        """Other threads, and a commit in flight, are the parent's; so are the locks that they held."""
        self._turn = threading.RLock()
        self._pending = None
        self._branches.renew_lock()
        self._roots.renew_lock()
        self._catalog.renew_lock()
        self._objects.renew_lock()

    def _revisions(self) -> Revisions:
        return Revisions(self._log, self._catalog, self._objects.commit)

    def _surveyor(self) -> Surveyor:
        objects = Objects(self._backend, CondemnedToo(self._backend, self._catalog), cached=0)  # each is read once
        needs = Needs(objects, self._needs)
        return Surveyor(self._backend, self._catalog, self._log, self._roots, needs)

    def _with_state(self, rev: str | None) -> ObjectId:
        """The commit that a revision names, whose state is there."""
        self._ready()
        root = self._roots.current()
        name = self._revisions().resolve(rev, root)
        self._held(name, root)
        return name

    def _held(self, name: ObjectId, root: Record) -> objects.Commit:
        """A commit whose state is there."""
        if name in self._roots.absent(root):
            raise NotFound(f"the state of commit {short(name)} was pruned; `cas log --root` says when")
        return self._objects.commit(name)

    def _check_whole(self, name: ObjectId, root: Record) -> None:
        closure.check(name, root, self._roots.absent(root), self._objects, self._catalog)


_open_stores: weakref.WeakSet[Opened] = weakref.WeakSet()


def _close_all() -> None:
    for store in list(_open_stores):
        store._catalog.close()


atexit.register(_close_all)


def _renew_after_fork() -> None:
    for store in list(_open_stores):
        store._renew_after_fork()


os.register_at_fork(after_in_child=_renew_after_fork)
