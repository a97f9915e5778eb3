"""Pruning: states go, commits stay; what another ref needs stays too. And policies that commits apply by themselves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import children
from faults.stores import errors, numbers, quick_folder, same

import cas
from cas.errors import CasError, Invalid, NotFound
from cas.files import KnownFile
from cas.log import Record

LIMIT = 60.0


@pytest.fixture
def path() -> Iterator[Path]:
    with quick_folder() as folder:
        cas.init(folder / "store", block_size=4096).close()
        yield folder / "store"


@pytest.fixture
def store(path: Path) -> Iterator[cas.Store]:
    with cas.open(path) as opened:
        yield opened


def noise(seed: int, blocks: int = 8) -> dict[str, Any]:
    return {"noise": np.random.default_rng(seed).integers(0, 256, blocks * 4096, np.uint8), "seed": seed}


def fill(store: cas.Store, count: int, branch: str = "main", start: int = 0) -> list[str]:
    """Commits with steps 0, 10, 20, ... whose losses fall and then rise; their ids."""
    return [
        store.commit(noise(n), branch=branch, step=10 * n, metrics={"loss": abs(n - 4) + 0.5}).id
        for n in range(start, start + count)
    ]


def collect(store: cas.Store) -> int:
    return store.gc(grace=0, expire=0).freed


def held(store: cas.Store, branch: str = "main") -> list[int]:
    """The seeds of the commits of a branch whose state is there, oldest first."""
    found = []
    for commit in store.log(branch):
        try:
            value = store.load(commit.id)
        except NotFound as error:
            assert "was pruned" in str(error)
            continue
        assert same(value, noise(value["seed"]))
        found.append(value["seed"])
    return found[::-1]


def whole(store: cas.Store) -> bool:
    return errors(store.fsck(data=True)) == []


# -- what goes and what stays ---------------------------------------------------------------------------------------


def test_states_go_and_commits_stay(store: cas.Store) -> None:
    names = fill(store, 6)
    done = store.prune(keep_last=2)
    assert [commit.id for commit in done.dropped] == names[:4][::-1]
    assert [commit.id for commit, _ in done.kept] == names[4:][::-1]
    assert [why for _, why in done.kept] == [("last", "tip"), ("last",)]
    assert done.freed is not None
    assert 4 * 8 * 4096 < done.freed < 4 * 9 * 4096
    assert held(store) == [4, 5]
    freed = collect(store)
    assert freed > 4 * 8 * 4096
    assert held(store) == [4, 5]
    assert numbers(store) == [0, 10, 20, 30, 40, 50]
    assert [commit.metrics["loss"] for commit in store.log("main")] == [1.5, 0.5, 1.5, 2.5, 3.5, 4.5]
    assert store.resolve("main@min:loss").step == 40
    assert whole(store)


def test_a_dry_run_changes_nothing_and_says_the_same(store: cas.Store) -> None:
    fill(store, 4)
    published = len(list(store.roots()))
    said = store.prune(keep_last=1, dry_run=True)
    assert said.dry_run
    assert len(list(store.roots())) == published
    assert held(store) == [0, 1, 2, 3]
    done = store.prune(keep_last=1)
    assert (said.kept, said.freed) == (done.kept, done.freed)
    assert [commit.id for commit in said.dropped] == [commit.id for commit in done.dropped]


def test_what_a_prune_says_to_free_is_what_a_collection_frees(store: cas.Store) -> None:
    fill(store, 5)
    before = store.stats().stored
    said = store.prune(keep_last=1).freed
    collect(store)
    assert said == before - store.stats().stored


def test_the_tip_stays_whatever_the_rules_say(store: cas.Store) -> None:
    fill(store, 3)
    done = store.prune(keep_every=1000)
    assert [why for _, why in done.kept] == [("tip",), ("every 1000",)]
    assert held(store) == [0, 2]


def test_rules_together_keep_what_any_of_them_keeps(store: cas.Store) -> None:
    fill(store, 10)
    store.prune(keep_last=1, keep_best="loss:min:2", keep_every=70)
    collect(store)
    assert held(store) == [0, 4, 5, 7, 9]


def test_a_second_prune_with_the_same_rules_publishes_nothing(store: cas.Store) -> None:
    fill(store, 5)
    store.prune(keep_last=2)
    published = len(list(store.roots()))
    done = store.prune(keep_last=2)
    assert (done.dropped, done.freed) == ((), 0)
    assert len(list(store.roots())) == published
    assert held(store) == [3, 4]


def test_commits_that_were_pruned_before_take_nobodys_place(store: cas.Store) -> None:
    fill(store, 6)
    store.prune(keep_best="loss:min:1")  # 4, and the tip 5
    fill(store, 2, start=6)
    store.prune(keep_last=3)
    assert held(store) == [5, 6, 7]


def test_tips_of_other_branches_stay(store: cas.Store) -> None:
    names = fill(store, 4)
    store.branch("other", names[1])
    done = store.prune(keep_last=1)
    assert ("branch other",) in [why for _, why in done.kept]
    collect(store)
    assert held(store) == [1, 3]
    assert same(store.load("other"), noise(1))
    store.delete_branch("other")
    store.prune(keep_last=1)
    collect(store)
    assert held(store) == [3]


def test_tags_that_match_stay(store: cas.Store) -> None:
    names = fill(store, 5)
    store.tag("release/1", names[0])
    store.tag("tmp", names[1])
    store.prune(keep_last=1, keep_tags="release/*")
    collect(store)
    assert held(store) == [0, 4]
    with pytest.raises(NotFound, match="pruned"):
        store.load("tmp")
    assert store.resolve("tmp").step == 10


def test_all_tags_stay_unless_said_otherwise(store: cas.Store) -> None:
    names = fill(store, 3)
    store.tag("v1", names[0])
    store.prune(keep_last=1)
    assert held(store) == [0, 2]


def test_a_state_that_a_kept_commit_has_too_stays(store: cas.Store) -> None:
    for step in range(3):
        store.commit(noise(1), step=step)
    store.commit(noise(2), step=3)
    store.commit(noise(1), step=4)
    done = store.prune(keep_last=1)
    assert len(done.dropped) == 4
    collect(store)
    assert same(store.load("main"), noise(1))
    assert held(store) == [1]
    with pytest.raises(NotFound, match="pruned"):
        store.load("main~2")
    assert whole(store)


def test_a_state_that_another_branch_has_in_its_history_stays(store: cas.Store) -> None:
    """Not a commit of both: two commits with one tree."""
    store.commit(noise(1), branch="other", step=1)
    store.commit(noise(2), branch="other", step=2)
    store.commit(noise(1), step=1)
    store.commit(noise(3), step=3)
    store.prune(keep_last=1)
    collect(store)
    assert held(store, "other") == [1, 2]
    assert held(store) == [3]


def test_parts_that_kept_states_share_stay(store: cas.Store) -> None:
    frozen = noise(1, 64)["noise"]
    for n in range(4):
        store.commit({"frozen": frozen, "head": noise(10 + n)["noise"]}, step=n)
    store.prune(keep_last=1)
    collect(store)
    assert same(store.load("main"), {"frozen": frozen, "head": noise(13)["noise"]})
    assert whole(store)


def test_the_origin_of_an_imported_state_goes_and_side_files_stay(store: cas.Store, path: Path) -> None:
    source, side = path.parent / "model.bin", path.parent / "config.json"
    source.write_bytes(noise(1, 64)["noise"].tobytes())
    side.write_bytes(b'{"layers": 12}' * 1000)
    store.commit(noise(2), step=1, origin={"model.bin": [KnownFile.at(source).whole()]}, files={"config.json": side})
    name = store.resolve("main").id
    store.commit(noise(3), step=2)
    said = store.prune(keep_last=1).freed
    assert said is not None
    assert said > 72 * 4096
    assert collect(store) > 72 * 4096
    assert store.files(name) == {"config.json": side.read_bytes()}
    assert whole(store)


def test_everything_that_needs_a_pruned_state_says_so(store: cas.Store) -> None:
    names = fill(store, 2)
    store.prune(keep_last=1)
    for ask in (
        lambda: store.load(names[0]),
        lambda: store.load("main~1", only="noise"),
        lambda: store.view("main~1"),
        lambda: store.leaves("main@step:0"),
        lambda: store.commit_stats(names[0]),
        lambda: list(store.diff("main~1", "main")),
        lambda: list(store.diff("main", "main~1")),
        lambda: list(store.diff("main~1")),
    ):
        with pytest.raises(NotFound, match=f"the state of commit {names[0][:8]} was pruned"):
            ask()
    assert [commit.id for commit in store.graph()] == names[::-1]
    assert store.stats().history == 2


def test_another_store_object_with_the_state_in_memory_sees_the_prune(path: Path) -> None:
    with cas.open(path) as store, cas.open(path) as other:
        names = fill(store, 3)
        assert same(other.load(names[0]), noise(0))
        store.prune(keep_last=1)
        with pytest.raises(NotFound, match="pruned"):
            other.load(names[0])


def test_a_commit_equal_to_a_pruned_one_is_made_anew(store: cas.Store) -> None:
    fill(store, 3)
    assert store.commit(noise(0), step=0, unless_in="main").id == store.resolve("main~2").id
    store.prune(keep_last=1)
    collect(store)
    made = store.commit(noise(0), step=0, unless_in="main")
    assert made.id == store.resolve("main").id
    assert made.stats is not None
    assert made.stats.new_blocks == 8
    collect(store)
    assert same(store.load("main"), noise(0))
    assert whole(store)


def test_a_pruned_state_that_is_committed_again_is_whole_and_stays(store: cas.Store) -> None:
    """Before a collection its blocks are found again, after one they are stored again."""
    names = fill(store, 3)
    store.prune(keep_last=1)
    store.commit(noise(0), step=100)
    collect(store)
    assert same(store.load("main"), noise(0))
    store.commit(noise(1), step=101)
    collect(store)
    assert same(store.load("main"), noise(1))
    assert same(store.load("main~1"), noise(0))
    with pytest.raises(NotFound, match="pruned"):
        store.load(names[0])
    assert whole(store)


def test_branches_at_pruned_commits_and_commits_on_them(store: cas.Store) -> None:
    names = fill(store, 3)
    store.prune(keep_last=1)
    collect(store)
    store.branch("old", names[0])
    with pytest.raises(NotFound, match="pruned"):
        store.load("old")
    store.commit(noise(9), branch="old")
    collect(store)
    assert same(store.load("old"), noise(9))
    assert numbers(store, "old")[0] == 0
    assert held(store) == [2]
    assert whole(store)


def test_a_branch_that_is_not_there_is_not_pruned(store: cas.Store) -> None:
    with pytest.raises(NotFound, match="no branch main to prune; `cas branch` lists them"):
        store.prune(keep_last=1)


def test_rules_that_keep_nothing_are_refused(store: cas.Store) -> None:
    fill(store, 1)
    with pytest.raises(Invalid, match="keeps nothing"):
        store.prune()
    with pytest.raises(Invalid, match="keep_last"):
        store.prune(keep_last=0)
    with pytest.raises((Invalid, TypeError), match="keep_first"):
        store.prune(keep_first=1)  # type: ignore[call-arg]


def test_a_metric_that_no_commit_has_drops_nothing(store: cas.Store, caplog: pytest.LogCaptureFixture) -> None:
    """A slip of the pen must not cost every state but the tip."""
    fill(store, 3)
    with pytest.raises(CasError, match="los"):
        store.prune(keep_best="los:min:3")
    store.set_policy("main", keep_best="los:min:3")
    fill(store, 1, start=3)
    assert held(store) == [0, 1, 2, 3]
    assert "los" in caplog.text


# -- policies -------------------------------------------------------------------------------------------------------


def test_commits_apply_the_policy_of_their_branch(store: cas.Store) -> None:
    store.set_policy("main", keep_last=2, keep_every=30)
    fill(store, 6)
    fill(store, 3, branch="free")
    assert held(store) == [0, 3, 4, 5]
    assert held(store, "free") == [0, 1, 2]


def test_a_commit_in_the_background_applies_it_too(store: cas.Store) -> None:
    store.set_policy("main", keep_last=1)
    for n in range(3):
        store.commit_async(noise(n), step=n)
    store.close()
    with cas.open(store.path) as again:
        assert held(again) == [2]


def test_a_policy_survives_reopening_and_is_seen_by_other_processes(path: Path) -> None:
    with cas.open(path) as store:
        store.set_policy("main", keep_best=["loss:min:1"], keep_tags=["v*"])
        said = store.policies()

    def child() -> dict[str, str]:
        with cas.open(path) as other:
            fill(other, 6)
            return other.policies()

    assert children.run(child) == said == {"main": "keep best loss (min) 1, tags v*"}
    with cas.open(path) as store:
        assert held(store) == [4, 5]


def test_a_policy_that_was_removed_is_not_applied(store: cas.Store) -> None:
    store.set_policy("main", keep_last=1)
    fill(store, 2)
    store.set_policy("main")
    assert store.policies() == {}
    fill(store, 2, start=2)
    assert held(store) == [1, 2, 3]


def test_policies_of_many_branches_stand_side_by_side(store: cas.Store) -> None:
    store.set_policy("a/b", keep_last=1)
    store.set_policy("main", keep_last=2)
    store.set_policy("a/b", keep_last=3)
    assert store.policies() == {"a/b": "keep last 3, tags *", "main": "keep last 2, tags *"}
    store.set_policy("main")
    assert store.policies() == {"a/b": "keep last 3, tags *"}


@pytest.mark.parametrize(
    "name", ["", "a b", "a/../b", "x~1", "-", "a\nb", "a\x1b[31m", "é\ud800", "HEAD^", 7, None, b"main"]
)
def test_a_policy_is_for_a_name_that_a_branch_can_have(store: cas.Store, name: Any) -> None:
    with pytest.raises(Invalid):
        store.set_policy(name, keep_last=1)
    assert len(list(store.roots())) == 1


def test_a_wrong_policy_is_refused_when_it_is_set(store: cas.Store) -> None:
    for rules in ({"keep_last": -1}, {"keep_best": "loss"}, {"keep_every": 1.5}, {"keep_tags": "*"}, {"keep": 1}):
        with pytest.raises((Invalid, TypeError)):
            store.set_policy("main", **rules)  # type: ignore[arg-type]
    assert len(list(store.roots())) == 1


@pytest.mark.parametrize("tags", [["x" * 10**6] * 80, ["x" * (70 << 20)]], ids=len)
def test_a_policy_too_large_for_the_log_is_refused(store: cas.Store, path: Path, tags: list[str]) -> None:
    """A record that no reader takes would be the end of the store."""
    fill(store, 1)
    with pytest.raises(Invalid):
        store.set_policy("main", keep_last=1, keep_tags=tags)
    with cas.open(path) as again:
        assert held(again) == [0]


def test_a_prune_that_fails_does_not_fail_the_commit(
    store: cas.Store, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An absent list cannot be written where a file stands instead of its folder."""
    fill(store, 2)
    store.set_policy("main", keep_last=1)
    (path / "lists").write_bytes(b"in the way")
    with caplog.at_level(logging.WARNING, "cas"):
        fill(store, 1, start=2)
    assert "branch main was not pruned" in caplog.text
    assert held(store) == [0, 1, 2]
    (path / "lists").unlink()
    with cas.open(path) as again:
        again.load("main")
        fill(again, 1, start=3)
        assert held(again) == [3]


