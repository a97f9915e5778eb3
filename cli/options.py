"""What commands have in common: opening the store, `--json`, and an example in the help."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

import cas

from . import places

Command = Callable[..., Any]


def store_option(command: Command) -> Command:
    """`--store`, after the command as well as before it."""
    return click.option("--store", "place", metavar="PATH", help="The store; also CAS_STORE. Else looked for upwards.")(
        command
    )


def with_store(command: Command) -> Command:
    """Give the command the open store as its first argument, and close it afterwards."""

    @functools.wraps(command)
    def opened(place: str | None, **arguments: Any) -> Any:
        with cas.open(places.find(said(place))) as store:
            return command(store, **arguments)

    return store_option(opened)


def said(place: str | None) -> str | None:
    """What the user gave as the store, behind the command, before it, or in CAS_STORE; an empty text is nothing."""
    above = click.get_current_context().find_root().params.get("place")
    return place or above or None


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line; the keys stand above.")


def example(*commands: str) -> str:
    """The end of a command's help."""
    return "\b\nExample:\n" + "\n".join(f"  {command}" for command in commands)
