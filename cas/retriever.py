"""Loading whole states or views of them: alone, or with other ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from .block import ObjectId
from .branches import UNSET, Unset
from .committer import Committer
from .committing import TIMEOUT, check_timeout, sound_timeout
from .errors import CasError, Corrupt, Invalid, NotFound
from .healing import Healed, Healer, may_heal
from .loader import MISSING, Loader, Rank
from .log import Record
from .opened import Opened
from .others import Place, another
from .paths import Path, Patterns
from .refs import RefKind, is_name
from .remotes import ORIGIN
from .reunion import agree, check_complete, end_together
from .revisions import default_branch
from .team import Call
from .view import view_of


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What `load` was asked for."""

    rev: str | None
    default: Any
    into: Any
    only: str | Sequence[str] | None
    device: Any
    allow_pickle: bool
    per_rank: str
    timeout: float
    heal_from: Place | Opened | None = None
    storage_options: Mapping[str, Any] | None = None

    def check(self) -> None:
        check_timeout(self.timeout)
        if self.per_rank not in ("own", "skip"):
            raise Invalid(f"per_rank is 'own' or 'skip', not {self.per_rank!r:.60}")


class _Found(NamedTuple):
    """What was loaded: commit `name`, which `root` leads to."""

    state: Any
    name: ObjectId
    root: Record


class Retriever(Committer):
    """What `Store` does to load."""

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
        heal_from: Place | Opened | None = None,
        storage_options: Mapping[str, Any] | None = None,
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

        With `heal_from` (the name of a remote, a path, a URL that `storage_options` are for, or an open store), which
        goes without `group`, damage is no error if that store has good copies: see `heal`.
        """
        wanted = _Wanted(rev, default, into, only, device, allow_pickle, per_rank, timeout, heal_from, storage_options)
        before, team = self._branches.loaded(rev), self._team(group)
        found = self._load(wanted) if team is None else self._load_together(team.call(sound_timeout(timeout)), wanted)
        if found is None:
            return default
        if only is None or before is None:
            self._remember(rev, found.name, found.root, before)
        return found.state

    def view(self, rev: str | None = None, *, group: Any = UNSET, timeout: float = TIMEOUT) -> Any:
        """The state as a read-only mapping that reads only what is asked for: `view["model"]["w"][0:128]`.

        With `group` all its ranks call and see the same commit.
        """
        before, team = self._branches.loaded(rev), self._team(group)
        if team is None:
            self._ready()
            root = self._roots.current()
            name = self._revisions().resolve(rev, root)
        else:
            seq, agreed = self._agreed(team.call(sound_timeout(timeout)), "view", rev, UNSET, timeout)
            assert agreed is not None, "only a default stands for no commit"
            root, name = self._root_since(seq), agreed
        objects, tree = self._present(name, root), self._held(name, root).tree
        view = view_of(name, tree, objects, self._blocks, 0 if team is None else team.rank)
        if before is None:
            self._remember(rev, name, root, before)
        return view

    def heal(
        self,
        rev: str | None = None,
        source: Place | Opened = ORIGIN,
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Healed:
        """Bring what is missing or damaged of a commit from another store, verified, into new packs of this one.

        All that the commit needs is read and verified, but its parents. Afterwards reads find the good copies; the bad
        ones stay until `fsck(repair=True)` drops them.
        """
        self._ready()
        with another(self, source, storage_options) as other:
            return self._healed(rev, other)

    def _healed(self, rev: str | None, other: Opened) -> Healed:
        healer, root = Healer(self, other), self._roots.current()
        try:
            name = self._revisions().resolve(rev, root)
        except (NotFound, Corrupt):  # for want of a commit on the way, perhaps
            healer.heal_history()
            name = self._revisions().resolve(rev, root)
        healer.heal(name)
        return healer.done

    def _load(self, wanted: _Wanted) -> _Found | None:
        self._ready()
        wanted.check()
        try:
            return self._load_once(wanted)
        except CasError as error:
            if wanted.heal_from is None or not may_heal(error):
                raise
        with another(self, wanted.heal_from, wanted.storage_options) as other:
            healed = self._healed(wanted.rev, other)
            try:
                return self._load_once(wanted)
            except CasError as error:
                if not healed.lost or not may_heal(error):
                    raise
                raise type(error)(f"{error}; neither {self.url} nor {other.url} has a good copy") from error

    def _load_once(self, wanted: _Wanted) -> _Found | None:
        root = self._roots.current()
        name = self._named(wanted.rev, root, wanted.default)
        if name is None:
            return None
        loader = self._loader(wanted, name, 0, None)
        self._plan(loader, wanted, root)
        return _Found(loader.run(), name, root)

    def _load_together(self, call: Call, wanted: _Wanted) -> _Found | None:
        seq, name = self._agreed(call, "load", wanted.rev, wanted.default, wanted.timeout)
        if name is None:
            self._branches.forget(wanted.rev or "main")
            return None
        loader = self._loader(wanted, name, call.rank, [])

        def plan() -> list[Path]:
            wanted.check()
            if wanted.heal_from is not None:
                raise Invalid("heal_from= goes without group=: let one process call `heal` first, then load together")
            self._plan(loader, wanted, self._root_since(seq))
            return loader.rank.lacking or []

        check_complete(call, plan)
        return _Found(end_together(call, loader.run), name, self._roots.current())

    def _loader(self, wanted: _Wanted, name: ObjectId, rank: int, lacking: list[Path] | None) -> Loader:
        number = Rank(rank, wanted.per_rank == "skip", lacking)
        return Loader(self._objects, self._blocks, name, None, wanted.device, wanted.allow_pickle, number)

    def _plan(self, loader: Loader, wanted: _Wanted, root: Record) -> None:
        loader.objects = self._present(loader.commit, root)
        loader.only = None if wanted.only is None else Patterns(wanted.only)
        loader.plan(self._held(loader.commit, root).tree, MISSING if isinstance(wanted.into, Unset) else wanted.into)

    def _remember(self, rev: str | None, name: ObjectId, root: Record, before: ObjectId | None) -> None:
        self._branches.remember(rev if rev is not None else default_branch(root), name, root, before)

    def _named(self, rev: str | None, root: Record, default: Any) -> ObjectId | None:
        """The commit that `rev` names; None where it is a branch that does not exist, and there is a default."""
        try:
            return self._revisions().resolve(rev, root)
        except NotFound:
            if isinstance(default, Unset) or not _is_absent(rev, root):
                raise
            self._branches.forget(rev or "main")
            return None

    def _agreed(
        self, call: Call, what: str, rev: str | None, default: Any, timeout: float
    ) -> tuple[int, ObjectId | None]:
        """The number of the root and the commit that number 0 says `rev` names."""

        def terms() -> dict[str, Any]:
            self._ready()
            check_timeout(timeout)
            return {"store": self.identity.id, "call": what, "rev": rev, "default": not isinstance(default, Unset)}

        def resolve() -> tuple[int, ObjectId | None]:
            root = self._roots.current()
            return root.seq, self._named(rev, root, default)

        seq, name = agree(call, terms, resolve)
        return seq, None if name is None else ObjectId(name)

    def _root_since(self, seq: int) -> Record:
        self._roots.wait_for(seq)
        return self._roots.current()


def _is_absent(rev: str | None, root: Record) -> bool:
    """Whether `rev` is the plain name of a branch that could be and is not."""
    if rev is None:
        return not any(kind is RefKind.BRANCH for kind, _ in root.refs)
    return is_name(rev) and (RefKind.BRANCH, rev) not in root.refs
