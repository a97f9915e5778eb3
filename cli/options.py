"""What commands have in common: opening the store, `--storage-option`, `--json`, and an example in the help."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

import cas
from cas.errors import NotFound

from . import places

Command = Callable[..., Any]
Options = Mapping[str, Any]
TIME_UNITS = {"d": 86_400, "h": 3_600, "min": 60, "m": 60, "s": 1, "": 1}
_TIME = re.compile(rf"(\d{{1,9}})({'|'.join(TIME_UNITS)})")
_LONGEST = 10_000 * 86_400


def store_option(command: Command) -> Command:
    """`--store`, after the command as well as before it."""
    text = "The store, a path or URL; also CAS_STORE. Else looked for upwards."
    return click.option("--store", "place", metavar="PATH", help=text)(command)


def storage_option(whose: str) -> Callable[[Command], Command]:
    """`--storage-option`: the command gets a dict called `options`. Its values may be secrets: nothing shows them."""
    text = f"For the file system of {whose}; repeat it for more."
    return click.option(
        "--storage-option", "options", multiple=True, metavar="KEY=VALUE", callback=storage_options, help=text
    )


def with_store(command: Command) -> Command:
    """Give the command the open store as its first argument, and close it afterwards."""

    @functools.wraps(command)
    def opened(place: str | None, options: Options, **arguments: Any) -> Any:
        with open_store(place, options) as store:
            return command(store, **arguments)

    return store_option(storage_option("the store")(opened))


def with_remote(command: Command) -> Command:
    """As `with_store`, for a command that meets a second store: `--storage-option` behind it is that one's.

    The command gets it as `storage_options`; what stands before the command is still the store's own.
    """

    @functools.wraps(command)
    def opened(place: str | None, options: Options, **arguments: Any) -> Any:
        with open_store(place) as store:
            return command(store, storage_options=options or None, **arguments)

    return store_option(storage_option("the remote (before the command: of the store)")(opened))


def open_store(place: str | None, options: Options | None = None) -> cas.Store:
    """The store that the user named behind the command, before it or not at all; `options` are the command's."""
    found = places.find(said(place))
    try:
        return cas.open(found, **opening(options))
    except NotFound as error:
        raise places.NoStore(str(error)) from error


def opening(options: Options | None = None) -> dict[str, Any]:
    """What `cas.open`, `init` and `clone` are given besides the place."""
    above = click.get_current_context().find_root().params.get("options") or {}
    return {"storage_options": {**above, **(options or {})} or None, "cache": places.cache()}


def said(place: str | None) -> str | None:
    """What the user gave as the store, behind the command, before it, or in CAS_STORE; an empty text is nothing."""
    return place or next((context.params["place"] for context in _contexts() if context.params.get("place")), None)


def _contexts() -> Iterator[click.Context]:
    """That of the command and those above it."""
    context: click.Context | None = click.get_current_context()
    while context is not None:
        yield context
        context = context.parent


def storage_options(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> Options:
    """`KEY=VALUE` as a dict; a value is JSON where it parses as such, else a text."""
    found = {}
    for value in values:
        name, is_one, held = value.partition("=")
        if not is_one or not name:  # it may be a secret with its name forgotten, so it is not shown
            raise click.BadParameter("it is given as KEY=VALUE", context, parameter)
        found[name] = _parsed(held)
    return found


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line; the keys stand above.")


def _seconds(context: click.Context, parameter: click.Parameter, value: str) -> float:
    """A length of time: 600, 600s, 10m, 12h, 3d, now."""
    match = _TIME.fullmatch("0" if value == "now" else value)
    seconds = int(match[1]) * TIME_UNITS[match[2]] if match else _LONGEST + 1
    if seconds > _LONGEST:
        raise click.BadParameter(f"a time is such as 600, 10m, 12h or 3d, at most 10000d, not {value!r}")
    return float(seconds)


def time_option(name: str, default: float, text: str) -> Callable[[Command], Command]:
    """An option that takes a length of time, in seconds or such as 10m."""
    return click.option(name, default=f"{default:.0f}", callback=_seconds, metavar="TIME", help=text)


def example(*commands: str) -> str:
    """The end of a command's help."""
    return "\b\nExample:\n" + "\n".join(f"  {command}" for command in commands)
