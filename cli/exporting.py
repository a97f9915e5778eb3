"""What `cas checkout` does once it knows what is wanted: plan all files, then write them into a new directory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cas
from cas.errors import Exists, Invalid, Unsupported
from cas.identity import NAME
from cas.leaves import Leaves, StoredFile, TensorLeaf
from cas.paths import Path as StatePath

from . import model_config, shards, to_safetensors
from .contents import Contents
from .folder import NewFolder
from .output import plural
from .planned import PlannedFile, check_names, small_file
from .progress import Progress
from .selection import LeftOut, absent_below, scope, select
from .weights import Weight, renamed, ties, weights_of

FORMATS = ("safetensors", "torch", "dcp")


@dataclass(frozen=True, slots=True)
class Wanted:
    """`prefix` is a path as text, `limit` the bytes of a shard, `renames` are OLD=NEW."""

    out: Path
    prefix: str | None = None
    take_all: bool = False
    format: str = "safetensors"
    dtype: str | None = None
    limit: int = shards.parse_size(shards.DEFAULT_LIMIT)
    renames: Sequence[str] = ()
    force: bool = False

    @property
    def is_nested(self) -> bool:
        """Whether the state keeps its form, values and all."""
        return self.take_all and self.format != "safetensors"


@dataclass(slots=True)
class Exported:
    """What was written: `files` are sizes in bytes by name, `weights` the names of those that hold tensors.

    `infinite` numbers were finite before they were converted. `imported` files came in with the commit.
    """

    commit: cas.Commit
    wanted: Wanted
    tensors: list[Weight] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    weights: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    taken_apart: dict[str, str] = field(default_factory=dict)
    infinite: int = 0
    config_changed: bool = False
    imported: int = 0

    @property
    def tied(self) -> dict[str, str]:
        return ties(self.tensors)


def export(commit: cas.Commit, leaves: Leaves, wanted: Wanted) -> Exported:
    """Write weights and side files."""
    _check_place(wanted.out)
    done = Exported(commit, wanted)
    came_in = leaves.origin() if leaves.has_origin() else []
    done.imported = len(came_in) + len(commit.files) if came_in else 0
    held = list(leaves)
    if came_in and not any(isinstance(leaf, TensorLeaf) for leaf in held):
        what = f"the commit holds no tensors, only the {plural(done.imported, 'file')} that came in"
        raise Invalid(f"{what}; --as-imported returns them")
    prefix = scope(held, None if wanted.prefix is None else leaves.find(wanted.prefix), wanted.take_all)
    for path in absent_below(held, prefix):
        raise leaves.lacking(path)
    chosen = select(held, prefix)
    named = renamed(chosen.tensors, wanted.renames)
    done.tensors = weights_of(named, wanted.dtype)
    done.left_out = [] if wanted.is_nested else chosen.left_out
    done.taken_apart = chosen.taken_apart
    side = leaves.files()
    total = sum(weight.leaf.nbytes for weight in done.tensors) + sum(file.nbytes for file in side)
    with Progress(total, "checkout") as progress:
        contents = Contents(leaves, progress)
        planned = _planned(contents, done, {name: leaf.path for name, leaf in named.items()})
        done.weights = [file.name for file in planned]
        check_names(done.weights, [file.name for file in side])
        _write([*(_side_file(file, contents, done) for file in side), *planned], done)
        done.infinite = contents.infinite
    return done


def export_as_imported(commit: cas.Commit, leaves: Leaves, wanted: Wanted) -> Exported:
    """Write the files that the commit was imported from, byte for byte."""
    _check_place(wanted.out)
    origin = leaves.origin()
    if not origin:
        raise Invalid(f"commit {commit.id[:8]} was not imported from files; check it out without --as-imported")
    files = [*leaves.files(), *origin]
    check_names([], [file.name for file in files])
    done = Exported(commit, wanted, imported=len(files))
    with Progress(sum(file.nbytes for file in files), "checkout") as progress:
        contents = Contents(leaves, progress)
        _write([PlannedFile(file.name, partial(contents.copy, file.parts)) for file in files], done)
    return done


def _planned(contents: Contents, done: Exported, paths: Mapping[str, StatePath]) -> list[PlannedFile]:
    """The files that hold the tensors, an index or metadata over several of them last."""
    tensors, wanted = done.tensors, done.wanted
    if wanted.format == "safetensors":
        return to_safetensors.plan(tensors, wanted.limit, contents)
    try:
        from . import to_dcp, to_torch, torch_state
    except ImportError as error:
        what = f"--format {wanted.format} needs torch; run: pip install 'cas-checkpoints[torch]'"
        raise Unsupported(f"{what} ({error})") from error
    if wanted.is_nested:
        state = torch_state.nested(contents.leaves, tensors, paths)
    else:
        state = torch_state.flat(tensors)
    if wanted.format == "dcp":
        return to_dcp.plan(state, tensors, wanted.limit, contents)
    if wanted.is_nested:
        return [to_torch.plan_state("pytorch_model.bin", state, contents)]
    return to_torch.plan(tensors, wanted.limit, contents)


def _side_file(file: StoredFile, contents: Contents, done: Exported) -> PlannedFile:
    """The file as it is; a config of the model with the dtype that its weights get."""
    dtype = done.wanted.dtype
    if dtype is not None and file.name == model_config.NAME and file.nbytes <= model_config.MAX_SIZE:
        changed = model_config.with_dtype(b"".join(map(bytes, contents.leaves.stream(file.parts))), dtype)
        if changed is not None:
            done.config_changed = True
            return small_file(file.name, changed)
    return PlannedFile(file.name, partial(contents.copy, file.parts))


def _check_place(out: Path) -> None:
    real = Path(os.path.realpath(out))
    if any((folder / NAME).exists() for folder in (real, *real.parents)):
        raise Invalid(f"{out} lies inside a store; name a directory outside of it with -o")


def _write(planned: Sequence[PlannedFile], done: Exported) -> None:
    out = done.wanted.out
    names = {file.name for file in planned}
    folder = NewFolder(out, done.wanted.force)
    stale = sorted(name for name in folder.held - names if shards.is_weights(name))
    if stale and any(map(shards.is_weights, names)):
        what = f"{out} holds {stale[0]}, which loaders would take for a part of these weights"
        raise Exists(f"{what}; remove it, or name another directory with -o")
    with folder:
        for file in planned:
            with folder.create(file.name) as new:
                file.write(new)
            done.files[file.name] = new.nbytes
