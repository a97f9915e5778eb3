"""The protocol of garbage collection, searched whole: no interleaving loses an object, and each known slip does.

A scenario is a store with two blocks, a few writers with one update each, and collectors. The searches visit every
state that it can reach. Together they cover writers, dedup of blocks and of trees, inheritance from the tip, deltas
with chains, duplicate rows, branches made, deleted and made again, undo, prune, restore, history stored anew with
other chains, rescue, stale indexes, lost and delayed replies, crashes, power loss and ageing. With `-s` the
counterexamples are printed.

Not modelled: the readers' grace, many ranks, packs that are not durable when they are used, chains beyond 3.
"""

from __future__ import annotations

from typing import Any

import pytest
from protocol.search import Property, search
from protocol.words import Job, Record, Row, Scenario, Slip, World

JOINED = World.of("a", "b", "t=a", "u=a b", "A=t", "B=u A")
"""Commit B, a child of A, has the block of A and another one, in a tree that is new."""
NESTED = World.of("a", "b", "t=a", "w=t b", "A=t", "B=w A")
"""The tree of B holds the whole tree of A."""
APART = World.of("a", "b", "t=a", "u=b", "A=t", "B=u A")
"""B shares nothing with A, but its block may be stored as a delta of A's."""
SHARED = World.of("a", "b", "t=a", "w=t b", "A=t", "B=w A", "C=t")
"""As nested, and another commit has the tree of A."""
ALONE = World.of("a", "b", "t=a", "u=b", "A=t", "B=u")
"""Two commits that have nothing to do with each other."""


def scenario(world: World, packs: str, log: str, jobs: str, runs: tuple[int, ...], **features: Any) -> Scenario:
    """A scenario from texts: the objects of each pack, the branches' commits in each record, what each writer does."""
    roots = [Record(tuple(world.find(word) for word in text.split())) for text in log.split(";")]
    roots[-1] = roots[-1]._replace(**features.pop("root", {}))
    tables = tuple(tuple(row(world, word) for word in text.split()) for text in packs.split(";"))
    writers = tuple(job(world, text) for text in jobs.split(";") if text)
    features["anew"] = tuple(row(world, word) for word in features.pop("anew", "").split())
    return Scenario(world, tables, tuple(roots), writers, runs, **features)


def row(world: World, word: str) -> Row:
    """`b` is the whole object, `b<a1` a delta of a at chain length 1."""
    item, _, base = word.partition("<")
    return Row(world.find(item), world.find(base[:-1]), int(base[-1])) if base else Row(world.find(item))


def job(world: World, text: str) -> Job:
    """Such as `commit B parent=A delta=ba`: b is written as a delta of a. Branches are 0 and 1."""
    kind, *words = text.split()
    named: dict[str, Any] = {} if not words or "=" in words[0] else {"commit": world.find(words.pop(0))}
    for key, _, value in (word.partition("=") for word in words):
        if key == "delta":
            named["deltas"] = ((world.find(value[0]), world.find(value[1])),)
        else:
            named[key] = int(value) if key == "branch" else world.find(value)
    return Job(kind, **named)  # type: ignore[arg-type]


PRUNED = {"absent": frozenset({(NESTED.find("A"), NESTED.find("t"))})}
CONDEMNED = {"lists": 1, "epoch": 1}
COMMIT = "commit B parent=A"
INHERIT = "commit B parent=A; prune A item=t"
REBASED = "commit B parent=A delta=ba"
DELTA = "commit B parent=A delta=ba; prune A item=t"
AGAIN = "delete branch=1; point B branch=1"
ORPHAN = "commit B branch=1; delete"
START = "commit B branch=1; delete branch=1"
BESIDE = "undo; commit B branch=1 parent=A"
REFILL = "prune A item=t; prune C item=t; restore A item=t"
BELOW = "commit B parent=A; prune A item=a; restore A item=a"
DIES, TWO = (2,), (1, 1)  # one collector that may die and start anew, or two

