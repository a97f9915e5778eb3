"""The store's log as people read it: every root, who published it, and what it changed. The audit trail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from .log import Log, Record
from .refs import RefKind


@dataclass(frozen=True, slots=True)
class RefChange:
    """A ref that a root moved: from `old` to `new`, commit ids in hex; None where it was not there."""

    kind: str
    name: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One root. `undoable` says whether `undo` may still go back to it, if what it names is whole."""

    seq: int
    time: datetime
    who: str
    host: str
    why: str
    changes: tuple[RefChange, ...]
    undoable: bool


def entries(log: Log) -> Iterator[Entry]:
    """Every root, newest first."""
    later: Record | None = None
    floor = 1
    for record in log.records():
        if later is None:
            floor = record.floor
        else:
            yield entry(later, record, floor)
        later = record
    if later is not None:
        yield entry(later, None, floor)


def entry(record: Record, before: Record | None, floor: int) -> Entry:
    """What `record` changed of the root before it; undo may go back to `floor`."""
    update, old = record.update, {} if before is None else before.refs
    moved = [ref for ref in sorted({*old, *record.refs}) if old.get(ref) != record.refs.get(ref)]
    changes = (
        RefChange(RefKind(kind).name.lower(), name, _hex(old.get((kind, name))), _hex(record.refs.get((kind, name))))
        for kind, name in moved
    )
    time = datetime.fromtimestamp(update.time / 1e6, UTC)
    return Entry(record.seq, time, update.who, update.host, update.why, tuple(changes), record.seq >= floor)


def _hex(commit: bytes | None) -> str | None:
    return None if commit is None else commit.hex()
