"""A directory that appears at once and whole, durable, or not at all.

Files are written and synced under a hidden name beside it. A directory that was not there then gets its name by one
rename. One that was there keeps its other files: ours are moved in one by one, in the order in which they were
written; the first that is written is moved last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from cas.directfile import BufferPool, DirectStream, about, flush, sync_directory
from cas.errors import Exists, Invalid

_HIDDEN = ".cas-checkout-"


class NewFolder:
    """The `with` block fills the directory `path`; an exception leaves everything as it was.

    A path that holds something is `Exists` unless `force`.
    """

    def __init__(self, path: Path, force: bool) -> None:
        self.path = Path(os.path.realpath(path))
        self._inside = self.path.is_dir()
        if os.path.lexists(self.path) and not self._inside:
            raise Invalid(f"{path} is a file; name a directory with -o")
        if self._inside and not force and any(not name.startswith(_HIDDEN) for name in os.listdir(self.path)):
            raise Exists(f"{path} is not empty; name another directory with -o, or pass --force to write into it")
        self._top = self.path if self._inside else _topmost_missing(self.path)
        above = self.path if self._inside else self._top.parent
        self._hidden = above / f"{_HIDDEN}{os.urandom(8).hex()}"
        self._files = self._hidden if self._inside else self._hidden / self.path.relative_to(self._top)
        self._names: list[str] = []

    def __enter__(self) -> NewFolder:
        try:
            with about(str(self.path)):
                self._files.mkdir(parents=True)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                with about(str(self.path)):
                    self._publish()
        finally:
            self._remove()

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """One file of the directory, its bytes on the disk."""
        path = self._files / name
        shown = str(self.path / name)
        with about(str(self.path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            stream = DirectStream(fd, BufferPool())
            try:
                for piece in pieces:
                    with about(shown):
                        stream.write(memoryview(piece))
                with about(shown):
                    stream.finish()
                    flush(fd)
            finally:
                stream.stop()
        finally:
            os.close(fd)
        self._names.append(name)

    def _publish(self) -> None:
        for folder, _, _ in os.walk(self._hidden, topdown=False):
            sync_directory(folder)
        if self._inside:
            for name in reversed(self._names):
                target = self.path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self._files / name, target)
                sync_directory(str(target.parent))
            sync_directory(str(self.path))
        else:
            os.rename(self._hidden, self._top)
            sync_directory(str(self._top.parent))

    def _remove(self) -> None:
        shutil.rmtree(self._hidden, ignore_errors=True)


def _topmost_missing(path: Path) -> Path:
    while not path.parent.exists():
        path = path.parent
    return path
