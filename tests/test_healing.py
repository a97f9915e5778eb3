"""Healing: what a load finds missing or bad comes from another store, verified, and is there again afterwards."""

from __future__ import annotations

import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import ok, refused, run
from faults import children
from faults.damage import damage, flip, harm, holding, packs, rows
from faults.forge import Forge
from faults.stores import errors, same
from ranks import start
from servers.s3 import S3Server

import cas
from cas import CasError, Corrupt, Invalid, NotFound, pack
from cas.block import Kind
from cas.nodes import Tag

RNG = np.random.default_rng(0)
W = RNG.random(3000)
STATES: list[dict[str, Any]] = [
    {"m": {"w": W, "v": RNG.random(400)}, "n": number, "many": {str(n): n + number for n in range(2000)}}
    for number in range(2)
]
FILES = {"config.json": b'{"a": 1}', "tokenizer": RNG.bytes(70_000)}


def make(path: Path) -> Path:
    """A closed store of two commits, in a pack or more each, with every kind of object."""
    files = {name: path.parent / name for name in FILES}
    for name, file in files.items():
        file.write_bytes(FILES[name])
    with cas.init(path, block_size=4096) as store:
        for state in STATES:
            store.commit(state, codec="raw", files=files)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path / "here")


@pytest.fixture
def other(path: Path, tmp_path: Path) -> Path:
    """A whole copy of `path`."""
    return Path(shutil.copytree(path, tmp_path / "other"))


def drop_index(path: Path) -> None:
    shutil.rmtree(path / "index")


def assert_healed(path: Path) -> None:
    """All loads without help, also where the index is new, and after a repair nothing bad is left."""
    drop_index(path)
    with cas.open(path) as store:
        for number, state in enumerate(reversed(STATES)):
            assert same(store.load(f"main~{number}"), state)
            assert store.files(f"main~{number}") == FILES
        store.fsck(data=True, repair=True)
        store.gc(grace=0)
        assert errors(store.fsck(data=True)) == []
        assert same(store.load("main"), STATES[1])


def heal_all(path: Path, source: Any) -> None:
    with cas.open(path) as store:
        for number, state in enumerate(reversed(STATES)):
            assert same(store.load(f"main~{number}", heal_from=source), state)
            assert same(store.load(f"main~{number}"), state)


# -- damage of every kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
def test_bit_flips_in_every_object_of_a_kind_are_healed(path: Path, other: Path, kind: Kind) -> None:
    damage(path, [place for place in rows(path) if place.row.kind == kind])
    drop_index(path)
    with cas.open(path) as store, pytest.raises((Corrupt, NotFound)):
        store.load("main")
    heal_all(path, other)
    assert_healed(path)


def test_bit_flips_everywhere_are_healed(path: Path, other: Path) -> None:
    damage(path, rows(path))
    heal_all(path, other)
    assert_healed(path)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


WHOLE_PACKS: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "truncated": _truncate,
    "zeroed": _zero,
    "emptied": lambda file: file.write_bytes(b""),
    "the table flipped": lambda file: flip(file, -150),
    "the footer flipped": lambda file: flip(file, -10),
}


@pytest.mark.parametrize("how", WHOLE_PACKS)
def test_damaged_packs_are_healed(path: Path, other: Path, how: str) -> None:
    for file in packs(path):
        WHOLE_PACKS[how](file)
    drop_index(path)
    heal_all(path, other)
    assert_healed(path)


@pytest.mark.parametrize("how", ["missing", "truncated", "zeroed", "emptied"])
def test_damaged_packs_that_the_index_knows_are_healed(path: Path, other: Path, how: str) -> None:
    for file in packs(path):
        WHOLE_PACKS[how](file)
    heal_all(path, other)
    assert_healed(path)


@pytest.mark.parametrize("number", [0, 1])
def test_one_pack_of_two_that_is_gone_is_healed(path: Path, other: Path, number: int) -> None:
    packs(path)[number].unlink()
    heal_all(path, other)
    assert_healed(path)


