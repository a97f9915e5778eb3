"""A store on an SSH server, by SFTP.

Files are written under `tmp/` and then renamed. The rename of SFTP's version 3 fails where the name is taken: OpenSSH
links and unlinks, so exactly one of racing callers wins (other servers: the probe tells). Before the rename the
server is asked to flush the file, which OpenSSH does; SFTP has no way to flush a directory. So after a power cut of the
server a file is whole or not there, and those named in its last seconds may be gone.
"""

from __future__ import annotations

import builtins
import re
import stat
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from .backend import Buffer, FileInfo
from .errors import Exists, Invalid, NotFound
from .network import NetworkBackend, NetworkFile, temporary_name
from .remoting import check_name, is_transient
from .retries import with_retries
from .sshlink import Address, Link

T = TypeVar("T")

_STREAM = 4 << 20  # bytes that a file being written collects before they are sent
_PARALLEL = 4
_URL = re.compile(r"\w+://(?:(?P<user>[^@/]*)@)?(?P<host>\[[^]/]*\]|[^/:]+)(?::(?P<port>\d+))?(?P<path>/.*)", re.DOTALL)


class SftpBackend(NetworkBackend[Link]):
    """The `Backend` of a folder on an SSH server.

    `options` are those of fsspec's sftp: what `paramiko.SSHClient.connect` takes, and `host_key_policy`. A host whose
    key is in the user's known_hosts must show that key. Every call has a connection of its own while it lasts.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        found = _URL.fullmatch(url)
        if found is None:
            raise Invalid(f"{url} names no folder on a server: write sftp://user@host/folder")
        given = {"username": found["user"], "port": found["port"] and int(found["port"])}
        given = {key: value for key, value in given.items() if value}
        self._address = Address.of(url, found["host"].strip("[]"), {**options, **given})
        self._ahead: float | None = None  # seconds of the server's clock before this machine's
        self.has_honest_create = True
        super().__init__(url, found["path"], self._address.options)

    def _renew(self) -> None:
        super()._renew()
        self._idle: list[Link] = []

    @property
    def parallel(self) -> int:
        return _PARALLEL

    def now(self) -> float:
        """The server's clock, as a file written there shows it, and this machine's from there on."""
        if self._ahead is None:
            temporary = self._put(b"")
            written = self.ask(temporary, lambda link: link.sftp.stat(self.path(temporary)).st_mtime)
            self.remove_if_left(temporary)
            self._ahead = written - time.time()
        return time.time() + self._ahead

    def _end(self, name: str, length: int) -> tuple[bytes, int]:
        path = self.path(name)
        return self.ask(name, lambda link: link.read(path, None, length))

    def exists(self, name: str) -> bool:
        try:
            self.size(name)
        except NotFound:
            return False
        return True

    def size(self, name: str) -> int:
        path = self.path(name)
        return int(self.ask(name, lambda link: link.sftp.stat(path).st_size))

    def list(self, folder: str) -> builtins.list[FileInfo]:
        found, todo = [], [self.path(folder) if folder else self._root]
        with ThreadPoolExecutor(_PARALLEL) as pool:  # a store has hundreds of folders, each some round trips
            while todo:
                scans = list(pool.map(self._scan, todo))
                found += [info for files, _ in scans for info in files]
                todo = [below for _, folders in scans for below in folders]
        return sorted(found, key=lambda info: info.name)

    def create(self, name: str, data: Buffer) -> None:
        """As in `Backend`. `Unsettled` if the name may be there all the same; on other errors it is not.

        In one-writer mode another writer may go unnoticed.
        """
        check_name(name)
        body = bytes(data)
        if not self.has_honest_create and self.exists(name):
            raise Exists(f"{self.at(name)} is there already")
        self._rename(self._put(body), name, lambda: self.holds(name, body))
        if not self.has_honest_create and not self.holds(name, body):
            raise Exists(f"{self.at(name)} was written by another process at the same time")

    def new_file(self, name: str, expected_size: int) -> SftpFile:
        check_name(name)
        return SftpFile(self, name)

    def replace(self, name: str, data: Buffer) -> None:
        path = self.path(name)
        temporary = self._put(bytes(data))
        self.make_parent(path)
        self.once(name, lambda link: link.replace(self.path(temporary), path))

    def close(self) -> None:
        """Give back memory and connections; a later call opens them again."""
        with self._lock:
            links, self._idle = self._idle, []
        for link in links:
            link.close()
        self._windows.clear()

    def once(self, name: str, call: Callable[[Link], T]) -> T:
        with self.about(name):
            link = self._take()
            try:
                return link.run(call)
            finally:
                self.give_back(link)

    def give_back(self, link: Link) -> None:
        """Keep an open connection for the next call."""
        if link.is_open:
            with self._lock:
                self._idle.append(link)

    def open_temporary(self, temporary: str) -> tuple[Link, Any]:
        """A file open for writing, and the connection that is its own until it is given back."""
        path = self.path(temporary)
        self.make_parent(path)

        def open_file() -> tuple[Link, Any]:
            with self.about(temporary):
                link = self._take()
                try:
                    return link, link.run(lambda link: link.sftp.open(path, "wb"))
                except BaseException:
                    self.give_back(link)
                    raise

        return with_retries(open_file, is_transient)

    def publish(self, temporary: str, name: str, size: int) -> None:
        """Rename a file of `size` bytes; random names make a file that has this one and that size ours."""
        there = self.size(temporary)
        if there != size:
            raise OSError(f"{self.at(name)} has {there} bytes where {size} were written: write it again")
        self._rename(temporary, name, lambda: self.size(name) == size)

    def remove_if_left(self, temporary: str) -> None:
        with suppress(OSError, NotFound):  # a sweep finds what is left
            self.once(temporary, lambda link: link.sftp.remove(self.path(temporary)))

    def _rename(self, temporary: str, name: str, is_ours: Callable[[], bool]) -> None:
        old, new = self.path(temporary), self.path(name)
        self.make_parent(new)
        try:
            self.give_name(name, lambda: self.once(name, lambda link: link.rename(old, new)), is_ours)
        except Exists:
            self.remove_if_left(temporary)
            raise

    def _put(self, body: bytes) -> str:
        """Write a small file; the name in `tmp/` that it has."""
        self.make_parent(self.path(temporary_name()))

        def put(link: Link) -> str:
            temporary = temporary_name()
            with link.sftp.open(self.path(temporary), "wb") as file:
                link.send(file, body)
                link.flush(file)
            return temporary

        return self.ask("tmp", put)

    def _take(self) -> Link:
        with self._lock:
            while self._idle:
                link = self._idle.pop()
                if link.is_open:
                    return link
        return Link(self._address)

    def _fetch(self, name: str, start: int, length: int) -> bytes:
        path = self.path(name)
        return self.ask(name, lambda link: link.read(path, start, length)[0])

    def _remove(self, server: Link, path: str) -> None:
        server.sftp.remove(path)

    def _make_folders(self, server: Link, folder: str) -> None:
        server.make_folders(folder)

    def _scan(self, folder: str) -> tuple[builtins.list[FileInfo], builtins.list[str]]:
        """The files that stand in a folder, by name below the root, and the paths of the folders."""
        below = len(self._root) + 1
        try:
            entries = self.ask(folder[below:], lambda link: link.sftp.listdir_attr(folder))
        except NotFound:
            return [], []
        files, folders = [], []
        for entry in entries:
            path = f"{folder}/{entry.filename}"
            if stat.S_ISDIR(entry.st_mode):
                folders.append(path)
            elif stat.S_ISREG(entry.st_mode):
                files.append(FileInfo(path[below:], entry.st_size, float(entry.st_mtime)))
        return files, folders


class SftpFile(NetworkFile):
    """The `NewFile` of an SSH server, under a name in `tmp/` while it is written, by a connection of its own."""

    def __init__(self, backend: SftpBackend, name: str) -> None:
        super().__init__(name)
        self._backend = backend
        self._temporary = temporary_name()
        self._waiting = bytearray()
        self._link: Link | None = None
        self._file: Any = None

    def _append(self, view: memoryview) -> None:
        while view:
            part = view[: _STREAM - len(self._waiting)]
            self._waiting += part
            view = view[len(part) :]
            if len(self._waiting) == _STREAM:
                self._send()

    def _finish(self) -> None:
        self._send(flush=True)
        self._give_back()
        self._backend.publish(self._temporary, self._name, self._size)

    def _discard(self) -> None:
        self._waiting = bytearray()
        with suppress(OSError):
            self._give_back()
        if self._file is not None:
            self._backend.remove_if_left(self._temporary)

    def _send(self, flush: bool = False) -> None:
        if self._link is None:
            self._link, self._file = self._backend.open_temporary(self._temporary)
        with self._backend.about(self._name):
            self._link.run(lambda link: link.send(self._file, self._waiting))
            if flush:
                self._link.run(lambda link: link.flush(self._file))
        self._waiting = bytearray()

    def _give_back(self) -> None:
        """The connection, when the file is no longer open in it."""
        if self._link is not None:
            link, self._link = self._link, None
            self._file.close()
            self._backend.give_back(link)