# Each with the number of its states: a model that degenerates has fewer. The packs are numbered from 0.
SCENARIOS = {
    "dedup": (56_945, scenario(JOINED, "a t A; b; b u", "A", COMMIT, TWO)),
    "two writers": (5_180, scenario(JOINED, "a t A; b u", "A -", "commit B parent=A; commit B branch=1", (1,))),
    "found tree": (91_636, scenario(NESTED, "a t; A; b; w", "A", INHERIT, DIES)),
    "base inherited": (16_318, scenario(APART, "a t; A; a", "A", DELTA, DIES)),
    "base inherited, two": (85_894, scenario(APART, "a t; A; a", "A", DELTA, TWO, spares=False)),
    "chains": (32_101, scenario(JOINED, "a t A; b<a1 u; a<b2; b", "A", COMMIT, DIES)),
    "cycle": (136, scenario(JOINED, "a; a<b2 t A; b<a1 u B; b", "B", "", TWO)),
    "pruned tip": (51_825, scenario(NESTED, "a t; A; b", "A", COMMIT, TWO, root=PRUNED)),
    "shared trees": (21_560, scenario(SHARED, "a t; A C; a; b w B", "B C", REFILL, TWO)),
    "restore": (13_821, scenario(APART, "a t; a; A; b u B", "B", "prune A item=t; restore A item=t", TWO)),
    "left out below": (26_315, scenario(NESTED, "a t; A; b; a", "A", BELOW, (1,))),
    "history cut": (790, scenario(JOINED, "a t A; b u B; a", "B", "prune B item=A; restore B item=A", DIES)),
    "branches": (13_702, scenario(ALONE, "a t A; b u B; b", "A B", AGAIN, TWO)),
    "undo": (13_821, scenario(ALONE, "a t A; b u B; a", "A; B; A", "undo; prune A item=t", DIES, history=True)),
    "undo beside a commit": (81_724, scenario(SHARED, "a t A C; b w B; a", "C A; - A", BESIDE, DIES, history=True)),
    "replies": (106_224, scenario(JOINED, "b u; a t A", "A -", START, DIES, losses=True)),
    "power": (70_272, scenario(JOINED, "a t A; b", "A", COMMIT, TWO, power=True, losses=True)),
    "power, same commit": (12_665, scenario(JOINED, "a t A; b", "A", f"{COMMIT}; {COMMIT}", (1,), power=True)),
    "power and undo": (854, scenario(ALONE, "a t A; b u B", "B; A", "undo", TWO, power=True, history=True)),
    "repack": (45_050, scenario(JOINED, "a t A; a b", "A", REBASED, DIES, repack=True)),
    "repack of bases": (11_630, scenario(JOINED, "a t; A; b<a1 u B", "B", "prune A item=t", DIES, repack=True)),
    "repack, two": (31_204, scenario(JOINED, "a t; A; b<a1 u B", "B", "", TWO, repack=True)),
    "anew": (81_590, scenario(JOINED, "a b t A", "A", COMMIT, TWO, anew="a")),
    "anew, base inherited": (67_061, scenario(APART, "a t A", "A", DELTA, DIES, anew="a", spares=False)),
    "anew, a new delta": (56_637, scenario(JOINED, "a t A; a", "A", REBASED, DIES, anew="b a<b2")),
    "anew, chains": (229_509, scenario(JOINED, "a t A; b<a1 u; a<b2", "A", COMMIT, DIES, anew="b a<b2", spares=False)),
    "anew, chains turned": (48_346, scenario(JOINED, "a t; A; b<a1 u B", "B", "prune A item=t", DIES, anew="b a<b2")),
    "anew, branches": (
        242_160,
        scenario(APART, "a t A; b<a1 u B", "B B", "delete; point A branch=1", DIES, anew="b a<b2"),
    ),
    "anew, undo": (43_558, scenario(APART, "a t A; b<a1 u B", "A; B; A", "undo", DIES, anew="b a<b2", history=True)),
    "anew, two": (17_644, scenario(JOINED, "a t A; b<a1 u B", "B", "", TWO, anew="b a<b2", spares=False)),
    "anew, simple": (71_170, scenario(APART, "a t A", "A", DELTA, DIES, anew="a", simple=True, spares=False)),
    "rescue": (428, scenario(JOINED, "a t A; b u B", "B", "delete", TWO, damaged=True, root=CONDEMNED)),
    "stale index": (5_790, scenario(JOINED, "a t A; b u; b", "A", COMMIT, DIES, stale=True)),
    "simple": (88_427, scenario(JOINED, "a t A; b; b u", "A", COMMIT, TWO, simple=True, stale=True)),
    "simple, prune": (56_793, scenario(NESTED, "a t; A; b; a", "A", DELTA, DIES, simple=True, spares=False)),
    "simple, new branch": (20_464, scenario(JOINED, "a t A; b", "A -", ORPHAN, DIES, simple=True)),
    "simple, branches": (11_934, scenario(ALONE, "a t A; b u B; b", "A B", AGAIN, TWO, simple=True)),
    "simple, replies": (10_907, scenario(JOINED, "b u; a t A", "A -", START, (1,), simple=True, losses=True)),
}

