"""The probe tells backends on which racing creates have one winner from those that refuse, and those that pretend."""

from __future__ import annotations

import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from faults.proxy import Fault, FaultProxy
from fsspec.implementations.local import LocalFileSystem
from servers.s3 import S3Server
from servers.sshd import SftpServer

from cas.backend import Backend
from cas.errors import NotFound
from cas.probe import has_honest_create
from cas.remote import RemoteBackend
from cas.urls import backend_of


class Looking(LocalFileSystem):  # type: ignore[misc]
    """Looks, and writes a moment later."""

    protocol = "looking"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        time.sleep(0.01)
        Path(path).write_bytes(value)


class Heedless(LocalFileSystem):  # type: ignore[misc]
    """Takes any argument and heeds none."""

    protocol = "heedless"

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        Path(path).write_bytes(value)


class Refusing(LocalFileSystem):  # type: ignore[misc]
    """Says that it cannot."""

    protocol = "refusing"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        raise NotImplementedError("no exclusive writes")


class Denying(LocalFileSystem):  # type: ignore[misc]
    """Says what has nothing to do with the question."""

    protocol = "denying"

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")


def through(kind: type[LocalFileSystem], folder: Path) -> Backend:
    return RemoteBackend(kind(skip_instance_cache=True), str(folder), str(folder))


def on_s3(server: S3Server, **options: str) -> Backend:
    return backend_of(server.url(server.bucket(), "run"), {**server.options, **options})


def answer(backend: Backend) -> bool:
    """What the probe says, which leaves nothing behind."""
    try:
        honest = has_honest_create(backend)
        assert backend.list("") == []
        return honest
    finally:
        backend.close()


@pytest.mark.server("real_s3")
def test_a_server_that_refuses_to_overwrite_is_honest(real_s3_server: S3Server) -> None:
    assert answer(on_s3(real_s3_server))


@pytest.mark.server("swift")
def test_a_server_that_says_it_cannot_is_not_honest(swift_server: S3Server) -> None:
    assert not answer(on_s3(swift_server))


@pytest.mark.server("rclone")
def test_a_server_that_overwrites_without_a_word_is_not_honest(rclone_server: S3Server) -> None:
    """It may leave a file behind: racing writes sometimes make one that this server's own delete does not find."""
    with closing(on_s3(rclone_server)) as backend:
        assert not has_honest_create(backend)


@pytest.mark.server("moto")
def test_the_server_of_tests_is_honest(moto_server: S3Server) -> None:
    assert answer(on_s3(moto_server))


@pytest.mark.server("sftp")
def test_openssh_is_honest(sftp_server: SftpServer, tmp_path: Path) -> None:
    assert answer(backend_of(sftp_server.url(tmp_path / "run"), sftp_server.options))


def test_memory_is_honest() -> None:
    assert answer(backend_of(f"memory://{uuid.uuid4().hex}"))


def test_a_local_directory_is_honest(tmp_path: Path) -> None:
    assert answer(backend_of(str(tmp_path)))


@pytest.mark.parametrize("kind", [LocalFileSystem, Looking, Heedless, Refusing])
def test_a_file_system_without_an_exclusive_write_is_not_honest(kind: type[LocalFileSystem], tmp_path: Path) -> None:
    for _ in range(3):
        assert not answer(through(kind, tmp_path / "run"))


def test_an_answer_once_given_stays(tmp_path: Path) -> None:
    """A store that has one writer has one, however the probe would decide today."""
    backend = backend_of(f"memory://{uuid.uuid4().hex}")
    backend.has_honest_create = False
    assert not answer(backend)


def test_other_errors_go_through(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        has_honest_create(through(Denying, tmp_path / "run"))


@pytest.mark.server("s3")
def test_a_missing_bucket_and_wrong_credentials_go_through(s3_server: S3Server) -> None:
    with pytest.raises(NotFound, match="there is no bucket"):
        has_honest_create(backend_of("s3://cas-test-no-such-bucket/run", s3_server.options))
    if s3_server.is_real:  # moto's believes everybody
        with pytest.raises(PermissionError, match="credentials"):
            has_honest_create(on_s3(s3_server, secret="wrong"))


def test_an_answer_that_was_damaged_on_its_way_makes_no_service_dishonest(
    fault_proxy: FaultProxy, real_s3_server: S3Server
) -> None:
    backend = backend_of(real_s3_server.url(real_s3_server.bucket(), "run"), fault_proxy.options)
    fault = Fault("corrupt", at="get")
    fault_proxy.faults.append(fault)
    assert has_honest_create(backend)
    assert fault.hits == 1
    backend.close()
