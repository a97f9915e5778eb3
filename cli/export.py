"""`cas checkout`: weights out of a commit, as a directory that any framework reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import cas
from cas.commits import human_bytes
from cas.errors import Invalid
from cas.identity import NAME
from cas.leaves import Leaves

from . import safetensors
from .folder import NewFolder
from .options import example, json_option, with_store
from .output import clean, listed, plural, say, say_json
from .selection import LeftOut, Selection, select

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. `files` are sizes in bytes by name, the weights among them."""

    out: Path
    commit: cas.Commit
    tensors: int
    files: dict[str, int]
    left_out: list[LeftOut]


@click.command(
    short_help="Write weights to a directory.",
    epilog=example("cas checkout", "cas checkout main@min:loss -o best/", "cas checkout v1 ema/model --force -o out"),
)
@click.argument("rev", required=False)
@click.argument("prefix", required=False)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The directory. Else <branch or id>-step<N>.")
@click.option("--all", "take_all", is_flag=True, help="Every tensor of the state, named by its path joined with dots.")
@click.option("--force", is_flag=True, help="Write into a directory that is not empty; its other files stay.")
@json_option
@with_store
def checkout(
    store: cas.Store,
    rev: str | None,
    prefix: str | None,
    out: Path | None,
    take_all: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write the weights of REV to model.safetensors in a new directory, with the commit's side files.

    The weights are the tensors below PREFIX, a path as `cas show` prints it. Without PREFIX they are the one subtree
    at the top called model, module, model_state_dict or state_dict, or the whole state where it is flat. Names lose
    the prefix. What is left out is listed.

    JSON, one object: out, id, tensors, files (bytes by name), left_out (of each path, kind, bytes).
    """
    if prefix is not None and take_all:
        raise click.UsageError("--all takes the whole state, so it goes without PREFIX", click.get_current_context())
    commit = store.resolve(rev)
    leaves = store.leaves(commit.id)
    chosen = select(leaves, None if prefix is None else leaves.find(prefix), take_all)
    target = out if out is not None else Path(_default_name(store, rev, commit))
    done = _write(store, commit, leaves, chosen, target, force)
    if as_json:
        say_json(_record(done))
    else:
        _report(done, take_all, prefix)


def _default_name(store: cas.Store, rev: str | None, commit: cas.Commit) -> str:
    branches = store.refs()["branches"]
    if rev is None:
        rev = "main" if "main" in branches else next(iter(branches))
    name = rev.replace("/", "-") if rev in branches else commit.id[:8]
    return name if commit.step is None else f"{name}-step{commit.step}"


def _write(store: cas.Store, commit: cas.Commit, leaves: Leaves, chosen: Selection, out: Path, force: bool) -> Exported:
    if any((folder / NAME).exists() for folder in (out.absolute(), *out.absolute().parents)):
        raise Invalid(f"{out} lies inside a store; name a directory outside of it with -o")
    tensors = safetensors.ordered(chosen.tensors)
    header = safetensors.header(tensors)
    for name in commit.files:
        _check_name(name)
    sizes = {WEIGHTS: len(header) + sum(tensor.nbytes for tensor in tensors.values())}
    with NewFolder(out, force) as folder:
        folder.write(WEIGHTS, (piece for part in ([header], leaves.stream(tensors.values())) for piece in part))
        for name, data in store.files(commit.id).items():
            folder.write(name, [data])
            sizes[name] = len(data)
    return Exported(out, commit, len(tensors), sizes, chosen.left_out)


def _check_name(name: object) -> None:
    """A store may come from anyone: no side file gets out of the directory or takes the name of the weights."""
    parts = name.split("/") if isinstance(name, str) and name.isprintable() and "\\" not in name else [""]
    if any(part in ("", ".", "..") for part in parts):
        raise Invalid(f"the commit has a side file called {name!r}, which is no safe name; load the state instead")
    if parts[0] == WEIGHTS:
        raise Invalid(f"the commit has a side file called {name}, the name of the weights; load the state instead")


def _record(done: Exported) -> dict[str, Any]:
    return {
        "out": str(done.out),
        "id": done.commit.id,
        "tensors": done.tensors,
        "files": done.files,
        "left_out": [{"path": part.path, "kind": part.kind, "bytes": part.nbytes} for part in done.left_out],
    }


def _report(done: Exported, take_all: bool, prefix: str | None) -> None:
    step = "" if done.commit.step is None else f" step {done.commit.step}"
    said = f"{plural(done.tensors, 'tensor')}, {human_bytes(done.files[WEIGHTS])}"
    say(f"{done.commit.id[:8]}{step}: {said} in {clean(done.out / WEIGHTS)}")
    others = [f"{name} ({human_bytes(size)})" for name, size in done.files.items() if name != WEIGHTS]
    if others:
        say(f"side files: {clean(listed(others))}")
    if done.left_out:
        parts = [f"{part.path} ({human_bytes(part.nbytes)})" if part.nbytes else part.path for part in done.left_out]
        values = all(part.kind not in ("tensor", "tensors") for part in done.left_out)
        hint = "" if values else " (--all takes every tensor)"
        say(f"left out{hint}: {clean(listed(parts))}")
