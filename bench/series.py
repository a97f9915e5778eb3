"""More trained state than is worth training for: the states of consecutive steps, each all of the weights and moments.

`python -m bench.series FOLDER BYTES` goes on from the last of the states in `.cache/` and writes a file a step. No
number is made up: every tensor is what AdamW left after a step on text, and since a step moves every weight and every
moment, no block of one step equals one of another.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

from . import states
from .model import Config, Training, Transformer, corpus, deterministic, trainer
from .scale import FULL, QUICK

LR = 3e-4


def write(folder: Path, total_bytes: int, quick: bool) -> None:
    """Files `step*.pt` that together hold `total_bytes`, trained in a process of its own."""
    if not quick:
        states.ensure_cached()
    command = [sys.executable, "-m", "bench.series", str(folder), str(total_bytes), *(["--quick"] if quick else [])]
    root = Path(__file__).parent.parent
    subprocess.run(command, check=True, cwd=root, env={**os.environ, "OMP_WAIT_POLICY": "passive"})


def resumed(config: Config) -> Training:
    """The training of bench/states.py where its last state left it, on text that it has shuffled anew."""
    run = trainer(Transformer(config), states.text(), batch=states.BATCH, lr=LR, warmup=1, seed=states.SEED + 1)
    held = torch.load(states.path_of(states.STEPS[-1]))
    run.model.load_state_dict(held["weights"])
    for name, parameter in run.model.named_parameters():
        moments = {moment: held[moment][name] for moment in ("exp_avg", "exp_avg_sq")}
        run.optimizer.state[parameter] = {"step": torch.tensor(float(states.STEPS[-1])), **moments}
    return run


def started(config: Config) -> Training:
    """A model at the beginning of its training."""
    return trainer(Transformer(config), corpus(1 << 16), batch=2, lr=LR, warmup=1, seed=states.SEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("total_bytes", type=int)
    parser.add_argument("--quick", action="store_true", help="a small model at its beginning")
    options = parser.parse_args()
    deterministic(states.SEED, states.THREADS)
    run = started(QUICK.series) if options.quick else resumed(FULL.series)
    missing, step = options.total_bytes, 0
    while missing > 0:
        run.step()
        step += 1
        state, taken = states.first_bytes(states.snapshot(run), missing)
        torch.save(state, options.folder / f"step{step:06}.pt")
        missing -= taken


if __name__ == "__main__":
    main()
