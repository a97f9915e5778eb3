"""`make demo`: a training run commits its full state, is killed, resumes bit-exactly and exports weights.

The training runs in processes of its own (bench/train.py); this one starts them, kills one of them,
compares what they report, and runs the `cas` command. Whatever it claims, it has just checked.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

Event = dict[str, Any]


class DemoFailed(Exception):
    """What should have been true and was not."""


def require(true: bool, otherwise: str) -> None:
    if not true:
        raise DemoFailed(otherwise)


@dataclass
class Report:
    """All that one training process said."""

    events: list[Event] = field(default_factory=list)

    def of(self, event: str) -> list[Event]:
        return [e for e in self.events if e["event"] == event]

    @property
    def losses(self) -> dict[int, str]:
        """Every step's loss in hex: exact to the last bit."""
        return {e["step"]: e["loss"] for e in self.of("step")}

    @property
    def end(self) -> Event:
        return self.of("end")[0]

    def seconds(self, event: str) -> list[float]:
        return [e["seconds"] for e in self.of(event) if e["seconds"] is not None]


# Output: plain lines, bold headings on a terminal and nowhere else.


def heading(text: str) -> None:
    bold = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(f"\n\033[1m{text}\033[0m" if bold else f"\n{text}", flush=True)


def tell(text: str) -> None:
    print(f"  {text}", flush=True)


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


def follow(event: Event) -> None:
    """Print the events worth a line while a process runs."""
    if event["event"] == "step" and event["step"] % 20 == 0:
        tell(f"step {event['step']:3}  loss {float.fromhex(event['loss']):.4f}")
    elif event["event"] == "committed" and "text" in event:
        tell(f"{event['text']}" + ("  (in the background)" if event["seconds"] is None else ""))


# Processes.


