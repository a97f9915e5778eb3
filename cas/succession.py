"""Which block each block of a history is best stored as a change of.

What the newest commit holds is whole, and a block that an older commit holds is a change of the one at the same place
in the commit that follows. A tip of another branch is a change of a tip that it resembles, if there is one, so that
it loads in two steps; the history below it follows it as any other.

Chain numbers are given from the oldest block on, which gets the highest: when the newest commit of now has become
history, there are lower ones left for it, and what was stored before stays as it is. A block for which none is left
is whole, and what is newer begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, takewhile

from .absence import is_pruned, parent_of
from .block import MAX_CHAIN, ObjectId
from .counterparts import Place, blocks_of
from .diff import pairs
from .dtypes import DTYPES, DType
from .leaves import TensorLeaf, tensors_of
from .paths import Path
from .present import hollow
from .reader import Objects
from .refs import RefKind, Refs
from .roots import Absent

Subject = tuple[Path, DType]
"""The tensor that a block was first found in."""
Nearest = Callable[[ObjectId, list[TensorLeaf], list[ObjectId]], ObjectId | None]
"""Which of some commits resembles the one with these tensors most, if any does."""
_LINE = 1000
"""First parents of a tip among which the tip that it went off from is looked for."""
KIN_CHAIN = 1


@dataclass(slots=True)
class Heir:
    """What is planned for a block: a change of `base` with a `chain` number, or whole if that is 0. `kin` if a tip
    holds it."""

    subject: Subject
    base: ObjectId | None
    kin: bool
    chain: int = 0

    @property
    def is_whole(self) -> bool:
        return not self.chain


@dataclass(slots=True)
class Succession:
    """The plan for the `wanted` blocks and those of tips; others are only what these may lean on. Newest first."""

    objects: Objects
    absent: Absent
    nearest: Nearest
    wanted: Callable[[ObjectId], bool]
    heirs: dict[ObjectId, Heir] = field(default_factory=dict)
    _seen: set[ObjectId] = field(default_factory=set)
    _walked: set[ObjectId] = field(default_factory=set)
    _tips: list[ObjectId] = field(default_factory=list)

    def trace(self, refs: Refs) -> None:
        """Plan for all that these lead to by first parents. A tag within a history is a part of that."""
        branches = list(_ordered(refs, RefKind.BRANCH, self.objects))
        for tip in branches:
            if self._has_state(tip):
                self._tip(tip)
        for tip in branches:
            if self._has_state(tip):
                self._history(tip)
        for tip in _ordered(refs, RefKind.TAG, self.objects):
            if tip not in self._walked and self._has_state(tip):
                self._tip(tip)
                self._history(tip)

    def _has_state(self, name: ObjectId) -> bool:
        """Whether any of it is there."""
        return not is_pruned(name, self.objects.commit(name), self.absent)

    def _seen_from(self, name: ObjectId) -> Objects:
        return hollow(self.objects, name, self.absent)

    def _tip(self, tip: ObjectId) -> None:
        tensors = list(tensors_of(tip, self._seen_from(tip)))
        relative = self.nearest(tip, tensors, self._candidates(tip)) if self._tips else None
        there = (
            {} if relative is None else {leaf.path: leaf for leaf in tensors_of(relative, self._seen_from(relative))}
        )
        for leaf in tensors:
            self._place(leaf, there.get(leaf.path), kin=True)
        if relative is None:
            self._tips.append(tip)

    def _candidates(self, tip: ObjectId) -> list[ObjectId]:
        """The tips that are whole; that from which this one's history went off comes last, the best place."""
        forks = [name for name in islice(self._line(tip), _LINE) if name in self._tips]
        return [*(name for name in self._tips if name not in forks), *forks]

    def _line(self, tip: ObjectId) -> Iterator[ObjectId]:
        """Its first parents."""
        parent = parent_of(tip, self.objects.commit(tip), self.absent)
        while parent is not None:
            yield parent
            parent = parent_of(parent, self.objects.commit(parent), self.absent)

    def _history(self, tip: ObjectId) -> None:
        newer = tip
        self._walked.add(tip)
        for older in takewhile(lambda name: name not in self._walked, self._line(tip)):
            self._walked.add(older)
            if not self._has_state(older):
                continue
            sides = self._seen_from(older), self._seen_from(newer)
            trees = [
                held.tree(self.objects.commit(name).tree) for held, name in zip(sides, (older, newer), strict=True)
            ]
            for _, old, new in pairs(trees[0], trees[1], sides, None):
                if isinstance(old, TensorLeaf):
                    self._place(old, new if isinstance(new, TensorLeaf) else None, kin=False)
            newer = older

    def _place(self, leaf: TensorLeaf, other: TensorLeaf | None, kin: bool) -> None:
        """Plan for the blocks of one tensor as changes of another's."""
        dtype = DTYPES[leaf.dtype]
        fits = other is not None and other.dtype == leaf.dtype and other.shape[1:] == leaf.shape[1:]
        bases: dict[Place, ObjectId] = blocks_of(other.entry, self.objects) if other is not None and fits else {}
        for place, name in blocks_of(leaf.entry, self.objects).items():
            if name in self._seen:
                continue
            self._seen.add(name)
            if kin or self.wanted(name):
                self.heirs[name] = Heir((leaf.path, dtype), bases.get(place), kin)

    def number(self, limits: Mapping[ObjectId, int], there: Callable[[ObjectId], int | None]) -> None:
        """Give chain numbers. `limits` are the highest that what stays as it is allows for the blocks that it leans
        on; `there` is that of a block which itself stays."""
        limit = dict(limits)
        for name, heir in reversed(self.heirs.items()):
            most = min(limit.get(name, MAX_CHAIN), KIN_CHAIN if heir.kin else MAX_CHAIN)
            below = None if heir.base is None else 0 if heir.base in self.heirs else there(heir.base)
            heir.chain = 0 if below is None or below >= most else most
            if heir.chain and heir.base in self.heirs:
                limit[heir.base] = min(limit.get(heir.base, MAX_CHAIN), most - 1)


def _ordered(refs: Refs, kind: RefKind, objects: Objects) -> Iterator[ObjectId]:
    """The commits of refs of a kind: that of `main`, then the oldest first, as bases come before what leans on them."""
    main = refs.get((kind, "main"))
    if main is not None:
        yield main
    tips = {name for (each, _), name in refs.items() if each is kind} - {main}
    yield from sorted(tips, key=lambda name: (objects.commit(name).time, name))
