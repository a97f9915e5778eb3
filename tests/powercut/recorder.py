"""Every file-system operation below a folder, with its bytes, in the order in which it was made.

Real work runs on a real directory while the functions of `os` that change files are wrapped. `index/` is left out:
it is derived. Several writers run side by side as threads, one operation at a time, in an order drawn from a seed;
one of them may be killed before any operation. Random names and the time come from the seed too, so that one seed
gives one record, and equal states of two records are equal byte for byte.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

Tree = dict[str, bytes | None]
"""Files by relative name; None for a directory."""

DIRECTORY = 0
"""In place of an inode number."""

_HELPERS = {"flush", "sync_directory", "sync", "confirm"}
"""Functions that only pass an fsync on."""

_KILL_WITHIN = 120  # operations; a commit makes about 30, reads included
_HANG = 60.0  # seconds
_CLOCK = time.time_ns()


@dataclass(frozen=True, slots=True)
class Event:
    """One operation of one writer; `path` is relative to the recorded folder, "" is the folder itself.

    `inode` tells files with equal names apart. `source` is a rename's old name, `caller` the function that asked for
    an fsync, `commit` the id that was acknowledged.
    """

    call: str
    writer: str
    path: str = ""
    inode: int = DIRECTORY
    source: str = ""
    offset: int = 0
    data: bytes = b""
    caller: str = ""
    commit: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What stood in the folder, durably, before; and everything that was done since."""

    start: Tree
    events: tuple[Event, ...]


class Killed(BaseException):
    """Raised in a writer that dies; no operation of it follows."""


Work = Callable[[Path, "Acknowledge"], None]


@dataclass(frozen=True)
class Acknowledge:
    """Called by a work with every commit, or with nothing for another change, that it could tell its user of."""

    recorder: Recorder
    writer: str

    def __call__(self, commit: str = "") -> None:
        self.recorder.note(Event("acknowledge", self.writer, commit=commit))

    def expire(self) -> None:
        """From now on commits that no ref leads to may go."""
        self.recorder.note(Event("expire", self.writer))


class Schedule:
    """Which writer makes the next operation, and which one dies, and where: drawn from a seed.

    With `kills` the very first writer dies before operation `seed` of its own (reads are counted too) if it gets so
    far, and each other one with a chance of a half anywhere.
    """

    def __init__(self, name: str, seed: int, kills: bool) -> None:
        self.current = ""
        self._dice = random.Random(f"schedule {name} {seed}")
        self._switch = self._dice.choice((0.05, 0.2, 0.5))
        self._kills = kills
        self._first_dies_at = seed % _KILL_WITHIN
        self._threads: dict[int, str] = {}
        self._running: list[str] = []
        self._left: dict[str, int] = {}
        self._dead: set[str] = set()
        self._failures: list[BaseException] = []
        self._turn = threading.Condition()

    def run(self, works: dict[str, Callable[[], None]]) -> None:
        """Run the works side by side until each has ended or was killed; raises the first failure of one."""
        self._running = list(works)
        for name in works:
            self._left[name] = self._lives_for()
        self.current = self._dice.choice(self._running)
        threads = [threading.Thread(target=self._one, args=item, daemon=True) for item in works.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_HANG)
            assert not thread.is_alive(), f"{self.current} hangs"
        if self._failures:
            raise self._failures[0]

    def step(self) -> None:
        """Called before each operation: waits for its writer's turn. A helper thread goes with the writer in turn."""
        writer = self._threads.get(threading.get_ident())
        if writer is not None:
            if self._left[writer] == 0:
                self._dead.add(writer)
            self._left[writer] -= 1
            if writer not in self._dead:
                with self._turn:
                    if self._dice.random() < self._switch:
                        self._pass_on()
                    self._wait(writer)
        if self.current in self._dead:
            raise Killed

    def _lives_for(self) -> int:
        """Operations before a writer dies; -1 if it does not."""
        if not self._kills:
            return -1
        if not self._left:
            return self._first_dies_at
        return self._dice.randrange(_KILL_WITHIN) if self._dice.random() < 0.5 else -1

    def _one(self, name: str, work: Callable[[], None]) -> None:
        self._threads[threading.get_ident()] = name
        try:
            with self._turn:
                self._wait(name)
            work()
        except Killed:
            pass
        except BaseException as error:
            self._failures.append(error)
        finally:
            with self._turn:
                self._running.remove(name)
                del self._threads[threading.get_ident()]
                if self._running:
                    self._pass_on()

    def _pass_on(self) -> None:
        self.current = self._dice.choice(self._running)
        self._turn.notify_all()

    def _wait(self, writer: str) -> None:
        assert self._turn.wait_for(lambda: self.current == writer, _HANG), f"{self.current} hangs"


