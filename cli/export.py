"""`cas checkout`: weights out of a commit, as a directory that any framework reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import cas
from cas.commits import human_bytes
from cas.errors import Corrupt, NotFound

from . import model_config, places, shards
from .completion import complete_revision
from .conversion import TARGETS
from .exporting import FORMATS, Exported, Wanted, export, export_as_imported
from .options import example, json_option, with_store
from .output import clean, listed, plural, say, say_json


@click.command(
    short_help="Write weights to a directory.",
    epilog=example(
        "cas checkout",
        "cas checkout main@min:loss -o best/ --dtype bfloat16",
        "cas checkout v1 ema/model --rename module.= --force -o out",
        "cas checkout main --as-imported -o original/",
    ),
)
@click.argument("rev", required=False, shell_complete=complete_revision)
@click.argument("prefix", required=False)
@click.option("-o", "--out", metavar="DIR", help="The directory. Else <branch or id>-step<N>.")
@click.option("--all", "take_all", is_flag=True, help="Every tensor, named by its path joined with dots.")
@click.option("--format", type=click.Choice(FORMATS), help="Files to write; safetensors if not given.")
@click.option("--dtype", type=click.Choice(TARGETS), help="Convert tensors of floating-point numbers to it.")
@click.option(
    "--max-shard-size", metavar="SIZE", help=f"Cut larger files: 500MB, 2GiB; default {shards.DEFAULT_LIMIT}."
)
@click.option("--rename", "renames", multiple=True, metavar="OLD=NEW", help="Put NEW for OLD at the start of names.")
@click.option("--as-imported", is_flag=True, help="The very files that the commit was imported from, and no others.")
@click.option("--heal-from", metavar="STORE", help="What is missing or bad comes from this remote, URL or path.")
@click.option("--force", is_flag=True, help="Write into a directory that is not empty; its other files stay.")
@json_option
@with_store
def checkout(
    store: cas.Store,
    rev: str | None,
    prefix: str | None,
    out: str | None,
    take_all: bool,
    format: str | None,
    dtype: str | None,
    max_shard_size: str | None,
    renames: tuple[str, ...],
    as_imported: bool,
    heal_from: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write the weights of REV and the commit's side files to a new directory.

    The weights are the tensors below PREFIX, a path as `cas show` prints it. Without PREFIX they are the one subtree
    at the top called model, module, model_state_dict or state_dict, or the whole state where it is flat. Names lose
    the prefix. What is left out is listed.

    Of tied tensors one is written, and the others are made of it on load. --format torch writes pytorch_model.bin and
    dcp a directory for torch.distributed.checkpoint; with --all both keep the state's form and its values. --dtype
    leaves float8 and whole numbers as they are, and sets the dtype in config.json. --rename takes the first rule that
    fits a name. --as-imported gives files back byte for byte. With --heal-from what the commit lacks or has damaged is
    brought into this store first; `cas fsck --repair` then drops what is bad.

    JSON, one object: out, id, format (null as imported), tensors, tied (a name to the one it is tied to), dtype,
    converted (tensors), infinite (numbers that became so), files (bytes by name), left_out (of each path, kind,
    bytes), taken_apart (path to type of sparse, quantised and wrapper tensors, which are written as their parts),
    imported (files that came in with the commit).
    """
    if as_imported and (prefix is not None or take_all or format or dtype or max_shard_size or renames):
        raise _usage("--as-imported gives back files as they were: it goes with REV, -o, --force and --json only")
    _check_all(take_all, prefix, format, renames)

    def written() -> Exported:
        commit = store.resolve(rev)
        leaves = store.leaves(commit.id)
        target = _default(store, rev, commit) if out is None else _given(out)
        if as_imported:
            return export_as_imported(commit, leaves, Wanted(target, force=force))
        limit = shards.parse_size(max_shard_size or shards.DEFAULT_LIMIT)
        wanted = Wanted(target, prefix, take_all, format or FORMATS[0], dtype, limit, renames, force)
        return export(commit, leaves, wanted)

    done = written() if heal_from is None else _healing(store, rev, heal_from, written)
    if as_json:
        say_json(_record(done, as_imported))
    else:
        (_report_imported if as_imported else _report)(done)


