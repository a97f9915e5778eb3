"""`Store`: the facade over writing, reading and refs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Unpack

from . import committing, diff, objects
from .ancestry import newest_first
from .background import Pending
from .block import ObjectId
from .branches import UNSET, Overtaken, Unset
from .commits import Commit, commit_of
from .committing import CommitOptions, Request
from .errors import CasError, Invalid, NotFound
from .leaves import Leaves
from .loader import MISSING, Loader
from .log import Record
from .paths import Patterns
from .refs import Ref, RefKind, is_name
from .revisions import default_branch
from .roots import Absent
from .upkeep import Upkeep
from .view import view_of


class Store(Upkeep):
    """One store on a local directory. Safe to use from many threads and many processes at once.

    A context manager; `close` and interpreter exit wait for a commit that still runs in the background.
    """

    # -- committing ---------------------------------------------------------------------------------------------

    def commit(self, state: Any, **options: Unpack[CommitOptions]) -> Commit:
        """Store `state` and move the branch to it. When this returns, the commit survives a power cut.

        The parent is what this Store last loaded or committed on the branch; a branch that exists and was never
        loaded is a `RefConflict`, unless `parent` names its tip. After any error but `CommitUnknown` the branch is
        as it was. The state must not change during the call. See `CommitOptions` for what else to say.
        """
        with self._turn:
            return self._execute(self._request(state, options))

    def commit_async(self, state: Any, **options: Unpack[CommitOptions]) -> Pending:
        """As `commit`, but returns once the state is copied to host memory, which is kept and reused.

        One commit is in flight at a time: the next waits for it. A failure is raised by `wait` and, if nobody
        waited, by the next commit or `close`.
        """
        with self._turn:
            request = self._request(state, options)
            self._stage.hold(request.all_leaves)
            self._pending = Pending(partial(self._execute, request))
            return self._pending

    def _request(self, state: Any, options: CommitOptions) -> Request:
        """Everything checked that can be before anything is stored."""
        started = time.perf_counter()
        unknown = options.keys() - CommitOptions.__annotations__.keys()
        if unknown:
            raise Invalid(f"commit takes no {sorted(unknown)[0]}=; it takes {', '.join(CommitOptions.__annotations__)}")
        self._ready(options.get("group", UNSET))
        self._settle_pending()
        self._branches.settle()
        root, parent = self._roots.current(), options.get("parent")
        wanted = None if parent is None else self._revisions().resolve(parent, root)
        base = self._branches.base(options.get("branch", "main"), wanted, root, self._describe)
        return committing.request(state, options, base, started)

    def _execute(self, request: Request) -> Commit:
        """Store and publish; anew, from the state as it is, where packs that were leant on are condemned meanwhile."""
        while True:
            try:
                return self._attempt(request, self._roots.current().epoch)
            except Overtaken:
                continue
            except OSError as error:
                raise CasError(
                    f"the commit on {request.base.branch} was not made: {error}; the branch is as it was, commit again"
                ) from error

    def _attempt(self, request: Request, epoch: int) -> Commit:
        """One go; `Overtaken` if files were condemned after `epoch`, in which everything is looked up."""
        name, commit, blocks, new = committing.write(request, self._backend, self._catalog, self._settings)
        self._check_in_place()
        equal = None if request.unless_in is None else self._equal(commit, request.unless_in)
        if equal is not None:
            return equal
        step = "" if request.step is None else f" step {request.step}"
        root = self._branches.advance(request.base, name, epoch, f"commit {request.base.branch}{step}")
        self._apply_policy(request.base.branch, root)
        return committing.result(name, commit, request, blocks, new)

    def _equal(self, commit: objects.Commit, rev: str) -> Commit | None:
        """A commit in the history of `rev` that holds just what `commit` does, and was not pruned."""
        revisions, root = self._revisions(), self._roots.current()
        for name, other in revisions.history(revisions.resolve(rev, root)):
            if objects.same_content(commit, other) and name not in self._roots.absent(root):
                self._log.confirm(root.seq)
                return commit_of(name, other)
        return None

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
    ) -> Any:
        """The state as it was committed, every byte verified. Tensors come on the CPU unless `device` or `into`.

        `into`, a state of the same form, has its tensors filled in place (undefined after an error) and its values
        replaced. `only` takes patterns of paths. `default` is returned for a branch that does not exist. Loading the
        whole of a branch by its plain name makes its tip the parent of the next commit there; so does a part or a
        view where this Store has not loaded or committed anything yet.
        """
        self._ready(group)
        before = self._branches.loaded(rev)
        root = self._roots.current()
        try:
            name = self._revisions().resolve(rev, root)
        except NotFound:
            if isinstance(default, Unset) or not self._is_absent(rev, root):
                raise
            self._branches.forget(rev or "main")
            return default
        only_paths = None if only is None else Patterns(only)
        loader = Loader(self._objects, self._blocks, name, only_paths, device, allow_pickle)
        state = loader.load(self._held(name, root).tree, MISSING if isinstance(into, Unset) else into)
        if only is None or before is None:
            self._branches.remember(rev if rev is not None else default_branch(root), name, root, before)
        return state

    def _is_absent(self, rev: str | None, root: Record) -> bool:
        """Whether `rev` is the plain name of a branch that could be and is not."""
        if rev is None:
            return not any(kind is RefKind.BRANCH for kind, _ in root.refs)
        return is_name(rev) and (RefKind.BRANCH, rev) not in root.refs

    def view(self, rev: str | None = None, *, group: Any = UNSET) -> Any:
        """The state as a read-only mapping that reads only what is asked for: `view["model"]["w"][0:128]`."""
        self._ready(group)
        before = self._branches.loaded(rev)
        root = self._roots.current()
        name = self._revisions().resolve(rev, root)
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

    def _describe(self, tip: ObjectId) -> str:
        """How much a branch holds, for errors."""
        history = list(self._revisions().history(tip))
        last = "" if history[0][1].step is None else f" (last step {history[0][1].step})"
        return f"{len(history)} commit{'s' if len(history) > 1 else ''}{last}"
