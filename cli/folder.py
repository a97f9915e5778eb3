"""A directory that appears at once and whole, durable, or not at all.

Files are written and synced under a hidden name beside it. A directory that was not there then gets its name by one
rename. One that was there keeps its other files: ours are moved in one by one, in the order in which they were
written, the last one once all others are there for good.

The hidden directory is locked as long as its run lives, so that the next run removes what a killed one left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from cas.backend import Buffer
from cas.buffers import BufferPool
from cas.directfile import ALIGNMENT, DirectStream, about, flush, sync_directory
from cas.errors import Exists, Invalid
from cas.flocks import unlock

PIECE = 32 << 20
"""Bytes that are read at once while the ones before are written."""
_HIDDEN = ".cas-checkout-"
_LEFT = re.compile(re.escape(_HIDDEN) + "[0-9a-f]{16}")


class NewFile:
    """A file of a `NewFolder`, written from its start; `nbytes` are in it so far."""

    def __init__(self, fd: int, pool: BufferPool, shown: str) -> None:
        self.nbytes = 0
        self._stream = DirectStream(fd, pool)
        self._shown = shown

    def write(self, data: Buffer) -> int:
        """Append a copy of `data`; returns how much that was, as zipfile wants it."""
        view = memoryview(data).cast("B")
        with about(self._shown):
            self._stream.write(view)
        self.nbytes += len(view)
        return len(view)

    def room(self) -> memoryview:
        """Memory for `PIECE` bytes or more, which `advance` then appends without another copy."""
        with about(self._shown):
            return self._stream.room(PIECE)

    def advance(self, count: int) -> None:
        self._stream.advance(count)
        self.nbytes += count

    def flush(self) -> None:
        """Nothing: the file is synced as a whole."""

    def finish(self, fd: int) -> None:
        with about(self._shown):
            self._stream.finish()
            flush(fd)

    def stop(self) -> None:
        self._stream.stop()


class NewFolder:
    """The `with` block fills the directory `path`; an exception leaves everything as it was.

    A path that holds something is `Exists` unless `force`.
    """

    def __init__(self, path: Path, force: bool) -> None:
        self.path = Path(os.path.realpath(path))
        self._inside = self.path.is_dir()
        if os.path.lexists(self.path) and not self._inside:
            raise Invalid(f"{path} is a file; name a directory with -o")
        self.held = set(os.listdir(self.path)) if self._inside else set()
        if not force and any(not name.startswith(_HIDDEN) for name in self.held):
            raise Exists(f"{path} is not empty; name another directory with -o, or pass --force to write into it")
        self._top = self.path if self._inside else _topmost_missing(self.path)
        self._above = self.path if self._inside else self._top.parent
        if not self._above.is_dir():
            raise Invalid(f"{self._above} is a file, which {path} cannot be in; name another directory with -o")
        self._hidden = self._files = self._above
        self._lock = -1
        self._names: list[str] = []
        self._pool = BufferPool(size=PIECE + ALIGNMENT)

    def __enter__(self) -> NewFolder:
        try:
            with about(str(self.path)):
                _sweep(self._above)
                self._make_hidden()
                self._files.mkdir(parents=True, exist_ok=True)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                with about(str(self.path)), _uninterrupted():
                    self._publish()
        finally:
            self._remove()

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[NewFile]:
        """One file of the directory; its bytes are on the disk when the block ends."""
        path = self._files / name
        with about(str(self.path / name)):
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            file = NewFile(fd, self._pool, str(self.path / name))
            try:
                yield file
                file.finish(fd)
            finally:
                file.stop()
        finally:
            os.close(fd)
        self._names.append(name)

    def _make_hidden(self) -> None:
        """A hidden directory that is ours: one that a sweeper met before it was locked is gone by then."""
        while True:
            self._hidden = self._above / f"{_HIDDEN}{os.urandom(8).hex()}"
            self._files = self._hidden if self._inside else self._hidden / self.path.relative_to(self._top)
            self._hidden.mkdir()
            self._lock = os.open(self._hidden, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(OSError):  # a file system without locks: nobody sweeps there either
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            if self._hidden.exists():
                return
            unlock(self._lock)

    def _publish(self) -> None:
        for folder, _, _ in os.walk(self._hidden, topdown=False):
            sync_directory(folder)
        if not self._inside:
            try:
                os.rename(self._hidden, self._top)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                raise Exists(f"another process made {self._top} meanwhile; name another directory with -o") from None
            sync_directory(str(self._top.parent))
            return
        for name in self._names[:-1]:
            self._move(name)
        for folder in {str((self.path / name).parent) for name in self._names} | {str(self.path)}:
            if os.path.isdir(folder):
                sync_directory(folder)
        for name in self._names[-1:]:
            sync_directory(str(self._move(name)))

    def _move(self, name: str) -> Path:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._files / name, target)
        return target.parent

    def _remove(self) -> None:
        if self._hidden != self._above:
            shutil.rmtree(self._hidden, ignore_errors=True)
        if self._lock >= 0:
            unlock(self._lock)


def _topmost_missing(path: Path) -> Path:
    while not path.parent.exists():
        path = path.parent
    return path


def _sweep(above: Path) -> None:
    """Remove what killed runs left: their locks went with them."""
    names: list[str] = []
    with contextlib.suppress(PermissionError):
        names = os.listdir(above)
    for name in filter(_LEFT.fullmatch, names):
        with contextlib.suppress(OSError):
            fd = os.open(above / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(above / name, ignore_errors=True)
            finally:
                os.close(fd)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let no ^C fall between two renames; there is not much left to interrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
