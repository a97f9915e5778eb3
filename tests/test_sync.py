"""Moving commits between stores: what goes, what does not, what is refused, and what is left after a fault.

Bytes are counted as they lie in the packs of the store that received them.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import children
from faults.stores import count_deltas, errors, quick_folder, state
from trainings import Training, commits, equal

import cas
from cas import pack
from cas.errors import CasError, Corrupt, Exists, Invalid, NotFound, RefConflict
from cas.local import LocalBackend

BLOCK = 65536


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


@pytest.fixture
def here(folder: Path) -> Iterator[cas.Store]:
    with cas.init(folder / "here", block_size=BLOCK) as store:
        yield store


@pytest.fixture
def there(folder: Path) -> Iterator[cas.Store]:
    with cas.init(folder / "there", block_size=BLOCK) as store:
        yield store


def rows(path: Path) -> list[pack.Row]:
    """Every row of a store's packs."""
    backend = LocalBackend(path)
    tables = [pack.read_table(backend, pack.id_of(info.name)) for info in backend.list(pack.FOLDER)]
    backend.close()
    return [row for table in tables for row in table]


def stored(path: Path) -> int:
    return sum(file.stat().st_size for file in (path / "packs").rglob("*") if file.is_file())


def noise(seed: int, nbytes: int = 4 * BLOCK) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def check(path: Path, branch: str, states: list[dict[str, Any]]) -> None:
    """The branch holds just these states, oldest first, and fsck has no complaint."""
    with cas.open(path) as store:
        held = [store.load(made.id) for made in store.log(branch)][::-1]
        assert len(held) == len(states)
        assert all(equal(one, other) for one, other in zip(held, states, strict=True))
        assert errors(store.fsck(data=True)) == []


# -- what goes ------------------------------------------------------------------------------------------------------


def test_a_pushed_branch_is_there_bit_for_bit(here: cas.Store, there: cas.Store) -> None:
    states = commits(here, 4)
    done = here.push(there.path)
    assert done.refs == (cas.Moved("branch", "main", None, here.resolve("main").id),)
    assert done.objects == len(rows(here.path)) == len(rows(there.path))
    assert done.sent == sum(row.stored for row in rows(here.path))
    assert [made.id for made in there.log()] == [made.id for made in here.log()]
    check(there.path, "main", states)


def test_pushing_again_sends_nothing_and_makes_no_record(here: cas.Store, there: cas.Store) -> None:
    commits(here, 3)
    here.push(there.path)
    seq, packs = next(there.roots()).seq, stored(there.path)
    done = here.push(there.path)
    assert (done.refs, done.objects, done.sent) == ((), 0, 0)
    assert (next(there.roots()).seq, stored(there.path)) == (seq, packs)


def test_a_lora_commit_costs_what_is_new_in_it(here: cas.Store, there: cas.Store) -> None:
    """At most the new stored bytes plus 1 % plus 64 KiB, and under 3 % of the checkpoint."""
    base = {f"layer{n}": noise(n, 1 << 20) for n in range(24)}
    here.commit({"base": base, "lora": noise(100, 1 << 16)})
    here.push(there.path)
    before = stored(there.path)
    made = here.commit({"base": base, "lora": noise(101, 1 << 16)})
    done = here.push(there.path)
    assert made.stats is not None
    assert stored(there.path) - before <= 1.01 * made.stored + (64 << 10)
    assert stored(there.path) - before < 0.03 * made.raw
    assert done.sent <= 1.01 * made.stored + (64 << 10)
    assert done.present >= 24
    assert done.saved >= 24 << 20


def test_no_object_is_sent_twice(here: cas.Store, there: cas.Store) -> None:
    training = Training()
    for number in range(6):
        here.commit(training.state(), step=number)
        training.step()
        here.push(there.path)
    names = [row.id for row in rows(there.path)]
    assert len(names) == len(set(names))


def test_stored_bytes_go_as_they_are(here: cas.Store, there: cas.Store) -> None:
    commits(here, 5, delta="parent")
    here.push(there.path)
    assert count_deltas(here.path) == count_deltas(there.path) > 0
    assert sorted(row[:5] + row[6:] for row in rows(here.path)) == sorted(row[:5] + row[6:] for row in rows(there.path))


