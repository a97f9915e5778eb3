"""The demo's training processes; `train` is the loop that a user would write.

Each process prints what happens as one JSON object a line, which bench/demo.py reads and compares.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from blake3 import blake3
from safetensors.torch import load_file
from torch import Tensor

import cas
from cas.torch import PerRank, TrainState

from .model import Config, Training, Transformer, add_lora, corpus, deterministic, trainer

STEPS, EVERY = 80, 5
LORA_STEPS, LORA_EVERY = 24, 4
TEXT = 1 << 20
SEED = 2024


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def digest(state: object) -> str:
    """BLAKE3 over every tensor's bytes and every plain value, with their paths."""
    seen = blake3()
    for path, value in _leaves(state, ""):
        if isinstance(value, Tensor | np.ndarray):
            array = value.detach().contiguous().numpy() if isinstance(value, Tensor) else value
            seen.update(f"{path} {array.dtype} {array.shape}".encode())
            seen.update(array.tobytes())
        else:
            seen.update(f"{path} {value!r}".encode())
    return seen.hexdigest()


def _leaves(node: object, path: str) -> Iterator[tuple[str, object]]:
    node = node.value if isinstance(node, PerRank) else node
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}/{key}")
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _leaves(value, f"{path}/{i}")
    else:
        yield path, node


def logits(model: Transformer) -> Tensor:
    """What the model answers on a fixed piece of text."""
    model.eval()
    with torch.no_grad():
        result: Tensor = model(corpus(8 * 64, skip=TEXT).view(8, 64).long())
    return result


def pretraining() -> tuple[Training, TrainState]:
    """The same start, to the last bit, in every process. One thread: the other core is the store's."""
    deterministic(SEED, threads=1)
    run = trainer(Transformer(Config()), corpus(TEXT), batch=8, lr=1e-3, warmup=10, seed=SEED)
    return run, train_state(run)


def train_state(run: Training) -> TrainState:
    return TrainState(model=run.model, optimizer=run.optimizer, scheduler=run.scheduler, loader=run.loader)


def torch_save(state: object, step: int, path: Path) -> None:
    """The usual way, durable: one file for the full state. Measured, then deleted."""
    start = time.perf_counter()
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    say(event="saved", step=step, seconds=time.perf_counter() - start, bytes=path.stat().st_size)
    path.unlink()


def reference(out: Path) -> None:
    """Train to the end without a pause, saving with torch.save."""
    run, ts = pretraining()
    say(event="start", step=0)
    for step in range(1, STEPS + 1):
        say(event="step", step=step, loss=run.step().hex())
        if step % EVERY == 0:
            torch_save(ts.capture(step), step, out / "saved.pt")
    finish(run, ts)


def train(out: Path) -> None:
    """The same training with a store. Started again after a crash it goes on where it stood."""
    run, ts = pretraining()
    with cas.open(out / ".cas", create=True) as store:
        done = ts.restore(store.load("main", default=None))
        say(event="start", step=done)
        pending = None
        for step in range(done + 1, STEPS + 1):
            loss = run.step()
            say(event="step", step=step, loss=loss.hex())
            if step % EVERY == 0:
                pending = commit(store, ts, step, loss, pending)
        settle(pending)
    finish(run, ts)


def commit(store: cas.Store, ts: TrainState, step: int, loss: float, pending: cas.Pending | None) -> cas.Pending | None:
    """Commit the full state: every other time in the background, while training goes on."""
    settle(pending)
    say(event="commit", step=step)
    start = time.perf_counter()
    if step // EVERY % 2 == 0:
        pending = store.commit_async(ts.capture(step), branch="main", step=step, metrics={"loss": loss})
        say(event="staged", step=step, seconds=time.perf_counter() - start)
        return pending
    done = store.commit(ts.capture(step), branch="main", step=step, metrics={"loss": loss})
    committed(done, time.perf_counter() - start)
    return None


def settle(pending: cas.Pending | None) -> None:
    """Wait until the background commit, if there is one, is durable."""
    if pending is not None:
        committed(pending.wait(), seconds=None)


def committed(done: cas.Commit, seconds: float | None) -> None:
    """The commit is acknowledged: it must survive whatever comes."""
    say(event="committed", step=done.step, seconds=seconds, new=done.new, text=str(done))


def finish(run: Training, ts: TrainState) -> None:
    """Say in three hashes where training ended."""
    state = digest(ts.capture(STEPS))
    weights = digest(run.model.state_dict())
    say(event="end", state=state, weights=weights, logits=digest(logits(run.model)))


def lora(out: Path) -> None:
    """Adapters on the frozen model, on a branch of their own; torch.save of each state beside it."""
    deterministic(SEED + 1, threads=1)
    with cas.open(out / ".cas") as store:
        store.branch("lora", "main")
        model = Transformer(Config())
        frozen = store.load("lora")["model"]
        model.load_state_dict(frozen)
        add_lora(model, rank=8)
        run = trainer(model, corpus(TEXT, skip=2 * TEXT), batch=8, lr=5e-3, warmup=5, seed=SEED)
        ts = train_state(run)
        say(event="start", step=0, frozen=sum(tensor.nbytes for tensor in frozen.values()))
        for step in range(1, LORA_STEPS + 1):
            loss = run.step()
            say(event="step", step=step, loss=loss.hex())
            if step % LORA_EVERY == 0:
                start = time.perf_counter()
                done = store.commit(ts.capture(step), branch="lora", step=step, metrics={"loss": loss})
                committed(done, time.perf_counter() - start)
                torch_save(ts.capture(step), step, out / "saved.pt")
        kept = digest(store.load("lora")["model"])
    say(event="end", kept=kept, weights=digest(model.state_dict()))


def measure(out: Path) -> None:
    """The states of main once more, taking turns: torch.save, a store as above, and one told to compress."""
    codecs: tuple[Literal["auto", "planes"], ...] = ("auto", "planes")
    with cas.open(out / ".cas") as store, ExitStack() as others:
        fresh = {codec: others.enter_context(cas.open(out / "measured" / codec, create=True)) for codec in codecs}
        for commit in reversed(list(store.log("main"))):
            state = store.load(commit.id)
            torch_save(state, commit.step or 0, out / "saved.pt")
            for codec in codecs:
                start = time.perf_counter()
                fresh[codec].commit(state, step=commit.step, codec=codec)
                say(event=codec, step=commit.step, seconds=time.perf_counter() - start)


def check(out: Path) -> None:
    """Read the exported weights with plain safetensors and ask the model the same question."""
    deterministic(SEED, threads=1)
    model = Transformer(Config())
    model.load_state_dict(load_file(out / "export" / "model.safetensors"))
    say(event="end", weights=digest(model.state_dict()), logits=digest(logits(model)))


def main() -> None:
    phases = {"reference": reference, "train": train, "lora": lora, "measure": measure, "check": check}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=phases)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    phases[args.phase](args.out)


if __name__ == "__main__":
    main()
