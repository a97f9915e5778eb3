"""A workload kept by a peer: bytes after each checkpoint, seconds, and whether what comes back is what was saved."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.timing import clock

from .peer import Peer
from .workloads import Workload

LIMIT = 90.0
"""Seconds that a peer may take to save the checkpoints of one workload; it then finishes the one it is at."""
RESTORED = 9
"""Checkpoints that are restored and compared, the first, the newest and some between."""


@dataclass(slots=True)
class Outcome:
    """What a peer made of a workload. Seconds and cumulative bytes go by checkpoint; after a time limit they are fewer.

    `finished` are bytes after the last step of peers that have one. `exact` is None if nothing was restored.
    """

    workload: str
    peer: str
    stored: list[int] = field(default_factory=list)
    save: list[float] = field(default_factory=list)
    finish: float = 0.0
    finished: int | None = None
    restore: dict[int, float] = field(default_factory=dict)
    exact: bool | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def final(self) -> int:
        return self.stored[-1] if self.finished is None else self.finished


def measure(workload: Workload, kind: type[Peer], files: Path, folder: Path, limit: float) -> Outcome:
    """Save all, restore some. `files` are the workload's, `folder` is the peer's alone."""
    outcome = Outcome(workload.name, kind.name)
    missing = kind.missing()
    if missing is not None:
        outcome.notes.append(missing)
        return outcome
    peer = kind(workload, files, folder)
    try:
        _save_all(peer, outcome, limit)
        if outcome.stored:
            _restore_some(peer, outcome)
    except Exception as error:  # what it cannot do is a finding, and the other peers have their turn
        outcome.notes.append(f"failed: {error}")
        traceback.print_exc()
    finally:
        peer.close()
        outcome.notes += peer.notes
    return outcome


def _save_all(peer: Peer, outcome: Outcome, limit: float) -> None:
    workload, kept, began = peer.workload, set[int](), time.monotonic()
    for number in range(len(workload.checkpoints)):
        if time.monotonic() - began > limit:
            outcome.notes.append(f"over {limit:.0f} s after {number} of {len(workload.checkpoints)}")
            break
        peer.hold(number)
        gone = (kept | {number}) - workload.kept(number + 1)
        outcome.save.append(clock(partial(_save, peer, number, gone)))
        kept = (kept | {number}) - gone
        outcome.stored.append(peer.stored())
    else:
        before = time.monotonic()
        if peer.finish():
            outcome.finish, outcome.finished = time.monotonic() - before, peer.stored()


def _save(peer: Peer, number: int, gone: set[int]) -> None:
    peer.save(number)
    if gone:
        peer.drop(gone)


def _restore_some(peer: Peer, outcome: Outcome) -> None:
    kept = sorted(peer.workload.kept(len(outcome.stored)))
    last = len(kept) - 1
    chosen = {kept[round(place * last / (RESTORED - 1))] for place in range(RESTORED)}
    exact = True
    for number in sorted(chosen):
        peer.clear(number)
        outcome.restore[number] = clock(partial(peer.restore, number))
        exact = exact and peer.exact(number)
    outcome.exact = exact
