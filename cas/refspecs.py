"""Which refs a transfer moves, from the names that people give."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .block import ObjectId
from .errors import Invalid, NotFound
from .log import Record
from .refs import Ref, RefKind
from .revisions import default_branch
from .sync import Goal

_HERE = (RefKind.BRANCH, RefKind.TAG)
Resolve = Callable[[str, Record], ObjectId]
"""From a revision to the commit that it names under a root."""


def pushed(
    names: Sequence[str], everything: bool, force: bool, resolve: Resolve, here: Record, there: Record
) -> list[Goal]:
    """What a push moves: branches and tags by name, `SRC:DST` with any revision, `main` or the only branch if none."""
    if everything and names:
        raise Invalid("give names, or everything=True; not both")
    if everything:
        return [Goal(ref, commit, force) for ref, commit in here.refs.items() if ref[0] in _HERE]
    return [_pushed(name, force, resolve, here, there) for name in names or (default_branch(here),)]


def _pushed(name: str, force: bool, resolve: Resolve, here: Record, there: Record) -> Goal:
    if not isinstance(name, str):
        raise Invalid(f"a name to push is a text such as main, v1 or main~2:best, not {name!r:.60}")
    if ":" not in name:
        ref = _named(name, here)
        if ref is None:
            raise NotFound(f"no branch or tag is called {name}; {_known(here)}; a revision goes as REV:BRANCH")
        return Goal(ref, here.refs[ref], force)
    rev, _, goal = name.rpartition(":")
    if not rev or not goal:
        raise Invalid(f"{name!r:.200} is not of the form REV:BRANCH, such as main~2:best")
    commit = resolve(rev, here)
    return Goal((RefKind.TAG if (RefKind.TAG, goal) in there.refs else RefKind.BRANCH, goal), commit, force)


def fetched(names: Sequence[str], remote: str, there: Record) -> list[Goal]:
    """What a fetch moves: tracking branches, wherever they are, and tags that are not here; all if none are named."""
    refs = [found(name, there) for name in names] if names else [ref for ref in there.refs if ref[0] in _HERE]
    return [_fetched(ref, remote, there) for ref in refs]


def _fetched(ref: Ref, remote: str, there: Record) -> Goal:
    commit = there.refs[ref]
    if ref[0] is RefKind.TAG:
        return Goal(ref, commit, is_asked=False)
    return Goal((RefKind.TRACKING, f"{remote}/{ref[1]}"), commit, True)


def cloned(names: Sequence[str], remote: str, there: Record) -> list[Goal]:
    """What a clone has: as after a fetch, and each branch of its own too."""
    goals = fetched(names, remote, there)
    own = [
        (RefKind.BRANCH, goal.ref[1].removeprefix(remote + "/")) for goal in goals if goal.ref[0] is RefKind.TRACKING
    ]
    return goals + [Goal(ref, there.refs[ref], is_asked=bool(names)) for ref in own]


def found(name: str, there: Record) -> Ref:
    """The branch or tag of that name at the other side."""
    ref = _named(name, there)
    if ref is None:
        raise NotFound(f"the other store has no branch or tag called {name!s:.200}; {_known(there)}")
    return ref


def _named(name: object, root: Record) -> Ref | None:
    return next((ref for ref in root.refs if ref[0] in _HERE and ref[1] == name), None)


def _known(root: Record) -> str:
    names = sorted(name for kind, name in root.refs if kind in _HERE)
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"there are {shown}" if names else "there are none"
