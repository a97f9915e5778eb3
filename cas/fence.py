"""Giving files up for good: step G2 of the protocol, for whoever has surveyed a root."""

from __future__ import annotations

from collections.abc import Set

from . import lists
from .backend import Backend
from .errors import NotFound
from .lists import What
from .log import Record
from .roots import Roots

_MOST = 1 << 20
"""Files that are given up at a time: what is left is found again."""


def condemn(backend: Backend, roots: Roots, root: Record, floor: int, names: Set[bytes], why: str) -> bool:
    """Publish these packs and lists as condemned in place of the very root that was surveyed; False if another came.

    `floor` is the oldest record that the survey covered: undo goes no further back from now on.
    """
    held = [name for _, name in root.condemned]
    try:
        kept = lists.extend(backend, held, What.CONDEMNED, sorted(names)[:_MOST])
    except NotFound:
        if roots.current().seq != root.seq:  # a list that a newer root replaced, and a collection deleted since
            return False
        raise
    record = root.successor(
        why,
        epoch=root.epoch + 1,
        condemned=(*root.condemned[: len(kept) - 1], (root.epoch + 1, kept[-1])),
        floor=max(root.floor, floor),
    )
    return roots.publish(record)
