"""`examples/fsdp2.py` as its readers run it: killed in the middle, it goes on with another number of ranks."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import cas

EXAMPLE = Path(__file__).parent.parent / "examples" / "fsdp2.py"


@dataclass(frozen=True)
class Training:
    """What one start of the example said: the step it started after, and the loss of each step."""

    start: int
    losses: dict[int, float]


def train(ranks: int, store: Path, *options: str, killed: bool = False) -> Training:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*command, str(EXAMPLE), f"--store={store}", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=store.parent,
    )
    assert (done.returncode != 0) == killed, done.stdout + done.stderr
    assert (f"exitcode  : -{signal.SIGKILL.value}" in done.stderr) == killed, done.stderr
    started = re.findall(rf"^{ranks} ranks start after step (\d+)$", done.stdout, re.MULTILINE)
    losses = re.findall(r"^step (\d+) loss (\S+)$", done.stdout, re.MULTILINE)
    assert len(started) == 1, done.stdout
    return Training(int(started[0]), {int(step): float(loss) for step, loss in losses})


def committed(store: Path) -> list[int | None]:
    with cas.open(store) as opened:
        return [commit.step for commit in opened.log("main")][::-1]


@pytest.mark.slow
def test_it_is_killed_and_goes_on_with_other_numbers_of_ranks(tmp_path: Path) -> None:
    """A rank is killed in step 8: the commit of step 3 is durable by then, that of step 6 may or may not be."""
    whole = train(2, tmp_path / "whole", "--steps=16")
    assert (whole.start, list(whole.losses)) == (0, list(range(1, 17)))
    assert whole.losses[16] < whole.losses[1] / 2, "it learns, so a step tells where in the training it stands"

    store = tmp_path / "store"
    killed = train(2, store, "--die-at=8", killed=True)
    assert (killed.start, list(killed.losses)) == (0, list(range(1, 8)))
    assert killed.losses == {step: whole.losses[step] for step in killed.losses}
    assert committed(store) in ([3], [3, 6])

    for ranks, until in ((3, 12), (1, 16)):
        last = committed(store)[-1]
        resumed = train(ranks, store, f"--steps={until}")
        assert resumed.start == last
        assert list(resumed.losses) == list(range(resumed.start + 1, until + 1))
        expected = [whole.losses[step] for step in resumed.losses]
        np.testing.assert_allclose(list(resumed.losses.values()), expected, rtol=1e-5)
    assert committed(store) == [3, 6, 9, 12, 15]
    with cas.open(store) as opened:
        left = opened.fsck(data=True)
    assert {finding.name for finding in left} <= {"leftover"}, "the killed rank may have been writing a file"
