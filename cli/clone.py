"""`cas clone`."""

from __future__ import annotations

import click

from cas.cloning import clone_and_tell

from . import places
from .options import Options, example, json_option, opening, storage_option
from .output import clean, say
from .syncing import drawn, limits, report, transfer_options


@click.command(
    short_help="Make a store of another one.",
    epilog=example(
        "cas clone s3://bucket/run",
        "cas clone s3://bucket/run weights.cas main --only 'model/**' --depth 1",
        "cas clone /mnt/backup/run.cas s3://bucket/copy",
    ),
)
@click.argument("url")
@click.argument("path", required=False)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@transfer_options
@storage_option("the store at URL (before the command: of that at PATH)")
@json_option
def clone(
    url: str,
    path: str | None,
    names: tuple[str, ...],
    only: tuple[str, ...],
    depth: int | None,
    limit_rate: float | None,
    options: Options,
    as_json: bool,
) -> None:
    """Make a store at PATH with the branches and tags NAME of the store at URL, else all, and know that as `origin`.

    PATH is the last part of URL unless it is given. A clone that was cut off goes on when it is run again. What is
    given as --only also holds for later fetches and pulls.

    JSON, one object: refs that moved and left, those that could not (kind, name, old and new id or null), objects and
    sent (bytes, as they are stored), present and saved (objects that were there already, and their bytes), seconds.
    """
    source = places.located(url)
    target = path or places.name(source)
    new = opening()
    with drawn("clone") as progress:
        store, done = clone_and_tell(
            source,
            target,
            *names,
            storage_options=options or None,
            target_options=new["storage_options"],
            cache=new["cache"],
            progress=progress,
            **limits(only, depth, limit_rate),
        )
    with store:
        if not as_json:
            say(f"cloned {clean(source)} into {clean(store.url)}")
        report(done, "received", as_json)
