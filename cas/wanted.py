"""What a target lacks of some commits: the walk from them down to blocks, over two stores.

It stops at commits that the target's refs lead to, for what these need is there. All else is followed, and the target's
index is asked whether it has it: an object that is there may still lack what it names, since a transfer that was cut
off leaves objects that nothing leads to.

What is not to be sent becomes absent at the target, as pairs (commit, object). What a commit lacks at the source it
lacks at the target too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .absence import NOTHING, parents_of
from .block import Kind, ObjectId
from .lists import pair
from .objects import Commit
from .pack import Location
from .partly import Chosen, Ids, share_of
from .paths import Patterns
from .reach import Edge, needs, needs_of_state
from .sides import Sides

_BATCH = 1 << 14
"""Names that an index is asked for at a time."""


@dataclass(frozen=True, slots=True)
class Scope:
    """How much of the wanted commits goes over.

    `only`: of their states what matches these patterns; `.` means everything. `depth`: so many commits from each wanted
    one on; 0 means all. None sends all. With `widens` as much comes of commits that are at the target already and lack
    some of it there; else these are left alone.
    """

    only: tuple[str, ...] | None = None
    depth: int | None = None
    widens: bool = False

    @property
    def chosen(self) -> Chosen | None:
        if self.only is None:
            return None
        return Chosen(Patterns(self.only), not {".", "**"}.isdisjoint(self.only))


@dataclass(slots=True)
class Wanted:
    """What the target needs: it lacks what is `missing` and has so many objects `present`, of `saved` stored bytes.

    `add` and `drop` are pairs of its absent lists. `commits` are those of whose states some may come. `sizes` are the
    raw bytes of blocks that are present.
    """

    missing: dict[Kind, list[ObjectId]] = field(default_factory=lambda: {kind: [] for kind in Kind})
    commits: list[ObjectId] = field(default_factory=list)
    sizes: dict[ObjectId, int] = field(default_factory=dict)
    present: int = 0
    saved: int = 0
    add: set[bytes] = field(default_factory=set)
    drop: set[bytes] = field(default_factory=set)


def find_wanted(tips: Iterable[ObjectId], sides: Sides, scope: Scope) -> Wanted:
    """What the target needs so that these commits can be named there."""
    walk = _Walk(sides, scope)
    walk.visit_commits(tips)
    walk.visit_states()
    return walk.wanted


def ancestors(tips: Iterable[ObjectId], parents: Callable[[ObjectId], Iterable[ObjectId]]) -> Iterator[ObjectId]:
    """These commits and all from which they descend, once each: the nearest first."""
    queue = deque(dict.fromkeys(tips))
    seen = set(queue)
    while queue:
        name = queue.popleft()
        yield name
        fresh = [parent for parent in parents(name) if parent not in seen]
        seen.update(fresh)
        queue.extend(fresh)


class _AtTarget:
    """The commits that the target's refs lead to."""

    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self._tips = set(sides.sent_to.refs.values())
        self._all: set[ObjectId] | None = None

    def __contains__(self, name: ObjectId) -> bool:
        if name in self._tips:
            return True
        if not self._tips or not self._sides.target.catalog.known([name]):
            return False
        if self._all is None:  # not before it must be: it takes the whole history
            self._all = set(ancestors(self._tips, self._parents))
        return name in self._all

    def _parents(self, name: ObjectId) -> Iterable[ObjectId]:
        return parents_of(name, self._sides.commit(name), self._sides.had)


