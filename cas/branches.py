"""Moving branches and tags: who is a commit's parent, and publishing with or against other writers.

What this Store last loaded or committed on a branch is the parent of its next commit there, and the branch must
still name it when the record is published. So a job that was requeued and the zombie of its first run never
interleave: the slower one gets `RefConflict`.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .backend import Backend
from .block import ObjectId, short
from .errors import Exists, Invalid, NotFound, RefConflict
from .log import Log, Record
from .refs import Ref, RefKind, Refs, check_free, check_name
from .remotes import check_not_remote
from .reserve import on_reserve
from .roots import Roots


class Unset(enum.Enum):
    """Tells an argument that was left out from None."""

    UNSET = enum.auto()


UNSET = Unset.UNSET


@dataclass(frozen=True, slots=True)
class _Unsettled:
    """A record of which the medium could not say whether it was published; `before` is what was loaded then."""

    record: Record
    branch: str
    commit: ObjectId
    before: ObjectId | None


Change = Callable[[Record], Refs]
"""Gives the refs of the root that follows; asked again for every root that came first."""
Check = Callable[[ObjectId, Record], None]
"""Raises `NotFound` unless a commit that `Record` does not lead to is whole outside all that it condemns."""


@dataclass(frozen=True, slots=True)
class Base:
    """What a commit builds on: its parents, and the `tip` that the branch must still have when it is published."""

    branch: str
    tip: ObjectId | None
    parents: tuple[ObjectId, ...]


class Overtaken(Exception):
    """Files were condemned since a commit's blocks were looked up: they must be found or stored again."""


