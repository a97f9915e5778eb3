"""The two stores of a transfer, and reading structured objects from the one that is nearer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .backend import Backend
from .block import ObjectId
from .catalog import Catalog
from .log import Record
from .nodes import Node
from .objects import Commit, Layout, Reads
from .reader import Objects
from .roots import Absent, Roots


@dataclass(frozen=True, slots=True)
class Side:
    """One of the stores. `note_where` leaves a hint of where a commit lies; its trees are read from the second."""

    url: str
    backend: Backend
    catalog: Catalog
    roots: Roots
    objects: Objects
    note_where: Callable[[ObjectId, Reads], None]


@dataclass(frozen=True, slots=True)
class Sides:
    """What goes from `source` to `target`, seen under one root of each. Reads like `Objects`."""

    source: Side
    target: Side
    sent_from: Record
    sent_to: Record

    @property
    def lacking(self) -> Absent:
        """What commits lack on purpose at the source."""
        return self.source.roots.absent(self.sent_from)

    @property
    def had(self) -> Absent:
        """What commits lack on purpose at the target."""
        return self.target.roots.absent(self.sent_to)

    def commit(self, name: ObjectId) -> Commit:
        return self._holder(name).commit(name)

    def tree(self, name: ObjectId) -> Node:
        return self._holder(name).tree(name)

    def layout(self, name: ObjectId) -> Layout:
        return self._holder(name).layout(name)

    def block_list(self, name: ObjectId) -> list[ObjectId]:
        return self._holder(name).block_list(name)

    def has(self, name: ObjectId) -> bool:
        """Whether one of them has this object."""
        return any(side.catalog.known([name]) for side in (self.source, self.target))

    def _holder(self, name: ObjectId) -> Objects:
        """The nearer store if it has the object, else the other; the source where none has it, which says so."""
        near, far = (self.source, self.target) if self.target.backend.is_remote else (self.target, self.source)
        if near.catalog.known([name]):
            return near.objects
        if far is self.source or far.catalog.known([name]):
            return far.objects
        return near.objects