def test_a_policy_of_an_enemy_does_not_fail_the_commit(store: cas.Store, caplog: pytest.LogCaptureFixture) -> None:
    fill(store, 1)
    nodes: list[Any] = [7, [1, []], [1, [["main", 7]]], [1, [["main", [1, [["keep_last", 0]]]]]], [2, ["main"]]]
    nodes += [
        [1, [["main", [1, [["keep_last", 1], ["keep_tags", [2, [5]]]]]]]],
        [1, [[5, [1, []]]]],
        [1, [["main", None]]],
    ]
    for at, node in enumerate(nodes):

        def change(root: Record, node: Any = node) -> dict[str, Any]:
            return {"config": {"prune": node}}

        store._roots.update(change, "attack")
        fill(store, 1, start=at + 1)
        assert numbers(store)[-1] == 10 * (at + 1)
        try:
            store.policies()
        except cas.CasError as error:
            assert "polic" in str(error)
    assert held(store) == list(range(len(nodes) + 1))


def test_training_with_a_policy_holds_the_disk_level(store: cas.Store, path: Path) -> None:
    store.set_policy("main", keep_last=2)
    sizes = []
    for n in range(30):
        store.commit(noise(n, 32), step=n)
        if n % 5 == 4:
            collect(store)
            sizes.append(sum(f.stat().st_size for f in (path / "packs").rglob("*") if f.is_file()))
    assert max(sizes) < 3 * 33 * 4096
    assert whole(store)


