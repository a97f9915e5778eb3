"""A store in memory: the contract of `cas.backend.Backend` and not a bit more.

It raises AssertionError where a caller breaks the contract itself: a file that gets other content under a name that
was taken or given up before, a hint that takes the place of an immutable file, a file written after its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cas import reserve
from cas.backend import Buffer, FileInfo
from cas.errors import Corrupt, Exists, Invalid, NotFound


@dataclass(frozen=True, slots=True)
class _File:
    data: bytes
    modified: float
    is_hint: bool


class MemoryBackend:
    """Each call is one step that nothing comes between, as far as threads take turns; nobody else is kept out."""

    place = "memory"
    is_remote = False
    parallel = 1
    has_honest_create = True

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        self.url = url
        self._clock = clock
        self._files: dict[str, _File] = {}
        self._taken: set[str] = set()

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        if start < 0 or (length is not None and length < 0):
            raise Invalid(f"cannot read {length} bytes of {name} from {start}: give numbers from 0 up")
        return self._data(name)[start : None if length is None else start + length]

    def readinto(self, name: str, start: int, buffers: Sequence[memoryview]) -> None:
        data = memoryview(self._data(name))
        for buffer in buffers:
            view = buffer.cast("B")
            if start + len(view) > len(data):
                raise Corrupt(f"{name} ends at byte {len(data)}, before what should stand there: run fsck")
            view[:] = data[start : start + len(view)]
            start += len(view)

    def tail(self, name: str, length: int) -> tuple[bytes, int]:
        data = self._data(name)
        return data[max(0, len(data) - length) :], len(data)

    def exists(self, name: str) -> bool:
        return _checked(name) in self._files

    def list(self, folder: str) -> list[FileInfo]:
        below = _checked(folder) + "/" if folder else ""
        found = ((name, file) for name, file in self._files.items() if name.startswith(below))
        return sorted((FileInfo(n, len(f.data), f.modified) for n, f in found), key=lambda info: info.name)

    def create(self, name: str, data: Buffer) -> None:
        if _checked(name) in self._files:
            raise Exists(f"{name} exists")
        assert name not in self._taken or name == reserve.NAME, f"{name} was deleted and is used again"
        self._taken.add(name)
        self._files[name] = _File(bytes(data), self._clock(), False)

    def new_file(self, name: str, expected_size: int) -> MemoryFile:
        return MemoryFile(self, _checked(name))

    def replace(self, name: str, data: Buffer) -> None:
        before = self._files.get(_checked(name))
        assert before is None or before.is_hint, f"{name} is immutable and was replaced"
        self._files[name] = _File(bytes(data), self._clock(), True)

    def delete(self, name: str) -> None:
        if self._files.pop(_checked(name), None) is None:
            raise NotFound(f"{name} is not there")

    def sync(self, folder: str) -> None:
        if folder:
            _checked(folder)

    def now(self) -> float:
        return self._clock()

    def forget(self, name: str) -> None:
        pass  # nothing is cached

    def sweep(self, age: float) -> None:
        pass  # what is being written has no name here

    def close(self) -> None:
        pass

    def _data(self, name: str) -> bytes:
        try:
            return self._files[_checked(name)].data
        except KeyError:
            raise NotFound(f"{name} is not there") from None


class MemoryFile:
    """The `NewFile` of a store in memory."""

    congested = False

    def __init__(self, backend: MemoryBackend, name: str) -> None:
        self._backend = backend
        self.name = name
        self._data = bytearray()
        self._ended = False

    @property
    def size(self) -> int:
        return len(self._data)

    def write(self, data: Buffer) -> None:
        assert not self._ended, f"{self.name} was published or abandoned and is written to"
        self._data += memoryview(data).cast("B")

    def publish(self) -> None:
        assert not self._ended, f"{self.name} was published or abandoned and is published again"
        self._ended = True
        self._backend.create(self.name, self._data)

    def abandon(self) -> None:
        self._ended = True


def _checked(name: str) -> str:
    parts = name.split("/")
    if "" in parts or "." in parts or ".." in parts or "\0" in name:
        raise Invalid(f"{name!r} is no name of a file in a store: use relative names without . and ..")
    return name
