"""Large objects on their way to an S3 service: in parts, many at once, in bounded memory.

`write` copies into buffers that the whole backend shares; each full one is a part that a thread sends, signed with its
SHA-256, which the service checks. A file that never filled one buffer is a single request. Until the upload is
completed there is no object; what a crash leaves is an upload that `sweep` aborts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable

import numpy as np

from .backend import Buffer
from .buffers import BufferPool
from .errors import Exists, Invalid
from .retries import with_retries
from .s3_client import Service, sent
from .s3_create import create, exactly_once, marked, unless_taken
from .s3_errors import passes

PART_SIZE = 13 << 20
"""Bytes of a part; fewer only in the last one. A pack of 8 MiB that one more block made full, and its table, fit."""
BUFFERS = 9
UPLOADS = 8
"""Parts sent at once."""
_MAX_PARTS = 10_000  # of one upload, says S3


def part_size(expected_size: int) -> int:
    """Bytes of the parts of a file that becomes `expected_size` bytes large, or 1 % more."""
    parts = _MAX_PARTS - 100
    return PART_SIZE * max(1, -(-expected_size // (PART_SIZE * parts)))


class Uploaders:
    """Threads that send parts: started when there is work, gone when there is none.

    Daemons, so that a service that hangs cannot keep the process from exiting.
    """

    def __init__(self, most: int = UPLOADS) -> None:
        self._most = most
        self._running = 0
        self._tasks: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()

    def submit(self, task: Callable[[], None]) -> None:
        """Hand over a task, which must not raise."""
        with self._lock:
            self._tasks.append(task)
            if self._running == self._most:
                return
            self._running += 1
        try:
            threading.Thread(target=self._work, name="cas-upload", daemon=True).start()
        except RuntimeError:  # the interpreter, shutting down, starts no threads
            self._work()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._tasks:
                    self._running -= 1
                    return
                task = self._tasks.popleft()
            task()


class S3File:
    """The `NewFile` of a bucket. After an error the file is lost: its parts are dropped, later calls raise again."""

    def __init__(self, service: Service, pool: BufferPool, uploaders: Uploaders, key: str, conditional: bool) -> None:
        self.held = 0  # buffers out of the pool; the pool's lock guards it
        self._service = service
        self._pool = pool
        self._uploaders = uploaders
        self._key = key
        self._conditional = conditional
        self._write_id = secrets.token_hex(16)
        self._size = 0
        self._buffer: memoryview | None = None
        self._filled = 0
        self._upload = ""  # its id, once a second part is needed
        self._parts: list[str] = []  # the ETag of each, empty until it is sent
        self._sending = 0
        self._changed = threading.Condition(threading.Lock())
        self._failure: BaseException | None = None  # of a thread
        self._ended: BaseException | None = None  # what a further call raises
        self._process = os.getpid()

    @property
    def size(self) -> int:
        return self._size

    @property
    def congested(self) -> bool:
        return self._pool.must_wait(self)

    def write(self, data: Buffer) -> None:
        self._check()
        view = memoryview(data).cast("B")
        try:
            while view:
                view = view[self._take(view) :]
        except BaseException as error:
            self._drop(error)  # part of the data may be in: nothing may follow it
            raise

    def publish(self) -> None:
        """As in `NewFile`; `Unsettled` if the object may be there all the same."""
        self._check()
        try:
            if self._upload:
                self._finish()
            else:
                data = self._buffer[: self._filled] if self._buffer is not None else memoryview(b"")
                create(self._service, self._key, data, self._write_id, self._conditional)
        except BaseException as error:
            self._drop(error)
            raise
        self._upload = ""
        self._drop(Invalid(f"{self._key} was published: start a new file"))

    def abandon(self) -> None:
        if self._ended is None and self._process == os.getpid():  # a fork's copy belongs to the parent
            self._drop(Invalid(f"{self._key} was abandoned: start a new file"))

    def _take(self, view: memoryview) -> int:
        """Copy what goes into the current buffer; how much that was."""
        if self._buffer is not None and self._filled == len(self._buffer):
            self._hand_on()
        if self._buffer is None:
            self._buffer, self._filled = self._pool.acquire(self), 0
        self._raise_failure()
        count = min(len(view), len(self._buffer) - self._filled)
        place = np.frombuffer(self._buffer, np.uint8, count, self._filled)
        np.copyto(place, np.frombuffer(view, np.uint8, count))  # which lets other threads run meanwhile
        self._filled += count
        self._size += count
        return count

    def _hand_on(self) -> None:
        """Give the current buffer to the threads as the next part."""
        assert self._buffer is not None
        if not self._upload:
            begun = self._service.call("create_multipart_upload", Key=self._key, **marked(self._write_id))
            self._upload = begun["UploadId"]
        buffer, count, self._buffer = self._buffer, self._filled, None
        with self._changed:
            self._sending += 1
            self._parts.append("")
            number = len(self._parts)
        self._uploaders.submit(lambda: self._send(number, buffer, count))

    def _send(self, number: int, buffer: memoryview, count: int) -> None:
        try:
            if self._ended is None and self._failure is None:
                self._parts[number - 1] = self._send_part(number, buffer[:count])
        except BaseException as error:  # a worker's failure is the caller's failure, of whatever kind
            self._failure = self._failure or error
        finally:
            self._pool.release(self, buffer)
            with self._changed:
                self._sending -= 1
                self._changed.notify_all()

    def _send_part(self, number: int, data: memoryview) -> str:
        once = self._service.once
        place = {"Key": self._key, "UploadId": self._upload, "PartNumber": number}
        try:
            return str(with_retries(lambda: once("upload_part", **place, **sent(data))["ETag"], self._is_worth_it))
        except Exception as error:
            raise self._service.failure(error, self._key) from None

    def _is_worth_it(self, error: Exception) -> bool:
        return self._ended is None and self._failure is None and passes(error)

    def _finish(self) -> None:
        """Send the last part, make the parts one object, and look whether it is whole."""
        self._hand_on()
        self._wait()
        self._raise_failure()
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(self._parts, 1)]
        place = {"Key": self._key, "UploadId": self._upload, "MultipartUpload": {"Parts": parts}}
        if self._service.head(self._key) is not None:  # not every service looks when it completes an upload
            raise Exists(f"{self._service.named(self._key)} exists already")
        condition = unless_taken(self._conditional)
        once = self._service.once
        exactly_once(
            self._service, self._key, self._write_id, lambda: once("complete_multipart_upload", **place, **condition)
        )
        found = self._service.head(self._key)
        if found is None or found["ContentLength"] != self._size:
            what = "nothing" if found is None else f"{found['ContentLength']} bytes"
            raise OSError(f"{self._service.named(self._key)} has {what} in place of {self._size} bytes: write it again")

    def _drop(self, reason: BaseException) -> None:
        self._ended = reason
        self._wait()  # a part that lands after the abort would stay
        if self._buffer is not None:
            buffer, self._buffer = self._buffer, None
            self._pool.release(self, buffer)
        if self._upload:
            upload, self._upload = self._upload, ""
            with contextlib.suppress(Exception):  # what stays is left to `sweep`
                self._service.once("abort_multipart_upload", Key=self._key, UploadId=upload)

    def _wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._sending)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _check(self) -> None:
        if self._ended is not None:
            raise self._ended
        if self._process != os.getpid():
            raise Invalid(f"{self._key} was begun before a fork: only the process that began it writes it")
