"""A file being written: its bytes on their way to the disk, and the file on its way to its name.

`DirectStream` writes past the page cache, one thread filling buffers while another writes them. Direct writes
cost a tenth of the CPU of buffered ones and do not push the training data out of memory, but the kernel takes
them only from aligned memory, at aligned offsets, in aligned lengths. So data is copied into page-aligned
buffers, or read straight into them (`room`); full ones go to one writer thread per stream; the last, odd piece
goes out buffered. A file system that refuses direct writes gets ordinary ones from the same buffers. The stream
makes nothing durable.

`UnnamedFile.publish` does: its comment is the argument why a name never stands for less than the whole file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import threading
from collections.abc import Iterator
from queue import SimpleQueue

import numpy as np

from .backend import Buffer, Unsettled
from .buffers import BufferPool
from .errors import Exists

ALIGNMENT = 4096  # what every common disk and file system takes; a larger sector means buffered writes

# A link that fails with one of these was not made. After any other error (EIO; a network file system whose
# reply was lost) it may have been.
_NOT_LINKED = {
    errno.EACCES, errno.EDQUOT, errno.ELOOP, errno.EMLINK, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOSPC,
    errno.ENOSYS, errno.ENOTDIR, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EROFS, errno.EXDEV,
}  # fmt: skip

_O_DIRECT: int = getattr(os, "O_DIRECT", 0)  # absent on macOS


class DirectStream:
    """Appends to the descriptor `fd` from offset 0; the caller keeps it, and closes it after `stop`.

    One thread at a time calls. A failed background write is raised by the next `write` or by `finish`; after
    any error only `stop` makes sense.
    """

    def __init__(self, fd: int, pool: BufferPool) -> None:
        self.held = 0  # buffers out of the pool; the pool's lock guards it
        self._fd = fd
        self._pool = pool
        self._direct = _set_direct(fd, True)
        self._buffer: memoryview | None = None
        self._filled = 0
        self._offset = 0  # where the current buffer goes
        self._full: SimpleQueue[tuple[memoryview, int, int] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def congested(self) -> bool:
        """True when no buffer is to be had before the disk has finished one."""
        return self._pool.must_wait(self)

    def write(self, data: memoryview) -> None:
        """Copy `data` (plain bytes) into buffers and hand on the full ones; waits when the disk is behind."""
        position = 0
        while position < len(data):
            if self._buffer is None:
                self._buffer = self._pool.acquire(self)
            self._raise_error()
            count = min(len(data) - position, len(self._buffer) - self._filled)
            place = np.frombuffer(self._buffer, np.uint8, count, self._filled)
            np.copyto(place, np.frombuffer(data, np.uint8, count, position))  # which lets other threads run meanwhile
            self._filled += count
            position += count
            if self._filled == len(self._buffer):
                self._hand_on()

    def room(self, least: int) -> memoryview:
        """Memory of the stream's own, `least` bytes or more, to fill from its start; then `advance` by how many.

        `least` is at most the size of a buffer less `ALIGNMENT`.
        """
        if self._buffer is not None and len(self._buffer) - self._filled < least:
            self._hand_on()
        if self._buffer is None:
            self._buffer = self._pool.acquire(self)
        self._raise_error()
        return self._buffer[self._filled :]

    def advance(self, count: int) -> None:
        """The first `count` bytes of `room` are the next ones of the file."""
        self._filled += count

    def finish(self) -> None:
        """Write everything that is still here; the descriptor then has all bytes, not yet durable."""
        self._join()
        self._raise_error()
        if self._buffer is None:
            return
        aligned = self._filled & -ALIGNMENT if self._direct else 0
        self._put(self._buffer[:aligned], self._offset)
        if self._direct:
            self._direct = _set_direct(self._fd, False)
        self._put(self._buffer[aligned : self._filled], self._offset + aligned)
        self._give_back()

    def stop(self) -> None:
        """End the thread and return the buffers, whatever state the stream is in."""
        if self._error is None:
            self._error = RuntimeError("the stream was stopped")  # what is queued need not be written
        self._join()
        self._give_back()

    def _hand_on(self) -> None:
        """Give what fills whole sectors to the writer; the odd rest begins the next buffer."""
        assert self._buffer is not None
        if self._thread is None:
            self._thread = self._start()
        full, offset = self._buffer, self._offset
        whole = self._filled & -ALIGNMENT
        rest = bytes(full[whole : self._filled])
        self._buffer, self._filled, self._offset = None, 0, offset + whole
        self._full.put((full, whole, offset))
        if self._thread is None:
            self._write_next()
        if rest:
            self._buffer = self._pool.acquire(self)
            self._buffer[: len(rest)] = rest
            self._filled = len(rest)

    def _start(self) -> threading.Thread | None:
        """The writer; None where the interpreter, shutting down, starts no threads: the caller writes itself.

        A daemon, so that a hung disk cannot keep the process from exiting.
        """
        thread = threading.Thread(target=self._run, name="cas-writer", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return None
        return thread

    def _run(self) -> None:
        while self._write_next():
            pass

    def _write_next(self) -> bool:
        """Write one queued buffer; False at the end of the queue. After an error buffers only go back."""
        item = self._full.get()
        if item is None:
            return False
        buffer, count, offset = item
        try:
            if self._error is None:
                self._put(buffer[:count], offset)
        except BaseException as error:  # a worker's failure is the caller's failure, of whatever kind
            self._error = error
        finally:
            self._pool.release(self, buffer)
        return True

    def _put(self, data: memoryview, offset: int) -> None:
        """Write all of `data`; where a direct write is refused, this and all later ones are buffered."""
        done = 0
        while done < len(data):
            try:
                count = os.pwrite(self._fd, data[done:], offset + done)
            except OSError as error:
                # Also after a short write that ended off the alignment, as on a disk that is nearly full.
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._direct = _set_direct(self._fd, False)
                continue
            done += _progress(count)

    def _join(self) -> None:
        if self._thread is not None:
            self._full.put(None)
            self._thread.join()
            self._thread = None

    def _give_back(self) -> None:
        if self._buffer is not None:
            buffer, self._buffer, self._filled = self._buffer, None, 0
            self._pool.release(self, buffer)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def _progress(count: int) -> int:
    if count == 0:  # would loop forever
        raise OSError(errno.EIO, "the file system wrote nothing and reported no error")
    return count


def _set_direct(fd: int, on: bool) -> bool:
    """Switch direct writes on or off; returns whether they are on now.

    On an open file, because `open` with O_DIRECT may create the file and then refuse.
    """
    if not _O_DIRECT:
        return False
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | _O_DIRECT if on else flags & ~_O_DIRECT)
    except OSError as error:
        if not on or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return False
    return on


class UnnamedFile:
    """An open file on its way from `temporary` to `path`; leaving the `with` block discards what has no name.

    Errors name `path`: the random name would tell the user nothing.
    """

    def __init__(self, temporary: str, path: str) -> None:
        self.path = path
        self.temporary = temporary
        self._held = -1  # a second descriptor, which keeps the lock while the first is closed and the name given
        with about(path):
            self.fd = self._open()
            while not self._lock():
                self.fd = self._open()

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(self.temporary, flags, 0o666)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.dirname(self.temporary))  # need not survive a power cut
            return os.open(self.temporary, flags, 0o666)

    def _lock(self) -> bool:
        """Say that somebody writes this file; False if a collection took it for a leftover just before."""
        with contextlib.suppress(OSError):  # without locks nothing is swept
            fcntl.flock(self.fd, fcntl.LOCK_EX)
        if os.fstat(self.fd).st_nlink == 0:
            os.close(self.fd)
            return False
        self._held = os.dup(self.fd)
        return True

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        with about(self.path):
            while view:
                view = view[_progress(os.write(self.fd, view)) :]

    def publish(self) -> None:
        """Give the file its name, all of it durable. `Exists` if the name is taken.

        `Unsettled` if the name may be there, or be there after a crash; after any other error it is not.
        """
        # Content before name: no reader, and no crash, ever meets a name without its bytes. A descriptor
        # whose fsync failed is not tried again: the kernel may have dropped the dirty pages and would report
        # success. `link` has exactly one winner, also on network file systems; `rename` would overwrite.
        # Only the directory's fsync makes the name survive a power cut, so it comes before success.
        with about(self.path):
            flush(self.fd)
            self._close()
            self._link()
            self._unlink()
            try:
                sync_directory(os.path.dirname(self.path))
            except OSError as error:
                raise Unsettled(error.errno, error.strerror) from error

    def rename(self) -> None:
        """Take the name from whoever has it; nothing is durable."""
        with about(self.path):
            self._close()
            os.rename(self.temporary, self.path)
            self._unlock()

    def discard(self) -> None:
        """Best effort, without an error of its own: what stays in `tmp/` is left to gc."""
        with contextlib.suppress(OSError):
            self._close()
        self._unlink()

    def __enter__(self) -> UnnamedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.discard()

    def _link(self) -> None:
        try:
            os.link(self.temporary, self.path)
        except OSError as error:
            if self._is_linked():
                return  # a network file system sent the request twice and we met our own link
            if isinstance(error, FileExistsError):
                raise Exists(f"{self.path} exists already") from None
            if error.errno not in _NOT_LINKED:
                raise Unsettled(error.errno, error.strerror) from error
            raise

    def _is_linked(self) -> bool:
        try:
            return os.path.samefile(self.temporary, self.path)
        except OSError:
            return False

    def _unlink(self) -> None:
        # Not an error: the file has its name, or never will; a second name in tmp/ harms neither.
        with contextlib.suppress(OSError):
            if self.temporary:
                os.unlink(self.temporary)
        self.temporary = ""
        self._unlock()

    def _close(self) -> None:
        # Forget the number first: closing fails on some network file systems, and closing it again might hit
        # the file that another thread has just opened under it.
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _unlock(self) -> None:
        held, self._held = self._held, -1
        if held >= 0:
            with contextlib.suppress(OSError):  # the file is written or given up, whatever becomes of the lock
                os.close(held)


@contextlib.contextmanager
def about(path: str) -> Iterator[None]:
    """Give every OSError the file that it is about: calls on descriptors do not say."""
    try:
        yield
    except OSError as error:
        error.filename = path
        del error.filename2  # None would be printed
        raise


def remove_if_left(path: str) -> None:
    """Remove a file under `tmp/` unless somebody holds its lock, and so is still writing it. Best effort."""
    with contextlib.suppress(OSError):  # it is being written, was removed by another, or locks do not work here
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(fd)


def create_root(path: str | os.PathLike[str]) -> None:
    """Make the directory and all above it, durably; also those that exist: their maker may have died before fsync."""
    path = os.path.abspath(path)
    parent = os.path.dirname(path)
    if parent == path:
        return
    create_root(parent)
    try:
        os.mkdir(path)
    except OSError:
        if not os.path.isdir(path):
            raise
    with contextlib.suppress(PermissionError):  # then it is somebody else's, and older
        sync_directory(parent)


def sync_directory(path: str) -> None:
    """Make the names in the directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with about(path):
        try:
            flush(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems have no fsync of directories
                raise
        finally:
            os.close(fd)


def flush(fd: int) -> None:
    """fsync that reaches the medium; macOS has a call of its own for that."""
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
    os.fsync(fd)
