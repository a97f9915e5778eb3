"""Storing history anew, smaller: new packs first, then the old ones are condemned.

    1. survey the store, plan for every block, and choose the packs that are worth rewriting
    2. write what is live in them into new packs, durable: each block as planned, decoded again and compared
    3. survey again: old packs from which something would still be needed are spared
    4. condemn the others through the fence of garbage collection, whose next run deletes them

Safe beside writers, readers and collections. Killed anywhere before 4, it leaves packs that nothing names; what a
writer or a reader leans on meanwhile stays until 4, and longer for whoever looked it up before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .backend import Backend
from .bases import Bases
from .block import ObjectId
from .choice import Choice
from .codecs import Encoder
from .commits import human_bytes
from .counterparts import blocks_of
from .dtypes import DTYPES
from .errors import CasError, Corrupt, NotFound
from .fence import condemn
from .finished import Finished
from .leaves import TensorLeaf
from .moving import bad_among, copy
from .pack import Location, PackId
from .packing import Packs
from .reader import Objects
from .relatives import PROBES, Probe, nearest
from .renewing import needed_since
from .reserve import free_bytes
from .rewriting import LEVELS, Level, Rewriter
from .succession import Succession
from .survey import Pack, Survey, Surveyor, named, needed_of


@dataclass(frozen=True, slots=True)
class Repacked:
    """What a repack did. `packs` were given up, `written` made. Of `rewritten` bytes of live objects that the former
    held `stored` bytes were made; `dropped` are bytes in them that nothing needed. The next collection deletes them."""

    packs: int = 0
    written: int = 0
    rewritten: int = 0
    stored: int = 0
    dropped: int = 0

    @property
    def saved(self) -> int:
        return self.rewritten + self.dropped - self.stored


@dataclass(slots=True)
class Repacker:
    """One repack. `since` is the Unix time from which undo is to work; `progress` is told in words."""

    surveyor: Surveyor
    objects: Objects
    threads: int
    level: Level
    since: float
    finished: Finished
    progress: Callable[[str], None]

    def repack(self) -> Repacked:
        """All of it. After an error nothing was given up."""
        while True:
            survey = self._survey()
            try:
                return self._repack(survey)
            except NotFound:
                if self.surveyor.is_root(survey.root.seq):
                    raise  # else a collection deleted it, once a newer root had given it up

    def _repack(self, survey: Survey) -> Repacked:
        choice = Choice(survey, self.finished, LEVELS.index(self.level))
        self.progress("planning")
        succession = self._succession(survey, choice)
        sources = choice.sources(succession)
        buried = choice.buried(succession, sources)
        tips = set(survey.root.refs.values())
        if not sources and not buried:
            self.finished.save([held.name for held in survey.packs], tips)
            return Repacked()
        places = self._places(survey, sources, buried)
        written = self._write(places, choice, succession)
        given_up = self._condemn({held.name for held in sources}, set(written.published))
        gone = [held for held in sources if held.name in given_up]
        self.finished.save([held.name for held in survey.packs] + written.published, tips)
        return Repacked(
            packs=len(gone),
            written=len(written.published),
            rewritten=sum(held.live for held in gone),
            stored=written.stored,
            dropped=sum(held.stored - held.live for held in gone),
        )

    def _survey(self) -> Survey:
        self.progress("marking")
        survey = self.surveyor.settled(self.since)
        if survey.lost:
            raise Corrupt(f"{named(survey.lost)} in no pack that can be read, so nothing was repacked; run `cas fsck`")
        return survey

    # -- 1. planning --------------------------------------------------------------------------------------------

    def _succession(self, survey: Survey, choice: Choice) -> Succession:
        absent = self.surveyor.roots.absent(survey.root)
        succession = Succession(self.objects, absent, self._nearest, choice.open_blocks().__contains__)
        succession.trace(survey.root.refs)
        return succession

    def _nearest(self, tip: ObjectId, tensors: list[TensorLeaf], candidates: list[ObjectId]) -> ObjectId | None:
        """What was found before, as long as it is there."""
        kin = self.finished.kin
        if tip not in kin or (kin[tip] is not None and kin[tip] not in candidates):
            kin[tip] = self._found_nearest(tensors, candidates)
        return kin[tip]

    def _found_nearest(self, tensors: list[TensorLeaf], candidates: list[ObjectId]) -> ObjectId | None:
        surveyor, encoder = self.surveyor, Encoder()
        reader, bases = (Bases(surveyor.backend, surveyor.catalog, encoder) for _ in range(2))
        return nearest(self._probes(tensors, reader), candidates, self.objects, bases, encoder)

    def _probes(self, tensors: list[TensorLeaf], reader: Bases) -> Iterator[Probe]:
        for leaf in sorted(tensors, key=lambda leaf: -leaf.nbytes)[:PROBES]:
            blocks = blocks_of(leaf.entry, self.objects)
            for place, name in list(blocks.items())[len(blocks) // 2 :][:1]:
                size = place[-1] - place[-2]
                data = np.frombuffer(bytes(reader.block(name, size)), np.uint8)
                yield Probe(leaf.path, DTYPES[leaf.dtype], leaf.shape, place, data)

    # -- 2. writing ---------------------------------------------------------------------------------------------

    def _places(
        self, survey: Survey, sources: Sequence[Pack], buried: Mapping[PackId, set[ObjectId]]
    ) -> list[Location]:
        """All that is needed of the sources, and what is buried elsewhere."""
        found = list(self.surveyor.places(survey, sources))
        others = [held for held in survey.packs if held.name in buried]
        return found + [p for p in self.surveyor.places(survey, others) if p.row.id in buried[p.pack]]

    def _write(self, places: Sequence[Location], choice: Choice, succession: Succession) -> _Written:
        work = choice.settle(places, succession)
        backend, catalog = self.surveyor.backend, self.surveyor.catalog
        _check_space(backend, work.nbytes)
        tips, history = Packs(backend, catalog), Packs(backend, catalog)
        told = _Told(sum(place.row.stored for place in places), self.progress)
        try:
            Rewriter(backend, catalog, self.threads, self.level, tips, history, told.add).rewrite(work.rewritten)
            for packs, places in ((tips, work.tips), (history, work.history)):
                copy(places, packs, backend, catalog, self.threads, progress=lambda nbytes: told.add(nbytes, nbytes))
            tips.finish()
            history.finish()
        except BaseException:
            tips.abandon()
            history.abandon()
            raise
        number = LEVELS.index(self.level)
        self.finished.add(tips.published, number, tips=True)
        self.finished.add(history.published, number, tips=False)
        return _Written(tips.published + history.published, told.stored)

    # -- 3 and 4. giving up -------------------------------------------------------------------------------------

    def _condemn(self, sources: set[PackId], written: set[PackId]) -> set[PackId]:
        """Publish those of these packs from which nothing is needed any more as condemned; returns them."""
        surveyor = self.surveyor
        while True:
            survey = self._survey()
            listed = {held.name for held in survey.packs} & sources
            given_up = listed - needed_of(survey, listed) - self._last_copies(survey, listed, written)
            root = survey.root
            while given_up:
                why = f"repack at level {self.level} gave up {len(given_up)} packs"
                if condemn(surveyor.backend, surveyor.roots, root, survey.floor, given_up, why):
                    return given_up
                root = surveyor.roots.current()
                spared = needed_since(surveyor, survey, root, given_up)
                if spared is None:
                    break
                given_up -= spared
            else:
                return given_up

    def _last_copies(self, survey: Survey, leaving: set[PackId], written: set[PackId]) -> set[PackId]:
        """Those of the packs that leave from which something is needed as its other copy, which would stay, is bad.

        What was written just now is good: it was compared.
        """
        surveyor, packs = self.surveyor, [held for held in survey.packs if held.name in leaving]
        kept = (place for place in surveyor.kept_copies(survey, packs) if place.pack not in written)
        bad = bad_among(kept, surveyor.backend, surveyor.catalog, self.threads)
        return {place.pack for found in surveyor.catalog.locate(p.row.id for p in bad).values() for place in found}


def _check_space(backend: Backend, nbytes: int) -> None:
    """`CasError` if this much will hardly fit: a full disk would stop the next commit too."""
    free = free_bytes(backend)
    if free is not None and free < nbytes:
        raise CasError(
            f"a repack of {backend.url} may write {human_bytes(nbytes)} before anything is given up, and "
            f"{human_bytes(free)} are free; prune and `cas gc` first, or make space"
        )


@dataclass(frozen=True, slots=True)
class _Written:
    published: list[PackId]
    stored: int


@dataclass(slots=True)
class _Told:
    """How far writing has come. Safe to use from many threads."""

    total: int
    progress: Callable[[str], None]
    done: int = 0
    stored: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, done: int, stored: int) -> None:
        with self._lock:
            self.done += done
            self.stored += stored
            text = f"rewriting {human_bytes(self.done)} of {human_bytes(self.total)}"
            if self.stored < self.done:  # what tips hold comes first, and may take more than it did as a delta
                text += f", {human_bytes(self.done - self.stored)} saved"
        self.progress(text)
