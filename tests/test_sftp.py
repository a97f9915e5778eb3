"""SFTP where things go wrong: connections break, replies are lost, servers refuse."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from servers.sshd import SftpServer

import cas.retries
from cas.backend import Unsettled
from cas.errors import Exists, Invalid
from cas.sftp import SftpBackend
from cas.urls import backend_of

MIB = 1 << 20

pytestmark = pytest.mark.server("sftp")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def backend(sftp_server: SftpServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SftpBackend]:
    monkeypatch.setattr(cas.retries, "PATIENCE", 1.0)
    opened = backend_of(sftp_server.url(folder), sftp_server.options)
    assert isinstance(opened, SftpBackend)
    yield opened
    opened.close()


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def cut(backend: SftpBackend) -> None:
    """Break every connection that waits for a call."""
    for link in backend._idle:
        link._transport.sock.shutdown(socket.SHUT_RDWR)


def lose(
    monkeypatch: pytest.MonkeyPatch, method: str, times: int = 1, before: bool = False, then: Callable[[], object] = int
) -> None:
    """Let requests of a kind break the connection, after or before they were carried out."""
    real, left = getattr(paramiko.SFTPClient, method), [times]

    def call(sftp: Any, *args: Any) -> Any:
        if not left[0]:
            return real(sftp, *args)
        left[0] -= 1
        if not before:
            real(sftp, *args)
        then()
        sftp.get_channel().get_transport().sock.shutdown(socket.SHUT_RDWR)
        return real(sftp, *args)  # nobody answers any more

    monkeypatch.setattr(paramiko.SFTPClient, method, call)


def test_a_broken_connection_is_made_again(backend: SftpBackend) -> None:
    backend.create("log/1", b"1")
    uses: list[Callable[[], object]] = [
        lambda: backend.read("log/1"),
        lambda: backend.list(""),
        lambda: backend.create("log/2", b"2"),
        lambda: backend.replace("root", b"1"),
        lambda: backend.exists("log/3"),
        lambda: backend.delete("log/2"),
    ]
    for use in uses:
        cut(backend)
        use()
    assert [info.name for info in backend.list("")] == ["log/1", "root"]


@pytest.mark.parametrize("before", [False, True])
def test_a_create_whose_reply_is_lost_is_settled(
    backend: SftpBackend, folder: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    backend.create("log/1", b"1")
    lose(monkeypatch, "rename", before=before)
    backend.create("log/2", b"2")
    assert backend.read("log/2") == b"2"
    assert files(folder) == ["log/1", "log/2"]


def test_a_create_that_loses_while_its_reply_is_lost_says_so(
    backend: SftpBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.create("log/1", b"1")
    lose(monkeypatch, "rename", before=True, then=lambda: (folder / "log/2").write_bytes(b"another's"))
    with pytest.raises(Exists, match="log/2"):
        backend.create("log/2", b"2")
    assert (folder / "log/2").read_bytes() == b"another's"
    assert files(folder) == ["log/1", "log/2"]


def test_a_create_that_is_never_answered_is_unsettled(backend: SftpBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.create("log/1", b"1")
    lose(monkeypatch, "rename", before=True, times=1000)
    with pytest.raises(Unsettled, match="log/2"):
        backend.create("log/2", b"2")


def test_a_large_file_whose_rename_is_not_answered_is_published(
    backend: SftpBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = backend.new_file("packs/aa/one", 6 * MIB)
    file.write(bytes(6 * MIB))
    lose(monkeypatch, "rename")
    file.publish()
    assert backend.tail("packs/aa/one", 1) == (b"\0", 6 * MIB)


def test_a_connection_lost_in_a_large_file_loses_the_file(backend: SftpBackend, folder: Path) -> None:
    file = backend.new_file("packs/aa/one", 20 * MIB)
    file.write(bytes(6 * MIB))
    file._link._transport.sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="packs/aa/one"):
        file.write(bytes(6 * MIB))
    with pytest.raises(OSError, match="packs/aa/one"):
        file.publish()
    file.abandon()
    assert files(folder) == []


def test_a_deletion_whose_reply_is_lost_is_done(backend: SftpBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.create("log/1", b"1")
    lose(monkeypatch, "remove")
    backend.delete("log/1")
    assert not backend.exists("log/1")


@pytest.mark.parametrize("packet", [0, 1, 50, 127])
def test_a_refused_write_is_heard_of(
    backend: SftpBackend, folder: Path, monkeypatch: pytest.MonkeyPatch, packet: int
) -> None:
    """Replies to pipelined writes come later, and none may be lost. One is refused here."""
    file = backend.new_file("packs/aa/one", 5 * MIB)
    file.write(bytes(4 * MIB))
    real, sent = paramiko.SFTPClient._async_request, [0]

    def send(sftp: Any, owner: Any, kind: int, *args: Any) -> Any:
        if kind == paramiko.sftp.CMD_WRITE:
            sent[0] += 1
            if sent[0] - 1 == packet:
                args = (b"none", *args[1:])  # a handle that the server has not given
        return real(sftp, owner, kind, *args)

    monkeypatch.setattr(paramiko.SFTPClient, "_async_request", send)
    with pytest.raises(OSError, match="packs/aa/one"):
        file.write(bytes(4 * MIB))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"key_filename": "/nowhere"}, Invalid, "/nowhere cannot be read"),
        ({"username": "nobody-such"}, PermissionError, "the login was refused"),
        ({"password": "s3cr3t", "key_filename": None}, PermissionError, "the login was refused"),
        ({"host_key_policy": "reject"}, PermissionError, "known_hosts"),
        ({"gnurz": 1, "password": "s3cr3t"}, Invalid, "gnurz"),
    ],
)
def test_a_login_that_fails_is_told_at_once_and_without_secrets(
    sftp_server: SftpServer, folder: Path, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    backend = backend_of(sftp_server.url(folder), {**sftp_server.options, **options})
    with pytest.raises(error, match=said) as caught:
        backend.read("log/1")
    assert str(folder) in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_host_with_another_key_than_the_known_one_is_refused(
    sftp_server: SftpServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = paramiko.ECDSAKey.generate()
    (tmp_path / ".ssh").mkdir()
    line = f"[127.0.0.1]:{sftp_server.port} {other.get_name()} {other.get_base64()}\n"
    (tmp_path / ".ssh/known_hosts").write_text(line)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(PermissionError, match="another key"):
        backend_of(sftp_server.url(folder), sftp_server.options).read("log/1")


def test_a_server_that_is_not_there_is_told_after_patience(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cas.retries, "PATIENCE", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
        backend_of(f"sftp://user@127.0.0.1:{port}/x", {"allow_agent": False}).read("log/1")


def test_a_server_that_falls_silent_is_given_up(
    sftp_server: SftpServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no thread hangs for ever."""
    monkeypatch.setattr(cas.retries, "PATIENCE", 0.5)
    monkeypatch.setattr("cas.sshlink._SILENCE", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        options = {**sftp_server.options, "banner_timeout": 0.5}
        with pytest.raises(OSError, match="log/1"):
            backend_of(f"sftp://127.0.0.1:{server.getsockname()[1]}/x", options).read("log/1")


def test_files_are_flushed_before_they_have_their_name(
    backend: SftpBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    request, rename = paramiko.SFTPClient._request, paramiko.SFTPClient.rename

    def watch(sftp: Any, kind: Any, *args: Any) -> Any:
        answer = request(sftp, kind, *args)
        if args and args[0] == "fsync@openssh.com":
            seen.append("flushed")
        return answer

    def watch_rename(sftp: Any, *args: Any) -> Any:
        seen.append("named")
        return rename(sftp, *args)

    monkeypatch.setattr(paramiko.SFTPClient, "_request", watch)
    monkeypatch.setattr(paramiko.SFTPClient, "rename", watch_rename)
    backend.create("log/1", b"1")
    file = backend.new_file("packs/aa/one", 5 * MIB)
    file.write(bytes(5 * MIB))
    file.publish()
    assert seen == ["flushed", "named"] * 2
