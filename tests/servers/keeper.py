"""One server for many test processes: it lives as long as any of them, however they end.

Every user holds a shared lock on the file `users`; the kernel takes it back when the user dies. A keeper, a process of
its own, starts the server, writes `ready.json`, waits for that lock alone, and stops the server. POSIX record locks,
because forked children do not inherit them.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .processes import Running, StartFailed, tail

READY, USERS, LOG = "ready.json", "users", "keeper.log"
DEADLINE = 300.0
"""Seconds that a server may take to start, all attempts together, on a machine that does much else."""
ATTEMPTS = 3
"""A port may be taken between being found free and being used."""


@contextmanager
def kept(kind: str, directory: Path, **arguments: str) -> Iterator[dict[str, str]]:
    """What `servers.<kind>.start` told of its server, which runs until the last user of `directory` leaves.

    Raises StartFailed with the keeper's log.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / USERS).open("a+b") as users:
        with (directory / "starting").open("ab") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            fcntl.lockf(users, fcntl.LOCK_SH, 1)  # waits for a keeper that is stopping its server
            if not (directory / READY).exists():
                _start_keeper(kind, directory, arguments)
        yield json.loads((directory / READY).read_text())


def _start_keeper(kind: str, directory: Path, arguments: dict[str, str]) -> None:
    log = directory / LOG
    command = [sys.executable, "-m", "servers.keeper", kind, str(directory), json.dumps(arguments)]
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            command,
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # an interrupt at the terminal is for the tests: the keeper ends after them
        )
    deadline = time.monotonic() + DEADLINE
    while not (directory / READY).exists():
        if keeper.poll() is not None or time.monotonic() > deadline:
            raise StartFailed(f"{kind} did not start: {tail(log)}")
        time.sleep(0.05)
    keeper.returncode = 0  # it outlives this process on purpose, so nobody waits for it


def _alone(users: BinaryIO, wait: bool) -> bool:
    try:
        fcntl.lockf(users, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1)
    except OSError:
        return False
    return True


def _started(kind: str, directory: Path, arguments: dict[str, str]) -> Running:
    for attempt in range(ATTEMPTS):
        data = directory / f"data-{attempt}"
        data.mkdir()
        try:
            running: Running = importlib.import_module(f"servers.{kind}").start(data, **arguments)
            return running
        except StartFailed as error:
            print(error, file=sys.stderr, flush=True)
    raise SystemExit(f"{kind}: {ATTEMPTS} attempts failed")


def keep(kind: str, directory: Path, arguments: dict[str, str]) -> None:
    """Start the server, stay until nobody uses it, stop it and remove its files."""
    with (directory / "keeper").open("ab") as one, (directory / USERS).open("a+b") as users:
        fcntl.flock(one, fcntl.LOCK_EX)  # a keeper whose users died while it was starting is still at work
        if _alone(users, wait=False):
            return
        try:
            running = _started(kind, directory, arguments)
            try:
                fresh = directory / f"{READY}.new"
                fresh.write_text(json.dumps(running.info))
                fresh.rename(directory / READY)
                _alone(users, wait=True)
            finally:
                (directory / READY).unlink(missing_ok=True)
                running.stop()
        finally:
            for data in directory.glob("data-*"):
                shutil.rmtree(data, ignore_errors=True)


if __name__ == "__main__":
    keep(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
