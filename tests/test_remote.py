"""fsspec's file systems where things go wrong. The file systems are real ones on disk that fail at chosen moments."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fsspec.implementations.local import LocalFileSystem

import cas.retries
from cas.backend import Unsettled
from cas.errors import Exists, NotFound, Unsupported
from cas.remote import RemoteBackend

MIB = 1 << 20


class Failing(LocalFileSystem):  # type: ignore[misc]
    """A directory that fails as `failures` say: by method, what to raise and whether before or after the deed."""

    protocol = "failing"
    failures: ClassVar[dict[str, list[tuple[Exception, bool]]]] = {}

    def _deed(self, method: str, *args: Any, **options: Any) -> Any:
        real = getattr(super(), method)
        waiting = self.failures.get(method)
        if not waiting:
            return real(*args, **options)
        error, after = waiting.pop(0)
        if after:
            real(*args, **options)
        raise error

    def cat_file(self, *args: Any, **options: Any) -> Any:
        return self._deed("cat_file", *args, **options)

    def info(self, *args: Any, **options: Any) -> Any:
        return self._deed("info", *args, **options)

    def ls(self, *args: Any, **options: Any) -> Any:
        return self._deed("ls", *args, **options)

    def rm_file(self, *args: Any, **options: Any) -> Any:
        return self._deed("rm_file", *args, **options)

    def mv(self, *args: Any, **options: Any) -> Any:
        return self._deed("mv", *args, **options)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
        self._deed("_pipe", path, value, mode)


def _pipe(self: Any, path: str, value: bytes, mode: str) -> None:
    with open(path, "xb" if mode == "create" else "wb") as file:
        file.write(value)


LocalFileSystem._pipe = _pipe


class ServiceError(Exception):
    """As the libraries of object stores have them."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the service\nanswered {status}: token-1234")
        self.status = status


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteBackend:
    monkeypatch.setattr(cas.retries, "PATIENCE", 1.0)
    Failing.failures = {}
    fs = Failing(skip_instance_cache=True, token="token-1234")
    return RemoteBackend(fs, str(tmp_path / "store"), "failing://store")


def fail(method: str, error: Exception, times: int = 1, after: bool = False) -> None:
    Failing.failures[method] = [(error, after)] * times


def test_what_fails_in_passing_is_tried_again(backend: RemoteBackend) -> None:
    backend.create("log/1", b"one")
    for error in (
        ConnectionResetError(errno.ECONNRESET, "reset"),
        TimeoutError(),
        ServiceError(503),
        ServiceError(429),
    ):
        fail("cat_file", error, 2)
        fail("info", error, 1)
        assert backend.read("log/1") == b"one"
        fail("info", error, 2)
        assert backend.exists("log/1")
        fail("ls", error, 2)
        assert [info.name for info in backend.list("")] == ["log/1"]


def test_what_fails_for_good_is_raised_at_once(backend: RemoteBackend) -> None:
    backend.create("log/1", b"one")
    for error in (PermissionError(errno.EACCES, "denied"), ServiceError(403), OSError(errno.ENOSPC, "full")):
        fail("info", error)
        with pytest.raises(OSError, match="failing://store/log/1"):
            backend.exists("log/1")
        assert not Failing.failures["info"]
        assert backend.exists("log/1")


def test_what_fails_for_ever_is_raised_when_patience_is_over(backend: RemoteBackend) -> None:
    backend.create("log/1", b"one")
    fail("info", ServiceError(500), 1000)
    with pytest.raises(OSError, match="answered 500"):
        backend.exists("log/1")


def test_an_error_is_one_line_about_the_place_without_secrets(backend: RemoteBackend) -> None:
    fail("info", ServiceError(400))
    with pytest.raises(OSError) as caught:
        backend.exists("log/1")
    assert str(caught.value) == "failing://store/log/1: the service answered 400: ***"


