"""`cas repack`: storing history anew, smaller."""

from __future__ import annotations

from collections.abc import Callable

import click

import cas
from cas.commits import human_bytes
from cas.gc import EXPIRE, GRACE
from cas.repack import Repacked
from cas.rewriting import LEVELS, Level

from .options import example, json_option, time_option, with_store
from .output import plural, say, say_json
from .status import Status


@click.command(
    short_help="Store history anew, smaller.",
    epilog=example("cas repack", "cas repack --level smallest", "cas repack --json"),
)
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default=LEVELS[0],
    show_default=True,
    help="small codes what is raw too; smallest all as small as it can: takes longer, and so do loads.",
)
@time_option("--expire", EXPIRE, "Keep what undo may go back to in that time: 3d. now: nothing.")
@json_option
@with_store
def repack(store: cas.Store, level: Level, expire: float, as_json: bool) -> None:
    """Store what came last whole, all before as changes from what followed it, and join small packs.

    Every block is decoded and compared before its old copy is given up. `cas gc` deletes the old packs: until then the
    store takes space for both. It is safe beside running trainers, readers and collections, and ^C or a kill loses
    nothing. The next repack leaves alone what this one made.

    JSON, one object: level, packs (given up), written (packs made), before and after (bytes of what was stored anew),
    saved (before - after), dropped (bytes that nothing needed, part of before), freed (bytes that the next gc frees).
    """
    try:
        with Status() as status:
            done = store.repack(level, expire, progress=_shown_by(status))
            status.show(lambda: "repack: looking at what gc frees")
            freed = store.gc(expire=expire, dry_run=True).freed
    except KeyboardInterrupt as error:
        raise click.Abort("the store is whole; run it again, and `cas gc` deletes what this one left") from error
    if as_json:
        say_json(_record(level, done, freed))
    else:
        _say(done, freed)


def _shown_by(status: Status) -> Callable[[str], None]:
    return lambda text: status.show(lambda: f"repack: {text}")


def _before(done: Repacked) -> int:
    return done.rewritten + done.dropped


def _record(level: Level, done: Repacked, freed: int) -> dict[str, object]:
    return {
        "level": level,
        "packs": done.packs,
        "written": done.written,
        "before": _before(done),
        "after": done.stored,
        "saved": done.saved,
        "dropped": done.dropped,
        "freed": freed,
    }


def _say(done: Repacked, freed: int) -> None:
    if done.written and not done.packs:
        say(f"wrote {human_bytes(done.stored)} anew, so that what a branch was set back to loads at once")
    elif done.written:
        given, made = human_bytes(_before(done)), human_bytes(done.stored)
        dropped = f", {human_bytes(done.dropped)} of it needed by nothing" if done.dropped else ""
        saved = f"; {human_bytes(done.saved)} saved{dropped}" if done.saved > 0 else ""
        say(f"gave up {plural(done.packs, 'pack')} with {given} for {done.written:,} with {made}{saved}")
    else:
        say("nothing to repack: all is stored as it should be")
    if freed:
        say(f"`cas gc` frees {human_bytes(freed)} after {GRACE / 60:.0f} min for readers, `cas gc --grace 0` at once")
