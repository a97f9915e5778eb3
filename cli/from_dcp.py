"""Reading a directory of torch.distributed.checkpoint: tensors whose chunks lie in several files.

`.metadata` is a pickle of what there is and where: of each name the tensor's size and its chunks, and of each chunk the
range of a `.distcp` file that holds it as an archive of torch.save. Nothing of it is trusted, and torch is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from cas.files import FileRange, KnownFile
from cas.grid import MAX_CELL, Box, Shape, cell_size
from cas.tensors import Source, Tensor

from .chunks import ChunkedSource, row_major
from .dcp_metadata import Metadata, TensorInfo, read_metadata
from .from_torch import read_saved
from .incoming import Parsed, Unreadable, in_pieces
from .torch_save import StoredTensor, load

METADATA = ".metadata"


def read_dcp(files: Mapping[str, KnownFile], prefix: str) -> Parsed:
    """The state of a directory, nested as it was saved; `files` are its files by their names in it.

    `prefix` stands before their names in the origin. Plain values that cannot be read safely are left out and noted.
    """
    if METADATA not in files:
        raise Unreadable(f"it has no {METADATA}")
    reading = _Reading(read_metadata(files[METADATA], files))
    state = reading.state()
    origin = {}
    for name, file in files.items():
        origin[f"{prefix}{name}"] = in_pieces(file, reading.parts.get(file.path, []))
    return Parsed(state, origin, reading.notes)


@dataclass(slots=True)
class _Reading:
    """One pass over the metadata. `parts` are by path the ranges that should be pieces of their own."""

    metadata: Metadata
    parts: dict[str, list[Source]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def state(self) -> Any:
        flat: dict[str, Any] = {}
        for name, info in self.metadata.tensors.items():
            if info is not None:
                flat[name] = self._tensor(name, info)
                continue
            try:
                flat[name] = self._value(self.metadata.item(name, None))
            except Unreadable as error:
                self.notes.append(f"{name} is left out: {error}")
        return nested(flat, self.metadata.paths)

    def _tensor(self, name: str, info: TensorInfo) -> Tensor:
        stored = [(box, self._chunk(name, info, box)) for box in info.boxes if box.size]
        if len(stored) == 1:
            leaf = stored[0][1].leaf()
            self._keep(leaf.source)
            return leaf
        for box, chunk in stored:
            self._share(info, box, chunk)
        source = ChunkedSource(info.shape, info.dtype.itemsize, [chunk.chunk(box) for box, chunk in stored])
        return Tensor.whole("torch", info.dtype, info.shape, source, None)

    def _chunk(self, name: str, info: TensorInfo, box: Box) -> StoredTensor:
        chunk = load(self.metadata.item(name, box.start))
        if type(chunk) is not StoredTensor or (chunk.dtype, chunk.shape) != (info.dtype, box.shape):
            raise Unreadable(f"{name} is stored as another tensor than {METADATA} says")
        return chunk

    def _share(self, info: TensorInfo, box: Box, chunk: StoredTensor) -> None:
        """Keep a chunk as pieces that are blocks of the whole tensor, where it is one range of that."""
        data = chunk.data
        if not isinstance(chunk.source, FileRange) or not is_one_range(box, info.shape):
            self._keep(chunk.source)
            return
        strides = row_major(info.shape, info.dtype.itemsize)
        first = sum(a * step for a, step in zip(box.start, strides, strict=True))
        cell = cell_size(prod(info.shape) * info.dtype.itemsize, MAX_CELL)
        odd = min(-first % cell, data.nbytes)  # up to where the next block of the whole begins
        self._keep(data.file.part(data.start, data.start + odd))
        self._keep(data.file.part(data.start + odd, data.start + data.nbytes, cell))

    def _keep(self, source: Source) -> None:
        if isinstance(source, FileRange):
            self.parts.setdefault(source.file.path, []).append(source)

    def _value(self, item: FileRange) -> Any:
        value, sources = read_saved(item)
        for source in sources:
            self._keep(source)
        return value


def is_one_range(box: Box, shape: Shape) -> bool:
    """Whether the box's elements lie side by side in the row-major order of a tensor of `shape`."""
    axis = max((at for at, (n, whole) in enumerate(zip(box.shape, shape, strict=True)) if n != whole), default=0)
    return prod(box.shape[:axis]) == 1


# -- nesting --------------------------------------------------------------------------------------------------------


def nested(flat: dict[str, Any], paths: Mapping[str, tuple[str | int, ...]]) -> Any:
    """The values at their paths, numbers in which count the places of a list; `flat` itself where those do not fit."""
    root: dict[Any, Any] = {}
    containers = {id(root)}
    for name, value in flat.items():
        *above, last = paths.get(name, (name,))
        level = root
        for key in above:
            if key not in level:
                level[key] = {}
                containers.add(id(level[key]))
            level = level[key]
            if id(level) not in containers:
                return flat
        if last in level:
            return flat
        level[last] = value
    return {key: _listed(value, containers) for key, value in root.items()}


def _listed(level: Any, containers: set[int]) -> Any:
    if id(level) not in containers:
        return level
    made = {key: _listed(value, containers) for key, value in level.items()}
    if made and all(type(key) is int for key in made) and made.keys() == set(range(len(made))):
        return [made[at] for at in range(len(made))]
    return made
