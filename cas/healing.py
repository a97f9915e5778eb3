"""Healing a commit: what it needs and this store cannot give is taken from another, verified and written anew.

All that the commit needs is looked at, but for what it lacks on purpose: structured objects on the way down, those that
are bad taken before what they name is known, then blocks. A delta that cannot be read for want of its base is not bad:
the base comes first. Nothing is changed in place, and no pack is given up: readers try one row of an object after the
other, and bad rows are noted for `fsck`, whose repair drops them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from .absence import NOTHING
from .block import Kind, ObjectId, short
from .errors import CasError, Corrupt, NotFound
from .findings import counted
from .opened import Opened
from .pack import Location
from .present import Lacking
from .reach import Edge, needs, needs_of_state
from .reader import Objects
from .rowcheck import note_bad
from .salvage import Source, recover

_BATCH = 1 << 14
"""Blocks that are looked at together."""
_log = logging.getLogger("cas")


def may_heal(error: BaseException | None) -> bool:
    """Whether an error tells of damage: what is missing, bad or cannot be read, and is not absent on purpose."""
    if isinstance(error, NotFound | Corrupt):
        return not isinstance(error, Lacking)
    return error is not None and (isinstance(error, OSError) or may_heal(error.__cause__))


@dataclass(frozen=True, slots=True)
class Healed:
    """What healing did: so many `objects` have a good copy here again, and `lost` ones are good in neither store."""

    objects: int
    lost: int


@dataclass(slots=True)
class Healer:
    """Heals commits of `store` from `other`. `healed` have a good copy again; `lost` have one in neither."""

    store: Opened
    other: Opened
    healed: set[Edge] = field(default_factory=set)
    lost: set[Edge] = field(default_factory=set)
    _objects: Objects = field(init=False, repr=False)
    _bad: set[Location] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._objects = Objects(self.store._backend, self.store._catalog)  # what is in memory may be bad in its pack

    @property
    def done(self) -> Healed:
        return Healed(len(self.healed), len(self.lost))

    def heal(self, name: ObjectId) -> None:
        """Heal a commit: it, its state, side files and origin, but not its parents. Durable on return."""
        root = self.store._roots.current()
        with self._told(f"commit {short(name)}"):
            self.other._catalog.locate([name])  # by itself, for which a remote store may have a hint of where all lies
            self._heal_objects([(Kind.COMMIT, name)])
            left_out = self.store._roots.absent(root).get(name, NOTHING)
            blocks = iter(self._walk(name, left_out))
            while batch := list(islice(blocks, _BATCH)):
                self._heal_blocks(batch)
        if self.healed:
            self.store.note_where(name)

    def heal_history(self) -> None:
        """Heal the commits that refs lead to, without their states: what revisions are looked up in."""
        root = self.store._roots.current()
        absent = self.store._roots.absent(root)
        level = {(Kind.COMMIT, tip) for tip in root.refs.values()}
        seen: set[Edge] = set()
        with self._told("the history"):
            while level:
                seen |= level
                self._heal_objects(level)
                named = (child for edge in level for child in self._named(edge, absent.get(edge[1], NOTHING)))
                level = {child for child in named if child[0] is Kind.COMMIT} - seen

    def _walk(self, name: ObjectId, left_out: frozenset[ObjectId]) -> set[ObjectId]:
        """Heal the structured objects of a commit's state; the blocks that these name."""
        try:
            level = {edge for edge in needs_of_state(self._objects.commit(name)) if edge[1] not in left_out}
        except CasError:
            return set()
        blocks: set[ObjectId] = set()
        seen: set[Edge] = set()
        while level:
            seen |= level
            blocks.update(block for kind, block in level if kind is Kind.BLOCK)
            structured = {edge for edge in level if edge[0] is not Kind.BLOCK}
            self._heal_objects(structured)
            level = {child for edge in structured for child in self._named(edge, left_out)} - seen
        return blocks

    def _named(self, edge: Edge, left_out: frozenset[ObjectId]) -> Iterator[Edge]:
        """What an object names; nothing where it is lost, or was never written by this format."""
        try:
            yield from (child for child in needs(edge, self._objects, {}) if child[1] not in left_out)
        except CasError:
            return

    # -- one level ----------------------------------------------------------------------------------------------

    def _heal_objects(self, edges: Collection[Edge]) -> None:
        rows = self.store._catalog.locate(name for _, name in edges)
        self._take({edge for edge in edges if not any(self._verifies(edge, place) for place in rows.get(edge[1], ()))})

    def _verifies(self, edge: Edge, place: Location) -> bool:
        if place.row.kind != edge[0]:
            return False
        try:
            self._objects.verify(place)
        except OSError:
            if self.store._blocks.is_remote:  # the network or a server fails, of which nothing follows for the row
                raise
        except CasError:
            pass
        else:
            return True
        self._bad.add(place)
        return False

    def _heal_blocks(self, names: Collection[ObjectId]) -> None:
        bad = self._bad_blocks(names)
        if bases := self._bases_of(bad):
            self.healed |= self._recovered(_blocks(self._bad_blocks(bases)))
            bad = self._bad_blocks(bad)
        self._take(_blocks(bad))

    def _bad_blocks(self, names: Collection[ObjectId]) -> set[ObjectId]:
        """Those of these blocks that no row gives."""
        rows = self.store._catalog.locate(names)
        ways = {name: sorted(places, key=lambda place: -place.row.chain) for name, places in rows.items()}
        bad = set(names)
        while places := {ways[name].pop() for name in bad if ways.get(name)}:
            failed: dict[Location, CasError] = {}
            self.store._blocks.check(places, failed.__setitem__)
            self._bad |= failed.keys()
            bad -= {ObjectId(place.row.id) for place in places - failed.keys()}
        return bad

    def _bases_of(self, names: Collection[ObjectId]) -> set[ObjectId]:
        """The blocks that these are changes of, those of which they are, and so on."""
        found: set[ObjectId] = set()
        level = set(names)
        while level:
            rows = self.store._catalog.locate(level).values()
            level = {ObjectId(place.row.base) for places in rows for place in places if place.row.chain} - found
            found |= level
        return found

    # -- the other store ----------------------------------------------------------------------------------------

    def _take(self, edges: set[Edge]) -> None:
        found = self._recovered(edges)
        self.healed |= found
        self.lost |= edges - found

    def _recovered(self, edges: set[Edge]) -> set[Edge]:
        here = Source(self.store._backend, self.store._catalog)
        there = Source(self.other._backend, self.other._catalog)
        return recover(edges, here, self.store._catalog.damaged, there)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Say afterwards what was done, also where an error of a medium ends it."""
        before = len(self.healed)
        both = f"store {self.store.url} from {self.other.url}"
        try:
            yield
        except OSError as error:
            text = f"healing {what} of {both} was cut short: {error}; what was written stays, try again"
            raise CasError(text) from error
        finally:
            if self._bad:
                note_bad(self.store._needs.with_name("fsck"), self._bad)
            if len(self.healed) > before:
                then = "; `cas fsck --repair` drops the bad copies" if self._bad else ""
                _log.warning("healed %s of %s in %s%s", counted(len(self.healed) - before, "object"), what, both, then)


def _blocks(names: Iterable[ObjectId]) -> set[Edge]:
    return {(Kind.BLOCK, name) for name in names}
