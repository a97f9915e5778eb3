"""What the commands that move commits between stores have in common: their options, progress and summary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click

import cas
from cas.commits import human_bytes

from .options import Command
from .output import plural, say, say_json, table
from .progress import Transfer
from .status import Status

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
_RATE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?(|[kmg]i?)(?:b?/s|b)?", re.IGNORECASE)
_GOES_ON = "what was moved stays, and the next run goes on from there"


def _rate(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Bytes per second of 500000, 10M, 1.5G."""
    if value is None:
        return None
    match = _RATE.fullmatch(value.strip())
    rate = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
    if rate < 1:
        raise click.BadParameter(f"a rate is in bytes per second, such as 500000, 10M or 1.5G, not {value!r}")
    return rate


only_option = click.option(
    "--only", multiple=True, metavar="PATTERN", help="Only what matches of states; repeat it for more. `.`: all."
)


def transfer_options(command: Command) -> Command:
    """What limits a transfer: `--only`, `--depth` and `--limit-rate`."""
    depth = click.IntRange(min=0)
    options = (
        only_option,
        click.option("--depth", type=depth, metavar="N", help="Only N commits of each history. 0: all."),
        click.option("--limit-rate", callback=_rate, metavar="RATE", help="At most 10M, 1.5G ... bytes per second."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def limits(only: tuple[str, ...], depth: int | None, limit_rate: float | None) -> dict[str, Any]:
    """These options as `Store.push` and the others take them."""
    return {"only": list(only) or None, "depth": depth, "limit_rate": limit_rate}


@contextmanager
def drawn(what: str) -> Iterator[Transfer]:
    """The line of progress; an interrupt says that nothing is lost."""
    transfer = Transfer(what)
    try:
        with Status() as status:
            status.show(transfer.line)
            yield transfer
    except KeyboardInterrupt as error:
        raise click.Abort(_GOES_ON) from error


def report(done: cas.Synced, moved: str, as_json: bool) -> None:
    """What became of it: a line for each ref, and one for the bytes. `moved` is `sent` or `received`."""
    if as_json:
        say_json(_record(done))
        return
    if not done.refs and not done.objects:
        say("everything up to date")
        return
    table([(ref.name, _where(ref)) for ref in done.refs], colour={0: "green"})
    there = f"; {human_bytes(done.saved)} in {plural(done.present, 'object')} there already" if done.present else ""
    if done.objects or there:
        say(f"{plural(done.objects, 'object')}, {human_bytes(done.sent)} {moved} in {done.seconds:.1f} s{there}")


def _where(ref: cas.Moved) -> str:
    new = (ref.new or "")[:8]
    if ref.old is None:
        return f"[new {'tag' if ref.kind == 'tag' else 'branch'}] {new}"
    return f"{ref.old[:8]} -> {new}"


def _record(done: cas.Synced) -> dict[str, Any]:
    refs, left = [asdict(ref) for ref in done.refs], [asdict(ref) for ref in done.left]
    numbers = ("objects", "sent", "present", "saved", "seconds")
    return {"refs": refs, "left": left, **{name: getattr(done, name) for name in numbers}}
