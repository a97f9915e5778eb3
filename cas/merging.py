"""What many ranks say of their states, merged to the one that a single process would commit."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import Invalid
from .holders import Census
from .outline import Extent, Structure, decode_boxes, decode_structure
from .plan import Plan
from .skeletons import MergedSkeleton
from .ties import first_members

Boxes = list[list[Extent]]


def merge(structures: Sequence[bytes], boxes: Sequence[bytes], known_as: Sequence[int] | None = None) -> Plan:
    """The plan of a commit by ranks with these structures and boxes, given in the order of the ranks.

    `Invalid` where the ranks' states do not make one: the message names the path and the ranks, as `known_as` numbers
    them.
    """
    known_as = range(len(structures)) if known_as is None else known_as
    if not structures or len(structures) != len(boxes):
        raise Invalid(f"{len(structures)} structures and {len(boxes)} lists of boxes do not merge; give one per rank")
    first_ranks: dict[bytes, int] = {}
    for rank, data in enumerate(structures):
        first_ranks.setdefault(data, rank)
    decoded = [decode_structure(data, known_as[rank]) for data, rank in first_ranks.items()]
    merged = MergedSkeleton(decoded, [known_as[rank] for rank in first_ranks.values()])
    numbers = {data: number for number, data in enumerate(first_ranks)}
    kinds = [numbers[data] for data in structures]
    held = [decode_boxes(data, decoded[kinds[rank]].ties, known_as[rank]) for rank, data in enumerate(boxes)]
    firsts = _tie(merged, kinds, held)
    goals = [_goals(structure, leaf_at, firsts) for structure, leaf_at in zip(decoded, merged.leaf_at, strict=True)]
    census = Census([{} for _ in merged.leaves], known_as)
    for kind, mine in zip(kinds, held, strict=True):
        census.add(mine, goals[kind])
    holders = census.holders((number, leaf) for number, leaf in enumerate(merged.leaves) if leaf.tied_to is None)
    return Plan(merged.root, merged.leaves, merged.slots, kinds, merged.slot_at, census, holders)


def _tie(merged: MergedSkeleton, kinds: list[int], held: list[Boxes]) -> dict[int, int]:
    """Tie the merged leaves, numbered as one walk of them would; returns the first leaf of each that is tied."""
    if not any(tie is not None for structure in merged.structures for tie in structure.ties):
        return {}
    holding = [[False] * len(structure.forms) for structure in merged.structures]
    for kind, boxes in zip(kinds, held, strict=True):
        holding[kind] = [known or bool(mine) for known, mine in zip(holding[kind], boxes, strict=True)]
    firsts = first_members(merged.structures, merged.leaf_at, lambda kind, leaf: holding[kind][leaf])
    ties = 0
    for number, leaf in enumerate(merged.leaves):
        first = merged.leaves[firsts.get(number, number)]
        if first is leaf:
            continue
        if first.tie is None:
            first.tie, ties = ties, ties + 1
        leaf.tied_to, leaf.tie = first, first.tie
    return firsts


def _goals(structure: Structure, leaf_at: list[int], firsts: dict[int, int]) -> list[list[int]]:
    """For each leaf of a structure the merged leaves that its boxes stand for: none if its own stand elsewhere."""
    goals: list[list[int]] = [[] for _ in leaf_at]
    for number, (tie, merged) in enumerate(zip(structure.ties, leaf_at, strict=True)):
        goal = firsts.get(merged, merged)
        holder = goals[number if tie is None else tie]
        if goal not in holder:
            holder.append(goal)
    return goals
