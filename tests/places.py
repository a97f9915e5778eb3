"""Where tests put a store: a new, empty place on every medium, and hands on its files beside the backend."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cas.backend import Backend
from cas.remote import RemoteBackend, open_remote
from cas.urls import backend_of


@dataclass(frozen=True)
class Place:
    """Where a backend's files are, and hands on them beside it."""

    kind: str
    url: str
    options: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None  # where the files stand on this machine
    client: Any = None  # of S3

    def open(self) -> Backend:
        if self.kind == "folder":
            from fsspec.implementations.local import LocalFileSystem

            return RemoteBackend(LocalFileSystem(skip_instance_cache=True), self.url, self.url)
        if self.kind == "s3fs":
            return open_remote(self.url, self.url, self.options)
        return backend_of(self.url, self.options, create=True)

    def overwrite(self, name: str, data: bytes) -> None:
        """As no backend does."""
        if self.folder is not None:
            (self.folder / name).write_bytes(data)
        elif self.client is not None:
            bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
            self.client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data)
        else:
            memory().pipe_file(f"{self.url}/{name}", data)

    def make_older(self, name: str, seconds: float) -> None:
        """Let a file look as if written that long ago, where that can be had."""
        if self.folder is not None:
            moment = time.time() - seconds
            os.utime(self.folder / name, (moment, moment))
        elif self.client is None:
            memory().store[memory()._strip_protocol(f"{self.url}/{name}")].created -= timedelta(seconds=seconds)


def memory() -> Any:
    from fsspec.implementations.memory import MemoryFileSystem

    return MemoryFileSystem()


SFTP = pytest.param("sftp", marks=pytest.mark.server("sftp"))
S3 = pytest.param("s3", marks=pytest.mark.server("s3"))
S3FS = pytest.param("s3fs", marks=pytest.mark.server("s3"))  # S3 by fsspec, for the other object stores by fsspec
REAL_S3 = pytest.param("real_s3", marks=pytest.mark.server("real_s3"))


def place_of(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A new, empty place; its name has a space and a letter that is not ASCII."""
    folder = tmp_path / "a störe"
    if kind in ("s3", "real_s3", "s3fs"):
        server = request.getfixturevalue("real_s3_server" if kind == "real_s3" else "s3_server")
        yield Place(
            "s3fs" if kind == "s3fs" else "s3",
            server.url(server.bucket(), "a störe"),
            server.options,
            client=server.client(),
        )
    elif kind == "sftp":
        server = request.getfixturevalue("sftp_server")
        yield Place(kind, server.url(folder), server.options, folder=folder)
    elif kind == "memory":
        yield Place(kind, f"memory://{uuid.uuid4().hex}/a störe")
        memory().store.clear()
    else:
        yield Place(kind, str(folder), folder=folder)
