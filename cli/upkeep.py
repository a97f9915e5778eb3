"""`cas init`, `cas stats`."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path

import click

import cas
from cas.commits import human_bytes
from cas.errors import Invalid
from cas.local import LocalBackend
from cas.stats import CommitStats, PartStats

from . import places
from .completion import complete_revision
from .options import example, json_option, said, store_option
from .output import clean, plural, say, say_json, table

_SIZE = re.compile(r"(\d{1,12})\s*(|k|m)i?b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}


@click.command(short_help="Make a store.", epilog=example("cas init", "cas init /data/runs.cas --block-size 1MiB"))
@click.argument("path", required=False)
@click.option("--block-size", metavar="SIZE", help="Largest block, a power of two: 4MiB unless given.")
@store_option
def init(path: str | None, block_size: str | None, place: str | None) -> None:
    """Make a store at PATH, or .cas in the current directory."""
    where = path or said(place) or places.FOLDER
    sizes = {} if block_size is None else {"block_size": _bytes(block_size)}
    with cas.init(where, **sizes) as store:
        say(f"made an empty store at {clean(store.path)}")


def _bytes(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise Invalid(f"a block size is a number of bytes such as 4194304 or 4MiB, not {text!r}")
    return int(match.group(1)) * _UNITS[match.group(2).lower()]


@click.command(
    short_help="What the store, or one commit, holds and takes.",
    epilog=example("cas stats", "cas stats main", "cas stats main~1 --json"),
)
@click.argument("rev", required=False, shell_complete=complete_revision)
@json_option
@store_option
def stats(rev: str | None, as_json: bool, place: str | None) -> None:
    """What the store takes on disk and holds; with REV what that commit holds, and shares with its first parent.

    JSON, one object: path, disk (bytes of all files), files (bytes that the commits would take as files of their own),
    history (commits that branches and tags lead to), packs, commits, blocks, raw and stored (bytes of all distinct
    objects before and after compression), branches, tags, codecs (objects by how they are stored).

    JSON with REV, one object: id; whole and each of parts (the top of the state) with path, blocks, raw and stored
    (bytes of these, distinct), shared and shared_stored (blocks that the first parent needs, too, and their bytes).
    """
    with cas.open(places.find(said(place))) as store:
        held = store.stats() if rev is None else store.commit_stats(rev)
    if isinstance(held, CommitStats):
        _say_commit(held, as_json)
        return
    # Taken anew: while the index is open, it lacks the file that says that it was closed.
    held = replace(held, disk=sum(info.size for info in LocalBackend(store.path).list("")))
    if as_json:
        say_json({"path": str(Path(store.path)), **asdict(held)})
    else:
        _say_store(held)


def _say_store(held: cas.StoreStats) -> None:
    ratio = f"{held.stored / held.raw:.3f} of raw" if held.raw else ""
    times = f", {held.files / held.disk:.2f} times what the store takes" if held.files else ""
    rows = [
        ("disk", human_bytes(held.disk), f"all files: {held.disk:,} bytes"),
        ("files", human_bytes(held.files), f"{plural(held.history, 'commit')} as files of their own{times}"),
        ("stored", human_bytes(held.stored), ratio),
        ("raw", human_bytes(held.raw), "distinct objects before compression"),
        ("commits", f"{held.commits:,}", ""),
        ("branches", f"{held.branches:,}", ""),
        ("tags", f"{held.tags:,}", ""),
        ("packs", f"{held.packs:,}", ""),
        ("blocks", f"{held.blocks:,}", ""),
        ("codecs", "", ", ".join(f"{name} {count:,}" for name, count in held.codecs.items())),
    ]
    table(rows, right={1}, colour={0: "dim", 2: "dim"})


def _say_commit(held: CommitStats, as_json: bool) -> None:
    if as_json:
        say_json(asdict(held))
        return
    rows: list[tuple[str, ...]] = [("", "raw", "stored", "blocks", "in the parent", "of which stored")]
    rows += [_part_row(part.path, part) for part in held.parts]
    rows.append(_part_row("the commit", held.whole))
    table(rows, right={1, 2, 3, 4, 5})


def _part_row(name: str, part: PartStats) -> tuple[str, ...]:
    sizes = human_bytes(part.raw), human_bytes(part.stored)
    return name, *sizes, f"{part.blocks:,}", f"{part.shared:,}", human_bytes(part.shared_stored)