class Branches:
    """The refs of one store as one `Store` sees them. Safe to use from many threads."""

    def __init__(self, backend: Backend, log: Log, roots: Roots, check: Check) -> None:
        self._backend = backend
        self._log = log
        self._roots = roots
        self._check = check
        self.renew_lock()
        self._loaded: dict[str, ObjectId] = {}
        self._unsettled: _Unsettled | None = None

    def renew_lock(self) -> None:
        """Also after a fork: another thread of the parent may have held the old one."""
        self._lock = threading.RLock()

    # -- parents ------------------------------------------------------------------------------------------------

    def base(self, branch: str, wanted: ObjectId | None, root: Record, describe: Callable[[ObjectId], str]) -> Base:
        """What a commit on `branch` begun under `root` builds on; `wanted` is the parent that the caller asked for."""
        check_name(branch, "branch")
        tip = root.refs.get((RefKind.BRANCH, branch))
        if tip is None:
            check_new(root, (RefKind.BRANCH, branch))
        with self._lock:
            ours = self._loaded.get(branch)
        if wanted is not None:
            if tip is not None and wanted != tip:
                raise RefConflict(
                    f"branch {branch} is at {short(tip)}, not at the parent {short(wanted)}; name another branch, or "
                    f"move this one with store.branch({branch!r}, rev, force=True)"
                )
            return Base(branch, tip, (wanted,))
        if tip is None and ours is not None:
            raise RefConflict(
                f"branch {branch} was deleted since it was loaded; load it with default=None to start it anew"
            )
        if tip is not None and ours is None:
            raise RefConflict(
                f"branch {branch} holds {describe(tip)}; load it to resume, name another branch, "
                f'or pass parent="{branch}"'
            )
        if tip != ours:
            raise RefConflict(_moved(branch, ours, tip))
        return Base(branch, tip, () if tip is None else (tip,))

    def loaded(self, branch: str | None) -> ObjectId | None:
        """What this Store last loaded or committed on a branch."""
        with self._lock:
            return self._loaded.get(branch or "main")

    def remember(self, branch: str, commit: ObjectId, root: Record, before: ObjectId | None) -> None:
        """Note that `commit` was loaded, if it is the branch's tip in `root`.

        Not when this Store has moved on meanwhile from `before`, what it had loaded when the load began.
        """
        if root.refs.get((RefKind.BRANCH, branch)) == commit:
            with self._lock:
                if self._loaded.get(branch) == before:
                    self._loaded[branch] = commit

    def adopt(self, branch: str, commit: ObjectId, before: ObjectId | None) -> None:
        """Note that this Store committed `commit` together with others, one of whom published it.

        Not when it has moved on meanwhile from `before`, what it had loaded when that began.
        """
        with self._lock:
            if self._loaded.get(branch) == before:
                self._loaded[branch] = commit

    def forget(self, branch: str) -> None:
        with self._lock:
            self._loaded.pop(branch, None)

    # -- publishing ---------------------------------------------------------------------------------------------

    def advance(self, base: Base, commit: ObjectId, epoch: int, why: str) -> Record:
        """Publish `commit` as the branch's tip, durably; `RefConflict` when another writer moved the branch.

        Every object of the commit itself was found or stored under `epoch`. What was found then may be condemned in a
        later one: `Overtaken`.
        """
        branch, ref = base.branch, (RefKind.BRANCH, base.branch)

        def change(root: Record) -> Refs:
            tip = root.refs.get(ref)
            if tip != base.tip:
                raise RefConflict(_moved(branch, base.tip, tip))
            if root.epoch != epoch:
                raise Overtaken
            if tip is None:
                check_new(root, ref)
            for parent in base.parents:
                self._check(parent, root)
            return {**root.refs, ref: commit}

        root = self._publish(change, why, (branch, commit))
        with self._lock:
            self._loaded[branch] = commit
        return root

    def set(self, ref: Ref, commit: ObjectId, force: bool) -> None:
        """Make a ref, or with `force` move it."""
        kind, name = ref
        check_name(name, kind.name.lower())

        def change(root: Record) -> Refs:
            if ref not in root.refs:
                check_new(root, ref)
            elif not force:
                raise Exists(f"{kind.name.lower()} {name} exists, at {short(root.refs[ref])}; {_WAYS[kind]}")
            self._check(commit, root)
            return {**root.refs, ref: commit}

        self._publish(change, f"{kind.name.lower()} {name}{' forced' if force else ''}")
        if kind is RefKind.BRANCH:
            with self._lock:
                self._loaded[name] = commit

    def delete(self, ref: Ref) -> None:
        kind, name = ref

        def change(root: Record) -> Refs:
            if ref not in root.refs:
                raise NotFound(f"there is no {kind.name.lower()} {name}")
            return {other: commit for other, commit in root.refs.items() if other != ref}

        on_reserve(self._backend, partial(self._publish, change, f"delete {kind.name.lower()} {name}"))
        if kind is RefKind.BRANCH:
            self.forget(name)

    def restore(self, seq: int | None) -> tuple[Record, Record]:
        """Set refs and config back to what record `seq` says, else to what they were before they last changed.

        What was pruned or collected since stays so: a commit that is not whole any more is `NotFound`. Returns the
        root that was replaced and the new one.
        """
        replaced: list[Record] = []

        def change(root: Record) -> Mapping[str, Any]:
            target = self._changed_last(root) if seq is None else self._undoable(seq, root)
            for commit in set(target.refs.values()) - set(root.refs.values()):
                self._check(commit, root)
            replaced.append(root)
            return {"refs": target.refs, "config": target.config}

        made = self._roots.update(change, "undo" if seq is None else f"undo to {seq}")
        return replaced[-1], made

    def _undoable(self, seq: int, root: Record) -> Record:
        if type(seq) is not int:
            raise Invalid(f"the number of a record is a whole number, not {seq!r:.60}; `cas log --root` lists them")
        if not root.floor <= seq <= root.seq:
            raise NotFound(
                f"undo can go to the records {root.floor} to {root.seq}, not to {seq}; `cas log --root` lists them"
            )
        return self._log.read(seq)

    def _changed_last(self, root: Record) -> Record:
        for seq in range(root.seq - 1, root.floor - 1, -1):
            record = self._log.read(seq)
            if (record.refs, record.config) != (root.refs, root.config):
                return record
        raise NotFound(f"nothing was changed since record {root.floor}, the oldest that undo may go to")

    def _publish(self, change: Change, why: str, commit: tuple[str, ObjectId] | None = None) -> Record:
        """Publish the root with `change` made to its refs; `change` runs again on every root that came first."""
        attempted: list[Record] = []
        try:
            return self._roots.update(lambda root: {"refs": dict(change(root))}, why, attempted.append)
        except BaseException:  # CommitUnknown, or an interrupt that may have come after the record had its name
            if commit is not None and attempted:
                with self._lock:
                    self._unsettled = _Unsettled(attempted[-1], *commit, self._loaded.get(commit[0]))
            raise

    def settle(self) -> None:
        """Find out what became of a record that was cut off while it was published.

        One that appears later still does no harm: it takes the number that the next record wants, and the branch
        is then found moved.
        """
        with self._lock:
            unsettled = self._unsettled
            if unsettled is None:
                return
            untouched = self._loaded.get(unsettled.branch) == unsettled.before  # else loaded since: that holds
            if self._log.settle(unsettled.record) and untouched:
                self._loaded[unsettled.branch] = unsettled.commit
            self._unsettled = None


_WAYS = {
    RefKind.BRANCH: "pass force=True to move it",
    RefKind.TAG: "a tag does not move, delete it first",
    RefKind.TRACKING: "only fetch moves it",
}


def check_new(root: Record, ref: Ref) -> None:
    """`Exists` if a new ref would look like another, or like a remote's branch."""
    check_not_remote(root, ref)
    check_ref(root.refs, ref)


def check_ref(refs: Refs, ref: Ref) -> None:
    """`Exists` if a new ref would stand where another makes it ambiguous."""
    for kind, name in refs:
        if name == ref[1] and kind is not ref[0]:
            raise Exists(f"there is a {kind.name.lower()} called {name}; choose another name")
    check_free(refs, ref[1])


def _moved(branch: str, ours: ObjectId | None, tip: ObjectId | None) -> str:
    was = "did not exist" if ours is None else f"was at {short(ours)}"
    now = "does not exist any more" if tip is None else f"is at {short(tip)}"
    return f"branch {branch} {was} and {now}: another writer moved it; load it to go on from there, or name another"
