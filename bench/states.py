"""The bench's data: 1 GiB of really trained state, made of one model at several steps of its training.

`python -m bench.states` trains a byte-level transformer of 22 million parameters on the standard
library's sources, with a seed, and keeps weights and both AdamW moments (fp32) of four steps, 80
steps apart, in `.cache/`. This takes a few minutes once; afterwards the files are only read.
AdamW's step counters and everything else that is not a trained tensor is left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor

from .model import Config, Training, Transformer, corpus, deterministic, trainer

State = dict[str, dict[str, Tensor]]  # weights, exp_avg, exp_avg_sq -> parameter -> tensor

CONFIG = Config(width=512, layers=7, heads=8, context=80)
STEPS = (80, 160, 240, 320)
SEED, BATCH, THREADS, TEXT = 2024, 6, 2, 8 << 20
PIECE = 256 << 10  # the smallest cell of the grid: every larger cut is made of whole pieces
CACHE = Path(__file__).parent.parent / ".cache" / "states"


def trained_states(total_bytes: int = 1 << 30) -> dict[str, State]:
    """Whole tensors, in the order of training, until they hold `total_bytes`; keyed by step.

    Trains first if the cache is empty. `ValueError` if there is less trained state than that.
    """
    ensure_cached()
    states, missing = {}, total_bytes
    for step in STEPS:
        if missing > 0:
            state, taken = first_bytes(torch.load(path_of(step), weights_only=True), missing)
            states[f"step{step:06}"] = state
            missing -= taken
    if missing > 0:
        raise ValueError(f"the trained states hold {total_bytes - missing} bytes, not {total_bytes}")
    return states


def first_bytes(state: State, limit: int) -> tuple[State, int]:
    """The first tensors of a state that together reach `limit` bytes, and how many bytes they hold."""
    result: State = {}
    taken = 0
    for part, tensors in state.items():
        for name, tensor in tensors.items():
            if taken < limit:
                result.setdefault(part, {})[name] = tensor
                taken += tensor.nbytes
    return result, taken


def tensors(states: dict[str, State]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its path."""
    for step, state in states.items():
        for part, named in state.items():
            for name, tensor in named.items():
                yield f"{step}/{part}/{name}", tensor


def assert_no_repeats(states: dict[str, State]) -> int:
    """No piece of any tensor, cut every 256 KiB, equals another; returns how many pieces there are.

    Larger cells are unions of these pieces, so no block of any cutting repeats either.
    """
    seen: dict[bytes, str] = {}
    for path, tensor in tensors(states):
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
        for start in range(0, len(raw), PIECE):
            place = f"{path} at byte {start}"
            name = blake3(raw[start : start + PIECE]).digest()
            assert name not in seen, f"{place} repeats {seen[name]}"
            seen[name] = place
    return len(seen)


def path_of(step: int) -> Path:
    """Where the state of a step is kept."""
    return CACHE / f"step{step:06}.pt"


def ensure_cached() -> None:
    """Train if the states of any step are missing."""
    if not all(path_of(step).exists() for step in STEPS):
        _train_in_child()


def _train_in_child() -> None:
    """Train in a process of its own: its memory goes away with it, and its threads sleep when idle.

    (Spinning OpenMP threads make a step several times slower as soon as another process runs.)
    """
    print("training the bench's model, once; this takes a few minutes", file=sys.stderr)
    command = [sys.executable, "-m", "bench.states"]
    root = Path(__file__).parent.parent
    subprocess.run(command, check=True, cwd=root, env={**os.environ, "OMP_WAIT_POLICY": "passive"})


def text() -> Tensor:
    """The sources with their bytes renamed one to one, so that common ones lie all over the vocabulary.

    Else the moments of the embeddings of bytes over 127, which hardly occur, would be whole pieces of zeros.
    """
    text: Tensor = corpus(TEXT) * 101  # modulo 256
    return text


def snapshot(run: Training) -> State:
    """Weights and moments of every parameter, as training leaves them."""
    named = dict(run.model.named_parameters())
    state: State = {"weights": {name: p.detach() for name, p in named.items()}}
    for moment in ("exp_avg", "exp_avg_sq"):
        state[moment] = {name: run.optimizer.state[p][moment] for name, p in named.items()}
    return state


def _save(state: State, path: Path) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(state, unfinished)
    unfinished.replace(path)


def main() -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    deterministic(SEED, THREADS)
    run = trainer(Transformer(CONFIG), text(), batch=BATCH, lr=3e-4, warmup=20, seed=SEED)
    began, recent = time.monotonic(), 0.0
    for step in range(1, max(STEPS) + 1):
        recent += run.step() / 20
        if step % 20 == 0:
            passed = time.monotonic() - began
            print(f"step {step:3}  mean loss {recent:.3f}  {passed:.0f} s", file=sys.stderr, flush=True)
            recent = 0.0
        if step in STEPS:
            _save(snapshot(run), path_of(step))


if __name__ == "__main__":
    main()
