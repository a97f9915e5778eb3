"""`cas remote`: the names by which a store knows others."""

from __future__ import annotations

import os
from dataclasses import asdict

import click

import cas

from . import places
from .completion import complete_remote
from .options import Options, example, json_option, store_option, with_remote, with_store
from .output import clean, say, say_json, table
from .syncing import only_option


@click.group(
    short_help="List, add or remove remotes.",
    invoke_without_command=True,
    epilog=example("cas remote add origin s3://bucket/run", "cas remote -v", "cas remote remove origin"),
)
@click.option("-v", "--verbose", is_flag=True, help="List also URLs and stored options.")
@json_option
@store_option
@click.pass_context
def remote(context: click.Context, verbose: bool, as_json: bool, place: str | None) -> None:
    """The names by which this store knows others. Without a command, list them.

    JSON: name, url, options (those that are stored; credentials never are), only.
    """
    if context.invoked_subcommand is None:
        context.invoke(listing, verbose=verbose, as_json=as_json, place=place, options={})
    elif verbose or as_json:
        raise click.UsageError("-v and --json stand behind `list`", context)


@remote.command("list", short_help="List remotes.", epilog=example("cas remote list -v", "cas remote list --json"))
@click.option("-v", "--verbose", is_flag=True, help="Also URLs and stored options.")
@json_option
@with_store
def listing(store: cas.Store, verbose: bool, as_json: bool) -> None:
    """List the remotes.

    JSON: name, url, options (those that are stored; credentials never are), only (the patterns of what is fetched of
    its states, none for all).
    """
    remotes = [held for _, held in sorted(store.remotes().items())]
    if as_json:
        for held in remotes:
            say_json(asdict(held))
        return
    rows = [(held.name, held.url, _text(held)) if verbose else (held.name,) for held in remotes]
    table(rows, colour={0: "green", 2: "dim"})


def _text(held: cas.Remote) -> str:
    parts = [f"{name}={value}" for name, value in sorted(held.options.items())]
    return ", ".join([*parts, *(f"only {pattern}" for pattern in held.only)])


@remote.command(
    short_help="Add a remote.",
    epilog=example(
        "cas remote add origin s3://bucket/run",
        "cas remote add backup /mnt/backup/run.cas",
        "cas remote add lab s3://bucket/run --storage-option endpoint_url=https://s3.lab.example",
    ),
)
@click.argument("name")
@click.argument("url")
@only_option
@with_remote
def add(store: cas.Store, name: str, url: str, only: tuple[str, ...], storage_options: Options | None) -> None:
    """Call the store at URL, which may be a path, NAME from now on. `origin` is what push, pull and fetch use unasked.

    Fetches and pulls from it take what --only says, unless they are given another.

    A --storage-option is stored with it, for all who use this store. So credentials are refused here: they come from
    fsspec's configuration, from the environment, or from --storage-option of the command that needs them.
    """
    where = url if places.is_url(url) else os.path.abspath(os.path.expanduser(url))
    store.add_remote(name, where, only=list(only) or None, **dict(storage_options or {}))
    say(f"added remote {clean(name)}: {clean(store.remotes()[name].url)}")


@remote.command(short_help="Remove a remote.", epilog=example("cas remote remove origin"))
@click.argument("name", shell_complete=complete_remote)
@with_store
def remove(store: cas.Store, name: str) -> None:
    """Forget the remote NAME and its tracking branches; the store that it names stays as it is."""
    store.remove_remote(name)
    say(f"removed remote {clean(name)}")
