"""From the paths that a user names to what becomes one commit each: a file, a set of shards, or a directory.

A directory is one thing where it is a model's (config.json, an index of shards), a trainer's or a distributed
checkpoint, or is called after a step. Any other is a pile: each checkpoint in it is a thing of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cas.errors import Invalid, NotFound
from cas.files import KnownFile
from cas.identity import NAME
from cas.paths import is_file_name

from .output import clean
from .reading import CONTAINERS

DCP = ".metadata"
_MARKS = {"config.json", "adapter_config.json", "trainer_state.json", "model_index.json", DCP}
_INDEX = re.compile(r".+\.(safetensors|bin)\.index\.json")
_STEP_FOLDER = re.compile(r"(checkpoint|ckpt|step|global_step|iter|iteration|epoch)[-_=]?\d+")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.[a-z]+)")


@dataclass(frozen=True, slots=True)
class Item:
    """What becomes one commit. `files` by their names relative to `folder`; `label` is the path as people see it."""

    label: str
    folder: Path
    files: dict[str, KnownFile]
    is_folder: bool

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files.values())


@dataclass(slots=True)
class Scan:
    """What was found below some paths. `skipped` are files and directories that are no checkpoints."""

    follow: bool
    items: list[Item] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def add(self, path: Path) -> None:
        """Take in a path that the user named."""
        if path.is_dir():
            self._pile(path, Path(os.path.realpath(path)))
        elif path.exists():
            self._single(path, path.parent, [path.name])
        else:
            raise NotFound(f"{path} is not there; name files or directories to commit")

    def _pile(self, top: Path, base: Path) -> None:
        todo = [top]
        while todo:
            folder = todo.pop()
            if self._is_known(folder):
                continue
            names, folders = self._listed(folder, base)
            if _is_one(folder, names):
                todo += self._whole(folder, names, folders, base)
                continue
            containers = [name for name in names if name.lower().endswith(CONTAINERS)]
            self.skipped += [str(folder / name) for name in names if name not in containers]
            for label, group in grouped(containers).items():
                self._single(folder / label, folder, group)
            todo += [folder / name for name in reversed(folders)]

    def _whole(self, folder: Path, names: list[str], folders: list[str], base: Path) -> list[Path]:
        """Take a directory as one item; returns the directories below that are items of their own."""
        held, apart = list(names), []
        todo = folders[::-1]
        while todo:
            below = todo.pop()
            if self._is_known(folder / below):
                continue
            inner, deeper = self._listed(folder / below, base)
            if _STEP_FOLDER.fullmatch(Path(below).name) and "/" not in below and _has_checkpoint(inner, deeper):
                self._seen.discard(os.path.realpath(folder / below))
                apart.append(folder / below)
                continue
            held += [f"{below}/{name}" for name in inner]
            todo += [f"{below}/{name}" for name in reversed(deeper)]
        self._add(folder, folder, held, is_folder=True)
        return apart[::-1]

    def _single(self, path: Path, folder: Path, names: list[str]) -> None:
        """Take files that are one item; not again those that were met by another name."""
        if not self._is_known(folder / names[0]):
            self._add(path, folder, names, is_folder=False)

    def _add(self, path: Path, folder: Path, names: Iterable[str], is_folder: bool) -> None:
        for name in names:
            if not is_file_name(name):
                raise Invalid(f"{folder / name} has a name that no store takes; rename it")
        files = {name: KnownFile.at(folder / name) for name in names}
        self.items.append(Item(clean(path), folder, files, is_folder))

    def _is_known(self, path: Path) -> bool:
        """Whether it was met before, by another name or in a loop of links."""
        real = os.path.realpath(path)
        known = real in self._seen
        self._seen.add(real)
        return known

    def _listed(self, folder: Path, base: Path) -> tuple[list[str], list[str]]:
        """Names of the files and of the directories to look into, sorted, links last."""
        names, folders = [], []
        for entry in sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), natural(entry.name))):
            if entry.is_symlink() and not os.path.exists(entry):
                self._lead_nowhere(entry)
                continue
            self._check_link(entry, base)
            if entry.is_dir():
                hidden = entry.name.startswith(".") or os.path.exists(f"{entry.path}/{NAME}")
                (self.skipped.append(str(folder / entry.name)) if hidden else folders.append(entry.name))
            elif entry.is_file():
                names.append(entry.name)
            else:
                self.skipped.append(str(folder / entry.name))
        return names, folders

    def _lead_nowhere(self, entry: os.DirEntry[str]) -> None:
        """Leave out a link without an end, unless it is that of weights: without those a model would not be whole."""
        if entry.name.lower().endswith(CONTAINERS):
            raise Invalid(f"{entry.path} is a link that leads nowhere; bring back what it leads to, or remove it")
        self.skipped.append(str(Path(entry.path)))

    def _check_link(self, entry: os.DirEntry[str], base: Path) -> None:
        """A link may lead anywhere below the named path, and in a hub's cache to the blobs beside the snapshots."""
        if self.follow or not entry.is_symlink():
            return
        target = Path(os.path.realpath(entry.path))
        blobs = [base.parent.parent / "blobs"] if base.parent.name == "snapshots" else []
        if not any(target.is_relative_to(place) for place in (base, *blobs)):
            raise Invalid(f"{entry.path} is a link that leads out of {base}; pass --follow to read what it leads to")


def _is_one(folder: Path, names: Iterable[str]) -> bool:
    marked = any(name in _MARKS or _INDEX.fullmatch(name) for name in names)
    return marked or (_STEP_FOLDER.fullmatch(folder.name) is not None and _has_checkpoint(names, ()))


def _has_checkpoint(names: Iterable[str], folders: Iterable[str]) -> bool:
    return bool(list(folders)) or any(name in _MARKS or name.lower().endswith(CONTAINERS) for name in names)


def is_index(name: str) -> bool:
    """Whether a file says which shard holds which tensor."""
    return _INDEX.fullmatch(Path(name).name) is not None


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by what they are together: shards of one set under the name of the set, all others alone.

    `Invalid` if a shard is missing.
    """
    groups: dict[str, list[str]] = {}
    sets: dict[str, int] = {}
    for name in names:
        match = _SHARD.fullmatch(name)
        label = name if match is None else match[1] + match[4]
        groups.setdefault(label, []).append(name)
        if match is not None:
            sets[label] = max(sets.get(label, 0), int(match[3]))
    for label, count in sets.items():
        if len(groups[label]) < count:
            raise Invalid(f"{label} consists of {count} shards and {count - len(groups[label])} are missing; add them")
    return groups


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers in names by their value."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name) if part]


def scan(paths: Iterable[Path], follow: bool) -> Scan:
    """Everything below `paths`."""
    found = Scan(follow)
    for path in paths:
        found.add(path)
    return found