class _Walk:
    def __init__(self, sides: Sides, scope: Scope) -> None:
        self.wanted = Wanted()
        self._sides = sides
        self._scope = scope
        self._chosen = scope.chosen
        self._at_target = _AtTarget(sides)
        self._lacking, self._had = sides.lacking, sides.had
        self._new: dict[ObjectId, Commit] = {}
        self._partial: dict[ObjectId, Commit] = {}
        """Commits at the target that lack something there which this transfer may bring."""
        self._cut: dict[ObjectId, set[ObjectId]] = {}
        """By commit, the parents that do not come with it."""
        self._judged: dict[Kind, set[ObjectId]] = {kind: set() for kind in Kind}

    # -- history ------------------------------------------------------------------------------------------------

    def visit_commits(self, tips: Iterable[ObjectId]) -> None:
        """Find the commits that are new to the target, nearest first."""
        queue = deque((tip, 1) for tip in dict.fromkeys(tips))
        seen = {tip for tip, _ in queue}
        widens = bool(self._had) and self._scope.widens
        while queue:
            name, number = queue.popleft()
            is_there = name in self._at_target
            if is_there and not widens:
                continue
            commit = self._sides.commit(name)
            if not is_there:
                self._new[name] = commit
            elif self._chosen is not None and self._had.get(name, NOTHING) - set(commit.parents):
                self._partial[name] = commit
            for parent in self._parents(name, commit, is_there, number):
                if parent not in seen:
                    seen.add(parent)
                    queue.append((parent, number + 1))
        for name, parents in self._cut.items():
            self._note(name, {p for p in parents if p not in self._new and p not in self._at_target}, set())

    def _parents(self, name: ObjectId, commit: Commit, is_there: bool, number: int) -> Iterator[ObjectId]:
        """Those that the walk goes on to from the commit that is `number` commits away from nothing."""
        depth, had = self._scope.depth, self._had.get(name, NOTHING) if is_there else frozenset(commit.parents)
        is_end = bool(depth) and number >= (depth or 0)
        for parent in dict.fromkeys(commit.parents):
            stays_out = parent in had and (is_end or parent in self._lacking.get(name, NOTHING))
            if stays_out and not is_there:
                self._cut.setdefault(name, set()).add(parent)
            elif is_there and parent in had and not stays_out and depth is not None:
                self._note(name, set(), {parent})
                yield parent
            elif not is_end and not (is_there and parent in had):
                yield parent

    # -- states -------------------------------------------------------------------------------------------------

    def visit_states(self) -> None:
        """Find what the target lacks of the states of these commits."""
        self._judge(Kind.COMMIT, self._new)
        self.wanted.commits = [*self._new, *self._partial]
        whole: list[Edge] = []
        for name, commit in self._new.items():
            if self._chosen is None and not self._lacking.get(name, NOTHING) - set(commit.parents):
                whole += needs_of_state(commit)
            else:
                self._visit_partly(name, commit, NOTHING, True)
            stale = self._had.get(name, NOTHING)  # of a time when the target had it
            self.wanted.drop |= {pair(name, other) for other in stale} - self.wanted.add
        for name, commit in self._partial.items():
            self._visit_partly(name, commit, self._had[name], False)
        self._follow(whole)

    def _visit_partly(self, name: ObjectId, commit: Commit, had: Ids, is_new: bool) -> None:
        share = share_of(commit, self._sides, self._lacking.get(name, NOTHING), had, is_new, self._chosen)
        self._note(name, share.add, share.drop)
        for kind in Kind:
            self._judge(kind, [reached for of, reached in share.reached if of is kind])

    def _note(self, name: ObjectId, add: set[ObjectId], drop: set[ObjectId]) -> None:
        self.wanted.add.update(pair(name, other) for other in add)
        self.wanted.drop.update(pair(name, other) for other in drop)

    def _follow(self, edges: Iterable[Edge]) -> None:
        """Judge these and all below them, level by level, so that the index is asked for many names at once."""
        followed: set[Edge] = set()
        level = set(edges)
        while level:
            followed |= level
            for kind in Kind:
                self._judge(kind, [name for of, name in level if of is kind])
            below: set[Edge] = set()
            for edge in level:
                below.update(self._needs(edge, followed))
            level = below

    def _needs(self, edge: Edge, followed: set[Edge]) -> Iterator[Edge]:
        """What an object names; blocks name nothing, so they are judged at once and kept no longer."""
        if edge[0] is Kind.LIST:
            self._judge(Kind.BLOCK, self._sides.block_list(edge[1]))
            return
        for child in needs(edge, self._sides, {}):
            if child not in followed:
                yield child

    def _judge(self, kind: Kind, names: Iterable[ObjectId]) -> None:
        """Note whether the target has these."""
        judged, catalog = self._judged[kind], self._sides.target.catalog
        fresh = [name for name in dict.fromkeys(names) if name not in judged]
        judged.update(fresh)
        for at in range(0, len(fresh), _BATCH):
            part = fresh[at : at + _BATCH]
            known = catalog.known(part)
            self.wanted.missing[kind] += [name for name in part if name not in known]
            self._note_present(kind, catalog.locate(known))

    def _note_present(self, kind: Kind, found: Mapping[ObjectId, Sequence[Location]]) -> None:
        self.wanted.present += len(found)
        self.wanted.saved += sum(min(place.row.stored for place in places) for places in found.values())
        if kind is Kind.BLOCK:
            self.wanted.sizes.update((name, places[0].row.raw) for name, places in found.items())
