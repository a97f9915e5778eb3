"""Which store a command works on: `--store`, `CAS_STORE`, else upwards from the current directory.

A place is a URL, a directory with `cas.json`, a directory with such a one called `.cas` in it, or a file `.cas` that
holds the path (relative to the file) or URL of one.
"""

from __future__ import annotations

import os
from collections.abc import Container
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


def cache() -> str | None:
    """The directory for what is derived of stores on other machines; None where the environment names none."""
    own = os.environ.get("CAS_CACHE")
    if own:
        return os.path.abspath(os.path.expanduser(own))
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(shared, "cas") if os.path.isabs(shared) else None  # a relative one is to be ignored


def other(said: str | None, known: Container[str]) -> str | None:
    """Another store: None and the name of a remote as they are, else the URL or whole path of a store."""
    if said is None or said in known:
        return said
    try:
        return located(said)
    except NoStore as error:
        raise NotFound(
            f"there is no remote called {said}, nor a store at that path; `cas remote list` shows the remotes, and "
            "`cas remote add` adds one"
        ) from error


def located(said: str) -> str:
    """The URL, or the whole path, of a store that is there."""
    place = _given(said)
    return place if is_url(place) else os.path.abspath(place)


def name(place: str) -> str:
    """What people call a store: the directory or the last part of the URL that it is, else what that stands in."""
    parts = Path(place.partition("://")[2] if is_url(place) else os.path.realpath(place)).parts
    return parts[-2] if len(parts) > 1 and parts[-1] == FOLDER else parts[-1]


def is_url(place: str) -> bool:
    return "://" in place


def _given(said: str) -> str:
    if is_url(said):
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
    if is_url(text):
        return text
    target = file.parent / Path(text).expanduser()
    if not (target / MARK).is_file():
        raise NoStore(f"{file} names {target}, where there is no store; correct it or run `cas init {target}`")
    return os.path.normpath(target)
