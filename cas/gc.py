"""Garbage collection by fenced condemn: safe beside any number of writers, readers and other collectors.

    G0, G1  list the packs, read the root, mark what refs and undo lead to, pick a row for every live object: survey.py
            mostly dead packs are copied: what is live in them goes into new packs, durable
    G2      publish the packs that are not needed as condemned; if another record came first, begin again
    G3      wait for readers that may have looked up a row before
    G4      mark again; what no longer decodes outside the condemned packs is copied out of them, and reported
    G5      delete condemned files, whoever condemned them

No clock decides what lives. A writer publishes only from a root whose condemned packs it has heeded, so whatever it
names is outside of them; before G2 everything published was marked on the very root that G2 replaces. Killed
anywhere, it leaves packs that nothing names and files that are condemned: the next collection takes both.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field, replace
from functools import partial

from . import lists
from .backend import FileInfo
from .catalog import CondemnedToo
from .commits import human_bytes
from .errors import Invalid, NotFound
from .fence import condemn
from .log import Record
from .moving import bad_among, move
from .pack import TARGET_SIZE
from .renewing import needed_since
from .reserve import is_full, on_reserve, restore
from .survey import Pack, Survey, Surveyor, files_of, named

GRACE = 600.0
EXPIRE = 3 * 86_400.0
MAX_SECONDS = 100 * 365 * 86_400.0
_log = logging.getLogger("cas")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a survey allows: dead packs to condemn, sparse ones to copy first, young ones that are left."""

    survey: Survey
    dead: list[Pack] = field(default_factory=list)
    sparse: list[Pack] = field(default_factory=list)
    young: list[Pack] = field(default_factory=list)
    lists: list[FileInfo] = field(default_factory=list)

    @classmethod
    def of(cls, survey: Survey, young_from: float) -> Plan:
        plan = cls(survey)
        for held in survey.packs:
            if held.live and not held.is_mostly_dead:
                continue
            if held.info.modified >= young_from:
                plan.young.append(held)
            else:
                (plan.sparse if held.live else plan.dead).append(held)
        plan.lists.extend(info for info in survey.lists if info.modified < young_from)
        return plan

    def renewed(self, root: Record, spared: Set[bytes]) -> Plan:
        """For a newer root, without these packs and without the lists that it names."""
        return Plan(
            replace(self.survey, root=root),
            [held for held in self.dead if held.name not in spared],
            [held for held in self.sparse if held.name not in spared],
            self.young,
            [info for info in self.lists if lists.id_of(info.name) not in files_of(root)],
        )

    @property
    def condemns(self) -> set[bytes]:
        """The packs and lists that this plan gives up."""
        named = {lists.id_of(info.name) for info in self.lists}
        return {held.name for held in self.dead + self.sparse} | {name for name in named if name is not None}


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did, or with `dry_run` would do. All sizes in bytes.

    `packs` are those that stay. `deleted` files had `freed` bytes; `rewritten` packs were mostly dead, and `moved`
    bytes of live objects in them went into new packs. `young` packs, with `young_size` bytes that nothing needs, were
    left, as they may belong to a running writer; `undo` is held for undo alone. `rescued` objects were live in
    condemned packs, which no correct writer leads to.
    """

    dry_run: bool
    packs: int
    size: int
    deleted: int
    freed: int
    rewritten: int
    moved: int
    young: int
    young_size: int
    undo: int
    rescued: int


@dataclass(slots=True)
class Collector:
    """One collection. `grace` in seconds: how long readers are waited for, and what counts as young."""

    surveyor: Surveyor
    threads: int
    grace: float
    expire: float
    progress: Callable[[str], None]
    rescued: int = 0

    def collect(self, dry_run: bool) -> Collected:
        """All of it. After an error before G5 nothing was deleted; after any, the next collection goes on."""
        if dry_run:
            plan = self._plan(self._survey())
            victims = [*plan.survey.condemned, *self._files(plan)]
            return self._collected(plan, plan.survey, victims, dry_run)
        plan = self._condemn()
        self._remember(plan.survey)
        victims = self._listed_condemned()
        self.surveyor.backend.sweep(self.grace)
        if not victims:
            restore(self.surveyor.backend)
            return self._collected(plan, plan.survey, [], dry_run)
        if self.grace:
            self.progress(f"waiting {self.grace:.0f} s for readers")
            time.sleep(self.grace)
        survey = self._whole()
        self._delete(victims)
        return self._collected(plan, survey, victims, dry_run)

    def _survey(self) -> Survey:
        self.progress("marking")
        return self.surveyor.settled(undo_from(self.expire))

    def _whole(self) -> Survey:
        """What there is once all that is live lies outside the condemned packs; `Corrupt` if anything live is lost."""
        while (survey := self._survey()).lost:
            with self._unless_overtaken(survey):
                self._rescue(survey)
        return survey

    @contextlib.contextmanager
    def _unless_overtaken(self, survey: Survey) -> Iterator[None]:
        """A file that is gone is no error if there is a newer root: it may have given the file up."""
        try:
            yield
        except NotFound:
            if self.surveyor.is_root(survey.root.seq):
                raise

    def _plan(self, survey: Survey) -> Plan:
        return Plan.of(survey, self.surveyor.backend.now() - self.grace if self.grace else math.inf)

    def _condemn(self) -> Plan:
        """G0 to G2; what is given up was judged on the very root that is replaced."""
        while True:
            plan = self._plan(self._whole())
            with self._unless_overtaken(plan.survey):
                current: Plan | None = self._copy_sparse(self._without_last_copies(plan))
                while current is not None:
                    if not current.condemns or on_reserve(self.surveyor.backend, partial(self._publish, current)):
                        return current
                    current = self._renewed(current)

    def _renewed(self, plan: Plan) -> Plan | None:
        """The plan judged again on the root of now; None where that takes a new survey."""
        root = self.surveyor.roots.current()
        spared = needed_since(self.surveyor, plan.survey, root, plan.condemns)
        return None if spared is None else plan.renewed(root, spared)

    def _without_last_copies(self, plan: Plan) -> Plan:
        """Before one of two copies goes, the one that stays is read: if it is bad, the other's pack is not given up."""
        surveyor, survey = self.surveyor, plan.survey
        kept = surveyor.kept_copies(survey, plan.dead + plan.sparse)
        bad = bad_among(kept, surveyor.backend, surveyor.catalog, self.threads)
        if not bad:
            return plan
        if not surveyor.is_root(survey.root.seq):
            raise NotFound("packs may have been deleted since a newer root gave them up")
        _log.warning("%d objects have a bad copy; packs with another stay; run `cas fsck --repair`", len(bad))
        spared = {place.pack for found in surveyor.catalog.locate(p.row.id for p in bad).values() for place in found}
        return plan.renewed(survey.root, spared)

    def _copy_sparse(self, plan: Plan) -> Plan:
        """Copy what is live in mostly dead packs; without space for that they stay."""
        if not plan.sparse:
            return plan
        places = list(self.surveyor.places(plan.survey, plan.sparse))
        self.progress(f"copying {human_bytes(sum(place.row.stored for place in places))} out of mostly dead packs")
        try:
            move(places, self.surveyor.backend, self.surveyor.catalog, self.threads)
        except OSError as error:
            if not is_full(error):
                raise
            _log.warning("mostly dead packs were not copied: %s; collect again when there is space", error)
            return Plan(plan.survey, plan.dead, [], plan.young, plan.lists)
        return plan

    def _publish(self, plan: Plan) -> bool:
        """G2: False if another record came first."""
        surveyor, survey = self.surveyor, plan.survey
        size = sum(info.size for info in self._files(plan))
        why = f"gc condemned {len(plan.condemns)} files, {human_bytes(size)}"
        return condemn(surveyor.backend, surveyor.roots, survey.root, survey.floor, plan.condemns, why)

    @staticmethod
    def _files(plan: Plan) -> list[FileInfo]:
        return [held.info for held in plan.dead + plan.sparse] + plan.lists

    def _listed_condemned(self) -> list[FileInfo]:
        """Condemned files that exist. Their record was perhaps only read: it is made durable before they go."""
        root = self.surveyor.roots.current()
        self.surveyor.log.confirm(root.seq)
        return self.surveyor.condemned_files(root)

    def _rescue(self, survey: Survey) -> None:
        """Copy what is live and lies in condemned packs alone out of them. No correct writer leads to this."""
        lost = survey.lost
        places = self.surveyor.condemned_places(lost)
        _log.error("%s in condemned packs alone: copied out of them; please report this", named(lost))
        surveyor = self.surveyor
        lookup = CondemnedToo(surveyor.backend, surveyor.catalog)
        move(places, surveyor.backend, surveyor.catalog, self.threads, lookup)
        self.rescued += len(places)

    def _delete(self, victims: list[FileInfo]) -> None:
        """G5. What cannot be deleted is an error once all else is."""
        failed: OSError | None = None
        for number, info in enumerate(victims):
            self.progress(f"deleting {number + 1} of {len(victims)} files")
            try:
                self.surveyor.backend.delete(info.name)
            except NotFound:
                pass  # another collector was faster
            except OSError as error:
                failed = failed or error
        restore(self.surveyor.backend)
        if failed is not None:
            raise failed

    def _remember(self, survey: Survey) -> None:
        try:
            self.surveyor.needs.save(survey.marks.objects)
        except OSError as error:
            _log.info("what was marked is not remembered: %s", error)

    def _collected(self, plan: Plan, survey: Survey, victims: list[FileInfo], dry_run: bool) -> Collected:
        gone = {info.name for info in victims}
        kept = [held.info for held in survey.packs if held.info.name not in gone]
        moved = sum(held.live for held in plan.sparse)
        coming = moved if dry_run else 0  # what would be copied out is in no pack of its own yet
        return Collected(
            dry_run=dry_run,
            packs=len(kept) + -(-coming // TARGET_SIZE),
            size=sum(info.size for info in kept) + coming,
            deleted=len(victims),
            freed=sum(info.size for info in victims),
            rewritten=len(plan.sparse),
            moved=moved,
            young=len(plan.young),
            young_size=sum(held.stored - held.live for held in plan.young),
            undo=plan.survey.held_by_undo,
            rescued=self.rescued,
        )


def undo_from(expire: float) -> float:
    """The Unix time from which on undo may go back; never where it must not, whatever the clocks of writers said."""
    return time.time() - expire if expire else math.inf


def check_seconds(name: str, value: object) -> float:
    """`value`, if it is a time that one can wait for."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_SECONDS:
        return float(value)
    raise Invalid(f"{name} is a number of seconds from 0 up, not {value!r:.60}")