def _check_all(take_all: bool, prefix: str | None, format: str | None, renames: tuple[str, ...]) -> None:
    """Refuse what contradicts --all."""
    if prefix is not None and take_all:
        raise _usage("--all takes the whole state, so it goes without PREFIX")
    if take_all and renames and format in ("torch", "dcp"):
        raise _usage(f"--rename goes with names, and --format {format} --all keeps the state's form")


def _healing(store: cas.Store, rev: str | None, source: str, work: Callable[[], Exported]) -> Exported:
    """What `work` gives, done again where it met damage and the other store was asked for what is bad."""
    try:
        return work()
    except (NotFound, Corrupt):
        store.heal(rev, places.other(source, store.remotes()) or source)
    return work()


def _usage(text: str) -> click.UsageError:
    return click.UsageError(text, click.get_current_context())


def _given(out: str) -> Path:
    if not out:  # an unset variable of a shell; as a path it would be the current directory
        raise _usage("-o names no directory")
    return Path(out)


def _default(store: cas.Store, rev: str | None, commit: cas.Commit) -> Path:
    branches = store.refs()["branches"]
    if rev is None:
        rev = "main" if "main" in branches else next(iter(branches))
    name = rev.replace("/", "-") if rev in branches else commit.id[:8]
    return Path(name if commit.step is None else f"{name}-step{commit.step}")


def _record(done: Exported, as_imported: bool) -> dict[str, Any]:
    return {
        "out": str(done.wanted.out),
        "id": done.commit.id,
        "format": None if as_imported else done.wanted.format,
        "tensors": len(done.tensors),
        "tied": done.tied,
        "dtype": done.wanted.dtype,
        "converted": sum(weight.is_converted for weight in done.tensors),
        "infinite": done.infinite,
        "files": done.files,
        "left_out": [{"path": part.path, "kind": part.kind, "bytes": part.nbytes} for part in done.left_out],
        "taken_apart": done.taken_apart,
        "imported": done.imported,
    }


def _title(done: Exported) -> str:
    return done.commit.id[:8] + ("" if done.commit.step is None else f" step {done.commit.step}")


def _report_imported(done: Exported) -> None:
    said = f"{plural(len(done.files), 'file')}, {human_bytes(sum(done.files.values()))}, as imported"
    say(f"{_title(done)}: {said} in {clean(done.wanted.out)}")


def _report(done: Exported) -> None:
    size = human_bytes(sum(done.files[name] for name in done.weights))
    where = done.wanted.out / done.weights[0] if len(done.weights) == 1 else done.wanted.out
    came_in = f"; --as-imported returns the {plural(done.imported, 'file')} that came in" if done.imported else ""
    say(f"{_title(done)}: {plural(len(done.tensors), 'tensor')}, {size} in {clean(where)}{came_in}")
    if len(done.weights) > 1:
        say(f"files: {clean(listed(done.weights))}")
    others = [f"{name} ({human_bytes(size)})" for name, size in done.files.items() if name not in set(done.weights)]
    if others:
        say(f"side files: {clean(listed(others))}")
    if done.tied:
        say(f"tied, written once: {clean(listed([f'{alias} to {name}' for alias, name in done.tied.items()]))}")
    if done.wanted.dtype:
        _report_dtype(done, done.wanted.dtype)
    if done.taken_apart:
        said = [f"{path} ({kind})" for path, kind in done.taken_apart.items()]
        say(f"written as their parts: {clean(listed(said))}")
    _report_left_out(done)


def _report_dtype(done: Exported, dtype: str) -> None:
    others = Counter(weight.dtype for weight in done.tensors if weight.dtype != dtype)
    left = "".join(f"; {count} left as {name}" for name, count in others.items())
    say(f"converted to {dtype}: {plural(sum(weight.is_converted for weight in done.tensors), 'tensor')}{left}")
    if done.infinite:
        say(f"{plural(done.infinite, 'number')} too large for {dtype} became infinite")
    if done.config_changed:
        say(f"{model_config.NAME} names {dtype} now")


def _report_left_out(done: Exported) -> None:
    if not done.left_out:
        return
    parts = [f"{part.path} ({human_bytes(part.nbytes)})" if part.nbytes else part.path for part in done.left_out]
    values = all(part.kind not in ("tensor", "tensors") for part in done.left_out)
    hint = "" if values else " (--all takes every tensor)"
    say(f"left out{hint}: {clean(listed(parts))}")
