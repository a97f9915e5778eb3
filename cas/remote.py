"""A store on any file system that fsspec reaches, by nothing but what all of them have.

Durability is the medium's: an object store answers when an object is durable; a file system behind fsspec (a
directory, FTP, SMB) gives no fsync, so a power cut over there may take what was just written.

Exactly one of racing creates wins only where the medium itself refuses to overwrite; fsspec's default looks first
and writes then. `has_honest_create` is False where that is known, and the opener sets it so where a probe says so:
such a store has one writer at a time.
"""

from __future__ import annotations

import builtins
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

from .backend import Buffer, FileInfo, Unsettled
from .errors import Corrupt, Exists, Invalid, NotFound, Unsupported
from .network import NetworkBackend, NetworkFile, temporary_name
from .remoting import about, check_name, status_of, without_secrets

T = TypeVar("T")

_STREAM = 8 << 20  # bytes that a file being written collects before they are sent
_APPEAR_WHOLE = {"gs", "gcs", "az", "abfs", "abfss", "s3"}
"""Protocols of object stores: a file opened for writing has its name only when all of it is there."""
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_memory = threading.Lock()  # fsspec's memory looks first and writes then: one thread of the process at a time


def open_remote(url: str, at: str, options: Mapping[str, Any]) -> RemoteBackend:
    """The backend of a URL by fsspec, which people know as `at`; nothing is asked of an object store yet."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise Unsupported(f"{at}: fsspec knows no protocol {protocol}; see fsspec.available_protocols()") from None
    except ImportError as error:
        raise Unsupported(f"{at} needs a package that is not installed: {error}") from error
    options = {"use_listings_cache": False, **options}
    with about(at, options), _opening(at, options):
        fs, root = fsspec.url_to_fs(url, skip_instance_cache=True, **options)
    return RemoteBackend(fs, root, at)


class RemoteBackend(NetworkBackend[Any]):
    """The `Backend` of a folder `root` of an fsspec file system. Usable after fork, except for files being written.

    Of a file system that is not asynchronous every thread uses an instance, and so a connection, of its own.
    """

    def __init__(self, fs: Any, root: str, url: str) -> None:
        self._recipe = type(fs), fs.storage_args, fs.storage_options
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        self._in_memory = "memory" in protocols
        self._appears_whole = bool(protocols & _APPEAR_WHOLE)
        self._is_async = bool(fs.async_impl)
        self._is_flat = self._in_memory or _overrides(fs, "_find")  # one request lists all below a prefix
        self._moves = _overrides(fs, "mv")
        self.has_honest_create = self._is_async or self._in_memory or _overrides(fs, "pipe_file")
        super().__init__(url, fs._strip_protocol(root), fs.storage_options)

    def _renew(self) -> None:
        super()._renew()
        self._shared: Any = None
        self._mine = threading.local()

    @property
    def parallel(self) -> int:
        return 16 if self._is_async else 4

    def now(self) -> float:
        """This machine's clock: fsspec has no way to ask for another."""
        return time.time()

    def _end(self, name: str, length: int) -> tuple[bytes, int]:
        size = self.size(name)
        return self._fetch(name, max(0, size - length), min(size, length)), size

    def exists(self, name: str) -> bool:
        path = self.path(name)
        try:
            self.ask(name, lambda fs: fs.info(path))
        except NotFound:
            return False
        return True

    def size(self, name: str) -> int:
        path = self.path(name)
        return _size(self.ask(name, lambda fs: fs.info(path)))

    def list(self, folder: str) -> builtins.list[FileInfo]:
        path = self.path(folder) if folder else self._root
        found = self.ask(folder, lambda fs: self._find(fs, path))
        return sorted(found, key=lambda info: info.name)

    def create(self, name: str, data: Buffer) -> None:
        """As in `Backend`. `Unsettled` if the name may be there all the same; on other errors it is not.

        An asynchronous file system tries again by itself and may meet what it has just created: there, whoever finds
        his very bytes has won. In one-writer mode another writer may go unnoticed.
        """
        path, body = self.path(name), bytes(data)
        if self.has_honest_create:
            self.make_parent(path)
            self.give_name(
                name,
                lambda: self._create(name, path, body),
                is_ours=lambda: self.holds(name, body),
                meets_own=self._is_async,
            )
            return
        if self.exists(name):
            raise Exists(f"{self.at(name)} is there already")
        self.replace(name, body)
        if not self.holds(name, body):
            raise Exists(f"{self.at(name)} was written by another process at the same time")

    def new_file(self, name: str, expected_size: int) -> RemoteFile:
        """As in `Backend`; that the name is free is only looked at before, so names must be random."""
        check_name(name)
        return RemoteFile(self, name, name if self._appears_whole else temporary_name())

    def replace(self, name: str, data: Buffer) -> None:
        path, body = self.path(name), bytes(data)
        if self._appears_whole or self._in_memory:
            self.ask(name, lambda fs: fs.pipe_file(path, body))
            return
        temporary = temporary_name()
        self.make_parent(self.path(temporary))
        self.ask(name, lambda fs: fs.pipe_file(self.path(temporary), body))
        self.move(temporary, name)

    def move(self, source: str, target: str) -> None:
        """Give a file another name, which is taken over where it is taken."""
        old, new = self.path(source), self.path(target)
        self.make_parent(new)

        def move(fs: Any) -> None:
            if self._moves:
                fs.mv(old, new)
            else:
                fs.cp_file(old, new)
                fs.rm_file(old)

        self.once(target, move)

    def close(self) -> None:
        """Give back memory and connections; a later call opens them again."""
        self._renew()

    def open_stream(self, name: str) -> Any:
        """A file of fsspec's, to be written to."""
        path = self.path(name)
        self.make_parent(path)
        return self.ask(name, lambda fs: fs.open(path, "wb", block_size=_STREAM))

    def once(self, name: str, call: Callable[[Any], T]) -> T:
        with self.about(name):
            return call(self._fs())

    def _fs(self) -> Any:
        kind, args, options = self._recipe
        if not self._is_async:
            if not hasattr(self._mine, "fs"):
                with _opening(self._url, options):
                    self._mine.fs = kind(*args, **options, skip_instance_cache=True)
            return self._mine.fs
        with self._lock:
            if self._shared is None:
                with _opening(self._url, options):
                    self._shared = kind(*args, **options, skip_instance_cache=True)
            return self._shared

    def _fetch(self, name: str, start: int, length: int) -> bytes:
        path = self.path(name)

        def fetch(fs: Any) -> bytes:
            try:
                data: bytes = fs.cat_file(path, start=start, end=start + length)
            except FileNotFoundError:
                raise
            except Exception:  # some refuse a range that begins where the file ends
                if start < _size(fs.info(path)):
                    raise
                return b""
            return data

        return self.ask(name, fetch) if length else b""

    def _find(self, fs: Any, path: str) -> builtins.list[FileInfo]:
        fs.invalidate_cache()
        below = path + "/"
        return [
            FileInfo(at[len(self._root) + 1 :], _size(info), _modified(fs, at, info))
            for at, info in (self._find_at_once(fs, path) if self._is_flat else _walk(fs, path))
            if at.startswith(below) and info["type"] == "file"
        ]

    def _find_at_once(self, fs: Any, path: str) -> builtins.list[tuple[str, Any]]:
        try:
            return list(fs.find(path, detail=True).items())
        except FileNotFoundError:
            return []

    def _create(self, name: str, path: str, body: bytes) -> None:
        try:
            with _memory if self._in_memory else nullcontext():
                self.once(name, lambda fs: fs.pipe_file(path, body, mode="create"))
        except OSError as error:
            if status_of(error) != 412:  # "precondition failed": the name was to be free
                raise
            raise Exists(f"{self.at(name)} is there already") from error

    def _remove(self, server: Any, path: str) -> None:
        if self._appears_whole:
            server.info(path)  # object stores are content to delete what is not there
        server.rm_file(path)

    def _make_folders(self, server: Any, folder: str) -> None:
        if not self._appears_whole and not self._in_memory:
            server.makedirs(folder, exist_ok=True)


