"""`python -m bench`: everything that is measured, in parts; what it finds goes to the terminal and to bench/out/.

Files are written to a directory that is removed at the end, by default beside this file: that disk is measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import plots
from .collecting import collecting
from .commands import commands
from .contenders import Contender, contender
from .growth import growth
from .layouts import layouts
from .machine import machine, sentence
from .operations import OPERATIONS, Trial, first
from .ranks import many, ranks
from .report import as_json, as_markdown
from .results import Amounts, Results
from .scale import FULL, QUICK, Scale
from .streamed import lives, peaks
from .targets import Figure, figures
from .trees import tensor_bytes
from .workloads import WORKLOADS, Workload

OUT = Path(__file__).parent / "out"
LARGE_ROUNDS = 1
"""What is large takes minutes a turn and has little noise."""


@dataclass(slots=True)
class Run:
    """How much is measured, how often, and an empty folder for the part that is measured."""

    scale: Scale
    rounds: int
    folder: Path
    results: Results

    def workload(self, name: str) -> tuple[Workload, dict[str, Contender], Path]:
        """A workload with its files made, its contenders, and the folder that these use."""
        source, saved = self.folder / "source", self.folder / "saved"
        source.mkdir()
        made = WORKLOADS[name](self.scale, source)
        self.results.about[name] = made.about
        print(f"\n{name}: {made.about}", flush=True)
        return made, {one: contender(one, saved) for one in made.contenders}, saved


def in_memory(name: str) -> Callable[[Run], None]:
    """The part that does everything with a workload that is held in memory."""

    def part(run: Run) -> None:
        made, contenders, saved = run.workload(name)
        trial = Trial(made, made.read(), contenders, saved, run.rounds)
        for operation in OPERATIONS:
            run.results.add(operation(trial))
            if operation is first:
                run.results.add(stored(trial))
        trial.state = {}
        close(contenders)
        memory(run, made, contenders, saved)

    return part


def stored(trial: Trial) -> Amounts:
    """Bytes on disk after the first save, and of the tensors themselves."""
    held = {name: float(disk(one.folder)) for name, one in trial.contenders.items()}
    return Amounts(trial.workload.name, "stored", held | {"state": float(tensor_bytes(trial.state))})


def disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def large(run: Run) -> None:
    """The part that streams what is larger than one would hold twice."""
    made, contenders, saved = run.workload("large")
    for timing in lives(made, contenders, saved, min(run.rounds, LARGE_ROUNDS)):
        run.results.add(timing)
    memory(run, made, contenders, saved)
    run.results.notes.append("`into=` and the stall need the state twice in memory and are left out of *large*.")


def memory(run: Run, made: Workload, contenders: dict[str, Contender], saved: Path) -> None:
    for action, held in peaks(made, contenders, saved).items():
        run.results.add(Amounts(made.name, f"memory beside the state, {action}", held))


def close(contenders: dict[str, Contender]) -> None:
    for one in contenders.values():
        one.close()


def growing(run: Run) -> None:
    """The part that shows what more blocks cost."""
    print("\ngrowth: stores of " + ", ".join(f"{blocks:,}" for blocks in run.scale.blocks) + " blocks", flush=True)
    for timing in growth(run.folder, run.scale.blocks, run.scale.commits, run.rounds):
        run.results.add(timing)


def command_line(run: Run) -> None:
    """The part that runs the command as people do."""
    source = run.folder / "source"
    source.mkdir()
    state = WORKLOADS["trained"](run.scale, source).read()
    print("\ncommands: whole processes, Python's start included", flush=True)
    for found in commands(state, run.scale.log_commits, run.folder, run.rounds):
        run.results.add(found)


def collection(run: Run) -> None:
    """The part that collects garbage."""
    scale = run.scale
    print("\ncollecting: gc of a store half of which is garbage, and of one with nothing to collect", flush=True)
    for found in collecting(run.folder, scale.garbage_bytes, scale.marked_commits, scale.marked_blocks):
        run.results.add(found)


def second_layouts(run: Run) -> None:
    """The part that changes layouts: the same at every scale."""
    print("\nlayouts: blocks that a second layout of the same weights adds, and what its ranks read", flush=True)
    for found in layouts():
        run.results.add(found)


def many_ranks(run: Run) -> None:
    """The part of several processes that commit and load together."""
    source = run.folder / "source"
    source.mkdir()
    made = WORKLOADS["trained"](run.scale, source)
    print("\nranks: processes that commit and load together, and a training step beside a commit", flush=True)
    for found in ranks(made, many(run.scale.trained_bytes), run.folder / "saved", run.rounds):
        run.results.add(found)


PARTS: dict[str, Callable[[Run], None]] = {
    "trained": in_memory("trained"),
    "commands": command_line,
    "tiny": in_memory("tiny"),
    "growth": growing,
    "collecting": collection,
    "large": large,
    "layouts": second_layouts,
    "ranks": many_ranks,
}
"""A new part is a function here, which adds what it finds to the results, and its figures in targets.py."""


def measure(scale: Scale, rounds: int, only: list[str], folder: Path) -> Iterator[Results]:
    """The results so far, after each part."""
    results = Results()
    for name in only:
        with tempfile.TemporaryDirectory(dir=folder, prefix=f"{name}-") as inside:
            PARTS[name](Run(scale, rounds, Path(inside), results))
        yield results


def write(out: Path, where: dict[str, str], rounds: int, results: Results, found: list[Figure]) -> None:
    (out / "bench.json").write_text(json.dumps(as_json(where, rounds, results, found), indent=1) + "\n")
    (out / "bench.md").write_text(as_markdown(where, results, found))
    plots.draw(results, out)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be given several times")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each contender takes (5)")
    parser.add_argument("--quick", action="store_true", help="very small sizes, to see that everything runs")
    parser.add_argument("--folder", type=Path, help="a directory on the disk to measure; default: beside this file")
    parser.add_argument("--out", type=Path, default=OUT, help="where results go (bench/out)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder, began = (options.folder or options.out).resolve(), time.monotonic()
    where = machine(folder)
    scale = QUICK if options.quick else FULL
    found: list[Figure] = []
    for results in measure(scale, options.rounds, options.only or list(PARTS), folder):
        found = [] if options.quick else figures(results)
        write(options.out, where, options.rounds, results, found)
    print()
    for figure in found:
        print(f"{figure.value:8.4g}  {figure.what} ({figure.target}){'' if figure.met else '  MISSED'}")
    print(f"\n{sentence(where)}\n{sum(f.met for f in found)} of {len(found)} figures met; ", end="")
    print(f"{time.monotonic() - began:.0f} s; written to {options.out}")


if __name__ == "__main__":
    main()
