"""Exchanging commits with other stores: remotes, push, fetch, pull."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .block import ObjectId, short
from .errors import CasError, CommitUnknown, Invalid, NotFound
from .log import Record
from .opened import Opened
from .others import Place, place_of, remote_at
from .paths import Patterns
from .refs import RefKind
from .refspecs import fetched, found, pushed
from .remotes import Remote, remotes_of, with_pushed, with_remote, without_remote
from .retriever import Retriever
from .revisions import default_branch
from .sides import Side, Sides
from .sync import Goal, Sync, Synced, descends
from .transfer import Progress
from .wanted import Scope

_log = logging.getLogger("cas")
_PULL_FIRST = "pull first and go on from there, or force it, which takes commits off that branch"


def quiet(objects: int, of_objects: int, nbytes: int, of_bytes: int) -> None:
    return


class Synchronised(Retriever):
    """What `Store` does with other stores.

    `remote` is the name of a remote, or a path or URL; None is `origin`. `storage_options` are fsspec's, for this call
    alone. Objects go as they are stored, each compared with its name on the way, and branches move last: a transfer
    that was cut off changed nothing that anyone sees, and the next one goes on from there.

    `only` takes patterns of paths, and `depth` a number of commits: what else there is of those commits is absent on
    the other side. To bring it later, give a larger `depth` (0 is all) or another `only` ("." is everything). A fetch
    or pull without `only` takes that with which the remote was cloned or added.
    `limit_rate` is in stored bytes per second. `progress` is told objects done and in all, and stored bytes done and in
    all, from several threads, one at a time.
    """

    # -- remotes ------------------------------------------------------------------------------------------------

    def remotes(self) -> dict[str, Remote]:
        """The other stores that this one knows by name."""
        self._ready()
        return remotes_of(self._roots.current())

    def add_remote(
        self,
        name: str,
        url: Place,
        *,
        only: str | Sequence[str] | None = None,
        **options: str | int | bool,
    ) -> Remote:
        """Know another store by a name. Its branches will be `name/branch` here.

        `only` is what fetches and pulls take of its states unless they are given another. The options are fsspec's, and
        stand in the log for all who can read the store: secrets are refused.
        """
        self._ready()
        remote = Remote(name, place_of(url), options, scope_of(only, None).only or ())
        self._roots.update(lambda root: {"config": with_remote(root, remote)}, f"remote {name} added")
        return remote

    def remove_remote(self, name: str) -> None:
        """Forget another store, and the tracking branches of it."""
        self._ready()

        def change(root: Record) -> Mapping[str, Any]:
            config, refs = without_remote(root, name)
            return {"config": config, "refs": refs}

        self._roots.update(change, f"remote {name} removed")

    # -- moving commits -----------------------------------------------------------------------------------------

    def push(
        self,
        remote: Place | None = None,
        *names: str,
        everything: bool = False,
        force: bool = False,
        only: str | Sequence[str] | None = None,
        depth: int | None = None,
        limit_rate: float | None = None,
        storage_options: Mapping[str, Any] | None = None,
        progress: Progress = quiet,
    ) -> Synced:
        """Send branches and tags, and what the other store lacks of them.

        A name is a branch, a tag or `REV:BRANCH`; without any it is `main` or the only branch, and with `everything`
        all branches and tags. A branch that would lose commits is a `RefConflict`, a tag that differs there `Exists`,
        unless forced.
        """
        self._settle_first()
        scope = scope_of(only, depth)
        with self._other(remote, storage_options) as (known, other):

            def plan(here: Record, there: Record) -> list[Goal]:
                return pushed(names, everything, force, self._revisions().resolve, here, there)

            why = _words("push", *(["everything"] if everything else names), "from", self.url)
            sync = Sync(side_of(self), side_of(other), plan, why, _PULL_FIRST, scope, is_received=False)
            done = self._run(sync, limit_rate, progress, f"the push to {known.name or known.url}")
            if done.refs:
                self._note_pushed(known, other, done)
            return done

    def _note_pushed(self, remote: Remote, other: Opened, done: Synced) -> None:
        """Best effort, as the push is done: the next fetch tells as much."""
        branches = {ref.name: ObjectId(bytes.fromhex(ref.new)) for ref in done.refs if ref.kind == "branch" and ref.new}
        with contextlib.suppress(CasError, OSError):
            self._notice(other)
            if remote.name and branches:
                why = _words("push", remote.name, *branches)
                self._roots.update(lambda root: {"refs": with_pushed(root, remote.name, branches)}, why)

    def fetch(
        self,
        remote: str | None = None,
        *names: str,
        only: str | Sequence[str] | None = None,
        depth: int | None = None,
        limit_rate: float | None = None,
        storage_options: Mapping[str, Any] | None = None,
        progress: Progress = quiet,
    ) -> Synced:
        """Bring branches of a remote as `remote/branch`, and tags that are not here; all of them without names.

        Branches of this store stay as they are. A tag that differs here is left, and so said.
        """
        self._settle_first()
        with self._other(remote, storage_options) as (known, other):
            scope = scope_of(only, depth, known)
            if not known.name:
                raise Invalid(
                    f"fetch keeps branches as NAME/branch, and {known.url} has no name here: give it one with "
                    "`cas remote add`, or pull from it"
                )
            return self._fetch(known, other, names, scope, limit_rate, progress)

    def _fetch(
        self,
        remote: Remote,
        other: Opened,
        names: Sequence[str],
        scope: Scope,
        rate: float | None,
        progress: Progress,
        select: Callable[[Sequence[str], str, Record], list[Goal]] = fetched,
    ) -> Synced:
        def plan(there: Record, here: Record) -> list[Goal]:
            return select(names, remote.name, there)

        why = _words("fetch", remote.name, *names)
        sync = Sync(side_of(other), side_of(self), plan, why, _PULL_FIRST, scope)
        done = self._run(sync, rate, progress, f"the fetch from {remote.name}")
        for left in done.left:
            what = left.kind, left.name
            if left.old and left.new:
                where = short(bytes.fromhex(left.new)), remote.name, short(bytes.fromhex(left.old))
                _log.warning("%s %s is at %s at %s and stays at %s here; delete it to take theirs", *what, *where)
            else:
                _log.warning("%s %s of %s was left: its name cannot stand beside those here", *what, remote.name)
        return done

    def pull(
        self,
        remote: Place | None = None,
        branch: str | None = None,
        *,
        only: str | Sequence[str] | None = None,
        depth: int | None = None,
        limit_rate: float | None = None,
        storage_options: Mapping[str, Any] | None = None,
        progress: Progress = quiet,
    ) -> Synced:
        """Fetch a branch, `main` or the only one if none is named, and move the branch of that name here forward to it.

        A branch with commits that the other store lacks is a `RefConflict`. This Store's next commit there needs a load
        first: its state does not hold what was pulled.
        """
        self._settle_first()
        with self._other(remote, storage_options) as (known, other):
            scope = scope_of(only, depth, known)
            there = other._roots.current()
            if not any(kind is RefKind.BRANCH for kind, _ in there.refs):
                raise NotFound(f"store {other.url} has no branches yet, so there is nothing to pull; push to it first")
            name = default_branch(there) if branch is None else branch
            if not known.name:
                return self._forward(other, known, name, scope, limit_rate, progress)
            done = self._fetch(known, other, [name], scope, limit_rate, progress)
            then = self._forward(other, known, name, Scope(), limit_rate, progress)
            return replace(done, refs=done.refs + then.refs, seconds=done.seconds + then.seconds)

    def _forward(
        self, other: Opened, remote: Remote, name: str, scope: Scope, rate: float | None, progress: Progress
    ) -> Synced:
        """Move the branch `name` to what was fetched of it; from a store without a name, to what it is there.

        Whether that is forward, the two stores are asked together: here the history may be cut.
        """
        source, target, goal = side_of(other), side_of(self), (RefKind.BRANCH, name)
        tracking = (RefKind.TRACKING, f"{remote.name}/{name}")

        def plan(there: Record, here: Record) -> list[Goal]:
            new, old = (here.refs.get(tracking) if remote.name else there.refs.get(goal)), here.refs.get(goal)
            if new is None:
                found(name, there)
                raise Invalid(f"{name} is a tag of {remote.url}; fetch it, only branches are pulled")
            sides = Sides(source, target, there, here)
            is_ahead = old is not None and not descends(new, old, sides) and descends(old, new, sides)
            return [] if is_ahead else [Goal(goal, new)]

        where = remote.name or remote.url
        otherwise = (
            f"where both have commits that the other lacks, `cas branch NEW {name}` keeps those here under another "
            f"name, and `cas reset {name} {tracking[1] if remote.name else 'REV'}` then goes to theirs"
        )
        sync = Sync(source, target, plan, f"pull {name} from {where}", otherwise, scope, says_lacking=not remote.name)
        return self._run(sync, rate, progress, f"the pull from {where}")

    # -- the other side -----------------------------------------------------------------------------------------

    def _settle_first(self) -> None:
        """A push after `commit_async` means that commit."""
        with self._turn:
            self._ready()
            self._settle_pending()

    def _run(self, sync: Sync, rate: float | None, progress: Progress, what: str) -> Synced:
        if rate is not None and not rate > 0:
            raise Invalid(f"limit_rate is in bytes per second, not {rate!r:.60}")
        sync = replace(sync, threads=self._settings.threads, rate=rate, progress=progress)
        try:
            return sync.run()
        except CommitUnknown as error:
            raise CommitUnknown(f"whether {what} moved its refs is not known, run it again: {error}") from error
        except OSError as error:
            raise CasError(f"{what} was cut short: {error}; what was sent stays, run it again to go on") from error

    @contextlib.contextmanager
    def _other(self, place: Place | None, options: Mapping[str, Any] | None) -> Iterator[tuple[Remote, Opened]]:
        remote = remote_at(self._roots.current(), place)
        with Opened.at(remote.url, {**remote.options, **(options or {})}, self._cache) as other:
            self._notice(other)
            yield remote, other

    def _notice(self, other: Opened) -> None:
        """Warn where another store is older than it was, or not the one that it was."""
        path, place = self._needs.with_name("seen.json"), other._backend.place
        try:
            seen: dict[str, Any] = json.loads(path.read_bytes())
            store, seq = seen.get(place, (other.identity.id, 0))
        except (OSError, ValueError, TypeError, AttributeError):  # derived: without it nothing is noticed
            seen, store, seq = {}, other.identity.id, 0
        now = other._roots.current().seq
        if store != other.identity.id:
            _log.warning("%s is another store than the one that was there before", other.url)
        elif now < seq:
            _log.warning(
                "store %s is at log record %d, and was at %d before: it was restored from an older copy, and commits "
                "may be gone from it",
                *(other.url, now, seq),
            )
        if [store, seq] != [other.identity.id, now]:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f"{path.name}.{os.getpid()}")
                temporary.write_text(json.dumps({**seen, place: [other.identity.id, now]}))
                os.replace(temporary, path)


def _words(*words: object) -> str:
    return " ".join(map(str, words))


def side_of(store: Opened) -> Side:
    """A store as one side of a transfer."""
    return Side(store.url, store._backend, store._catalog, store._roots, store._objects, store.note_where)


def scope_of(only: str | Sequence[str] | None, depth: int | None, remote: Remote | None = None) -> Scope:
    """What the arguments `only` and `depth` mean, checked; without `only` it is what is kept with the remote."""
    if depth is not None and (type(depth) is not int or depth < 0):
        raise Invalid(f"depth is a number of commits, or 0 for all, not {depth!r:.60}")
    if only is not None:
        Patterns(only)  # refuses what is none
    patterns = (only,) if isinstance(only, str) else None if only is None else tuple(only)
    widens = patterns is not None or depth is not None
    if patterns is None and remote is not None and remote.only:
        patterns = remote.only
    return Scope(patterns, depth, widens)
