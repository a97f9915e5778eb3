"""OpenSSH's server for SFTP, as the current user, with keys made for the occasion."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processes import Running, end, free_port, program, spawn, user_name, wait_until_listening

PROGRAMS = ("sshd", "ssh-keygen")

CONFIGURATION = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
PidFile none
# The directory of the keys may be one that others can write.
StrictModes no
# Without PAM an account that has no password counts as locked; root's does not, and PAM may refuse root in a container.
UsePAM {pam}
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 200
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class SftpServer:
    """A server whose files are this machine's, with the rights of the current user."""

    port: int
    key_file: str

    @property
    def options(self) -> dict[str, Any]:
        """Storage options of fsspec's sftp: those of `paramiko.SSHClient.connect`."""
        return {"username": user_name(), "key_filename": self.key_file, "look_for_keys": False, "allow_agent": False}

    def url(self, path: str | Path) -> str:
        """The URL of an absolute path."""
        return f"sftp://127.0.0.1:{self.port}/{str(path).lstrip('/')}"


def start(directory: Path) -> Running:
    """The server, with its keys in `directory`."""
    for name in ("host", "user"):
        command = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(directory / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    root = os.getuid() == 0
    if root:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd started by root drops its rights
    port = free_port()
    configuration = directory / "sshd_config"
    pam = "no" if root else "yes"
    configuration.write_text(CONFIGURATION.format(port=port, directory=directory, pam=pam))
    log = directory / "sshd.log"
    process = spawn([program("sshd"), "-D", "-e", "-f", str(configuration)], log)
    try:
        wait_until_listening(port, process, log)
    except BaseException:
        end(process)
        raise
    return Running({"port": str(port), "key_file": str(directory / "user")}, lambda: end(process))
