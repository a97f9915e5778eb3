"""From the files of one item to what is committed: a state, side files, and the files themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import PurePosixPath
from typing import Any

from cas.files import KnownFile

from . import steps
from .incoming import Parsed
from .reading import CONTAINERS, read_dcp_folder, read_file
from .scanning import DCP, Item, grouped, is_index

TRAINER_STATE = "trainer_state.json"
_MAX_TRAINER_STATE = 64 << 20
_MODEL = "model"
_WEIGHTS = ("model", "pytorch_model", "diffusion_pytorch_model", "adapter_model", "consolidated")
"""What a directory's weights are called, the first before the others."""


@dataclass(slots=True)
class Assembled:
    """All that one commit will hold. `files` are side files; `notes` say what could not be read, and why."""

    state: Any = field(default_factory=dict)
    files: dict[str, KnownFile] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def take(self, parsed: Parsed) -> Any:
        """Keep where a state came from, and return it."""
        self.origin.update(parsed.origin)
        self.notes += parsed.notes
        return parsed.state


def assemble(item: Item) -> Assembled:
    """Read what the item holds, without its tensors' bytes."""
    found = Assembled()
    if not item.is_folder:
        found.state = _set(found, item.files)
    else:
        _folder(found, item)
    found.step = found.step if found.step is not None else steps.from_name(item.label)
    found.step = found.step if found.step is not None else steps.from_state(found.state)
    return found


def _set(found: Assembled, files: dict[str, KnownFile]) -> Any:
    """The state of one file, or of the shards of one set together."""
    parts = {name: read_file(file, name) for name, file in files.items()}
    states = [found.take(part) for part in parts.values()]
    if len(states) == 1:
        return states[0]
    bad = next((name for name, part in parts.items() if part.notes or not isinstance(part.state, dict)), None)
    if bad is not None:  # a part of a model must not look like the whole
        found.notes.append(f"its other shards are kept as bytes too: {bad} cannot be taken in")
        return {}
    merged = {key: value for state in states for key, value in state.items()}
    if len(merged) < sum(map(len, states)):
        found.notes.append(f"{', '.join(parts)} are kept as bytes: a tensor is in several of them")
        return {}
    return merged


def _folder(found: Assembled, item: Item) -> None:
    dcp = {name.removesuffix(DCP) for name in item.files if PurePosixPath(name).name == DCP}
    rest: dict[str, list[str]] = {}
    for name, file in item.files.items():
        if _of_dcp(name, dcp):
            continue
        if name.lower().endswith(CONTAINERS):
            folder, _, _ = name.rpartition("/")
            rest.setdefault(folder, []).append(name)
        elif is_index(name):
            found.origin[name] = [file.whole()]
        else:
            found.files[name] = file
    for prefix in sorted(dcp):
        _distributed(found, item, prefix)
    for folder, names in rest.items():
        _containers(found, item, folder, names)
    if TRAINER_STATE in found.files:
        data = found.files[TRAINER_STATE].read(0, _MAX_TRAINER_STATE)
        found.step, found.metrics = steps.from_trainer(data)


def _distributed(found: Assembled, item: Item, prefix: str) -> None:
    """One distributed checkpoint, at the top or in a folder of its own."""
    files = {name.removeprefix(prefix): file for name, file in item.files.items() if _of_dcp(name, {prefix})}
    state = found.take(read_dcp_folder(files, prefix))
    if not prefix:
        found.state = state
        return
    if not state:
        return
    parents, _, name = prefix.rstrip("/").rpartition("/")
    is_model = name.startswith(_WEIGHTS)
    if is_model and list(state) == [_MODEL]:
        state = state[_MODEL]
    _put(found.state, parents, [_MODEL, name] if is_model else [name], state)


def _of_dcp(name: str, prefixes: set[str]) -> bool:
    """Whether a file belongs to a distributed checkpoint in one of the folders."""
    folder, slash, base = name.rpartition("/")
    return folder + slash in prefixes and (base == DCP or base.endswith(".distcp"))


def _containers(found: Assembled, item: Item, folder: str, names: list[str]) -> None:
    """The checkpoint files of one folder: its weights under `model`, others under their names."""
    groups = sorted(grouped(names).items(), key=lambda pair: _rank(pair[0]))
    for label, group in groups:
        state = _set(found, {name: item.files[name] for name in group})
        if state == {}:
            continue
        stem = PurePosixPath(label).stem
        weights = _rank(label) < len(_WEIGHTS) or len(groups) == 1
        keys = [_MODEL, stem] if weights else [stem]
        _put(found.state, folder, [*keys, PurePosixPath(label).name], state)


def _rank(label: str) -> int:
    """Which weights come first: by name, safetensors before others of the same name by the order of the names."""
    stem = PurePosixPath(label).stem
    return next((at for at, name in enumerate(_WEIGHTS) if stem == name or stem.startswith(f"{name}.")), len(_WEIGHTS))


def _put(state: Any, folder: str, keys: list[str], value: Any) -> None:
    """Set `value` below the levels of `folder`, under the first of `keys` that is free; the last one gets a number."""
    for level in PurePosixPath(folder).parts:
        free = next(key for key in _numbered([level]) if isinstance(state.setdefault(key, {}), dict))
        state = state[free]
    state[next(key for key in _numbered(keys) if key not in state)] = value


def _numbered(keys: list[str]) -> Iterator[str]:
    yield from keys
    yield from (f"{keys[-1]}.{number}" for number in count(2))
