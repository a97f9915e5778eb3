"""Which store a command works on: `--store`, `CAS_STORE`, else upwards from the current directory.

A place is a directory with `cas.json`, a directory with such a one called `.cas` in it, or a file `.cas` that holds
the path (relative to the file) or URL of one.
"""

from __future__ import annotations

import os
from pathlib import Path

from cas.errors import Invalid, NotFound

MARK = "cas.json"
FOLDER = ".cas"
_LONGEST = 4096


class NoStore(NotFound):
    """Not the revision, path or file: the store itself."""

    exit_code = 10


def find(said: str | None) -> str:
    """The path or URL of the store to use; `said` is what the user gave."""
    if said is not None:
        return _given(said)
    here = Path.cwd()
    for folder in (here, *here.parents):
        found = _at(folder)
        if found is not None:
            return found
    raise NoStore(f"there is no store in {here} or above it; make one with `cas init`, or name one with --store")


def _given(said: str) -> str:
    if "://" in said:
        return said
    path = Path(said).expanduser()
    found = _pointed(path) if path.is_file() else _at(path)
    if found is None:
        raise NoStore(f"there is no store at {path}; make one with `cas init {path}`")
    return found


def _at(folder: Path) -> str | None:
    """The store that a directory is or holds."""
    if (folder / MARK).is_file():
        return str(folder)
    inner = folder / FOLDER
    if inner.is_file():
        return _pointed(inner)
    return str(inner) if (inner / MARK).is_file() else None


def _pointed(file: Path) -> str:
    """The store that a file names on its one line."""
    with open(file, "rb") as opened:
        data = opened.read(_LONGEST + 1)
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text or len(data) > _LONGEST or not text.isprintable():
        raise Invalid(f"{file} does not hold the path of a store on one line; correct it or remove it")
    if "://" in text:
        return text
    target = file.parent / Path(text).expanduser()
    if not (target / MARK).is_file():
        raise NoStore(f"{file} names {target}, where there is no store; correct it or run `cas init {target}`")
    return os.path.normpath(target)