class Recorder:
    """Records below `folder` between the start and the end of `recording`."""

    def __init__(self, folder: Path, schedule: Schedule) -> None:
        self._folder = str(folder)
        self._schedule = schedule
        self._start = read_tree(folder)
        self._events: list[Event] = []
        self._inodes = {name: number for number, name in enumerate(self._start, 1) if self._start[name] is not None}
        self._count = len(self._start)
        self._open: dict[int, tuple[str, int]] = {}
        self._lock = threading.RLock()
        self._sources: dict[str, random.Random] = {}

    @property
    def record(self) -> Record:
        return Record(self._start, tuple(self._events))

    def note(self, event: Event) -> None:
        self._events.append(event)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        real = {name: getattr(os, name) for name in _WRAPPED}
        wrapped = {name: self._wrapper(make, real[name]) for name, make in _WRAPPED.items()}
        with contextlib.ExitStack() as stack:
            for name, wrapper in wrapped.items():
                stack.enter_context(mock.patch.object(os, name, wrapper))
            stack.enter_context(mock.patch.object(secrets, "token_bytes", lambda n: self._source().randbytes(n)))
            stack.enter_context(mock.patch.object(secrets, "token_hex", lambda n: self._source().randbytes(n).hex()))
            stack.enter_context(mock.patch.object(time, "time_ns", return_value=_CLOCK))
            yield

    def _wrapper(self, method: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: method(self, real, *args, **options)

    def _source(self) -> random.Random:
        """Each writer's own randomness: its names are the same in every order of operations."""
        return self._sources.setdefault(self._schedule.current, random.Random(f"names {self._schedule.current}"))

    # -- the wrappers -------------------------------------------------------------------------------------------

    def _name(self, path: Any) -> str | None:
        """The relative name of what is recorded, else None."""
        if isinstance(path, int) or not isinstance(text := os.fspath(path), str):
            return None
        if text == self._folder:
            return ""
        name = os.path.normpath(text.removeprefix(self._folder + "/"))
        inside = text.startswith(self._folder + "/") and "index" not in name.split("/")
        return name if inside else None

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        self._schedule.step()
        with self._lock:
            yield

    def _add(self, call: str, path: str, inode: int = DIRECTORY, **fields: Any) -> None:
        self.note(Event(call, self._schedule.current, path, inode, **fields))

    def _os_open(self, real: Any, path: Any, flags: int, *args: Any, **options: Any) -> int:
        name = self._name(path)
        if name is None:
            return int(real(path, flags, *args, **options))
        with self._step():
            fd = int(real(path, flags, *args, **options))
            if flags & os.O_CREAT and name not in self._inodes:
                self._count += 1
                self._inodes[name] = self._count
                self._add("create", name, self._count)
            elif flags & os.O_TRUNC:
                self._add("truncate", name, self._inodes[name], offset=0)
            self._open[fd] = (name, self._inodes.get(name, DIRECTORY))
        return fd

    def _os_close(self, real: Any, fd: int) -> None:
        self._open.pop(fd, None)
        real(fd)

    def _on_file(self, fd: int, call: Callable[[], Any], event: Callable[[str, int, Any], None]) -> Any:
        """Make a call on a descriptor and record it if its file is recorded."""
        if fd not in self._open:
            return call()
        with self._step():
            result = call()
            event(*self._open[fd], result)
        return result

    def _os_write(self, real: Any, fd: int, data: Any) -> int:
        def event(name: str, inode: int, count: int) -> None:
            offset = os.lseek(fd, 0, os.SEEK_CUR) - count
            self._add("write", name, inode, offset=offset, data=bytes(memoryview(data).cast("B")[:count]))

        return int(self._on_file(fd, lambda: real(fd, data), event))

    def _os_pwrite(self, real: Any, fd: int, data: Any, offset: int) -> int:
        def event(name: str, inode: int, count: int) -> None:
            self._add("write", name, inode, offset=offset, data=bytes(memoryview(data).cast("B")[:count]))

        return int(self._on_file(fd, lambda: real(fd, data, offset), event))

    def _os_ftruncate(self, real: Any, fd: int, length: int) -> None:
        def event(name: str, inode: int, _: Any) -> None:
            self._add("truncate", name, inode, offset=length)

        self._on_file(fd, lambda: real(fd, length), event)

    def _os_fsync(self, real: Any, fd: int) -> None:
        def event(name: str, inode: int, _: Any) -> None:
            self._add("fsync", name, inode, caller=_caller())

        self._on_file(fd, lambda: real(fd), event)

    def _os_mkdir(self, real: Any, path: Any, *args: Any, **options: Any) -> None:
        self._on_entry(real, "mkdir", path, *args, **options)

    def _os_rmdir(self, real: Any, path: Any, **options: Any) -> None:
        self._on_entry(real, "unlink", path, **options)

    def _on_entry(self, real: Any, call: str, path: Any, *args: Any, **options: Any) -> None:
        name = None if options.get("dir_fd") is not None else self._name(path)
        if name is None:
            real(path, *args, **options)
            return
        with self._step():
            real(path, *args, **options)
            self._add(call, name, self._inodes.pop(name, DIRECTORY))

    def _os_unlink(self, real: Any, path: Any, **options: Any) -> None:
        self._on_entry(real, "unlink", path, **options)

    def _os_link(self, real: Any, source: Any, path: Any, **options: Any) -> None:
        old, new = self._name(source), self._name(path)
        if old is None or new is None:
            real(source, path, **options)
            return
        with self._step():
            real(source, path, **options)
            self._inodes[new] = self._inodes[old]
            self._add("link", new, self._inodes[new])

    def _os_rename(self, real: Any, source: Any, path: Any, **options: Any) -> None:
        old, new = self._name(source), self._name(path)
        if old is None or new is None:
            real(source, path, **options)
            return
        with self._step():
            real(source, path, **options)
            self._inodes[new] = self._inodes.pop(old)
            self._add("rename", new, self._inodes[new], source=old)


_WRAPPED: dict[str, Callable[..., Any]] = {
    "open": Recorder._os_open,
    "close": Recorder._os_close,
    "write": Recorder._os_write,
    "pwrite": Recorder._os_pwrite,
    "ftruncate": Recorder._os_ftruncate,
    "fsync": Recorder._os_fsync,
    "fdatasync": Recorder._os_fsync,
    "mkdir": Recorder._os_mkdir,
    "rmdir": Recorder._os_rmdir,
    "link": Recorder._os_link,
    "unlink": Recorder._os_unlink,
    "remove": Recorder._os_unlink,
    "rename": Recorder._os_rename,
    "replace": Recorder._os_rename,
}
"""What changes files. A change made any other way shows when the record is replayed."""


def _caller() -> str:
    """The function of the store that wanted the fsync that is being recorded."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        module = frame.f_globals.get("__name__", "")
        if module.startswith("cas.") and frame.f_code.co_name not in _HELPERS:
            return f"{module.removeprefix('cas.')}.{frame.f_code.co_name}"
    return "?"


def read_tree(folder: Path) -> Tree:
    """Everything below a folder but `index/`."""
    found: Tree = {}
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "index"]
        for name in folders:
            found[str((Path(base) / name).relative_to(folder))] = None
        for name in files:
            file = Path(base) / name
            found[str(file.relative_to(folder))] = file.read_bytes()
    return found


def record(folder: Path, stages: list[dict[str, Work]], schedule: Schedule) -> Record:
    """Run works on `folder / "runs" / "store"`: those of a stage side by side, the stages one after another."""
    recorder = Recorder(folder, schedule)
    path = folder / "runs" / "store"
    with recorder.recording():
        for works in stages:
            schedule.run({name: _bound(work, path, Acknowledge(recorder, name)) for name, work in works.items()})
            remove_index(path)  # as for the next process after a crash
    return recorder.record


def _bound(work: Work, path: Path, acknowledge: Acknowledge) -> Callable[[], None]:
    return lambda: work(path, acknowledge)


def remove_index(path: Path) -> None:
    index = path / "index"
    if index.is_dir():
        for file in index.iterdir():
            file.unlink()
        index.rmdir()
