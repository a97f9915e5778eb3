"""The first figures, against torch.save made durable: `python -m bench.figures` prints them and writes bench/out/.

1 GiB of really trained state (bench/states.py) and 20,000 tensors of 1 KiB. Everything that is timed ends durable:
torch.save is followed by fsync, a commit has returned. Loads come from the page cache, each in a process of its own,
as a resumed job does it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cas
from cas.crew import default_threads

from .states import assert_no_repeats, tensors, trained_states
from .timing import Turns, clock, hash_alone, save, take_turns

OUT = Path(__file__).parent / "out"
TINY_TENSORS, TINY_VALUES = 20_000, 256


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number, what it should be, and the median seconds behind it."""

    what: str
    value: float
    target: str
    met: bool
    seconds: str


def at_least(what: str, value: float, target: float, seconds: str = "") -> Figure:
    return Figure(what, round(value, 3), f"at least {target}", value >= target, seconds)


def at_most(what: str, value: float, target: float, seconds: str = "") -> Figure:
    return Figure(what, round(value, 4), f"at most {target}", value <= target, seconds)


def shown(turns: Turns) -> str:
    ours, theirs = turns.seconds
    return f"{ours:.3f} s against {theirs:.3f} s"


@dataclass(slots=True)
class Bench:
    """Where the files go, and how often each pair takes turns."""

    folder: Path
    rounds: int

    def fresh(self) -> cas.Store:
        shutil.rmtree(self.folder / "store", ignore_errors=True)
        return cas.open(self.folder / "store", create=True)

    def save(self, state: Any) -> float:
        path = self.folder / "saved.pt"
        path.unlink(missing_ok=True)
        return clock(lambda: save(state, path))

    def first_commit(self, state: Any, codec: Any) -> float:
        with self.fresh() as store:
            return clock(lambda: store.commit(state, codec=codec))

    # -- one figure each ----------------------------------------------------------------------------------------

    def first(self, state: Any) -> list[Figure]:
        turns = take_turns(lambda: self.first_commit(state, "auto"), lambda: self.save(state), self.rounds)
        raw = take_turns(lambda: self.first_commit(state, "auto"), lambda: self.first_commit(state, "raw"), self.rounds)
        return [
            at_least("first commit, auto: speed over torch.save + fsync", turns.speedup, 1.5, shown(turns)),
            at_least("first commit, auto: speed over raw", raw.speedup, 0.9, shown(raw)),
        ]

    def planes(self, state: Any) -> list[Figure]:
        turns = take_turns(lambda: self.first_commit(state, "planes"), lambda: self.save(state), self.rounds)
        with cas.open(self.folder / "store") as store:
            stats = store.stats()
        return [
            at_most("first commit, planes: stored bytes over raw", stats.stored / stats.raw, 0.84),
            at_least("first commit, planes: speed over torch.save + fsync", turns.speedup, 0.8, shown(turns)),
        ]

    def unchanged(self, state: Any, held: list[Tensor]) -> list[Figure]:
        threads = default_threads()
        with self.fresh() as store:
            store.commit(state)
            saved = take_turns(lambda: clock(lambda: store.commit(state)), lambda: self.save(state), self.rounds)
            hashed = take_turns(
                lambda: clock(lambda: store.commit(state)),
                lambda: clock(lambda: hash_alone(held, threads)),
                self.rounds,
            )
        name = f"unchanged commit: speed over BLAKE3 alone on {threads} threads"
        return [
            at_least("unchanged commit: speed over torch.save + fsync", saved.speedup, 5, shown(saved)),
            at_least(name, hashed.speedup, 0.7, shown(hashed)),
        ]

    def loads(self, state: Any) -> list[Figure]:
        with self.fresh() as store:
            store.commit(state, codec="raw")
        self.save(state)
        for kind in ("cas", "torch"):
            load_in_child(kind, self.folder)  # warms the page cache
        turns = take_turns(
            lambda: load_in_child("cas", self.folder), lambda: load_in_child("torch", self.folder), self.rounds
        )
        with cas.open(self.folder / "store") as store:
            again = take_turns(
                lambda: clock(store.load), lambda: clock(lambda: torch.load(self.folder / "saved.pt")), self.rounds
            )
        return [
            at_least("verified load in a new process: speed over torch.load", turns.speedup, 1.0, shown(turns)),
            at_least("verified load, repeated in one process: speed over torch.load", again.speedup, 1.0, shown(again)),
        ]

    def one_tensor(self, state: Any) -> list[Figure]:
        tensor = torch.randn(1024, 1024)  # 4 MiB
        with self.fresh() as store:
            store.commit({**state, "one": tensor}, codec="raw")
            store.load()
            turns = take_turns(lambda: clock(lambda: store.load(only="one")), lambda: clock(store.load), self.rounds)
        return [at_most("one 4 MiB tensor over the whole load", 1 / turns.speedup, 0.01, shown(turns))]

    def stall(self, state: Any, held: list[Tensor]) -> list[Figure]:
        buffers = [torch.empty_like(tensor) for tensor in held]

        def copy() -> None:
            for buffer, tensor in zip(buffers, held, strict=True):
                buffer.copy_(tensor)

        def blocked(store: cas.Store) -> float:
            seconds = clock(lambda: pending.append(store.commit_async(state)))
            pending.pop().wait()
            return seconds

        pending: list[cas.Pending] = []
        copy()
        with self.fresh() as store:
            blocked(store)
            turns = take_turns(lambda: blocked(store), lambda: clock(copy), self.rounds)
        return [at_most("caller blocked by commit_async over the same copies", 1 / turns.speedup, 1.2, shown(turns))]

    def tiny(self) -> list[Figure]:
        state = {f"tensor{number}": torch.randn(TINY_VALUES) for number in range(TINY_TENSORS)}
        first = take_turns(lambda: self.first_commit(state, "auto"), lambda: self.save(state), self.rounds)
        with self.fresh() as store:
            store.commit(state)
            same = take_turns(lambda: clock(lambda: store.commit(state)), lambda: self.save(state), self.rounds)
        return [
            at_most("20,000 tensors of 1 KiB, first: time over torch.save + fsync", 1 / first.speedup, 3, shown(first)),
            at_most("20,000 tensors of 1 KiB, unchanged: time over the same", 1 / same.speedup, 1.5, shown(same)),
        ]


