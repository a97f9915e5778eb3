"""strace around a forked child: every system call of a piece of work listed, made to fail, or made the last."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from . import children

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None,
    reason="NOT COVERED: faults at each system call of a commit; install strace",
)
"""With `-ra`, pytest's summary says what was left out."""


@dataclass(frozen=True)
class Call:
    """The `nth` call (from 1) of `name` that one thread (from 0, the first) made, as strace prints it."""

    name: str
    nth: int
    text: str
    thread: int


def traced(
    folder: Path, work: Callable[..., Any], *args: Any, inject: str = "", only: str = "", limit: float = 30.0
) -> tuple[bytes, int, str]:
    """Run `work(*args)` in a child on one processor, traced from before its first line.

    Returns what it sent, its wait status and strace's text: of all calls and with the paths of descriptors, or,
    which is faster, of the calls named in `only` and without. A caller that is bound to one processor gains as much
    again: the child and strace, which wait for each other at every call, then do it without waking another one.
    """
    output = folder / "trace"
    gate = children.Gate()
    child = children.start(_after_gate, gate, work, args)
    with children.killed_at_the_end([child]):
        gate.wait_for(child)  # else the fault may hit the gate
        command = ["strace", "-f", "-q", "-o", str(output), "-p", str(child.pid)]
        command += ["-e", f"trace={only}"] if only else ["-y"]
        if inject:
            command += ["-e", f"inject={inject}"]
        tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _wait_for_attach(child.pid, tracer)
            gate.open()
            data, status = child.end(limit)
            tracer.wait(limit)
        finally:
            tracer.kill()
            tracer.communicate()
    return data, status, output.read_text(errors="replace")


def _wait_for_attach(pid: int, tracer: subprocess.Popen[bytes]) -> None:
    while tracer.poll() is None:
        status = Path(f"/proc/{pid}/status").read_text()
        if re.search(rf"^TracerPid:\s+{tracer.pid}$", status, re.MULTILINE) and _is_waiting(pid):
            return
        os.sched_yield()
    if tracer.returncode:  # 0: the fault was in the very first call, and it is all over
        raise AssertionError(f"strace did not attach: {tracer.stderr.read().decode() if tracer.stderr else ''}")


def _is_waiting(pid: int) -> bool:
    """Whether the child is back in the gate's read, after strace's stop."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def _after_gate(gate: children.Gate, work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    children.stay_on_one_processor()
    gate.wait()
    return work(*args)


_LINE = re.compile(r"^(\d+)\s+(\w+)\((.*)$")


def calls(text: str) -> list[Call]:
    """Every system call of the trace with its number among those of its name and thread."""
    counts: dict[tuple[str, str], int] = {}
    threads: dict[str, int] = {}
    found = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is not None:
            thread, name, rest = match.groups()
            counts[thread, name] = nth = counts.get((thread, name), 0) + 1
            found.append(Call(name, nth, rest, threads.setdefault(thread, len(threads))))
    return found


def fsyncs_after_a_failed_one(text: str) -> list[str]:
    """Lines that fsync a descriptor again that failed to before and was not closed since."""
    failed: set[str] = set()
    again = []
    for line in text.splitlines():
        match = re.match(r"^\d+\s+(fsync|fdatasync|close)\((\d+)", line)
        if match is None:
            continue
        name, fd = match.groups()
        if name == "close":
            failed.discard(fd)
        elif fd in failed:
            again.append(line)
        elif "(INJECTED)" in line:
            failed.add(fd)
    return again
