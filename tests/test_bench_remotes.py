"""The bench of remotes: a very small run of it does all that a large one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers.s3 import S3Server

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_very_small_run_measures_everything(s3_server: S3Server, tmp_path: Path) -> None:
    access = {"AWS_ACCESS_KEY_ID": s3_server.key, "AWS_SECRET_ACCESS_KEY": s3_server.secret}
    done = subprocess.run(
        [sys.executable, "-m", "bench.remotes", "--mebibytes=32", "--rounds=1", f"--out={tmp_path}"],
        cwd=ROOT,
        env={**os.environ, **access, "CAS_TEST_S3": s3_server.endpoint},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "remotes.json").read_text())
    assert set(found["timings"]) == {"first push", "verified load"}
    what = [figure[0] for figure in found["figures"]]
    assert [name for name in what if name.startswith("memory")] == [
        f"memory of {operation}, MiB" for operation in ("push", "load", "gc", "pull")
    ]
    assert any("LoRA" in name for name in what)
