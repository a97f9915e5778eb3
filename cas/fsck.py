"""Checking a store: log, lists, packs, refs, and everything that commits name. Changes nothing but by `repair`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from . import lists, pack
from .backend import Backend
from .block import Kind, short
from .catalog import Catalog
from .commits import human_bytes
from .damage import Trouble, Walk
from .errors import CasError, NotFound
from .findings import Finding, counted
from .gc import EXPIRE
from .inspection import Inspection, Reading, inspect, lost_of
from .lists import What
from .log import Log
from .marking import Marks
from .pack import ROW, Location, Table
from .picking import NAME, distinct, is_in
from .reach import Edge
from .reader import BlockReader, Objects
from .repair import Repaired, Repairer
from .roots import Roots
from .rowcheck import ReadProgress, RowCheck
from .salvage import Source


@dataclass(frozen=True, slots=True)
class Checker:
    """Checks one store. `state` is the file that remembers how far reading has come."""

    backend: Backend
    catalog: Catalog
    log: Log
    roots: Roots
    blocks: BlockReader
    state: Path

    def check(self, part: float | None, progress: ReadProgress, lost: Set[Edge] = frozenset()) -> list[Finding]:
        """Every finding; none means that all which was checked is whole. Of all stored bytes a `part` is read.

        `lost` are the objects that a repair has found nowhere.
        """
        self.catalog.refresh()
        found, bad_lists = list(_check_log(self.log)), list(self._check_lists())
        if bad_lists:
            return found + bad_lists  # what is missing on purpose is not known
        inspection = self._inspect(self._reading())
        found += [Finding("pack-corrupt", "error", str(error)) for error in inspection.damaged.values()]
        found += self._check_index(inspection.tables)
        rows = RowCheck(self.state, inspection.tables, inspection.objects, self.blocks, inspection.hanging())
        rows.recheck()
        if part is not None:
            rows.read(part, progress)
            found += _reading(rows)
        rows.add(inspection.below(rows.bad))
        bad = {place: rows.bad[place] for place in inspection.at_fault(rows.bad)}
        found += _bad_rows(inspection, bad)
        found += _check_reachable(inspection, bad.keys(), lost)
        found += _unneeded(inspection, bad.keys()) if inspection.has_undo else []
        return found + self._strangers()

    def repair(self, before: list[Finding], source: Source | None) -> list[Finding]:
        """Repair what a check has found; what was done, what is lost, and all that a new check finds."""
        if any(finding.name in ("list-missing", "list-corrupt") for finding in before):
            text = "without its lists it is not known what the store needs, so nothing was repaired; restore them"
            return [*before, Finding("not-repaired", "warning", text)]
        made = []
        if any(finding.name == "index-differs" for finding in before):
            self._rebuild_index()
            made.append(Finding("index-rebuilt", "info", "the index was built anew from the packs"))
        inspect_anew = partial(self._inspect, self._reading())
        repairer = Repairer(self.backend, self.catalog, self.roots, self.blocks, self.state, inspect_anew, source)
        done = repairer.repair()
        if done is None:
            text = "what undo leads to is not known without the log, so nothing was repaired; see log-record-corrupt"
            return [*before, Finding("not-repaired", "warning", text)]
        if not made and not done.objects and not done.packs and not done.lost:
            return before
        after = self.check(None, lambda nbytes, total: None, done.lost)
        return [*made, *_done(done, before, after), *after]

    def _reading(self) -> Reading:
        return Reading(Objects(self.backend, self.catalog))

    def _inspect(self, reading: Reading) -> Inspection:
        return inspect(self.backend, self.catalog, self.log, self.roots, time.time() - EXPIRE, reading)

    def _check_lists(self) -> Iterator[Finding]:
        root = self.log.head()
        named = [(name, What.CONDEMNED) for _, name in root.condemned] + [(name, What.ABSENT) for name in root.absent]
        for name, what in named:
            try:
                lists.read(self.backend, name, what)
            except NotFound:
                if self.log.head().seq == root.seq:  # a newer root may name another one instead
                    text = f"{lists.name_of(name)} is gone; restore it from another copy of the store"
                    yield Finding("list-missing", "error", text)
            except (CasError, OSError) as error:
                yield Finding("list-corrupt", "error", str(error))

    def _check_index(self, tables: Sequence[Table]) -> Iterator[Finding]:
        packs = {table.pack for table in tables}
        self.catalog.refresh()
        held = {place for place in self.catalog.index.rows() if place.pack in packs}
        lacking = 0
        for table in tables:
            rows = ROW.iter_unpack(table.rows.tobytes())
            lacking += sum((table.pack, row) not in held for row in rows)  # equal to a Location, and made faster
        extra = len(held) + lacking - sum(len(table.rows) for table in tables)
        if lacking or extra:
            text = f"the index lacks {lacking} rows and has {extra} wrong ones; `cas fsck --repair` builds it anew"
            yield Finding("index-differs", "warning", text)

    def _rebuild_index(self) -> None:
        """Rows of packs that cannot be read stay: they are what is left of these."""
        index = self.catalog.index
        index.drop(
            (index.packs().keys() | {place.pack for place in index.rows()})
            - self._inspect(self._reading()).damaged.keys()
        )
        self.catalog.refresh()

    def _strangers(self) -> list[Finding]:
        packs = (info.name for info in self.backend.list(pack.FOLDER) if pack.id_of(info.name) is None)
        left = (info.name for info in self.backend.list("tmp"))
        return [
            *(Finding("pack-foreign-file", "warning", f"{name} is not a pack; remove it") for name in packs),
            *(Finding("leftover", "info", f"{name} was left by a writer that crashed") for name in left),
        ]


def _check_log(log: Log) -> Iterator[Finding]:
    for seq in range(max(log.head().seq, log.newest_listed()), 0, -1):
        try:
            log.read(seq)
        except NotFound:
            yield Finding("log-record-missing", "error", f"log record {seq} is gone; restore it from another copy")
        except (CasError, OSError) as error:
            yield Finding("log-record-corrupt", "error", str(error))


def _reading(rows: RowCheck) -> Iterator[Finding]:
    """How much was read, unless it was everything at once."""
    if rows.read_bytes < rows.total:
        read, so_far = 100 * rows.read_bytes / rows.total, 100 * rows.so_far // rows.total
        text = f"read {read:.1f} % of the stored bytes, {so_far} % of this round so far"
        yield Finding("data-read", "info", text)


def _bad_rows(inspection: Inspection, bad: Mapping[Location, CasError]) -> Iterator[Finding]:
    """Each with the commits and paths that need what it should hold, though another copy may be good."""
    if not bad:
        return
    held = {(Kind(place.row.kind), place.row.id) for place in bad}
    troubles = {edge: Trouble("row-corrupt", edge[1].hex()) for edge in held}
    others = _sized_blocks(inspection.tables, held)
    walk = Walk(inspection.objects, inspection.survey.marks.absent, troubles, others)
    needed = {finding.message: finding for finding in walk.findings(inspection.survey.root)}
    for place, error in bad.items():
        what = Kind(place.row.kind).name.lower()
        text = f"a copy of {what} {short(place.row.id)} in pack {pack.name_of(place.pack)} is bad: {error}"
        by = needed.get(place.row.id.hex(), Finding("row-corrupt", "warning", ""))
        yield Finding("row-corrupt", "warning", text, by.commits, by.paths)


# -- what can be reached ------------------------------------------------------------------------------------------


def _check_reachable(inspection: Inspection, bad_rows: Set[Location], lost: Set[Edge]) -> list[Finding]:
    survey = inspection.survey
    gone = {*inspection.failed, *lost_of(inspection.pick(bad_rows))}
    bad = _troubles(gone, inspection, bad_rows, lost)
    blocks = _sized_blocks(inspection.tables, gone)
    absent = survey.marks.absent
    walk = Walk(inspection.objects, absent, bad, blocks)
    found = walk.findings(survey.root)
    untold = bad.keys() - walk.told
    if untold:
        marks = Marks(survey.marks.needs, absent)
        marks.mark(survey.root.refs.values())
        blocks_of_refs = marks.live()[Kind.BLOCK]
        untold = {edge for edge in untold if edge not in marks.objects and edge[0] is not Kind.BLOCK} | {
            edge for edge in untold if edge[0] is Kind.BLOCK and not is_in(np.array([edge[1]], NAME), blocks_of_refs)[0]
        }
    if untold:
        objects = counted(len(untold), "object")
        text = f"{objects} that only undo leads to cannot be had; `cas gc --expire now` does without"
        found.append(Finding("undo-damaged", "warning", text))
    return found


def _troubles(gone: Set[Edge], inspection: Inspection, bad_rows: Set[Location], lost: Set[Edge]) -> dict[Edge, Trouble]:
    """What to say of the objects that cannot be had."""
    lacks = inspection.lacks(gone, bad_rows)
    blamed = {edge: lacks.root_of(edge) for edge in gone}
    rows: dict[Edge, list[Location]] = {}
    for place in inspection.rows_of({*gone, *blamed.values()}):
        rows.setdefault((Kind(place.row.kind), place.row.id), []).append(place)
    found = {}
    for edge, base in blamed.items():
        error = inspection.failed.get(edge)
        if edge in lost:
            found[edge] = Trouble("lost", _lost(edge, base))
        elif error is not None:
            found[edge] = Trouble("object-missing" if isinstance(error, NotFound) else "object-corrupt", str(error))
        else:
            found[edge] = _trouble(edge, base, rows.get(base, []), bad_rows, bool(inspection.damaged))
    return found


def _lost(edge: Edge, base: Edge) -> str:
    way = "" if base == edge else f", nor of {_named(base)}, through which it decodes"
    return f"{_named(edge)} is lost: no good copy of it was found{way}; give a store that has it with --from"


def _trouble(edge: Edge, base: Edge, rows: list[Location], bad: Set[Location], is_damaged: bool) -> Trouble:
    """`rows` are those of the base that is to blame."""
    prefix = "block" if edge[0] is Kind.BLOCK else "object"
    way = _named(edge) if base == edge else f"{_named(edge)} decodes only through {_named(base)}, which"
    if not rows:
        where = "in no pack that can be read" if is_damaged else "in no pack"
        return Trouble(f"{prefix}-missing", f"{way} is {where}; restore it from another copy")
    if any(place in bad for place in rows):
        return Trouble(f"{prefix}-corrupt", f"{way} is damaged in every pack; restore it from another copy")
    text = f"{way} has another length or a chain of bases that is too long; restore the first from another copy"
    return Trouble(f"{prefix}-corrupt", text)


def _named(edge: Edge) -> str:
    return f"{edge[0].name.lower()} {short(edge[1])}"


def _sized_blocks(tables: Iterable[Table], but: Iterable[Edge]) -> set[bytes]:
    """Id and raw size of every row of a block, if it is none of these."""
    left_out = distinct(np.array([name for kind, name in but if kind is Kind.BLOCK], NAME))
    found: set[bytes] = set()
    for table in tables:
        rows = table.rows[table.rows["kind"] == Kind.BLOCK]
        rows = rows[~is_in(np.ascontiguousarray(rows["id"]).view(NAME), left_out)]
        joined = np.empty(len(rows), [("id", "V32"), ("raw", "<u4")])
        joined["id"], joined["raw"] = rows["id"], rows["raw"]
        found.update(joined.view("V36").tolist())
    return found


# -- what nothing needs -------------------------------------------------------------------------------------------


def _unneeded(inspection: Inspection, bad_rows: Set[Location]) -> list[Finding]:
    survey, rows = inspection.survey, inspection.survey.rows
    found = inspection.pick(bad_rows)
    picked = found.rows
    used = np.zeros(len(survey.packs), np.bool_)
    used[rows.pack[picked]] = True
    orphans = [held.info for held, is_used in zip(survey.packs, used, strict=True) if not is_used]
    rest = used[rows.pack]
    rest[picked] = False
    rest[inspection.numbers(bad_rows)] = False
    rest[inspection.numbers(inspection.rows_of(lost_of(found)))] = False  # deltas that may decode one day
    left = np.flatnonzero(rest)
    live = np.zeros(len(left), np.bool_)
    for kind, names in survey.marks.live().items() if len(left) else ():
        mine = np.flatnonzero(rows.kind[left] == kind)
        live[mine] = is_in(rows.id[left[mine]], names)
    sizes = rows.stored[left]
    free = "`cas gc` frees them"
    return [
        *_sum("pack-orphaned", "pack", "that nothing reachable needs", [info.size for info in orphans], free),
        *_sum("row-unreferenced", "row", "that nothing reachable names", sizes[~live].tolist(), "in packs with others"),
        *_sum("row-duplicate", "row", "of objects that have another", sizes[live].tolist(), "in packs with others"),
        *_sum("list-orphaned", "list", "that no root names", [info.size for info in survey.lists], free),
        *_sum("pack-condemned", "file", "given up", [info.size for info in survey.condemned], "`cas gc` deletes them"),
    ]


def _sum(name: str, what: str, which: str, sizes: list[int], then: str) -> Iterator[Finding]:
    """One finding for all of a kind."""
    if sizes:
        yield Finding(name, "info", f"{counted(len(sizes), what)} {which}, {human_bytes(sum(sizes))}: {then}")


# -- what a repair did --------------------------------------------------------------------------------------------


def _done(done: Repaired, before: list[Finding], after: list[Finding]) -> Iterator[Finding]:
    if done.objects or done.packs:
        still = {path for finding in after for path in finding.paths}
        healed = [f for f in before if f.severity == "error" and not still.issuperset(f.paths)]
        commits = dict.fromkeys(commit for finding in healed for commit in finding.commits)
        paths = dict.fromkeys(path for finding in healed for path in finding.paths if path not in still)
        then = "; `cas gc` deletes what was given up" if done.packs else ""
        yield Finding("repaired", "info", f"{done}{then}", tuple(commits), tuple(paths))
