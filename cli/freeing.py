"""`cas gc` and `cas prune`: deleting what nothing leads to, and dropping the states of old commits."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from datetime import timedelta
from typing import Any, cast

import click

import cas
from cas.commits import human_bytes
from cas.gc import EXPIRE, GRACE, Collected
from cas.pruning import Pruned
from cas.retention import Rules

from .completion import complete_revision
from .options import TIME_UNITS, Command, example, json_option, time_option, with_store
from .output import age, clean, plural, say, say_json, table, title
from .status import Status

# -- gc -----------------------------------------------------------------------------------------------------------


@click.command(
    short_help="Delete what no branch or tag leads to.",
    epilog=example("cas gc --dry-run", "cas gc", "cas gc --expire now", "cas gc --grace 0 --expire 12h"),
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@time_option("--grace", GRACE, "Wait so long for readers, and leave packs younger than that: 10m. 0: neither.")
@time_option("--expire", EXPIRE, "Keep what undo may go back to in that time: 3d. now: nothing.")
@json_option
@with_store
def gc(store: cas.Store, dry_run: bool, grace: float, expire: float, as_json: bool) -> None:
    """Delete what no branch or tag leads to, nor did in the last 3 days (--expire), so that `cas undo` can go back.

    It is safe beside running trainers, readers and other collections, and ^C or a kill loses nothing: the next one
    goes on. What was condemned is deleted after --grace, for readers that still use it; packs younger than that may
    belong to a running commit and stay. A TIME is in seconds, or such as 10m, 12h, 3d.

    JSON, one object: dry_run, packs and size (those that stay, bytes), deleted and freed (files and bytes that went),
    rewritten (mostly dead packs), moved (bytes copied out of them), young and young_size (packs left for their
    age), undo (bytes held for it alone), rescued (objects saved from condemned packs).
    """
    with Status() as status:

        def progress(text: str) -> None:
            if text.startswith("waiting"):
                end = time.monotonic() + grace
                status.show(lambda: _waiting(end - time.monotonic()))
            else:
                status.show(lambda: f"gc: {text}")

        found = store.gc(grace, expire, dry_run=dry_run, progress=progress)
    if as_json:
        say_json(asdict(found))
    else:
        _say_collected(found, grace, expire)


def _waiting(left: float) -> str:
    return f"waiting for readers: {timedelta(seconds=max(0, round(left)))} left; ^C is safe, the next gc goes on"


def _say_collected(found: Collected, grace: float, expire: float) -> None:
    freed, was = ("would free", "would be") if found.dry_run else ("freed", "were" if found.rewritten > 1 else "was")
    parts = []
    if found.deleted:
        parts.append(f"{freed} {human_bytes(found.freed)} in {plural(found.deleted, 'file')}")
    if found.rewritten:
        packs = plural(found.rewritten, "mostly dead pack")
        parts.append(f"{packs} {was} rewritten ({human_bytes(found.moved)} copied)")
    stay = "stays" if found.packs == 1 else "stay"
    parts.append(f"{plural(found.packs, 'pack')} with {human_bytes(found.size)} {stay}")
    say("; ".join(parts) if found.deleted else "nothing to collect")
    if found.undo:
        say(
            f"{human_bytes(found.undo)} are held so that the last {_words(expire)} can be undone; "
            "`cas gc --expire now` frees them"
        )
    if found.young:
        are, them = ("are", "them") if found.young > 1 else ("is", "it")
        say(
            f"{plural(found.young, 'pack')} with {human_bytes(found.young_size)} {are} younger than {_words(grace)} "
            f"and {'stay' if found.young > 1 else 'stays'}; `--grace 0` takes {them}"
        )
    if found.rescued:
        say(f"{plural(found.rescued, 'object')} in use lay in condemned packs alone and were saved; please report this")


def _words(seconds: float) -> str:
    """A length of time for people, exact: 3 days, 90 s."""
    count, unit = next((int(seconds // size), unit) for unit, size in TIME_UNITS.items() if seconds % size == 0)
    return plural(count, "day") if unit == "d" else f"{count} {unit}"


# -- prune --------------------------------------------------------------------------------------------------------


def _rules(command: Command) -> Command:
    """The options that make up a policy; their names are those of `cas.retention.Rules`."""
    count = click.IntRange(min=1)
    options = (
        click.option("--keep-last", type=count, metavar="N", help="The newest N."),
        click.option("--keep-best", multiple=True, metavar="METRIC:min|max:N", help="The best N; may be repeated."),
        click.option("--keep-every", type=count, metavar="STEPS", help="Those whose step is a multiple of STEPS."),
        click.option("--keep-daily", type=count, metavar="N", help="The newest of each of N days."),
        click.option("--keep-weekly", type=count, metavar="N", help="The newest of each of N weeks."),
        click.option("--keep-tags", multiple=True, metavar="GLOB", help="What such tags name: all unless given."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command(
    short_help="Drop the states of old commits; the commits stay.",
    epilog=example(
        "cas prune main --keep-last 5 --keep-best loss:min:3 --dry-run",
        "cas prune main --keep-last 5 --keep-every 10000 --yes",
        "cas prune main --keep-last 5 --always",
        "cas prune",
    ),
)
@click.argument("branch", required=False, shell_complete=complete_revision)
@_rules
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--always", is_flag=True, help="From now on every commit on the branch does so, too.")
@click.option("--never", is_flag=True, help="Commits on the branch do so no more.")
@json_option
@with_store
def prune(
    store: cas.Store,
    branch: str | None,
    yes: bool,
    dry_run: bool,
    always: bool,
    never: bool,
    as_json: bool,
    **rules: Any,
) -> None:
    """Drop the states of all commits on BRANCH that no --keep rule keeps; without BRANCH list the policies.

    Commits, steps, metrics and messages stay. So do the state of the tip, and those that another branch or a tag
    names. Undo does not bring states back; `cas gc` frees their space. It shows what goes and asks; where no terminal
    can ask, or with --json, it is a dry run unless --yes is given.

    JSON, one object: branch, dry_run, kept (id, step, why), dropped (id, step), freed (bytes that the next gc frees),
    policy (what its commits apply by themselves, or null). Of policies: branch, policy.
    """
    given = cast(Rules, {name: value for name, value in rules.items() if value not in (None, ())})
    _check(branch, never, bool(given or always or yes or dry_run))
    if branch is None:
        _list_policies(store, as_json)
    elif never:
        _forget_policy(store, branch, as_json)
    else:
        _prune(store, branch, given, yes, dry_run, always, as_json)


def _check(branch: str | None, never: bool, others: bool) -> None:
    if branch is None and (never or others):
        raise click.UsageError("say which branch to prune", click.get_current_context())
    if never and others:
        raise click.UsageError("--never takes a branch alone", click.get_current_context())


def _list_policies(store: cas.Store, as_json: bool) -> None:
    policies = store.policies()
    if as_json:
        for branch, policy in policies.items():
            say_json({"branch": branch, "policy": policy})
    elif policies:
        table(policies.items(), colour={0: "green"})
    else:
        say("no branch is pruned by its commits; `cas prune BRANCH --keep-last 5 --always` sets that up")


def _forget_policy(store: cas.Store, branch: str, as_json: bool) -> None:
    was = store.policies().get(branch)
    if was is not None:
        store.set_policy(branch)
    if as_json:
        say_json({"branch": branch, "policy": None})
    else:
        said = "had no policy" if was is None else f"is no longer pruned by its commits; it was: {was}"
        say(clean(f"branch {branch} {said}"))


def _prune(store: cas.Store, branch: str, rules: Rules, yes: bool, dry_run: bool, always: bool, as_json: bool) -> None:
    done = store.prune(branch, dry_run=True, **rules)
    if not as_json:
        table(_rows(done), colour={1: "yellow", 3: "dim"})
    asks = not (yes or dry_run or as_json) and sys.stdin.isatty() and sys.stdout.isatty()
    if asks and (done.dropped or always) and not click.confirm(_question(done, always), prompt_suffix=" "):
        say("nothing was dropped")
        return
    if (yes or asks) and not dry_run:
        done = store.prune(branch, **rules)
        if always:
            store.set_policy(branch, **rules)
    if as_json:
        say_json(_record(done, store.policies().get(branch)))
        return
    _say_pruned(done)
    if always and not done.dry_run:
        say(clean(f"every commit on {branch} prunes it from now on: {store.policies()[branch]}"))
    if not (yes or dry_run or asks):
        say("this was a dry run, as no terminal can ask here; pass --yes to go on")


def _rows(plan: Pruned) -> list[tuple[str, ...]]:
    kept = [("keep", *_commit_row(commit), ", ".join(why), title(commit.message)) for commit, why in plan.kept]
    return kept + [("drop", *_commit_row(commit), "", title(commit.message)) for commit in plan.dropped]


def _commit_row(commit: cas.Commit) -> tuple[str, ...]:
    return commit.id[:8], "" if commit.step is None else f"step {commit.step}", age(commit.time)


def _question(plan: Pruned, always: bool) -> str:
    asked = [f"drop {_states(plan)}"] if plan.dropped else []
    asked += [f"have every commit on {clean(plan.branch)} prune it like this from now on"] if always else []
    return f"{', and '.join(asked)}?"


def _states(plan: Pruned) -> str:
    frees = human_bytes(plan.freed or 0)
    return f"the states of {plural(len(plan.dropped), 'commit')}, which frees {frees} at the next gc"


def _say_pruned(done: Pruned) -> None:
    if done.dropped:
        say(f"{'would drop' if done.dry_run else 'dropped'} {_states(done)}")
    else:
        say(f"nothing to drop: no rule lets go of any of {plural(len(done.kept), 'state')}")


def _record(done: Pruned, policy: str | None) -> dict[str, Any]:
    return {
        "branch": done.branch,
        "dry_run": done.dry_run,
        "kept": [{"id": commit.id, "step": commit.step, "why": why} for commit, why in done.kept],
        "dropped": [{"id": commit.id, "step": commit.step} for commit in done.dropped],
        "freed": done.freed,
        "policy": policy,
    }
