"""`cas init`, `cas stats`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, astuple, replace

import click

import cas
from cas.commits import human_bytes
from cas.errors import Invalid
from cas.local import LocalBackend
from cas.savings import Depth, Saved, Savings
from cas.stats import CommitStats, PartStats

from . import places
from .completion import complete_revision
from .options import Options, example, json_option, open_store, opening, said, storage_option, store_option
from .output import clean, cut, listed, paint, plural, say, say_json, table

_SIZE = re.compile(r"(\d{1,12})\s*(|k|m)i?b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
_MOST = 12  # parts of the states that have a row of their own
_LEGEND = (
    "delta: saved on blocks stored as a change of another, however much of it",
    "compression alone would have saved; entropy: on all others. A block counts as",
    "stored in one part and one dtype, and in the others that have it as dedup.",
)
_NAME = 24  # cells of a part's name, so that a row fits 80


@click.command(
    short_help="Make a store.",
    epilog=example("cas init", "cas init /data/runs.cas --block-size 1MiB", "cas init s3://bucket/run"),
)
@click.argument("path", required=False)
@click.option("--block-size", metavar="SIZE", help="Largest block, a power of two: 4MiB unless given.")
@storage_option("the store")
@store_option
def init(path: str | None, block_size: str | None, options: Options, place: str | None) -> None:
    """Make a store at PATH, which may be a URL, or .cas in the current directory.

    Storage behind a URL is tried out first. Where it lets two writers make the same file, the store is for one writer
    at a time, which is said here and by `cas stats`.
    """
    where = path or said(place) or places.FOLDER
    given = opening(options)
    if block_size is not None:
        given["block_size"] = _bytes(block_size)
    with cas.init(where, **given) as store:
        one = ", for one writer at a time" if store.one_writer else ""
        say(f"made an empty store at {clean(store.url)}{one}")


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
@storage_option("the store")
@store_option
def stats(rev: str | None, as_json: bool, options: Options, place: str | None) -> None:
    """What the store takes on disk and holds, and what saved how much; with REV what that commit holds, and shares with
    its first parent.

    raw is every commit's state in full; dedup is saved as equal blocks are stored once, delta on blocks that are stored
    as a change of another (raw minus stored, whatever compression would have done alone), entropy on all others. dead
    is what lies in packs and no branch or tag needs. depth counts the blocks that must be decoded before a block.

    JSON, one object: path (or URL), one_writer (safe for one at a time only), disk (bytes of all files; of a store on
    another machine without the index, which is here), files (bytes that the commits would take as files of their own),
    history (commits that branches and tags lead to), packs, commits, blocks, raw and stored (bytes of all objects in
    packs before and after compression), branches, tags, codecs (objects by how they are stored), savings. savings has
    commits (those whose state is there), whole, parts and dtypes (each with name, raw, dedup, delta, entropy, stored,
    blocks: raw - dedup - delta - entropy = stored; a block counts as stored in one part and dtype), depths (each with
    depth, blocks, raw, stored, branches whose tip goes so deep), and in bytes records (commits, trees, lists), bases
    (needed by deltas alone), dead, condemned (packs that the next gc deletes); small (packs under 32 MiB), missing
    (objects that no pack has).

    JSON with REV, one object: id; whole and each of parts (the top of the state) with path, blocks, raw and stored
    (bytes of these, distinct), shared and shared_stored (blocks that the first parent needs, too, and their bytes).
    """
    with open_store(place, options) as store:
        held = store.stats() if rev is None else store.commit_stats(rev)
    if isinstance(held, CommitStats):
        _say_commit(held, as_json)
        return
    if not places.is_url(store.url):
        # Taken anew: while the index is open, it lacks the file that says that it was closed.
        held = replace(held, disk=sum(info.size for info in LocalBackend(store.path).list("")))
    if as_json:
        say_json({"path": store.url, "one_writer": store.one_writer, **asdict(held)})
    else:
        _say_store(held)
        if store.one_writer:
            say("for one writer at a time: its storage cannot tell which of two writers came first")


def _say_store(held: cas.StoreStats) -> None:
    saved = held.savings
    times = f", {held.files / held.disk:.2f} times this store" if held.files else ""
    rows = [
        ("disk", human_bytes(held.disk), f"all files: {held.disk:,} bytes"),
        ("files", human_bytes(held.files), f"{plural(held.history, 'commit')} as files of their own{times}"),
        ("records", human_bytes(saved.records), "commits, trees and lists"),
        *_worth_saying(saved),
        ("packs", f"{held.packs:,}", f"{saved.small:,} under 32 MiB"),
        ("blocks", f"{held.blocks:,}", ""),
        ("branches", f"{held.branches:,}", ""),
        ("tags", f"{held.tags:,}", ""),
        ("codecs", "", ", ".join(f"{name} {count:,}" for name, count in held.codecs.items())),
    ]
    table(rows, right={1}, colour={0: "dim", 2: "dim"})
    if saved.commits:
        say()
        _say_savings(saved)
    if any(depth.depth for depth in saved.depths):
        say()
        _say_depths(saved.depths)


def _worth_saying(saved: Savings) -> list[tuple[str, str, str]]:
    """Rows for what not every store has."""
    rows = [
        ("bases", saved.bases, "blocks that only deltas need"),
        ("dead", saved.dead, "in packs, and no branch or tag needs it; see `cas gc`"),
        ("condemned", saved.condemned, "in packs that the next `cas gc` deletes"),
    ]
    found = [(name, human_bytes(nbytes), said) for name, nbytes, said in rows if nbytes]
    if saved.missing:
        found.append(("missing", f"{saved.missing:,}", "objects that no pack has; `cas fsck` names what is affected"))
    return found


def _say_savings(saved: Savings) -> None:
    rows: list[tuple[str, ...]] = [("", "raw", "- dedup", "- delta", "- entropy", "= stored", "of raw")]
    rows.append(_saved_row(plural(saved.commits, "commit"), saved.whole))
    for title, items in (("by part", saved.parts), ("by dtype", saved.dtypes)):
        rows.append((title, *[""] * 6))
        rows += [_saved_row(f"  {item.name}", item) for item in items[:_MOST]]
        if len(items) > _MOST:
            rows.append(_saved_row(f"  {len(items) - _MOST:,} more", _sum(items[_MOST:])))
    table(rows, right=range(1, 7))
    for line in _LEGEND:
        say(paint(line, "dim"))


def _sum(items: Sequence[Saved]) -> Saved:
    return Saved("", *(sum(column) for column in zip(*(astuple(item)[1:] for item in items), strict=True)))


def _saved_row(name: str, item: Saved) -> tuple[str, ...]:
    sizes = item.raw, item.dedup, item.delta, item.entropy, item.stored
    ratio = f"{item.stored / item.raw:.3f}" if item.raw else ""
    return cut(clean(name), _NAME), *(human_bytes(nbytes) for nbytes in sizes), ratio


def _say_depths(depths: Sequence[Depth]) -> None:
    rows: list[tuple[str, ...]] = [("depth", "blocks", "raw", "stored", "tips that go so deep")]
    for item in depths:
        sizes = human_bytes(item.raw), human_bytes(item.stored)
        rows.append((f"{item.depth}", f"{item.blocks:,}", *sizes, listed(item.branches)))
    table(rows, right=range(4))


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
