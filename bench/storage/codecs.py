"""The codecs alone, as in section 3 of the design: one thread, parts of the state, two checkpoints of the fine-tune.

Ours are given what the store gives them: tensors cut into cells, and for each tensor a plan, which a store keeps from
commit to commit, so that the best round has it already. ZipNN is given a part as one run of bytes. What is decoded is
compared. The clock counts the process's CPU seconds, so that other processes of a busy machine decide nothing.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import zstandard

from cas.block import Codec, Coding
from cas.codecs import Changes, Encoder, Format, Habits
from cas.dtypes import DTYPES, DType
from cas.grid import cell_size

from . import training
from .training import Sizes

T = TypeVar("T")
Bytes = npt.NDArray[np.uint8]
Stored = tuple[Coding | None, bytes]
BLOCK_SIZE = 4 << 20
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Coded:
    """What a method made of one part of the state: bytes, and bytes a CPU second, the best of a few rounds."""

    part: str
    method: str
    raw: int
    stored: int
    encode: float
    decode: float

    @property
    def ratio(self) -> float:
        return self.stored / self.raw


@dataclass(frozen=True, slots=True)
class Pair:
    """The bytes of a tensor now and before."""

    dtype: DType
    new: Bytes
    old: Bytes

    def cells(self) -> Iterator[tuple[Bytes, Bytes]]:
        cell = cell_size(len(self.new), BLOCK_SIZE)
        for start in range(0, len(self.new), cell):
            yield self.new[start : start + cell], self.old[start : start + cell]


class Method(ABC):
    """Encodes all tensors of a part, and decodes what it made of them: bytes in pieces, in order."""

    name: str

    def __init__(self, pairs: list[Pair]) -> None:
        self.pairs = pairs

    @classmethod
    def present(cls) -> bool:
        return True

    def prepare(self) -> None:
        """Before the clock starts."""
        return

    @abstractmethod
    def encode(self) -> list[Stored]: ...

    @abstractmethod
    def decode(self, stored: list[Stored]) -> list[bytearray]: ...


class Zstd1(Method):
    name = "zstd -1"

    def encode(self) -> list[Stored]:
        coder = zstandard.ZstdCompressor(level=1)
        return [(None, coder.compress(new.data)) for pair in self.pairs for new, _ in pair.cells()]

    def decode(self, stored: list[Stored]) -> list[bytearray]:
        coder = zstandard.ZstdDecompressor()
        return [bytearray(coder.decompress(block)) for _, block in stored]


class Planes(Method):
    """Without a base, as a block that is new."""

    name = "planes"
    sort = False

    def __init__(self, pairs: list[Pair]) -> None:
        super().__init__(pairs)
        self.encoder = Encoder()
        self.habits = [Habits(pair.dtype, self.sort) for pair in pairs]

    def encode(self) -> list[Stored]:
        found: list[Stored] = []
        for pair, habits in zip(self.pairs, self.habits, strict=True):
            found += [self.plain(new, habits.format) for new, _ in pair.cells()]
        return found

    def plain(self, new: Bytes, form: Format) -> Stored:
        coding, stored = self.encoder.encode(new, form, "planes")
        return coding, bytes(stored)

    def decode(self, stored: list[Stored]) -> list[bytearray]:
        cells = [cell for pair in self.pairs for cell in pair.cells()]
        found = [bytearray(len(new)) for new, _ in cells]
        for out, (_, old), (coding, block) in zip(found, cells, stored, strict=True):
            assert coding is not None
            self.encoder.decode(coding, block, memoryview(out), old.data)
        return found


class DeltaKept(Planes):
    """As changes where that pays, in the order of the elements, as a commit does it."""

    name = "delta"

    def encode(self) -> list[Stored]:
        found: list[Stored] = []
        for pair, habits in zip(self.pairs, self.habits, strict=True):
            found += [self.change(new, old, habits.format, habits.changes) for new, old in pair.cells()]
        return found

    def change(self, new: Bytes, old: Bytes, form: Format, changes: Changes) -> Stored:
        stored = self.encoder.encode_delta(new, old.data, changes)
        if stored is None:
            return self.plain(new, form)
        return Coding(Codec.DELTA, changes.dtype.width, 1), bytes(stored)


class DeltaSorted(DeltaKept):
    """As repack does it."""

    name = "delta, sorted"
    sort = True


class ZipNN(Method):
    """It changes what it is given, so every round has copies."""

    name = "ZipNN"

    @classmethod
    def present(cls) -> bool:
        return find_spec("zipnn") is not None

    def prepare(self) -> None:
        self.new = bytearray(b"".join(pair.new.data for pair in self.pairs))
        self.old = bytearray(b"".join(pair.old.data for pair in self.pairs))

    def coder(self, **options: Any) -> Any:
        import zipnn

        return zipnn.ZipNN(input_format="byte", bytearray_dtype=self.pairs[0].dtype.name, threads=1, **options)

    def encode(self) -> list[Stored]:
        return [(None, self.coder().compress(self.new))]

    def decode(self, stored: list[Stored]) -> list[bytearray]:
        return [self.coder().decompress(stored[0][1])]


class ZipNNDelta(ZipNN):
    name = "ZipNN delta"

    def encode(self) -> list[Stored]:
        coder = self.coder(delta_compressed_type="byte")
        return [(None, coder.compress(self.new, delta_second_data=self.old))]

    def decode(self, stored: list[Stored]) -> list[bytearray]:
        return [self.coder(delta_compressed_type="byte").decompress(stored[0][1], delta_second_data=self.old)]


METHODS: tuple[type[Method], ...] = (Zstd1, Planes, DeltaKept, DeltaSorted, ZipNN, ZipNNDelta)


def codecs(sizes: Sizes) -> Iterator[Coded]:
    """Every method on every part of the state, between two checkpoints in the middle of the fine-tune."""
    middle = sizes.full // 2
    old, new = (training.load(sizes, "tune", number) for number in (middle - 1, middle))
    for part in ("weights", "weights, bf16", "exp_avg", "exp_avg_sq"):
        key, cast = part.removesuffix(", bf16"), part.endswith("bf16")
        pairs = [_pair(new[key][name], old[key][name], cast) for name in new[key]]
        for method in METHODS:
            if method.present():
                yield _coded(part, method(pairs))


def _pair(new: torch.Tensor, old: torch.Tensor, cast: bool) -> Pair:
    dtype = torch.bfloat16 if cast else torch.float32
    parts = [tensor.to(dtype).contiguous().view(-1).view(torch.uint8).numpy() for tensor in (new, old)]
    return Pair(DTYPES[str(dtype).removeprefix("torch.")], parts[0], parts[1])


def _coded(part: str, method: Method) -> Coded:
    raw = sum(len(pair.new) for pair in method.pairs)
    rounds = []
    for _ in range(ROUNDS):
        method.prepare()
        stored, encode = _timed(method.encode)
        found, decode = _timed(partial(method.decode, stored))
        rounds.append((encode, decode))
    if b"".join(found) != b"".join(pair.new.data for pair in method.pairs):
        raise RuntimeError(f"{method.name} does not give back {part}")
    size = sum(len(block) for _, block in stored)
    best = [min(each) for each in zip(*rounds, strict=True)]
    return Coded(part, method.name, raw, size, raw / best[0], raw / best[1])


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.process_time()
    found = work()
    return found, max(time.process_time() - began, 1e-6)
