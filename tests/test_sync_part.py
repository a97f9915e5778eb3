"""Moving parts of commits: some paths of their states, or the newest of a history; and bringing the rest later."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.stores import errors, quick_folder, same
from trainings import commits, equal

import cas
from cas.absence import Absent
from cas.errors import Exists, Invalid, NotFound, RefConflict

BLOCK = 4096


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


def noise(seed: int, nbytes: int = 2 * BLOCK) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def absent(store: cas.Store) -> Absent:
    return store._roots.absent(store._roots.current())


def collect(store: cas.Store) -> None:
    """So that only what is reachable is left, and nothing that is reachable by chance."""
    store.gc(grace=0, expire=0)
    assert errors(store.fsck(data=True)) == []


def stored(path: Path) -> int:
    return sum(file.stat().st_size for file in (path / "packs").rglob("*") if file.is_file())


# -- patterns -------------------------------------------------------------------------------------------------------


def test_only_what_matches_is_sent_and_loads(here: cas.Store, there: cas.Store) -> None:
    states = commits(here, 3)
    done = here.push(there.path, only="model/**")
    whole = sum(made.raw for made in here.log())
    assert done.sent < 0.9 * whole
    collect(there)
    assert equal(there.load("main", only="model/**"), {"model": states[-1]["model"]})
    assert equal(there.load("main~2", only="model"), {"model": states[0]["model"]})
    with pytest.raises(NotFound, match="moment of commit"):
        there.load("main")
    with pytest.raises(NotFound, match="moment of commit"):
        there.load("main", only="moment")


def test_what_matching_leaves_share_with_others_stays(here: cas.Store, there: cas.Store) -> None:
    """Equal tensors and subtrees at paths that match and at others: the objects are there, and load at both."""
    one, big = noise(1), {f"k{n}": noise(n, 3 * BLOCK) for n in range(200)}
    held = {"a": {"x": one, "y": noise(2)}, "b": {"x": one, "z": noise(3)}, "big": big, "again": big, "c": one}
    here.commit(held)
    here.push(there.path, only=["a/x", "big"])
    collect(there)
    assert same(there.load("main", only=["a/x", "big"]), {"a": {"x": one}, "big": big})
    assert same(there.load("main", only=["b/x", "c", "again"]), {"b": {"x": one}, "again": big, "c": one})
    for path in ("a/y", "b/z"):
        with pytest.raises(NotFound, match=path):
            there.load("main", only=path)


def test_one_block_of_an_inline_tensor_can_be_left_out(here: cas.Store, there: cas.Store) -> None:
    here.commit({"small": noise(1, 100), "other": noise(2, 100)})
    here.push(there.path, only="other")
    collect(there)
    assert same(there.load("main", only="other"), {"other": noise(2, 100)})
    with pytest.raises(NotFound, match="small"):
        there.load("main")


def test_containers_in_parts_and_lists(here: cas.Store, there: cas.Store) -> None:
    wide = {f"key{n}": noise(n % 7, 64) if n % 1000 == 0 else n for n in range(9000)}
    long = [noise(100 + n, 64) if n % 3000 == 1 else n for n in range(9000)]
    here.commit({"wide": wide, "long": long})
    here.push(there.path, only=["wide/key8000", "long/[6001]"])
    collect(there)
    got = there.load("main", only=["wide/key8000", "long/[6001]"])
    assert same(got["wide"]["key8000"], wide["key8000"])
    assert same([item for item in got["long"] if isinstance(item, np.ndarray)][-1], long[6001])
    with pytest.raises(NotFound):
        there.load("main", only="long/[3001]")


@pytest.mark.parametrize(
    ("held", "only"),
    [
        ({f"key number {n}" * 3: n for n in range(500)}, "key*"),
        ([noise(1), noise(2)], "[1]"),
        ({"a": [noise(1), 2, (noise(3), {"b": noise(4)})], "c": noise(5)}, "a"),
        ({f"k{n}": noise(n) for n in range(300)}, "k7"),
        (noise(6), "."),
        (noise(6), "a"),
    ],
)
def test_states_of_any_form(here: cas.Store, there: cas.Store, held: Any, only: str) -> None:
    """Whose top is a list, a leaf, or so large that the commit's tree only refers to it."""
    here.commit(held)
    here.push(there.path, only=only)
    collect(there)
    assert same(_loaded(there, "main", [only]), _loaded(here, "main", [only]))
    here.push(there.path, only=".")
    collect(there)
    assert same(there.load("main"), held)


def test_side_files_come_along_and_the_origin_does_not(here: cas.Store, there: cas.Store, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}" * 70_000)
    here.commit({"a": noise(1), "b": noise(2)}, files={"config.json": tmp_path / "config.json"})
    here.push(there.path, only="a")
    collect(there)
    assert there.files("main") == {"config.json": b"{}" * 70_000}