def test_a_list_that_fails_below_is_not_a_shorter_list(backend: RemoteBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec's own walk leaves out what it cannot list; a collection would take it for deleted."""
    for name in ("packs/aa/1", "packs/bb/1"):
        backend.create(name, b"")
    real = LocalFileSystem.ls

    def ls(fs: Any, path: str, *args: Any, **options: Any) -> Any:
        if path.endswith("bb"):
            raise PermissionError(errno.EACCES, "denied", path)
        return real(fs, path, *args, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    with pytest.raises(PermissionError):
        backend.list("packs")


def test_a_folder_that_vanishes_while_it_is_listed_is_empty(
    backend: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("packs/aa/1", "packs/bb/1"):
        backend.create(name, b"")
    real = LocalFileSystem.ls

    def ls(fs: Any, path: str, *args: Any, **options: Any) -> Any:
        if path.endswith("bb"):
            raise FileNotFoundError(path)
        return real(fs, path, *args, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    assert [info.name for info in backend.list("packs")] == ["packs/aa/1"]


def test_a_create_whose_reply_is_lost_is_settled_by_what_stands_there(backend: RemoteBackend) -> None:
    backend.create("log/1", b"one")
    fail("_pipe", ServiceError(500), after=True)
    backend.create("log/2", b"two")
    fail("_pipe", ServiceError(500), after=False)
    backend.create("log/3", b"three")
    assert [backend.read(f"log/{number}") for number in (2, 3)] == [b"two", b"three"]
    fail("_pipe", ServiceError(500))
    with pytest.raises(Exists):
        backend.create("log/1", b"another")
    assert backend.read("log/1") == b"one"


@pytest.mark.parametrize("after", [False, True])
def test_a_create_that_nothing_is_known_of_is_unsettled(backend: RemoteBackend, after: bool) -> None:
    backend.create("log/1", b"one")
    fail("_pipe", ServiceError(500), 1000)
    if after:
        Failing.failures["_pipe"][0] = (ServiceError(500), True)
        fail("cat_file", ServiceError(500), 1000)
        fail("info", ServiceError(500), 1000)
    with pytest.raises(Unsettled, match="log/2"):
        backend.create("log/2", b"two")


def test_a_create_that_is_refused_is_not_there(backend: RemoteBackend, tmp_path: Path) -> None:
    for error, raised in [(PermissionError(errno.EACCES, "denied"), PermissionError), (ServiceError(501), Unsupported)]:
        fail("_pipe", error)
        with pytest.raises(raised) as caught:
            backend.create("log/1", b"one")
        assert not isinstance(caught.value, Unsettled)
    fail("_pipe", ServiceError(412))
    with pytest.raises(Exists):
        backend.create("log/1", b"one")


def test_a_deletion_whose_reply_is_lost_is_done(backend: RemoteBackend) -> None:
    backend.create("log/1", b"one")
    fail("rm_file", ServiceError(500), after=True)
    backend.delete("log/1")
    with pytest.raises(NotFound):
        backend.delete("log/1")


def test_a_large_file_whose_name_is_not_sure_is_unsettled(backend: RemoteBackend) -> None:
    file = backend.new_file("packs/aa/one", 3)
    file.write(b"one")
    fail("mv", ConnectionResetError(errno.ECONNRESET, "reset"), after=True)
    with pytest.raises(Unsettled, match="packs/aa/one"):
        file.publish()


def test_a_large_file_that_arrives_short_is_not_published(
    backend: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = backend.new_file("packs/aa/one", 3)
    file.write(b"one")
    monkeypatch.setattr(file._stream, "write", len)
    file.write(b"lost")
    with pytest.raises(OSError, match="has 3 bytes where 7 were written"):
        file.publish()
    assert backend.list("") == []


def test_in_one_writer_mode_a_taken_name_is_refused(backend: RemoteBackend) -> None:
    backend.has_honest_create = False
    backend.create("log/1", b"one")
    for data in (b"one", b"two"):
        with pytest.raises(Exists):
            backend.create("log/1", data)
    assert backend.read("log/1") == b"one"
    assert [info.name for info in backend.list("")] == ["log/1"]


def test_options_that_cannot_be_used_are_no_missing_file(tmp_path: Path) -> None:
    """A file with credentials that is missing must not make it look as if there were no store."""
    code = """
import fsspec, sys
from fsspec.implementations.memory import MemoryFileSystem
class Keyed(MemoryFileSystem):
    protocol = "keyed"
    def __init__(self, keyfile, **options):
        open(keyfile)
        super().__init__(**options)
fsspec.register_implementation("keyed", Keyed)
from cas.urls import backend_of
backend_of("keyed://run", {"keyfile": "/nowhere"})
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert run.stderr.splitlines()[-1].startswith("cas.errors.Invalid: keyed://run cannot be opened")
    assert "/nowhere" in run.stderr.splitlines()[-1]


def test_a_time_may_have_any_form() -> None:
    from datetime import UTC, datetime

    from cas.remote import _modified

    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    forms: list[dict[str, Any]] = [
        {"mtime": moment.timestamp()},
        {"LastModified": moment},
        {"last_modified": moment.replace(tzinfo=None)},
        {"updated": "2026-01-02T03:04:05Z", "created": 0},
        {"mtime": None, "created": moment},
    ]
    for info in forms:
        assert _modified(None, "", info) == moment.timestamp(), info
