"""A survey brought up to a newer root: what a collection does when another record came first.

Beside busy writers a whole survey would always come too late. What the old root needed is kept as needed; only what
the records since then lead to beyond it is marked, and looked for in packs that stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from itertools import islice

import numpy as np

from .block import Kind, ObjectId
from .chains import chains_of
from .log import Record
from .pack import Location, PackId
from .picking import NAME, Names, is_in
from .reach import Edge
from .roots import Absent
from .survey import Survey, Surveyor


def needed_since(surveyor: Surveyor, survey: Survey, root: Record, giving_up: Set[bytes]) -> set[PackId] | None:
    """Which of the packs in `giving_up` everything is needed from that `root` and those before it lead to besides.

    None where only a new survey will do: files were condemned since, something absent is back, or something is missing.
    """
    absent = surveyor.roots.absent(root)
    if root.epoch != survey.root.epoch or not _grows(survey.marks.absent, absent):
        return None
    edges = _reached_since(surveyor, survey, root, absent)

    def staying(names: Iterable[ObjectId]) -> dict[ObjectId, list[Location]]:
        found = surveyor.catalog.locate(names)
        return {name: [place for place in rows if place.pack not in giving_up] for name, rows in found.items()}

    names = {name for _, name in edges}
    leaving = names - chains_of(names, staying).keys()
    chains = chains_of(leaving, surveyor.catalog.locate)
    if chains.keys() != leaving:
        return None
    return {place.pack for chain in chains.values() for place in chain if place.pack in giving_up}


def leans_on(surveyor: Surveyor, survey: Survey, root: Record, held: Names) -> bool:
    """Whether something that `root` and those before it lead to besides is one of the objects `held`, sorted names, or
    lies as a change of one; also where only a new survey can tell.

    What to ask before packs with these objects are given up where rows may be bad: one that stays may be, and the one
    in such a pack good.
    """
    absent = surveyor.roots.absent(root)
    if root.epoch != survey.root.epoch or not _grows(survey.marks.absent, absent):
        return True
    names = {name for _, name in _reached_since(surveyor, survey, root, absent)}
    seen: set[ObjectId] = set()
    while names:
        found = surveyor.catalog.locate(names)
        if found.keys() != names or is_in(np.frombuffer(b"".join(names), NAME), held).any():
            return True
        seen |= names
        names = {ObjectId(place.row.base) for rows in found.values() for place in rows if place.row.chain} - seen
    return False


def _reached_since(surveyor: Surveyor, survey: Survey, root: Record, absent: Absent) -> list[Edge]:
    """What the survey had not reached. It counts as reached from now on."""
    marks = survey.marks.renewed(absent)
    seen = len(marks.objects)
    records = [root, *(surveyor.log.read(seq) for seq in range(survey.root.seq + 1, root.seq))]
    marks.mark(commit for record in records for commit in record.refs.values())
    blocks = marks.blocks()
    fresh = blocks[~is_in(blocks, survey.marks.blocks())]
    return [*islice(marks.objects, seen, None), *((Kind.BLOCK, ObjectId(name)) for name in fresh.view("V32").tolist())]


def _grows(old: Absent, new: Absent) -> bool:
    return all(names <= new.get(commit, frozenset()) for commit, names in old.items())
