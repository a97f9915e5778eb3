"""Where a store's files live. Files are immutable once they have their name; only the hint is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .errors import NotFound

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One listed file: its `name` relative to the store, its `size` in bytes, `modified` in Unix seconds."""

    name: str
    size: int
    modified: float


class NoPlace(NotFound):
    """Not only the file is missing: what the whole store is to stand in is."""


class Unsettled(OSError):
    """The medium failed after the file may have got its name: it may be there now or appear later."""


class NewFile(Protocol):
    """A file being written. It has no name, and so does not exist for readers, until `publish`.

    Not thread-safe: one thread at a time may call `write`.
    """

    @property
    def size(self) -> int:
        """Bytes written so far."""
        ...

    @property
    def congested(self) -> bool:
        """True when the disk is behind, so that a large `write` now would wait for it."""
        ...

    def write(self, data: Buffer) -> None:
        """Append; the data is copied before this returns. An earlier background failure is raised here."""
        ...

    def publish(self) -> None:
        """Make content, name and directory durable, then return. `Exists` if the name is taken.

        On any other error the file is lost and must be written again under a new name.
        """
        ...

    def abandon(self) -> None:
        """Drop what was written. Does nothing after `publish` or `abandon`."""
        ...


class Backend(Protocol):
    """Named files under one root. Names are relative, with `/`. Safe to use from many threads.

    `NotFound` for a missing file, `OSError` for everything that the medium reports.
    """

    @property
    def url(self) -> str:
        """Where the files are, for people: no secrets stand in it."""
        ...

    @property
    def place(self) -> str:
        """What tells it from every other, also from one of the same `url` elsewhere: no secrets stand in it."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether every call is a request over a network, so that fewer and larger ones pay."""
        ...

    @property
    def parallel(self) -> int:
        """How many calls are worth having in flight at once, whatever the number of processors."""
        ...

    has_honest_create: bool
    """False where the medium lets one writer overwrite what another created: such a store takes one at a time."""

    def now(self) -> float:
        """Unix time by the clock that `modified` comes from."""
        ...

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes from `start`; fewer than `length` only where the file ends."""
        ...

    def readinto(self, name: str, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers one after the other from `start`; `Corrupt` if the file ends before."""
        ...

    def tail(self, name: str, length: int) -> tuple[bytes, int]:
        """The last `length` bytes (all of a shorter file) and the file's size."""
        ...

    def exists(self, name: str) -> bool: ...

    def list(self, folder: str) -> list[FileInfo]:
        """Every file below `folder`, at any depth, sorted by name; a missing folder is empty."""
        ...

    def create(self, name: str, data: Buffer) -> None:
        """Create a small file whole and durable; exactly one of racing callers wins, the others get `Exists`."""
        ...

    def new_file(self, name: str, expected_size: int) -> NewFile:
        """Start a large file; `expected_size` is a hint that the medium may reserve."""
        ...

    def replace(self, name: str, data: Buffer) -> None:
        """Write or overwrite a hint: readers see old or new, and a power cut may lose or empty it."""
        ...

    def delete(self, name: str) -> None: ...

    def forget(self, name: str) -> None:
        """Drop what is cached of a file's content: it proved bad, and the next read asks the medium itself."""
        ...

    def sweep(self, age: float) -> None:
        """Remove what crashed writers left under no name, `age` seconds old or older; what is being written stays."""
        ...

    def sync(self, folder: str) -> None:
        """Make the names in `folder` itself (not below) as durable as this process sees them."""
        ...

    def close(self) -> None: ...
