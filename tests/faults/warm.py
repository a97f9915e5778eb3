"""The parent of all children that meet a fault: a small process without torch in which everything is loaded.

Forking the test runner takes several times as long, once other tests have filled it. The parent stays on one
processor, so that a child and its strace take turns there. It reads lines "operation fault [point]" and answers each
with a `Report` as a line of JSON. By hand, in tests/:

    echo commit EIO openat:12 | python -m faults.warm
"""

from __future__ import annotations

import dataclasses
import gc
import json
import mmap
import os
import random
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cas
from cas.catalog import Catalog
from cas.errors import CasError
from cas.local import LocalBackend
from cas.log import Log

from . import children, points, strace, threads
from .operations import OPERATIONS, Operation, commit, content, snapshot
from .points import FAULTS, KILL, Fault, Point
from .stores import errors, quick_folder, same

RECOVERY = "recovery"
"""In place of a fault: a kill, and another fault in the operation that goes on from there."""

TRIES = 4

KILLS, FAULTS_AFTER_KILL = 12, 8
"""How many points are tried of the first, and after each of the second."""

LAST = 40
"""The step of the commit that is made when all is over."""


@dataclass
class Report:
    """How many points were tried and how many reached, their classes, what callers saw raised, and what is wrong."""

    points: int = 0
    reached: int = 0
    seconds: float = 0.0
    classes: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Notes:
    """What a child did, in memory that it shares with its parent.

    Writing here is no system call, so that no fault strikes it and a kill takes nothing back.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1 << 16)
        self.clear()

    def clear(self) -> None:
        self._memory[:4] = bytes(4)

    def add(self, kind: str, text: str = "") -> None:
        end = 4 + int.from_bytes(self._memory[:4], "little")
        line = json.dumps([kind, text[:4000]]).encode() + b"\n"
        self._memory[end : end + len(line)] = line
        self._memory[:4] = (end + len(line) - 4).to_bytes(4, "little")

    def of(self, kind: str) -> list[str]:
        """The texts of this kind, oldest first."""
        data = self._memory[4 : 4 + int.from_bytes(self._memory[:4], "little")]
        return [text for held, text in map(json.loads, data.splitlines()) if held == kind]


# -- in the child ---------------------------------------------------------------------------------------------------


def _work(operation: Operation, path: Path, notes: Notes, lasting: bool) -> None:
    """The operation; unless the fault lasts, again after an error: it may have struck in one thread and in another."""
    for _ in range(1 if lasting else TRIES):
        try:
            operation.run(path, notes.add)
            notes.add("finished")
            return
        except (CasError, OSError) as error:
            notes.add("error", f"{type(error).__name__}: {error}")
        except BaseException:
            notes.add("bug", traceback.format_exc())
            return


def _work_to(operation: Operation, path: Path, notes: Notes, fault: Fault, point: Point) -> None:
    """As `_work`, with a fault at the point."""
    threads.lead(point.thread, point.name, fault.lead(point))
    _work(operation, path, notes, fault.lasting)


def _work_with_short_writes(operation: Operation, path: Path, notes: Notes, fault: Fault, point: Point) -> None:
    """As `_work`; the call of the point, or all from there on, write about half of what they are given."""
    plain = getattr(os, point.name)
    count = 0

    def short(fd: int, data: Any, *offset: int) -> int:
        nonlocal count
        count += 1
        if count < point.nth or (count > point.nth and not fault.lasting):
            return int(plain(fd, data, *offset))
        notes.add("reached")
        return int(plain(fd, memoryview(data).cast("B")[: len(data) // 2 + 1], *offset))

    setattr(os, point.name, short)
    _work(operation, path, notes, fault.lasting)


def _count_writes(operation: Operation, path: Path, notes: Notes) -> dict[str, int]:
    """How often the operation calls each function that `_work_with_short_writes` can shorten."""
    counts = dict.fromkeys(points.WRITES, 0)

    def counted(name: str, plain: Callable[..., int]) -> Callable[..., int]:
        def write(*args: Any) -> int:
            counts[name] += 1
            return plain(*args)

        return write

    for name in points.WRITES:
        setattr(os, name, counted(name, getattr(os, name)))
    _work(operation, path, notes, lasting=False)
    return counts


def _ignore(kind: str, text: str) -> None:
    """For runs without a fault."""


def _snapshot(path: Path) -> dict[str, Any]:
    if not (path / "cas.json").exists():
        return {}
    with cas.open(path) as store:
        return snapshot(store)


def _verify(operation: Operation, path: Path, before: dict[str, Any], after: dict[str, Any], notes: Notes) -> None:
    """What must hold after a fault, and after the operation has done what was left of it."""
    found = _snapshot(path)
    for key in before | after | found:
        old, new = before.get(key), after.get(key)
        assert found.get(key) in (old, new), f"{key} is {found.get(key)}, neither {old} as before nor {new}"
    for key in notes.of("done"):
        assert found.get(key) == after.get(key), f"{key} is {found.get(key)} though it was said to be {after.get(key)}"
    assert found == after or not notes.of("finished"), f"it finished with {found}, not {after}"
    operation.run(path, _ignore)
    with cas.open(path) as store:
        assert snapshot(store) == after, f"the next operation led to {snapshot(store)}, not {after}"
        operation.check(path)
        store.load("main")
        commit(store, LAST)
        assert same(store.load("main"), content(LAST)), "a commit made afterwards does not load as it was made"
        findings = errors(store.fsck(data=True))
        assert not findings, f"fsck: {findings[0]}"
        _compare_with_a_rebuilt_index(store._catalog, path)


def _compare_with_a_rebuilt_index(catalog: Catalog, path: Path) -> None:
    shutil.rmtree(path.parent / "rebuilt", ignore_errors=True)
    backend = LocalBackend(path)
    rebuilt = Catalog(backend, path.parent / "rebuilt")
    rebuilt.observe(Log(backend).head())
    assert catalog.index.packs() == rebuilt.index.packs(), "the index and a rebuilt one know different packs"
    assert set(catalog.index.rows()) == set(rebuilt.index.rows()), "the index and a rebuilt one have different rows"
    rebuilt.close()


# -- in the parent --------------------------------------------------------------------------------------------------


class Bench:
    """One operation, the store that it starts from and what it makes of it, and its system calls."""

    def __init__(self, operation: Operation, folder: Path) -> None:
        self.operation = operation
        self.path = folder / "store"
        self._folder = folder
        self.notes = Notes()
        self._done: list[str] = []
        self.report = Report()
        self._trace = ""
        operation.prepare(self.path)
        self._keep("template")
        self.renew()
        self.before = _snapshot(self.path)
        operation.run(self.path, _ignore)
        self.after = _snapshot(self.path)
        _verify(operation, self.path, self.before, self.after, self.notes)  # here: it loads what the children need
        self.renew()
        self.points = self.trace()
        assert self.notes.of("finished"), self.notes.of("bug") + self.notes.of("error")

    def is_of_interest(self, point: Point) -> bool:
        return not self.operation.only or point.name in self.operation.only

    def _keep(self, name: str) -> None:
        """The store as it is now is what `renew` takes from here on."""
        shutil.rmtree(self._folder / name, ignore_errors=True)
        if self.path.exists():
            self.path.rename(self._folder / name)

    def keep_as_crashed(self) -> None:
        """Also what was said to be done before the crash."""
        self._done = self.notes.of("done")
        self._keep("crashed")
        self.renew(crashed=True)

    def renew(self, crashed: bool = False) -> None:
        """What was kept in place of whatever the last point left."""
        kept = self._folder / ("crashed" if crashed else "template")
        shutil.rmtree(self.path, ignore_errors=True)
        if kept.exists():
            shutil.copytree(kept, self.path)
        self.notes.clear()
        for ref in self._done if crashed else []:
            self.notes.add("done", ref)

    def trace(self) -> list[Point]:
        """Run the operation on what is there; the calls that it makes."""
        _, _, text = strace.traced(self._folder, _work, self.operation, self.path, self.notes, False)
        return points.points_of(text, self.path)

    def strike(self, fault: Fault, point: Point) -> None:
        """One run with the fault at the point, on what is there."""
        self.report.points += 1
        _count(self.report.classes, f"{point.name} {point.on}")
        if fault.inject is None:
            self._trace = ""
            children.run(_work_with_short_writes, self.operation, self.path, self.notes, fault, point)
            reached = bool(self.notes.of("reached"))
        else:
            only = ",".join({point.name, *points.SYNCING, "close"})
            arguments = self.operation, self.path, self.notes, fault, point
            _, status, self._trace = strace.traced(
                self._folder, _work_to, *arguments, inject=fault.injection(point), only=only
            )
            reached = "(INJECTED)" in self._trace or os.WIFSIGNALED(status)
        self.report.reached += reached
        for error in self.notes.of("error"):
            _count(self.report.errors, error.partition(":")[0])

    def check(self, fault: Fault, point: Point) -> None:
        """What must hold now; AssertionError says what does not."""
        raised, bugs = self.notes.of("error"), self.notes.of("bug")
        assert not bugs, bugs[0]
        for error in raised:
            assert "\n" not in error, f"more than a sentence: {error}"
            assert "None" not in error, f"it says None: {error}"
            assert str(self.path) in error or "log record" in error, f"it does not say what failed: {error}"
        if fault is not KILL:
            assert self.notes.of("finished") or fault.lasting, f"errors went on after the fault: {raised}"
            assert raised or self.notes.of("finished"), "it neither finished nor raised"
        if fault.name == "EINTR":
            assert not raised or point.name not in points.TRIED_AGAIN, (
                f"an interrupted call was not tried again: {raised}"
            )
        if "EINTR" not in fault.name:  # which says nothing of the data
            again = strace.fsyncs_after_a_failed_one(self._trace)
            assert not again, f"a descriptor whose fsync failed is synced again: {again[0]}"
        children.run(_verify, self.operation, self.path, self.before, self.after, self.notes)

    @contextmanager
    def told(self, what: str) -> Iterator[None]:
        """A failed check becomes a line of the report."""
        try:
            yield
        except AssertionError as error:
            injected = re.findall(r".*\(INJECTED\).*", self._trace)[:3]
            self.report.failures.append("\n".join([f"{self.operation.name} {what}: {error}", *injected]))


def run(name: str, fault_name: str, only: str = "") -> Report:
    """Every chosen point of the operation under the fault; with `only` that point alone."""
    started = time.monotonic()
    with quick_folder() as folder:
        bench = Bench(OPERATIONS[name], folder)
        if fault_name == RECOVERY:
            _faults_in_recovery(bench)
        else:
            fault = FAULTS[fault_name]
            for point in _points_for(bench, fault):
                if only in ("", str(point)):
                    with bench.told(f"{fault.name} {point} on {point.on}"):
                        bench.renew()
                        bench.strike(fault, point)
                        bench.check(fault, point)
    bench.report.seconds = time.monotonic() - started
    return bench.report


def _points_for(bench: Bench, fault: Fault) -> list[Point]:
    if fault.inject is not None:
        return points.chosen([p for p in bench.points if bench.is_of_interest(p)], fault)
    bench.renew()
    counts = children.run(_count_writes, bench.operation, bench.path, bench.notes)
    return [Point(name, nth, "file") for name, count in counts.items() for nth in range(1, count + 1)]


def _faults_in_recovery(bench: Bench) -> None:
    """A kill at some points, and after each some faults in the operation that goes on from there."""
    dice = random.Random(points.SEED)
    changing = [p for p in _points_for(bench, KILL) if p.name in points.CHANGING]
    for point in dice.sample(changing, min(KILLS, len(changing))):
        bench.renew()
        bench.strike(KILL, point)
        bench.keep_as_crashed()
        recovery = [p for p in bench.trace() if bench.is_of_interest(p)]
        pairs = [(fault, p) for fault in FAULTS.values() if fault.inject for p in points.chosen(recovery, fault)]
        for fault, second in dice.sample(pairs, min(FAULTS_AFTER_KILL, len(pairs))):
            with bench.told(f"kill {point} on {point.on}, then {fault.name} {second} on {second.on}"):
                bench.renew(crashed=True)
                bench.strike(fault, second)
                bench.check(fault, second)


def _count(counts: dict[str, int], what: str) -> None:
    counts[what] = counts.get(what, 0) + 1


def main() -> None:
    """Answer requests for as long as there are any."""
    children.stay_on_one_processor()
    gc.freeze()  # a collection in a child would copy every page
    for line in sys.stdin:
        print(json.dumps(dataclasses.asdict(run(*line.split()))), flush=True)


if __name__ == "__main__":
    main()
