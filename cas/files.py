"""Files as sources of bytes: read when they are stored, and refused if they have changed since they were met."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

import numpy as np

from .errors import Invalid, NotFound
from .tensors import Array


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A regular file as it was when it was met: `stamp` changes whenever its content does."""

    path: str
    nbytes: int
    stamp: tuple[int, ...]

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> KnownFile:
        """`NotFound` if there is nothing, `Invalid` if it is no regular file."""
        text = os.fspath(path)
        try:
            status = os.stat(text)
        except FileNotFoundError as error:
            raise NotFound(f"{text} is not there") from error
        if not stat.S_ISREG(status.st_mode):
            raise Invalid(f"{text} is not a regular file")
        return cls(text, status.st_size, _stamp(status))

    def __fspath__(self) -> str:
        return self.path

    @property
    def changed(self) -> int:
        """When its content last changed, in nanoseconds of Unix time."""
        return self.stamp[1]

    def read_into(self, start: int, out: Array) -> None:
        """Copy the bytes [start, start + len(out)); `Invalid` if the file has changed."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._changed() from error
        try:
            rest = memoryview(out)
            while rest and (count := os.preadv(fd, [rest], start + len(out) - len(rest))):
                rest = rest[count:]
            if rest or _stamp(os.fstat(fd)) != self.stamp:
                raise self._changed()
        except IsADirectoryError as error:
            raise self._changed() from error
        finally:
            os.close(fd)

    def _changed(self) -> Invalid:
        return Invalid(f"{self.path} changed while it was read; commit again")

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), as many as the file has; `Invalid` if it has changed."""
        out = np.empty(max(0, min(stop, self.nbytes) - start), np.uint8)
        self.read_into(start, out)
        return out.tobytes()

    def part(self, start: int, stop: int, cell: int = 0) -> FileRange:
        return FileRange(self, start, stop - start, cell)

    def whole(self) -> FileRange:
        return FileRange(self, 0, self.nbytes)


@dataclass(frozen=True, slots=True)
class FileRange:
    """`nbytes` bytes of a file from `start` on. See `tensors.Source`.

    `cell`, if not 0, is where its blocks end: at multiples of so many bytes, as those of a larger tensor of which it
    is a part that begins at such a multiple.
    """

    file: KnownFile
    start: int
    nbytes: int
    cell: int = 0
    device = None

    def read_into(self, start: int, out: Array) -> None:
        self.file.read_into(self.start + start, out)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev
