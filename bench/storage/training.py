"""What the storage bench stores: states of models that were trained once, with seeds, and kept in `.cache/storage/`.

`python -m bench.storage.training` trains a byte-level transformer of 3.8 million parameters on the standard library's
sources until its loss flattens, and then goes on from it in the ways that the workloads stand for. About ten minutes
on two cores. Each part is a folder of numbered files, written whole or not at all; a part that is there is not made
again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LinearLR

from bench.model import Config, Loader, Training, Transformer, add_lora, corpus, deterministic, trainer
from bench.states import snapshot

from .variants import Mixture, Words, numbered

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "storage"
SEED, THREADS = 2024, 2
Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the models are and how long they are trained; counts of checkpoints are beside the first."""

    name: str
    config: Config
    batch: int
    steady: int
    """Steps at the full learning rate, and then as it falls to nothing."""
    falling: int
    every: int
    tuned: int
    full: int
    """The first so many checkpoints of the fine-tune keep the moments."""
    adapters: int
    sweep: int
    sweep_steps: int
    sparse: int
    experts: int
    hidden: int
    mixture_steps: int
    mixture: int
    words: int
    appended: int
    words_steps: int
    growths: int

    @property
    def folder(self) -> Path:
        return CACHE / self.name


FULL = Sizes(
    name="full",
    config=Config(width=384, layers=2, heads=6, context=96, dropout=0.0),
    batch=12,
    steady=1000,
    falling=400,
    every=20,
    tuned=12,
    full=9,
    adapters=50,
    sweep=8,
    sweep_steps=60,
    sparse=8,
    experts=12,
    hidden=512,
    mixture_steps=240,
    mixture=8,
    words=12_000,
    appended=500,
    words_steps=200,
    growths=8,
)
QUICK = Sizes(
    name="quick",
    config=Config(width=64, layers=1, heads=2, context=32, dropout=0.0),
    batch=4,
    steady=4,
    falling=2,
    every=1,
    tuned=5,
    full=3,
    adapters=4,
    sweep=2,
    sweep_steps=2,
    sparse=2,
    experts=3,
    hidden=64,
    mixture_steps=6,
    mixture=3,
    words=400,
    appended=50,
    words_steps=3,
    growths=2,
)
LR, TUNE_LR, LORA_LR, SWEEP_LRS = 1e-3, 5e-5, 1e-3, (1e-5, 2e-5, 3e-5, 5e-5)
SPARSE_LRS = {"sparse 1 %": 1.2e-6, "sparse 50 %": 2.4e-4}
"""Rates at which a step changes about 1 % and 50 % of the weights once they are cast to bf16."""
OTHER = 12 << 20
"""Where the text of the fine-tunes begins: nothing of it was seen before."""


def text(skip: int, size: int) -> Tensor:
    """Sources with their bytes renamed one to one, as in bench/states.py."""
    renamed: Tensor = corpus(size, skip) * 101  # modulo 256
    return renamed


def weights(model: torch.nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def halved(held: Weights) -> Weights:
    return {name: tensor.bfloat16() for name, tensor in held.items()}


def base(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The model, and its mean loss over every fiftieth part of the training."""
    run = trainer(Transformer(sizes.config), text(0, 8 << 20), batch=sizes.batch, lr=LR, warmup=50, seed=SEED)
    steps, losses = sizes.steady + sizes.falling, []
    for step in range(1, steps + 1):
        if step == sizes.steady:
            run.scheduler = LinearLR(run.optimizer, 1.0, 0.0, total_iters=sizes.falling)
        losses.append(run.step())
        if step % max(1, steps // 50) == 0:
            print(f"base, step {step}: loss {sum(losses[-50:]) / len(losses[-50:]):.3f}", file=sys.stderr, flush=True)
    yield {"weights": weights(run.model), "losses": losses}


def from_base(sizes: Sizes, lr: float, seed: int) -> Training:
    """The trained model at the start of another training, on other text."""
    model = Transformer(sizes.config)
    model.load_state_dict(load(sizes, "base", 0)["weights"])
    return trainer(model, text(OTHER, 3 << 20), batch=sizes.batch, lr=lr, warmup=10, seed=seed)


def tune(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The fine-tune, with the loss on text that it does not see."""
    run = from_base(sizes, TUNE_LR, SEED)
    held_out = Loader(text(OTHER + (3 << 20), 1 << 18), sizes.batch, sizes.config.context, SEED).next()
    for number in range(sizes.tuned):
        for _ in range(sizes.every):
            run.step()
        state = snapshot(run) if number < sizes.full else {"weights": weights(run.model)}
        yield {**state, "step": (number + 1) * sizes.every, "loss": loss_on(run.model, held_out)}


def loss_on(model: Transformer, rows: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return F.cross_entropy(model(rows[0]).flatten(0, 1), rows[1].flatten()).item()


def lora(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The adapters alone after every second step; the first file has the frozen model as well."""
    run = from_base(sizes, LORA_LR, SEED)
    add_lora(run.model)
    lean = trainer(run.model, run.loader.text, batch=sizes.batch, lr=LORA_LR, warmup=10, seed=SEED)
    yield {"frozen": {name: p.detach().clone() for name, p in run.model.named_parameters() if not p.requires_grad}}
    for _ in range(sizes.adapters):
        for _ in range(2):
            lean.step()
        yield {"adapters": {name: p.detach().clone() for name, p in run.model.named_parameters() if p.requires_grad}}


def sweep(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The ends of several fine-tunes: learning rates and orders of the text differ."""
    for number in range(sizes.sweep):
        run = from_base(sizes, SWEEP_LRS[number % len(SWEEP_LRS)], SEED + number)
        for _ in range(sizes.sweep_steps):
            run.step()
        yield {"weights": halved(weights(run.model))}


def sparse(name: str) -> Callable[[Sizes], Iterator[dict[str, Any]]]:
    """fp32 weights trained at a rate so low that a step leaves many of them as they are once they are cast."""

    def states(sizes: Sizes) -> Iterator[dict[str, Any]]:
        run = from_base(sizes, SPARSE_LRS[name], SEED)
        for _ in range(10):
            run.step()
        for _ in range(sizes.sparse + 1):
            run.step()
            yield {"weights": halved(weights(run.model))}

    return states


def mixture(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """First all domains in turn, then two steps of a few domains between checkpoints."""
    config = Config(width=sizes.hidden // 2, layers=sizes.config.layers, heads=4, context=64, dropout=0.0)
    model = Mixture(config, sizes.experts, sizes.hidden)
    run = trainer(model, text(0, 1 << 20), batch=sizes.batch, lr=LR, warmup=20, seed=SEED)
    loaders = [Loader(text(n << 19, 1 << 19), sizes.batch, config.context, SEED + n) for n in range(sizes.experts)]

    def steps(domains: list[int]) -> None:
        for domain in domains:
            model.choose(domain)
            run.loader = loaders[domain]
            run.step()

    steps([step % sizes.experts for step in range(sizes.mixture_steps)])
    for number in range(sizes.mixture + 1):
        steps([(5 * number + n) % sizes.experts for n in (0, 1)])
        yield {"weights": weights(model)}


def words(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """A model over words, then its tables with ever more rows."""
    model = Words(Config(width=sizes.hidden // 4, heads=2, context=64, dropout=0.0), sizes.words)
    numbers = numbered(corpus(4 << 20))
    model.train_on(numbers, sizes.words, sizes.words_steps, 8, LR)
    yield {"weights": model.state()}
    for number in range(1, sizes.growths + 1):
        model.append(sizes.appended)
        model.train_on(numbers, sizes.words + number * sizes.appended, sizes.words_steps // 20, 8, LR)
        yield {"weights": model.state()}


PARTS: dict[str, Callable[[Sizes], Iterator[dict[str, Any]]]] = {
    "base": base,
    "tune": tune,
    "lora": lora,
    "sweep": sweep,
    **{name: sparse(name) for name in SPARSE_LRS},
    "mixture": mixture,
    "words": words,
}


def path_of(sizes: Sizes, part: str, number: int) -> Path:
    return sizes.folder / part.replace(" ", "-").replace("%", "percent") / f"{number:03}.pt"


def load(sizes: Sizes, part: str, number: int) -> dict[str, Any]:
    """One state as it was trained."""
    found: dict[str, Any] = torch.load(path_of(sizes, part, number), weights_only=True)
    return found


def count(sizes: Sizes, part: str) -> int:
    return len(list(path_of(sizes, part, 0).parent.glob("*.pt")))


def ensure_cached(sizes: Sizes) -> None:
    """Train what is missing, in a process of its own: its memory goes away with it (see bench/states.py)."""
    if all(count(sizes, part) for part in PARTS):
        return
    print("training what the storage bench stores, once; about ten minutes", file=sys.stderr)
    command = [sys.executable, "-m", "bench.storage.training", sizes.name]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_WAIT_POLICY": "passive"})


def make(sizes: Sizes, part: str) -> None:
    """Train one part from its own seed."""
    began, folder = time.monotonic(), path_of(sizes, part, 0).parent
    unfinished = folder.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    deterministic(SEED, THREADS)
    for number, state in enumerate(PARTS[part](sizes)):
        torch.save(state, unfinished / f"{number:03}.pt")
    unfinished.replace(folder)
    took = round(time.monotonic() - began)
    print(json.dumps({"part": part, "files": count(sizes, part), "seconds": took}), file=sys.stderr, flush=True)


def main() -> None:
    sizes = {one.name: one for one in (FULL, QUICK)}[sys.argv[1] if len(sys.argv) > 1 else "full"]
    sizes.folder.mkdir(parents=True, exist_ok=True)
    with (sizes.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be training them: then there is nothing left to do
        for part in PARTS:
            if not count(sizes, part):
                make(sizes, part)


if __name__ == "__main__":
    main()
