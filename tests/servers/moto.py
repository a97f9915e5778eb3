"""moto's server: S3 in one Python process. Its conditional writes lose updates when raced."""

from __future__ import annotations

from pathlib import Path

from .processes import Running, end, free_port, program, spawn, wait_until_listening

PROGRAMS = ("moto_server",)


def start(directory: Path) -> Running:
    """The server; it takes any key and keeps everything in memory."""
    port, log = free_port(), directory / "moto.log"
    process = spawn([program("moto_server"), "-H", "127.0.0.1", "-p", str(port)], log)
    try:
        wait_until_listening(port, process, log)
    except BaseException:
        end(process)
        raise
    return Running(
        {"endpoint": f"http://127.0.0.1:{port}", "key": "testkey", "secret": "testsecret"}, lambda: end(process)
    )