def test_swapped_packs_are_healed(path: Path, other: Path) -> None:
    one, two = packs(path)[:2]
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    heal_all(path, other)
    assert_healed(path)


def test_damage_while_the_store_is_open_is_healed(path: Path, other: Path) -> None:
    with cas.open(path) as store:
        assert same(store.load("main"), STATES[1])  # structured objects are in memory from now on
        for file in packs(path):
            file.unlink()
        assert same(store.load("main", heal_from=other), STATES[1])
    heal_all(path, other)
    assert_healed(path)


def test_heal_looks_at_all_that_the_commit_needs(path: Path, other: Path) -> None:
    damage(path, [place for place in rows(path) if place.row.kind in (Kind.BLOCK, Kind.TREE)])
    with cas.open(path) as store:
        assert store.load("main", only="n", heal_from=other) == {"n": 1}
        assert same(store.load("main"), STATES[1])
        assert store.files("main") == FILES


def test_heal_says_what_it_did(path: Path, other: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [place for place in rows(path) if place.row.kind == Kind.LIST][:1]
    damage(path, bad)
    with cas.open(path) as store:
        assert store.heal("main", other) == cas.Healed(1, 0)
        assert store.heal("main", other) == cas.Healed(0, 0)
    (text,) = caplog.messages
    assert text.startswith("healed 1 object of commit ")
    assert text.endswith("`cas fsck --repair` drops the bad copies")
    assert str(path) in text
    assert str(other) in text


def test_what_was_healed_is_known_to_fsck(path: Path, other: Path) -> None:
    bad = [place for place in rows(path) if place.row.kind == Kind.BLOCK][:1]
    damage(path, bad)
    with cas.open(path) as store:
        store.load("main", heal_from=other)
        assert {finding.name for finding in errors(store.fsck())} == {"row-corrupt"}
        assert errors(store.fsck(repair=True)) == []
        store.gc(grace=0)
    assert not (path / pack.name_of(bad[0].pack)).exists()
    assert_healed(path)


def test_nothing_is_written_where_nothing_is_wrong(path: Path, other: Path) -> None:
    before = packs(path)
    with cas.open(path) as store:
        assert same(store.load("main", heal_from=other), STATES[1])
        assert store.heal("main", other) == cas.Healed(0, 0)
    assert packs(path) == before


# -- deltas ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def changes(tmp_path: Path) -> Path:
    """A closed store of three commits, the later ones stored as changes of the first."""
    with cas.init(tmp_path / "changes", block_size=16 << 10) as store:
        for number in range(3):
            store.commit(change(number), delta="parent")
    assert any(place.row.chain for place in rows(tmp_path / "changes"))
    return tmp_path / "changes"


def change(number: int) -> dict[str, Any]:
    base = (np.random.default_rng(5).standard_normal(40_000) * 0.02).astype(np.float32)
    return {"w": base + number * np.float32(1e-7)}


def heal_changes(path: Path, source: Path) -> None:
    with cas.open(path) as store:
        assert same(store.load("main", heal_from=source), change(2))
    drop_index(path)
    with cas.open(path) as store:
        assert same(store.load("main"), change(2))


def test_bases_of_deltas_are_healed_and_with_them_all_deltas(changes: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(changes, tmp_path / "other"))
    bases = [place for place in rows(changes) if place.row.kind == Kind.BLOCK and not place.row.chain]
    damage(changes, bases)
    with cas.open(changes) as store:
        assert store.heal("main", other) == cas.Healed(len(bases), 0)
    heal_changes(changes, other)


def test_the_pack_of_the_bases_is_gone(changes: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(changes, tmp_path / "other"))
    for name in {place.pack for place in rows(changes) if place.row.kind == Kind.BLOCK and not place.row.chain}:
        (changes / pack.name_of(name)).unlink()
    heal_changes(changes, other)


def test_deltas_are_healed_from_a_store_that_has_no_bases(changes: Path, tmp_path: Path) -> None:
    with cas.init(tmp_path / "other", block_size=16 << 10) as store:
        store.commit(change(2))
    damage(changes, [place for place in rows(changes) if place.row.kind == Kind.BLOCK])
    heal_changes(changes, tmp_path / "other")


def test_deltas_come_back_through_a_base_that_alone_is_left(changes: Path, tmp_path: Path) -> None:
    with cas.init(tmp_path / "other", block_size=16 << 10) as store:
        store.commit(change(0))
    damage(changes, [place for place in rows(changes) if place.row.kind == Kind.BLOCK and not place.row.chain])
    heal_changes(changes, tmp_path / "other")


def test_deltas_of_the_other_store_come_whole(tmp_path: Path, changes: Path) -> None:
    with cas.init(tmp_path / "plain", block_size=16 << 10) as store:
        store.commit(change(2))
    damage(tmp_path / "plain", [place for place in rows(tmp_path / "plain") if place.row.kind == Kind.BLOCK])
    heal_changes(tmp_path / "plain", changes)
    assert not any(place.row.chain for place in rows(tmp_path / "plain"))


# -- the other store ------------------------------------------------------------------------------------------------


def test_each_store_has_what_the_other_lacks(path: Path, other: Path) -> None:
    places = rows(path)
    damage(path, places[::2])
    damage(other, places[1::2])
    heal_all(path, other)
    assert_healed(path)


def test_what_neither_has_is_named_with_both_stores(path: Path, other: Path) -> None:
    lost = holding(path, W.tobytes())[:1]
    damage(other, lost)
    damage(path, [*lost, *(place for place in rows(path) if place.row.kind == Kind.LAYOUT)])
    drop_index(path)
    with cas.open(path) as store:
        with pytest.raises((Corrupt, NotFound)) as caught:
            store.load("main", heal_from=other)
        said = str(caught.value)
        assert "m/w in commit " in said
        assert said.endswith(f"; neither {path} nor {other} has a good copy")
        assert "\n" not in said
        assert store.heal("main", other).lost == 1
        part = store.load("main", only=["m/v", "n"])  # the layouts have come all the same
        assert same(part, {"m": {"v": STATES[1]["m"]["v"]}, "n": 1})
        assert same(store.load("main", only=["m/v", "n"], heal_from=other), part)


def test_a_lost_tree_is_named_with_what_it_holds(path: Path, other: Path) -> None:
    trees = [place for place in rows(path) if place.row.kind == Kind.TREE]
    damage(path, trees)
    damage(other, trees)
    drop_index(path)
    with cas.open(path) as store, pytest.raises((Corrupt, NotFound), match=f"neither {path} nor {other} has"):
        store.load("main", heal_from=other)


def test_a_store_that_has_nothing_of_it(path: Path, tmp_path: Path) -> None:
    cas.init(tmp_path / "empty").close()
    damage(path, rows(path))
    before = packs(path)
    with cas.open(path) as store, pytest.raises((Corrupt, NotFound), match=f"neither {path} nor {tmp_path}/empty has"):
        store.load("main", heal_from=tmp_path / "empty")
    assert packs(path) == before


def test_a_store_that_heals_itself_has_nothing_to_give(path: Path) -> None:
    damage(path, [place for place in rows(path) if place.row.kind == Kind.BLOCK])
    with cas.open(path) as store, pytest.raises(Corrupt, match="has a good copy"):
        store.load("main", heal_from=store)


def test_the_other_store_may_be_named_as_one_likes(path: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(other.parent)
    with cas.open(path) as store:
        store.add_remote("backup", other)
        for place in ("backup", str(other), other, f"file://{other}", "./other", "other"):
            damage(path, rows(path)[:1])
            assert store.heal("main", place).lost == 0
        with cas.open(other) as opened:
            assert same(store.load("main", heal_from=opened), STATES[1])
            assert same(opened.load("main"), STATES[1]), "a store that the caller has opened stays open"
        damage(path, rows(path))
        with pytest.raises(Invalid, match="was closed"):
            store.load("main", heal_from=opened)
        with pytest.raises(NotFound, match="there is no remote 'nobody'; there are backup"):
            store.load("main", heal_from="nobody")
        with pytest.raises(NotFound, match="there is no store at "):
            store.load("main", heal_from=other.parent / "none")


def test_the_other_store_is_not_asked_where_nothing_is_wrong(path: Path, tmp_path: Path) -> None:
    with cas.open(path) as store:
        assert same(store.load("main", heal_from=tmp_path / "none"), STATES[1])
        assert store.load("new", default=None, heal_from=tmp_path / "none") is None
        with pytest.raises(Invalid, match="match nothing"):
            store.load("main", only="nothing", heal_from=tmp_path / "none")


# -- what is no damage ----------------------------------------------------------------------------------------------


def test_a_pruned_state_stays_pruned(path: Path, other: Path) -> None:
    with cas.open(path) as store:
        store.prune("main", keep_last=1)
        with pytest.raises(NotFound, match="was pruned") as caught:
            store.load("main~1", heal_from=other)
        assert "neither" not in str(caught.value)
        assert store.heal("main~1", other) == cas.Healed(0, 0)


def test_what_was_not_fetched_stays_absent_and_the_rest_is_healed(path: Path, tmp_path: Path) -> None:
    with cas.clone(path, tmp_path / "part", only="n") as store:
        for file in packs(tmp_path / "part"):
            file.unlink()
        assert store.load("main", only="n", heal_from="origin") == {"n": 1}
        assert store.files("main") == FILES
        with pytest.raises(NotFound, match="is absent") as caught:
            store.load("main", heal_from="origin")
        assert "neither" not in str(caught.value)
        assert not holding(tmp_path / "part", W.tobytes())


def test_a_state_that_was_never_sound_is_not_fetched_again_and_again(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "forged")
    forge.publish(forge.commit(forge.tree([Tag.DICT, [["x", [99, 1]]]])))
    copy = Path(shutil.copytree(forge.path, tmp_path / "copy"))
    before = packs(forge.path)
    with cas.open(forge.path) as store:
        for _ in range(2):
            with pytest.raises(Corrupt, match="unknown tag"):
                store.load("main", heal_from=copy)
    assert packs(forge.path) == before


def test_a_revision_is_found_through_commits_that_are_gone(path: Path, other: Path) -> None:
    commits = [place for place in rows(path) if place.row.kind == Kind.COMMIT]
    damage(path, commits)
    drop_index(path)
    with cas.open(path) as store:
        assert same(store.load("main~1", heal_from=other), STATES[0])
        assert [commit.id for commit in store.log("main")] == [store.resolve("main").id, store.resolve("main~1").id]
        with pytest.raises(NotFound, match="no branch, tag or commit is called nothing"):
            store.load("nothing", heal_from=other)


# -- how it is asked for --------------------------------------------------------------------------------------------


def test_into_is_filled_in_place(path: Path, other: Path) -> None:
    damage(path, [place for place in rows(path) if place.row.kind == Kind.BLOCK])
    target = {**STATES[0], "m": {"w": np.zeros(3000), "v": np.zeros(400)}}
    w = target["m"]["w"]
    with cas.open(path) as store:
        found = store.load("main", into=target, heal_from=other)
    assert same(found, STATES[1])
    assert found["m"]["w"] is w


def test_the_parent_of_the_next_commit_is_set(path: Path, other: Path) -> None:
    damage(path, [place for place in rows(path) if place.row.kind == Kind.BLOCK])
    with cas.open(path) as store:
        store.load("main", heal_from=other)
        assert store.commit({"x": 1}).parents == (store.resolve("main~1").id,)


def _together(rank: int, place: str, other: str) -> Any:
    import torch.distributed as dist

    with cas.open(place) as store:
        try:
            store.load("main", heal_from=other if rank else None, group=dist.group.WORLD)
        except Invalid as error:
            return str(error)
    return None


@pytest.mark.slow
def test_many_ranks_are_refused_on_all(path: Path, other: Path) -> None:
    with start(2, _together, str(path), str(other)) as job:
        for said in job.results(timeout=60):
            assert "heal_from= goes without group=" in said


@pytest.mark.slow
def test_checkout_heals(path: Path, other: Path, tmp_path: Path) -> None:
    damage(path, [place for place in rows(path) if place.row.kind == Kind.BLOCK])
    with cas.open(path) as store:
        store.add_remote("origin", other)
    command = ("--store", path, "checkout", "main", "m", "-o")
    assert "cannot be read" in refused(tmp_path, 13, *command, "out")
    done = run(tmp_path, *command, "out", "--heal-from", "origin")
    assert done.returncode == 0
    assert done.stderr.startswith("cas: warning: healed ")
    assert ": 2 tensors, " in ok(tmp_path, *command, "again")


def _heal_on_a_full_disk(path: Path, other: Path) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    with cas.open(path) as store:
        try:
            store.load("main", heal_from=other)
        except CasError as error:
            return str(error)
    return ""


def test_what_cannot_be_written_is_one_sentence_and_changes_nothing(tmp_path: Path) -> None:
    path, held = tmp_path / "here", {"w": RNG.random(500_000)}
    with cas.init(path) as store:
        store.commit(held, codec="raw")
    other = Path(shutil.copytree(path, tmp_path / "other"))
    for file in packs(path):
        file.unlink()
    said = children.run(_heal_on_a_full_disk, path, other)
    assert re.search(f"healing commit [0-9a-f]+ of store {path} from {other} was cut short: ", said)
    with cas.open(path) as store:
        assert same(store.load("main", heal_from=other), held)
        assert errors(store.fsck(data=True)) == []


# -- S3 -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(s3_server: S3Server, other: Path, tmp_path: Path) -> str:
    """The URL of a store with all of `other`."""
    url = s3_server.url(s3_server.bucket(), "run")
    with cas.init(url, block_size=4096, storage_options=s3_server.options, cache=tmp_path / "cache"):
        pass
    with cas.open(other, cache=tmp_path / "cache") as store:
        store.push(url, everything=True, storage_options=s3_server.options)
    return url


@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_from_s3(path: Path, bucket: str, s3_server: S3Server, tmp_path: Path, how: str) -> None:
    if how == "missing":
        for file in packs(path):
            file.unlink()
    else:
        damage(path, rows(path))
    with cas.open(path, cache=tmp_path / "new") as store:
        found = store.load("main", heal_from=bucket, storage_options=s3_server.options)
        assert same(found, STATES[1])
        store.add_remote("cloud", bucket, endpoint_url=s3_server.endpoint)
        key = {"key": s3_server.key, "secret": s3_server.secret}
        assert same(store.load("main~1", heal_from="cloud", storage_options=key), STATES[0])
    assert_healed(path)


@pytest.mark.parametrize(
    ("how", "cache"), [("missing", "new"), ("flipped", "new"), ("cut", "new"), ("missing", "cache")]
)
def test_a_store_on_s3(bucket: str, other: Path, s3_server: S3Server, tmp_path: Path, how: str, cache: str) -> None:
    harm(s3_server, bucket, how)
    options: dict[str, Any] = {"storage_options": s3_server.options}
    with cas.open(bucket, cache=tmp_path / cache, **options) as store:
        with pytest.raises((Corrupt, NotFound)):
            store.load("main")
        assert same(store.load("main", heal_from=other), STATES[1])
    with cas.open(bucket, cache=tmp_path / "newer", **options) as store:
        assert same(store.load("main"), STATES[1])
