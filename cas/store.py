"""`Store`: the facade over writing, reading and refs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

from . import diff
from .ancestry import newest_first
from .block import ObjectId
from .branches import UNSET, Unset
from .commits import Commit, commit_of
from .committer import Committer
from .committing import TIMEOUT, check_timeout
from .errors import Invalid, NotFound
from .leaves import Leaves
from .loader import MISSING, Loader, Rank
from .log import Record
from .paths import Path, Patterns
from .refs import Ref, RefKind, is_name
from .reunion import agree, check_complete, end_together
from .revisions import default_branch
from .roots import Absent
from .team import Call
from .view import view_of


class Store(Committer):
    """One store on a local directory. Safe to use from many threads and many processes at once.

    A context manager; `close` and interpreter exit wait for a commit that still runs in the background.
    """

    # -- reading ------------------------------------------------------------------------------------------------

    def load(
        self,
        rev: str | None = None,
        *,
        default: Any = UNSET,
        into: Any = UNSET,
        only: str | Sequence[str] | None = None,
        device: Any = None,
        allow_pickle: bool = False,
        group: Any = UNSET,
        per_rank: Literal["own", "skip"] = "own",
        timeout: float = TIMEOUT,
    ) -> Any:
        """The state as it was committed, every byte verified. Tensors come on the CPU unless `device` or `into`.

        `into`, a state of the same form, has its tensors filled in place (undefined after an error) and its values
        replaced. `only` takes patterns of paths. `default` is returned for a branch that does not exist. Loading the
        whole of a branch by its plain name makes its tip the parent of the next commit there; so does a part or a
        view where this Store has not loaded or committed anything yet.

        With `group` all its ranks call and load the same commit, in whatever layout it was committed: sharded tensors
        of `into` read what they hold, and a part of the state that only some ranks have a place for goes to those.
        None returns before all have loaded; a rank that fails is named on all. `timeout` is in seconds, for each time
        that ranks wait for one another. A value that was committed as `PerRank` comes as this rank's own; where the
        commit has none for it, it is an error, or with `per_rank="skip"` left out.
        """
        check_timeout(timeout)
        if per_rank not in ("own", "skip"):
            raise Invalid(f"per_rank is 'own' or 'skip', not {per_rank!r:.60}")
        team = self._ready(group)
        before = self._branches.loaded(rev)
        patterns = None if only is None else Patterns(only)

        def loader(name: ObjectId, rank: Rank) -> Loader:
            return Loader(self._objects, self._blocks, name, patterns, device, allow_pickle, rank)

        target = MISSING if isinstance(into, Unset) else into
        skip = per_rank == "skip"
        if team is None:
            root = self._roots.current()
            name = self._named(rev, root, default)
            if name is None:
                return default
            state = loader(name, Rank(0, skip)).load(self._held(name, root).tree, target)
        else:
            call = team.call(timeout)
            root, name = self._agreed(call, "load", rev, default)
            if name is None:
                return default
            lacking: list[Path] = []
            work = loader(name, Rank(call.rank, skip, lacking))
            check_complete(call, partial(self._plan, work, name, root, target, lacking))
            state = end_together(call, work.run)
        if only is None or before is None:
            self._branches.remember(rev if rev is not None else default_branch(root), name, root, before)
        return state

    def _plan(self, loader: Loader, name: ObjectId, root: Record, target: Any, lacking: list[Path]) -> list[Path]:
        loader.plan(self._held(name, root).tree, target)
        return lacking

    def _named(self, rev: str | None, root: Record, default: Any) -> ObjectId | None:
        """The commit that `rev` names; None where it is a branch that does not exist, and there is a default."""
        try:
            return self._revisions().resolve(rev, root)
        except NotFound:
            if isinstance(default, Unset) or not self._is_absent(rev, root):
                raise
            self._branches.forget(rev or "main")
            return None

    def _agreed(self, call: Call, what: str, rev: str | None, default: Any) -> tuple[Record, ObjectId | None]:
        """A root that is new enough, and the commit that number 0 says `rev` names."""

        def resolve() -> tuple[int, ObjectId | None]:
            root = self._roots.current()
            return root.seq, self._named(rev, root, default)

        terms = {"store": self.identity.id, "call": what, "rev": rev, "default": not isinstance(default, Unset)}
        seq, name = agree(call, terms, resolve)
        if name is None:
            self._branches.forget(rev or "main")
            return self._roots.current(), None
        self._roots.wait_for(seq)
        return self._roots.current(), ObjectId(name)

    def _is_absent(self, rev: str | None, root: Record) -> bool:
        """Whether `rev` is the plain name of a branch that could be and is not."""
        if rev is None:
            return not any(kind is RefKind.BRANCH for kind, _ in root.refs)
        return is_name(rev) and (RefKind.BRANCH, rev) not in root.refs

    def view(self, rev: str | None = None, *, group: Any = UNSET, timeout: float = TIMEOUT) -> Any:
        """The state as a read-only mapping that reads only what is asked for: `view["model"]["w"][0:128]`.

        With `group` all its ranks call and see the same commit.
        """
        check_timeout(timeout)
        team = self._ready(group)
        before = self._branches.loaded(rev)
        if team is None:
            root = self._roots.current()
            name = self._revisions().resolve(rev, root)
        else:
            root, found = self._agreed(team.call(timeout), "view", rev, UNSET)
            assert found is not None, "only a default stands for no commit"
            name = found
        view = view_of(name, self._held(name, root).tree, self._objects, self._blocks)
        if before is None:
            self._branches.remember(rev if rev is not None else default_branch(root), name, root, before)
        return view

    def resolve(self, rev: str | None = None) -> Commit:
        """The commit that a revision names."""
        self._ready(None)
        root = self._roots.current()
        return self._commit(self._revisions().resolve(rev, root), self._roots.absent(root))

    def log(self, rev: str | None = None) -> Iterator[Commit]:
        """A commit and its first parents, newest first."""
        self._ready(None)
        revisions, root = self._revisions(), self._roots.current()
        start, absent = revisions.resolve(rev, root), self._roots.absent(root)
        return (commit_of(name, held, pruned=name in absent) for name, held in revisions.history(start))

    def graph(self, rev: str | None = None) -> Iterator[Commit]:
        """All ancestors of a commit, else of all branches and tags: newest first, each before its parents."""
        self._ready(None)
        root = self._roots.current()
        tips = [self._revisions().resolve(rev, root)] if rev is not None or not root.refs else root.refs.values()
        absent = self._roots.absent(root)
        return (commit_of(name, held, pruned=name in absent) for name, held in newest_first(tips, self._objects.commit))

    def refs(self) -> dict[str, dict[str, str]]:
        """Commit ids by name, in `branches` and `tags`."""
        self._ready(None)
        found: dict[str, dict[str, str]] = {"branches": {}, "tags": {}}
        for (kind, name), commit in self._roots.current().refs.items():
            if kind is not RefKind.TRACKING:
                found["tags" if kind is RefKind.TAG else "branches"][name] = commit.hex()
        return found

    def files(self, rev: str | None = None) -> dict[str, bytes]:
        """The side files of a commit by name, verified."""
        self._ready(None)
        name = self._revisions().resolve(rev, self._roots.current())
        found: dict[str, bytes] = Loader(self._objects, self._blocks, name).values(self._objects.commit(name).files)
        return found

    def leaves(self, rev: str | None = None) -> Leaves:
        """What a commit's state consists of, and the bytes of its tensors, without any framework."""
        return Leaves(self._objects, self._blocks, self._with_state(rev))

    def diff(
        self, a: str, b: str | None = None, *, only: str | Sequence[str] | None = None, values: bool = True
    ) -> Iterator[diff.Difference]:
        """What differs between the states of two revisions, in the order of `a`, found while it is iterated over.

        `only` takes patterns of paths. With `values` tensors are read where their blocks differ, and measured in
        bounded memory; without, nothing but trees is read.
        """
        names = [self._with_state(rev) for rev in (a, b)]
        patterns = None if only is None else Patterns(only)
        return diff.diff(self._objects, self._blocks, names[0], names[1], values, patterns)

    # -- refs ---------------------------------------------------------------------------------------------------

    def branch(self, name: str, rev: str | None = None, *, force: bool = False) -> Commit:
        """Make a branch at `rev`; with `force` move one that exists. The next commit here goes on from it."""
        return self._set_ref((RefKind.BRANCH, name), rev, force)

    def tag(self, name: str, rev: str | None = None) -> Commit:
        """Make a tag at `rev`. Tags do not move: delete one first."""
        return self._set_ref((RefKind.TAG, name), rev, False)

    def delete_branch(self, name: str) -> None:
        """Remove a branch. Its commits stay in the log of the store, and in the packs until they are collected."""
        self._delete((RefKind.BRANCH, name))

    def delete_tag(self, name: str) -> None:
        """Remove a tag."""
        self._delete((RefKind.TAG, name))

    def _set_ref(self, ref: Ref, rev: str | None, force: bool) -> Commit:
        with self._turn:
            self._ready(None)
            self._settle_pending()  # a tag after commit_async means that commit
            root = self._roots.current()
            name = self._revisions().resolve(rev, root)
            commit = self._commit(name, self._roots.absent(root))
            self._branches.set(ref, name, force)
            return commit

    def _delete(self, ref: Ref) -> None:
        with self._turn:
            self._ready(None)
            self._settle_pending()
            self._branches.delete(ref)

    def _commit(self, name: ObjectId, absent: Absent) -> Commit:
        return commit_of(name, self._objects.commit(name), pruned=name in absent)
