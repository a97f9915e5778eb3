"""What every peer does with a workload, ours included, and what of it is measured."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bench.trees import State, leaves

from .workloads import Workload, files_of


class Peer(ABC):
    """One way to keep the checkpoints of a workload, in `folder`.

    `save`, `drop`, `finish` and `restore` are timed, each up to the end of its processes and files. Tools are given
    `source`, files that were written before; what takes a state is given it in memory by `hold`. Peers that write
    files restore to files in `out`, which are compared with `source` byte for byte.
    """

    name: ClassVar[str]
    form: ClassVar[str] = "safetensors"
    """The container that it is given where the workload leaves the choice."""

    def __init__(self, workload: Workload, files: Path, folder: Path) -> None:
        self.workload, self.files, self.folder = workload, files, folder
        self.out = folder / "out"
        self.kept = folder / "kept"
        self.notes: list[str] = []
        self.kept.mkdir(parents=True)

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot be measured here, where that is so."""
        return None

    def source(self, number: int) -> Path:
        """The files of a checkpoint."""
        return files_of(self.files, number, self.workload.checkpoints[number].form or self.form)

    def hold(self, number: int) -> None:
        """Before the clock starts: read what `save` takes from memory."""
        return

    @abstractmethod
    def save(self, number: int) -> None: ...

    def drop(self, numbers: set[int]) -> None:
        """Delete checkpoints, and free what only they took."""
        for number in numbers:
            shutil.rmtree(self.kept / f"{number:03}")

    def finish(self) -> bool:
        """What is done once after all saves; whether there is anything."""
        return False

    @abstractmethod
    def restore(self, number: int) -> None: ...

    def exact(self, number: int) -> bool:
        """Whether the last restore gave the very bytes."""
        return same_files(self.source(number), self.out)

    def clear(self, number: int) -> None:
        """Before the clock starts: what `restore` finds."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()

    def stored(self) -> int:
        """Bytes that the checkpoints take."""
        return disk([self.kept])

    def close(self) -> None:
        """Give back what is held open."""
        return


def disk(paths: Iterable[Path]) -> int:
    """The sizes of all files in some folders."""
    return sum(path.stat().st_size for folder in paths for path in folder.rglob("*") if path.is_file())


def same_files(one: Path, two: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    names = [{path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} for folder in (one, two)]
    return names[0] == names[1] and all((one / name).read_bytes() == (two / name).read_bytes() for name in names[0])


def same_states(one: State, two: State) -> bool:
    """Whether two states have the same tensors, bit for bit."""
    held, found = dict(leaves(one)), dict(leaves(two))
    return held.keys() == found.keys() and all(_same(held[path], found[path]) for path in held)


def _same(one: Tensor, two: Tensor) -> bool:
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, two)))


def write(path: Path, data: bytes | bytearray | memoryview) -> None:
    """A new file, durable."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
