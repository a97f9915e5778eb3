"""An opened store: its parts, how they live and end, and what every operation begins with."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from blake3 import blake3

from . import closure, frameworks, identity, objects, where
from .absence import NOTHING, advice, is_pruned, remote_names
from .backend import Backend
from .background import Pending
from .block import ObjectId, short
from .branches import UNSET, Branches
from .catalog import Catalog, CondemnedToo
from .chains import chains_of
from .crew import default_threads
from .errors import CasError, Invalid, NotFound
from .joint import Memory
from .log import Log, Record, is_for_one_writer
from .needs import Needs
from .objects import Reads
from .present import Present
from .reach import needs_of_state, reachable_below
from .reader import BlockReader, Objects
from .revisions import Revisions
from .roots import Roots
from .stage import Stage
from .survey import Surveyor
from .team import Team
from .urls import backend_of
from .writer import WriterSettings

_log = logging.getLogger("cas")


class Opened:
    """The part of `Store` that knows no operation. A context manager."""

    def __init__(
        self,
        backend: Backend,
        cache: Path | None = None,
        index: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """`index` is the folder of the index, as on a machine of its own; by default it is where `_index_of` says.
        `options` are those that `backend` was made with."""
        self._backend = backend
        self._cache = cache
        self._options = options
        self.url = backend.url
        self.identity = identity.read(backend)
        index = index or _index_of(backend, self.identity, cache)
        threads = default_threads()
        self._catalog = Catalog(backend, index)
        self._settings = WriterSettings.of(self.identity.block_size, threads, backend, self._catalog)
        self._aside = replace(self._settings, threads=max(1, threads // 2))
        """For what runs beside training, which wants the processors too."""
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
        backend.has_honest_create = not is_for_one_writer(self._roots.current())
        _open_stores.add(self)

    @classmethod
    def at(
        cls, place: str | os.PathLike[str], options: Mapping[str, Any] | None = None, cache: Path | None = None
    ) -> Self:
        """The store at a path or URL; `NotFound` where there is none. See `cas.open`."""
        backend = backend_of(os.fsdecode(place), options)
        try:
            return cls(backend, cache, options=options)
        except BaseException:
            backend.close()
            raise

    @property
    def path(self) -> Path:
        """The directory of a local store; one that is elsewhere has a `url` alone."""
        if self._backend.is_remote:
            raise Invalid(f"store {self.url} is no local directory; use its url")
        return Path(self.url)

    @property
    def opener(self) -> Callable[[], Self]:
        """What opens this store again, in another process too: it can be pickled, and holds the storage options."""
        return partial(type(self).at, self.url, self._options, self._cache)

    @property
    def one_writer(self) -> bool:
        """Whether it is safe for one writer at a time only: its medium cannot tell which of two came first."""
        return not self._backend.has_honest_create

    def __repr__(self) -> str:
        return f"<cas.Store {self.url}>"

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
            raise Invalid(f"store {self.url} was closed; open it again with cas.open")
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
            raise NotFound(f"store {self.url} was replaced by another since it was opened; open it again")

    def _renew_after_fork(self) -> None:
        """Other threads, and a commit in flight, are the parent's; so are the locks that they held."""
        self._turn = threading.RLock()
        self._pending = None
        self._branches.renew_lock()
        self._roots.renew_lock()
        self._catalog.renew_lock()
        self._objects.renew_lock()

    def _revisions(self) -> Revisions:
        return Revisions(self._log, self._catalog, self._objects.commit, self._roots.absent)

    def _surveyor(self) -> Surveyor:
        objects = Objects(self._backend, CondemnedToo(self._backend, self._catalog), cached=0)  # each is read once
        needs = Needs(objects, self._needs)
        return Surveyor(self._backend, self._catalog, self._log, self._roots, needs)

    def _with_state(self, rev: str | None) -> tuple[ObjectId, Record]:
        """The commit that a revision names, whose state is there, in part at least, and the root that says so."""
        self._ready()
        root = self._roots.current()
        name = self._revisions().resolve(rev, root)
        self._held(name, root)
        return name, root

    def _held(self, name: ObjectId, root: Record) -> objects.Commit:
        """A commit whose state is there, in part at least."""
        commit = self._objects.commit(name)
        if is_pruned(name, commit, self._roots.absent(root)):
            from_others = f", and {advice(root)}" if remote_names(root) else ""
            what = f"the state of commit {short(name)} was pruned or never fetched"
            raise NotFound(f"{what}; `cas log --root` says when{from_others}")
        return commit

    def _present(self, name: ObjectId, root: Record) -> Objects:
        """The objects as they are seen from a commit: what that lacks on purpose is an error."""
        left_out = self._roots.absent(root).get(name, NOTHING)
        return Present(self._objects, name, left_out, advice(root)) if left_out else self._objects

    def note_where(self, name: ObjectId, objects: Reads | None = None) -> None:
        """Leave a hint of where a published commit lies, for others that have no index of this remote store yet.

        Its trees are read from `objects` where these are nearer.
        """
        if not self._backend.is_remote:
            return
        objects = objects or self._objects
        try:
            left_out = self._roots.absent(self._roots.current()).get(name, NOTHING)
            needed = reachable_below(needs_of_state(objects.commit(name)), objects, left_out)
            chains = chains_of([name, *(found for _, found in needed)], self._catalog.locate)
            where.write(self._backend, name, {place.pack for chain in chains.values() for place in chain})
        except (CasError, OSError) as error:
            _log.info("where commit %s lies was not noted: %s", short(name), error)

    def _check_whole(self, name: ObjectId, root: Record) -> None:
        closure.check(name, root, self._roots.absent(root), self._objects, self._catalog)


def _index_of(backend: Backend, store: identity.Identity, cache: Path | None) -> Path:
    """Where the index of a store stands: within a local one, else in the cache.

    A copy that was made file by file has the same id, and other packs from then on; so may a bucket of the same name
    of another service.
    """
    if not backend.is_remote:
        return Path(backend.url) / "index"
    place = blake3(backend.place.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return (cache or Path.home() / ".cache" / "cas") / f"{store.id}-{place}"


_open_stores: weakref.WeakSet[Opened] = weakref.WeakSet()


def _close_all() -> None:
    for store in list(_open_stores):
        store._catalog.close()


atexit.register(_close_all)


def _renew_after_fork() -> None:
    for store in list(_open_stores):
        store._renew_after_fork()


os.register_at_fork(after_in_child=_renew_after_fork)
