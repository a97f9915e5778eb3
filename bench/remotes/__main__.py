"""`python -m bench.remotes`: pushes to S3 and loads from it, beside ordinary clients that copy the same packs.

The server is the one at CAS_TEST_S3 (with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), which should be near: on
loopback it shares the processors with what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import cas
from bench.machine import machine, sentence
from bench.remotes.clients import Client, Server, clients
from bench.remotes.timed import timed
from bench.timing import Timing, clock, take_turns

OUT = Path(__file__).parent.parent / "out"
OURS = "cas"
TENSOR = 16 << 20
MAX_MEMORY = 512 << 20
MIN_SPEED = 0.8


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number and what it should be."""

    what: str
    value: float
    target: str
    met: bool


@dataclass(slots=True)
class Run:
    """A store of `nbytes` of random fp32 weights, and where things go. `peaks` are bytes of memory by operation."""

    server: Server
    folder: Path
    nbytes: int
    rounds: int
    found: dict[str, Client]
    peaks: dict[str, int] = field(default_factory=dict)
    turn: int = 0

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def fresh(self) -> str:
        self.turn += 1
        return f"{self.turn:03}"

    def ours(self, operation: str, prefix: str, store: Path | None = None) -> tuple[float, int]:
        """Seconds of an operation on the store at a prefix, and bytes sent."""
        cache = Path(tempfile.mkdtemp(dir=self.folder, prefix="cache-"))
        took = timed(
            operation,
            url=f"s3://{self.server.bucket}/{prefix}",
            options=self.server.options,
            store=str(store or self.store),
            cache=str(cache),
        )
        shutil.rmtree(cache)
        self.peaks[operation] = max(self.peaks.get(operation, 0), took.memory)
        return took.seconds, took.sent


