"""What is done with a state that is larger than what one would hold twice: mapped from its files, one life a turn.

A contender's files are removed when its turn ends, so the disk holds the source and one of them. Loads come from the
disk: the files, which are durable, are taken out of the page cache before. `into=` and the stall are left out: both
need the state a second time in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from .child import child_seconds, peak_memory
from .contenders import Contender
from .operations import CHANGED
from .timing import Timing, clock, take_turns
from .trees import changed, one_of, some
from .workloads import Workload

SAVES = ("first", "unchanged", "5 % changed")
LOADS = ("load from disk, new process", "one tensor from disk")


def lives(workload: Workload, contenders: Mapping[str, Contender], parent: Path, rounds: int) -> list[Timing]:
    """Every operation's seconds; in each turn a contender goes through all of them."""

    def bound(name: str, one: Contender) -> Callable[[], list[float]]:
        return lambda: [*_saves(workload, one), *_loads(workload, name, one, parent)]

    found = take_turns({name: bound(name, one) for name, one in contenders.items()}, rounds)
    return [
        Timing(workload.name, operation, {name: [life[number] for life in held] for name, held in found.items()})
        for number, operation in enumerate((*SAVES, *LOADS))
    ]


def _saves(workload: Workload, one: Contender) -> list[float]:
    """First, unchanged, changed; each time mapped anew, at other addresses."""
    one.clear()
    state = workload.mapped()
    seconds = [clock(lambda: one.save(state))]
    same = workload.mapped()
    one.make_room()
    seconds.append(clock(lambda: one.save(same)))
    other = changed(workload.mapped(), some(same, CHANGED), 1)
    one.make_room()
    seconds.append(clock(lambda: one.save(other)))
    return seconds


def _loads(workload: Workload, name: str, one: Contender, parent: Path) -> list[float]:
    path, _ = one_of(workload.mapped())
    one.close()
    evict(one.folder)
    whole = child_seconds("load", name, parent, workload.folder)
    evict(one.folder)
    single = clock(lambda: one.load_one(path))
    one.clear()
    return [whole, single]


def peaks(workload: Workload, contenders: Mapping[str, Contender], parent: Path) -> dict[str, dict[str, float]]:
    """Bytes of anonymous memory that a save and a load need at their peak, beside the state itself."""
    found: dict[str, dict[str, float]] = {"save": {}, "load": {}}
    for name, one in contenders.items():
        one.clear()
        one.close()
        for action, held in found.items():
            held[name] = peak_memory(action, name, parent, workload.folder)
        one.clear()
    return found


def evict(folder: Path) -> None:
    """Take the files of a folder, which are durable, out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
