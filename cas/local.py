"""A store in a local directory: files that are durable, and get their name in one step.

The contract of `create` and of `new_file(...).publish()`: afterwards content and name survive a power cut.
Until then the bytes stand under `tmp/`, where no reader looks. The order is the argument:

    write to tmp/<random>   a crash leaves garbage in tmp/, which the next writer never meets
    fsync the file          before the name, so that no reader ever sees a name without its bytes
    link to the name        exactly one of racing callers wins, on network file systems too
    unlink tmp/<random>
    fsync the directory     and, once per process, every directory above it up to the root

An error before the link means that the file does not exist and must be written again. An error that leaves it
open whether the name stands, or will stand after a crash, is `Unsettled`. `replace` promises none of this.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from .backend import Buffer, FileInfo
from .buffers import BufferPool
from .directfile import DirectStream, UnnamedFile, about, remove_if_left, sync_directory
from .errors import Corrupt, Invalid, NotFound, Unsupported

STREAM_FROM = 256 << 10  # bytes; a file up to this size costs no large buffer and no thread
OPEN_FILES = 128
MAX_WHOLE = 64 << 20  # bytes; files that are read whole are records, the hint and cas.json
_IOV_MAX = 1024  # buffers per preadv: what Linux and macOS take
_IO_MAX = 1 << 30  # bytes per read: macOS refuses 2 GiB, Linux cuts it

_NO_LINKS = {errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}


class LocalBackend:
    """The `Backend` of a directory that exists. Usable after fork, except for files then being written.

    Files read by range stay open; the hint, which alone is ever replaced, must therefore be read whole.
    """

    is_remote = False
    parallel = 1
    has_honest_create = True

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(root)
        self._settled: set[str] = set()  # directories whose own names are durable
        self._renew()
        _backends.add(self)

    def _renew(self) -> None:
        """Fresh locks and caches: after a fork another thread may have held the old ones."""
        self.pool = BufferPool()
        self._open_files = _OpenFiles(OPEN_FILES)

    @property
    def url(self) -> str:
        return self.root

    @property
    def place(self) -> str:
        return self.root

    def now(self) -> float:
        return time.time()

    def forget(self, name: str) -> None:
        """Nothing is cached."""

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        if start < 0 or (length is not None and length < 0):
            raise Invalid(f"cannot read {length} bytes of {name} from {start}: give numbers from 0 up")
        whole = start == 0 and length is None
        file = _OpenFile(self._path(name)) if whole else self._open_files.get(self._path(name))
        with about(file.path):
            end = file.size if length is None else min(file.size, start + length)
            if whole and end > MAX_WHOLE:
                raise Corrupt(f"{name} has {end} bytes, which no such file of a store has: restore it")
            return _read_range(file.fd, start, end)

    def readinto(self, name: str, start: int, buffers: Sequence[memoryview]) -> None:
        file = self._open_files.get(self._path(name))
        left = [view.cast("B") for view in buffers if view.nbytes]
        first, offset = 0, start
        while first < len(left):
            with about(file.path):
                count = os.preadv(file.fd, left[first : first + _IOV_MAX], offset)
            if count == 0:
                raise Corrupt(f"{name} ends at byte {offset}, before what should stand there: run fsck")
            offset += count
            while first < len(left) and count >= len(left[first]):
                count -= len(left[first])
                first += 1
            if count:
                left[first] = left[first][count:]

    def tail(self, name: str, length: int) -> tuple[bytes, int]:
        file = self._open_files.get(self._path(name))
        with about(file.path):
            return _read_range(file.fd, max(0, file.size - length), file.size), file.size

    def exists(self, name: str) -> bool:
        try:
            os.lstat(self._path(name))  # a link that leads nowhere takes the name all the same
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise Corrupt(f"{self._path(name)} is below a loop of links: restore it") from error
        return True

    def list(self, folder: str) -> list[FileInfo]:
        """As in `Backend`; `""` is the root. Symbolic links are neither listed nor followed."""
        self._open_files.drop_deleted()
        return sorted(_scan(self._folder_path(folder), folder), key=lambda info: info.name)

    def create(self, name: str, data: Buffer) -> None:
        """As in `Backend`. `Unsettled` if the name may be there all the same; on other errors it is not."""
        with self._unnamed(name) as file:
            file.write(data)
            file.publish()

    def new_file(self, name: str, expected_size: int) -> LocalFile:
        """As in `Backend`. Nothing is reserved: preallocation made the writes slower."""
        self._path(name)
        return LocalFile(self, name)

    def replace(self, name: str, data: Buffer) -> None:
        with self._unnamed(name) as file:
            file.write(data)
            file.rename()

    def delete(self, name: str) -> None:
        path = self._path(name)
        self._open_files.drop(path)
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"{path} is not there") from None

    def sweep(self, age: float) -> None:
        """As in `Backend`: whoever writes a file under `tmp/` holds its lock."""
        for info in self.list("tmp"):
            if time.time() - info.modified >= age:
                remove_if_left(self._path(info.name))

    def sync(self, folder: str) -> None:
        """As in `Backend`; `""` is the root, and a missing folder is nothing to sync."""
        with contextlib.suppress(FileNotFoundError):
            sync_directory(self._folder_path(folder))

    def close(self) -> None:
        """Give back descriptors and memory; a later call opens them again."""
        self._open_files.clear()
        self.pool.clear()

    def check_links(self) -> None:
        """`Unsupported` where hard links, and so an honest create-if-absent, are missing."""
        with self._unnamed(f"tmp/{secrets.token_hex(16)}") as file:
            try:
                os.link(file.temporary, file.path)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                raise Unsupported(
                    f"{self.root} is on a file system without hard links, which a store needs to publish "
                    "safely: choose another directory"
                ) from error
            os.unlink(file.path)

    def _settle(self, folder: str) -> None:
        """Make `folder` and those above it where they are missing, and make their names durable.

        Those that exist too: whoever made them may have crashed before its fsync. Once per process.
        """
        if not folder or (folder in self._settled and os.path.isdir(f"{self.root}/{folder}")):
            return
        parent = os.path.dirname(folder)
        self._settle(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{self.root}/{folder}")
        sync_directory(f"{self.root}/{parent}")
        self._settled.add(folder)

    def _unnamed(self, name: str) -> UnnamedFile:
        path = self._path(name)
        with about(path):
            self._settle(os.path.dirname(name))
        return UnnamedFile(f"{self.root}/tmp/{secrets.token_hex(16)}", path)

    def _path(self, name: str) -> str:
        parts = name.split("/")
        if "" in parts or "." in parts or ".." in parts or "\0" in name:
            raise Invalid(f"{name!r} is no name of a file in a store: use relative names without . and ..")
        return f"{self.root}/{name}"

    def _folder_path(self, folder: str) -> str:
        return self._path(folder) if folder else self.root


# Weak, so that a dropped backend closes its descriptors.
_backends: weakref.WeakSet[LocalBackend] = weakref.WeakSet()


def _renew_after_fork() -> None:
    for backend in list(_backends):
        backend._renew()


os.register_at_fork(after_in_child=_renew_after_fork)


class LocalFile:
    """The `NewFile` of a directory: collected in memory while small, then streamed past the page cache.

    After a failed `write` the file is lost: space and buffers are given back, and later calls raise again.
    """

    def __init__(self, backend: LocalBackend, name: str) -> None:
        self._backend = backend
        self._name = name
        self._size = 0
        self._small = bytearray()
        self._file: UnnamedFile | None = None
        self._stream: DirectStream | None = None
        self._ended: BaseException | None = None  # what a further call raises
        self._process = os.getpid()

    @property
    def size(self) -> int:
        return self._size

    @property
    def congested(self) -> bool:
        return self._stream is not None and self._stream.congested

    def write(self, data: Buffer) -> None:
        self._check()
        view = memoryview(data).cast("B")
        try:
            if self._stream is None and self._size + len(view) <= STREAM_FROM:
                self._small += view
            else:
                self._write_through(view)
        except BaseException as error:
            self._drop(error)  # part of the data may be in: nothing may follow it
            raise
        self._size += len(view)

    def publish(self) -> None:
        """As in `NewFile`, with `Unsettled` as in `LocalBackend.create`."""
        self._check()
        try:
            if self._stream is None or self._file is None:
                self._backend.create(self._name, self._small)
            else:
                with about(self._file.path):
                    self._stream.finish()
                self._file.publish()
        finally:
            self._drop(Invalid(f"{self._name} was published or has failed: start a new file"))

    def abandon(self) -> None:
        if self._ended is None and self._process == os.getpid():  # a fork's copy belongs to the parent
            self._drop(Invalid(f"{self._name} was abandoned: start a new file"))

    def _write_through(self, view: memoryview) -> None:
        if self._stream is None or self._file is None:
            self._file = self._backend._unnamed(self._name)
            with about(self._file.path):
                self._stream = DirectStream(self._file.fd, self._backend.pool)
                self._stream.write(memoryview(self._small))
            self._small = bytearray()
        with about(self._file.path):
            self._stream.write(view)

    def _drop(self, reason: BaseException) -> None:
        self._ended = reason
        self._small = bytearray()
        if self._stream is not None:
            self._stream.stop()  # before the descriptor is closed: the thread uses it
        if self._file is not None:
            self._file.discard()

    def _check(self) -> None:
        if self._ended is not None:
            raise self._ended
        if self._process != os.getpid():
            raise Invalid(f"{self._name} was begun before a fork: only the process that began it writes it")


class _OpenFile:
    """A descriptor that closes with its last user, so that a cache may forget it while others read."""

    def __init__(self, path: str) -> None:
        self.fd = -1
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for its writer
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"{path} is not there") from None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):
                raise
            raise Corrupt(f"{path} is a loop of links or a socket, not a file: restore it") from error
        with about(path):
            status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            raise Corrupt(f"{path} is a directory, a pipe or a device, not a file: restore it")
        self.size = status.st_size

    def __del__(self) -> None:
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)


class _OpenFiles:
    """The files read last, by path. Files are immutable, names never reused: nothing here goes stale."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str) -> _OpenFile:
        with self._lock:
            if path in self._files:
                self._files.move_to_end(path)
                return self._files[path]
        file = _OpenFile(path)  # outside the lock: a network file system may take its time
        with self._lock:
            file = self._files.setdefault(path, file)
            while len(self._files) > self._limit:
                self._files.popitem(last=False)
        return file

    def drop(self, path: str) -> None:
        with self._lock:
            self._files.pop(path, None)

    def drop_deleted(self) -> None:
        """Close what other processes have deleted: an open descriptor holds the disk space."""
        with self._lock:
            for path, file in list(self._files.items()):
                with about(path):
                    if os.fstat(file.fd).st_nlink == 0:
                        del self._files[path]

    def clear(self) -> None:
        with self._lock:
            self._files.clear()


def _read_range(fd: int, start: int, end: int) -> bytes:
    """Bytes from `start` to `end`, fewer where the file ends before."""
    parts = []
    while start < end:
        part = os.pread(fd, min(end - start, _IO_MAX), start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _scan(path: str, folder: str) -> Iterator[FileInfo]:
    """Files below `path`, in any order; what vanishes meanwhile is left out."""
    todo = [(path, folder)]
    while todo:
        path, folder = todo.pop()
        with about(path):
            for name, entry in _entries(path, folder):
                if entry.is_dir(follow_symlinks=False):
                    todo.append((entry.path, name))
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield FileInfo(name, status.st_size, status.st_mtime)


def _entries(path: str, folder: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """What stands in a directory, by its name below the root; nothing where there is none."""
    try:
        entries = os.scandir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise Corrupt(f"{path} is not a directory: restore it") from error
    with entries:
        for entry in entries:
            yield f"{folder}/{entry.name}" if folder else entry.name, entry
