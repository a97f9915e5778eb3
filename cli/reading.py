"""From a file or directory to import to what it holds; what cannot be read safely is kept as opaque bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cas.committing import state_skeleton
from cas.errors import CasError
from cas.files import FileRange, KnownFile

from .from_dcp import read_dcp
from .from_safetensors import read_safetensors
from .from_torch import large_records, read_torch
from .incoming import Parsed, Unreadable, in_pieces

TORCH = (".pt", ".pth", ".bin", ".ckpt")
SAFETENSORS = ".safetensors"
GGUF = ".gguf"
CONTAINERS = (*TORCH, SAFETENSORS, GGUF)
"""What the names of files that hold tensors end with."""

_REPEATED = 16
"""Tensors may show the bytes of their file so many times over, as views and expanded ones do, and not without end."""


def read_file(file: KnownFile, name: str) -> Parsed:
    """The file's state; an empty one, and a note, where it cannot be read."""
    return _guarded({name: file}, lambda: _reader(name)(file, name))


def read_dcp_folder(files: dict[str, KnownFile], prefix: str) -> Parsed:
    """The state of a distributed checkpoint: `files` are its own, by their names in the folder."""
    named = {f"{prefix}{name}": file for name, file in files.items()}
    return _guarded(named, lambda: read_dcp(files, prefix))


def _reader(name: str) -> Callable[[KnownFile, str], Parsed]:
    ending = Path(name).suffix.lower()
    if ending == SAFETENSORS:
        return read_safetensors
    if ending == GGUF:
        from .from_gguf import read_gguf  # imports gguf

        return read_gguf
    if ending in TORCH:
        return read_torch
    return _unknown


def _unknown(file: KnownFile, name: str) -> Parsed:
    raise Unreadable("no kind of checkpoint is called so")


def _guarded(files: dict[str, KnownFile], read: Callable[[], Parsed]) -> Parsed:
    try:
        parsed = read()
        _check(parsed, sum(file.nbytes for file in files.values()))
        return parsed
    except Unreadable as error:
        origin = {name: in_pieces(file, _large_records(file)) for name, file in files.items()}
        return Parsed({}, origin, [f"{next(iter(files))} is kept as bytes: {error}"])


def _check(parsed: Parsed, nbytes: int) -> None:
    """`Unreadable` unless the state can be committed, and is not a few bytes shown without end."""
    try:
        _, leaves = state_skeleton(parsed.state, allow_pickle=False)
    except CasError as error:
        raise Unreadable(str(error)) from error
    if sum(leaf.nbytes for leaf in leaves) > _REPEATED * nbytes:
        raise Unreadable("its tensors show its bytes over and over")


def _large_records(file: KnownFile) -> list[FileRange]:
    try:
        return large_records(file)
    except Unreadable:  # no archive, or none that is sound
        return []
