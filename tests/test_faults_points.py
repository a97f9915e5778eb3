"""Faults at each system call of each operation: the process is killed there, or the call fails, once or for good.

Afterwards every ref is as before or as the operation wanted it, and as it was acknowledged; every commit reads back bit
for bit; the operation does the rest of its work when it is run again, and so does a commit; fsck has no complaint; a
rebuilt index equals the one that is there. No descriptor whose fsync failed is synced again. What the caller sees is
one sentence that names the file.

A point is the first and the last call of each name and kind of file, or, where CAS_TEST_EVERY_CALL is set, every call;
`faults/points.py` has the table, `faults/operations.py` the operations.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.operations import DELTAS, OPERATIONS
from faults.points import FAULTS
from faults.stores import count_deltas
from faults.strace import needs_strace
from faults.warm import RECOVERY

pytestmark = [needs_strace, pytest.mark.slow]

Ask = Callable[[str, str], dict[str, Any]]

CASES = [
    (operation.name, fault)
    for operation in OPERATIONS.values()
    for fault in (*FAULTS, RECOVERY)
    if fault in operation.faults or not operation.faults
]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """The warm parent: for an operation and a fault it returns its report."""
    command = [sys.executable, "-m", "faults.warm"]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as parent,
    ):
        assert parent.stdin is not None
        assert parent.stdout is not None

        def ask_parent(operation: str, fault: str) -> dict[str, Any]:
            print(operation, fault, file=parent.stdin, flush=True)
            answer = parent.stdout.readline()
            errors.seek(0)
            assert answer, f"the warm parent died: {errors.read()[-2000:]}"
            return dict(json.loads(answer))

        yield ask_parent


@pytest.mark.parametrize(("operation", "fault"), CASES)
def test_a_fault_at_any_system_call_loses_nothing(ask: Ask, operation: str, fault: str) -> None:
    report = ask(operation, fault)
    assert not report["failures"], "\n\n".join([f"{len(report['failures'])} failures", *report["failures"]])
    assert report["points"] >= 2, report
    assert report["reached"] >= 0.9 * report["points"], f"not every point was reached: {report}"
    assert report["errors"] or not fault.startswith(("EIO", "ENOSPC", "EDQUOT")), "no fault was felt"


def test_the_points_of_a_commit_are_all_that_make_it_durable(ask: Ask) -> None:
    """Each is a class of its own, whatever file in tmp/ it is about."""
    classes = ask("commit", "EIO")["classes"].keys()
    for kind in ("pack", "record"):
        made = {f"{name} tmp {kind}" for name in ("openat", "write", "fsync", "close", "unlink")}
        assert classes >= made | {f"link {kind}"}
    assert classes >= {"fsync directory packs", "fsync directory log", "fsync directory", "rename hint"}
    assert classes >= {"flock lock", "pwrite64 index", "fdatasync index", "unlink index", "rename index"}
    assert classes >= {"getdents64 directory packs", "pread64 pack", "pread64 record", "pread64 hint"}


def test_a_commit_whose_fate_is_open_says_so(ask: Ask) -> None:
    """Among the calls that fail are the record's link and the fsync of its directory."""
    assert ask("commit", "EIO")["errors"].keys() >= {"CommitUnknown", "CasError"}


def test_threads_are_struck_as_well(ask: Ask) -> None:
    """A large pack is written by a thread of its own, whose first write is not the first of the process."""
    assert ask("large-commit", "EIO")["classes"]["pwrite64 tmp pack"] >= 2


@pytest.mark.parametrize("name", DELTAS)
def test_what_is_about_deltas_makes_them(tmp_path: Path, name: str) -> None:
    """After a fault fewer will do: a block whose base cannot be read is stored whole."""
    operation, path = OPERATIONS[name], tmp_path / "store"
    operation.prepare(path)
    operation.run(path, lambda kind, text: None)
    assert count_deltas(path) == DELTAS[name]
