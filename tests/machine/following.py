"""A store with three clients: what they do is followed by the model, and what must hold is checked after each step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from faults.stores import errors, quick_folder, same
from hypothesis.stateful import RuleBasedStateMachine, invariant

import cas
from cas import NotFound
from cas.block import Kind, ObjectId
from cas.local import LocalBackend
from cas.log import Record
from cas.reach import reachable
from cas.refs import RefKind
from cas.store import Store

from . import dying
from .disk import Disk
from .model import Change, Collect, Model, Root, Undo
from .states import BLOCK_SIZE, Contents, state

ORPHANS_LAST = 2
"""Collections that a pack survives at most which nothing leads to."""


@dataclass(frozen=True, slots=True)
class Done:
    """An operation came to its end, with this result."""

    value: Any


class Followed(RuleBasedStateMachine):
    """Three clients, and an observer that reads for the test. `do` follows what a client does with the model."""

    steps: ClassVar[int] = 0
    examples: ClassVar[int] = 0
    kills: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self.folder = self._stack.enter_context(quick_folder())
        self.path = self.folder / "store"
        cas.init(self.path, block_size=BLOCK_SIZE).close()
        self.clients = [self.open(f"index{number}") for number in range(3)]
        self.loaded: list[dict[str, ObjectId]] = [{}, {}, {}]
        self.observer = self._stack.enter_context(self.open("index of the observer"))
        self.disk = Disk(self.path)
        self._stack.callback(self.disk.close)
        self.model = Model([Root.of(self._record(1)[0], frozenset())])
        self.needs: dict[ObjectId, frozenset[ObjectId]] = {}
        self.survived: dict[str, int] = {}
        self.kill_after: int | None = None
        self.done = 0

    def open(self, index: str) -> Store:
        return Store(LocalBackend(self.path), index=self.folder / index)

    # -- following what is done ---------------------------------------------------------------------------------

    def _record(self, seq: int) -> tuple[Record, frozenset[ObjectId] | None]:
        record = self.observer._log.read(seq)
        try:
            return record, frozenset(self.observer._roots.absent(record))
        except NotFound:  # a collection took the list, which a newer root does not name
            return record, None

    def follow(self, changes: list[Change]) -> list[Change]:
        """Take up what was published; the changes that were not."""
        newest = self.observer._roots.current().seq
        left = self.model.follow([self._record(seq) for seq in range(self.model.seq + 1, newest + 1)], changes)
        for name in self.model.contents.keys() - self.needs.keys():
            parents = {parent for parent in [self.model.parents[name]] if parent is not None}
            needed = reachable([(Kind.COMMIT, name)], self.observer._objects, {}, parents)
            self.needs[name] = frozenset(held for _, held in needed)
        return left

    def do(
        self, work: Callable[[], Any], change: Change, error: type[Exception] | None = None, perhaps: bool = False
    ) -> Done | None:
        """Do the work, or die of it: it makes the change, unless it must raise `error`, or may, `perhaps`."""
        if self.kill_after is not None:
            return self._do_and_die(work, change, error, perhaps)
        try:
            done = Done(work())
        except cas.CasError as raised:
            if error is None or type(raised) is not error:
                raise
            self.follow([])
            return None
        assert error is None or perhaps, f"{error} was not raised by {change}"
        self._check_made(self.follow([change]))
        return done

    def _do_and_die(
        self, work: Callable[[], Any], change: Change, error: type[Exception] | None, perhaps: bool
    ) -> None:
        def ending() -> str:
            try:
                work()
            except cas.CasError as raised:
                if error is None or type(raised) is not error:
                    raise
                return "raised"
            return "done"

        calls, self.kill_after = self.kill_after, None
        ended = dying.run(ending, calls or 0)
        type(self).kills += ended is None
        left = self.follow([] if ended == "raised" else [change])
        if ended == "done":
            assert error is None or perhaps, f"{error} was not raised by {change}"
            self._check_made(left)

    def _check_made(self, left: list[Change]) -> None:
        """All that was acknowledged is in the log; a collection or a prune that finds nothing to do has no record."""
        made = [
            c for c in left if not isinstance(c, Collect) and c.made(self.model, self.model.head) != self.model.head
        ]
        assert not made, f"{made} were acknowledged, and no record makes them"

    def picked(self, number: int) -> ObjectId | None:
        """One of all commits that were ever made."""
        made = list(self.model.contents)
        return made[number % len(made)] if made else None

    def stays(self, commit: ObjectId) -> bool:
        """Whether it cannot have been collected."""
        return commit in self.model.led_to(*self.model.undoable())

    def contents(self, parts: tuple[int, int, int]) -> Contents:
        return Contents(*parts, len(self.model.contents))

    # -- what must hold -------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_missing(self) -> None:
        """All that refs lead to, and those of every root that undo may go back to, decodes from packs that stay."""
        type(self).steps += 1
        self.done += 1
        missing = self._needed(*self.model.undoable()) - self.disk.decodable(self.observer._roots.current())
        assert not missing, f"{len(missing)} objects are missing"
        client = self.clients[self.done % 3]
        assert client.refs() == _public(self.model.head)
        for tip in list(self.model.head.refs.values())[:1]:
            self._check_reads_back(client, tip)

    def _needed(self, *roots: Root) -> frozenset[ObjectId]:
        """Every object that these roots lead to."""
        led_to = self.model.led_to(*roots)
        return frozenset(led_to).union(*(self.needs[name] for name in led_to - self.model.head.pruned))

    def orphans(self) -> set[str]:
        """Packs that hold nothing which a ref leads to, or which that is a change of."""
        return self.disk.orphans(self.observer._roots.current(), self._needed(self.model.head))

    def count_orphans(self, before: set[str]) -> None:
        """After a collection that kept nothing for undo."""
        there = before & set(self.disk.names("packs"))
        self.survived = {name: self.survived.get(name, 0) + 1 for name in there}
        assert all(count < ORPHANS_LAST for count in self.survived.values()), f"{self.survived} are orphans, and stay"

    def _check_reads_back(self, store: Store, commit: ObjectId) -> None:
        if commit in self.model.head.pruned:
            with pytest.raises(NotFound, match="pruned"):
                store.load(commit.hex())
        else:
            assert same(store.load(commit.hex()), state(self.model.contents[commit]))

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self._check_at_the_end()
        finally:
            for client in self.clients:
                client.close()
            self._stack.close()

    def _check_at_the_end(self) -> None:
        type(self).examples += 1
        self._compare_indexes()
        with self.open("index of another") as fresh:
            self._check_whole(fresh)
            if self.model.head.floor < self.model.seq:
                fresh.undo(self.model.head.floor)
                assert self.follow([Undo(self.model.head.floor)]) == []
                self._check_whole(fresh)
            assert errors(fresh.fsck(data=True)) == []
            self.clients[0].gc(grace=0, expire=0)
            self.clients[1].gc(grace=0, expire=0)
            self.follow([Collect(0, self.model.seq)] * 2)
            assert self.orphans() == set()
            assert self.disk.condemned_files(self.observer._roots.current()) == []
            self._check_whole(fresh)

    def _check_whole(self, store: Store) -> None:
        """Every commit that a ref leads to is in its log, and reads back unless it was pruned."""
        assert store.refs() == _public(self.model.head)
        for tip in set(self.model.head.refs.values()):
            found = [(held.id, held.pruned) for held in store.log(tip.hex())]
            pruned = self.model.head.pruned
            assert found == [(name.hex(), name in pruned) for name in self.model.history(tip)]
        for commit in self.model.led_to(self.model.head):
            self._check_reads_back(store, commit)

    def _compare_indexes(self) -> None:
        """Each client's index finds what one finds that is built from the packs now."""
        with self.open("rebuilt") as rebuilt:
            for store in self.clients:
                store._roots.current()
                store._catalog.refresh()
                assert store._catalog.index.packs() == rebuilt._catalog.index.packs()
                assert set(store._catalog.index.rows()) == set(rebuilt._catalog.index.rows())


def _public(root: Root) -> dict[str, dict[str, str]]:
    """As `Store.refs` gives them."""
    found: dict[str, dict[str, str]] = {"branches": {}, "tags": {}}
    for (kind, name), commit in sorted(root.refs.items()):
        found["tags" if kind is RefKind.TAG else "branches"][name] = commit.hex()
    return found
