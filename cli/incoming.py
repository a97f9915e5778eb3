"""What is read of a file or directory to import: a state whose tensors stay on the disk, and the files themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cas.files import FileRange, KnownFile
from cas.tensors import Source


class Unreadable(Exception):
    """The file is not what it seems, or cannot be read safely: it is kept as opaque bytes. The text says why."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a file or directory holds.

    `state` is what `Store.commit` takes; its tensors are read when they are stored. `origin` are the files, by
    relative name, each as consecutive pieces. `notes` say what could not be taken into the state.
    """

    state: Any
    origin: Mapping[str, Sequence[Source]]
    notes: list[str] = field(default_factory=list)


def in_pieces(file: KnownFile, parts: Iterable[Source]) -> list[Source]:
    """The whole file as consecutive pieces: those of `parts` that lie in it and do not overlap, and what is between."""
    inside = [part for part in parts if isinstance(part, FileRange) and part.file == file and part.nbytes]
    pieces: list[Source] = []
    done = 0
    for part in sorted(inside, key=lambda part: (part.start, -part.nbytes)):
        if part.start >= done:
            pieces += [file.part(done, part.start), part]
            done = part.start + part.nbytes
    return [piece for piece in (*pieces, file.part(done, file.nbytes)) if piece.nbytes]
