"""`cas pull`."""

from __future__ import annotations

import click

import cas

from . import places
from .completion import complete_remote, complete_revision
from .options import Options, example, json_option, with_remote
from .syncing import drawn, limits, report, transfer_options


@click.command(
    short_help="Get a branch from another store, and go forward to it.",
    epilog=example("cas pull", "cas pull origin main", "cas pull s3://bucket/run main --limit-rate 50M"),
)
@click.argument("remote", required=False, shell_complete=complete_remote)
@click.argument("branch", required=False, shell_complete=complete_revision)
@transfer_options
@json_option
@with_remote
def pull(
    store: cas.Store,
    remote: str | None,
    branch: str | None,
    only: tuple[str, ...],
    depth: int | None,
    limit_rate: float | None,
    as_json: bool,
    storage_options: Options | None,
) -> None:
    """Fetch BRANCH of REMOTE and move the branch of that name here forward to it. Nothing is merged.

    A branch here with commits that the other lacks stays, and the command ends with 12. A trainer that runs on the
    branch here fails with RefConflict at its next commit: let it load the branch anew. --only and --depth are as for
    `cas fetch`.

    JSON, one object: refs that moved and left, those that could not (kind, name, old and new id or null), objects and
    sent (bytes, as they are stored), present and saved (objects that were here already, and their bytes), seconds.
    """
    where = places.other(remote, store.remotes())
    with drawn("pull") as progress:
        done = store.pull(
            where, branch, storage_options=storage_options, progress=progress, **limits(only, depth, limit_rate)
        )
    report(done, "received", as_json)