def load_in_child(kind: str, folder: Path) -> float:
    """Seconds that a load takes in a new process, opening included, imports not."""
    command = [sys.executable, "-m", "bench.figures", "--child", kind, str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(kind: str, folder: Path) -> None:
    def load() -> None:
        if kind == "torch":
            torch.load(folder / "saved.pt")
        else:
            with cas.open(folder / "store") as store:
                store.load("main")

    print(clock(load))


def machine(folder: Path) -> str:
    """What the figures were measured on."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": ?")
    listed = subprocess.run(["df", "--output=fstype", folder], check=True, capture_output=True, text=True)
    device = listed.stdout.split()[-1]
    return (
        f"{model.split(':')[1].strip()}, {os.cpu_count()} cores, {device}, Linux {platform.release().split('-')[0]}, "
        f"torch {torch.__version__}, {default_threads()} threads for cas, {torch.get_num_threads()} for torch; "
        "files written are durable, files read are in the page cache"
    )


def markdown(figures: list[Figure], where: str) -> str:
    lines = ["| what | measured | should be | medians |", "|---|---|---|---|"]
    for figure in figures:
        mark = "" if figure.met else " (missed)"
        lines.append(f"| {figure.what} | {figure.value:g}{mark} | {figure.target} | {figure.seconds} |")
    return "\n".join([*lines, "", f"{where}; medians of ratios of neighbouring turns.", ""])


def run(folder: Path, rounds: int) -> list[Figure]:
    states = trained_states()
    pieces = assert_no_repeats(states)
    held = [tensor for _, tensor in tensors(states)]
    print(f"{sum(t.nbytes for t in held) / 2**30:.3f} GiB of trained state, {pieces} pieces, none twice\n", flush=True)
    bench = Bench(folder, rounds)
    steps: list[Callable[[], list[Figure]]] = [
        lambda: bench.first(states),
        lambda: bench.planes(states),
        lambda: bench.unchanged(states, held),
        lambda: bench.loads(states),
        lambda: bench.one_tensor(states),
        lambda: bench.stall(states, held),
        bench.tiny,
    ]
    figures = []
    for step in steps:
        for figure in step():
            figures.append(figure)
            mark = "" if figure.met else "  MISSED"
            print(f"{figure.value:8g}  {figure.what} ({figure.target}; {figure.seconds}){mark}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each pair")
    parser.add_argument("--folder", type=Path, help="a directory on the disk to measure; default: beside this file")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], Path(options.child[1]))
        return
    OUT.mkdir(exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.folder or OUT) as name:
        where = machine(Path(name))
        figures = run(Path(name), options.rounds)
    (OUT / "figures.md").write_text(markdown(figures, where))
    found = {"machine": where, "rounds": options.rounds, "figures": [asdict(figure) for figure in figures]}
    (OUT / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    met = sum(figure.met for figure in figures)
    print(f"\n{where}\n{met} of {len(figures)} figures met; {time.monotonic() - began:.0f} s; written to {OUT}")


if __name__ == "__main__":
    main()
