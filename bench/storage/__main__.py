"""`make bench-storage`: what checkpoints take on disk, by cas and by its peers; results go to bench/out/storage/.

What is stored was trained (bench/storage/training.py), once, and is kept in `.cache/`. Each workload is written to a
folder that is removed after it. Results are written after each workload; with `--only` or `--peers` what a run before
found of the others is kept.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.machine import machine

from . import page, plots, report
from .codecs import codecs
from .loads import loads
from .measure import LIMIT, measure
from .peers import PEERS, versions
from .results import Facts, Results, read
from .training import FULL, QUICK, ROOT, Sizes, ensure_cached
from .workloads import WORKLOADS

OUT = Path(__file__).parents[1] / "out" / "storage"
DOCS = ROOT / "docs"
CODECS, LOADS = "codecs", "loads"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.storage", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=[CODECS, LOADS, *WORKLOADS], help="this part; several times for more"
    )
    parser.add_argument("--peers", action="append", choices=PEERS, help="this peer; several times for more")
    parser.add_argument(
        "--limit", type=float, default=LIMIT, help=f"seconds a peer may save for, a workload ({LIMIT:.0f})"
    )
    parser.add_argument("--quick", action="store_true", help="very small models, to see that everything runs")
    parser.add_argument("--folder", type=Path, help="a directory on the disk to measure; default: where results go")
    parser.add_argument("--publish", action="store_true", help="write docs/storage.md and its pictures as well")
    parser.add_argument("--out", type=Path, default=OUT, help="where results go (bench/out/storage)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = (options.folder or options.out).resolve()
    sizes = QUICK if options.quick else FULL
    ensure_cached(sizes)
    results = read(options.out, machine(folder) | versions(), options.limit)
    for part in options.only or [CODECS, LOADS, *WORKLOADS]:
        began = time.monotonic()
        if part == CODECS:
            results.codecs = list(codecs(sizes))
        elif part == LOADS:
            results.loads = list(loads(sizes, folder))
        else:
            with tempfile.TemporaryDirectory(dir=folder, prefix="storage-") as inside:
                for _ in _measure(results, part, options.peers or list(PEERS), sizes, Path(inside)):
                    results.write(options.out)  # a library may take the process with it
        results.seconds[part] = time.monotonic() - began
        report.write(results, options.out)
        plots.draw(results, options.out)
        if options.publish:
            page.write(results, DOCS)
        print(f"{part}: {results.seconds[part]:.0f} s", flush=True)


def _measure(results: Results, name: str, peers: list[str], sizes: Sizes, folder: Path) -> Iterator[None]:
    """One workload by the peers that were asked for; after each its outcome is among the results."""
    workload = WORKLOADS[name](sizes)
    (raw, distinct), count = workload.raw(), len(workload.checkpoints)
    kept = [sorted(workload.kept(saved + 1)) for saved in range(count)]
    facts = Facts(workload.about, [one.label for one in workload.checkpoints], raw, distinct, kept)
    results.workloads[name] = facts
    print(f"\n{name}: {workload.about}; {count} checkpoints, {sum(raw) / 2**20:.0f} MiB", flush=True)
    workload.write(folder / "files")
    for number, peer in enumerate(peers):
        place = folder / str(number)
        outcome = measure(workload, PEERS[peer], folder / "files", place, results.limit)
        results.outcomes.setdefault(name, {})[peer] = outcome
        print(report.line(outcome, facts), flush=True)
        shutil.rmtree(place, ignore_errors=True)
        yield


if __name__ == "__main__":
    main()
