"""A file that will be written: its name is known before, so that no two get one name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cas.errors import Invalid
from cas.paths import is_file_name

from .folder import NewFile

_OTHERS = {".cas", "cas.json", ".git"}
"""What commands look for in the directories that they run in: not from a store that may come from anyone."""


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file by its relative name, and what fills it."""

    name: str
    write: Callable[[NewFile], None]


def small_file(name: str, data: bytes) -> PlannedFile:
    return PlannedFile(name, lambda file: _write(file, data))


def _write(file: NewFile, data: bytes) -> None:
    file.write(data)


def check_names(ours: Iterable[str], theirs: Iterable[str]) -> None:
    """`Invalid` for a file of the commit that would leave the directory, be another file too, or act on commands."""
    taken = set(ours)
    folders = {folder for name in taken for folder in _folders(name)}
    for name in theirs:
        levels = name.split("/")
        if not is_file_name(name) or not _OTHERS.isdisjoint(level.lower() for level in levels):
            raise Invalid(f"the commit has a side file called {name!r}, which is no safe name; load the state instead")
        if name in taken or name in folders or not taken.isdisjoint(_folders(name)):
            what = f"the commit has a side file called {name}, the name of a file or directory that is written"
            raise Invalid(f"{what}; load the state instead")
        taken.add(name)
        folders.update(_folders(name))


def _folders(name: str) -> list[str]:
    levels = name.split("/")
    return ["/".join(levels[:count]) for count in range(1, len(levels))]
