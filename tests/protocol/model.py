"""What each actor may do next: W0 to W4 for writers, G0 to G5 for collectors, each rule where its step is made.

A slip is a rule left out. Every place that names one in quotes is such a rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from . import repacking
from .words import (
    HOLE,
    NONE,
    Collector,
    Job,
    Label,
    Log,
    Record,
    Row,
    Scenario,
    Slip,
    State,
    Steps,
    Writer,
    bits,
    closure,
    decodable,
    parts,
    picks,
    put,
    ways,
)


class Change(NamedTuple):
    """What an update does to the root it replaces: new refs and absent pairs, and what it makes reachable."""

    refs: tuple[int, ...]
    absent: frozenset[tuple[int, int]]
    tops: tuple[int, ...]


class Model:
    """The steps that follow a state, by the words of the design or, for each slip given, without one of them."""

    def __init__(self, scenario: Scenario, slips: frozenset[Slip] = frozenset()) -> None:
        self.scenario, self.world, self.slips = scenario, scenario.world, slips

    def start(self) -> State:
        s = self.scenario
        every = (1 << len(s.packs)) - 1
        writers = [Writer("check" if job.kind in ("delete", "prune") else "start", every) for job in s.jobs]
        collectors = [Collector("idle", runs) for runs in s.runs]
        return State(s.packs, every & ~s.deleted, s.log, (*writers, *collectors), durable=len(s.log))

    def steps(self, state: State) -> Steps:
        for i, actor in enumerate(state.actors):
            yield from self._writer(state, i, actor) if isinstance(actor, Writer) else self._collector(state, i, actor)
        for seq, record in state.requests:
            if seq == len(state.log):
                yield Label("the delayed record {n} arrives", 0, seq), self._append(state, record)
        if self.scenario.power and state.powered:
            yield from self._power_fails(state)

    def who(self, i: int) -> str:
        jobs = self.scenario.jobs
        if i >= len(jobs):
            return f"collector {i - len(jobs) + 1}"
        return f"writer {i + 1} ({' '.join([jobs[i].kind, self.world.show(jobs[i].commit)]).strip()})"

    def live(self, log: Log, start: int) -> int:
        """What the mark finds that covers records from `start` on: their refs, under the absent pairs of the root."""
        absent, by_tree = log[-1].absent, "absent by tree id" in self.slips
        tops = {commit for record in log[start:] for commit in record.refs if commit != NONE}
        return closure(self.world, tuple(sorted(tops)), absent, by_tree=by_tree)

    # -- the log ------------------------------------------------------------------------------------------------

    def _append(self, state: State, record: Record) -> State:
        """The log with one record more. What lies below the floor shrinks to stubs, once the floor is durable."""
        log = (*state.log, record)
        if not self.scenario.power:
            log = (*(Record(by=old.by) for old in log[: record.floor]), *log[record.floor :])
        requests = frozenset(request for request in state.requests if request[0] >= len(log))
        durable = state.durable if self.scenario.power else len(log)
        return state._replace(log=log, requests=requests, durable=durable)

    def _publish(self, state: State, i: int, record: Record, done: Writer | Collector) -> Steps:
        """Create-if-absent of the number that follows the root; the actor then goes on as `done`.

        Locally the record is linked, then its folder is synced. Elsewhere the reply may be lost, or the request
        may be under way for any length of time.
        """
        seq, step = len(state.log), "W4" if isinstance(done, Writer) else "G2"
        if "publish on a read record" not in self.slips:  # a successor must not outlive the record that it replaces
            state = state._replace(durable=seq)
        linked = self._append(state, record)
        if self.scenario.power:
            yield Label(f"{step}: links record {{n}}", 0, seq), put(linked, i, state.actors[i]._replace(phase="linked"))
        else:
            yield Label(f"{step}: publishes record {{n}}", 0, seq), put(linked, i, done)
        if self.scenario.losses:
            unsure = state.actors[i]._replace(phase="unsure")
            yield Label(f"{step}: publishes record {{n}}, but the reply is lost", 0, seq), put(linked, i, unsure)
            sent = state._replace(requests=state.requests | {(seq, record)})
            yield Label(f"{step}: sends record {{n}}, which is delayed", 0, seq), put(sent, i, unsure)

    def _power_fails(self, state: State) -> Steps:
        """Any of the records whose names were not synced are gone, and every process with its memory."""
        ended: list[Writer | Collector] = []
        for actor in state.actors:
            if isinstance(actor, Collector):
                ended.append(Collector("idle", actor.runs))
            else:
                ended.append(actor if actor.phase == "done" else Writer("ended"))
        young = sum(1 << seq for seq in range(state.durable, len(state.log)))
        for gone in (0, *parts(young)):
            log = [HOLE if gone >> seq & 1 else record for seq, record in enumerate(state.log)]
            while log[-1] == HOLE:
                log.pop()
            after = State(state.packs, state.exist, tuple(log), tuple(ended), durable=len(log), powered=False)
            yield Label(f"power fails and records {list(bits(gone))} are lost"), after

    # -- writers ------------------------------------------------------------------------------------------------

    def _writer(self, state: State, i: int, me: Writer) -> Steps:
        log = state.log
        if me.phase == "start":
            yield from self._w0(state, i, me)
        elif me.phase == "upload":
            yield from self._place(state, i, me, "W1, W2", "check")
        elif me.phase == "check":
            yield from self._w3(state, i, me)
        elif me.phase == "ready" and me.root == len(log) - 1:
            change = self._change(self.scenario.jobs[i], me, log)
            assert change is not None
            record = me.read._replace(refs=change.refs, absent=change.absent, by=i)
            yield from self._publish(state, i, record, Writer("done"))
        elif me.phase in ("ready", "unsure"):  # the number is taken, or the reply was lost
            yield from self._settle(state, i, me)
        elif me.phase == "linked":
            yield Label("syncs the log, done"), put(state._replace(durable=len(log)), i, Writer("done"))

    def _w0(self, state: State, i: int, me: Writer) -> Steps:
        """Read the root. The index may know nothing newer, and always drops what the root has condemned."""
        head, root = state.log[-1], len(state.log) - 1
        targets = [NONE]
        if self.scenario.jobs[i].kind == "undo":
            targets = [t for t in range(head.floor, root) if state.log[t].refs != head.refs]
        for known in {me.known, me.known | state.exist} if self.scenario.stale else {me.known | state.exist}:
            for target in targets:
                after = Writer("upload", known & ~head.lists, root, head, target=target)
                yield Label("W0: reads root {n}, knows packs {packs}", after.known, root), put(state, i, after)

    def _w3(self, state: State, i: int, me: Writer) -> Steps:
        """Read the root again. D holds if it covers the closure as of now and none of it is condemned."""
        head, root, job = state.log[-1], len(state.log) - 1, self.scenario.jobs[i]
        before, me = me, me._replace(root=root, read=head)
        simple = self.scenario.simple and job.kind == "commit"
        change = self._change(job, me, state.log)
        if job.kind == "commit" and head.refs[job.branch] == job.commit:
            yield from self._done(state, i, "W3: the branch names the commit")
        elif change is None:
            yield Label("W3: is refused by root {n}", 0, root), put(state, i, Writer("ended"))
        elif simple and head.epoch != before.read.epoch and "no fence" not in self.slips:
            yield Label("W3: root {n} has a new epoch, starts again", 0, root), put(state, i, Writer("start", me.known))
        else:
            covered = before.covered
            if not simple and "closure not recomputed" not in self.slips:
                covered = self._covered(state, i, me, change)
            fenced = me.packs & head.lists and "no fence" not in self.slips
            if fenced or covered & ~before.covered:
                yield from self._place(state, i, me, "W3", "ready")
            else:
                holds = put(state, i, me._replace(phase="ready"))
                yield Label("W3: reads root {n}, D is {packs} and holds", me.packs, root), holds

    def _place(self, state: State, i: int, me: Writer, text: str, phase: str) -> Steps:
        """Find each object of the closure in a row outside the lists, write in one new pack what has none."""
        change = self._change(self.scenario.jobs[i], me, state.log)
        if change is None:
            yield Label(f"{text}: is refused by root {{n}}", 0, me.root), put(state, i, Writer("ended"))
            return
        usable, covered = me.known & ~me.read.lists, self._covered(state, i, me, change)
        found = covered & decodable(state.packs, usable)
        if covered & ~found & ~self._bytes(i):
            yield Label(f"{text}: is refused, objects are gone"), put(state, i, Writer("ended"))
            return
        chosen = picks(state.packs, usable, found, "D without base chains" not in self.slips)
        for rows, bases in self._rows(state, i, usable, covered & ~found):
            new = 1 << len(state.packs) if rows else 0
            after = state._replace(packs=(*state.packs, rows), exist=state.exist | new) if rows else state
            for packs in chosen:
                packs |= new | bases
                placed = me._replace(phase=phase, known=me.known | new, packs=packs, covered=covered)
                how = f"writes pack {len(state.packs)}" if rows else "finds all"
                yield Label(f"{text}: {how}, D is {{packs}}", packs), put(after, i, placed)

    def _bytes(self, i: int) -> int:
        """The objects that a writer could write: all of its own commit or object, but nothing of an old commit."""
        job, world = self.scenario.jobs[i], self.world
        if job.kind == "restore":
            return closure(world, (job.item,), frozenset())
        if job.kind == "commit":
            return closure(world, world.children[job.commit][:1], frozenset()) | 1 << job.commit
        return 0

    def _rows(self, state: State, i: int, usable: int, missing: int) -> Iterator[tuple[tuple[Row, ...], int]]:
        """Rows to write, and the packs that their base chains go through."""
        options: list[tuple[tuple[Row, ...], int]] = [((), 0)]
        for item in bits(missing):
            base = dict(self.scenario.jobs[i].deltas).get(item, NONE)
            rows = [(Row(item, base, chain + 1), mask) for mask, chain in ways(state.packs, usable, base)]
            rows = rows or [(Row(item), 0)]
            options = [((*done, row), packs | mask) for done, packs in options for row, mask in rows]
        for done, packs in options:
            yield done, 0 if "D without base chains" in self.slips else packs

    def _covered(self, state: State, i: int, me: Writer, change: Change) -> int:
        """The objects that D must hold: all that the update makes reachable, less what the replaced root vouches for.

        That is the tip that a commit builds on with its history, whose refs do not change, and the objects of the
        tip's tree if none of them is absent. A simple writer looks up all of its own tree, and vouched for is every
        commit that the root reaches already.
        """
        job, world, skip, stop = self.scenario.jobs[i], self.world, 0, 0
        if job.kind == "commit" and job.parent != NONE:
            pruned = any(commit == job.parent for commit, _ in me.read.absent)
            skip = 1 << job.parent
            if not self.scenario.simple and (not pruned or "inherit from a pruned tip" in self.slips):
                skip |= closure(world, world.children[job.parent][:1], frozenset())
        if self.scenario.simple:
            reached = closure(world, tuple(ref for ref in me.read.refs if ref != NONE), frozenset())
            skip |= sum(1 << item for item in bits(reached) if world.is_commit(item))
        if job.kind == "commit" and "parent not checked" in self.slips:
            skip |= sum(1 << parent for parent in world.children[job.commit][1:])
        if "D without closure" in self.slips:
            stop = decodable(state.packs, me.known & ~me.read.lists)
        return closure(world, change.tops, change.absent, skip, stop, "absent by tree id" in self.slips)

    def _change(self, job: Job, me: Writer, log: Log) -> Change | None:
        """What the update makes of the root that was read; None where that root refuses it."""
        read, refs, absent, pair = me.read, list(me.read.refs), me.read.absent, (job.commit, job.item)
        tops: tuple[int, ...] = (job.commit,)
        if job.kind == "commit":
            if refs[job.branch] != job.parent:
                return None
            refs[job.branch], absent = job.commit, frozenset(p for p in absent if p[0] != job.commit)
        elif job.kind == "point":
            refs[job.branch] = job.commit
        elif job.kind == "undo":
            if me.target < read.floor or not log[me.target].refs:
                return None
            refs = list(log[me.target].refs)
            tops = tuple(commit for commit in refs if commit != NONE)
        elif job.kind == "delete":
            refs[job.branch], tops = NONE, ()
        elif job.kind == "prune":
            absent, tops = absent | {pair}, ()
        else:
            if pair not in absent:
                return None
            absent, tops = absent - {pair}, (job.item,)
        return Change(tuple(refs), absent, tops)

    def _settle(self, state: State, i: int, me: Writer) -> Steps:
        """Read the number that was wanted. Ours, another's, or absent: the same again, or give up."""
        seq = me.root + 1
        if me.phase == "unsure" and "new record after an ambiguous reply" in self.slips:
            yield Label("W4: starts over with a new record"), put(state, i, me._replace(phase="check"))
        elif seq == len(state.log):
            yield (
                Label("W4: reads no record {n}, sends the same again", 0, seq),
                put(state, i, me._replace(phase="ready")),
            )
            yield Label("W4: finds no record {n}, raises CommitUnknown", 0, seq), put(state, i, Writer("ended"))
        elif state.log[seq].by != i:
            yield Label("W4: reads record {n} of another, lost", 0, seq), put(state, i, me._replace(phase="check"))
        else:
            yield from self._done(state, i, f"W4: reads its own record {seq}")

    def _done(self, state: State, i: int, text: str) -> Steps:
        """Acknowledge a record that was only read: not before the log is synced."""
        durable = state.durable if "acknowledge a read record" in self.slips else len(state.log)
        yield Label(f"{text}, done"), put(state._replace(durable=durable), i, Writer("done"))

    # -- collectors ---------------------------------------------------------------------------------------------

    def _collector(self, state: State, i: int, me: Collector) -> Steps:
        idle, log = Collector("idle", me.runs), state.log
        if me.phase != "idle" and me.runs:
            yield Label("dies, and another will start"), put(state, i, idle)
        if me.phase == "idle" and me.runs:
            listed = Collector("listed", me.runs - 1, state.exist)
            yield Label("G0: lists packs {packs}", state.exist), put(state, i, listed)
            if log[-1].lists & state.exist:
                yield Label("takes up condemned packs"), put(state, i, Collector("condemned", me.runs - 1))
        elif me.phase == "listed":
            yield from self._g1(state, i, me)
            if self.scenario.anew:
                yield from repacking.write(self, state, i, me)
        elif me.phase == "written":
            yield from repacking.mark_again(self, state, i, me)
        elif me.phase == "marked":
            yield from self._g2(state, i, me)
        elif me.phase == "linked":
            yield Label("syncs the log"), put(state._replace(durable=len(log)), i, Collector("condemned", me.runs))
        elif me.phase == "unsure":  # whatever became of it: a list that is in the log is there for anyone to take up
            yield Label("gives up on its record"), put(state, i, idle)
        elif me.phase == "condemned":
            yield from self._g4(state, i, me)
        elif me.phase == "deleting":
            yield from self._g5(state, i, me)

    def _g1(self, state: State, i: int, me: Collector) -> Steps:
        """Mark, pick a row for each live object, and choose K from what was listed and is not needed."""
        log, root, lists = state.log, len(state.log) - 1, state.log[-1].lists
        idle = Collector("idle", me.runs)
        for start in range(log[-1].floor, root + 1) if self.scenario.history else (root,):
            live, usable = self.live(log, start), me.listed & ~lists
            if live & ~decodable(state.packs, usable):
                usable = state.exist & ~lists  # list again: new packs may be picked, never condemned
            marked = Collector("marked", me.runs, me.listed, root, log[-1], floor=start)
            chosen = picks(state.packs, usable, live, free="base of any chain" in self.slips)
            if not chosen:
                yield Label("G1: a live object has no row, aborts"), put(state, i, idle)
            for packs in {k for needed in chosen for k in self._some(me.listed & ~lists & ~needed)}:
                text = f"G1: marks roots {start} to {{n}}, K is {{packs}}"
                yield Label(text, packs, root), put(state, i, marked._replace(packs=packs))
            if self.scenario.repack:
                yield from self._repack(state, i, marked, live, usable)

    def _some(self, free: int) -> Iterator[int]:
        """Min-age may spare any of the packs that are not needed."""
        return parts(free) if self.scenario.spares else iter((free,) if free else ())

    def _repack(self, state: State, i: int, marked: Collector, live: int, usable: int) -> Steps:
        """Copy what is live of one pack into a new one, whole or as it is stored, and condemn the old."""
        new = 1 << len(state.packs)
        for old in bits(usable & marked.listed):
            kept = tuple(row for row in state.packs[old] if live >> row.object & 1)
            for rows in {kept, tuple(Row(row.object) for row in kept)} if kept else set():
                packs = (*state.packs, rows)
                for needed in picks(packs, usable & ~(1 << old) | new, live):
                    condemned = 1 << old | (usable & marked.listed & ~needed)
                    after = state._replace(packs=packs, exist=state.exist | new)
                    text = f"G1: marks root {{n}}, rewrites pack {old} as {len(state.packs)}, K is {{packs}}"
                    yield Label(text, condemned, marked.root), put(after, i, marked._replace(packs=condemned))

    def _g2(self, state: State, i: int, me: Collector) -> Steps:
        """Publish K, with the floor raised to what the mark covered, in place of the very root that was marked."""
        root = len(state.log) - 1
        if "age only" in self.slips:
            yield Label("skips G2"), put(state, i, Collector("deleting", me.runs, packs=me.packs))
            return
        if me.root != root and "reuse K" not in self.slips:
            phase = "written" if me.sources else "listed"
            again = Collector(phase, me.runs, me.listed, me.root, me.read, sources=me.sources)
            yield Label("G2: finds record {n} taken, marks again", 0, me.root + 1), put(state, i, again)
            return
        head = state.log[-1]
        floor = head.floor if "no undo floor" in self.slips else me.floor
        record = head._replace(lists=head.lists | me.packs, epoch=head.epoch + 1, floor=floor, by=i)
        yield from self._publish(state, i, record, Collector("condemned", me.runs))

    def _g4(self, state: State, i: int, me: Collector) -> Steps:
        """Mark again from a fresh root, and write whole what decodes from condemned packs only."""
        head, synced = state.log[-1], state
        if "delete on a read record" not in self.slips:
            synced = state._replace(durable=len(state.log))
        free = "base of any chain" in self.slips
        lost = self.live(state.log, head.floor) & ~decodable(state.packs, state.exist & ~head.lists, free)
        doomed = Collector("deleting", me.runs, packs=head.lists & state.exist)
        if not doomed.packs:
            yield Label("G4: there is nothing left to delete"), put(state, i, Collector("idle", me.runs))
        elif not lost or "no rescue" in self.slips or "no undo floor" in self.slips:
            label = Label("G4: marks root {n}, will delete {packs}", doomed.packs, len(state.log) - 1)
            yield label, put(synced, i, doomed)
        elif lost & ~decodable(state.packs, state.exist):
            yield Label("G4: a live object is gone, aborts"), put(state, i, Collector("idle", me.runs))
        else:
            rows, new = tuple(Row(item) for item in bits(lost)), 1 << len(state.packs)
            saved = synced._replace(packs=(*state.packs, rows), exist=state.exist | new)
            yield Label("G4: writes live objects anew, will delete {packs}", doomed.packs), put(saved, i, doomed)

    def _g5(self, state: State, i: int, me: Collector) -> Steps:
        """Delete one pack after another, in any order."""
        left, head = me.packs & state.exist, state.log[-1]
        for pack in bits(left):
            after = state._replace(exist=state.exist & ~(1 << pack))
            yield Label(f"{self.who(i)} G5: deletes pack {{packs}}", 1 << pack), after
        if not left and "shortened lists" in self.slips and head.lists & me.packs:
            shorter = head._replace(lists=head.lists & ~me.packs, epoch=head.epoch + 1, by=i)
            yield from self._publish(state, i, shorter, Collector("idle", me.runs))
        elif not left:
            yield Label("is done"), put(state, i, Collector("idle", me.runs))
