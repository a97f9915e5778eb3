"""One schedule: a store with a past, clients that a seed chooses, and what must hold when they have ended."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache

from cas import identity, log, reserve
from cas.block import short
from cas.errors import NotFound
from cas.store import Store

from .clients import BLOCK, STATES, User, expect, is_state, open_on, state
from .judge import JudgedBackend
from .network import Network, ScheduledBackend
from .scheduler import FOR_EVER, Client, Scheduler, Trigger, repeatable

_WRITERS = ("train", "train", "train", "manage", "manage", "undo")
_ROLES = (*_WRITERS, "collect", "collect", "repack", "repack", "prune", "read")
_TURNING_POINTS = {"": 80, "create log": 3, "create packs": 3, "list packs": 5, "read log": 10, "delete": 5}
"""How calls start at which clients stall or die, and which of these at most: any call, and those that decide."""
_PASTS = 16
_DAY = 86_400.0


class Failure(AssertionError):
    """A schedule that went wrong: its seed, who did what, and why that is wrong."""


def play(seed: int) -> list[tuple[str, str]]:
    """Run one schedule and check what is left; returns the calls that were made, in order."""
    rng = random.Random(seed)
    scheduler = Scheduler(rng)
    store = _past(rng.randrange(_PASTS)).copy(lambda: scheduler.now)
    network = Network(store, scheduler, rng, losses=rng.choice((0, 0, 1, 3)))
    cast = _Cast(network, rng)
    for number, role in enumerate(
        ["collect", rng.choice(_WRITERS), *rng.choices(_ROLES, k=rng.choice((0, 0, 1, 1, 2)))]
    ):
        cast.add(number, role)
    try:
        with repeatable(rng, scheduler):
            cast.play()
            _check(store)
    except BaseException as error:
        made = "\n".join(f"  {client:10} {call}" for client, call in scheduler.calls)
        raise Failure(f"schedule {seed}\n{made}\nschedule {seed}: {type(error).__name__}: {error}") from error
    return scheduler.calls


@cache
def _past(number: int) -> JudgedBackend:
    """A store on which a branch grew and others came and went, so that much of it is garbage."""
    rng = random.Random(f"past {number}")
    scheduler = Scheduler(rng)
    store = JudgedBackend("memory", lambda: scheduler.now)
    scheduler.now -= 6 * _DAY
    with repeatable(rng, scheduler):
        store.create(log.name_of(1), log.encode_record(log.first_record()))
        store.create(identity.NAME, identity.encode(identity.new_identity(BLOCK)))
        store.create(reserve.NAME, b"")
        with open_on(store) as opened:
            for branch in rng.sample(("main", "main", "side", "side", "new", "new"), rng.randint(3, 6)):
                number = rng.randrange(STATES)
                opened.commit(state(number), branch=branch, message=str(number))
                if branch != "main" and rng.random() < 0.7:
                    opened.delete_branch(branch)
                scheduler.now += _DAY
            opened.commit(state(0), message="0")
    return store


@dataclass(slots=True)
class _Cast:
    """The clients of one schedule."""

    network: Network
    rng: random.Random
    opened: list[Store] = field(default_factory=list)

    def add(self, number: int, role: str) -> None:
        own = random.Random(self.rng.random())

        def live(client: Client) -> None:
            store = open_on(ScheduledBackend(self.network, client))
            self.opened.append(store)
            getattr(User(self.network, own, store), role)()

        client = Client(f"{number} {role}", live)
        if self.rng.random() < 0.5:
            client.stall, client.nap = self._trigger(), self.rng.choice((20, 100, FOR_EVER))
        if self.rng.random() < 0.1:
            client.crash = self._trigger()
        self.network.scheduler.add(client)

    def _trigger(self) -> Trigger:
        prefix = self.rng.choice((*_TURNING_POINTS, "", "create log", "create log"))
        return Trigger(prefix, self.rng.randint(1, _TURNING_POINTS[prefix]))

    def play(self) -> None:
        try:
            self.network.scheduler.run()
        finally:
            for store in self.opened:
                store.close()
        self.network.deliver(everything=True)


def _check(store: JudgedBackend) -> None:
    """Whatever happened: garbage goes in two collections, work goes on, and all that refs lead to is there."""
    with open_on(store) as fresh:
        lists = store.orphan_lists()
        fresh.gc(grace=0, expire=0)
        if lists or store.orphan_packs():
            fresh.gc(grace=0, expire=0)
        left = store.orphan_packs() | (store.orphan_lists() & lists)
        expect(not left, f"orphans survived two collections: {', '.join(sorted(left))}")
        fresh.commit(state(0), branch="after")
        root = store.roots[-1]
        for commit in sorted(root.leads_to):
            try:
                expect(is_state(fresh.load(commit.hex())), f"commit {short(commit)} was read back changed")
            except NotFound:
                expect(commit in root.absent, f"commit {short(commit)} is gone")