def test_patterns_that_match_nothing_send_the_commits_alone(here: cas.Store, there: cas.Store) -> None:
    commits(here, 2)
    here.push(there.path, only="nothing/at/all")
    collect(there)
    assert [made.step for made in there.log()] == [1, 0]
    with pytest.raises(NotFound):
        there.load("main")


@pytest.mark.parametrize("whole", [".", "**"])
def test_the_rest_comes_when_it_is_asked_for(here: cas.Store, folder: Path, whole: str) -> None:
    states = commits(here, 3)
    with cas.clone(here.path, folder / "copy", only="model/in") as copy:
        collect(copy)
        assert copy.fetch().objects == 0
        with pytest.raises(NotFound):
            copy.load("main")
        copy.fetch(only="moment")
        collect(copy)
        assert equal(copy.load("main~1", only="moment"), {"moment": states[1]["moment"]})
        assert equal(copy.load("main", only="model/in"), {"model": {"in": states[2]["model"]["in"]}})
        copy.fetch(only=whole)
        assert absent(copy) == {}
        collect(copy)
        assert all(equal(copy.load(f"main~{2 - n}"), states[n]) for n in range(3))


def test_what_was_cloned_in_part_is_pulled_in_part(
    here: cas.Store, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing more comes of what is there already."""
    states = commits(here, 3)
    with cas.clone(here.path, folder / "copy", only="model", depth=1) as copy:
        lacking = absent(copy)
        states += commits(here, 2, seed=1)
        assert [ref.name for ref in copy.pull().refs] == ["origin/main", "main"]
        collect(copy)
        for back in range(3):
            assert equal(copy.load(f"main~{back}", only="model"), {"model": states[-1 - back]["model"]})
        assert len(list(copy.log())) == 3
        with pytest.raises(NotFound, match="moment"):
            copy.load("main")
        assert lacking.items() <= absent(copy).items()
        assert copy.fetch().refs == copy.pull().refs == ()
        assert caplog.records == []


def test_what_is_given_stands_before_what_is_kept(here: cas.Store, folder: Path) -> None:
    states = commits(here, 3)
    with cas.clone(here.path, folder / "copy", only="model", depth=1) as copy:
        copy.pull(depth=2)
        assert equal(copy.load("main~1", only="model"), {"model": states[1]["model"]})
        with pytest.raises(NotFound, match="moment"):
            copy.load("main~1")
        copy.fetch(only=".")
        assert equal(copy.load("main"), states[2])
        copy.fetch(only=".", depth=0)
        assert absent(copy) == {}
        states += commits(here, 1, seed=1)
        copy.pull()
        with pytest.raises(NotFound, match="moment"):
            copy.load("main")
        copy.remove_remote("origin")
        copy.add_remote("origin", here.path)
        states += commits(here, 1, seed=2)
        copy.pull()
        assert equal(copy.load("main"), states[-1])


def test_a_clone_that_goes_on_keeps_what_it_was_given_last(here: cas.Store, folder: Path) -> None:
    commits(here, 1)
    with cas.init(folder / "copy") as made:
        made.add_remote("origin", here.path, only="moment")
    with cas.clone(here.path, folder / "copy", only=["model", "step"]) as copy:
        assert copy.remotes()["origin"] == cas.Remote("origin", str(here.path), {}, ("model", "step"))


def test_a_second_pattern_adds_to_the_first(here: cas.Store, there: cas.Store) -> None:
    held = {"a": {"x": noise(1), "y": noise(2)}, "b": {"x": noise(3), "y": noise(4)}}
    here.commit(held)
    here.push(there.path, only="a")
    here.push(there.path, only="*/x")
    collect(there)
    assert same(there.load("main", only=["a", "b/x"]), {"a": held["a"], "b": {"x": held["b"]["x"]}})
    with pytest.raises(NotFound, match="b/y"):
        there.load("main")


def test_a_part_of_a_whole_commit_takes_nothing_away(here: cas.Store, there: cas.Store) -> None:
    states = commits(here, 2)
    here.push(there.path)
    here.push(there.path, only="model")
    assert absent(there) == {}
    assert equal(there.load("main"), states[-1])


def test_new_commits_go_whole_onto_those_in_part(here: cas.Store, there: cas.Store) -> None:
    held = {"base": noise(1, 20 * BLOCK), "head": noise(2)}
    here.commit(held)
    here.push(there.path, only="head")
    here.commit({**held, "head": noise(3)})
    here.push(there.path)
    collect(there)
    assert same(there.load("main"), {**held, "head": noise(3)})
    with pytest.raises(NotFound, match="base"):
        there.load("main~1")


def test_what_was_in_part_and_collected_comes_whole(here: cas.Store, there: cas.Store) -> None:
    """A commit that the target once had in part, and does not lead to any more, is new again."""
    states = commits(here, 2)
    here.push(there.path, only="model", depth=1)
    there.delete_branch("main")
    there.gc(grace=0, expire=0)
    here.push(there.path)
    assert absent(there) == {}
    collect(there)
    assert equal(there.load("main"), states[1])
    assert equal(there.load("main~1"), states[0])


@pytest.mark.parametrize("seed", range(12))
def test_any_part_of_any_history_loads_and_survives_collections(folder: Path, seed: int) -> None:
    """Random states with shared tensors, patterns and depths; each copy widened until it is whole."""
    pick = random.Random(seed)

    def node(depth: int) -> Any:
        if depth and pick.random() < 0.7:
            return {f"n{n}": node(depth - 1) for n in range(pick.randint(1, 4))}
        return noise(pick.randint(0, 12), pick.choice([100, BLOCK, 3 * BLOCK]))

    with cas.init(folder / "a", block_size=BLOCK) as store:
        states = [{f"n{n}": node(3) for n in range(3)}]
        store.commit(states[0])
        for _ in range(4):
            states.append({**states[-1], f"n{pick.randint(0, 2)}": node(3)})
            store.commit(states[-1])
        patterns = ["n0", "n1/n0", "*/n1", "**/n2", "n2/*/n0", "n0/n0/n0"]
        only, depth = pick.sample(patterns, 2), pick.choice([None, 1, 3])
        with cas.clone(store.path, folder / "b", only=only, depth=depth) as copy:
            for _ in range(3):
                collect(copy)
                for back, made in enumerate(copy.log()):
                    expected = _loaded(store, made.id, only)
                    assert same(_loaded(copy, made.id, only), expected), (only, back)
                only = [*only, *pick.sample(patterns, 1)]
                copy.fetch(only=only, depth=depth)
                with cas.clone(copy.path, folder / f"c{len(only)}") as third:
                    assert absent(third) == {k: v for k, v in absent(copy).items() if v}
                    collect(third)
            copy.fetch(only=".", depth=0)
            assert absent(copy) == {}
            collect(copy)
            assert [same(copy.load(f"main~{4 - n}"), states[n]) for n in range(5)] == [True] * 5


def _loaded(store: cas.Store, rev: str, only: list[str]) -> Any:
    try:
        return store.load(rev, only=only)
    except Invalid:
        return "nothing matches"


# -- depth ----------------------------------------------------------------------------------------------------------


def test_the_newest_commits_of_a_history(here: cas.Store, folder: Path) -> None:
    states = commits(here, 5)
    with cas.clone(here.path, folder / "copy", depth=2) as copy:
        assert [made.step for made in copy.log()] == [4, 3]
        collect(copy)
        assert equal(copy.load("main~1"), states[3])
        with pytest.raises(NotFound):
            copy.load("main~2")
        assert copy.fetch().objects == 0
        copy.fetch(depth=1)
        assert [made.step for made in copy.log()] == [4, 3], "a smaller depth takes nothing away"
        copy.fetch(depth=4)
        assert [made.step for made in copy.log()] == [4, 3, 2, 1]
        collect(copy)
        copy.fetch(depth=0)
        assert absent(copy) == {}
        assert [made.step for made in copy.log()] == [4, 3, 2, 1, 0]
        collect(copy)


def test_new_commits_come_on_top_of_a_short_history(here: cas.Store, folder: Path) -> None:
    commits(here, 3)
    with cas.clone(here.path, folder / "copy", depth=1) as copy:
        here.commit({"a": 1}, step=10)
        here.commit({"a": 2}, step=11)
        copy.pull()
        assert [made.step for made in copy.log()] == [11, 10, 2]
        copy.load("main")
        copy.commit({"a": 3}, step=12)
        copy.push()
        assert [made.step for made in here.log()] == [12, 11, 10, 2, 1, 0]
        assert errors(here.fsck(data=True)) == []


def test_a_short_history_goes_on_to_a_third_store(here: cas.Store, there: cas.Store, folder: Path) -> None:
    commits(here, 4)
    with cas.clone(here.path, folder / "copy", depth=2) as copy:
        copy.push(there.path)
        assert [made.step for made in there.log()] == [3, 2]
        collect(there)
        here.push(there.path, depth=0)
    assert [made.step for made in there.log()] == [3, 2, 1, 0]
    collect(there)


def test_a_depth_reaches_to_what_the_target_has(here: cas.Store, there: cas.Store) -> None:
    """Then nothing is missing between."""
    commits(here, 5)
    here.push(there.path, "main~2:main")
    here.push(there.path, depth=2)
    assert absent(there) == {}
    assert len(list(there.log())) == 5


@pytest.mark.parametrize("depth", [-1, 1.5, True, "2"])
def test_a_depth_is_a_number_of_commits(here: cas.Store, there: cas.Store, depth: Any) -> None:
    commits(here, 1)
    with pytest.raises(Invalid, match="depth"):
        here.push(there.path, depth=depth)


# -- what the source lacks ------------------------------------------------------------------------------------------


def test_pruned_states_are_pruned_at_the_target(here: cas.Store, there: cas.Store) -> None:
    states = commits(here, 4)
    here.prune("main", keep_last=2)
    here.gc(grace=0, expire=0)
    here.push(there.path)
    collect(there)
    assert [made.pruned for made in there.log()] == [False, False, True, True]
    assert equal(there.load("main~1"), states[2])
    with pytest.raises(NotFound):
        there.load("main~3")


def test_what_was_pruned_here_comes_back_from_elsewhere(here: cas.Store, folder: Path) -> None:
    states = commits(here, 3)
    with cas.clone(here.path, folder / "copy") as copy:
        copy.prune("main", keep_last=1)
        collect(copy)
        assert copy.fetch().objects == 0
        copy.fetch(only=".")
        assert absent(copy) == {}
        assert equal(copy.load("main~2"), states[0])
        collect(copy)


def test_a_pruned_store_does_not_prune_others(here: cas.Store, folder: Path) -> None:
    states = commits(here, 3)
    with cas.clone(here.path, folder / "copy") as copy:
        copy.prune("main", keep_last=1)
        copy.gc(grace=0, expire=0)
        copy.load("main")
        copy.commit({"a": 1})
        copy.push()
        copy.push(only=".")
    assert absent(here) == {}
    assert equal(here.load("main~3"), states[0])
    collect(here)


def test_a_part_that_neither_has_stays_absent(here: cas.Store, there: cas.Store, folder: Path) -> None:
    commits(here, 1)
    with cas.clone(here.path, folder / "copy", only="model") as copy:
        copy.push(there.path)
        before = absent(there)
        copy.push(there.path, only=".")
        assert absent(there) == before == absent(copy)
        collect(there)
    here.push(there.path, only=".")
    assert absent(there) == {}


def test_a_partial_push_beside_a_whole_one_takes_nothing_away(here: cas.Store, there: cas.Store) -> None:
    """The whole commit is published while the part of it travels: it must not become absent afterwards."""
    states = commits(here, 2)
    with cas.open(here.path) as other:
        pushed: list[Any] = []

        def progress(objects: int, of_objects: int, nbytes: int, of_bytes: int) -> None:
            if not pushed:
                pushed.append(other.push(there.path))

        here.push(there.path, "main:part", only="model", progress=progress)
    assert pushed[0].objects
    assert absent(there) == {}
    collect(there)
    assert equal(there.load("part"), states[-1])


def test_a_clone_in_part_goes_on_in_part(here: cas.Store, folder: Path) -> None:
    states = commits(here, 2)
    with cas.clone(here.path, folder / "copy", only="model", depth=1) as copy:
        assert stored(copy.path) < stored(here.path) / 2
        with pytest.raises(Exists):
            cas.clone(here.path, folder / "copy")
    with cas.open(folder / "copy") as copy:
        assert equal(copy.load("main", only="model"), {"model": states[1]["model"]})


def test_a_short_history_keeps_up_and_stays_short(here: cas.Store, folder: Path) -> None:
    """As inference does: always the newest commit and no more, and what came before may go."""
    here.commit({"a": noise(0)}, step=0)
    with cas.clone(here.path, folder / "copy", depth=1) as copy:
        for step in (2, 4):
            here.commit({"a": noise(step - 1)}, step=step - 1)
            here.commit({"a": noise(step)}, step=step)
            copy.pull(depth=1)
            assert [made.step for made in copy.log()] == [step]
            assert copy.refs()["branches"] == here.refs()["branches"]
            collect(copy)
        here.commit({"a": noise(5)}, step=5)
        copy.pull()
        assert [made.step for made in copy.log()] == [5, 4]
        assert stored(copy.path) < 3 * BLOCK * 2
        here.branch("main", "main~5", force=True)
        with pytest.raises(RefConflict, match="cas reset"):
            here.load("main")
            here.commit({"b": 1})
            copy.pull()


def test_where_the_history_is_cut_on_both_sides_that_is_said(here: cas.Store, there: cas.Store, folder: Path) -> None:
    commits(here, 4)
    here.push(there.path, "main~3:main")
    with cas.clone(here.path, folder / "copy", depth=2) as copy, pytest.raises(RefConflict, match="cut by a depth"):
        copy.push(there.path)