class RemoteFile(NetworkFile):
    """The `NewFile` of an fsspec file system, under another name while it is written where parts can be seen."""

    def __init__(self, backend: RemoteBackend, name: str, written_as: str) -> None:
        super().__init__(name)
        self._backend = backend
        self._written_as = written_as
        self._stream = backend.open_stream(written_as)

    def _append(self, view: memoryview) -> None:
        self._backend.once(self._name, lambda fs: self._stream.write(view))

    def _finish(self) -> None:
        if self._backend.exists(self._name):
            raise Exists(f"{self._name} is there already")
        self._backend.once(self._name, lambda fs: self._stream.close())
        if self._written_as != self._name:
            self._check_size(self._written_as)
            try:
                self._backend.move(self._written_as, self._name)
            except OSError as error:
                raise Unsettled(f"{self._backend.at(self._name)} may be there or not: {error}") from error
        self._check_size(self._name)

    def _check_size(self, name: str) -> None:
        there = self._backend.size(name)
        if there != self._size:
            raise OSError(f"{name} has {there} bytes where {self._size} were written: write it again")

    def _discard(self) -> None:
        if self._written_as == self._name:
            with suppress(Exception):
                self._stream.discard()
            self._stream.closed = True  # else its end would publish what there is
            return
        with suppress(Exception):
            self._stream.close()
        with suppress(Exception):
            self._backend.delete(self._written_as)


@contextmanager
def _opening(at: str, options: Mapping[str, Any]) -> Iterator[None]:
    """What goes wrong before anything is asked, such as a file with credentials that is missing, is the options'."""
    try:
        yield
    except (FileNotFoundError, TypeError, ValueError) as error:
        reason = without_secrets(str(error), options)
        raise Invalid(f"{at} cannot be opened with these storage options: {reason}") from error


def _overrides(fs: Any, method: str) -> bool:
    """Whether a file system has its own way, not fsspec's general one."""
    owner = next((kind for kind in type(fs).__mro__ if method in vars(kind)), None)
    return owner is not None and owner.__module__ not in ("fsspec.spec", "fsspec.asyn")


def _walk(fs: Any, folder: str) -> Iterator[tuple[str, Any]]:
    """Everything below a folder. fsspec's own walk takes a folder that it cannot list for an empty one."""
    todo = [folder]
    while todo:
        path = todo.pop()
        try:
            entries = fs.ls(path, detail=True)
        except FileNotFoundError:  # also where it has vanished since its parent was listed
            continue
        for info in entries:
            at = info["name"].rstrip("/")
            if info["type"] == "directory" and at != path:
                todo.append(at)
            yield at, info


def _size(info: Mapping[str, Any]) -> int:
    if info["type"] != "file":
        raise Corrupt(f"{info['name']} is a folder, not a file: restore it")
    return int(info["size"])


def _modified(fs: Any, path: str, info: Mapping[str, Any]) -> float:
    """Unix seconds; times without a zone are UTC."""
    found = next((info[key] for key in _TIMES if info.get(key) is not None), None)
    moment = fs.modified(path) if found is None else found
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if isinstance(moment, datetime):
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return float(moment)
