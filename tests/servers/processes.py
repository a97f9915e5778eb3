"""Programs found, started on free ports, waited for and ended."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

# Programs of Python packages lie beside the interpreter; sshd lies where only root's PATH looks.
PLACES = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


class StartFailed(Exception):
    """A server did not come up; the message holds the end of its log."""


@dataclass(frozen=True)
class Running:
    """A started server: `info` is what its users must know, as JSON takes it; `stop` ends it at once."""

    info: dict[str, str]
    stop: Callable[[], None]


def program(name: str) -> str:
    """The full path of an installed program; StartFailed without one."""
    found = shutil.which(name, path=PLACES)
    if found is None:
        raise StartFailed(f"{name} is not installed")
    return found


def installed(names: Iterable[str]) -> bool:
    return all(shutil.which(name, path=PLACES) for name in names)


def user_name() -> str:
    """The user whom this process runs as, whatever the environment says."""
    return pwd.getpwuid(os.getuid()).pw_name


def free_port() -> int:
    """A port that nothing listens on, below those that the system gives to outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def environment() -> dict[str, str]:
    """What servers run with: Debian's programs in Python must not find the packages of the tests' interpreter."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}, "PATH": PLACES}


def spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own, with both outputs in `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command, env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def end(*started: subprocess.Popen[bytes]) -> None:
    """Kill the programs and all that they started in their groups: their data is thrown away with them."""
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it had ended by itself
        process.wait()


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:] if log.exists() else "(no log)"


def wait_until_listening(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    """Return when the port takes connections; StartFailed when the process ends before or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise StartFailed(f"{process.args!r} does not listen on port {port}: {tail(log)}")
