"""What the model of fenced condemn consists of: packs and rows, the log, the actors, and how objects decode.

Nothing here imports the store: this is a model of the protocol, small enough to be searched whole. A state is the
packs with their rows, which of them still exist, the log, and where each actor stands. Sets of packs and sets of
objects are bit masks. A crash is an actor that takes no further step, which every search contains; a collector may
also be started anew in any of its states, and a power loss ends all actors at once.

Choices that a clock or a machine makes are free here, so no proof leans on them: a collector may condemn any part of
the packs that it does not need (min-age only ever spares packs) and lets the undo window begin at any record that
the floor allows; a writer's index lacks new packs, or still holds deleted ones, as long as it likes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Literal, NamedTuple

NONE = -1
WHOLE = 99  # more than any chain: every row of the object will do

Slip = Literal[
    "age only", "no fence", "reuse K", "shortened lists", "D without closure", "D without base chains",
    "absent by tree id", "no undo floor", "closure not recomputed", "new record after an ambiguous reply",
    "acknowledge a read record", "publish on a read record", "delete on a read record", "base of any chain",
    "inherit from a pruned tip", "parent not checked", "no rescue", "repack by its first survey",
    "pick without chains",
]  # fmt: skip


class Row(NamedTuple):
    """One stored copy of an object: whole, or a delta that any row of `base` with a shorter chain decodes."""

    object: int
    base: int = NONE
    chain: int = 0


class Record(NamedTuple):
    """One root. `refs` is the commit of each branch, `lists` every pack that was ever condemned, `by` the write id.

    `floor` is the oldest record that undo may go to. Records below it are cut down to their write id.
    """

    refs: tuple[int, ...] = ()
    lists: int = 0
    epoch: int = 0
    absent: frozenset[tuple[int, int]] = frozenset()
    floor: int = 0
    by: int = NONE


Packs = tuple[tuple[Row, ...], ...]
Log = tuple[Record, ...]
HOLE = Record(by=-2)  # where a power loss took a record and left a later one


class Writer(NamedTuple):
    """A process with one update to publish. `read` is the root that it read last, number `root` of the log.

    `known` is its index, as packs; `packs` is D; `covered` the objects that D was made for; `target` where undo goes.
    """

    phase: str
    known: int = 0
    root: int = 0
    read: Record = Record()
    packs: int = 0
    covered: int = 0
    target: int = NONE


class Collector(NamedTuple):
    """`listed` is what G0 saw, `packs` is K, later the packs to delete; `runs` is how often it may still begin.

    `sources` are the packs that a repack has stored anew.
    """

    phase: str
    runs: int
    listed: int = 0
    root: int = 0
    read: Record = Record()
    packs: int = 0
    floor: int = 0
    sources: int = 0


class State(NamedTuple):
    """All there is. `requests` are records sent and not yet arrived; `durable` counts records that outlive power."""

    packs: Packs
    exist: int
    log: Log
    actors: tuple[Writer | Collector, ...]
    requests: frozenset[tuple[int, Record]] = frozenset()
    durable: int = 0
    powered: bool = True


class Label(NamedTuple):
    """Why a state follows another: a sentence with `{packs}` and `{n}` in it."""

    text: str
    packs: int = 0
    n: int = 0


Steps = Iterator[tuple[Label, State]]


def put(state: State, i: int, actor: Writer | Collector) -> State:
    return state._replace(actors=(*state.actors[:i], actor, *state.actors[i + 1 :]))


@dataclass(frozen=True, eq=False)
class World:
    """The objects of a scenario and what each names: a tree its blocks and trees, a commit its tree and parents."""

    names: tuple[str, ...]
    children: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(*lines: str) -> World:
        """From lines such as `t=a b`; upper-case names are commits, and what is named stands before."""
        names = tuple(line.split("=")[0] for line in lines)
        return World(names, tuple(tuple(names.index(n) for n in line.partition("=")[2].split()) for line in lines))

    def find(self, name: str) -> int:
        """The object of that name; `-` is none."""
        return NONE if name == "-" else self.names.index(name)

    def show(self, item: int) -> str:
        return "" if item == NONE else self.names[item]

    def is_commit(self, item: int) -> bool:
        return self.names[item].isupper()


@dataclass(frozen=True)
class Job:
    """What a writer wants: `commit` on a branch at `parent`, `point` a branch to an old commit, `undo`, `delete` a
    branch, `prune` the object of a commit, or `restore` it. `deltas` are (object, base) for what it writes."""

    kind: Literal["commit", "point", "undo", "delete", "prune", "restore"]
    branch: int = 0
    commit: int = NONE
    parent: int = NONE
    item: int = NONE
    deltas: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Scenario:
    """What a search starts from and which features it has.

    history: undo windows begin anywhere from the floor up, else collectors expire now. stale: indexes may lack packs.
    spares: K is any part of what is not needed, else all of it. losses: replies are lost or delayed. power: power
    may fail once. repack: collectors copy what is live in a pack. anew: they repack, and these are the rows that they
    make. simple: writers start again whenever the epoch has moved.
    damaged: a live object's only row is condemned at the start, by some earlier fault.
    """

    world: World
    packs: Packs
    log: Log
    jobs: tuple[Job, ...]
    runs: tuple[int, ...]
    deleted: int = 0
    history: bool = False
    stale: bool = False
    spares: bool = True
    losses: bool = False
    power: bool = False
    repack: bool = False
    anew: tuple[Row, ...] = ()
    simple: bool = False
    damaged: bool = False


def bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def parts(mask: int) -> Iterator[int]:
    """Every part of a set but the empty one."""
    items = list(bits(mask))
    for size in range(len(items), 0, -1):
        for some in combinations(items, size):
            yield sum(1 << item for item in some)


@cache
def closure(
    world: World, tops: tuple[int, ...], absent: frozenset[tuple[int, int]], skip: int = 0, stop: int = 0,
    by_tree: bool = False,
) -> int:  # fmt: skip
    """The objects reachable from `tops`, not through `skip`, nor an absent pair's object on its commit's way down.

    The two slips: `stop` are objects below which nobody looks, `by_tree` forgets whose the absent object is.
    """
    seen = set()
    todo = [(NONE, top) for top in tops]
    while todo:
        commit, item = todo.pop()
        gone = (commit, item) in absent or (by_tree and any(item == other for _, other in absent))
        if world.is_commit(item):
            commit = item
        if gone or (commit, item) in seen or skip >> item & 1:
            continue
        seen.add((commit, item))
        if not stop >> item & 1:
            todo += [(commit, child) for child in world.children[item]]
    return sum(1 << item for item in {item for _, item in seen})


@cache
def ways(packs: Packs, usable: int, item: int, below: int = WHOLE, free: bool = False) -> frozenset[tuple[int, int]]:
    """Each way to decode an object from usable packs, through rows with chains under `below`: (its packs, its chain).

    `free` is the slip that takes a base row of any chain.
    """
    found = set()
    for pack in bits(usable):
        for row in packs[pack]:
            if row.object != item or row.chain >= below:
                continue
            if row.base == NONE:
                found.add((1 << pack, row.chain))
            elif free:
                bases = [p for p in bits(usable) if any(other.object == row.base for other in packs[p])]
                found |= {(1 << pack | 1 << base, row.chain) for base in bases}
            else:
                found |= {(1 << pack | more, row.chain) for more, _ in ways(packs, usable, row.base, row.chain)}
    return frozenset(found)


@cache
def decodable(packs: Packs, usable: int, free: bool = False) -> int:
    """The objects that decode from usable packs."""
    items = {row.object for pack in bits(usable) for row in packs[pack]}
    return sum(1 << item for item in items if ways(packs, usable, item, WHOLE, free))


@cache
def picks(packs: Packs, usable: int, items: int, bases: bool = True, free: bool = False) -> frozenset[int]:
    """Every set of packs that one row for each object, with its base chain, may touch. Empty if one has no row."""
    found = {0}
    for item in bits(items):
        masks = {mask for mask, _ in ways(packs, usable, item, WHOLE, free)}
        if masks and not bases:  # the slip: the row's own pack only
            masks = {1 << pack for pack in bits(usable) if any(row.object == item for row in packs[pack])}
        found = {one | other for one in found for other in masks}
    return frozenset(found)