def start(phase: str, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.train", phase, str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def listen(process: subprocess.Popen[str]) -> Iterator[Event]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def run(phase: str, out: Path) -> Report:
    """One training process from start to end."""
    report = Report()
    with start(phase, out) as process:
        for event in listen(process):
            report.events.append(event)
            follow(event)
    require(process.returncode == 0, f"the process '{phase}' ended with exit code {process.returncode}")
    return report


def run_and_kill(out: Path, steps: int, pause: float) -> Report:
    """Start training and end it with SIGKILL at a random moment in the middle, maybe inside a commit."""
    dice, report = random.SystemRandom(), Report()
    after = dice.choice(["step", "commit"])
    earliest = dice.randint(steps * 3 // 8, steps * 5 // 8)
    with start("train", out) as process:
        for event in listen(process):
            report.events.append(event)
            follow(event)
            if process.poll() is None and event["event"] == after and event["step"] >= earliest:
                time.sleep(dice.uniform(0, pause))
                os.kill(process.pid, signal.SIGKILL)
                earliest = steps + 1
    code = process.returncode
    require(code == -signal.SIGKILL, f"the process to be killed ended with exit code {code} instead")
    return report


def cas(out: Path, *arguments: str) -> str:
    """Run the real command; its output. The store is found through CAS_STORE."""
    store = {"CAS_STORE": str(out / ".cas")}
    command = [sys.executable, "-m", "cas.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **store}, check=False)
    reason = (done.stderr or done.stdout).strip().splitlines()[-1:]
    require(done.returncode == 0, f"cas {' '.join(arguments)} ended with {done.returncode}: {''.join(reason)}")
    return done.stdout


def show(out: Path, *arguments: str) -> str:
    output = cas(out, *arguments)
    tell(f"$ cas {' '.join(arguments)}")
    for line in output.splitlines():
        tell(f"  {line}")
    return output


def size(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# The story.


def train_uninterrupted(out: Path) -> Report:
    heading("1. A reference: training without a pause, saved the usual way (torch.save, fsync)")
    report = run("reference", out)
    tell(f"weights after the last step: blake3 {report.end['weights'][:16]}")
    return report


def train_killed(out: Path, expected: Report) -> Report:
    heading("2. The same training commits its full state to a store, and is killed with SIGKILL")
    report = run_and_kill(out, max(expected.losses), median(expected.seconds("saved")))
    tell(f"killed after step {max(report.losses)}, {moment(report)}")
    return report


def moment(killed: Report) -> str:
    """Where the killed process was, as far as it had said."""
    if killed.events[-1]["event"] == "commit":
        return "inside a commit"
    staged, committed = ([e["step"] for e in killed.of(event)] for event in ("staged", "committed"))
    return "a commit perhaps still in the background" if max(staged) > max(committed) else "between two commits"


def train_resumed(out: Path, expected: Report, killed: Report) -> Report:
    heading("3. Started again, it resumes from the newest commit and goes on to the end")
    report = run("train", out)
    first, durable = report.of("start")[0]["step"], killed.of("committed")[-1]["step"]
    require(first >= durable, f"commit of step {durable} was acknowledged, but training resumed at {first}")
    wanted = [step for step in expected.losses if step > first]
    require(list(report.losses) == wanted, f"resumed at step {first}, but did not do the steps {wanted}")
    for step, loss in [*killed.losses.items(), *report.losses.items()]:
        same = loss == expected.losses[step]
        require(same, f"step {step}: loss {loss} differs from the uninterrupted {expected.losses[step]}")
    for what in ("weights", "state", "logits"):
        same = report.end[what] == expected.end[what]
        require(same, f"the {what} after the last step differ from those of the uninterrupted run")
    tell(f"resumed after step {first} of {max(wanted)}; the last commit acknowledged before was {durable}")
    tell(f"bit-identical to the uninterrupted run: {len(wanted)} losses, weights, the whole final state")
    return report


def train_lora(out: Path) -> Report:
    heading("4. LoRA on the frozen model, on a branch of its own: only what changed is stored")
    report = run("lora", out)
    require(report.end["kept"] == report.end["weights"], "the branch lora does not hold the trained weights")
    frozen, new = report.of("start")[0]["frozen"], [event["new"] for event in report.of("committed")]
    require(max(new) < frozen / 4, f"a commit stored {max(new)} bytes anew, on a frozen model of {frozen}")
    tell(f"the frozen model has {megabytes(frozen)}; a commit added at most {megabytes(max(new))}")
    return report


def export(out: Path, trained: Report) -> None:
    heading("5. The weights for inference, and the store's own checks")
    show(out, "checkout", "main", "-o", str(out / "export"))
    report = run("check", out)
    same = all(report.end[what] == trained.end[what] for what in ("weights", "logits"))
    require(same, "the exported weights do not give the logits of the model that was trained")
    tell("read with plain safetensors: logits bit-equal to those of the model in memory")
    show(out, "log", "lora")
    show(out, "fsck", "--data")


@dataclass(frozen=True)
class Line:
    """One line of the final table: the same `states` as files of torch.save and in the store, in bytes."""

    name: str
    states: int
    pile: int
    stored: int

    def __str__(self) -> str:
        times = f"{self.pile / self.stored:.1f}x"
        both = f"{megabytes(self.pile):>16}{megabytes(self.stored):>16}"
        return f"{self.name:26}{self.states:>7}{both}{times:>8}"


def line(name: str, saved: Report, stored: int) -> Line:
    files = saved.of("saved")
    return Line(name, len(files), sum(event["bytes"] for event in files), stored)


def sum_up(out: Path, full: Line, adapters: Line, staged: list[float]) -> None:
    """The table of bytes, then the seconds that a checkpoint of full state takes from training."""
    heading("What it took")
    measured = run("measure", out)
    planes = Line("full, codec='planes'", full.states, full.pile, size(out / "measured" / "planes"))
    shutil.rmtree(out / "measured")
    both = Line("together", full.states + adapters.states, full.pile + adapters.pile, full.stored + adapters.stored)
    tell(f"{'bytes of all files':26}{'states':>7}{'torch.save':>16}{'cas':>16}")
    for row in (full, adapters, both, planes):
        tell(str(row))
    print()
    tell("median seconds for one full state, the first three taking turns in one process")
    tell(f"  {median(measured.seconds('saved')):.3f}  torch.save and fsync")
    tell(f"  {median(measured.seconds('auto')):.3f}  commit")
    tell(f"  {median(measured.seconds('planes')):.3f}  commit with codec='planes'")
    tell(f"  {median(staged):.3f}  commit_async, until training goes on (as it ran above)")


def main_job(out: Path) -> None:
    reference = train_uninterrupted(out)
    killed = train_killed(out, reference)
    resumed = train_resumed(out, reference, killed)
    full = line("full training states", reference, size(out / ".cas"))
    lora = train_lora(out)
    adapters = line("LoRA on the frozen model", lora, size(out / ".cas") - full.stored)
    export(out, resumed)
    for branch, count in (("main", full.states), ("lora", full.states + adapters.states)):
        held = len(cas(out, "log", branch, "--json").splitlines())
        require(held == count, f"the branch {branch} holds {held} commits, not one for each of {count} states")
    sum_up(out, full, adapters, killed.seconds("staged") + resumed.seconds("staged"))


def clear(out: Path) -> None:
    """Remove what an earlier demo left in `out`, and nothing else."""
    for name in (".cas", "measured", "export"):
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description="The main job, end to end.")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the store and export")
    out: Path = parser.parse_args().out
    began = time.monotonic()
    clear(out)
    try:
        main_job(out)
    except DemoFailed as failure:
        print(f"\nThe demo failed: {failure}.", file=sys.stderr)
        return 1
    heading(f"Everything above was checked as it ran, in {time.monotonic() - began:.0f} seconds.")
    tell(f"Look around in the store: cas --store {out / '.cas'} log")
    return 0


if __name__ == "__main__":
    sys.exit(main())
