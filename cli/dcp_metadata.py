"""What the `.metadata` of a distributed checkpoint says, checked: names, tensors, their chunks and where those lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cas.dtypes import DTYPES, DType
from cas.errors import CasError
from cas.files import FileRange, KnownFile
from cas.grid import Box, Shape, covers
from cas.nodes import MAX_DEPTH

from .incoming import Unreadable
from .pickles import Maker, Record, unpickle
from .torch_save import Size, size_of

MAX_METADATA = 128 << 20
_CHUNK_BYTES = 16  # that a chunk takes in the pickle at least: one that is named over and over is none
_DATA = "torch.distributed.checkpoint.metadata"
_SHARDED = "torch.distributed._shard.sharded_tensor.metadata"
_FILES = "torch.distributed.checkpoint.filesystem"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor and the boxes that tile it."""

    dtype: DType
    shape: Shape
    boxes: list[Box]


@dataclass(frozen=True, slots=True)
class Metadata:
    """`tensors` are None where a plain value is stored; `paths` are the places in the state that was flattened."""

    tensors: dict[str, TensorInfo | None]
    items: dict[tuple[str, Shape | None], FileRange]
    paths: dict[str, tuple[str | int, ...]]

    def item(self, name: str, start: Shape | None) -> FileRange:
        """Where the chunk of a tensor that begins at `start`, or a plain value, is stored."""
        found = self.items.get((name, start))
        if found is None:
            raise Unreadable(f"{name} is not in the files")
        return found


def read_metadata(file: KnownFile, files: Mapping[str, KnownFile]) -> Metadata:
    """`Unreadable` unless all of it is sound. `files` are those of the directory, by name."""
    if file.nbytes > MAX_METADATA:
        raise Unreadable(f"its metadata takes over {MAX_METADATA} bytes")
    found = _state(unpickle(file.read(0, file.nbytes), _TABLE), "Metadata")
    tensors = _mapping(found.get("state_dict_metadata"))
    items = _items(_mapping(found.get("storage_data")), files)
    budget = file.nbytes // _CHUNK_BYTES
    checked: dict[str, TensorInfo | None] = {}
    for name, entry in tensors.items():
        checked[_name(name)] = info = _tensor_info(name, entry, budget)
        budget -= len(info.boxes) if info else 0
    return Metadata(checked, items, _paths(found.get("planner_data"), checked))


def _damaged(what: str) -> Unreadable:
    return Unreadable(f"its metadata has {what} of another form than torch writes")


def _state(value: Any, kind: str) -> dict[Any, Any]:
    """The fields of an object of the class `kind`."""
    if type(value) is not Record or value.name != kind or type(value.state) is not dict:
        raise _damaged(f"a {kind}")
    return value.state


