"""One commit by many ranks: each stores what it holds, number 0 merges the tree and publishes.

    1. door   all ranks say what they are about to do; number 0 checks that it is the same, and decides what to build on
    2. line   each says what its state consists of; number 0 merges that and gives each its duties
    3. line   each stores its part, durable, and names it; number 0 writes the trees and the commit, and publishes

An error of any rank in any step is raised on all of them, and nothing is published. What was stored stays in its
packs, where the next attempt finds it. Only the answer to step 3 can be lost after publishing: `CommitUnknown`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import committing, objects
from .asking import ask, meet
from .backend import Backend
from .block import ObjectId, block_id
from .branches import Base, Overtaken
from .catalog import Catalog
from .commits import Commit, commit_of
from .committing import CommitOptions, Request, Stored
from .cutting import Cut, Duty, cuts_of
from .errors import CasError, CommitUnknown, Invalid
from .merging import merge
from .nodes import Node, pack, unpack
from .objects import decode_commit, encode_commit
from .outline import outline_of
from .packing import Counters
from .plan import Plan
from .reader import Objects
from .roots import Roots
from .small_writes import SMALL, Dues, decoded, message_of
from .team import Call, LostRank
from .writer import ObjectWriter, WriterSettings


class Published(NamedTuple):
    """What number 0 made of a commit: `equal` is a commit that was there already and holds the same."""

    name: ObjectId
    commit: objects.Commit
    stored: Stored | None


@dataclass(slots=True)
class Memory:
    """What number 0 keeps from commit to commit, since most of it repeats: what ranks said, by digest, and the plan."""

    said: dict[bytes, bytes] = field(default_factory=dict)
    key: tuple[bytes, ...] = ()
    plan: Plan | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """What a Store lends to the commits that it makes with others."""

    store: str
    backend: Backend
    catalog: Catalog
    settings: WriterSettings
    roots: Roots
    memory: Memory
    base_of: Callable[[CommitOptions], Base]
    """At number 0: what the commit builds on."""
    publish: Callable[[Request, Base, ObjectId, objects.Commit, Stored, int], Published]
    """At number 0, `Overtaken` if files were condemned after the epoch that is given last."""
    relatives: Callable[[Request, Base, str | None], list[ObjectId]]
    """At number 0: the commits whose blocks may be bases."""
    objects: Objects


class JointCommit:
    """One rank's part of one commit: `enter` in the caller's thread, then `run`, in any."""

    def __init__(self, call: Call, host: Host, options: CommitOptions) -> None:
        self._call = call
        self._host = host
        self._options = options
        self._first = options.get("replicas", "equal") == "first"
        self.branch = options.get("branch", "main")
        self._started = time.perf_counter()
        self._sealed = False

    # -- 1. what, and on what -----------------------------------------------------------------------------------

    def enter(self, state: Any, ready: Callable[[], None]) -> Request:
        """This rank's part of the state, checked; all ranks are there and mean the same commit.

        `ready` raises if this rank's Store cannot commit, and returns when its last commit has ended.
        """

        def hello() -> tuple[dict[str, Any], Node]:
            ready()
            self._request = self._requested(state)
            self._outline = outline_of(self._request.skeleton, self._request.leaves)
            self._digests = [block_id(self._outline.structure), block_id(self._outline.boxes)]
            return self._terms(), [self._call.node, self._digests]

        answer = meet(self._call, hello, self._open)
        self._seq, self._epoch, self._wanted, self._lead, self._members, self._relatives = answer
        return self._request

    def _requested(self, state: Any) -> Request:
        committing.check_options(self._options)
        if self._options.get("origin"):
            raise Invalid("origin= is for a process that commits alone; leave it out, or pass group=None")
        own: CommitOptions = {**self._options}
        if self._call.rank:  # where this rank runs the files need not even be there
            own.pop("files", None)
        return committing.request(state, own, self._started, self._call.rank)

    def _terms(self) -> dict[str, Any]:
        """What all ranks must mean."""
        return {
            "store": self._host.store,
            "call": "commit",
            "branch": self.branch,
            "step": self._request.step,
            "codec": self._request.codec,
            "delta": self._request.delta,
            "replicas": self._options.get("replicas", "equal"),
        }

    def _open(self, hellos: list[Node]) -> list[Node]:
        nodes, digests = zip(*hellos, strict=True)
        self._base = self._host.base_of(self._options)
        relatives = self._host.relatives(self._request, self._base, self._options.get("base"))
        root = self._host.roots.current()
        memory, asked = self._host.memory, set[bytes]()
        self._known = digests
        answers = []
        leads = [nodes.index(node) for node in nodes]
        for rank, both in enumerate(digests):
            wanted = [digest not in memory.said and digest not in asked for digest in both]
            asked.update(both)
            members = [other for other, lead in enumerate(leads) if lead == rank != other]
            answers.append([root.seq, root.epoch, wanted, leads[rank], members, relatives])
        return answers

    # -- 2. who holds what --------------------------------------------------------------------------------------

    def run(self) -> Commit:
        """The durable commit, the same on every rank."""
        duties = [Duty(*pair) for pair in unpack(ask(self._call, self._call.line, self._say, self._merge), "duties")]
        while True:
            self._seq, made = unpack(self._attempt(duties), "an answer")
            if made is not None:
                return self._result(*made)

    def fail(self, error: BaseException) -> None:
        """Tell the others, who wait in `run`, that this rank cannot go on; raises `error`."""

        def give_up() -> bytes:
            raise error

        ask(self._call, self._call.line, give_up, self._merge)

    def _say(self) -> bytes:
        parts = (self._outline.structure, self._outline.boxes)
        said = [part if wanted else None for part, wanted in zip(parts, self._wanted, strict=True)]
        return pack([said, self._outline.values])

    def _merge(self, results: list[bytes]) -> list[bytes]:
        memory, self._values = self._host.memory, []
        for result in results:
            said, values = unpack(result, "a rank's outline")
            memory.said.update({block_id(part): part for part in said if part is not None})
            self._values.append(values)
        key = tuple(digest for both in self._known for digest in both)
        memory.said = {digest: memory.said[digest] for digest in key}
        if memory.plan is None or memory.key != key:
            structures, boxes = zip(*([memory.said[digest] for digest in both] for both in self._known), strict=True)
            memory.plan, memory.key = merge(structures, boxes, self._call.ranks), key
        return [memory.plan.duties(rank, self._first) for rank in range(self._call.size)]

    # -- 3. store, and publish ----------------------------------------------------------------------------------

    def _attempt(self, duties: list[Duty]) -> bytes:
        host, hold = self._host, SMALL if self._lead != self._call.rank else 0
        request, settings = self._request, host.settings
        deltas = settings.deltas([ObjectId(name) for name in self._relatives], host.objects, host.catalog)
        writer = ObjectWriter(host.backend, host.catalog, request.codec, settings, request.progress, hold, deltas)
        with writer:
            try:
                return ask(
                    self._call,
                    self._call.line,
                    lambda: self._store_or_give_up(writer, duties),
                    lambda results: self._publish(writer, results),
                    self._as_told,
                )
            except LostRank as error:
                if self._call.rank == 0 or not error.in_doubt:
                    raise
                raise self._unknown(error) from error

    def _as_told(self, error: BaseException) -> BaseException:
        """What the others hear of an error of number 0: an interrupt, say, may have come after the record was made."""
        if not self._sealed or isinstance(error, CasError):
            return error
        return self._unknown(f"{self._call.name(0)}: {type(error).__name__}: {error}")

    def _unknown(self, why: object) -> CommitUnknown:
        return CommitUnknown(
            f"{why}; whether the commit on {self.branch} was published is not known here: load the branch to see"
        )

    def _store_or_give_up(self, writer: ObjectWriter, duties: list[Duty]) -> bytes:
        is_lead = self._lead == self._call.rank
        dues = Dues(None if is_lead else self._lead, list(self._members))
        try:
            return self._store(writer, duties, dues)
        except BaseException:
            dues.give_up(self._call)
            raise

    def _store(self, writer: ObjectWriter, duties: list[Duty], dues: Dues) -> bytes:
        """This rank's blocks and lists, durable but for what is in the pack of number 0; says what they are."""
        call = self._call
        cuts = self._store_own(writer, duties)
        reports = [cut.report(writer.put) for cut in cuts]
        if dues.lead is not None:
            message, lead = message_of(writer.finish_or_give()), dues.lead
            dues.lead = None
            call.line.send(message, lead)
        else:
            while dues.members:
                writer.take(decoded(call.line.receive(dues.members.pop(0))))
            if call.rank:
                writer.finish()
        new = writer.counters if call.rank else Counters()
        blocks = sum(len(cut.own) for cut in cuts)
        return pack([pack(reports), blocks, [new.new_blocks, new.new_raw, new.new_stored]])

    def _store_own(self, writer: ObjectWriter, duties: list[Duty]) -> list[Cut]:
        self._host.roots.wait_for(self._seq)  # what is condemned there must not be leant on here
        cuts = list(_cuts(self._request, duties, self._host.settings.block_size))
        writer.store_blocks(cuts)
        return cuts

    def _publish(self, writer: ObjectWriter, results: list[bytes]) -> list[bytes]:
        plan = self._host.memory.plan
        assert plan is not None, "a plan is made in the step before"
        reports, blocks, counts = zip(*(unpack(result, "a rank's report") for result in results), strict=True)
        plan.settle(self._values, reports, writer.put, self._first, self._host.settings.block_size)
        stored = Stored(plan.nbytes, sum(blocks))
        for numbers in counts:
            stored.new.add(Counters(*numbers))
        name, commit, stored = committing.seal_commit(self._request, self._base, plan.skeleton, stored, writer)
        try:
            if self._host.roots.current().epoch != self._epoch:
                raise Overtaken
            self._sealed = True
            self._call.line.seal()  # from here on a rank that loses the others cannot know what became of the commit
            made = self._host.publish(self._request, self._base, name, commit, stored, self._epoch)
        except Overtaken:
            # Files that were leant on are condemned meanwhile: all must be looked up anew, in a root that says so.
            root = self._host.roots.current()
            self._epoch = root.epoch
            return [pack([root.seq, None])] * self._call.size
        took = None if made.stored is None else [made.stored.raw, made.stored.blocks, made.stored.new.new_blocks]
        return [pack([self._seq, [made.name, encode_commit(made.commit), took]])] * self._call.size

    def _result(self, name: bytes, encoded: bytes, took: list[int] | None) -> Commit:
        commit = decode_commit(encoded)
        if took is None:
            return commit_of(ObjectId(name), commit)
        raw, blocks, new_blocks = took
        return committing.result(
            ObjectId(name), commit, self._request, Stored(raw, blocks, Counters(new_blocks=new_blocks))
        )


def _cuts(request: Request, duties: list[Duty], block_size: int) -> Iterator[Cut]:
    """The boxes of this rank in the order of its outline, each with its duty."""
    todo = iter(duties)
    for leaf in request.leaves:
        if leaf.tied_to is None:
            yield from cuts_of(leaf, block_size, todo)
    if next(todo, None) is not None:
        raise Invalid("number 0 has duties for more than this rank holds; are all ranks of one release?")
