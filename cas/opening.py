"""Making a store and opening one."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import identity, probe, reserve
from .backend import Backend
from .errors import Exists, NotFound
from .local import LocalBackend
from .log import FOLDER as LOG
from .log import Log, encode_record, first_record, name_of
from .store import Store
from .urls import backend_of

StorePath = str | os.PathLike[str]
DEFAULT_BLOCK_SIZE = 4 << 20
_log = logging.getLogger("cas")


def init(
    path: StorePath,
    block_size: int = DEFAULT_BLOCK_SIZE,
    *,
    storage_options: Mapping[str, Any] | None = None,
    cache: StorePath | None = None,
) -> Store:
    """Make a store; `Exists` if there is one. For the options see `cas.open`.

    Remote storage is tried out first: where it lets one writer overwrite what another created, the store is marked for
    one writer at a time, which is also logged as a warning.
    """
    made = identity.new_identity(block_size)
    backend = backend_of(os.fsdecode(path), storage_options, create=True)
    try:
        if backend.exists(identity.NAME):
            raise Exists(f"{backend.url} is a store already; open it with cas.open")
        backend.has_honest_create = _is_honest(backend)
        try:
            backend.create(name_of(1), encode_record(first_record(one_writer=not backend.has_honest_create)))
        except Exists:
            Log(backend).read(1)  # left by an init that was cut off, or by one that races: it must verify, and stay
            backend.sync(LOG)
        backend.create(identity.NAME, identity.encode(made))
        reserve.restore(backend)
        return Store(backend, folder_of(cache), options=storage_options)
    except BaseException:
        backend.close()
        raise


def open_store(
    path: StorePath,
    create: bool = False,
    *,
    storage_options: Mapping[str, Any] | None = None,
    cache: StorePath | None = None,
) -> Store:
    """Open the store at a path or URL; with `create` make it where there is none.

    A URL is one of fsspec: s3://bucket/run, sftp://host/path and so on. Credentials come from where fsspec and the
    storage's own tools have them, or in `storage_options`, which are passed to fsspec and kept nowhere. The index of a
    remote store, which saves requests and can be deleted at any time, stands in the folder `cache`, ~/.cache/cas.
    """
    try:
        return Store.at(path, storage_options, folder_of(cache))
    except NotFound:
        if not create:
            raise
    try:
        return init(path, storage_options=storage_options, cache=cache)
    except Exists:  # another process made it meanwhile, or it is damaged: that is said now
        return Store.at(path, storage_options, folder_of(cache))


def folder_of(cache: StorePath | None) -> Path | None:
    """The folder that `cache` names."""
    return None if cache is None else Path(os.fsdecode(cache)).expanduser().absolute()


def _is_honest(backend: Backend) -> bool:
    """Whether racing creates have one winner there."""
    if isinstance(backend, LocalBackend):
        backend.check_links()
        return True
    honest = probe.has_honest_create(backend)
    if not honest:
        _log.warning(
            "%s cannot create a file only if it is absent: let one process at a time write to this store", backend.url
        )
    return honest
