"""`cas commit`: existing checkpoints into the store, one commit each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from blake3 import blake3

import cas
from cas.commits import human_bytes
from cas.errors import Invalid
from cas.tensors import Composite, Tensor

from . import steps
from .assembling import Assembled, assemble
from .options import example, json_option, with_store
from .output import clean, listed, paint, plural, say, say_json
from .progress import Progress
from .scanning import Item, Scan, natural, scan

_STAMP = "imported"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user said of all commits to be made."""

    branch: str
    message: str | None
    step: int | None
    codec: Any


@click.command(
    short_help="Take in existing checkpoints.",
    epilog=example("cas commit model.safetensors", "cas commit runs/ --dry-run", "cas commit checkpoint-* -b lora"),
)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@click.option("-b", "--branch", default="main", show_default=True, help="The branch, made if need be.")
@click.option("-m", "--message", help="Else: import and the path.")
@click.option("--step", type=int, metavar="N", help="The step, of a single checkpoint. Else from names and contents.")
@click.option(
    "--codec",
    type=click.Choice(["auto", "raw", "zstd", "planes"]),
    default="auto",
    help="planes compresses floating point always, auto while the disk is behind.",
)
@click.option("--follow", is_flag=True, help="Read links that lead out of a PATH.")
@click.option("--dry-run", is_flag=True, help="Say what would be stored; store nothing.")
@json_option
@with_store
def commit(
    store: cas.Store,
    paths: tuple[str, ...],
    branch: str,
    message: str | None,
    step: int | None,
    codec: str,
    follow: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Store checkpoints that exist as files, in the order of their steps, one commit each.

    A PATH is a file (.pt, .pth, .bin, .ckpt, .safetensors, .gguf), a directory of Hugging Face, of a Trainer or of
    torch.distributed.checkpoint, or any directory with such files and directories in it. Nothing in a file is run: one
    that cannot be read safely is kept as bytes. `cas checkout --as-imported` gives the very files back. What is in
    the branch's history already is skipped.

    JSON, a line for each: path, status (committed, skipped, planned), id (null if planned), step, files, tensors, bytes
    (of the files), new and stored (bytes; null unless committed), notes.
    """
    if "" in paths:
        raise Invalid("a PATH is empty; name files or directories to commit")
    found = scan(map(Path, paths), follow)
    if not found.items:
        raise Invalid(f"there are no checkpoints in {listed(paths)}; name a file to keep it as is")
    if step is not None and len(found.items) > 1:
        raise Invalid(f"--step is for a single checkpoint, and {len(found.items)} were found")
    wanted = Wanted(branch, message, step, codec)
    done = []
    for result in _results(store, found, wanted, dry_run):
        done.append(result)
        (say_json(_record(result)) if as_json else _say(result))
    if not as_json:
        _summary(found, done)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one item. `held` is None for one whose commit was known before it was read."""

    item: Item
    status: str
    held: Assembled | None
    commit: cas.Commit | None


def _results(store: cas.Store, found: Scan, wanted: Wanted, dry_run: bool) -> Iterator[Result]:
    known = _known(store, wanted.branch)
    items = sorted(found.items, key=lambda item: _order(item, known)) if len(found.items) > 1 else found.items
    for item in items:
        before = known.get(_stamp(item))
        if before is not None:
            yield Result(item, "skipped", None, before)
        elif dry_run:
            yield Result(item, "planned", assemble(item), None)
        else:
            yield _committed(store, item, wanted)


def _known(store: cas.Store, branch: str) -> dict[str, cas.Commit]:
    """The commits of the branch that were imported, by the stamp of what they came from."""
    if branch not in store.refs()["branches"]:
        return {}
    imported = ((commit, commit.meta.get(_STAMP)) for commit in store.log(branch))
    return {held["stamp"]: commit for commit, held in imported if isinstance(held, dict) and "stamp" in held}


def _stamp(item: Item) -> str:
    """Equal as long as names, sizes and times of change of an item's files are."""
    files = [[name, file.nbytes, file.changed] for name, file in item.files.items()]
    return blake3(json.dumps(files).encode()).hexdigest()[:32]


def _order(item: Item, known: dict[str, cas.Commit]) -> tuple[Any, ...]:
    """By step, then by epoch; what has neither comes last, by name. What is known is not read again."""
    step, epoch = steps.from_name(item.label), steps.epoch_from_name(item.label)
    if step is None:
        before = known.get(_stamp(item))
        step = assemble(item).step if before is None else before.step
    last = max(file.changed for file in item.files.values())
    return step is None and epoch is None, step is None, step or 0, epoch or 0, natural(item.label), last


def _committed(store: cas.Store, item: Item, wanted: Wanted) -> Result:
    held = assemble(item)
    exists = wanted.branch in store.refs()["branches"]
    with Progress(item.nbytes, "commit") as progress:
        commit = store.commit(
            held.state,
            branch=wanted.branch,
            parent=wanted.branch if exists else None,
            step=held.step if wanted.step is None else wanted.step,
            metrics=held.metrics,
            message=wanted.message or f"import {item.label}",
            meta={_STAMP: {"from": item.label, "stamp": _stamp(item)}},
            files=held.files,
            origin=held.origin,
            codec=wanted.codec,
            unless_in=wanted.branch if exists else None,
            progress=progress.advance,
        )
    return Result(item, "skipped" if commit.stats is None else "committed", held, commit)


def _record(result: Result) -> dict[str, Any]:
    commit, held, is_new = result.commit, result.held, result.status == "committed"
    return {
        "path": result.item.label,
        "status": result.status,
        "id": commit.id if commit else None,
        "step": commit.step if commit else held.step if held else None,
        "files": len(result.item.files),
        "tensors": _tensors(held.state) if held else None,
        "bytes": result.item.nbytes,
        "new": commit.new if commit and is_new else None,
        "stored": commit.stored if commit and is_new else None,
        "notes": held.notes if held else [],
    }


def _tensors(state: Any) -> int:
    if isinstance(state, dict):
        return sum(map(_tensors, state.values()))
    if isinstance(state, list | tuple):
        return sum(map(_tensors, state))
    return int(isinstance(state, Tensor | Composite))


def _say(result: Result) -> None:
    item, commit, held = result.item, result.commit, result.held
    if result.status == "skipped" and commit is not None:
        say(paint(f"{commit.id[:8]} {clean(item.label)}: in already", "dim"))
        return
    step = held.step if held else None
    where = "would store" if commit is None else commit.id[:8]
    said = f"{paint(where, 'yellow')}{'' if step is None else f' step {step}'} {clean(item.label)}"
    size = f"{human_bytes(item.nbytes)} in {plural(len(item.files), 'file')}"
    if commit is None:
        say(f"{said}: {size}, {plural(_tensors(held.state) if held else 0, 'tensor')}")
    else:
        say(f"{said}: {size}, {human_bytes(commit.new)} new, {human_bytes(commit.stored)} stored")
    for note in held.notes if held else []:
        say(f"    {clean(note)}")


def _summary(found: Scan, done: list[Result]) -> None:
    if found.skipped:
        say(paint(f"left out, no checkpoints: {clean(listed(sorted(found.skipped), 4))}", "dim"))
    came = [result for result in done if result.status != "skipped"]
    nbytes, files = sum(result.item.nbytes for result in came), sum(len(result.item.files) for result in came)
    said = f"{plural(len(came), 'checkpoint')}, {human_bytes(nbytes)} in {plural(files, 'file')}"
    if any(result.status == "planned" for result in came):
        say(f"{said}; nothing was stored")
    elif len(done) > 1:
        stored = sum(result.commit.stored for result in came if result.commit)
        already = f"; {len(done) - len(came)} were in already" if len(came) < len(done) else ""
        say(f"{said}, stored in {human_bytes(stored)}{already}; `cas stats` shows what the whole store takes")
