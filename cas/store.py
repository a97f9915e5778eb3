"""`Store`: the facade over writing, reading and refs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import diff
from .absence import NOTHING
from .ancestry import newest_first
from .block import ObjectId
from .commits import Commit, commit_of
from .leaves import Leaves
from .loader import Loader
from .paths import Patterns
from .refs import Ref, RefKind
from .roots import Absent
from .synchronised import Synchronised

_GROUPS = {RefKind.BRANCH: "branches", RefKind.TAG: "tags", RefKind.TRACKING: "tracking"}


class Store(Synchronised):
    """One store on a local directory. Safe to use from many threads and many processes at once.

    A context manager; `close` and interpreter exit wait for a commit that still runs in the background.
    """

    # -- reading ------------------------------------------------------------------------------------------------

    def resolve(self, rev: str | None = None) -> Commit:
        """The commit that a revision names."""
        self._ready()
        root = self._roots.current()
        return self._commit(self._revisions().resolve(rev, root), self._roots.absent(root))

    def log(self, rev: str | None = None) -> Iterator[Commit]:
        """A commit and its first parents, newest first, as far as history was fetched."""
        self._ready()
        revisions, root = self._revisions(), self._roots.current()
        start, absent = revisions.resolve(rev, root), self._roots.absent(root)
        return (
            commit_of(name, held, left_out=absent.get(name, NOTHING)) for name, held in revisions.history(start, root)
        )

    def graph(self, rev: str | None = None) -> Iterator[Commit]:
        """All ancestors of a commit, else of all branches and tags: newest first, each before its parents."""
        self._ready()
        root = self._roots.current()
        tips = [self._revisions().resolve(rev, root)] if rev is not None or not root.refs else root.refs.values()
        absent = self._roots.absent(root)
        found = newest_first(tips, self._objects.commit, absent)
        return (commit_of(name, held, left_out=absent.get(name, NOTHING)) for name, held in found)

    def refs(self) -> dict[str, dict[str, str]]:
        """Commit ids by name, in `branches` and `tags`, and in `tracking` those of remotes where some were fetched."""
        self._ready()
        found: dict[str, dict[str, str]] = {"branches": {}, "tags": {}}
        for (kind, name), commit in self._roots.current().refs.items():
            found.setdefault(_GROUPS[kind], {})[name] = commit.hex()
        return found

    def files(self, rev: str | None = None) -> dict[str, bytes]:
        """The side files of a commit by name, verified."""
        self._ready()
        root = self._roots.current()
        name = self._revisions().resolve(rev, root)
        objects = self._present(name, root)
        found: dict[str, bytes] = Loader(objects, self._blocks, name).values(objects.commit(name).files)
        return found

    def leaves(self, rev: str | None = None) -> Leaves:
        """What a commit's state consists of, and the bytes of its tensors, without any framework."""
        name, root = self._with_state(rev)
        return Leaves(self._present(name, root), self._blocks, name)

    def diff(
        self, a: str, b: str | None = None, *, only: str | Sequence[str] | None = None, values: bool = True
    ) -> Iterator[diff.Difference]:
        """What differs between the states of two revisions, in the order of `a`, found while it is iterated over.

        `only` takes patterns of paths. With `values` tensors are read where their blocks differ, and measured in
        bounded memory; without, nothing but trees is read.
        """
        before, after = self._with_state(a), self._with_state(b)
        objects = self._present(*before), self._present(*after)
        patterns = None if only is None else Patterns(only)
        return diff.diff(objects, self._blocks, before[0], after[0], values, patterns)

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
            self._ready()
            self._settle_pending()  # a tag after commit_async means that commit
            root = self._roots.current()
            name = self._revisions().resolve(rev, root)
            commit = self._commit(name, self._roots.absent(root))
            self._branches.set(ref, name, force)
            return commit

    def _delete(self, ref: Ref) -> None:
        with self._turn:
            self._ready()
            self._settle_pending()
            self._branches.delete(ref)

    def _commit(self, name: ObjectId, absent: Absent) -> Commit:
        return commit_of(name, self._objects.commit(name), left_out=absent.get(name, NOTHING))
