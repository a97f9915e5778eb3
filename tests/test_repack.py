"""Repacking: what is stored how afterwards, what it leaves alone, and that no state ever changes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainings import Training, check_all, commits, depths, equal

import cas
from cas import Invalid, Store, choice
from cas.block import Kind, ObjectId
from cas.pack import name_of
from cas.reach import needs_of_state, reachable
from cas.repack import Repacked

LEVELS = ["fast", "small", "smallest"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    cas.init(tmp_path / "store", block_size=64 << 10).close()
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with cas.open(path) as opened:
        yield opened


def collect(store: Store) -> int:
    """Delete what nothing needs; returns the bytes of the packs that are left."""
    return store.gc(grace=0, expire=0).size


@pytest.mark.parametrize("level", LEVELS)
def test_the_newest_is_whole_and_history_is_smaller(store: Store, level: Any) -> None:
    states = commits(store, 6)
    before = collect(store)
    done = store.repack(level)
    assert done.saved > 0
    assert collect(store) < 0.95 * before
    assert set(depths(store, "main")) == {0}
    assert [max(depths(store, f"main~{number}")) for number in range(6)] == [0, 1, 2, 3, 4, 5]
    check_all(store, states)


def test_what_it_says_is_what_the_packs_lost(store: Store, path: Path) -> None:
    commits(store, 5)
    before = _packs(path)
    done = store.repack("smallest")
    collect(store)
    tables = done.written * 10_000  # rows, which it does not count
    assert abs((before - _packs(path)) - done.saved) < tables
    assert done.packs == 5


def _packs(path: Path) -> int:
    return sum(file.stat().st_size for file in (path / "packs").rglob("*") if file.is_file())


@pytest.mark.parametrize("level", LEVELS)
def test_a_second_repack_finds_nothing_to_do(store: Store, level: Any) -> None:
    commits(store, 4)
    store.repack(level)
    collect(store)
    assert store.repack(level) == Repacked()


def test_the_smallest_level_takes_up_what_the_fast_one_left(store: Store) -> None:
    states = commits(store, 4)
    store.repack("fast")
    before = collect(store)
    assert store.repack("smallest").saved > 0
    assert collect(store) < before
    assert store.repack("fast") == Repacked()
    check_all(store, states)


def test_deltas_of_commits_are_turned_round(store: Store) -> None:
    states = commits(store, 5, delta="parent")
    assert max(depths(store, "main")) == 1
    store.repack()
    collect(store)
    assert set(depths(store, "main")) == {0}
    assert max(depths(store, "main~4")) == 4
    check_all(store, states)


def test_new_commits_leave_most_of_history_where_it_is(store: Store) -> None:
    training, states = Training(), []
    for _ in range(4):
        states.append(training.state())
        store.commit(states[-1], step=training.number)
        training.step()
    store.repack()
    collect(store)
    history = {place for place in store._catalog.index.rows() if place.row.chain}
    for _ in range(2):
        states.append(training.state())
        store.commit(states[-1], step=training.number)
        training.step()
    store.repack()
    collect(store)
    now = {(place.row.id, place.row.chain) for place in store._catalog.index.rows()}
    assert {(place.row.id, place.row.chain) for place in history} <= now
    assert set(depths(store, "main")) == {0}
    check_all(store, states)


def test_no_chain_is_longer_than_eight_and_every_ninth_is_whole(store: Store) -> None:
    states = commits(store, 12)
    store.repack()
    collect(store)
    deepest = [max(depths(store, f"main~{number}")) for number in range(12)]
    assert deepest == [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    check_all(store, states)


def test_commits_after_a_repack_and_repacks_after_commits(store: Store) -> None:
    """Many rounds, so that runs of deltas fill up and new ones begin."""
    training, states = Training(), []
    for number in range(14):
        states.append(training.state())
        store.commit(states[-1], step=number, delta="parent" if number % 3 else "none")
        training.step(1e-5 if number % 5 else 1e-3)
        if number % 2:
            store.repack("smallest" if number % 4 == 1 else "fast")
            collect(store)
    check_all(store, states)
    assert max(max(depths(store, f"main@step:{number}")) for number in range(14)) <= 8


def test_small_packs_are_joined_and_dead_rows_dropped(store: Store, path: Path) -> None:
    for number in range(20):
        store.commit({"n": number, "w": np.full(3000, number)}, branch="main", step=number)
        store.commit({"gone": np.random.default_rng(number).random(4000)}, branch="gone")
    store.delete_branch("gone")
    collect(store)
    assert len(list((path / "packs").rglob("*/*"))) >= 20
    store.repack()
    collect(store)
    assert len(list((path / "packs").rglob("*/*"))) <= 2
    for number in range(20):
        assert store.load(f"main@step:{number}")["w"][0] == number


def test_what_undo_leads_to_is_kept(store: Store) -> None:
    states = commits(store, 3)
    other = commits(store, 2, branch="other", seed=1)
    store.delete_branch("other")
    store.repack("smallest")
    store.gc(grace=0)
    store.undo()
    check_all(store, states)
    check_all(store, other, "other")


def test_what_nothing_leads_to_is_not_rewritten(store: Store) -> None:
    commits(store, 2)
    commits(store, 4, branch="gone", seed=1)
    store.delete_branch("gone")
    collect(store)
    before = store.stats().stored
    store.repack()
    collect(store)
    assert store.stats().stored <= before


def test_tips_that_resemble_another_lie_near_it(store: Store) -> None:
    training = Training()
    base = training.state()
    store.commit(base, branch="base", step=0)
    tuned = {}
    for number in range(4):
        child = Training(steps=number + 7)
        child.step(1e-5 * (number + 1))
        tuned[f"tune{number}"] = child.state()
        store.commit(tuned[f"tune{number}"], branch=f"tune{number}", step=0)
    store.commit(Training(9).state(), branch="stranger", step=0)
    store.repack("smallest")
    collect(store)
    assert set(depths(store, "base")) == set(depths(store, "stranger")) == {0}
    for branch, state in tuned.items():
        assert max(depths(store, branch)) == 1
        assert equal(store.load(branch), state)


def test_a_tip_that_leans_on_another_keeps_it_whole_when_that_becomes_history(store: Store) -> None:
    training = Training()
    store.commit(training.state(), branch="main", step=0)
    child = Training(steps=7)
    child.step()
    store.commit(child.state(), branch="tuned", step=0)
    store.repack()
    collect(store)
    assert max(depths(store, "tuned")) == 1
    for _ in range(3):
        training.step()
        store.commit(training.state(), branch="main", step=training.number)
    store.repack()
    collect(store)
    assert max(depths(store, "tuned")) == 1
    assert equal(store.load("tuned"), child.state())


def test_a_value_that_came_back_is_whole_where_the_newest_has_it(store: Store) -> None:
    training = Training()
    first = training.state()
    training.step()
    second = training.state()
    states = [first, second, first, second, first]
    for number, state in enumerate(states):
        store.commit({**state, "number": number}, step=number)
    store.repack()
    collect(store)
    assert set(depths(store, "main")) == {0}
    check_all(store, [{**state, "number": number} for number, state in enumerate(states)])


def test_history_that_was_pruned_is_passed_over(store: Store) -> None:
    states = commits(store, 6)
    store.prune(keep_every=2, keep_last=1)
    store.repack()
    collect(store)
    for number in (0, 2, 4, 5):
        assert equal(store.load(f"main@step:{number}"), states[number])


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b"[2, {}]", b'[1, {"x": 3}, {}]', b"\xff\xfe", b"[1, [], []]", b'[1, {}, {"0": 1}]']
)
def test_what_was_finished_may_be_forgotten_or_garbled(store: Store, path: Path, content: bytes | None) -> None:
    states = commits(store, 3)
    store.repack()
    collect(store)
    noted = path / "index" / "repacked"
    noted.unlink() if content is None else noted.write_bytes(content)
    store.repack()
    collect(store)
    check_all(store, states)


def test_an_empty_store_and_one_without_tensors(store: Store) -> None:
    assert store.repack() == Repacked()
    store.commit({"a": 1, "text": "x" * 200_000})
    store.commit({"a": 2, "text": "y" * 200_000})
    store.repack("smallest")
    collect(store)
    assert store.load()["text"] == "y" * 200_000


def test_blocks_of_the_newest_lie_together(store: Store) -> None:
    commits(store, 5)
    store.repack()
    collect(store)
    newest = store._objects.commit(ObjectId(bytes.fromhex(store.resolve().id)))
    wanted = {name for kind, name in reachable(needs_of_state(newest), store._objects, {}) if kind is Kind.BLOCK}
    rows = store._catalog.index.rows()
    deltas = {place.pack for place in rows if place.row.chain}
    assert deltas
    assert not deltas & {place.pack for place in rows if place.row.id in wanted}


def test_progress_says_how_far_and_how_much_was_saved(store: Store) -> None:
    commits(store, 4)
    told: list[str] = []
    store.repack(progress=told.append)
    assert told[0] == "marking"
    assert any(text.startswith("rewriting ") and text.endswith(" saved") for text in told)


def test_only_known_levels(store: Store) -> None:
    with pytest.raises(Invalid, match="level is one of fast, small, smallest"):
        store.repack("best")  # type: ignore[arg-type]


def test_another_store_that_has_the_old_packs_open_reads_on(store: Store, path: Path) -> None:
    states = commits(store, 4)
    with cas.open(path) as other:
        assert equal(other.load("main~3"), states[0])
        store.repack("smallest")
        store.gc(grace=0, expire=0)
        assert equal(other.load("main~3"), states[0])
        assert equal(other.load("main"), states[3])


def test_a_commit_that_was_begun_before_goes_on_after(store: Store, path: Path) -> None:
    """What the commit leant on is condemned meanwhile: it finds everything anew."""
    states = commits(store, 3)
    training = Training()
    for _ in states:
        training.step()
    with cas.open(path) as other:
        other.load()
        repacked: list[Repacked] = []

        def repack(_: int) -> None:
            if not repacked:
                repacked.append(store.repack("smallest"))
                store.gc(grace=0, expire=0)

        states.append(training.state())
        other.commit(states[-1], step=3, delta="parent", progress=repack)
        assert repacked[0].packs
    check_all(store, states)


def test_what_is_rewritten_goes_by_what_is_new(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "SMALL_PACK", 0)  # these are all small
    states = commits(store, 8)
    done = store.repack("smallest")
    collect(store)
    training = Training()
    for _ in states:
        training.step()
    store.commit(training.state(), step=8)
    again = store.repack("smallest")
    assert 0 < again.rewritten < 0.35 * done.rewritten, f"{again} after {done}"


def test_a_good_copy_is_not_given_up_for_a_bad_one(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy that would stay, in a pack that is left alone, is damaged."""
    monkeypatch.setattr(choice, "SMALL_PACK", 1 << 20)
    twice = np.random.default_rng(0).standard_normal(10_000)
    large = {"twice": twice, "more": np.random.default_rng(1).standard_normal(300_000)}
    with cas.init(tmp_path / "other", block_size=64 << 10) as other:
        other.commit(large)
    with cas.open(path) as store:
        kept, noise = np.random.default_rng(2).bytes(70_000), np.random.default_rng(3).bytes(90_000)
        store.commit({"twice": twice, "kept": kept, "noise": noise}, branch="gone")
        for number in range(3):
            store.commit({"number": number, "kept": kept})
    (theirs,) = (file for file in (tmp_path / "other" / "packs").rglob("*") if file.is_file())
    place = path / theirs.relative_to(tmp_path / "other")
    place.parent.mkdir(exist_ok=True)
    shutil.copy(theirs, place)
    with cas.open(path) as store:
        store.load("main")
        store.commit(large)
        store.delete_branch("gone")
        known = store._catalog.locate(p.row.id for p in store._catalog.index.rows())
        copies = next(p for p in known.values() if len(p) == 2 and p[0].row.kind == Kind.BLOCK)
        data = bytearray(place.read_bytes())
        (bad,) = (copy for copy in copies if name_of(copy.pack) == str(place.relative_to(path)))
        data[bad.row.offset] ^= 1
        place.chmod(0o644)
        place.write_bytes(data)
        store.gc(expire=0)
        done = store.repack("fast")
        store.gc(grace=0, expire=0)
        assert done.packs >= 2
    with cas.open(path) as store:
        assert equal(store.load("main"), large)


