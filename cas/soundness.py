"""Whether states that came from another store are sound: what a load could be made of, whoever wrote them.

That each object is what its name says was checked when it came. Here it is whether they fit together: tensors and their
blocks, containers and their parts, depth. Else a hostile store could make `fsck` complain of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .block import ID_SIZE, ObjectId
from .catalog import Catalog
from .damage import Walk
from .reader import Objects
from .roots import Absent


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Contains the id and raw size (u32) of every block that there is."""

    sizes: Mapping[ObjectId, int]
    catalog: Catalog

    def __contains__(self, item: object) -> bool:
        assert isinstance(item, bytes)
        name, size = ObjectId(item[:ID_SIZE]), int.from_bytes(item[ID_SIZE:], "little")
        known = self.sizes.get(name)
        if known is None:
            found = self.catalog.locate(self.catalog.known([name])).get(name)
            known = found[0].row.raw if found else None
        return known == size


def check(
    commits: Iterable[ObjectId], objects: Objects, absent: Absent, sizes: Mapping[ObjectId, int], catalog: Catalog
) -> None:
    """`Corrupt` names the first of these commits whose state is not sound, and where.

    `sizes` are the raw bytes of blocks, as far as they are known; the others are looked up in `catalog`.
    """
    walk = Walk(objects, absent, {}, _Blocks(sizes, catalog))
    for name in commits:
        walk.check(name)
