"""The proofs of `make test` with many more seeds: `python tests/long.py [--minutes N] [--only NAME]`.

Each round runs one proof with the next seed; tests/FAULTS.md keeps what was done, so that a later run goes on from
there. A round that fails ends the run, names its seed and changes nothing.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).parent
TOTALS = HERE / "FAULTS.md"
_ROW = re.compile(
    r"^\| (?P<name>[^|]+?) +\| (?P<done>[\d,]+) of [\d,]+ [^|]*\| (?P<seed>\d+) +\| (?P<last>[^|]*?) +\|$"
)


@dataclass(frozen=True, slots=True)
class Proof:
    """Tests that do `amount` of a `unit` a round when `variables` say so, until `goal` are done.

    The seed grows by `stride` a round.
    """

    name: str
    tests: tuple[str, ...]
    variables: dict[str, str]
    amount: int
    unit: str
    goal: int
    stride: int = 1


PROOFS = (
    Proof("kill and error at every call", ("test_faults_points.py",), {"CAS_TEST_EVERY_CALL": "1"}, 1, "seeds", 20),
    Proof("every bit", ("test_faults_damage.py",), {"CAS_TEST_EVERY_BIT": "1"}, 1, "runs of every bit", 1),
    Proof("power cut", ("test_powercut.py",), {"CAS_TEST_STATES": "50000"}, 50_000, "states", 1_000_000),
    Proof(
        "state machine",
        ("test_machine.py",),
        {"CAS_TEST_EXAMPLES": "50", "CAS_TEST_STEPS": "500"},
        50,
        "examples of 500 steps",
        1_000,
    ),
    Proof("schedules", ("test_schedules.py",), {"CAS_TEST_SCHEDULES": "20000"}, 20_000, "schedules", 1_000_000, 20_000),
    Proof("16 writers", ("test_stress.py",), {"CAS_TEST_SECONDS": "600"}, 600, "seconds", 3600),
    Proof("parsers", ("test_parsers.py",), {"CAS_TEST_SECONDS": "60"}, 60, "seconds a parser", 600),
    Proof("ranks", ("test_joint_faults.py",), {"CAS_TEST_RANK_KILLS": "100"}, 100, "kills", 1_000),
    Proof("requests to S3", ("test_faults_s3.py",), {"CAS_TEST_EVERY_CALL": "1"}, 1, "runs of all requests", 1),
    Proof("protocol", ("-m", "long", "test_protocol.py"), {}, 1, "searches of all long scenarios", 1),
)


@dataclass(frozen=True, slots=True)
class Total:
    """How much of a proof was done, with which seed it goes on, and when it ran last."""

    done: int = 0
    seed: int = 1
    last: str = "never"


def totals(text: str) -> dict[str, Total]:
    rows = filter(None, map(_ROW.match, text.splitlines()))
    return {row["name"]: Total(int(row["done"].replace(",", "")), int(row["seed"]), row["last"]) for row in rows}


def table(held: dict[str, Total]) -> str:
    rows = ["| proof | done | next seed | last run |", "| --- | --- | --- | --- |"]
    for proof in PROOFS:
        total = held.get(proof.name, Total())
        rows.append(f"| {proof.name} | {total.done:,} of {proof.goal:,} {proof.unit} | {total.seed} | {total.last} |")
    return "\n".join(rows)


def write(held: dict[str, Total]) -> None:
    """Put the table in the place of the old one."""
    text = TOTALS.read_text()
    start = text.index("| proof |")
    end = text.find("\n\n", start)
    TOTALS.write_text(text[:start] + table(held) + (text[end:] if end >= 0 else "\n"))


def run(proof: Proof, seed: int) -> bool:
    """One round; its output goes to the terminal."""
    files = [str(HERE / argument) if argument.endswith(".py") else argument for argument in proof.tests]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadgroup", *files]
    variables = {**os.environ, **proof.variables, "CAS_TEST_SEED": str(seed)}
    return subprocess.run(command, env=variables, cwd=HERE.parent, check=False).returncode == 0


def rounds(only: list[str], until: Callable[[], bool]) -> int:
    held = totals(TOTALS.read_text())
    while not until():
        open_ones = [p for p in PROOFS if p.name in only and held.get(p.name, Total()).done < p.goal]
        if not open_ones:
            print("all goals are reached")
            return 0
        proof = min(open_ones, key=lambda p: held.get(p.name, Total()).done / p.goal)
        total = held.get(proof.name, Total())
        print(f"\n{proof.name}, seed {total.seed}", flush=True)
        if not run(proof, total.seed):
            print(f"{proof.name} failed with seed {total.seed}", file=sys.stderr)
            return 1
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        held[proof.name] = replace(total, done=total.done + proof.amount, seed=total.seed + proof.stride, last=today)
        write(held)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no round after so many")
    parser.add_argument("--only", action="append", choices=[proof.name for proof in PROOFS])
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    return rounds(options.only or [proof.name for proof in PROOFS], lambda: time.monotonic() > end)


if __name__ == "__main__":
    sys.exit(main())
