"""Bringing refs, and all that they need, from one store to another: the write order of every transfer.

1. Read the target's root. 2. Find what the target lacks, see `wanted`. 3. Send it, verified: packs, durable. 4. Publish
the refs, from a root of the very same epoch: what was known to be there is in no pack that was condemned since.
Else from the start, which costs little: what was sent is there. A crash anywhere leaves the target's refs as they were,
and packs that the next run finds.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import absence, lists, soundness
from .block import ID_SIZE, ObjectId, short
from .branches import Overtaken, check_ref
from .errors import CasError, Corrupt, Exists, NotFound, RefConflict
from .lists import ListId, What
from .log import Record
from .pack import Location
from .refs import Ref, RefKind, Refs, check_name
from .remotes import check_not_remote, make_way
from .sides import Side, Sides
from .transfer import Progress, rows_to_send, send
from .wanted import Scope, Wanted, ancestors, find_wanted

_log = logging.getLogger("cas")


@dataclass(frozen=True, slots=True)
class Goal:
    """What a ref of the target is to name. `force` moves it from anywhere. `is_asked` makes it an error where it may
    not be moved; else it is left as it is."""

    ref: Ref
    commit: ObjectId
    force: bool = False
    is_asked: bool = True


@dataclass(frozen=True, slots=True)
class Moved:
    """A ref that was moved: `kind` is branch, tag or tracking, `old` and `new` are hex or None where there is none."""

    kind: str
    name: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class Synced:
    """What a transfer did.

    `refs` were moved; those `left` were not, though they stand elsewhere on the other side. `objects` were sent, in
    all `sent` stored bytes; of what the refs need `present` objects were there already, of `saved` stored bytes.
    """

    refs: tuple[Moved, ...] = ()
    left: tuple[Moved, ...] = ()
    objects: int = 0
    sent: int = 0
    present: int = 0
    saved: int = 0
    seconds: float = 0.0


Plan = Callable[[Record, Record], Sequence[Goal]]
"""From the roots of source and target to what is to be moved."""


class _Nothing(Exception):
    """There is nothing to publish."""


@dataclass(slots=True)
class Sync:
    """One transfer. `rate` in bytes a second; `why` stands in the target's log; `otherwise` says what to do where a
    branch would have to go back. What `is_received` comes from a store that may lie."""

    source: Side
    target: Side
    plan: Plan
    why: str
    otherwise: str
    scope: Scope = field(default_factory=Scope)
    threads: int = 1
    rate: float | None = None
    progress: Progress = lambda objects, of_objects, nbytes, of_bytes: None
    is_received: bool = True
    says_lacking: bool = True

    def run(self) -> Synced:
        """Do it; the refs are moved durably on return, all of them or none."""
        started = time.perf_counter()
        done = Synced()
        while True:
            sides = Sides(self.source, self.target, self.source.roots.current(), self.target.roots.current())
            try:
                return replace(self._attempt(sides, done), seconds=time.perf_counter() - started)
            except Overtaken as error:
                done = error.args[0] if error.args else done
            except NotFound:  # a collection may have moved it
                epochs = self.source.roots.current().epoch, self.target.roots.current().epoch
                if epochs == (sides.sent_from.epoch, sides.sent_to.epoch):
                    raise
                self.source.catalog.refresh()

    def _attempt(self, sides: Sides, done: Synced) -> Synced:
        goals = self.plan(sides.sent_from, sides.sent_to)
        judged = _Judged(sides, goals, self.otherwise)
        if not judged.moves and not self.scope.widens:
            if self.says_lacking and self.scope == Scope():
                self._tell_lacking(sides, goals)
            return replace(done, left=judged.left)
        tips = [goal.commit for goal in (goals if self.scope.widens else judged.moves)]
        with _of(self.source):
            wanted = find_wanted(tips, sides, self.scope)
            groups = rows_to_send(wanted.missing, self.source, self.target)
            objects, nbytes = send(groups, self.source, self.target, self.threads, self.rate, self.progress)
            if self.is_received:
                self._check_sound(sides, wanted, groups)
        done = replace(
            done,
            objects=done.objects + objects,
            sent=done.sent + nbytes,
            present=max(0, wanted.present - done.objects),
            saved=max(0, wanted.saved - done.sent),
        )
        try:
            moved, left = self._publish(sides, goals, wanted)
        except Overtaken as error:
            raise Overtaken(done) from error
        for commit in {goal.new for goal in moved if goal.new is not None}:
            self.target.note_where(ObjectId(bytes.fromhex(commit)), sides)
        return replace(done, refs=moved, left=left)

    def _tell_lacking(self, sides: Sides, goals: Iterable[Goal]) -> None:
        """Say which of the wanted commits are there in part, and stay so: else `up to date` would be a lie."""
        for commit in dict.fromkeys(goal.commit for goal in goals):
            if sides.had.get(commit, absence.NOTHING) - sides.lacking.get(commit, absence.NOTHING):
                _log.warning(
                    "%s lacks a part of commit %s, or what came before it, which %s has: it comes with --only . "
                    "--depth 0 (only='.', depth=0)",
                    *(self.target.url, short(commit), self.source.url),
                )

    def _check_sound(self, sides: Sides, wanted: Wanted, groups: Iterable[Iterable[Location]]) -> None:
        """`Corrupt` where what came fits together badly."""
        pairs = {lists.pair(commit, name) for commit in wanted.commits for name in sides.had.get(commit, ())}
        left_out: dict[ObjectId, set[ObjectId]] = {}
        for item in (pairs - wanted.drop) | wanted.add:
            left_out.setdefault(ObjectId(item[:ID_SIZE]), set()).add(ObjectId(item[ID_SIZE:]))
        absent = {commit: frozenset(names) for commit, names in left_out.items()}
        wanted.sizes.update((place.row.id, place.row.raw) for group in groups for place in group)
        near = self.source if self.target.backend.is_remote else self.target
        soundness.check(wanted.commits, near.objects, absent, wanted.sizes, self.target.catalog)

    def _publish(
        self, sides: Sides, goals: Sequence[Goal], wanted: Wanted
    ) -> tuple[tuple[Moved, ...], tuple[Moved, ...]]:
        before, judged = sides.sent_to, _Judged(sides, [], "")

        def change(root: Record) -> Mapping[str, Any]:
            nonlocal judged
            if root.epoch != before.epoch:
                raise Overtaken
            if root.seq != before.seq and (wanted.add or wanted.drop):
                raise Overtaken  # what is absent may have changed
            judged = _Judged(replace(sides, sent_to=root), goals, self.otherwise)
            if not judged.moves and not wanted.add and not wanted.drop:
                raise _Nothing
            return {"refs": judged.refs(), "absent": self._absent(root, wanted)}

        with contextlib.suppress(_Nothing):
            self.target.roots.update(change, self.why)
        return judged.moved, judged.left

    def _absent(self, root: Record, wanted: Wanted) -> tuple[ListId, ...]:
        """The absent lists with what changes in them."""
        held: tuple[ListId, ...] = root.absent
        drop = wanted.drop - wanted.add
        if drop:
            pairs = ((ObjectId(item[:ID_SIZE]), ObjectId(item[ID_SIZE:])) for item in drop)
            held = absence.without(self.target.backend, held, pairs)
        return lists.extend(self.target.backend, held, What.ABSENT, wanted.add) if wanted.add else held


@contextlib.contextmanager
def _of(source: Side) -> Iterator[None]:
    """Say which store it is whose objects are missing or bad."""
    try:
        yield
    except (NotFound, Corrupt) as error:
        raise type(error)(f"store {source.url}: {error}") from error


class _Judged:
    """What becomes of goals under one root of the target: which move, and which are left. A goal that was asked for and
    may not move raises."""

    def __init__(self, sides: Sides, goals: Iterable[Goal], otherwise: str) -> None:
        self._sides = sides
        self._otherwise = otherwise
        self._refs = dict(sides.sent_to.refs)
        self.moves: list[Goal] = []
        self._left: list[Goal] = []
        for goal in goals:
            if self._refs.get(goal.ref) != goal.commit:
                self._judge(goal)

    def _judge(self, goal: Goal) -> None:
        try:
            self._check(goal)
        except CasError:
            if goal.is_asked:
                raise
            self._left.append(goal)
        else:
            self.moves.append(goal)
            self._refs[goal.ref] = goal.commit

    def _check(self, goal: Goal) -> None:
        kind, name = goal.ref
        old = self._refs.get(goal.ref)
        if old is None:
            check_name(name, kind.name.lower())
            if kind is RefKind.TRACKING:
                self._refs = make_way(self._refs, name)
            check_not_remote(self._sides.sent_to, goal.ref)
            check_ref(self._refs, goal.ref)
        elif not goal.force:
            self._check_move(kind, name, old, goal.commit)

    def _check_move(self, kind: RefKind, name: str, old: ObjectId, new: ObjectId) -> None:
        url = self._sides.target.url
        if kind is RefKind.TAG:
            raise Exists(
                f"tag {name} of {url} is at {short(old)}, not at {short(new)}: tags do not move; use another name, or "
                "force it"
            )
        is_forward = descends(new, old, self._sides)
        if not is_forward:
            known = ", as far as the history goes, which was cut by a depth" if is_forward is None else ""
            raise RefConflict(
                f"branch {name} of {url} is at {short(old)}, which {short(new)} does not descend from{known}; "
                f"{self._otherwise}"
            )

    def refs(self) -> Refs:
        """The refs with all that moves moved."""
        return self._refs

    @property
    def moved(self) -> tuple[Moved, ...]:
        return tuple(self._moved(goal) for goal in self.moves)

    @property
    def left(self) -> tuple[Moved, ...]:
        return tuple(self._moved(goal) for goal in self._left)

    def _moved(self, goal: Goal) -> Moved:
        kind, name = goal.ref
        old = self._sides.sent_to.refs.get(goal.ref)
        return Moved(kind.name.lower(), name, None if old is None else old.hex(), goal.commit.hex())


def descends(new: ObjectId, old: ObjectId, sides: Sides) -> bool | None:
    """Whether `old` is an ancestor of `new`; None where neither store knows enough of the history."""
    is_cut = False

    def parents(name: ObjectId) -> Iterator[ObjectId]:
        nonlocal is_cut
        left_out = sides.lacking.get(name, absence.NOTHING) | sides.had.get(name, absence.NOTHING)
        for parent in sides.commit(name).parents:
            if parent == old or parent not in left_out or sides.has(parent):
                yield parent
            else:
                is_cut = True

    return old in ancestors([new], parents) or (None if is_cut else False)