def test_branches_tags_and_everything(here: cas.Store, there: cas.Store) -> None:
    commits(here, 3)
    commits(here, 2, branch="exp/a", seed=5)
    here.tag("v1", "main~1")
    here.push(there.path, "v1")
    assert there.refs() == {"branches": {}, "tags": {"v1": here.resolve("main~1").id}}
    done = here.push(there.path, everything=True)
    assert {moved.name for moved in done.refs} == {"main", "exp/a"}
    assert there.refs() == here.refs()
    assert errors(there.fsck(data=True)) == []


def test_any_revision_goes_to_a_branch_of_any_name(here: cas.Store, there: cas.Store) -> None:
    commits(here, 4)
    here.push(there.path, "main~2:best/one")
    here.push(there.path, "main@step:3:late")
    ids = {name: here.resolve(rev).id for name, rev in (("best/one", "main~2"), ("late", "main"))}
    assert there.refs()["branches"] == ids


@pytest.mark.parametrize("names", [("nothing",), ("main:",), (":main",), ("main:a b",), ("main:HEAD",), (7,)])
def test_names_that_mean_nothing_are_refused(here: cas.Store, there: cas.Store, names: tuple[str, ...]) -> None:
    commits(here, 1)
    with pytest.raises((NotFound, Invalid)):
        here.push(there.path, *names)
    with pytest.raises(Invalid):
        here.push(there.path, "main", everything=True)
    assert there.refs()["branches"] == {}


def test_a_tag_does_not_move_unless_forced(here: cas.Store, there: cas.Store) -> None:
    commits(here, 3)
    here.tag("v1", "main~1")
    here.push(there.path, "v1")
    with pytest.raises(Exists, match="tags do not move"):
        here.push(there.path, "main:v1")
    assert there.refs()["tags"] == here.refs()["tags"]
    here.push(there.path, "main:v1", force=True)
    assert there.refs() == {"branches": {}, "tags": {"v1": here.resolve("main").id}}


def test_a_branch_does_not_lose_commits_unless_forced(here: cas.Store, there: cas.Store) -> None:
    commits(here, 2)
    commits(there, 3, seed=9)
    before, packs = there.refs(), stored(there.path)
    with pytest.raises(RefConflict) as raised:
        here.push(there.path)
    for tip in (here.resolve("main").id, there.resolve("main").id):
        assert tip[:8] in str(raised.value)
    assert "pull" in str(raised.value)
    assert "force" in str(raised.value)
    assert (there.refs(), stored(there.path)) == (before, packs), "what is refused is not sent"
    here.push(there.path, force=True)
    assert there.refs() == here.refs()


def test_a_branch_that_is_ahead_is_not_set_back(here: cas.Store, there: cas.Store) -> None:
    commits(here, 3)
    here.push(there.path)
    with pytest.raises(RefConflict):
        here.push(there.path, "main~1:main")


def test_one_ref_that_is_refused_holds_back_all(here: cas.Store, there: cas.Store) -> None:
    commits(there, 1, seed=9)
    commits(here, 1)
    commits(here, 1, branch="other", seed=3)
    with pytest.raises(RefConflict):
        here.push(there.path, "other", "main")
    assert list(there.refs()["branches"]) == ["main"]


def test_names_that_clash_at_the_other_side_are_refused(here: cas.Store, there: cas.Store) -> None:
    commits(there, 1, branch="a")
    commits(here, 1, branch="a/b")
    with pytest.raises(Exists, match="a/b"):
        here.push(there.path, "a/b")


# -- fetch, pull, clone ---------------------------------------------------------------------------------------------


def test_a_fetch_moves_tracking_branches_and_nothing_else(here: cas.Store, there: cas.Store) -> None:
    commits(there, 3)
    there.tag("v1", "main~1")
    commits(here, 1, seed=4)
    here.add_remote("lab", there.path)
    own = here.refs()
    done = here.fetch("lab")
    assert {(moved.kind, moved.name) for moved in done.refs} == {("tracking", "lab/main"), ("tag", "v1")}
    assert here.refs()["tracking"] == {"lab/main": there.resolve("main").id}
    assert here.refs()["branches"] == own["branches"]
    assert here.resolve("lab/main~1").id == here.resolve("v1").id == there.resolve("v1").id
    assert equal(here.load("lab/main"), there.load("main"))
    there.branch("main", "main~1", force=True)
    here.fetch("lab", "main")
    assert here.resolve("lab/main").id == there.resolve("main").id, "as the remote's branch moved, wherever it went"


