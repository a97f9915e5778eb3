"""`cas undo` and `cas reset`: going back to what the store's log or a branch's history holds."""

from __future__ import annotations

from dataclasses import asdict

import click

import cas
from cas.errors import NotFound

from .completion import complete_revision
from .history import change_text
from .options import example, json_option, with_store
from .output import clean, say, say_json

_BACK = "`cas undo` takes that back"


@click.command(
    short_help="Take back the last change of branches, tags or policies.",
    epilog=example("cas undo", "cas log --root", "cas undo 41"),
)
@click.argument("seq", required=False, type=click.IntRange(min=1))
@json_option
@with_store
def undo(store: cas.Store, seq: int | None, as_json: bool) -> None:
    """Set all branches, tags and policies back to before they last changed, or to what record SEQ says.

    `cas log --root` lists the records. Nothing is lost: it is a change like any other, and the next undo takes it
    back. What was pruned stays so; what was collected since cannot come back, and `cas gc` leaves 3 days for it.

    A trainer whose branch this moves fails with RefConflict at its next commit: let it load the branch anew.

    JSON, one object: seq, time, who, host, why, changes (kind, name, old and new id or null), undoable as in
    `cas log --root`; policies (what now stands, by branch).
    """
    before = store.policies()
    made = store.undo(seq)
    policies = store.policies()
    if as_json:
        say_json({**asdict(made), "policies": policies})
        return
    said = [change_text(change, "is back at") for change in made.changes]
    for branch in sorted({*before, *policies}):
        if before.get(branch) != policies.get(branch):
            said.append(f"policy of {branch}: {policies.get(branch, 'none')}")
    for line in said or ["nothing moved: all was so already"]:
        say(clean(line))
    if said:
        say(_BACK)


@click.command(
    short_help="Move a branch to another commit.",
    epilog=example("cas reset main main~1", "cas reset main main@step:1000", "cas reset lora 1f3a9c02"),
)
@click.argument("branch", shell_complete=complete_revision)
@click.argument("rev", shell_complete=complete_revision)
@with_store
def reset(store: cas.Store, branch: str, rev: str) -> None:
    """Move the branch BRANCH, which exists, to the commit REV; `cas branch` makes new ones.

    A trainer that runs on the branch fails with RefConflict at its next commit: let it load the branch anew.
    """
    was = store.refs()["branches"].get(branch)
    if was is None:
        raise NotFound(f"there is no branch {branch} to move; `cas branch {branch} {rev}` makes it")
    commit = store.resolve(rev)
    if commit.id == was:
        say(f"branch {clean(branch)} is at {was[:8]} already")
        return
    store.branch(branch, commit.id, force=True)
    say(f"branch {clean(branch)} {was[:8]} -> {commit.id[:8]}")
    if commit.pruned:
        say("the state of that commit was pruned: it cannot be loaded")
    say(_BACK)