def test_bases_that_only_old_deltas_needed_are_not_copied(store: Store, path: Path) -> None:
    """As in a rotation that keeps the best: what was leant on was pruned since."""
    training = Training()
    for number in range(5):
        store.commit(training.state(), step=number, delta="parent")
        training.step()
    store.prune(keep_last=2)
    collect(store)
    store.repack("smallest")
    collect(store)
    before = _packs(path)
    assert store.repack("smallest") == Repacked()
    assert collect(store) == before
    live = store.stats()
    assert live.stored < 1.05 * sum(store.commit_stats(rev).whole.stored for rev in ("main", "main~1"))


def test_a_tip_of_which_part_is_like_another_comes_to_rest(store: Store) -> None:
    training = Training()
    store.commit(training.state(), step=0)
    tuned = Training(steps=5)
    tuned.step()
    store.commit(tuned.state(), branch="tuned", step=0, delta="parent")
    for level in LEVELS:
        for _ in range(2):
            store.repack(level)  # type: ignore[arg-type]
            collect(store)
        assert store.repack(level) == Repacked()  # type: ignore[arg-type]


def test_many_tunes_of_many_bases_stay_near_their_own(store: Store) -> None:
    tunes = {}
    for seed in range(12):
        store.commit(Training(seed).state(), branch=f"base{seed}", step=0)
    for seed in range(12):
        tuned = Training(seed, steps=seed)
        tuned.step()
        store.load(f"base{seed}")
        store.branch(f"tune{seed}", f"base{seed}")
        store.load(f"tune{seed}")
        tunes[seed] = tuned.state()
        store.commit(tunes[seed], branch=f"tune{seed}", step=1, delta="parent")
    before = collect(store)
    store.repack()
    assert collect(store) <= 1.01 * before
    for seed, state in tunes.items():
        assert max(depths(store, f"tune{seed}")) == 1
        assert equal(store.load(f"tune{seed}"), state)


