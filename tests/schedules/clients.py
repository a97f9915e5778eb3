"""What clients do: train, manage refs, collect, repack, read. Each checks what it is told against what happened.

An error counts as a bug unless something happened since the call began that explains it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from cas.backend import Backend
from cas.block import ObjectId
from cas.errors import CommitUnknown, Exists, NotFound, RefConflict
from cas.refs import Ref, RefKind
from cas.rewriting import LEVELS
from cas.store import Store

from .judge import Violation
from .network import Network

BLOCK = 4096
_STATES = [(n, n + 1, n % 3) for n in range(9)] + [(n,) for n in range(0, 9, 3)]
"""Of each state the values of its blocks; of those of several blocks the last is that of a nested tensor."""
STATES = len(_STATES)
_SLOW = np.random.default_rng(0).standard_normal(BLOCK // 4).astype(np.float32)
_REFS: list[Ref] = [(RefKind.BRANCH, "side"), (RefKind.BRANCH, "new"), (RefKind.TAG, "v1")]
_MISSING = object()
_numbers = count()


def state(number: int) -> dict[str, Any]:
    """A state of two to four blocks, some of which other states hold too, also in a tree of its own; of one of them
    all other states have changes."""
    values, slow = _STATES[number], _SLOW * np.float32(1 + number * 1e-5)
    if len(values) == 1:
        return {"number": number, "w": _filled(values), "slow": slow}
    frozen = {"text": "x" * 4200, "w": _filled(values[2:])}
    return {"number": number, "w": _filled(values[:2]), "slow": slow, "frozen": frozen}


def _filled(values: tuple[int, ...]) -> Any:
    return np.repeat(np.array(values, np.uint8), BLOCK)


def is_state(found: Any) -> bool:
    return _same(found, state(found["number"]))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(np.array_equal(one, other))


def expect(holds: bool, text: str) -> None:
    if not holds:
        raise Violation(text)


def open_on(backend: Backend) -> Store:
    """A store with an index of its own, which stays in memory because no folder can be made there."""
    return Store(backend, index=Path(f"/dev/null/{next(_numbers)}"))


class User:
    """One client: a `Store` of its own, and what it may take for granted."""

    def __init__(self, network: Network, rng: random.Random, store: Store) -> None:
        self._network = network
        self._truth = network.store
        self._rng = rng
        self._store = store
        self._seen: dict[str, set[ObjectId | None]] = {}
        """What branches may have named when this client last loaded, made or moved them."""

    # -- single calls -------------------------------------------------------------------------------------------

    def load(self, branch: str) -> None:
        since, ref = self._truth.head, (RefKind.BRANCH, branch)
        try:
            found = self._store.load(branch, default=_MISSING)
        except NotFound as error:
            tips = [tip for tip in self._truth.values(ref, since) if tip is not None]
            gone = any(not self._truth.led_to(tip, since) for tip in tips)
            expect(gone, f"branch {branch} cannot be loaded, though nobody gave it up: {error}")
            return
        values = set(self._truth.values(ref, since))
        if found is _MISSING:
            expect(None in values, f"branch {branch} is said not to exist")
            self._seen[branch] = {None}
            return
        expect(is_state(found), f"branch {branch} was read back changed")
        self._seen[branch] = values

    def commit(self, branch: str, number: int) -> bool:
        """False if the branch has moved."""
        since, ref = self._truth.head, (RefKind.BRANCH, branch)
        seen = self._seen.get(branch, {None})
        self._seen[branch] = set()  # after CommitUnknown
        message = f"{number} {self._rng.random()}"
        try:
            delta: Any = self._rng.choice(("none", "parent"))
            done = self._store.commit(state(number), branch=branch, message=message, delta=delta)
            made = ObjectId(bytes.fromhex(done.id))
        except RefConflict as error:
            moved = len(seen) != 1 or not seen.issuperset(self._truth.values(ref, since))
            expect(moved and not self._truth.published(message), f"the commit was made, or nobody moved it: {error}")
            return False
        expect(made in self._truth.values(ref, since)[1:], f"a commit on {branch} is said to be made and is not")
        self._seen[branch] = {made}
        return True

    def move(self, ref: Ref, target: ObjectId | None, change: Callable[[], object]) -> None:
        """`change` lets a ref name `target`, or deletes it."""
        since = self._truth.head
        try:
            change()
        except Exists as error:
            expect(any(self._truth.values(ref, since)), f"it did not: {error}")
            return
        except NotFound as error:
            gone = None in self._truth.values(ref, since)
            if target is not None:
                gone = not self._truth.led_to(target, since, with_state=False)
            expect(gone, f"nobody took it away: {error}")
            return
        expect(target in self._truth.values(ref, since)[1:], f"{ref[1]} is said to be moved and is not")
        self._seen[ref[1]] = {target}

    @contextmanager
    def _unknown_allowed(self) -> Iterator[None]:
        """When a reply was lost the outcome of a call may be unknown."""
        try:
            yield
        except CommitUnknown as error:
            expect(self._network.lost, f"no reply was lost: {error}")

    # -- roles --------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Goes back to states of commits that nothing leads to any more: what it finds of them is garbage."""
        branch = self._rng.choice(("main", "main", "side"))
        self.load(branch)
        for _ in range(self._rng.randint(2, 4)):
            with self._unknown_allowed():
                old = self._forgotten()
                number = self._rng.randrange(STATES) if old is None else int(self._truth.message(old).split(" ")[0])
                if not self.commit(branch, number):
                    self.load(branch)

    def _forgotten(self) -> ObjectId | None:
        """Often a commit that nothing leads to any more."""
        found = self._truth.forgotten()
        return self._rng.choice(found) if found and self._rng.random() < 0.7 else None

    def manage(self) -> None:
        """Branches and tags come and go, also at commits that nothing leads to any more."""
        for _ in range(self._rng.randint(2, 4)):
            with self._unknown_allowed():
                self._manage()

    def _manage(self) -> None:
        kind, name = ref = self._rng.choice(_REFS)
        target = self._forgotten() or self._rng.choice(sorted(self._truth.roots[-1].leads_to) or [None])
        if target is None or self._rng.random() < 0.3:
            delete = self._store.delete_branch if kind is RefKind.BRANCH else self._store.delete_tag
            self.move(ref, None, partial(delete, name))
            return
        if kind is RefKind.BRANCH:
            self.move(ref, target, partial(self._store.branch, name, target.hex(), force=True))
        else:
            self.move(ref, target, partial(self._store.tag, name, target.hex()))

    def collect(self) -> None:
        for _ in range(self._rng.choice((1, 1, 2))):
            with self._unknown_allowed():
                if self._rng.random() < 0.7:
                    self._store.gc(grace=0, expire=0)
                else:
                    self._store.gc(grace=self._rng.choice((0, 600)))

    def repack(self) -> None:
        """What history was stored as is given up, and often deleted at once."""
        for _ in range(self._rng.choice((1, 1, 2))):
            with self._unknown_allowed():
                self._store.repack(self._rng.choice(LEVELS))
                if self._rng.random() < 0.5:
                    self._store.gc(grace=0, expire=0)

    def prune(self) -> None:
        since, ref = self._truth.head, (RefKind.BRANCH, "main")
        with self._unknown_allowed():
            try:
                self._store.prune("main", keep_last=self._rng.randint(1, 2))
            except NotFound as error:
                tips = self._truth.values(ref, since)
                gone = any(tip is None or not self._truth.led_to(tip, since, with_state=False) for tip in tips)
                expect(gone, f"branch main cannot be pruned, though nobody moved it: {error}")

    def undo(self) -> None:
        for _ in range(self._rng.randint(1, 2)):
            since = self._truth.head
            with self._unknown_allowed():
                try:
                    self._store.undo()
                except NotFound as error:
                    expect(not self._truth.undoable_since(since), f"undo could go back: {error}")
                else:
                    whys = [root.record.update.why for root in self._truth.roots[since:]]
                    expect("undo" in whys, "undo is said to be done and is not")

    def read(self) -> None:
        for _ in range(self._rng.randint(1, 3)):
            for branch in self._store.refs()["branches"]:
                self.load(branch)
