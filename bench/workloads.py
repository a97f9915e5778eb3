"""What is kept: three states, each written to files once so that any process can read or map it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import series, states
from .scale import Scale
from .trees import State, leaves, tensor_bytes

TINY_VALUES = 256
NOT_LARGE = "cas raw"
"""It differs from auto in nothing but what auto compresses, and at this size a turn is long."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A state in `folder`, one file for each of its top-level keys. `about` says in one sentence what it is."""

    name: str
    about: str
    folder: Path
    contenders: tuple[str, ...]

    def read(self) -> State:
        """The state in memory."""
        return read(self.folder, mmap=False)

    def mapped(self) -> State:
        """The state mapped from its files, at addresses of its own; it takes no anonymous memory."""
        return read(self.folder, mmap=True)


def read(folder: Path, mmap: bool) -> State:
    return {path.stem: torch.load(path, mmap=mmap) for path in sorted(folder.iterdir())}


def trained(scale: Scale, folder: Path) -> Workload:
    """Really trained weights and moments."""
    if scale.cached:
        found = states.trained_states(scale.trained_bytes)
        pieces = states.assert_no_repeats(found)
        write(found, folder)
        about = "four steps of a 22 M-parameter transformer, 80 training steps apart: weights and both AdamW moments"
        about += f", fp32; {pieces} pieces of 256 KiB, none twice"
    else:
        series.write(folder, scale.trained_bytes, quick=True)
        about = "consecutive training steps of a small transformer"
    return _named("trained", about, folder, scale.contenders)


def tiny(scale: Scale, folder: Path) -> Workload:
    """Many tensors so small that what is spent on each counts."""
    generator = torch.Generator().manual_seed(0)
    found = {f"tensor{n}": torch.randn(TINY_VALUES, generator=generator) for n in range(scale.tiny_tensors)}
    write({"tiny": found}, folder)
    return _named("tiny", f"{scale.tiny_tensors:,} tensors of 1 KiB, random fp32", folder, scale.contenders)


def large(scale: Scale, folder: Path) -> Workload:
    """`scale.large_bytes`, or the largest that fits."""
    total, why = fitting(scale.large_bytes, folder)
    series.write(folder, total, quick=not scale.cached)
    contenders = tuple(name for name in scale.contenders if name != NOT_LARGE)
    steps = len(list(folder.iterdir()))
    about = f"{why}; {steps} consecutive training steps of the same transformer, weights and both moments, fp32, mapped"
    return _named("large", f"{about} from files", folder, contenders)


def fitting(wanted: int, folder: Path) -> tuple[int, str]:
    """The bytes to use, and why: a load holds the state beside the file that it comes from, and the disk holds the
    source, what is measured, and as much again as was there."""
    disk, memory = shutil.disk_usage(folder).free, available_memory()
    limits = {"asked for": wanted, "half of the available memory": memory // 2, "a third of the free disk": disk // 3}
    why = min(limits, key=lambda name: limits[name])
    total = limits[why]
    return total, f"{total / 1e9:.3g} GB, {why} ({memory / 1e9:.0f} GB of memory, {disk / 1e9:.0f} GB of disk free)"


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def write(state: Mapping[str, Any], folder: Path) -> None:
    for name, part in state.items():
        torch.save(part, folder / f"{name}.pt")


def _named(name: str, about: str, folder: Path, contenders: tuple[str, ...]) -> Workload:
    found = read(folder, mmap=True)
    size = f"{tensor_bytes(found) / 2**20:,.0f} MiB in {sum(1 for _ in leaves(found)):,} tensors"
    return Workload(name, f"{size}: {about}", folder, contenders)


Maker = Callable[[Scale, Path], Workload]
WORKLOADS: dict[str, Maker] = {"trained": trained, "tiny": tiny, "large": large}
