"""A crew of threads for one piece of work. A worker's failure is the caller's failure.

Plain daemon threads and not `concurrent.futures`, which refuses new work while the interpreter waits for a
background commit at exit.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from queue import Queue
from types import TracebackType
from typing import Generic, TypeVar

Task = Callable[[], None]
MAX_THREADS = 8


def default_threads() -> int:
    """Threads for work that one process does: its processors, up to 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MAX_THREADS)


S = TypeVar("S")
T = TypeVar("T")


class Shelf(Generic[T]):
    """Tools that threads borrow and put back, so that their buffers outlive the threads.

    Fresh memory costs as much as the work that is done in it.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._idle: list[T] = []

    @contextlib.contextmanager
    def borrow(self) -> Iterator[T]:
        try:
            tool = self._idle.pop()
        except IndexError:
            tool = self._make()
        yield tool
        self._idle.append(tool)


class Crew:
    """Runs tasks on `threads` threads. Leaving the `with` block waits for all and raises the first failure.

    After a failure, or when the block itself raises, tasks that have not begun are dropped.
    """

    def __init__(self, threads: int) -> None:
        self._tasks: Queue[Task | None] = Queue(maxsize=2 * threads)
        self._failure: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, name="cas-crew", daemon=True) for _ in range(threads)]

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def submit(self, task: Task) -> None:
        """Hand over a task; waits while the crew is behind, and raises the first failure of an earlier one."""
        if self._failure is not None:
            raise self._failure
        self._tasks.put(task)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._failure is None:
            self._failure = error
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        failure, self._failure = self._failure, None  # else it would lead back to itself, and hold every tool's buffers
        try:
            if failure is not None and error is None:
                raise failure
        finally:
            del failure

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._failure is not None:
                continue
            try:
                task()
            except BaseException as error:
                self._failure = error


_PER_THREAD = 8


def mapped(work: Callable[[S], T], items: Sequence[S], threads: int) -> Iterator[T]:
    """The results for all items in their order, worked out some at a time by so many threads; by the caller's if 1."""
    if threads == 1:
        yield from map(work, items)
        return
    for at in range(0, len(items), _PER_THREAD * threads):
        part = items[at : at + _PER_THREAD * threads]
        found: dict[int, T] = {}
        with Crew(min(threads, len(part))) as crew:
            for number, item in enumerate(part):
                crew.submit(partial(_put, found, number, work, item))
        yield from (found[number] for number in range(len(part)))


def _put(found: dict[int, T], number: int, work: Callable[[S], T], item: S) -> None:
    found[number] = work(item)
