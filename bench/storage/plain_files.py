"""Peers that keep a file or a folder for each checkpoint: torch.save, zstd over it, DCP with zstd, ZipNN."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint._extension import ZStandard
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from bench import ranks
from bench.contenders import sync
from bench.trees import State, empty_like, leaves

from .containers import RANKS
from .peer import Peer, same_states, write
from .workloads import Workload


class FolderEach(Peer):
    """A folder for each checkpoint."""

    def place(self, number: int) -> Path:
        return self.kept / f"{number:03}"


class TorchSave(FolderEach):
    """torch.save and fsync; where the container is given, a copy of its files."""

    name = "torch.save"
    form = "torch.save"

    def hold(self, number: int) -> None:
        self.state = self.workload.checkpoints[number].read()

    def save(self, number: int) -> None:
        place = self.place(number)
        if self.workload.checkpoints[number].form:
            shutil.copytree(self.source(number), place)
        else:
            place.mkdir()
            torch.save(self.state, place / "model.pt")
        for path in (*place.iterdir(), place):
            sync(path)

    def restore(self, number: int) -> None:
        if self.workload.checkpoints[number].form:
            shutil.copytree(self.place(number), self.out, dirs_exist_ok=True)
        else:
            self.found = torch.load(self.place(number) / "model.pt", weights_only=True)

    def exact(self, number: int) -> bool:
        if self.workload.checkpoints[number].form:
            return super().exact(number)
        return same_states(self.found, self.workload.checkpoints[number].read())


class Zstd(FolderEach):
    """The command zstd on each file, with all cores."""

    form = "torch.save"
    level: ClassVar[str]

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which("zstd") else "the command zstd is not on PATH"

    def save(self, number: int) -> None:
        place = self.place(number)
        place.mkdir()
        for path in self.source(number).iterdir():
            subprocess.run(["zstd", "-q", "-T0", self.level, path, "-o", place / f"{path.name}.zst"], check=True)
        for path in (*place.iterdir(), place):
            sync(path)

    def restore(self, number: int) -> None:
        for path in self.place(number).iterdir():
            subprocess.run(["zstd", "-q", "-d", path, "-o", self.out / path.stem], check=True)


class Zstd1(Zstd):
    name = "zstd -1"
    level = "-1"


class Zstd19(Zstd):
    name = "zstd -19"
    level = "-19"


class Dcp(FolderEach):
    """torch.distributed.checkpoint with its zstd extension; in one process, but for what ranks hold."""

    name = "DCP + zstd"

    def hold(self, number: int) -> None:
        self.state = self.workload.checkpoints[number].read()

    def save(self, number: int) -> None:
        count = RANKS.get(self.workload.checkpoints[number].form or "")
        if count:
            ranks.job(count, _save_rows, self.state, self.place(number))
        else:
            save(self.state, storage_writer=_writer(self.place(number)), no_dist=True)
        sync(self.place(number))

    def restore(self, number: int) -> None:
        load(self.found, storage_reader=FileSystemReader(self.place(number)), no_dist=True)

    def clear(self, number: int) -> None:
        self.found = empty_like(self.workload.checkpoints[number].read())

    def exact(self, number: int) -> bool:
        return same_states(self.found, self.workload.checkpoints[number].read())


def _save_rows(rank: int, store: Any, state: State, place: Path) -> None:
    save(ranks.sharded(state), storage_writer=_writer(place))


def _writer(place: Path) -> FileSystemWriter:
    return FileSystemWriter(place, _extensions=[ZStandard()])


class ZipNN(FolderEach):
    """The library on the bytes of each file, told their dtype, with as many threads as it likes.

    Version 0.5.4 writes beyond its memory where the bytes are no whole elements: the rest of a file is kept as it is.
    """

    name = "ZipNN"

    def __init__(self, workload: Workload, files: Path, folder: Path) -> None:
        super().__init__(workload, files, folder)
        import zipnn

        _, first = next(leaves(workload.checkpoints[0].read()))
        self.itemsize = first.itemsize
        dtype = str(first.dtype).removeprefix("torch.")
        self.coder = partial(zipnn.ZipNN, input_format="byte", bytearray_dtype=dtype)

    @classmethod
    def missing(cls) -> str | None:
        return None if find_spec("zipnn") else "zipnn is not installed; pip install zipnn"

    def save(self, number: int) -> None:
        place = self.place(number)
        place.mkdir()
        for path in self.source(number).iterdir():
            write(place / path.name, self.encode(number, path))
        sync(place)

    def restore(self, number: int) -> None:
        for path in self.place(number).iterdir():
            (self.out / path.name).write_bytes(self.decode(number, path.name))

    def encode(self, number: int, path: Path) -> bytes:
        return self.coded(path.read_bytes(), lambda data: self.coder().compress(data))

    def decode(self, number: int, name: str) -> bytes:
        return self.uncoded(self.stored_file(number, name), lambda data: self.coder().decompress(data))

    def coded(self, data: bytes, compress: Callable[[bytearray], bytes]) -> bytes:
        """The whole elements compressed, the rest, and how long that is."""
        whole = self.whole(data)
        rest = data[len(whole) :]
        return bytes(compress(whole)) + rest + bytes([len(rest)])

    def uncoded(self, stored: bytes, decompress: Callable[[bytes], bytearray]) -> bytes:
        end = len(stored) - 1 - stored[-1]
        return bytes(decompress(stored[:end])) + stored[end:-1]

    def whole(self, data: bytes) -> bytearray:
        """The whole elements, in memory that may be changed."""
        return bytearray(data[: len(data) // self.itemsize * self.itemsize])

    def stored_file(self, number: int, name: str) -> bytes:
        return (self.place(number) / name).read_bytes()


class ZipNNDelta(ZipNN):
    """Each file against that of the checkpoint it comes from; in a rotation against the first, which then stays.

    A file whose base has another length or is not there is stored without a delta: ZipNN takes no other base.
    """

    name = "ZipNN delta"

    def base(self, number: int) -> int | None:
        parent = self.workload.checkpoints[number].parent
        return parent if parent is None or self.workload.best is None else 0

    def is_delta(self, number: int, name: str) -> bool:
        base = self.base(number)
        if base is None:
            return False
        old, new = self.source(base) / name, self.source(number) / name
        return old.exists() and old.stat().st_size == new.stat().st_size

    def encode(self, number: int, path: Path) -> bytes:
        base = self.base(number)
        if base is None or not self.is_delta(number, path.name):
            return super().encode(number, path)
        against = self.whole((self.source(base) / path.name).read_bytes())
        coder = self.coder(delta_compressed_type="byte")
        return self.coded(path.read_bytes(), lambda data: coder.compress(data, delta_second_data=against))

    def decode(self, number: int, name: str) -> bytes:
        """Through the whole chain, as nothing else has the bases."""
        base = self.base(number)
        if base is None or not self.is_delta(number, name):
            return super().decode(number, name)
        against = self.whole(self.decode(base, name))
        coder = self.coder(delta_compressed_type="byte")
        stored = self.stored_file(number, name)
        return self.uncoded(stored, lambda data: coder.decompress(data, delta_second_data=against))

    def drop(self, numbers: set[int]) -> None:
        super().drop(numbers - {0})
