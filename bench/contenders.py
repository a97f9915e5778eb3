"""Who is measured: cas with each codec, and what people use, every one made durable.

A contender keeps what it saves in a folder of its own. When `save` returns, every file that it wrote and every
directory that names one has been fsynced.
"""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

import cas
from cas.codecs import CodecName
from cas.paths import format_path

from .trees import Path as TreePath
from .trees import State, copy_into, empty_like, leaves, touch

Wait = Callable[[], object]
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)  # as meant


class Contender(ABC):
    """One way to keep a state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def clear(self) -> None:
        """Remove all that was saved."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def make_room(self) -> None:
        """Before another save: what keeps one file for a state removes the last one."""
        self.clear()

    def close(self) -> None:
        """Give back what is held open or kept in memory."""
        return

    @abstractmethod
    def save(self, state: State) -> None:
        """Make the state durable."""

    def save_async(self, state: State) -> Wait:
        """Return once the state may change again; the result waits until it is durable."""
        raise NotImplementedError(f"{type(self).__name__} saves nothing in the background")

    @abstractmethod
    def load(self) -> Any:
        """The whole state, in memory."""

    def load_into(self, state: State) -> None:
        """Fill the state's tensors in place."""
        copy_into(state, self.load())

    @abstractmethod
    def load_one(self, path: TreePath) -> Tensor:
        """One tensor in memory of its own."""


class Cas(Contender):
    """A store that stays open between commits, with everything verified when it is loaded."""

    def __init__(self, codec: CodecName, folder: Path) -> None:
        super().__init__(folder)
        self.codec = codec
        self._opened: cas.Store | None = None

    def open(self) -> cas.Store:
        if self._opened is None:
            self._opened = cas.open(self.folder, create=True)
        return self._opened

    def clear(self) -> None:
        super().clear()
        self.open()  # a new store, made before the clock starts

    def make_room(self) -> None:
        """A store keeps what it has."""

    def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def save(self, state: State) -> None:
        self.open().commit(state, codec=self.codec)

    def save_async(self, state: State) -> Wait:
        return self.open().commit_async(state, codec=self.codec).wait

    def load(self) -> Any:
        return self.open().load("main")

    def load_into(self, state: State) -> None:
        self.open().load("main", into=state)

    def load_one(self, path: TreePath) -> Tensor:
        pattern = format_path(path)
        return next(tensor for _, tensor in leaves(self.open().load("main", only=pattern)))


class TorchSave(Contender):
    """torch.save and fsync. In the background: the state copied to memory that is kept, then saved by a thread."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "saved.pt"
        self._copy: State | None = None

    def close(self) -> None:
        self._copy = None

    def make_room(self) -> None:
        self.path.unlink(missing_ok=True)

    def save(self, state: State) -> None:
        with open(self.path, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        sync(self.folder)

    def save_async(self, state: State) -> Wait:
        copy = self._copy = self._copy or empty_like(state)
        copy_into(copy, state)
        thread = threading.Thread(target=self.save, args=(copy,))
        thread.start()
        return thread.join

    def load(self) -> Any:
        return torch.load(self.path)

    def load_into(self, state: State) -> None:
        copy_into(state, torch.load(self.path, mmap=True))

    def load_one(self, path: TreePath) -> Tensor:
        node = torch.load(self.path, mmap=True)
        for key in path:
            node = node[key]
        result: Tensor = node.clone()
        return result


class Safetensors(Contender):
    """save_file and fsync, the tensors under their joined paths. Its load maps the file, so every page is touched."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "saved.safetensors"

    def save(self, state: State) -> None:
        save_file({"/".join(path): tensor for path, tensor in leaves(state)}, self.path)
        sync(self.path)
        sync(self.folder)

    def load(self) -> Any:
        found = load_file(self.path)
        touch(found)
        return found

    def load_into(self, state: State) -> None:
        found = load_file(self.path)
        for path, tensor in leaves(state):
            tensor.copy_(found["/".join(path)])

    def load_one(self, path: TreePath) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            result: Tensor = file.get_tensor("/".join(path)).clone()
        return result


class Dcp(Contender):
    """torch.distributed.checkpoint in one process, with the settings that it comes with, which fsync its files."""

    def save(self, state: State) -> None:
        save(state, storage_writer=FileSystemWriter(self.folder), no_dist=True)
        self._sync()

    def save_async(self, state: State) -> Wait:
        saving: Any = async_save(state, storage_writer=FileSystemWriter(self.folder), no_dist=True)

        def wait() -> None:
            saving.result()
            self._sync()

        return wait

    def _sync(self) -> None:
        sync(self.folder)
        sync(self.folder.parent)

    def load(self) -> Any:
        held = FileSystemReader(self.folder).read_metadata().state_dict_metadata
        state = {
            name: torch.empty(item.size, dtype=item.properties.dtype)
            for name, item in held.items()
            if isinstance(item, TensorStorageMetadata)
        }
        self.load_into(state)
        return state

    def load_into(self, state: Mapping[str, Any]) -> None:
        load(dict(state), storage_reader=FileSystemReader(self.folder), no_dist=True)

    def load_one(self, path: TreePath) -> Tensor:
        name = ".".join(path)
        held = FileSystemReader(self.folder).read_metadata().state_dict_metadata[name]
        assert isinstance(held, TensorStorageMetadata)
        result = torch.empty(held.size, dtype=held.properties.dtype)
        self.load_into({name: result})
        return result


def sync(path: Path) -> None:
    """fsync of a file or a directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


BASELINE = "torch.save"
CONTENDERS: dict[str, Callable[[Path], Contender]] = {
    "cas auto": partial(Cas, "auto"),
    "cas raw": partial(Cas, "raw"),
    "cas planes": partial(Cas, "planes"),
    BASELINE: TorchSave,
    "safetensors": Safetensors,
    "DCP": Dcp,
}


def contender(name: str, parent: Path) -> Contender:
    """A contender by its name, in its own folder under `parent`."""
    return CONTENDERS[name](parent / name.replace(" ", "-").replace(".", "-"))
