"""Which servers can be had on this machine, and what goes untested without the others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import ModuleType

import pytest

from . import ceph, moto, rclone, sshd, swift
from .processes import installed

ENDPOINT = "CAS_TEST_S3"
"""The environment variable with the URL of the user's own S3 server."""

NOT_COVERED = {
    "s3": "S3, for there is no server at all: `make install` brings moto's",
    "real_s3": "races and faults on S3, for moto's server stands in for a real one: set CAS_TEST_S3 or install Ceph",
    "fault_proxy": "faults on S3: the proxy's server must be real and take plain HTTP",
    "restartable_s3": "an S3 server that is killed and comes back: install Ceph",
    "sftp": "SFTP: install openssh-server",
    "swift": "an S3 server without conditional writes: install Swift",
    "rclone": "an S3 server that breaks its promise of conditional writes: install rclone",
    "moto": "moto's server: `make install` brings it",
}
"""By the name of the fixture without `_server`: what is lost with it, and the remedy."""


def usable(*servers: ModuleType) -> bool:
    return any(installed(server.PROGRAMS) for server in servers)


def available() -> dict[str, bool]:
    """Whether each server of NOT_COVERED can be had here; looks for programs and starts nothing."""
    own = os.environ.get(ENDPOINT, "")
    return {
        "s3": bool(own) or usable(ceph, moto),
        "real_s3": bool(own) or usable(ceph),
        "fault_proxy": own.startswith("http:") if own else usable(ceph),
        "restartable_s3": usable(ceph),
        "sftp": usable(sshd),
        "swift": usable(swift),
        "rclone": usable(rclone),
        "moto": usable(moto),
    }


def needs(item: pytest.Item) -> set[str]:
    """The servers that a test needs: those of its fixtures and those of its marks `server`."""
    fixtures = {name.removesuffix("_server") for name in getattr(item, "fixturenames", ())}
    marks = {name for mark in item.iter_markers("server") for name in mark.args}
    if unknown := marks - NOT_COVERED.keys():
        raise pytest.UsageError(f"{item.nodeid}: there is no server named {', '.join(sorted(unknown))}")
    return fixtures & NOT_COVERED.keys() | marks


def leave_out(items: list[pytest.Item]) -> tuple[list[pytest.Item], dict[str, list[str]]]:
    """Take from `items` the tests whose servers cannot be had; return them, and their names by server."""
    lacking = {name for name, there in available().items() if not there}
    left_out: list[pytest.Item] = []
    names: dict[str, list[str]] = {}
    for item in items:
        if missed := needs(item) & lacking:
            left_out.append(item)
            for server in missed:
                names.setdefault(server, []).append(item.name)
    items[:] = [item for item in items if item not in left_out]
    return left_out, names


def told(names: Mapping[str, Iterable[str]]) -> list[str]:
    """A line for each server that was not there, with the tests that it cost."""
    return [f"NOT COVERED: {NOT_COVERED[server]} (left out: {', '.join(names[server])})" for server in sorted(names)]
