"""The nine workloads: rows of checkpoints that were really trained, each with what is known of how it came about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from blake3 import blake3

from bench.trees import State, leaves

from . import containers, training
from .training import Sizes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One state. `parent` is the checkpoint that training went on from. With a `form` it comes in that container only.

    `read` gives nested dicts of tensors, in memory.
    """

    label: str
    step: int
    parent: int | None
    read: Callable[[], State]
    loss: float = 0.0
    form: str | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """Checkpoints in the order in which they are saved. `best`: only so many of them are kept, those of least loss."""

    name: str
    about: str
    checkpoints: tuple[Checkpoint, ...]
    best: int | None = None

    def kept(self, saved: int) -> set[int]:
        """Of the first `saved` checkpoints those that are kept: the best and the newest."""
        numbers = range(saved)
        if self.best is None:
            return set(numbers)
        return {*sorted(numbers, key=lambda number: self.checkpoints[number].loss)[: self.best], saved - 1}

    def raw(self) -> tuple[list[int], int]:
        """Bytes of the tensors of each checkpoint, and of all their distinct tensors."""
        raw: list[int] = []
        distinct: dict[bytes, int] = {}
        for one in self.checkpoints:
            held = [tensor.contiguous().view(-1).view(torch.uint8).numpy() for _, tensor in leaves(one.read())]
            raw.append(sum(map(len, held)))
            distinct |= {blake3(data.data).digest(): len(data) for data in held}
        return raw, sum(distinct.values())

    def write(self, folder: Path) -> None:
        """All checkpoints as files, which are the same for all peers: `folder`/number/form/."""
        for number, one in enumerate(self.checkpoints):
            state = one.read()
            for form in (one.form,) if one.form else ("safetensors", "torch.save"):
                place = files_of(folder, number, form)
                place.mkdir(parents=True)
                containers.FORMS[form](state, place)


def files_of(folder: Path, number: int, form: str) -> Path:
    """Where `write` puts a checkpoint."""
    return folder / f"{number:03}" / form.replace(",", "").replace(" ", "-")


def dense_full(sizes: Sizes) -> Workload:
    about = f"a dense fine-tune with AdamW, fp32 weights and both moments, every {sizes.every} steps"
    return _tuned(sizes, "dense full", about, sizes.full, lambda held: {k: held[k] for k in PARTS_OF_STATE})


def dense_fp32(sizes: Sizes) -> Workload:
    return _tuned(sizes, "dense fp32", "the fp32 weights of the same", sizes.full, _weights)


def dense_bf16(sizes: Sizes) -> Workload:
    return _tuned(sizes, "dense bf16", "the same weights cast to bf16", sizes.full, _cast)


def rotation(sizes: Sizes) -> Workload:
    """Losses are those on text that the fine-tune does not see."""
    about = f"the fp32 weights of {sizes.tuned} checkpoints of that fine-tune, of which the best 3 and the newest stay"
    return _tuned(sizes, "rotation", about, sizes.tuned, _weights, best=3)


def _tuned(
    sizes: Sizes, name: str, about: str, count: int, pick: Callable[[State], State], best: int | None = None
) -> Workload:
    facts = [training.load(sizes, "tune", number) for number in range(count)]
    checkpoints = tuple(
        Checkpoint(
            f"step {held['step']}", held["step"], _before(number), _reader(sizes, "tune", number, pick), held["loss"]
        )
        for number, held in enumerate(facts)
    )
    return Workload(name, about, checkpoints, best)


def lora(sizes: Sizes) -> Workload:
    """Every checkpoint is the whole model, frozen weights included, as a state dict gives it."""
    frozen = training.load(sizes, "lora", 0)["frozen"]
    count = training.count(sizes, "lora") - 1
    about = f"rank 8 adapters on a frozen fp32 model, the whole state dict every second step, {count} commits"
    checkpoints = _chain(sizes, "lora", range(1, count + 1), lambda held: {"weights": {**frozen, **held["adapters"]}})
    return Workload("lora", about, checkpoints)


def sweep(sizes: Sizes) -> Workload:
    """The base first; all others come from it."""
    count = training.count(sizes, "sweep")
    base = Checkpoint("base", 0, None, _reader(sizes, "base", 0, _cast))
    runs = [
        Checkpoint(f"run {number + 1}", sizes.sweep_steps, 0, _reader(sizes, "sweep", number, _weights))
        for number in range(count)
    ]
    return Workload("sweep", f"a base and {count} fine-tunes of it, bf16", (base, *runs))


def sparse(part: str, sizes: Sizes) -> Workload:
    checkpoints = _chain(sizes, part, range(training.count(sizes, part)), _weights)
    shares = [_changed(one.read(), two.read()) for one, two in pairwise(checkpoints)]
    mean = 100 * sum(shares) / len(shares)
    rate = training.SPARSE_LRS[part]
    about = f"bf16 weights after each step of AdamW at a rate of {rate:g}: a step changes {mean:.2g} % of the values"
    return Workload(part, about, checkpoints)


def _changed(one: State, two: State) -> float:
    """Share of the values that differ."""
    pairs = [(old.view(torch.int16), two["weights"][name].view(torch.int16)) for name, old in one["weights"].items()]
    changed = sum(int((old != new).sum()) for old, new in pairs)
    return changed / sum(int(old.numel()) for old, _ in pairs)


def mixture(sizes: Sizes) -> Workload:
    about = (
        f"fp32 weights of a mixture of {sizes.experts} experts a layer, one for a domain of text; two steps between "
        "checkpoints touch two of them"
    )
    return Workload("mixture", about, _chain(sizes, "mixture", range(training.count(sizes, "mixture")), _weights))


def vocabulary(sizes: Sizes) -> Workload:
    about = (
        f"fp32 weights of a model over words; each time {sizes.appended} rows are appended to both tables and trained"
    )
    return Workload("vocabulary", about, _chain(sizes, "words", range(training.count(sizes, "words")), _weights))


def layouts(sizes: Sizes) -> Workload:
    read = _reader(sizes, "base", 0, _weights)
    made = [Checkpoint(form, n, _before(n), read, form=form) for n, form in enumerate(containers.FORMS)]
    return Workload("layouts", "the same fp32 weights, one container or layout after the other", tuple(made))


PARTS_OF_STATE = ("weights", "exp_avg", "exp_avg_sq")
WORKLOADS: dict[str, Callable[[Sizes], Workload]] = {
    "dense full": dense_full,
    "dense fp32": dense_fp32,
    "dense bf16": dense_bf16,
    "lora": lora,
    "sweep": sweep,
    **{name: partial(sparse, name) for name in training.SPARSE_LRS},
    "mixture": mixture,
    "vocabulary": vocabulary,
    "layouts": layouts,
    "rotation": rotation,
}


def _chain(sizes: Sizes, part: str, numbers: range, pick: Callable[[State], State]) -> tuple[Checkpoint, ...]:
    """Checkpoints each of which comes from the one before."""
    return tuple(
        Checkpoint(f"number {number}", number, _before(place), _reader(sizes, part, number, pick))
        for place, number in enumerate(numbers)
    )


def _before(number: int) -> int | None:
    return number - 1 if number else None


def _reader(sizes: Sizes, part: str, number: int, pick: Callable[[State], State]) -> Callable[[], State]:
    return lambda: pick(training.load(sizes, part, number))


def _weights(held: State) -> State:
    return {"weights": held["weights"]}


def _cast(held: State) -> State:
    return {"weights": training.halved(held["weights"])}
