"""`cas branch` and `cas tag`."""

from __future__ import annotations

from collections.abc import Sequence

import click

import cas
from cas.commits import human_bytes
from cas.errors import Exists

from .completion import complete_revision
from .options import example, json_option, with_store
from .output import age, clean, say, say_json, table, title


@click.command(
    short_help="List, make, move or remove branches.",
    epilog=example(
        "cas branch -v",
        "cas branch -a",
        "cas branch lora main~2",
        "cas branch main main@{1} --force",
        "cas branch -d lora",
    ),
)
@click.argument("name", required=False, shell_complete=complete_revision)
@click.argument("rev", required=False, shell_complete=complete_revision)
@click.option("-d", "--delete", is_flag=True, help="Remove the branch; its commits stay in the store.")
@click.option("--force", is_flag=True, help="Move a branch that exists; the log keeps where it was.")
@click.option("-v", "--verbose", is_flag=True, help="List also what each branch alone takes.")
@click.option("-r", "--remotes", is_flag=True, help="List the tracking branches instead: origin/main and the like.")
@click.option("-a", "--all", "both", is_flag=True, help="List the tracking branches, too.")
@json_option
@with_store
def branch(
    store: cas.Store,
    name: str | None,
    rev: str | None,
    delete: bool,
    force: bool,
    verbose: bool,
    remotes: bool,
    both: bool,
    as_json: bool,
) -> None:
    """List branches, or make the branch NAME at REV.

    With -v also the stored bytes that no other branch or tag leads to: what deleting the branch would free, once
    garbage is collected. Tracking branches say where those of a remote were when `cas fetch` last looked.

    JSON when listing: name, id, step, time, message; with -v also frees (not of tracking branches).
    """
    _check(name, rev, delete, as_json or verbose or remotes or both)
    if name is None:
        kinds = ["branches", "tracking"] if both else ["tracking"] if remotes else ["branches"]
        _list(store, kinds, as_json, store.branch_sizes() if verbose else {})
    elif delete:
        was = store.refs()["branches"].get(name, "")
        store.delete_branch(name)
        say(f"removed branch {clean(name)}, was {was[:8]}; bring it back: cas branch {clean(name)} {clean(name)}@{{1}}")
    else:
        at = store.refs()["branches"].get(name)
        if at is not None and not force:
            raise Exists(f"branch {name} exists, at {at[:8]}; pass --force to move it")
        say(f"branch {clean(name)} is at {store.branch(name, rev, force=force).id[:8]}")


@click.command(
    short_help="List, make or remove tags.",
    epilog=example("cas tag", "cas tag v1", "cas tag best main@min:loss", "cas tag -d v1"),
)
@click.argument("name", required=False, shell_complete=complete_revision)
@click.argument("rev", required=False, shell_complete=complete_revision)
@click.option("-d", "--delete", is_flag=True, help="Remove the tag.")
@json_option
@with_store
def tag(store: cas.Store, name: str | None, rev: str | None, delete: bool, as_json: bool) -> None:
    """List tags, or make the tag NAME at REV. Tags do not move.

    JSON when listing: name, id, step, time, message.
    """
    _check(name, rev, delete, as_json)
    if name is None:
        _list(store, ["tags"], as_json, {})
    elif delete:
        at = store.refs()["tags"].get(name, "")
        store.delete_tag(name)
        say(f"removed tag {clean(name)}, was {at[:8]}")
    else:
        say(f"tag {clean(name)} is at {store.tag(name, rev).id[:8]}")


def _check(name: str | None, rev: str | None, delete: bool, as_json: bool) -> None:
    if delete and (name is None or rev is not None):
        raise click.UsageError("-d takes one name and no revision", click.get_current_context())
    if as_json and name is not None:
        raise click.UsageError("-v, -r, -a and --json are for listing, without a name", click.get_current_context())


def _list(store: cas.Store, kinds: Sequence[str], as_json: bool, sizes: dict[str, int]) -> None:
    """`sizes`: of some refs, what deleting them would free."""
    refs = store.refs()
    commits = [(name, store.resolve(held)) for kind in kinds for name, held in sorted(refs.get(kind, {}).items())]
    if as_json:
        for name, at in commits:
            frees = {"frees": sizes[name]} if name in sizes else {}
            say_json({"name": name, "id": at.id, "step": at.step, "time": at.time, "message": at.message, **frees})
        return
    rows = [
        (
            name,
            at.id[:8],
            "" if at.step is None else f"step {at.step}",
            age(at.time),
            f"frees {human_bytes(sizes[name])}" if name in sizes else "",
            title(at.message),
        )
        for name, at in commits
    ]
    table(rows, right={3, 4}, colour={0: "green", 1: "yellow", 3: "dim"})
