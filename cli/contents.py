"""The bytes of a commit on their way into files: verified, converted where that is asked for, and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from cas.leaves import Leaves, TensorLeaf

from .conversion import convert, count_infinite
from .folder import PIECE, NewFile
from .progress import Progress
from .weights import Weight

_CONVERTED = 4 << 20  # bytes at once: converting takes several times as much


@dataclass(slots=True)
class Contents:
    """`infinite` counts the numbers that were finite and are too large for the dtype that they got."""

    leaves: Leaves
    progress: Progress
    infinite: int = 0

    def copy(self, tensors: Iterable[TensorLeaf], file: NewFile) -> None:
        """Append the tensors' bytes as they are. Reading goes on while the disk writes."""
        for count in self.leaves.fill(tensors, file.room, PIECE):
            file.advance(count)
            self.progress.advance(count)

    def write(self, weights: Sequence[Weight], file: NewFile) -> None:
        """Append the weights' bytes."""
        for is_converted, group in groupby(weights, lambda weight: weight.is_converted):
            if not is_converted:
                self.copy((weight.leaf for weight in group), file)
                continue
            for weight in group:
                for piece in self.pieces(weight):
                    file.write(piece)

    def pieces(self, weight: Weight) -> Iterator[memoryview]:
        """The bytes of one weight, in pieces that are valid until the next one is asked for."""
        source, target = weight.leaf.dtype, weight.dtype
        for piece in self.leaves.stream([weight.leaf], _CONVERTED):
            self.progress.advance(len(piece))
            if source == target:
                yield piece
                continue
            found = convert(piece, source, target)
            self.infinite += count_infinite(found, target) - count_infinite(piece, source)
            yield found.data
