"""OpenStack Swift with its s3api: S3 that answers 501 to a conditional write."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .processes import (
    Running,
    StartFailed,
    end,
    environment,
    free_port,
    program,
    spawn,
    user_name,
    wait_until_listening,
)

KINDS = ("account", "container", "object")
"""What Swift keeps: a server, a ring and a folder for each."""
PROGRAMS = ("memcached", "swift-ring-builder", "swift-proxy-server", *(f"swift-{kind}-server" for kind in KINDS))

STORAGE = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
workers = 0
swift_dir = {directory}
devices = {directory}
mount_check = false
fallocate_reserve = 0

[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
"""

PROXY = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
workers = 0
swift_dir = {directory}

[pipeline:main]
pipeline = catch_errors cache s3api tempauth bulk slo proxy-server

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{cache}

[filter:s3api]
use = egg:swift#s3api

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testsecret .admin

[filter:bulk]
use = egg:swift#bulk

[filter:slo]
use = egg:swift#slo

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
"""


def start(directory: Path) -> Running:
    """The proxy, its cache and one storage server of each kind, with all data in `directory`."""
    (directory / "disk").mkdir()
    ports = {name: free_port() for name in (*KINDS, "proxy", "cache")}
    for kind in KINDS:
        _make_ring(directory, kind, ports[kind])
    processes = {name: _spawn(directory, name, ports) for name in ports}
    try:
        for name, process in processes.items():
            wait_until_listening(ports[name], process, directory / f"{name}.log")
    except BaseException:
        end(*processes.values())
        raise
    endpoint = f"http://127.0.0.1:{ports['proxy']}"
    info = {"endpoint": endpoint, "key": "test:tester", "secret": "testsecret"}
    return Running(info, lambda: end(*processes.values()))


def _spawn(directory: Path, name: str, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    port, user, log = ports[name], user_name(), directory / f"{name}.log"
    if name == "cache":
        return spawn([program("memcached"), "-l", "127.0.0.1", "-p", str(port), "-u", user], log)
    template = PROXY if name == "proxy" else STORAGE
    text = template.format(kind=name, port=port, user=user, directory=directory, cache=ports["cache"])
    (directory / f"{name}.conf").write_text(text)
    return spawn([program(f"swift-{name}-server"), str(directory / f"{name}.conf"), "-v"], log)


def _make_ring(directory: Path, kind: str, port: int) -> None:
    """Tell Swift that everything of this kind lies in one place."""
    builder = [program("swift-ring-builder"), str(directory / f"{kind}.builder")]
    steps = (["create", "4", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/disk", "1"], ["rebalance"])
    for step in steps:
        done = subprocess.run([*builder, *step], env=environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise StartFailed(f"swift-ring-builder {' '.join(step)}: {done.stdout}{done.stderr}")
