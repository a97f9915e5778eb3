"""Other stores, as callers name them: a remote of this store, a path or URL, or a store that is open."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import identity
from .errors import CasError, Invalid
from .log import Record
from .opened import Opened
from .remotes import ORIGIN, Remote, find, remotes_of
from .urls import check_url, is_url

Place = str | os.PathLike[str]
"""The name of a remote, or a path or URL."""


@contextlib.contextmanager
def another(store: Opened, place: Place | Opened, options: Mapping[str, Any] | None) -> Iterator[Opened]:
    """The other store, open. One that the caller has opened stays so."""
    if isinstance(place, Opened):
        place._ready()
        yield place
        return
    remote = remote_at(store._roots.current(), place)
    try:
        other = Opened.at(remote.url, {**remote.options, **(options or {})}, store._cache)
    except OSError as error:
        raise CasError(f"the other store cannot be opened: {error}") from error
    with other:
        yield other


def remote_at(root: Record, place: Place | None) -> Remote:
    """The remote that a name means, None is `origin`; for a path or URL one without a name."""
    text = ORIGIN if place is None else os.fsdecode(place)
    if text in remotes_of(root):
        return find(root, text)
    if is_url(text) or "/" in text or text.startswith((".", "~")) or (Path(text) / identity.NAME).exists():
        return Remote("", place_of(text))
    return find(root, text)


def place_of(place: Place) -> str:
    """A path or URL as it is kept: paths absolute, and no URL with a password."""
    text = os.fsdecode(place)
    if is_url(text):
        check_url(text)
        return text
    if not text:
        raise Invalid("the path of a store is empty; give a directory or a URL")
    return str(Path(text).expanduser().absolute())
