"""The way from a client to the store: every call yields, listings take time, replies of published records get lost."""

from __future__ import annotations

import random
from collections.abc import Sequence

from cas import log
from cas.backend import Buffer, FileInfo, Unsettled
from cas.errors import Exists

from .judge import JudgedBackend
from .memory import MemoryFile
from .scheduler import Client, Scheduler


class Network:
    """Loses requests and replies: of `losses` records at most, among the first that are created."""

    def __init__(self, store: JudgedBackend, scheduler: Scheduler, rng: random.Random, losses: int) -> None:
        self.store = store
        self.scheduler = scheduler
        self._rng = rng
        self._losing = {rng.randrange(10) for _ in range(losses)}
        self._created = 0
        self.lost = False
        """Whether anything was lost so far."""
        self._delayed: list[tuple[int, str, bytes]] = []

    def step(self, client: Client, call: str) -> None:
        self.scheduler.step(client, call)
        self.deliver()

    def publish(self, name: str, data: bytes) -> None:
        """Create a record, unless this request or its reply is lost, or arrives after others went on."""
        self._created += 1
        if self._created not in self._losing:
            self.store.create(name, data)
            return
        way = self._rng.choice(("reply lost", "request lost", "request delayed", "request sent twice"))
        self.scheduler.note(way)
        self.lost = True
        if way == "request delayed":
            self._delayed.append((len(self.scheduler.calls) + self._rng.randint(1, 100), name, data))
        elif way != "request lost":
            self.store.create(name, data)
        if way == "request sent twice":  # by the medium, when no reply came; this is the second one's
            raise Exists(f"{name} exists")
        raise Unsettled(f"no reply to the request to create {name}")

    def deliver(self, everything: bool = False) -> None:
        """Let delayed requests arrive."""
        due = [item for item in self._delayed if everything or item[0] <= len(self.scheduler.calls)]
        for item in due:
            self._delayed.remove(item)
            if not self.store.exists(item[1]):
                self.store.create(*item[1:])


class ScheduledBackend:
    """The backend of one client."""

    place = "memory"
    is_remote = False
    parallel = 1
    has_honest_create = True

    def __init__(self, network: Network, client: Client) -> None:
        self._network = network
        self._store = network.store
        self._client = client
        self.url = network.store.url

    def _step(self, call: str) -> None:
        self._network.step(self._client, call)

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        self._step(f"read {name}")
        return self._store.read(name, start, length)

    def readinto(self, name: str, start: int, buffers: Sequence[memoryview]) -> None:
        self._step(f"read {name}")
        self._store.readinto(name, start, buffers)

    def tail(self, name: str, length: int) -> tuple[bytes, int]:
        self._step(f"read end of {name}")
        return self._store.tail(name, length)

    def exists(self, name: str) -> bool:
        self._step(f"look for {name}")
        return self._store.exists(name)

    def list(self, folder: str) -> list[FileInfo]:
        """The first half of the names as they are now, the others as they are a step later."""
        self._step(f"list {folder}")
        first = self._store.list(folder)
        if len(first) < 2:
            return first
        middle = first[len(first) // 2].name
        self._step(f"list {folder} from {middle}")
        return [info for info in first if info.name < middle] + [
            info for info in self._store.list(folder) if info.name >= middle
        ]

    def create(self, name: str, data: Buffer) -> None:
        self._step(f"create {name}")
        if name.startswith(log.FOLDER):
            self._network.publish(name, bytes(data))
        else:
            self._store.create(name, data)

    def new_file(self, name: str, expected_size: int) -> ScheduledFile:
        return ScheduledFile(self._network, self._client, name)

    def replace(self, name: str, data: Buffer) -> None:
        self._step(f"replace {name}")
        self._store.replace(name, data)

    def delete(self, name: str) -> None:
        self._step(f"delete {name}")
        self._store.delete(name)

    def sync(self, folder: str) -> None:
        self._step(f"sync {folder}")
        self._store.sync(folder)

    def now(self) -> float:
        return self._store.now()

    def forget(self, name: str) -> None:
        pass  # nothing is cached

    def sweep(self, age: float) -> None:
        self._step("sweep")
        self._store.sweep(age)

    def close(self) -> None:
        pass


class ScheduledFile(MemoryFile):
    """A file is seen by others when it is published, which is one step."""

    def __init__(self, network: Network, client: Client, name: str) -> None:
        super().__init__(network.store, name)
        self._network = network
        self._client = client

    def publish(self) -> None:
        self._network.step(self._client, f"create {self.name}")
        super().publish()