def test_a_tag_that_differs_here_is_left_and_said(
    here: cas.Store, there: cas.Store, caplog: pytest.LogCaptureFixture
) -> None:
    commits(there, 1)
    commits(here, 1, seed=4)
    there.tag("v1", "main")
    here.tag("v1", "main")
    here.add_remote("lab", there.path)
    own = here.refs()["tags"]
    with caplog.at_level(logging.WARNING, "cas"):
        done = here.fetch("lab")
    assert [(moved.kind, moved.name, moved.old, moved.new) for moved in done.left] == [
        ("tag", "v1", own["v1"], there.resolve("v1").id)
    ]
    assert here.refs()["tags"] == own
    assert "v1" in caplog.text


def test_a_branch_of_the_remote_that_became_a_folder_makes_way(here: cas.Store, there: cas.Store) -> None:
    commits(there, 1, branch="exp")
    here.add_remote("lab", there.path)
    here.fetch("lab")
    there.branch("keep", "exp")
    there.delete_branch("exp")
    there.branch("exp/a", "keep")
    here.fetch("lab")
    assert set(here.refs()["tracking"]) == {"lab/exp/a", "lab/keep"}


def test_a_pull_goes_forward(here: cas.Store, there: cas.Store) -> None:
    states = commits(there, 2)
    here.add_remote("origin", there.path)
    done = here.pull()
    assert [(moved.kind, moved.name) for moved in done.refs] == [("tracking", "origin/main"), ("branch", "main")]
    there.commit(state(1))
    here.pull()
    assert here.refs()["branches"] == there.refs()["branches"]
    assert here.pull().refs == ()
    assert equal(here.load("main~1"), states[-1])


@pytest.mark.parametrize("named", [True, False])
def test_a_pull_that_would_lose_commits_is_refused(here: cas.Store, there: cas.Store, named: bool) -> None:
    commits(there, 2)
    if named:
        here.add_remote("origin", there.path)
    here.pull(None if named else there.path, "main")
    here.load("main"), there.load("main")
    here.commit(state(5)), there.commit(state(6))
    own = here.refs()["branches"]
    with pytest.raises(RefConflict, match=r"cas reset main") as raised:
        here.pull(None if named else there.path, "main")
    assert here.resolve("main").id[:8] in str(raised.value)
    assert here.refs()["branches"] == own
    if named:
        here.branch("main", "origin/main", force=True)
        assert here.pull().refs == ()


def test_a_pull_onto_a_branch_that_is_ahead_does_nothing(here: cas.Store, there: cas.Store) -> None:
    commits(there, 2)
    here.pull(there.path)
    here.load("main")
    here.commit(state(5))
    assert here.pull(there.path).refs == ()
    here.push(there.path)
    assert here.refs() == there.refs()


def test_a_tag_is_not_pulled(here: cas.Store, there: cas.Store) -> None:
    commits(there, 1)
    there.tag("v1", "main")
    with pytest.raises(Invalid, match="v1"):
        here.pull(there.path, "v1")
    with pytest.raises(NotFound, match="main, v1"):
        here.pull(there.path, "v2")


def test_a_clone_has_all_branches_and_tags(here: cas.Store, folder: Path) -> None:
    states = commits(here, 3)
    commits(here, 1, branch="exp/a", seed=3)
    here.tag("v1", "main~1")
    with cas.clone(here.path, folder / "copy") as copy:
        refs = copy.refs()
        assert {kind: refs[kind] for kind in ("branches", "tags")} == here.refs()
        assert refs["tracking"] == {f"origin/{name}": tip for name, tip in here.refs()["branches"].items()}
        assert copy.identity.block_size == BLOCK
        assert copy.identity.id != here.identity.id
    check(folder / "copy", "main", states)


def test_a_clone_of_some_names(here: cas.Store, folder: Path) -> None:
    commits(here, 2)
    commits(here, 1, branch="other", seed=3)
    here.tag("v1", "main")
    with cas.clone(here.path, folder / "copy", "other") as copy:
        assert list(copy.refs()["branches"]) == ["other"]
        assert copy.refs()["tags"] == {}
    with pytest.raises(NotFound, match="exp"):
        cas.clone(here.path, folder / "none", "exp")
    assert not (folder / "none").exists()


def test_a_clone_of_an_empty_store(there: cas.Store, folder: Path) -> None:
    with cas.clone(there.path, folder / "copy") as copy:
        assert copy.refs() == {"branches": {}, "tags": {}}
        commits(there, 1)
        copy.pull()
        assert copy.refs()["branches"] == there.refs()["branches"]


