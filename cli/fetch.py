"""`cas fetch`."""

from __future__ import annotations

import click

import cas

from . import places
from .completion import complete_remote
from .options import Options, example, json_option, with_remote
from .syncing import drawn, limits, report, transfer_options


@click.command(
    short_help="Get commits from another store, and move tracking branches.",
    epilog=example("cas fetch", "cas fetch origin main", "cas fetch lab --only 'model/**' --depth 3"),
)
@click.argument("remote", required=False, shell_complete=complete_remote)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@transfer_options
@json_option
@with_remote
def fetch(
    store: cas.Store,
    remote: str | None,
    names: tuple[str, ...],
    only: tuple[str, ...],
    depth: int | None,
    limit_rate: float | None,
    as_json: bool,
    storage_options: Options | None,
) -> None:
    """Get what is missing of the branches and tags NAME of REMOTE, else of all, and move origin/main and the like.

    Branches of this store stay where they are; `cas pull` moves one, and `cas branch -r` lists the tracking branches.
    Everything received is verified before it can be seen. A remote that was cloned or added with --only is fetched so
    unless another is given. --only and --depth also bring what is missing of commits that are here in part.

    JSON, one object: refs that moved and left, those that could not (kind, name, old and new id or null), objects and
    sent (bytes, as they are stored), present and saved (objects that were here already, and their bytes), seconds.
    """
    where = places.other(remote, store.remotes())
    with drawn("fetch") as progress:
        done = store.fetch(
            where, *names, storage_options=storage_options, progress=progress, **limits(only, depth, limit_rate)
        )
    report(done, "received", as_json)
