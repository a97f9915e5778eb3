"""Making a store of another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import identity
from .errors import Exists
from .opened import Opened
from .opening import StorePath, folder_of, init, open_store
from .others import Place, place_of
from .refs import RefKind
from .refspecs import cloned
from .remotes import ORIGIN, Remote, kept_options, remotes_of
from .store import Store
from .sync import Synced
from .synchronised import quiet, scope_of
from .transfer import Progress
from .urls import is_url

_FROM_AN_INIT = {"log", "reserve", "tmp"}
"""What an `init` that was cut off may have left."""


def clone(
    url: Place,
    path: Place,
    *names: str,
    only: str | Sequence[str] | None = None,
    depth: int | None = None,
    limit_rate: float | None = None,
    storage_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
    cache: StorePath | None = None,
    progress: Progress = quiet,
) -> Store:
    """Make a store at `path` that has the branches and tags of the one at `url`, all or those named, and knows it as
    the remote `origin`.

    What was cut off goes on when it is called again. For the options see `Store`: `only` is kept with `origin` for what
    is fetched later; `storage_options` are for `url`, and kept as well where they are no secret, `target_options` for
    `path` where that is a URL.
    """
    limits: dict[str, Any] = {"only": only, "depth": depth, "limit_rate": limit_rate, "progress": progress}
    options: dict[str, Any] = {"storage_options": storage_options, "target_options": target_options, "cache": cache}
    return clone_and_tell(url, path, *names, **limits, **options)[0]


def clone_and_tell(
    url: Place,
    path: Place,
    *names: str,
    only: str | Sequence[str] | None = None,
    depth: int | None = None,
    limit_rate: float | None = None,
    storage_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
    cache: StorePath | None = None,
    progress: Progress = quiet,
) -> tuple[Store, Synced]:
    """As `clone`, and what it took."""
    scope, options = scope_of(only, depth), kept_options(storage_options or {})
    origin = Remote(ORIGIN, place_of(url), options, scope.only or ())
    with Opened.at(origin.url, storage_options, folder_of(cache)) as other:
        cloned(names, ORIGIN, other._roots.current())  # a name that is not there makes no store
        store = _made(path, other.identity.block_size, origin, {"storage_options": target_options, "cache": cache})
        try:
            return store, store._fetch(origin, other, names, scope, limit_rate, progress, cloned)
        except BaseException:
            store.close()
            raise


def _made(path: Place, block_size: int, origin: Remote, options: dict[str, Any]) -> Store:
    """A new store that knows the remote, or one that an earlier run has left without branches."""
    _check_room(path)
    try:
        store = init(path, block_size, **options)
    except Exists:
        store = open_store(path, **options)
    try:
        root = store._roots.current()
        known = remotes_of(root).get(ORIGIN)
        if any(kind is RefKind.BRANCH for kind, _ in root.refs) or (known is not None and known.url != origin.url):
            raise Exists(f"{store.url} is a store already; pull into it, or clone to another place")
        if known is not None and known != origin:
            store.remove_remote(ORIGIN)
        if known != origin:
            store.add_remote(ORIGIN, origin.url, only=origin.only or None, **origin.options)
        return store
    except BaseException:
        store.close()
        raise


def _check_room(path: Place) -> None:
    """`Exists` where a directory holds what belongs to no store."""
    folder = Path(place_of(path))
    if is_url(str(path)) or not folder.is_dir() or (folder / identity.NAME).exists():
        return
    foreign = sorted(file.name for file in folder.iterdir() if file.name not in _FROM_AN_INIT)
    if foreign:
        raise Exists(f"{folder} is no store and holds {foreign[0]!r}: clone to a new or an empty directory")