# -- beside others --------------------------------------------------------------------------------------------------


def test_prunes_that_race_with_commits_keep_every_tip(path: Path) -> None:
    failures: list[BaseException] = []
    stop = threading.Event()

    def commits() -> None:
        try:
            with cas.open(path) as store:
                for n in range(25):
                    store.commit(noise(n, 2), step=n)
                    assert same(store.load("main"), noise(n, 2))
        except BaseException as error:
            failures.append(error)
        finally:
            stop.set()

    def prunes() -> None:
        try:
            with cas.open(path) as store:
                while not stop.is_set():
                    try:
                        store.prune(keep_last=3)
                    except NotFound as error:
                        assert "no branch main" in str(error)
                    store.gc(grace=0, expire=0)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for work in (commits, prunes, prunes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert failures == []
    with cas.open(path) as store:
        assert numbers(store) == list(range(25))
        store.prune(keep_last=3)
        assert [commit.step for commit in store.log("main") if _loads(store, commit.id)] == [24, 23, 22]
        assert whole(store)


def _loads(store: cas.Store, name: str) -> bool:
    try:
        store.load(name)
    except NotFound:
        return False
    return True


def test_two_processes_that_prune_and_commit_with_policies(path: Path) -> None:
    with cas.open(path) as store:
        store.set_policy("a", keep_last=2)
        store.set_policy("b", keep_last=3)

    def child(branch: str) -> None:
        with cas.open(path) as own:
            fill(own, 10, branch=branch)

    started = [children.start(child, branch) for branch in ("a", "b")]
    with children.killed_at_the_end(started):
        for each in started:
            each.result()
    with cas.open(path) as store:
        collect(store)
        assert held(store, "a") == [8, 9]
        assert held(store, "b") == [7, 8, 9]
        assert whole(store)