def test_a_clone_never_goes_into_a_store_with_commits(here: cas.Store, there: cas.Store) -> None:
    commits(here, 1)
    commits(there, 1, seed=3)
    with pytest.raises(Exists, match="pull"):
        cas.clone(here.path, there.path)


def test_commits_go_back_and_forth(here: cas.Store, there: cas.Store) -> None:
    """Two clusters that take turns."""
    here.add_remote("origin", there.path)
    there.add_remote("origin", here.path)
    here.commit(state(0))
    here.push()
    for number in range(1, 5):
        store = here if number % 2 else there
        store.pull()
        store.load("main")
        store.commit(state(number))
        store.push()
    assert here.refs()["branches"] == there.refs()["branches"]
    assert len(list(here.log())) == 5


# -- deltas ---------------------------------------------------------------------------------------------------------


def test_the_base_of_a_delta_comes_along(here: cas.Store, there: cas.Store) -> None:
    """Even of a commit that is not sent."""
    commits(here, 4, delta="parent")
    here.push(there.path, depth=1)
    assert len(list(there.log())) == 1
    assert equal(there.load("main"), here.load("main"))
    assert errors(there.fsck(data=True)) == []
    assert count_deltas(there.path) > 0


def test_a_base_that_the_target_has_in_a_longer_chain_is_sent_again(here: cas.Store, there: cas.Store) -> None:
    """The target has the base as the end of a chain, the source whole: so the delta would not decode there."""
    states = commits(here, 2, delta="parent")
    here.push(there.path)
    training = Training()
    for _ in range(1):
        training.step()
    with cas.init(here.path.parent / "third", block_size=BLOCK) as third:
        third.commit(states[1])
        training.step()
        last = training.state()
        third.commit(last, delta="parent")
        bases = {row.base for row in rows(third.path) if row.chain == 1}
        assert bases & {row.id for row in rows(there.path) if row.chain}
        third.push(there.path, "main:other")
    assert equal(there.load("other"), last)
    assert errors(there.fsck(data=True)) == []


def test_deltas_are_not_sent_whole_where_the_base_is_there(here: cas.Store, there: cas.Store) -> None:
    training = Training()
    here.commit(training.state())
    here.push(there.path)
    before = stored(there.path)
    training.step()
    made = here.commit(training.state(), delta="parent")
    here.push(there.path)
    assert stored(there.path) - before <= made.stored + (64 << 10)
    assert count_deltas(there.path) == count_deltas(here.path) > 0


# -- limits ---------------------------------------------------------------------------------------------------------


def test_progress_ends_at_the_total(here: cas.Store, there: cas.Store) -> None:
    commits(here, 3)
    told: list[tuple[int, ...]] = []
    done = here.push(there.path, progress=lambda *numbers: told.append(numbers))
    assert told[0] == (0, done.objects, 0, done.sent)
    assert told[-1] == (done.objects, done.objects, done.sent, done.sent)
    assert [line[2] for line in told] == sorted(line[2] for line in told)


def test_a_rate_is_kept(here: cas.Store, there: cas.Store) -> None:
    here.commit({"a": noise(1, 1 << 20)})
    started = time.monotonic()
    here.push(there.path, limit_rate=2 << 20)
    assert 0.4 < time.monotonic() - started < 5
    for rate in (0, -1, float("nan")):
        with pytest.raises(Invalid, match="bytes per second"):
            here.push(there.path, limit_rate=rate)


# -- races and faults -----------------------------------------------------------------------------------------------


def _push(path: Path, other: Path) -> str:
    with cas.open(path) as store:
        try:
            store.push(other)
            return "pushed"
        except RefConflict as error:
            return str(error)


@pytest.mark.parametrize("turn", range(4))
def test_of_pushers_that_race_one_wins(folder: Path, turn: int) -> None:
    cas.init(folder / "there", block_size=BLOCK).close()
    paths = [folder / f"from{n}" for n in range(4)]
    for seed, path in enumerate(paths):
        with cas.init(path, block_size=BLOCK) as store:
            commits(store, 2, seed=seed + 10 * turn)
    pushers = [children.start(_push, path, folder / "there") for path in paths]
    said = [pusher.result() for pusher in pushers]
    assert said.count("pushed") == 1
    assert all("pull" in text for text in said if text != "pushed")
    with cas.open(paths[said.index("pushed")]) as winner, cas.open(folder / "there") as there:
        assert there.refs() == winner.refs()
        assert errors(there.fsck(data=True)) == []


