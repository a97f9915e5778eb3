"""Looking after a store: what it holds, whether it is whole, what may go, and going back."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Unpack

from . import audit, fsck, gc, repack, stats, where
from .ancestry import newest_first
from .errors import CasError, Invalid, NotFound
from .findings import Finding
from .finished import Finished
from .log import Record
from .opened import Opened
from .others import Place, another
from .pruning import Pruned, Pruner, policies, policy_of_branch, with_policy
from .refs import check_name
from .retention import Rules, decode_policy, describe, policy_of
from .rewriting import LEVELS, Level
from .salvage import Source
from .stats import CommitStats

_log = logging.getLogger("cas")


@contextlib.contextmanager
def _told(what: str, then: str = "the store is whole, try again") -> Iterator[None]:
    """Errors of the medium as one sentence."""
    try:
        yield
    except OSError as error:
        raise CasError(f"{what} was cut short: {error}; {then}") from error


class Upkeep(Opened):
    """The operations of `Store` that no training job calls."""

    # -- checking -----------------------------------------------------------------------------------------------

    def stats(self) -> stats.StoreStats:
        """What the store holds and takes on disk."""
        self._ready()
        return self._roots.under(
            lambda root: stats.measure(self._backend, self._catalog, self._objects, root, self._roots.absent(root))
        )

    def commit_stats(self, rev: str | None = None) -> CommitStats:
        """What one commit holds, and how much of it its first parent holds as well."""
        name, root = self._with_state(rev)
        absent = self._roots.absent(root)
        return stats.measure_commit(name, self._objects, self._catalog, absent)

    def branch_sizes(self) -> dict[str, int]:
        """For each branch, the stored bytes of all objects that no other branch or tag leads to."""
        self._ready()
        root = self._roots.current()
        return stats.bytes_by_branch(root, self._roots.absent(root), self._objects, self._catalog)

    def fsck(
        self,
        data: bool = False,
        *,
        sample: float | None = None,
        repair: bool = False,
        source: Opened | Place | None = None,
        storage_options: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] = lambda nbytes, total: None,
    ) -> list[Finding]:
        """Check log, packs, refs and everything that commits name.

        `data` reads every stored byte as well, `sample` this part of them (0 to 1): both go on where the last run was
        cut off or ended, until everything was read once. `repair` writes what is bad anew, from other copies or from
        the store `source`: the name of a remote, a path, a URL that `storage_options` are for, or an open store.
        Nothing is changed in place. `progress` is told how many bytes were read, and of how many.
        """
        if sample is not None and not 0 < sample <= 1:
            raise Invalid(f"sample is a part of the stored bytes such as 0.05, not {sample}")
        if source is not None and not repair:
            raise Invalid("a source is what a repair takes blocks from; give repair=True as well")
        self._ready()
        state = self._needs.with_name("fsck")
        checker = fsck.Checker(self._backend, self._catalog, self._log, self._roots, self._blocks, state)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_told("the repair" if repair else "the check", "run it again to go on"))
            found = checker.check(1.0 if data else sample, progress)
            if not repair:
                return found
            other = None if source is None else stack.enter_context(another(self, source, storage_options))
            return checker.repair(found, None if other is None else Source(other._backend, other._catalog))

    # -- going back ---------------------------------------------------------------------------------------------

    def undo(self, seq: int | None = None) -> audit.Entry:
        """Set all refs and the config back to before they last changed, or to what root `seq` says.

        Itself an update of the log, so it can be undone. What was pruned stays so; what was collected since is
        `NotFound`.
        """
        with self._turn:
            self._ready()
            self._settle_pending()
            with _told("the undo"):
                before, made = self._branches.restore(seq)
            return audit.entry(made, before, made.floor)

    def roots(self) -> Iterator[audit.Entry]:
        """Every update of the store, newest first: the audit trail, and where `undo` can go."""
        self._ready()
        return audit.entries(self._log)

    # -- freeing ------------------------------------------------------------------------------------------------

    def prune(self, branch: str = "main", *, dry_run: bool = False, **rules: Unpack[Rules]) -> Pruned:
        """Drop the states of a branch's commits that no rule keeps; commits, steps and metrics stay.

        See `Rules`. The tip always stays, and what another branch names. The next collection frees the space.
        """
        self._ready()
        policy = policy_of(**rules)
        with _told("the prune"):
            return self._pruner().prune(branch, policy, dry_run, self._surveyor(), gc.undo_from(gc.EXPIRE))

    def set_policy(self, branch: str = "main", **rules: Unpack[Rules]) -> None:
        """Have every commit on a branch prune it by these rules from now on; without rules no more."""
        self._ready()
        check_name(branch, "branch")
        policy = policy_of(**rules) if rules else None
        why = f"policy of {branch}: {'none' if policy is None else describe(policy)}"
        with _told("setting the policy"):
            self._roots.update(lambda root: {"config": with_policy(root, branch, policy)}, why)

    def policies(self) -> dict[str, str]:
        """By branch, what commits keep when they prune it by themselves."""
        self._ready()
        root = self._roots.current()
        return {name: describe(decode_policy(node)) for name, node in policies(root).items()}

    def repack(
        self,
        level: Level = "fast",
        expire: float = gc.EXPIRE,
        *,
        progress: Callable[[str], None] = lambda text: None,
    ) -> repack.Repacked:
        """Store history anew as changes of what followed it, the newest whole, and small packs joined.

        `fast` leaves whole blocks as they are, `small` codes them too, and `smallest` makes everything as small as it
        can, which takes longer, also to load.
        Every block is decoded and compared before its old copy is given up; the next collection deletes that. Safe
        beside writers, readers and collections. It needs space for what it writes. What nothing led to in the last
        `expire` seconds goes, as in a collection, and undo goes no further back. `progress` is told in words.
        """
        if level not in LEVELS:
            raise Invalid(f"level is one of {', '.join(LEVELS)}, not {level!r}")
        self._ready()
        finished = Finished.load(self._needs.with_name("repacked"))
        since = gc.undo_from(gc.check_seconds("expire", expire))
        with _told("the repack", "the store is whole, and `cas gc --grace 0` deletes what was written"):
            threads = self._settings.threads
            repacker = repack.Repacker(self._surveyor(), self._objects, threads, level, since, finished, progress)
            return repacker.repack()

    def gc(
        self,
        grace: float = gc.GRACE,
        expire: float = gc.EXPIRE,
        *,
        dry_run: bool = False,
        progress: Callable[[str], None] = lambda text: None,
    ) -> gc.Collected:
        """Delete what no branch or tag leads to, and nothing led to in the last `expire` seconds (0: no undo).

        Safe beside writers, readers and other collections. `grace` in seconds: readers are waited for that long, and
        packs younger than that stay (0: neither). `dry_run` only says what would go.
        """
        self._ready()
        times = gc.check_seconds("grace", grace), gc.check_seconds("expire", expire)
        with _told("the collection"):
            done = gc.Collector(self._surveyor(), self._settings.threads, *times, progress).collect(dry_run)
            if done.deleted and not dry_run:
                try:
                    self._renew_hints()
                except (CasError, OSError) as error:  # the collection is done, and hints are only hints
                    _log.warning("hints of where commits lie were not made anew: %s", error)
            return done

    def _renew_hints(self) -> None:
        """Packs have gone: the hints of the newest commits are made anew, those of commits that are gone go too."""
        root = self._roots.current()
        listed = [where.id_of(info.name) for info in self._backend.list(where.FOLDER)]
        absent = self._roots.absent(root)
        held = {name for name, _ in newest_first(root.refs.values(), self._objects.commit, absent)} if listed else set()
        for name in listed:
            if name is not None and name not in held:
                with contextlib.suppress(NotFound):
                    self._backend.delete(where.name_of(name))
        for name in set(root.refs.values()):
            self.note_where(name)

    def _pruner(self) -> Pruner:
        return Pruner(self._backend, self._catalog, self._roots, self._revisions())

    def _apply_policy(self, branch: str, root: Record) -> None:
        """Prune as the store's config says. The commit is made, whatever becomes of this."""
        try:
            policy = policy_of_branch(root, branch)
            if policy is not None:
                self._pruner().prune(branch, policy, dry_run=False, surveyor=None)
        except (CasError, OSError) as error:
            _log.warning("branch %s was not pruned: %s", branch, error)
