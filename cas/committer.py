"""Committing: alone or with other ranks, at once or in the background."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

from . import committing, gathered, objects
from .absence import is_whole
from .asking import meet
from .background import Pending
from .block import ObjectId
from .branches import UNSET, Base, Overtaken
from .codecs import DELTA_CODECS, CodecName
from .commits import Commit, commit_of
from .committing import TIMEOUT, CommitOptions, Request, Stored, sound_timeout
from .deltas import Noted
from .errors import CasError
from .gathered import Begun, PartWriter, Took
from .joint import Host, JointCommit, Published
from .objects import Put
from .refs import RefKind
from .relatives import nearest, probes_of
from .state import Leaf
from .upkeep import Upkeep
from .writer import WriterSettings


class Committer(Upkeep):
    """What `Store` does to commit."""

    def commit(self, state: Any, **options: Unpack[CommitOptions]) -> Commit:
        """Store `state` and move the branch to it. When this returns, the commit survives a power cut.

        The parent is what this Store last loaded or committed on the branch; a branch that exists and was never
        loaded is a `RefConflict`, unless `parent` names its tip. After any error but `CommitUnknown` the branch is
        as it was. The state must not change during the call. With `group` all its ranks call, each with what it holds
        of the state, and all get the same commit or an error that names the rank that failed. See `CommitOptions` for
        what else to say.
        """
        with self._turn:
            run, _, _ = self._begin(state, options, self._settings)
            return run()

    def commit_async(self, state: Any, **options: Unpack[CommitOptions]) -> Pending:
        """As `commit`, but returns once the state is copied to host memory, which is kept and reused.

        One commit is in flight at a time: the next waits for it, or does what `when_busy` says. A failure is raised
        by `wait` and, if nobody waited, by the next commit or `close`.
        """
        with self._turn:
            if not self._may_begin(options):
                return Pending(None)
            options.setdefault("delta", "parent")
            notes: Noted | None = {} if options.get("keep_base") else None
            run, fail, request = self._begin(state, options, replace(self._aside, notes=notes))
            leaves = request.leaves + request.side_leaves
            try:
                self._stage.hold(leaves)
            except BaseException as error:
                fail(error)
                raise
            self._pending = Pending(run if notes is None else partial(self._keep_base, run, leaves, notes))
            return self._pending

    def _keep_base(self, run: Callable[[], Commit], leaves: list[Leaf], notes: Noted) -> Commit:
        """Make the commit, and keep the staged state if most of it was stored whole."""
        commit = run()
        staged = sum(shard.source.nbytes for leaf in leaves for shard in leaf.shards if leaf.tied_to is None)
        if 2 * sum(map(len, notes.values())) >= staged:
            self._settings.recent.blocks = notes
            self._stage.set_aside()
        return commit

    def _begin(
        self, state: Any, options: CommitOptions, settings: WriterSettings
    ) -> tuple[Callable[[], Commit], Callable[[BaseException], None], Request]:
        """What makes the commit, what gives it up before that, and what was checked before anything is stored."""
        started = time.perf_counter()
        team = self._team(options.get("group", UNSET))
        if team is not None:
            joint = JointCommit(
                team.call(sound_timeout(options.get("timeout", TIMEOUT))), self._host(settings), options
            )
            request = joint.enter(state, self._ready_to_commit)
            return partial(self._finish, joint, self._branches.loaded(joint.branch)), joint.fail, request
        committing.check_options(options)
        self._ready_to_commit()
        request = committing.request(state, options, started)
        committing.check_held_whole(request.leaves)
        base = self._base_of(options)
        relatives = self._relatives(request, base, options.get("base"))
        return partial(self._execute, request, base, relatives, settings), _no_one_waits, request

    def _ready_to_commit(self) -> None:
        self._ready()
        self._settle_pending()

    def _may_begin(self, options: CommitOptions) -> bool:
        """Whether to commit now, as `when_busy` says."""
        policy, team = options.get("when_busy", "wait"), self._team(options.get("group", UNSET))
        if policy == "wait":
            return True
        if team is None:
            committing.check_options(options)
            return self._is_free(policy)
        call = team.call(sound_timeout(options.get("timeout", TIMEOUT)))

        def terms() -> tuple[dict[str, Any], None]:
            committing.check_options(options)
            self._ready()
            return {"store": self.identity.id, "call": "commit_async", "when_busy": policy}, None

        may_begin: bool = meet(call, terms, lambda _: [self._is_free(policy)] * call.size)
        return may_begin

    def _is_free(self, policy: str) -> bool:
        if self._pending is None or self._pending.done:
            return True
        if policy == "raise":
            raise CasError("the commit before this one is still in flight; wait for it, or pass when_busy='skip'")
        return False

    # -- alone --------------------------------------------------------------------------------------------------

    def _base_of(self, options: CommitOptions) -> Base:
        self._branches.settle()
        root, parent = self._roots.current(), options.get("parent")
        wanted = None if parent is None else self._revisions().resolve(parent, root)
        return self._branches.base(options.get("branch", "main"), wanted, root, self._describe)

    def _relatives(self, request: Request, base: Base, rev: str | None) -> list[ObjectId]:
        """The commits whose blocks may be bases, the nearest first."""
        named = [] if rev is None else [self._with_state(rev)[0]]
        return [*base.parents, *named] if _wants_deltas(request) else []

    def _nearest(self, request: Request) -> list[ObjectId]:
        """The tip of a branch or tag that the state resembles, if one does."""
        tips = self._readable_tips()
        probes = list(probes_of(request.leaves, self._settings.block_size)) if tips else []
        with self._settings.benches.borrow() as bench:
            found = nearest(probes, tips, self._objects, bench.bases, bench.encoder) if probes else None
        return [] if found is None else [found]

    def _readable_tips(self) -> list[ObjectId]:
        """The newest commit of every branch and tag, oldest first; the commit at hand needs none of them."""
        times: dict[ObjectId, int] = {}
        for name in self._roots.current().refs.values():
            with contextlib.suppress(CasError):
                times[name] = self._objects.commit(name).time
        return sorted(times, key=lambda name: times[name])

    def _execute(self, request: Request, base: Base, relatives: list[ObjectId], settings: WriterSettings) -> Commit:
        """Store and publish; anew, from the state as it is, where packs that were leant on are condemned meanwhile."""
        while True:
            try:
                return self._attempt(request, base, relatives, settings, self._roots.current().epoch)
            except Overtaken:
                continue
            except OSError as error:
                raise _not_made(request.branch, error) from error

    def _attempt(
        self, request: Request, base: Base, relatives: list[ObjectId], settings: WriterSettings, epoch: int
    ) -> Commit:
        """One go; `Overtaken` if files were condemned after `epoch`, in which everything is looked up."""
        if not relatives and _wants_deltas(request):
            relatives = self._nearest(request)
        deltas = settings.deltas(relatives, self._objects, self._catalog)
        name, commit, stored = committing.write(request, base, self._backend, self._catalog, settings, deltas)
        made = self._publish(request, base, name, commit, stored, epoch)
        if made.stored is None:
            return commit_of(made.name, made.commit)
        return committing.result(name, commit, request, stored)

    def _publish(
        self, request: Request, base: Base, name: ObjectId, commit: objects.Commit, stored: Stored, epoch: int
    ) -> Published:
        """Make a commit that is stored the branch's tip, unless an equal one is there already."""
        self._check_in_place()
        equal = None if request.unless_in is None else self._equal(commit, request.unless_in)
        if equal is not None:
            return equal
        step = "" if request.step is None else f" step {request.step}"
        root = self._branches.advance(base, name, epoch, f"commit {base.branch}{step}")
        self.note_where(name)
        self._apply_policy(base.branch, root)
        return Published(name, commit, stored)

    def _equal(self, commit: objects.Commit, rev: str) -> Published | None:
        """A commit in the history of `rev` that holds just what `commit` does, and lacks nothing of it."""
        revisions, root = self._revisions(), self._roots.current()
        absent = self._roots.absent(root)
        for name, other in revisions.history(revisions.resolve(rev, root), root):
            if objects.same_content(commit, other) and is_whole(name, other, absent):
                self._log.confirm(root.seq)
                return Published(name, other, None)
        return None

    def _describe(self, tip: ObjectId) -> str:
        """How much a branch holds, for errors."""
        history = list(self._revisions().history(tip, self._roots.current()))
        last = "" if history[0][1].step is None else f" (last step {history[0][1].step})"
        return f"{len(history)} commit{'s' if len(history) > 1 else ''}{last}"

    # -- with others --------------------------------------------------------------------------------------------

    def _finish(self, joint: JointCommit, before: ObjectId | None) -> Commit:
        """This rank's part of a commit by many, which all of them then hold for what they last committed."""
        try:
            commit = joint.run()
        except OSError as error:
            raise _not_made(joint.branch, error) from error
        if commit.branch is not None:
            self._branches.adopt(commit.branch, ObjectId(bytes.fromhex(commit.id)), before)
        return commit

    def _host(self, settings: WriterSettings) -> Host:
        return Host(
            store=self.identity.id,
            backend=self._backend,
            catalog=self._catalog,
            settings=settings,
            roots=self._roots,
            memory=self._memory,
            base_of=self._base_of,
            publish=self._publish,
            relatives=self._relatives,
            objects=self._objects,
        )

    # -- of parts that another program leads, see `gathered` ------------------------------------------------------

    def begin_parts(self, **options: Unpack[CommitOptions]) -> Begun:
        """Begin a commit of parts. Unless `parent` says another revision, the branch's tip is its parent."""
        started = time.perf_counter()
        committing.check_options(options)
        with self._turn:
            self._ready_to_commit()
            branch = options.get("branch", "main")
            if options.get("parent") is None and (RefKind.BRANCH, branch) in self._roots.current().refs:
                options["parent"] = branch
            return Begun(committing.request({}, options, started), self._base_of(options))

    def part_writer(self, codec: CodecName = "auto") -> PartWriter:
        """Stores what this process holds of a commit of parts."""
        self._ready()
        return PartWriter(self._host(self._settings), codec)

    def commit_parts(self, begun: Begun, build: Callable[[Put], Any], parts: Sequence[Took], raw: int) -> Commit:
        """Publish a commit of parts, all of which are durable."""
        self._ready()
        return gathered.publish(self._host(self._settings), self._check_whole, begun, build, parts, raw)


def _wants_deltas(request: Request) -> bool:
    return request.delta == "parent" and request.codec in DELTA_CODECS


def _no_one_waits(error: BaseException) -> None:
    return


def _not_made(branch: str, error: OSError) -> CasError:
    return CasError(f"the commit on {branch} was not made: {error}; the branch is as it was, commit again")
