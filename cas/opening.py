"""Making a store and opening one."""

from __future__ import annotations

import os
from pathlib import Path

from . import identity, reserve
from .directfile import create_root
from .errors import Exists, Invalid, NotFound, Unsupported
from .local import LocalBackend
from .log import FOLDER as LOG
from .log import Log, encode_record, first_record, name_of
from .store import Store

StorePath = str | os.PathLike[str]
DEFAULT_BLOCK_SIZE = 4 << 20


def init(path: StorePath, block_size: int = DEFAULT_BLOCK_SIZE) -> Store:
    """Make a store; `Exists` if there is one."""
    made = identity.new_identity(block_size)
    folder = _local(path)
    create_root(folder)
    backend = LocalBackend(folder)
    if backend.exists(identity.NAME):
        raise Exists(f"{folder} is a store already; open it with cas.open")
    backend.check_links()
    try:
        backend.create(name_of(1), encode_record(first_record()))
    except Exists:
        Log(backend).read(1)  # left by an init that was cut off, or by one that races: it must verify, and stay
        backend.sync(LOG)
    backend.create(identity.NAME, identity.encode(made))
    reserve.restore(backend)
    return _open(folder)


def open_store(path: StorePath, create: bool = False) -> Store:
    """Open a store; with `create` make it where there is none."""
    folder = _local(path)
    if not (folder / identity.NAME).exists():
        if not create:
            raise NotFound(f"there is no store at {folder}; make one with `cas init` or cas.open(path, create=True)")
        try:
            return init(path)
        except Exists:
            pass  # another process made it meanwhile
    return _open(folder)


def _open(folder: Path) -> Store:
    return Store(LocalBackend(folder), folder / "index")


def _local(path: StorePath) -> Path:
    text = os.fsdecode(path)
    if not text:
        raise Invalid("the path of a store is empty; give a directory such as .cas")
    if "\0" in text:
        raise Invalid(f"{text!r} is no path of a directory: it holds a zero byte")
    if "://" in text:
        raise Unsupported(f"{text}: stores on remote storage are not in this release; give a local directory")
    return Path(text).expanduser().absolute()
