"""Whether what an update makes reachable is whole: the check of every writer that names a commit it did not make.

Collections delete what no ref led to. So a commit that no ref leads to any more may be gone in part, or be condemned;
only what lies outside the condemned packs of the root that is replaced stays.
"""

from __future__ import annotations

from collections.abc import Iterable

from .ancestry import newest_first
from .block import Kind, ObjectId, short
from .catalog import Catalog
from .chains import chains_of
from .errors import CasError, NotFound
from .log import Record
from .reach import Edge, reachable
from .reader import Objects
from .roots import Absent


def check(commit: ObjectId, root: Record, absent: Absent, objects: Objects, catalog: Catalog) -> None:
    """`NotFound` unless `root` leads to the commit, or all that it needs has rows outside what `root` condemns."""
    if commit in root.refs.values():
        return
    known = set()
    for name, _ in newest_first(root.refs.values(), objects.commit, absent):
        if name == commit:
            return
        known.add(name)
    try:
        needed = reachable([(Kind.COMMIT, commit)], objects, absent, but=known)
    except CasError as error:
        raise NotFound(f"commit {short(commit)} was collected, in part at least: {error}") from error
    lost = _lost(needed, catalog)
    if lost is not None:
        kind, name = lost
        raise NotFound(
            f"commit {short(commit)} was collected, in part at least: {kind.name.lower()} {short(name)} is in no pack"
        )


def _lost(edges: Iterable[Edge], catalog: Catalog) -> Edge | None:
    """One of these objects that no pack holds, or not all bases of."""
    wanted = list(edges)
    chains = chains_of((name for _, name in wanted), catalog.locate)
    return next(((kind, name) for kind, name in wanted if name not in chains or chains[name][0].row.kind != kind), None)
