"""What a power cut may leave of recorded operations, on the weakest file system that POSIX allows.

data       since the last fsync of the file any of the written 4 KiB pages may be there, one of them torn at a
           multiple of 512 bytes; what is not there is old, or zero; the length is old, new or between
names      of the creates, links, unlinks, renames and mkdirs in a directory since its last fsync any may be there,
           whatever their order was; a rename is there whole or not at all
fsync      of a file makes data and length durable, not its name; of a directory all earlier changes of its names
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from .recorder import DIRECTORY, Event, Record, Tree

PAGE = 4096
SECTOR = 512

Pick = Callable[[random.Random, int], Sequence[bool]]
"""Which of so many pending changes of names survive."""
Fate = Callable[[random.Random, bytes, bytes], bytes]
"""What is read of a file of which the first bytes were durable and the second were written."""


@dataclass(slots=True)
class _Change:
    """One change of names: each path and what it then is, None for nothing. `certain` once it is durable."""

    names: tuple[tuple[str, int | None], ...]
    certain: bool = False


@dataclass
class Disk:
    """The operations so far, and which of them are durable."""

    changes: list[_Change] = field(default_factory=list)
    durable: dict[int, bytes] = field(default_factory=dict)
    written: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def holding(cls, start: Tree) -> Disk:
        """A disk on which a tree is durable. Inodes are numbered as the recorder does."""
        disk = cls()
        for number, (name, data) in enumerate(start.items(), 1):
            disk.changes.append(_Change(((name, DIRECTORY if data is None else number),), certain=True))
            if data is not None:
                disk.durable[number] = disk.written[number] = data
        return disk

    def apply(self, event: Event) -> None:
        match event.call:
            case "create" | "link" | "mkdir":
                self.changes.append(_Change(((event.path, event.inode),)))
            case "unlink":
                self.changes.append(_Change(((event.path, None),)))
            case "rename":
                self.changes.append(_Change(((event.source, None), (event.path, event.inode))))
            case "write":
                old = self.written.get(event.inode, b"").ljust(event.offset, b"\0")
                self.written[event.inode] = old[: event.offset] + event.data + old[event.offset + len(event.data) :]
            case "truncate":
                old = self.written.get(event.inode, b"")
                self.written[event.inode] = old[: event.offset].ljust(event.offset, b"\0")
            case "fsync" if event.inode == DIRECTORY:
                for change in self.changes:
                    change.certain |= any(os.path.dirname(name) == event.path for name, _ in change.names)
            case "fsync":
                self.durable[event.inode] = self.written.get(event.inode, b"")

    def after_cut(self, dice: random.Random, pick: Pick, fate: Fate) -> Tree:
        """What is found after a power cut now."""
        pending = [change for change in self.changes if not change.certain]
        survive = dict(zip(map(id, pending), pick(dice, len(pending)), strict=True))
        names: dict[str, int] = {}
        for change in self.changes:
            if survive.get(id(change), change.certain):
                for name, inode in change.names:
                    if inode is None:
                        names.pop(name, None)
                    else:
                        names[name] = inode
        tree: Tree = {}
        for name in sorted(names):  # a directory before what is in it
            above = os.path.dirname(name)
            if not above or tree.get(above, b"") is None:
                tree[name] = None if names[name] == DIRECTORY else self._content(names[name], dice, fate)
        return tree

    def _content(self, inode: int, dice: random.Random, fate: Fate) -> bytes:
        old, new = self.durable.get(inode, b""), self.written.get(inode, b"")
        return new if old == new else fate(dice, old, new)


def replay(record: Record) -> Tree:
    """The tree that all operations together give."""
    disk = Disk.holding(record.start)
    for event in record.events:
        disk.apply(event)
    return disk.after_cut(random.Random(0), all_names, new_data)


# -- which names survive --------------------------------------------------------------------------------------------


def no_names(dice: random.Random, count: int) -> Sequence[bool]:
    return [False] * count


def all_names(dice: random.Random, count: int) -> Sequence[bool]:
    return [True] * count


def all_but_one(dice: random.Random, count: int) -> Sequence[bool]:
    lost = dice.randrange(count) if count else 0
    return [number != lost for number in range(count)]


def only_one(dice: random.Random, count: int) -> Sequence[bool]:
    return [not survives for survives in all_but_one(dice, count)]


def some_names(dice: random.Random, count: int) -> Sequence[bool]:
    share = dice.choice((0.2, 0.5, 0.8))
    return [dice.random() < share for _ in range(count)]


# -- what data survives ---------------------------------------------------------------------------------------------


def old_data(dice: random.Random, old: bytes, new: bytes) -> bytes:
    return old


def new_data(dice: random.Random, old: bytes, new: bytes) -> bytes:
    return new


def length_alone(dice: random.Random, old: bytes, new: bytes) -> bytes:
    return old[: len(new)].ljust(len(new), b"\0")


def torn_tail(dice: random.Random, old: bytes, new: bytes) -> bytes:
    """New up to somewhere, then nothing more, or zeros up to the new length."""
    cut = dice.choice((dice.randrange(len(new) + 1), dice.randrange(len(new) // SECTOR + 1) * SECTOR))
    return new[:cut].ljust(len(new) if dice.random() < 0.5 else max(cut, len(old)), b"\0")


def some_pages(dice: random.Random, old: bytes, new: bytes) -> bytes:
    """Any of the pages, one of them torn, and a length between."""
    size = max(len(old), len(new))
    data = bytearray(old.ljust(size, b"\0"))
    pages = range(0, len(new), PAGE)
    torn = dice.choice(pages) if pages else -1
    for start in pages:
        end = start + SECTOR * dice.randrange(PAGE // SECTOR + 1) if start == torn else start + PAGE
        if dice.random() < 0.5 or start == torn:
            data[start : min(end, len(new))] = new[start:end]
    low, high = sorted((len(old), len(new)))
    return bytes(data[: dice.choice((low, high, dice.randint(low, high)))])


EXTREMES: tuple[tuple[Pick, Fate], ...] = (
    (no_names, old_data),
    (all_names, new_data),
    (all_names, old_data),
    (no_names, new_data),
    (all_names, length_alone),
)
_PICKS = (no_names, all_names, all_but_one, all_but_one, only_one, some_names, some_names, some_names)
_FATES = (old_data, new_data, length_alone, torn_tail, some_pages)


def any_choice(dice: random.Random) -> tuple[Pick, Fate]:
    return dice.choice(_PICKS), dice.choice(_FATES)


# -- a protocol with one step taken out -----------------------------------------------------------------------------


def kind_of(path: str) -> str:
    """What a file or directory is, without what differs between two of a kind."""
    parts = path.split("/")[2:] if path.startswith("runs/store") else ["<above>"]
    parts = [re.sub(r"^[0-9a-f]{32}$|^[0-9a-f]{64}$|^[0-9]{20}$", "*", part) for part in parts]
    return "/".join(re.sub(r"^[0-9a-f]{2}$", "xx", part) for part in parts) or "<store>"


def named(record: Record) -> Record:
    """The record with each file called by the name that it gets, or has, outside `tmp/`."""
    final = {e.inode: e.path for e in record.events if e.inode and "/tmp/" not in e.path}
    events = (replace(e, path=final.get(e.inode, e.path)) if e.call == "fsync" else e for e in record.events)
    return Record(record.start, tuple(events))


def step_of(event: Event) -> str:
    """The class of an fsync: what is made durable, and by which function."""
    return f"{kind_of(event.path)} by {event.caller}"


def steps(record: Record) -> set[str]:
    """Every class of fsync in a record, but for files that never got a name."""
    found = (event for event in named(record).events if event.call == "fsync")
    return {step_of(event) for event in found if kind_of(event.path) != "tmp/*"}


def without(record: Record, step: str) -> Record:
    """The same work as it would be if the code left out one class of fsync."""
    kept = zip(record.events, named(record).events, strict=True)
    return Record(record.start, tuple(e for e, full in kept if full.call != "fsync" or step_of(full) != step))


def swapped(record: Record, early: Callable[[Event], bool], late: Callable[[Event], bool]) -> Record:
    """The same work with the `early` steps of each operation made right after its first `late` one that follows."""
    full = named(record).events
    order: list[float] = []
    next_late: dict[str, int] = {}
    for number in reversed(range(len(full))):
        event = full[number]
        if late(event):
            next_late[event.writer] = number
        elif event.call == "acknowledge":
            next_late.pop(event.writer, None)
        delayed = early(event) and event.writer in next_late
        order.append(next_late[event.writer] + 0.5 if delayed else number)
    pairs = zip(reversed(order), range(len(full)), strict=True)
    return Record(record.start, tuple(record.events[number] for _, number in sorted(pairs)))
