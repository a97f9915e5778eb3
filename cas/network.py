"""What the backends of servers share: reads with windows, deletion, and giving a file its name exactly once.

A request that may be done twice is tried again while it fails in passing. One that gives a file its name may have
been done although its reply was lost: then what stands there by that name tells how it went.
"""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Generic, TypeVar

from .backend import Buffer, FileInfo, Unsettled
from .errors import CasError, Corrupt, Exists, Invalid, NotFound
from .remoting import about, check_name, is_transient
from .retries import with_retries
from .windows import Windows

S = TypeVar("S")  # what requests go through: a file system, a connection
T = TypeVar("T")

MAX_WHOLE = 64 << 20  # bytes; files that are read whole are records, the hint and cas.json
_ABANDONED = 3600.0  # seconds; no lock tells who is still writing: what is younger is taken to be in use


class NetworkBackend(ABC, Generic[S]):
    """The part of a `Backend` that is the same for every server. `options` may hold secrets, `url` does not.

    Usable after fork, except for files being written.
    """

    has_honest_create: bool

    def __init__(self, url: str, root: str, options: Mapping[str, Any]) -> None:
        self._url = url
        self._root = root.rstrip("/")
        self._options = options
        self._made: set[str] = set()  # folders that are there
        self._renew()
        _backends.add(self)

    def _renew(self) -> None:
        """Fresh locks, connections and caches: after a fork another thread may have held the old ones."""
        self._lock = threading.Lock()
        self._windows = Windows(self._fetch)

    @abstractmethod
    def once(self, name: str, call: Callable[[S], T]) -> T:
        """What the server answers to a request about the file."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file, by the server's word; `NotFound` where there is none."""

    @abstractmethod
    def list(self, folder: str) -> list[FileInfo]:
        """As in `Backend`."""

    @abstractmethod
    def now(self) -> float:
        """As in `Backend`."""

    @abstractmethod
    def _fetch(self, name: str, start: int, length: int) -> bytes:
        """Bytes from `start`, fewer only where the file ends."""

    @abstractmethod
    def _end(self, name: str, length: int) -> tuple[bytes, int]:
        """The last `length` bytes and the size."""

    @abstractmethod
    def _remove(self, server: S, path: str) -> None:
        """Delete a file; `FileNotFoundError` where there is none."""

    @abstractmethod
    def _make_folders(self, server: S, folder: str) -> None:
        """Make a folder, and those above it, where they are missing and the server has folders."""

    @property
    def url(self) -> str:
        return self._url

    @property
    def place(self) -> str:
        return self._url

    @property
    def is_remote(self) -> bool:
        return True

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        if start < 0 or (length is not None and length < 0):
            raise Invalid(f"cannot read {length} bytes of {name} from {start}: give numbers from 0 up")
        if length is None and start:
            length = max(0, self.size(name) - start)
        if length is not None:
            read = self._windows.read if Windows.serves(name, length) else self._fetch
            return read(name, start, length)
        data = self._fetch(name, 0, MAX_WHOLE + 1)
        if len(data) > MAX_WHOLE:
            raise Corrupt(f"{name} has over {MAX_WHOLE} bytes, which no such file of a store has: restore it")
        return data

    def readinto(self, name: str, start: int, buffers: Sequence[memoryview]) -> None:
        length = sum(view.nbytes for view in buffers)
        data = memoryview(self.read(name, start, length))
        if len(data) < length:
            raise Corrupt(f"{name} ends at byte {start + len(data)}, before what should stand there: run fsck")
        for view in buffers:
            view.cast("B")[:] = data[: view.nbytes]
            data = data[view.nbytes :]

    def tail(self, name: str, length: int) -> tuple[bytes, int]:
        data, size = self._end(name, length)
        self._windows.keep_tail(name, size - len(data), data)
        return data, size

    def delete(self, name: str) -> None:
        path, lost = self.path(name), False
        self._windows.forget(name)

        def delete() -> None:
            nonlocal lost
            try:
                self.once(name, lambda server: self._remove(server, path))
            except NotFound:
                if not lost:
                    raise  # else it is gone by our own doing: the reply was lost
            except OSError:
                lost = True
                raise

        with_retries(delete, is_transient)

    def forget(self, name: str) -> None:
        self._windows.forget(name)

    def sweep(self, age: float) -> None:
        """As in `Backend`, but only what is an hour old: no lock tells who is still writing."""
        for info in self.list("tmp"):
            if self.now() - info.modified >= max(age, _ABANDONED):
                with suppress(NotFound):
                    self.delete(info.name)

    def sync(self, folder: str) -> None:
        """Nothing: there is no way to ask a server for it."""

    def ask(self, name: str, call: Callable[[S], T]) -> T:
        """What the server answers, asked again while it fails in passing. For what may be done twice."""
        return with_retries(lambda: self.once(name, call), is_transient)

    def give_name(
        self, name: str, act: Callable[[], None], is_ours: Callable[[], bool], meets_own: bool = False
    ) -> None:
        """Do what gives a file its name. `Exists` if it is taken, `Unsettled` if that cannot be known.

        `is_ours` tells whether the file that stands there is the one; `meets_own`: also where `act` finds the name
        taken, because it tries again by itself.
        """
        unknown = False

        def attempt() -> None:
            nonlocal unknown
            try:
                act()
            except (CasError, OSError) as error:
                taken = isinstance(error, Exists)
                if (unknown or (taken and meets_own)) and self._is_ours(name, is_ours):
                    return
                if taken or not (unknown or is_transient(error)):
                    raise
                unknown = True
                raise Unsettled(f"{self.at(name)} may be there or not: {error}") from error

        with_retries(attempt, lambda error: isinstance(error, Unsettled))

    def holds(self, name: str, body: bytes) -> bool:
        """Whether these bytes are the file's."""
        return self._fetch(name, 0, len(body) + 1) == body

    def make_parent(self, path: str) -> None:
        folder = path.rpartition("/")[0]
        if folder not in self._made:
            self.ask("", lambda server: self._make_folders(server, folder))
            self._made.add(folder)

    def about(self, name: str) -> AbstractContextManager[None]:
        return about(self.at(name), self._options)

    def at(self, name: str) -> str:
        """Where the file is, for people."""
        return f"{self._url.rstrip('/')}/{name}".rstrip("/")

    def path(self, name: str) -> str:
        check_name(name)
        return f"{self._root}/{name}"

    def _is_ours(self, name: str, is_ours: Callable[[], bool]) -> bool:
        try:
            return is_ours()
        except NotFound:
            return False
        except OSError as error:
            raise Unsettled(f"{self.at(name)} cannot be read to see whose it is: {error}") from error