MOVES = "delete; point A branch=1; commit B parent=A delta=ba"
LONG = {
    "found tree, two": (1_060_019, scenario(NESTED, "a t; A; b; w", "A", INHERIT, TWO)),
    "chains, two": (375_151, scenario(JOINED, "a t A; b<a1 u; a<b2; b", "A", COMMIT, TWO)),
    "branches and a commit": (353_912, scenario(APART, "a t A; a t", "A -", MOVES, DIES)),
    "replies, two": (1_406_027, scenario(JOINED, "b u; b; a t A", "A -", START, TWO, losses=True, spares=False)),
    "simple, prune, two": (570_461, scenario(NESTED, "a t; A; b; a", "A", DELTA, TWO, simple=True, spares=False)),
}


def params(cases: dict[str, tuple[int, Scenario]], *marks: Any) -> list[Any]:
    return [pytest.param(case, states, id=name, marks=marks) for name, (states, case) in cases.items()]


@pytest.mark.parametrize(("case", "states"), [*params(SCENARIOS), *params(LONG, pytest.mark.long)])
def test_no_state_loses_anything(case: Scenario, states: int) -> None:
    found = search(case)
    assert not found.broken, str(found)
    assert found.states >= states


SLIPS: list[tuple[tuple[Slip, ...], str, Property]] = [
    (("age only",), "dedup", "lost"),
    (("no fence",), "dedup", "lost"),
    (("no fence",), "branches", "lost"),
    (("no fence",), "simple", "lost"),
    (("no fence",), "simple, branches", "lost"),
    (("reuse K",), "dedup", "wedged"),
    (("reuse K", "no rescue"), "dedup", "lost"),
    (("shortened lists",), "stale index", "lost"),
    (("D without closure",), "found tree", "lost"),
    (("D without base chains",), "base inherited", "lost"),
    (("base of any chain",), "cycle", "lost"),
    (("absent by tree id",), "shared trees", "lost"),
    (("no undo floor",), "undo", "wedged"),
    (("closure not recomputed",), "found tree", "lost"),
    (("inherit from a pruned tip",), "pruned tip", "lost"),
    (("parent not checked",), "simple, new branch", "lost"),
    (("new record after an ambiguous reply",), "replies", "twice"),
    (("acknowledge a read record",), "power", "unacknowledged"),
    (("acknowledge a read record",), "power, same commit", "unacknowledged"),
    (("publish on a read record",), "power", "hole"),
    (("delete on a read record",), "power and undo", "undo"),
    (("no rescue",), "rescue", "lost"),
    (("D without base chains",), "anew, base inherited", "lost"),
    (("repack by its first survey",), "anew", "wedged"),
    (("repack by its first survey", "no rescue"), "anew", "lost"),
    (("pick without chains",), "anew, chains turned", "wedged"),
    (("pick without chains", "no rescue"), "anew, chains turned", "lost"),
]


@pytest.mark.parametrize(
    ("slips", "name", "broken"), SLIPS, ids=[f"{' and '.join(s)} in {name}" for s, name, _ in SLIPS]
)
def test_slip_is_caught(slips: tuple[Slip, ...], name: str, broken: Property) -> None:
    found = search(SCENARIOS[name][1], frozenset(slips), only=broken)
    print(f"\n{' and '.join(slips)}: {len(found.trace) - 1} steps, {found.states} states\n{found}")
    assert found.broken == broken