def make(run: Run) -> None:
    """Weights of a backbone, whose bytes do not compress, and a LoRA commit over them."""
    random = np.random.default_rng(0)
    state = {
        f"w{n}": random.standard_normal((TENSOR // 4096, 1024), dtype=np.float32) for n in range(run.nbytes // TENSOR)
    }
    with cas.init(run.store) as store:
        store.commit(state, codec="raw", message="base")


def push_and_load(run: Run) -> Iterator[Timing]:
    """First pushes, then loads, in turns with the clients."""
    packs = run.store / "packs"

    def push() -> float:
        prefix = run.fresh()
        run_url = f"s3://{run.server.bucket}/{prefix}"
        cas.init(run_url, storage_options=run.server.options, cache=run.folder / "made").close()
        return run.ours("push", prefix)[0]

    puts: dict[str, Callable[[], float]] = {OURS: push}
    for name, client in run.found.items():
        puts[name] = lambda client=client: clock(  # type: ignore[misc]
            lambda: client.put(run.server, packs, f"{run.fresh()}/packs")
        )
    yield Timing("S3", "first push", _emptied(run, puts))

    push()
    pushed, copied = f"{run.turn:03}", Path("/dev/shm") / f"cas-bench-{uuid.uuid4().hex}"

    def get(client: Client) -> float:
        took = clock(lambda: client.get(run.server, copied, f"{pushed}/packs"))
        shutil.rmtree(copied)
        return took

    gets: dict[str, Callable[[], float]] = {OURS: lambda: run.ours("load", pushed)[0]}
    for name, client in run.found.items():
        gets[name] = lambda client=client: get(client)  # type: ignore[misc]
    yield Timing("S3", "verified load", take_turns(gets, run.rounds))


def _emptied(run: Run, ways: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """The ways in turns, the bucket emptied after each."""

    def emptied(way: Callable[[], float]) -> float:
        took = way()
        run.server.empty()
        return took

    return take_turns({name: lambda way=way: emptied(way) for name, way in ways.items()}, run.rounds)  # type: ignore[misc]


def lora(run: Run) -> Iterator[Figure]:
    """A commit of small adapters over a backbone that is at the other side."""
    prefix = run.fresh()
    url = f"s3://{run.server.bucket}/{prefix}"
    cas.init(url, storage_options=run.server.options, cache=run.folder / "made").close()
    run.ours("push", prefix)
    before = run.server.stored(f"{prefix}/")
    random = np.random.default_rng(1)
    with cas.open(run.store) as store:
        state = store.load("main")
        state |= {f"lora{n}": random.standard_normal((64, 1024), dtype=np.float32) for n in range(16)}
        made = store.commit(state, codec="raw", message="adapters")
        assert made.stats is not None
    run.ours("push", prefix)
    grown, new = run.server.stored(f"{prefix}/") - before, made.stats.stored
    allowed = new * 1.01 + (64 << 10)
    yield Figure("bytes on S3 of a LoRA commit over what is allowed", grown / allowed, "<= 1", grown <= allowed)
    yield Figure("the same over the full checkpoint", grown / made.stats.raw, "< 0.03", grown < 0.03 * made.stats.raw)
    again = [run.ours("push", prefix) for _ in range(run.rounds)]
    seconds = sorted(took for took, _ in again)[len(again) // 2]
    yield Figure("push of a synced branch, seconds without imports", seconds, "<= 1", seconds <= 1)


def others(run: Run) -> None:
    """Clone and collection, for their memory."""
    prefix = run.fresh()
    url = f"s3://{run.server.bucket}/{prefix}"
    with cas.init(url, storage_options=run.server.options, cache=run.folder / "made") as there:
        with cas.open(run.store) as store:
            store.push(url, "main", storage_options=run.server.options)
        half = {name: tensor for n, (name, tensor) in enumerate(there.load("main").items()) if n % 3 == 0}
        there.commit(half, branch="half", codec="raw")
        there.delete_branch("main")
    run.ours("gc", prefix)
    run.ours("pull", prefix, run.folder / "clone")


def figures(run: Run, timings: list[Timing]) -> Iterator[Figure]:
    for timing in timings:
        theirs = [name for name in timing.seconds if name != OURS]
        if theirs:
            best = min(theirs, key=timing.median)
            speed = timing.speedup(OURS, best)
            yield Figure(f"{timing.operation}: speed over {best}", speed, f">= {MIN_SPEED}", speed >= MIN_SPEED)
    for operation, peak in run.peaks.items():
        yield Figure(f"memory of {operation}, MiB", peak / 2**20, "<= 512", peak <= MAX_MEMORY)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.remotes", description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=1024, help="size of the state (1024)")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each client takes (5)")
    parser.add_argument("--out", type=Path, default=OUT, help="where results go (bench/out)")
    options = parser.parse_args()
    server = Server(
        os.environ["CAS_TEST_S3"],
        os.environ["AWS_ACCESS_KEY_ID"],
        os.environ["AWS_SECRET_ACCESS_KEY"],
        f"cas-bench-{uuid.uuid4().hex[:12]}",
    )
    server.client().create_bucket(Bucket=server.bucket)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(server, Path(folder), options.mebibytes << 20, options.rounds, clients())
        make(run)
        timings = []
        for timing in push_and_load(run):
            timings.append(timing)
            said = ", ".join(f"{name} {timing.median(name):.2f} s" for name in timing.seconds)
            print(f"{timing.operation}: {said}", flush=True)
        found = list(lora(run))
        others(run)
        found = [*figures(run, timings), *found]
        where = machine(Path(folder))
    server.empty()
    server.client().delete_bucket(Bucket=server.bucket)
    for figure in found:
        print(f"{figure.value:8.4g}  {figure.what} ({figure.target}){'' if figure.met else '  MISSED'}")
    print(sentence(where))
    options.out.mkdir(exist_ok=True)
    held = {
        "machine": where,
        "timings": {timing.operation: timing.seconds for timing in timings},
        "figures": [[figure.what, figure.value, figure.target, figure.met] for figure in found],
    }
    (options.out / "remotes.json").write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()