@pytest.mark.parametrize("branch", ["main", "old"])
def test_a_tip_that_was_set_back_is_near_again(store: Store, branch: str) -> None:
    states = commits(store, 9)
    store.repack()
    collect(store)
    store.branch(branch, "main~8", force=True)
    assert max(depths(store, branch)) == 8
    store.repack()
    collect(store)
    assert max(depths(store, branch)) <= 1
    assert equal(store.load(branch), states[0])
    store.repack()  # joins what that wrote with others that are small
    assert store.repack() == Repacked()


def test_it_rests_after_one_run_however_the_history_is_mixed(store: Store) -> None:
    """Slow and new tensors side by side, over several runs of deltas, with a commit that changes little at the end."""
    training = Training()
    for round_ in range(3):
        for _ in range(11):
            store.commit(training.state(), step=training.number)
            training.step()
        store.repack()
        collect(store)
        again = store.repack()
        assert again == Repacked(), f"round {round_}"


def test_no_space_is_said_before_anything_is_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    commits(store, 4)
    before = len(store._catalog.index.packs())
    monkeypatch.setattr("cas.repack.free_bytes", lambda backend: 1 << 20)
    with pytest.raises(cas.CasError, match=r"may write .* and 1.05 MB are free; prune and `cas gc` first"):
        store.repack()
    assert len(store._catalog.index.packs()) == before


def test_undo_goes_back_as_far_as_was_asked(store: Store) -> None:
    states = commits(store, 3, branch="gone")
    store.commit(Training(1).state())
    store.delete_branch("gone")
    store.repack("smallest", expire=0)
    collect(store)
    with pytest.raises(cas.CasError):
        store.undo()
    assert equal(store.load("main"), Training(1).state())
    assert states
