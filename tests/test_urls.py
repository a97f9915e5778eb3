"""From the name of a place to its backend, and no secret in any word about it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from cas.errors import Invalid, Unsupported
from cas.local import LocalBackend
from cas.remote import RemoteBackend
from cas.s3 import S3Backend
from cas.sftp import SftpBackend
from cas.urls import backend_of, check_url, is_url, shown

SECRET = "s3cr3t/w0rd"


def test_a_path_and_a_file_url_are_a_local_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for text, place in [
        (f"{tmp_path}/a", "a"),
        ("a", "a"),
        (f"file://{tmp_path}/a b/ü?x=1", "a b/ü?x=1"),
        (f"local://{tmp_path}/a", "a"),
        ("~/a", "home/a"),
    ]:
        backend = backend_of(text, create=True)
        assert isinstance(backend, LocalBackend)
        assert backend.url == f"{tmp_path}/{place}"
        assert os.path.isdir(backend.url)


def test_a_local_directory_is_made_only_on_request(tmp_path: Path) -> None:
    backend_of(f"{tmp_path}/a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("text", ["", "a\0b", "file://", "file://a/b", "file://~/a", "file:///a\0"])
def test_what_is_no_directory_is_invalid(text: str) -> None:
    with pytest.raises(Invalid):
        backend_of(text)


def test_a_local_directory_takes_no_options(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="leave them out"):
        backend_of(str(tmp_path), {"key": "x"})


def test_each_protocol_has_its_backend() -> None:
    assert isinstance(backend_of("s3://bucket/run", {"key": "k", "secret": "s"}), S3Backend)
    assert isinstance(backend_of("sftp://user@host/folder"), SftpBackend)
    assert isinstance(backend_of("ssh://host:2222/folder"), SftpBackend)
    assert isinstance(backend_of("memory://run"), RemoteBackend)


def test_a_url_is_told_from_a_path() -> None:
    assert is_url("s3://bucket")
    assert not is_url("/a/b:c")
    assert not is_url("C:\\x")


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        (f"sftp://user:{SECRET}@host/folder", "sftp://***@host/folder"),
        ("sftp://user:secret@host:22/folder", "sftp://***@host:22/folder"),
        (f"sftp://user:a@b:{SECRET}@host/folder", "sftp://***@host/folder"),
        (f"s3://AKIA:{SECRET}@bucket/run", "s3://***@bucket/run"),
        (f"s3://:{SECRET}@bucket/run", "s3://***@bucket/run"),
        (f"abfs://c@account.dfs.core.windows.net/run?sig={SECRET}", "abfs://c@account.dfs.core.windows.net/run?***"),
        (f"s3://AKIA:{SECRET}", "s3://***@"),
        (f"sftp://user@host:{SECRET}", "sftp://***@"),
        (f"s3://bucket?token={SECRET}", "s3://bucket?***"),
    ],
)
def test_a_url_with_a_secret_is_refused_and_shown_without_it(url: str, seen: str) -> None:
    assert shown(url) == seen
    for use in (check_url, backend_of):
        with pytest.raises(Invalid, match="--storage-option") as caught:
            use(url)
        assert "cr3t" not in str(caught.value)
        assert "w0rd" not in str(caught.value)
        assert seen in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/run",
        "s3://bucket/what?/ü b",
        "s3://bucket/run:1/me@home",
        "sftp://user@host:22/folder",
        "sftp://host:22/me@home",
        "sftp://[::1]:22/me@home",
        "abfs://container@account.dfs.core.windows.net/run",
        "gs://bucket",
    ],
)
def test_a_url_without_a_secret_is_shown_as_it_is(url: str) -> None:
    assert shown(url) == url
    check_url(url)


@pytest.mark.parametrize(
    "url", ["://bucket", "s3://", "1x://a/b", "simplecache::s3://bucket/run", "s3:///", "s3://a\0b"]
)
def test_a_malformed_url_is_invalid(url: str) -> None:
    with pytest.raises(Invalid):
        backend_of(url)


@pytest.mark.parametrize("url", ["sftp://host", "sftp:///folder"])
def test_a_url_of_sftp_names_a_host_and_a_folder(url: str) -> None:
    with pytest.raises(Invalid, match="sftp://user@host/folder"):
        backend_of(url)


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(Unsupported, match="no protocol gnurz"):
        backend_of("gnurz://a/b")


def test_a_missing_package_is_named_with_what_installs_it() -> None:
    with pytest.raises(Unsupported, match=r"tosfs"):
        backend_of("tos://a/b")


def without(package: str, url: str) -> str:
    """What a process says that opens a URL where a package is not installed."""
    code = f"import sys; sys.modules[{package!r}] = None\nimport cas.urls\ncas.urls.backend_of({url!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    return run.stderr.splitlines()[-1]


def test_a_missing_extra_is_named_with_what_installs_it() -> None:
    assert "cas.errors.Unsupported" in without("paramiko", "sftp://host/folder")
    assert "pip install 'cas-checkpoints[sftp]'" in without("paramiko", "sftp://host/folder")


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("sftp://host/folder", {"host_key_policy": "gnurz", "password": SECRET}),
        ("sftp://host/folder", {"port": "gnurz", "password": SECRET}),
        ("dbfs://host/folder", {"gnurz": 1, "token": SECRET}),
    ],
)
def test_wrong_options_are_invalid_in_one_sentence_without_secrets(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as caught:
        backend_of(url, options)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_of_fsspecs_configuration_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.config import conf

    monkeypatch.setitem(conf, "sftp", {"host_key_policy": "gnurz"})
    with pytest.raises(Invalid, match="gnurz"):
        backend_of("sftp://host/folder")
    backend_of("sftp://host/folder", {"host_key_policy": "reject"})


def test_nobodys_listing_cache_is_used() -> None:
    """fsspec keeps instances, with their caches, for all who open the same place."""
    import fsspec

    url = f"memory://{uuid.uuid4().hex}"
    backend = backend_of(url)
    assert isinstance(backend, RemoteBackend)
    assert backend._fs() is not fsspec.filesystem("memory")
    assert backend._fs().storage_options["use_listings_cache"] is False
