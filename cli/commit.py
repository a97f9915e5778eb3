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
from cas.codecs import CODEC_NAMES, DELTA_CODECS, CodecName
from cas.commits import human_bytes
from cas.committing import DeltaName
from cas.errors import Invalid, NotFound
from cas.leaves import TensorLeaf
from cas.paths import Path as StatePath
from cas.tensors import Composite, Tensor

from . import steps
from .assembling import Assembled, assemble
from .completion import complete_revision
from .options import example, json_option, with_store
from .output import clean, listed, paint, plural, say, say_json
from .progress import Progress
from .scanning import Item, Scan, natural, scan

_STAMP = "imported"


@dataclass(frozen=True, slots=True)
class Foundation:
    """The commit that was named as a base: its id, and by path the dtype of each tensor and the shape of its rows."""

    rev: str
    id: str
    kinds: dict[StatePath, tuple[str, tuple[int, ...]]]

    def has(self, path: StatePath, tensor: Tensor | Composite) -> bool:
        return isinstance(tensor, Tensor) and self.kinds.get(path) == (tensor.dtype.name, tensor.shape[1:])


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user said of all commits to be made."""

    branch: str
    message: str | None
    step: int | None
    codec: CodecName
    delta: DeltaName
    base: Foundation | None


@click.command(
    short_help="Take in existing checkpoints.",
    epilog=example(
        "cas commit model.safetensors",
        "cas commit runs/ --dry-run",
        "cas commit checkpoint-* -b lora",
        "cas commit tuned/ -b tuned --base main",
    ),
)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@click.option("-b", "--branch", default="main", show_default=True, help="The branch, made if need be.")
@click.option("-m", "--message", help="Else: import and the path.")
@click.option("--step", type=int, metavar="N", help="The step, of a single checkpoint. Else from names and contents.")
@click.option(
    "--codec",
    type=click.Choice(CODEC_NAMES),
    default="auto",
    help="planes compresses floating point always, auto while the disk is behind.",
)
@click.option(
    "--delta/--no-delta",
    default=True,
    show_default=True,
    help="Store tensors as changes from the parent's where that is smaller; takes longer. Never with raw and zstd.",
)
@click.option(
    "--base",
    metavar="REV",
    shell_complete=complete_revision,
    help="Changes from REV's tensors where the parent has none: for a fine-tune its foundation model.",
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
    codec: CodecName,
    delta: bool,
    base: str | None,
    follow: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Store checkpoints that exist as files, in the order of their steps, one commit each.

    A PATH is a file (.pt, .pth, .bin, .ckpt, .safetensors, .gguf), a directory of Hugging Face, of a Trainer or of
    torch.distributed.checkpoint, or any directory with such files and directories in it. Nothing in a file is run: one
    that cannot be read safely is kept as bytes. `cas checkout --as-imported` gives the very files back. What is in
    the branch's history already is skipped.

    Tensors are stored as changes from those with the same path (see `cas show`), shape and dtype in the parent or in
    --base. A new branch without --base looks for a branch or tag whose tensors are alike.

    JSON, a line for each: path, status (committed, skipped, planned), id (null if planned), step, files, tensors, bytes
    (of the files), new and stored (bytes; null unless committed), notes.
    """
    if "" in paths:
        raise Invalid("a PATH is empty; name files or directories to commit")
    if base is not None and not (delta and codec in DELTA_CODECS):
        why = f"--codec {codec}" if delta else "--no-delta"
        raise click.UsageError(f"--base and {why} exclude each other", click.get_current_context())
    foundation = None if base is None else _foundation(store, base)
    found = scan(map(Path, paths), follow)
    if not found.items:
        raise Invalid(f"there are no checkpoints in {listed(paths)}; name a file to keep it as is")
    if step is not None and len(found.items) > 1:
        raise Invalid(f"--step is for a single checkpoint, and {len(found.items)} were found")
    wanted = Wanted(branch, message, step, codec, "parent" if delta else "none", foundation)
    done = []
    for result in _results(store, found, wanted, dry_run):
        done.append(result)
        (say_json(_record(result)) if as_json else _say(result))
    if not as_json:
        _summary(found, done)


def _foundation(store: cas.Store, rev: str) -> Foundation:
    """Named once for all commits: a branch may move on meanwhile."""
    commit = store.resolve(rev)
    if commit.pruned:
        raise NotFound(f"--base {rev} is commit {commit.id[:8]}, whose state was pruned; name one that is there")
    tensors = (leaf for leaf in store.leaves(commit.id) if isinstance(leaf, TensorLeaf))
    return Foundation(rev, commit.id, {leaf.path: (leaf.dtype, leaf.shape[1:]) for leaf in tensors})


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
            yield Result(item, "planned", _read(item, wanted.base), None)
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


def _read(item: Item, base: Foundation | None) -> Assembled:
    held = assemble(item)
    if base and not any(base.has(path, tensor) for path, tensor in _tensors(held.state)):
        held.notes.append(f"--base is of no use: no tensor has path, shape and dtype of one in {base.rev}")
    return held


def _committed(store: cas.Store, item: Item, wanted: Wanted) -> Result:
    held = _read(item, wanted.base)
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
            delta=wanted.delta,
            base=wanted.base.id if wanted.base else None,
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
        "tensors": _count(held.state) if held else None,
        "bytes": result.item.nbytes,
        "new": commit.new if commit and is_new else None,
        "stored": commit.stored if commit and is_new else None,
        "notes": held.notes if held else [],
    }


def _tensors(state: Any, path: StatePath = ()) -> Iterator[tuple[StatePath, Tensor | Composite]]:
    if isinstance(state, dict | list | tuple):
        for key, child in state.items() if isinstance(state, dict) else enumerate(state):
            yield from _tensors(child, (*path, key))
    elif isinstance(state, Tensor | Composite):
        yield path, state


def _count(state: Any) -> int:
    return sum(1 for _ in _tensors(state))


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
        say(f"{said}: {size}, {plural(_count(held.state) if held else 0, 'tensor')}")
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
