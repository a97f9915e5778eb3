"""Three clients do at random all that a store can do, some are killed at it, and a model says what must be there.

CAS_TEST_EXAMPLES examples (150) of CAS_TEST_STEPS steps (75) are run, from the seed CAS_TEST_SEED (0). A failure is
shrunk, and printed as the steps that lead to it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from faults import children
from faults.stores import errors, same
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from machine.following import Followed
from machine.model import Change, Collect, Commit, Keep, Move, Prune, Repack, Undo
from machine.states import VARIANTS, Contents, state

import cas
from cas import Exists, NotFound, RefConflict
from cas.block import ObjectId
from cas.gc import EXPIRE
from cas.refs import Ref, RefKind
from cas.rewriting import LEVELS, Level

EXAMPLES = int(os.environ.get("CAS_TEST_EXAMPLES", "150"))
STEPS = int(os.environ.get("CAS_TEST_STEPS", "75"))
SEED = int(os.environ.get("CAS_TEST_SEED", "0"))
PARTS = 4

CLIENTS = st.integers(0, 2)
BRANCHES = st.sampled_from(["main", "main", "b1", "b2"])
TAGS = st.sampled_from(["t0", "t1"])
VARIANT = st.integers(0, VARIANTS - 1)
PARTS_OF_STATES = st.tuples(VARIANT, VARIANT, VARIANT)
PICKS = st.integers(0, 255)
KEEPS = st.integers(1, 3)
RACES = st.sampled_from(["gc", "gc now", "prune", "delete", "commit", "repack"])
DELTAS = st.sampled_from(["none", "parent"])
EXPIRES = st.sampled_from([0.0, 0.0, EXPIRE])


class Machine(Followed):
    """All that clients can do. An operation that a kill is waiting for is done by a child, which dies of it."""

    # -- committing and reading ---------------------------------------------------------------------------------

    @rule(client=CLIENTS, branch=BRANCHES)
    def load(self, client: int, branch: str) -> None:
        tip = self.model.head.tip(branch)
        if tip is None:
            assert self.clients[client].load(branch, default=None) is None
            self.loaded[client].pop(branch, None)
        elif tip in self.model.head.pruned:
            with pytest.raises(NotFound, match="pruned"):
                self.clients[client].load(branch)
        else:
            assert same(self.clients[client].load(branch), state(self.model.contents[tip]))
            self.loaded[client][branch] = tip

    def _commit(self, client: int, branch: str, parts: tuple[int, int, int], delta: Any) -> None:
        tip, contents = self.model.head.tip(branch), self.contents(parts)
        moved = self.loaded[client].get(branch) != tip
        done = self.do(
            lambda: self._made(client, branch, contents, delta).id,
            Commit(branch, tip, contents),
            RefConflict if moved else None,
        )
        if done is not None:
            assert done.value == (self.model.head.tip(branch) or b"").hex()
            self.loaded[client][branch] = ObjectId(bytes.fromhex(done.value))

    def _made(self, client: int, branch: str, contents: Contents, delta: Any = "none") -> cas.Commit:
        store, told = self.clients[client], {"branch": branch, "step": contents.step}
        return store.commit(state(contents), codec="planes", delta=delta, **told)

    @rule(client=CLIENTS, branch=BRANCHES, parts=PARTS_OF_STATES, delta=DELTAS)
    def commit(self, client: int, branch: str, parts: tuple[int, int, int], delta: str) -> None:
        self._commit(client, branch, parts, delta)

    @rule(client=CLIENTS, branch=BRANCHES, parts=st.lists(PARTS_OF_STATES, min_size=1, max_size=3), delta=DELTAS)
    def resume(self, client: int, branch: str, parts: list[tuple[int, int, int]], delta: str) -> None:
        self.load(client, branch)
        for held in parts:
            self._commit(client, branch, held, delta)

    @rule(client=CLIENTS, branch=BRANCHES, parts=PARTS_OF_STATES, other=st.integers(1, 2), race=RACES)
    def commit_async(self, client: int, branch: str, parts: tuple[int, int, int], other: int, race: str) -> None:
        """While the commit is on its way another client collects, repacks, prunes, deletes the branch or commits."""
        self.load(client, branch)
        tip, contents, rival = self.model.head.tip(branch), self.contents(parts), (client + other) % 3
        if self.loaded[client].get(branch) != tip:
            return
        if race == "commit":
            self.load(rival, branch)
        pending = self.clients[client].commit_async(state(contents), branch=branch, step=contents.step, codec="planes")
        changes: list[Change] = []
        won = _unless_moved(lambda: self._race(rival, branch, race, changes))
        done = _unless_moved(pending.wait)
        if done is not None:
            changes.append(Commit(branch, tip, contents))
        left = self.follow(changes)
        assert not any(isinstance(change, Commit | Move) for change in left), f"{left} were acknowledged"
        assert done is not None or (race in ("commit", "delete") and won is not None), "a conflict without a rival"
        for number, made in ((client, done), (rival, won)):
            if isinstance(made, cas.Commit):
                self.loaded[number][branch] = ObjectId(bytes.fromhex(made.id))

    def _race(self, rival: int, branch: str, race: str, changes: list[Change]) -> Any:
        """What the other client does meanwhile; adds to `changes` what is acknowledged."""
        store, tip = self.clients[rival], self.model.head.tip(branch)
        if race in ("gc", "gc now"):
            expire = 0 if race == "gc now" else EXPIRE
            found: Any = store.gc(grace=0, expire=expire)
            changes.append(Collect(expire, self.model.seq))
        elif race == "repack":
            found = store.repack()
            changes.append(Repack())
        elif race == "prune" and tip is not None:
            found = store.prune(branch, keep_last=1)
            changes.append(Prune(branch, 1))
        elif race == "delete" and tip is not None:
            found = store.delete_branch(branch)
            self.loaded[rival].pop(branch, None)
            changes.append(Move((RefKind.BRANCH, branch), None))
            found = True
        elif race == "commit" and self.loaded[rival].get(branch) == tip:
            contents = self.contents((0, 0, 0))
            found = self._made(rival, branch, contents)
            changes.append(Commit(branch, tip, contents))
        else:
            found = None
        return found

    @rule(client=CLIENTS, number=PICKS)
    def load_by_id(self, client: int, number: int) -> None:
        """What no ref leads to may be gone, but it is never there in part or wrong."""
        commit = self.picked(number)
        if commit is None:
            return
        try:
            found = self.clients[client].load(commit.hex())
        except NotFound:
            assert commit in self.model.head.pruned or not self.stays(commit)
            return
        assert same(found, state(self.model.contents[commit]))

    # -- refs -----------------------------------------------------------------------------------------------------

    @rule(client=CLIENTS, branch=BRANCHES, number=PICKS, force=st.booleans())
    def branch(self, client: int, branch: str, number: int, force: bool) -> None:
        """Also to commits that nothing leads to any more."""
        commit = self.picked(number)
        if commit is not None and self._set((RefKind.BRANCH, branch), commit, client, force):
            self.loaded[client][branch] = commit

    @rule(client=CLIENTS, tag=TAGS, number=PICKS)
    def tag(self, client: int, tag: str, number: int) -> None:
        commit = self.picked(number)
        if commit is not None:
            self._set((RefKind.TAG, tag), commit, client, force=False)

    def _set(self, ref: Ref, commit: ObjectId, client: int, force: bool) -> bool:
        store, (kind, name), gone = self.clients[client], ref, not self.stays(commit)
        taken = ref in self.model.head.refs and not force
        error = NotFound if gone and not taken else Exists if taken else None
        if gone and taken:
            return False

        def work() -> None:
            if kind is RefKind.TAG:
                store.tag(name, commit.hex())
            else:
                store.branch(name, commit.hex(), force=force)

        return self.do(work, Move(ref, commit), error, perhaps=gone) is not None

    @rule(client=CLIENTS, branch=BRANCHES)
    def delete_branch(self, client: int, branch: str) -> None:
        error = NotFound if self.model.head.tip(branch) is None else None
        work = partial(self.clients[client].delete_branch, branch)
        if self.do(work, Move((RefKind.BRANCH, branch), None), error) is not None:
            self.loaded[client].pop(branch, None)

    @rule(client=CLIENTS, tag=TAGS)
    def delete_tag(self, client: int, tag: str) -> None:
        ref = (RefKind.TAG, tag)
        error = None if ref in self.model.head.refs else NotFound
        self.do(partial(self.clients[client].delete_tag, tag), Move(ref, None), error)

    @rule(client=CLIENTS)
    def undo(self, client: int) -> None:
        error = NotFound if self.model.undo_target(None) is None else None
        self.do(self.clients[client].undo, Undo(None), error)

    @rule(client=CLIENTS, back=PICKS)
    def undo_to(self, client: int, back: int) -> None:
        """Every root down to the floor can be gone back to, and nothing else."""
        seq = self.model.seq + 1 - back % (self.model.seq + 1)
        error = NotFound if self.model.undo_target(seq) is None else None
        self.do(partial(self.clients[client].undo, seq), Undo(seq), error)

    # -- freeing --------------------------------------------------------------------------------------------------

    @rule(client=CLIENTS, expire=EXPIRES, dry_run=st.integers(0, 5).map(lambda number: number == 0))
    def gc(self, client: int, expire: float, dry_run: bool) -> None:
        store = self.clients[client]
        if dry_run:
            assert store.gc(grace=0, expire=expire, dry_run=True).dry_run
            return
        orphans = self.orphans()
        done = self.do(partial(store.gc, grace=0, expire=expire), Collect(expire, self.model.seq))
        if done is not None:
            assert done.value.rescued == 0
            if expire == 0:
                self.count_orphans(orphans)

    @rule(client=CLIENTS, level=st.sampled_from(LEVELS))
    def repack(self, client: int, level: Level) -> None:
        self.do(partial(self.clients[client].repack, level), Repack())

    @rule(client=CLIENTS, branch=BRANCHES, keep=KEEPS, dry_run=st.booleans())
    def prune(self, client: int, branch: str, keep: int, dry_run: bool) -> None:
        if dry_run and self.model.head.tip(branch) is not None:
            pruned = self.clients[client].prune(branch, keep_last=keep, dry_run=True)
            assert {held.id for held in pruned.dropped} == {name.hex() for name in self.model.dropped(branch, keep)}
            return
        error = NotFound if self.model.head.tip(branch) is None else None
        self.do(partial(self.clients[client].prune, branch, keep_last=keep), Prune(branch, keep), error)

    @rule(client=CLIENTS, branch=BRANCHES, keep=st.none() | KEEPS)
    def set_policy(self, client: int, branch: str, keep: int | None) -> None:
        rules: Any = {} if keep is None else {"keep_last": keep}
        self.do(partial(self.clients[client].set_policy, branch, **rules), Keep(branch, keep))

    @rule(client=CLIENTS, rival=CLIENTS, first=PARTS_OF_STATES, second=PARTS_OF_STATES)
    def come_back(self, client: int, rival: int, first: tuple[int, int, int], second: tuple[int, int, int]) -> None:
        """To a commit of which a part is still there, because another branch has it."""
        self.resume(client, "b1", [first, second], "parent")
        commit = self.model.head.tip("b1")
        self.resume(rival, "b2", [second], "none")
        self.delete_branch(rival, "b1")
        self.gc(rival, 0.0, False)
        if commit is not None and self._set((RefKind.BRANCH, "main"), commit, client, force=True):
            self.loaded[client]["main"] = commit

    # -- coming and going -----------------------------------------------------------------------------------------

    @precondition(lambda machine: machine.kill_after is None)
    @rule(calls=st.integers(0, 30))
    def kill_the_next(self, calls: int) -> None:
        """What changes the store next does so in a child, which is killed after so many calls."""
        self.kill_after = calls

    @rule(client=CLIENTS, is_index_kept=st.booleans())
    def reopen(self, client: int, is_index_kept: bool) -> None:
        self.clients[client].close()
        if not is_index_kept:
            shutil.rmtree(self.folder / f"index{client}", ignore_errors=True)
        self.clients[client] = self.open(f"index{client}")
        self.loaded[client] = {}

    @rule(client=CLIENTS, data=st.booleans())
    def fsck(self, client: int, data: bool) -> None:
        assert errors(self.clients[client].fsck(data=data)) == []


def _unless_moved(work: Callable[[], Any]) -> Any:
    """What `work` returns; None if another client was faster."""
    try:
        return work()
    except RefConflict:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_is_lost_whatever_three_clients_do(part: int) -> None:
    Machine.steps = Machine.examples = Machine.kills = 0
    examples = -(-EXAMPLES // PARTS)
    chosen = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    with children.on_one_processor():
        run_state_machine_as_test(hypothesis.seed(SEED * PARTS + part)(Machine), settings=chosen)
    print(f"{Machine.examples} examples, {Machine.steps} steps, {Machine.kills} kills")
    assert Machine.examples >= examples
    assert Machine.steps >= examples * STEPS * 0.6
    assert Machine.kills >= examples * STEPS / 200
