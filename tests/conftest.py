"""Shared by all tests. What only one file needs stands in that file."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from faults.proxy import FaultProxy
from servers import ceph, choice
from servers.keeper import kept
from servers.s3 import S3Server
from servers.sshd import SftpServer

if TYPE_CHECKING:
    from cas.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A new, empty, open store in a directory of its own."""
    import cas

    with cas.open(tmp_path / "store", create=True) as opened:
        yield opened


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Between files, give back the memory that malloc keeps: many tests fork, which takes as long as a process is
    large."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)


# Servers: `servers/__init__.py` says what there is and how to run against one's own.


@pytest.fixture(scope="session")
def servers_directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all processes of this run: a worker's own lies in it."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if hasattr(request.config, "workerinput") else base) / "servers"


@pytest.fixture(scope="session")
def s3_server(request: pytest.FixtureRequest, servers_directory: Path) -> Iterator[S3Server]:
    """The best S3 server there is: the user's own, else Ceph, else moto's."""
    if endpoint := os.environ.get(choice.ENDPOINT):
        own = S3Server(endpoint, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], is_real=True)
        yield own
        own.discard_all()
    elif choice.usable(ceph):
        with kept("ceph", servers_directory / "ceph") as info:
            yield ceph.cluster(info).server
    else:
        yield request.getfixturevalue("moto_server")


@pytest.fixture(scope="session")
def real_s3_server(s3_server: S3Server) -> S3Server:
    """The S3 server, never moto's, whose conditional writes cannot be raced."""
    assert s3_server.is_real, "mark the test with server('real_s3'), so that it is left out where there is none"
    return s3_server


@pytest.fixture
def fault_proxy(real_s3_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy of the test's own before the real S3 server: `.server`, `.options`, `.faults`, `.requests`."""
    with FaultProxy(real_s3_server) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def restartable_s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ceph.Cluster]:
    """A Ceph for the tests of one module, which outlives `kill()` and `start()`; `.server` is its S3Server."""
    with kept("ceph", tmp_path_factory.mktemp("restartable"), store="bluestore") as info:
        yield ceph.cluster(info)


@pytest.fixture(scope="session")
def swift_server(servers_directory: Path) -> Iterator[S3Server]:
    """An S3 server without conditional writes, which says so."""
    with kept("swift", servers_directory / "swift") as info:
        yield S3Server(**info)


@pytest.fixture(scope="session")
def rclone_server(servers_directory: Path) -> Iterator[S3Server]:
    """An S3 server whose conditional writes overwrite."""
    with kept("rclone", servers_directory / "rclone") as info:
        yield S3Server(**info)


@pytest.fixture(scope="session")
def moto_server(servers_directory: Path) -> Iterator[S3Server]:
    """The stand-in for a real server: never for races, which it loses."""
    with kept("moto", servers_directory / "moto") as info:
        yield S3Server(**info)


@pytest.fixture(scope="session")
def sftp_server(servers_directory: Path) -> Iterator[SftpServer]:
    """A real sshd, which serves this machine's files."""
    with kept("sshd", servers_directory / "sshd") as info:
        yield SftpServer(int(info["port"]), info["key_file"])


# Tests whose server cannot be had are left out, and the last lines of the run name them.

NOT_COVERED = pytest.StashKey[dict[str, list[str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "server(name): needs that server; left out and named where it cannot be had")
    config.stash[NOT_COVERED] = {}
    keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    if os.environ.get(choice.ENDPOINT) and not keys <= os.environ.keys():
        raise pytest.UsageError(f"{choice.ENDPOINT} is set: set {' and '.join(sorted(keys))}, too")


@pytest.hookimpl(trylast=True)  # after -k and -m: what was not asked for is not missed
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out, names = choice.leave_out(items)
    config.hook.pytest_deselected(items=left_out)
    config.stash[NOT_COVERED] = names
    if hasattr(config, "workeroutput"):
        config.workeroutput["not_covered"] = names


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker ended: every worker leaves out the same tests, so the last to end tells for all."""
    node.config.stash[NOT_COVERED].update(getattr(node, "workeroutput", {}).get("not_covered", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in choice.told(config.stash[NOT_COVERED]):
        terminalreporter.write_line(line, yellow=True)
