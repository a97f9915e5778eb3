"""`cas push`."""

from __future__ import annotations

import click

import cas

from . import places
from .completion import complete_remote, complete_revision
from .options import Options, example, json_option, with_remote
from .syncing import drawn, limits, report, transfer_options


@click.command(
    short_help="Send branches, tags and commits to another store.",
    epilog=example(
        "cas push",
        "cas push origin main v1",
        "cas push s3://bucket/run --all --limit-rate 50M",
        "cas push serving main --only 'model/**' --depth 1",
    ),
)
@click.argument("remote", required=False, shell_complete=complete_remote)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_revision)
@click.option("--all", "everything", is_flag=True, help="All branches and tags.")
@click.option("--force", is_flag=True, help="Also where that takes commits off a branch there; the log there keeps it.")
@transfer_options
@json_option
@with_remote
def push(
    store: cas.Store,
    remote: str | None,
    names: tuple[str, ...],
    everything: bool,
    force: bool,
    only: tuple[str, ...],
    depth: int | None,
    limit_rate: float | None,
    as_json: bool,
    storage_options: Options | None,
) -> None:
    """Send what REMOTE, a name, path or URL, lacks of the branches and tags NAME, then move them there, all at once.

    REMOTE is origin unless it is given, NAME main or the only branch. REV:BRANCH sends any revision as that branch.

    JSON, one object: refs that moved and left, those that could not (kind, name, old and new id or null), objects and
    sent (bytes, as they are stored), present and saved (objects that were there already, and their bytes), seconds.
    """
    if everything and names:
        raise click.UsageError("--all and names exclude each other", click.get_current_context())
    where = places.other(remote, store.remotes())
    with drawn("push") as progress:
        done = store.push(
            where,
            *names,
            everything=everything,
            force=force,
            storage_options=storage_options,
            progress=progress,
            **limits(only, depth, limit_rate),
        )
    report(done, "sent", as_json)