def test_pushers_to_branches_of_their_own_all_win(folder: Path) -> None:
    cas.init(folder / "there", block_size=BLOCK).close()

    def push(number: int) -> None:
        with cas.init(folder / f"from{number}", block_size=BLOCK) as store:
            for turn in range(3):
                commits(store, 1, branch=f"b{number}", seed=number) if not turn else store.commit(
                    state(100 * number + turn), branch=f"b{number}"
                )
                store.push(folder / "there", f"b{number}")

    for child in [children.start(push, number) for number in range(4)]:
        child.result()
    with cas.open(folder / "there") as there:
        assert {name: len(list(there.log(name))) for name in there.refs()["branches"]} == dict.fromkeys(
            ["b0", "b1", "b2", "b3"], 3
        )
        assert errors(there.fsck(data=True)) == []


def test_a_collection_between_transfer_and_publishing_is_noticed(here: cas.Store, there: cas.Store) -> None:
    """What the target was known to have is garbage that is collected while the rest travels."""
    states = commits(here, 3)
    here.push(there.path, "main:gone")
    there.delete_branch("gone")
    here.load("main")
    here.commit(state(9))
    collected = []

    def progress(objects: int, of_objects: int, nbytes: int, of_bytes: int) -> None:
        if not collected and nbytes == of_bytes:
            collected.append(there.gc(grace=0, expire=0))

    done = here.push(there.path, progress=progress)
    assert collected[0].deleted
    assert done.sent > sum(row.stored for row in rows(here.path)) * 0.9
    check(there.path, "main", [*states, state(9)])


def _limited_push(path: Path, other: Path, rate: float | None) -> None:
    with cas.open(path) as store:
        store.push(other, limit_rate=rate)


@pytest.mark.slow
def test_a_push_killed_anywhere_goes_on(folder: Path) -> None:
    """In all at most 1.1 times the bytes plus 16 MiB for each kill, and nothing can be seen before the end."""
    with cas.init(folder / "here") as here:
        for number in range(4):
            here.commit({f"t{n}": noise(100 * number + n, 4 << 20) for n in range(12)})
        total = sum(row.stored for row in rows(here.path))
    cas.init(folder / "there").close()
    random.seed(7)
    kills = 0
    for _ in range(10):
        child = children.start(_limited_push, folder / "here", folder / "there", 32 << 20)
        time.sleep(random.uniform(0.2, 1.2))
        child.kill()
        status = child.end()[1]
        if not os.WIFSIGNALED(status):
            break
        kills += 1
        with cas.open(folder / "there") as there:
            assert there.refs()["branches"] == {}
    assert kills >= 3
    children.start(_limited_push, folder / "here", folder / "there", None).result()
    assert stored(folder / "there") <= 1.1 * total + kills * (16 << 20)
    with cas.open(folder / "there") as there, cas.open(folder / "here") as here:
        assert there.refs() == here.refs()
        assert errors(there.fsck(data=True)) == []


def _clone(path: Path, other: Path, rate: float | None) -> None:
    cas.clone(path, other, limit_rate=rate).close()


@pytest.mark.slow
def test_a_clone_killed_anywhere_goes_on(folder: Path) -> None:
    with cas.init(folder / "here") as here:
        here.commit({f"t{n}": noise(n, 4 << 20) for n in range(16)})
        here.tag("v1", "main")
        refs = here.refs()
    random.seed(8)
    for _ in range(6):
        child = children.start(_clone, folder / "here", folder / "copy", 64 << 20)
        time.sleep(random.uniform(0.0, 1.0))
        child.kill(signal.SIGKILL)
        if not os.WIFSIGNALED(child.end()[1]):
            break
    else:
        _clone(folder / "here", folder / "copy", None)
    with cas.open(folder / "copy") as copy:
        assert {kind: copy.refs()[kind] for kind in refs} == refs
        assert list(copy.remotes()) == ["origin"]
        assert errors(copy.fsck(data=True)) == []


