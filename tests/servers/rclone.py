"""`rclone serve s3`: S3 over a directory. A conditional write overwrites what is there and reports success."""

from __future__ import annotations

from pathlib import Path

from .processes import Running, end, free_port, program, spawn, wait_until_listening

PROGRAMS = ("rclone",)


def start(directory: Path) -> Running:
    """The server, with its files in `directory`."""
    files, port, log = directory / "files", free_port(), directory / "rclone.log"
    files.mkdir()
    command = [program("rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "testkey,testsecret"]
    process = spawn([*command, "--config", str(directory / "rclone.conf"), str(files)], log)
    try:
        wait_until_listening(port, process, log)
    except BaseException:
        end(process)
        raise
    return Running(
        {"endpoint": f"http://127.0.0.1:{port}", "key": "testkey", "secret": "testsecret"}, lambda: end(process)
    )
