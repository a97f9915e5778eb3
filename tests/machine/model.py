"""What a store must hold, in plain Python: every root there was, and how the next one may differ from it.

The log says in which order operations took effect. `Model.follow` takes up new records one by one: each must be what
one of the operations in flight makes of the root before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cas.block import ObjectId
from cas.log import Record
from cas.pruning import policies
from cas.refs import Ref, RefKind
from cas.retention import decode_policy

from .states import Contents


@dataclass(frozen=True, slots=True)
class Root:
    """What a record says: refs, what commits keep by branch, whose states are gone, and how far undo goes back."""

    refs: Mapping[Ref, ObjectId]
    keeps: Mapping[str, int | None]
    pruned: frozenset[ObjectId]
    floor: int

    def tip(self, branch: str) -> ObjectId | None:
        return self.refs.get((RefKind.BRANCH, branch))

    @classmethod
    def of(cls, record: Record, pruned: frozenset[ObjectId]) -> Root:
        keeps = {branch: decode_policy(node).last for branch, node in policies(record).items()}
        return cls(dict(record.refs), keeps, pruned, record.floor)


class Change:
    """An operation in flight. `must`: once it is acknowledged, its record must be there."""

    def made(self, model: Model, found: Root) -> Root | None:
        """The root that it leads to from the model's newest; None if it publishes none. `found` is what was read."""
        raise NotImplementedError


@dataclass(frozen=True)
class Commit(Change):
    branch: str
    parent: ObjectId | None
    contents: Contents

    def made(self, model: Model, found: Root) -> Root | None:
        fresh = found.tip(self.branch)
        if fresh is None or fresh in model.contents or model.head.tip(self.branch) != self.parent:
            return None
        return replace(model.head, refs={**model.head.refs, (RefKind.BRANCH, self.branch): fresh})


@dataclass(frozen=True)
class Move(Change):
    """To no commit: the ref is deleted."""

    ref: Ref
    commit: ObjectId | None

    def made(self, model: Model, found: Root) -> Root | None:
        refs = {ref: commit for ref, commit in model.head.refs.items() if ref != self.ref}
        return replace(model.head, refs=refs if self.commit is None else {**refs, self.ref: self.commit})


@dataclass(frozen=True)
class Prune(Change):
    branch: str
    keep: int

    def made(self, model: Model, found: Root) -> Root | None:
        return replace(model.head, pruned=model.head.pruned | model.dropped(self.branch, self.keep))


@dataclass(frozen=True)
class Keep(Change):
    """A policy for a branch, or none any more."""

    branch: str
    keep: int | None

    def made(self, model: Model, found: Root) -> Root | None:
        keeps = {branch: keep for branch, keep in model.head.keeps.items() if branch != self.branch}
        return replace(model.head, keeps=keeps if self.keep is None else {**keeps, self.branch: self.keep})


@dataclass(frozen=True)
class Undo(Change):
    seq: int | None

    def made(self, model: Model, found: Root) -> Root | None:
        target = model.undo_target(self.seq)
        if target is None:
            return None
        return replace(model.head, refs=target.refs, keeps=target.keeps)


@dataclass(frozen=True)
class Collect(Change):
    """`since` was the newest root when it began: without a window, undo goes back to that or to a later one."""

    expire: float
    since: int

    def made(self, model: Model, found: Root) -> Root | None:
        if self.expire:
            return model.head
        oldest = max(self.since, model.head.floor)
        return replace(model.head, floor=found.floor if oldest <= found.floor <= model.seq else model.seq)


@dataclass(frozen=True)
class Repack(Change):
    """It may publish records, which change nothing that this model knows."""

    def made(self, model: Model, found: Root) -> Root | None:
        return model.head


@dataclass
class Model:
    """All roots so far, and what the commits hold that were ever made."""

    roots: list[Root]
    contents: dict[ObjectId, Contents] = field(default_factory=dict)
    parents: dict[ObjectId, ObjectId | None] = field(default_factory=dict)

    @property
    def seq(self) -> int:
        return len(self.roots)

    @property
    def head(self) -> Root:
        return self.roots[-1]

    def history(self, commit: ObjectId | None) -> Iterator[ObjectId]:
        """A commit and those before it, newest first."""
        while commit is not None:
            yield commit
            commit = self.parents[commit]

    def led_to(self, *roots: Root) -> set[ObjectId]:
        """Every commit that a ref of one of these roots leads to."""
        found: set[ObjectId] = set()
        for root in roots:
            for tip in root.refs.values():
                for commit in self.history(tip):
                    if commit in found:
                        break
                    found.add(commit)
        return found

    def undoable(self) -> list[Root]:
        """The roots that undo may go back to."""
        return self.roots[self.head.floor - 1 :]

    def undo_target(self, seq: int | None) -> Root | None:
        if seq is not None:
            return self.roots[seq - 1] if self.head.floor <= seq <= self.seq else None
        changed = (r for r in reversed(self.undoable()) if (r.refs, r.keeps) != (self.head.refs, self.head.keeps))
        return next(changed, None)

    def dropped(self, branch: str, keep: int) -> frozenset[ObjectId]:
        """The commits that lose their states when a branch keeps its last so many."""
        held = [commit for commit in self.history(self.head.tip(branch)) if commit not in self.head.pruned]
        named = set(self.head.refs.values())
        tip = self.head.tip(branch)
        return frozenset(commit for commit in held[keep:] if commit not in named and commit != tip)

    def follow(self, records: list[tuple[Record, frozenset[ObjectId] | None]], changes: list[Change]) -> list[Change]:
        """Take up new records; the changes that made none are left.

        With each record come the commits whose states are gone, None where that cannot be told any more.
        """
        left = list(changes)
        for record, pruned in records:
            found, change = self._explain(record, pruned, left)
            assert change is not None, (
                f"record {record.seq} ({record.update.why}) is {found}\nafter {self.head}\n, which none of {left} makes"
            )
            left.remove(change)
            if isinstance(change, Commit):
                left += self._take_up(change, found)
            self.roots.append(found)
        return left

    def _explain(
        self, record: Record, pruned: frozenset[ObjectId] | None, changes: list[Change]
    ) -> tuple[Root, Change | None]:
        """What the record says, and the change that made it."""
        found = Root.of(record, frozenset() if pruned is None else pruned)
        for change in changes:
            made = change.made(self, found)
            if made == found or (made is not None and pruned is None and made == replace(found, pruned=made.pruned)):
                return made, change
        return found, None

    def _take_up(self, change: Commit, found: Root) -> list[Change]:
        """A new commit, and the prune that the branch's policy has follow it."""
        fresh: Any = found.tip(change.branch)
        self.contents[fresh], self.parents[fresh] = change.contents, change.parent
        keep = found.keeps.get(change.branch)
        return [] if keep is None else [Prune(change.branch, keep)]
