"""The memory that work on a store in a bucket needs beside the state: the peak of anonymous memory, in processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from buckets import Bucket
from servers.s3 import S3Server
from test_memory import MIB, PEAK

SCRIPT = (
    PEAK
    + """
what, here, url, other, cache, options, size = sys.argv[1:7] + [int(sys.argv[7])]
options = json.loads(options)

def state():
    rng = np.random.default_rng(0)
    return {f"w{i}": rng.standard_normal((size >> 22) << 17, np.float32).reshape(1024, -1) for i in range(8)}

def opened(create=False):
    return cas.open(url, create, storage_options=options, cache=cache)

extra = {}
if what == "commit":
    made = state()
    with opened(create=True) as store, Peak() as peak:
        store.commit(made)
elif what == "load":
    with opened() as store, Peak() as peak:
        made = store.load()
    peak.top -= sum(w.nbytes for w in made.values())
elif what == "into":
    made = {key: np.zeros_like(w) for key, w in state().items()}
    with opened() as store, Peak() as peak:
        store.load(into=made)
elif what == "clone":
    with Peak() as peak:
        cas.clone(url, here, storage_options=options, cache=cache).close()
elif what == "push":
    cas.init(other, storage_options=options, cache=cache).close()
    with Peak() as peak, cas.open(here, cache=cache) as store:
        store.push(other, storage_options=options)
elif what == "garbage":
    made = {key: w for key, w in state().items() if int(key[1:]) % 2}
    with opened() as store, Peak() as peak:
        store.commit(made, branch="half")
        store.delete_branch("main")
elif what == "gc":
    with opened() as store, Peak() as peak:
        assert store.gc(grace=0, expire=0).deleted
elif what == "fsck":
    with opened() as store, Peak() as peak:
        assert not [found for found in store.fsck(data=True) if found.severity == "error"]
print(json.dumps(peak.top - peak.start))
"""
)
WORK = ("commit", "load", "into", "clone", "push", "garbage", "gc", "fsck")


@pytest.mark.slow
def test_work_on_a_store_in_a_bucket_needs_little_beside_the_state(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = Bucket(s3_server, tmp_path / "cache")
    extra = {}
    for what in WORK:
        places = [str(tmp_path / "here"), bucket.url(), bucket.url("other"), str(tmp_path / f"cache for {what}")]
        command = [sys.executable, "-c", SCRIPT, what, *places, json.dumps(bucket.options), str(512 * MIB)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{what}: {done.stderr}"
        extra[what] = json.loads(done.stdout) // MIB
    print(extra)
    assert max(extra.values()) < 512, extra
