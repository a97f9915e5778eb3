"""A store in a bucket: objects that appear whole under their name, or not at all.

An object is there for every reader once its request, or the completion of its upload, is answered; the service makes
it durable before it answers. So there is nothing to sync, and the name of an object never stands for less than all of
it. What is asked for small ranges of a pack goes through windows that are kept.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from .backend import Buffer, FileInfo
from .buffers import BufferPool
from .errors import Corrupt, Invalid, NotFound
from .s3_client import Service, sent
from .s3_create import create
from .s3_errors import Cut, Foreign, NoBucket, status_of
from .s3_listing import listed, sweep_uploads
from .s3_uploads import BUFFERS, PART_SIZE, S3File, Uploaders, part_size
from .windows import Windows

PARALLEL = 8
MAX_WHOLE = 64 << 20  # bytes; files that are read whole are records, the hint and cas.json
_STEP = 1 << 20  # bytes taken out of an answer at once
_URL = re.compile(r"s3a?://(?P<bucket>[^/]+)/*(?P<prefix>.*)", re.DOTALL | re.IGNORECASE)
_RANGE = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+)")

T = TypeVar("T")


class S3Backend:
    """The `Backend` of a bucket, or of a prefix in it. Usable after fork, except for files then being written."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        found = _URL.fullmatch(url)
        if found is None:
            raise Invalid("the URL of a store on S3 has the form s3://bucket/prefix")
        prefix = found["prefix"].strip("/")
        self._root = f"{prefix}/" if prefix else ""
        self._url = f"s3://{found['bucket']}/{prefix}".rstrip("/")
        self.has_honest_create = True
        self._service = Service(self._url, found["bucket"], options or {})
        self._renew()
        _backends.add(self)

    def _renew(self) -> None:
        """Fresh locks, buffers and connections: after a fork another thread may have held the old ones."""
        self._service.renew()
        self._pool = BufferPool(BUFFERS, PART_SIZE)
        self._uploaders = Uploaders()
        self._windows = Windows(self._range)

    @property
    def url(self) -> str:
        return self._url

    @property
    def place(self) -> str:
        return f"{self._service.endpoint} {self._url}"

    @property
    def is_remote(self) -> bool:
        return True

    @property
    def parallel(self) -> int:
        return PARALLEL

    def now(self) -> float:
        """As in `Backend`: by the service's clock, at most a second ahead."""
        return self._service.now()

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        if start < 0 or (length is not None and length < 0):
            raise Invalid(f"cannot read {length} bytes of {name} from {start}: give numbers from 0 up")
        if length is None:
            return self._rest(name, start)
        if Windows.serves(name, length):
            return self._windows.read(name, start, length)
        return self._range(name, start, length)

    def readinto(self, name: str, start: int, buffers: Sequence[memoryview]) -> None:
        length = sum(view.nbytes for view in buffers)
        if Windows.serves(name, length):
            count = self._windows.readinto(name, start, buffers)
        else:
            views = [view.cast("B") for view in buffers]
            count = self._get(name, _span(start, length), lambda answer: answer.fill(start, views), 0)
        if count < length:
            raise Corrupt(f"{name} ends at byte {start + count}, before what should stand there: run fsck")

    def tail(self, name: str, length: int) -> tuple[bytes, int]:
        """As in `Backend`."""

        def take(answer: _Answer) -> tuple[bytes, int]:
            data = answer.bytes(max(0, answer.size - max(1, length)), answer.size)
            return data[len(data) - min(length, len(data)) :], answer.size

        data, size = self._get(name, f"bytes=-{max(1, length)}", take, (b"", 0))
        if not size:
            data, size = self._tail_of_all(name, length)
        self._windows.keep_tail(name, size - len(data), data)
        return data, size

    def _tail_of_all(self, name: str, length: int) -> tuple[bytes, int]:
        """As `tail`, where the object is empty, or the service refuses to give more than all of it."""
        found = self._service.head(self._key(name))
        size = 0 if found is None else int(found["ContentLength"])
        return self._range(name, max(0, size - length), min(size, length)), size

    def exists(self, name: str) -> bool:
        try:
            self._range(name, 0, 1)  # unlike HEAD it tells a missing bucket
        except NoBucket:
            raise
        except NotFound:
            return False
        return True

    def list(self, folder: str) -> list[FileInfo]:
        """As in `Backend`; `""` is the root."""
        return listed(self._service, self._root, f"{self._key(folder)}/" if folder else self._root)

    def create(self, name: str, data: Buffer) -> None:
        """As in `Backend`. `Unsettled` if the object may be there all the same; on other errors it is not."""
        view = memoryview(data).cast("B")
        create(self._service, self._key(name), view, secrets.token_hex(16), self.has_honest_create)

    def new_file(self, name: str, expected_size: int) -> S3File:
        """As in `Backend`; the file may become 125 GiB large, or what was expected and 1 % more."""
        size = part_size(expected_size)
        pool = self._pool if size == PART_SIZE else BufferPool(2, size)
        return S3File(self._service, pool, self._uploaders, self._key(name), self.has_honest_create)

    def replace(self, name: str, data: Buffer) -> None:
        self._service.call("put_object", Key=self._key(name), **sent(memoryview(data).cast("B")))

    def delete(self, name: str) -> None:
        key = self._key(name)
        self.forget(name)
        if self._service.head(key) is None:
            raise NotFound(f"{self._service.named(key)} is not there")
        self._service.call("delete_object", Key=key)

    def forget(self, name: str) -> None:
        self._windows.forget(name)

    def sweep(self, age: float) -> None:
        """As in `Backend`: uploads into which nothing has come for `age` seconds, and files under `tmp/`."""
        sweep_uploads(self._service, self._root, self.now() - age)
        for info in self.list("tmp"):
            if self.now() - info.modified >= age:
                with contextlib.suppress(NotFound):
                    self.delete(info.name)

    def sync(self, folder: str) -> None:
        """Nothing: what is answered is durable."""

    def close(self) -> None:
        """Give back connections and memory; a later call opens them again."""
        self._service.close()
        self._pool.clear()
        self._windows.clear()

    def _rest(self, name: str, start: int) -> bytes:
        def take(answer: _Answer) -> bytes:
            if answer.size - start > MAX_WHOLE:
                raise Corrupt(f"{name} has {answer.size} bytes, which no such file of a store has: restore it")
            return answer.bytes(start, answer.size)

        return self._get(name, f"bytes={start}-" if start else "", take, b"")

    def _range(self, name: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        data = bytearray(length)
        count = self._get(name, _span(start, length), lambda answer: answer.fill(start, [memoryview(data)]), 0)
        return bytes(memoryview(data)[:count])

    def _get(self, name: str, span: str, take: Callable[[_Answer], T], past: T) -> T:
        """What `take` makes of the answer; tried again as a whole when it is cut. `past` if the object ends before."""
        key = self._key(name)

        def attempt() -> T:
            try:
                reply = self._service.once("get_object", Key=key, **({"Range": span} if span else {}))
            except Exception as error:
                if status_of(error) == 416:
                    return past
                raise
            with contextlib.closing(reply["Body"]):
                return take(_Answer(reply))

        return self._service.retried(attempt, key)

    def _key(self, name: str) -> str:
        parts = name.split("/")
        if "" in parts or "." in parts or ".." in parts or "\0" in name:
            raise Invalid(f"{name!r} is no name of a file in a store: use relative names without . and ..")
        return self._root + name


# Weak, so that a dropped backend closes its connections.
_backends: weakref.WeakSet[S3Backend] = weakref.WeakSet()


def _renew_after_fork() -> None:
    for backend in list(_backends):
        backend._renew()


os.register_at_fork(after_in_child=_renew_after_fork)


class _Answer:
    """The answer to a GET: bytes from `start` up to `end` of an object of `size` bytes, not yet read."""

    def __init__(self, reply: Mapping[str, Any]) -> None:
        self._body = reply["Body"]
        length = int(reply["ContentLength"])
        found = _RANGE.fullmatch(reply.get("ContentRange") or "")
        self._is_whole = found is None
        self.start, self.end, self.size = 0, length, length
        if found is not None:
            self.start, self.end, self.size = int(found[1]), int(found[2]) + 1, int(found[3])
        if self.end - self.start != length or self.end > self.size:
            raise Cut("an answer contradicts itself")

    def bytes(self, start: int, end: int) -> bytes:
        """The body, which must be this range of the object."""
        self._check(start, end)
        data = bytearray(end - start)
        self._fill(memoryview(data))
        return bytes(data)

    def fill(self, start: int, views: Sequence[memoryview]) -> int:
        """Fill the views from `start`, as far as the object goes; how many bytes that were."""
        self._check(start, min(start + sum(map(len, views)), self.size))
        left = self.end - self.start
        for view in views:
            self._fill(view[:left])
            left -= min(left, len(view))
        return self.end - self.start

    def _check(self, start: int, end: int) -> None:
        if (self.start, self.end) != (start, end):
            if self._is_whole:
                raise Foreign
            raise Cut("another range was answered than asked for")

    def _fill(self, view: memoryview) -> None:
        out = np.frombuffer(view, np.uint8)
        while len(out):
            piece = self._body.read(min(len(out), _STEP))
            if not piece:
                raise Cut("an answer was cut")
            # Unlike slices of a memoryview this lets other threads run, while memory that is new is made for it.
            np.copyto(out[: len(piece)], np.frombuffer(piece, np.uint8))
            out = out[len(piece) :]


def _span(start: int, length: int) -> str:
    return f"bytes={start}-{start + length - 1}"
