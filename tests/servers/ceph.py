"""Ceph with its S3 gateway: the real server of the tests. `ceph.sh` makes it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .processes import Running, StartFailed, environment, free_port, tail
from .s3 import S3Server

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
DEADLINE = 90
"""Seconds; a cluster takes about 12 to make and less to start again."""


@dataclass(frozen=True)
class Cluster:
    """The daemons of one cluster: those of `ceph.sh` in `directory`, which say where they listen."""

    directory: Path
    port: str
    monitor: str
    store: str

    @property
    def server(self) -> S3Server:
        return S3Server(f"http://127.0.0.1:{self.port}", "testkey", "testsecret", is_real=True)

    def kill(self) -> None:
        """SIGKILL for every daemon, as a power cut would have it; returns when they are gone."""
        for file in self.directory.glob("run/*.pid"):
            if pid := self._pid(file):
                os.kill(pid, signal.SIGKILL)
        while any(self._pid(file) for file in self.directory.glob("run/*.pid")):
            time.sleep(0.02)

    def start(self) -> None:
        """Start the daemons that are not running; returns when the gateway takes connections."""
        log = self.directory.parent / f"{self.directory.name}.log"
        command = [str(Path(__file__).with_name("ceph.sh"))]
        command += [str(self.directory), self.port, self.monitor, self.store]
        with log.open("ab") as output:  # not a pipe: the daemons keep it open
            try:
                done = subprocess.run(
                    ["bash", *command],
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=DEADLINE,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise StartFailed(f"ceph.sh took more than {DEADLINE} s: {tail(log)}") from None
        if done.returncode:
            raise StartFailed(f"ceph.sh failed: {tail(log)}")

    def _pid(self, file: Path) -> int | None:
        """The process that a pid file names, if it is still one of ours."""
        try:
            pid = int(file.read_text())
            ours = str(self.directory).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (ValueError, OSError):
            return None
        return pid if ours else None


def start(directory: Path, store: str = "memstore") -> Running:
    """A new cluster; `store` is memstore, all in memory and fast, or bluestore, which survives `Cluster.kill`."""
    settings = {"port": str(free_port()), "monitor": str(free_port()), "store": store}
    cluster = Cluster(directory, **settings)
    try:
        cluster.start()
    except BaseException:
        cluster.kill()
        raise
    return Running({"directory": str(directory), **settings}, cluster.kill)


def cluster(info: dict[str, str]) -> Cluster:
    """The cluster that a keeper told of."""
    return Cluster(Path(info["directory"]), info["port"], info["monitor"], info["store"])
