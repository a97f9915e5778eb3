"""One operation with a store on S3 in a process of its own: seconds without imports, and its peak of memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from bench.child import anonymous
from bench.machine import usual_environment

_SAMPLE = 0.005  # seconds


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of an operation; bytes of anonymous memory that its process had at the peak, less what stood there
    before and less the tensors that it gave; stored bytes that it sent."""

    seconds: float
    memory: int
    sent: int


def timed(operation: str, **settings: Any) -> Took:
    """Run bench/remotes/operation.py."""
    line = [sys.executable, "-m", "bench.remotes.operation", operation]
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=usual_environment()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(settings))
        process.stdin.close()
        process.stdout.readline()
        before = peak = anonymous(process.pid)
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(_SAMPLE)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, line)
        seconds, given, sent = process.stdout.read().split()
    return Took(float(seconds), max(0, peak - before - int(given)), int(sent))