def _mapping(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise _damaged("a table")
    return value


def _name(value: Any) -> str:
    if type(value) is not str:
        raise _damaged("a name")
    return value


def _shape(value: Any) -> Shape:
    if type(value) is not Size:
        raise _damaged("a size")
    return tuple(value)


def _items(storage: dict[Any, Any], files: Mapping[str, KnownFile]) -> dict[tuple[str, Shape | None], FileRange]:
    found = {}
    for index, info in storage.items():
        key, place = _state(index, "MetadataIndex"), _state(info, "_StorageInfo")
        start = key.get("offset")
        found[_name(key.get("fqn")), None if start is None else _shape(start)] = _range(place, files)
    places = sorted(found.values(), key=lambda item: (item.file.path, item.start))
    for one, other in pairwise(places):
        if one.file is other.file and one.start + one.nbytes > other.start:
            raise Unreadable("two of its items overlap")
    return found


def _range(place: dict[Any, Any], files: Mapping[str, KnownFile]) -> FileRange:
    name, start, length = _name(place.get("relative_path")), place.get("offset"), place.get("length")
    if place.get("transform_descriptors"):
        raise Unreadable("its items are compressed by an extension of torch")
    if name not in files:
        raise Unreadable(f"it has an item in {name:.80}, which is not in the directory")
    if type(start) is not int or type(length) is not int or start < 0 or length < 1:
        raise _damaged("a range")
    if start + length > files[name].nbytes:
        raise Unreadable(f"it has an item beyond the end of {name}")
    return files[name].part(start, start + length)


def _tensor_info(name: str, entry: Any, budget: int) -> TensorInfo | None:
    if type(entry) is Record and entry.name == "BytesStorageMetadata":
        return None
    state = _state(entry, "TensorStorageMetadata")
    properties, chunks = state.get("properties"), state.get("chunks")
    if type(properties) is not Record or properties.name != "TensorProperties" or type(properties.state) is not tuple:
        raise _damaged("a tensor")
    if type(chunks) is not list or len(chunks) > budget or not properties.state:
        raise _damaged("a list of chunks")
    dtype, shape = properties.state[0], _shape(state.get("size"))
    if type(dtype) is not DType:
        raise _damaged("a dtype")
    boxes = [_box(_state(chunk, "ChunkStorageMetadata")) for chunk in chunks]
    try:
        for box in (Box.whole(shape), *boxes):
            box.check(shape, dtype.itemsize)
    except CasError as error:
        raise Unreadable(f"{name:.80} has an impossible shape or chunk") from error
    if not covers(shape, boxes):
        raise Unreadable(f"the chunks of {name:.80} do not make up the tensor")
    return TensorInfo(dtype, shape, boxes)


def _box(chunk: dict[Any, Any]) -> Box:
    return Box(_shape(chunk.get("offsets")), _shape(chunk.get("sizes")))


def _paths(planned: Any, tensors: Mapping[str, Any]) -> dict[str, tuple[str | int, ...]]:
    """Where the planner that flattened the state says each name was; none if it does not say so of all."""
    if not isinstance(planned, dict):
        return {}
    paths: dict[str, Any] = {name: planned.get(name) for name in tensors}
    return paths if all(map(_is_path, paths.values())) else {}


def _is_path(path: Any) -> bool:
    short = type(path) is tuple and 0 < len(path) < MAX_DEPTH
    return short and all(type(key) is str or (type(key) is int and 0 <= key < 2**32) for key in path)


# -- what the pickle names ------------------------------------------------------------------------------------------


def _record(name: str) -> Maker:
    """Of a class: an object whose state follows."""

    def make() -> Record:
        return Record(name)

    return Maker(make)


def _ignored(*_: Any) -> None:
    return None


_FORMAT = Maker(_ignored)
"""Of an enumeration of memory formats."""


def _member(kind: Any, name: Any) -> None:
    """How Python 3.11.0 to 3.11.3 pickle a member of an enumeration."""
    if kind is not _FORMAT or type(name) is not str:
        raise TypeError


_TABLE: dict[str, Any] = {
    **{
        f"{_DATA} {name}": _record(name)
        for name in (
            "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
            "TensorProperties", "StorageMeta",
        )
    },
    f"{_SHARDED} TensorProperties": _record("TensorProperties"),
    f"{_FILES} _StorageInfo": _record("_StorageInfo"),
    **{f"torch {name}": dtype for name, dtype in DTYPES.items()},
    "torch Size": Maker(size_of),
    f"{_DATA} _MEM_FORMAT_ENCODING": _FORMAT,
    f"{_SHARDED} MEM_FORMAT_ENCODING": _FORMAT,
    "builtins getattr": Maker(_member),
    "torch.serialization _get_layout": Maker(_ignored),
    "pathlib PosixPath": Maker(_ignored),
    "pathlib WindowsPath": Maker(_ignored),
    "pathlib._local PosixPath": Maker(_ignored),
    "pathlib._local WindowsPath": Maker(_ignored),
}  # fmt: skip