def _damage(path: Path, row: pack.Row) -> None:
    """Flip a bit in every copy of an object."""
    backend = LocalBackend(path)
    for info in backend.list(pack.FOLDER):
        for found in pack.read_table(backend, pack.id_of(info.name)):
            if found.id == row.id:
                with (path / info.name).open("r+b") as file:
                    file.seek(found.offset + found.stored // 2)
                    byte = file.read(1)[0]
                    file.seek(found.offset + found.stored // 2)
                    file.write(bytes([byte ^ 1]))
    backend.close()


@pytest.mark.parametrize("kind", [0, 2, 3, 4])
def test_a_damaged_object_is_named_and_nothing_can_be_seen(folder: Path, kind: int) -> None:
    """Which is also what becomes of a forged one: its bytes do not match its name."""
    with cas.init(folder / "here", block_size=BLOCK) as here:
        commits(here, 2)
        bad = next(row for row in rows(here.path) if row.kind == kind)
    _damage(folder / "here", bad)
    cas.init(folder / "there").close()
    with cas.open(folder / "here") as here, pytest.raises(Corrupt) as raised:
        here.push(folder / "there")
    assert bad.id.hex()[:8] in str(raised.value)
    assert str(folder / "here") in str(raised.value)
    with cas.open(folder / "there") as there:
        assert there.refs() == {"branches": {}, "tags": {}}
        assert errors(there.fsck(data=True)) == []


def test_a_lost_pack_is_an_error_that_names_what_was_in_it(folder: Path) -> None:
    with cas.init(folder / "here", block_size=BLOCK) as here:
        commits(here, 1)
    for file in (folder / "here" / "packs").rglob("*"):
        if file.is_file():
            file.unlink()
    cas.init(folder / "there").close()
    with cas.open(folder / "here") as here, pytest.raises(NotFound, match="commit"):
        here.push(folder / "there")


def test_swapped_objects_are_refused(folder: Path) -> None:
    """A pack whose table is sound and honest looking, with the names of two blocks exchanged."""
    with cas.init(folder / "here", block_size=BLOCK) as here:
        here.commit({"a": noise(1, BLOCK), "b": noise(2, BLOCK)})
        backend = here._backend
        names = [info.name for info in backend.list(pack.FOLDER)]
        held = [
            (row, backend.read(name, row.offset, row.stored))
            for name in names
            for row in pack.read_table(backend, pack.id_of(name))
        ]
        blocks = [row for row, _ in held if row.kind == 0]
        other = {blocks[0].id: blocks[1].id, blocks[1].id: blocks[0].id}
        forged = pack.PackWriter(backend)
        for row, data in held:
            forged.append(other.get(row.id, row.id), row.kind, row.coding, row.raw, data)
        forged.publish()
        for name in names:
            backend.delete(name)
    with cas.init(folder / "there") as there:
        with pytest.raises(Corrupt, match="does not match its name"):
            there.pull(folder / "here")
        assert there.refs()["branches"] == {}
        assert not {row.id for row in rows(there.path)} & other.keys()


def test_a_store_that_is_collected_and_repacked_is_pulled_from(folder: Path, here: cas.Store) -> None:
    """The packs that a pull reads from are given up and deleted under it."""
    states = commits(here, 6)
    worked = []

    def progress(objects: int, of_objects: int, nbytes: int, of_bytes: int) -> None:
        if not worked:
            worked.append(here.repack(expire=0))
            here.gc(grace=0, expire=0)

    with cas.init(folder / "copy", block_size=BLOCK) as copy:
        copy.pull(here.path, progress=progress)
    assert worked
    check(folder / "copy", "main", states)


def test_a_full_disk_leaves_the_target_as_it_was(folder: Path) -> None:
    with cas.init(folder / "here", block_size=BLOCK) as here:
        commits(here, 3)
    with cas.init(folder / "there", block_size=BLOCK) as there:
        commits(there, 1, branch="own", seed=3)

    def push() -> str:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with cas.open(folder / "here") as here:
            try:
                here.push(folder / "there")
            except CasError as error:
                return str(error)
        return "pushed"

    assert "run it again" in children.start(push).result()
    with cas.open(folder / "there") as there:
        assert list(there.refs()["branches"]) == ["own"]
        assert errors(there.fsck(data=True)) == []
    with cas.open(folder / "here") as here:
        here.push(folder / "there")


def test_a_fetch_beside_commits_holds_up_neither(folder: Path, there: cas.Store) -> None:
    commits(there, 3)
    with cas.init(folder / "copy", block_size=BLOCK) as copy:
        copy.add_remote("lab", there.path)

        def progress(objects: int, of_objects: int, nbytes: int, of_bytes: int) -> None:
            if nbytes == 0:
                copy.commit({"own": 1})

        copy.fetch("lab", progress=progress)
        assert list(copy.refs()["branches"]) == ["main"]
        assert list(copy.refs()["tracking"]) == ["lab/main"]