_backends: weakref.WeakSet[NetworkBackend[Any]] = weakref.WeakSet()


def _renew_after_fork() -> None:
    for backend in list(_backends):
        backend._renew()


os.register_at_fork(after_in_child=_renew_after_fork)


class NetworkFile(ABC):
    """The part of a `NewFile` that is the same for every server: sent as it is written.

    After a failed `write` the file is lost, and later calls raise again.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._size = 0
        self._process = os.getpid()
        self._ended: BaseException | None = None  # what a further call raises

    @abstractmethod
    def _append(self, view: memoryview) -> None:
        """Send, or collect a copy."""

    @abstractmethod
    def _finish(self) -> None:
        """Send the rest and give the file its name."""

    @abstractmethod
    def _discard(self) -> None:
        """Remove what was sent, as far as that goes: what led here is the error to raise."""

    @property
    def size(self) -> int:
        return self._size

    @property
    def congested(self) -> bool:
        """Always: a write waits for the network."""
        return True

    def write(self, data: Buffer) -> None:
        self._check()
        view = memoryview(data).cast("B")
        try:
            self._append(view)
        except BaseException as error:
            self._drop(error)
            raise
        self._size += len(view)

    def publish(self) -> None:
        """As in `NewFile`. `Unsettled` if the name may be there all the same."""
        self._check()
        try:
            self._finish()
        except BaseException:
            self._drop(Invalid(f"{self._name} has failed: start a new file"))
            raise
        self._ended = Invalid(f"{self._name} was published: start a new file")

    def abandon(self) -> None:
        if self._ended is None and self._process == os.getpid():  # a fork's copy belongs to the parent
            self._drop(Invalid(f"{self._name} was abandoned: start a new file"))

    def _drop(self, reason: BaseException) -> None:
        self._ended = reason
        self._discard()

    def _check(self) -> None:
        if self._ended is not None:
            raise self._ended
        if self._process != os.getpid():
            raise Invalid(f"{self._name} was begun before a fork: only the process that began it writes it")


def temporary_name() -> str:
    return f"tmp/{secrets.token_hex(16)}"
