"""Looking after a store: what it holds, whether it is whole, what may go, and going back."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Unpack

from . import audit, fsck, gc, stats
from .errors import CasError, Invalid
from .findings import Finding
from .local import LocalBackend
from .log import Record
from .opened import Opened
from .pruning import Pruned, Pruner, policies, policy_of_branch, with_policy
from .refs import check_name
from .repair import Source
from .retention import Rules, decode_policy, describe, policy_of
from .stats import CommitStats

_log = logging.getLogger("cas")


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of the medium as one sentence."""
    try:
        yield
    except OSError as error:
        raise CasError(f"{what} was cut short: {error}; the store is whole, try again") from error


class Upkeep(Opened):
    """The operations of `Store` that no training job calls."""

    # -- checking -----------------------------------------------------------------------------------------------

    def stats(self) -> stats.StoreStats:
        """What the store holds and takes on disk."""
        self._ready()
        return stats.measure(self._backend, self._catalog, self._objects, self._roots.current())

    def commit_stats(self, rev: str | None = None) -> CommitStats:
        """What one commit holds, and how much of it its first parent holds as well."""
        name = self._with_state(rev)
        absent = self._roots.absent(self._roots.current())
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
        source: Upkeep | str | os.PathLike[str] | None = None,
        progress: Callable[[int, int], None] = lambda nbytes, total: None,
    ) -> list[Finding]:
        """Check log, packs, refs and everything that commits name.

        `data` reads every stored byte as well, `sample` this part of them (0 to 1): both go on where the last run was
        cut off or ended, until everything was read once. `repair` writes what is bad anew, from other copies or from
        the store `source`; nothing is changed in place. `progress` is told how many bytes were read, and of how many.
        """
        if sample is not None and not 0 < sample <= 1:
            raise Invalid(f"sample is a part of the stored bytes such as 0.05, not {sample}")
        if source is not None and not repair:
            raise Invalid("a source is what a repair takes blocks from; give repair=True as well")
        self._ready()
        state = self._needs.with_name("fsck")
        checker = fsck.Checker(self._backend, self._catalog, self._log, self._roots, self._blocks, state)
        found = checker.check(1.0 if data else sample, progress)
        if not repair:
            return found
        with contextlib.ExitStack() as stack:
            other = source
            if isinstance(other, str | os.PathLike):
                other = stack.enter_context(Upkeep(LocalBackend(other), Path(other) / "index"))
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
            return gc.Collector(self._surveyor(), self._settings.threads, *times, progress).collect(dry_run)

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
