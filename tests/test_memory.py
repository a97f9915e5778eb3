"""The memory that commits and loads need beside the state: the peak of anonymous memory, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20
PEAK = """
import json, sys, threading, time
import numpy as np
import cas

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10

class Peak:
    def __enter__(self):
        self.start = self.top = anonymous()
        self.stop = False
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self
    def watch(self):
        while not self.stop:
            self.top = max(self.top, anonymous())
            time.sleep(0.002)
    def __exit__(self, *_):
        self.stop = True
        self.thread.join()
"""
"""Measures a process from within."""
SCRIPT = (
    PEAK
    + """
path, kind, codec, size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
rng = np.random.default_rng(0)
state = {f"w{i}": rng.standard_normal((size >> 22) << 17, np.float32).reshape(1024, -1) for i in range(8)}
if kind == "transposed":
    state = {key: w.T for key, w in state.items()}
extra = {}
with cas.open(path, create=True) as store:
    with Peak() as peak:
        store.commit(state, codec=codec)
    extra["commit"] = peak.top - peak.start
    with Peak() as peak:
        store.commit(state, codec=codec)
    extra["unchanged"] = peak.top - peak.start
    del state
with cas.open(path) as store:
    with Peak() as peak:
        state = store.load()
    extra["load"] = peak.top - peak.start - sum(w.nbytes for w in state.values())
    with Peak() as peak:
        store.load(into=state)
    extra["into"] = peak.top - peak.start
    with Peak() as peak:
        store.fsck(data=True)
    extra["fsck"] = peak.top - peak.start
print(json.dumps(extra))
"""
)


@pytest.mark.parametrize(("kind", "codec"), [("plain", "auto"), ("plain", "planes"), ("transposed", "auto")])
def test_commit_and_load_need_little_beside_the_state(tmp_path: Path, kind: str, codec: str) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "s"), kind, codec, str(320 * MIB)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    extra = {name: size // MIB for name, size in json.loads(done.stdout).items()}
    assert max(extra.values()) < 150, extra
