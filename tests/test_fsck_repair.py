"""Repairing: what is bad is written anew from wherever a good copy is, never in place, and what is lost is named."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cas
from cas import Finding, Store
from cas.fsck import Checker
from cas.inspection import Inspection
from cas.pack import ROW
from cas.repair import Repairer
from cas.salvage import Source

RNG = np.random.default_rng(0)
W = RNG.random(50_000)
STATES: list[dict[str, Any]] = [
    {"m": {"w": W}, "a": RNG.random(30_000)},
    {"m": {"w": W}, "a": RNG.random(30_000), "t": {str(n): n for n in range(2000)}},
]


def make(path: Path) -> Path:
    """A closed store: two commits on main that share `w`, in a pack each."""
    with cas.open(path, create=True) as store:
        for state in STATES:
            store.commit(state, codec="raw")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path / "s")


@pytest.fixture
def clone(path: Path, tmp_path: Path) -> Path:
    """A whole copy of `path`."""
    return Path(shutil.copytree(path, tmp_path / "clone"))


def pack_with(path: Path, data: bytes) -> Path:
    (found,) = (file for file in path.glob("packs/*/*") if data in file.read_bytes())
    return found


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x55
    file.write_bytes(data)


def break_w(path: Path) -> Path:
    file = pack_with(path, W[:100].tobytes())
    flip(file, file.read_bytes().index(W[:100].tobytes()) + 10)
    return file


def repair(path: Path, source: Path | None = None, data: bool = True) -> dict[str, Finding]:
    with cas.open(path) as store:
        return {finding.name: finding for finding in store.fsck(data=data, repair=True, source=source)}


def records(path: Path) -> list[str]:
    with cas.open(path) as store:
        return [record.update.why for record in store._log.records()]


def errors(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity != "info"]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(np.array_equal(one, other))


def assert_whole(path: Path, commits: int = 2) -> None:
    """The newest commits are there, now, after what was given up is deleted, and with an index built anew."""
    with cas.open(path) as store:
        assert errors(store.fsck(data=True)) == []
        store.gc(grace=0)
        assert errors(store.fsck(data=True)) == []
    shutil.rmtree(path / "index")
    with cas.open(path) as store:
        for number, state in enumerate(STATES[: -1 - commits : -1]):
            assert same(store.load(f"main~{number}"), state)


def test_nothing_to_repair_leaves_the_log_as_it_is(path: Path) -> None:
    before = records(path)
    assert repair(path) == {}
    assert records(path) == before


def test_a_bad_block_is_taken_from_another_copy_in_the_store(path: Path, tmp_path: Path) -> None:
    with cas.open(tmp_path / "other", create=True) as other:
        other.commit(STATES[0], codec="raw")
    bad = break_w(path)
    shutil.copytree(tmp_path / "other" / "packs", path / "packs", dirs_exist_ok=True)
    content = bad.read_bytes()
    found = repair(path)
    assert errors(list(found.values())) == []
    assert found["repaired"].message.startswith("repaired 1 object of 1 pack")
    assert records(path)[0] == "fsck repaired 1 object of 1 pack"
    assert bad.read_bytes() == content  # never in place, and deleted by a collection alone
    assert "pack-condemned" in found
    assert_whole(path)
    assert not bad.exists()


def test_what_is_nowhere_is_lost_by_name_and_the_store_stays_as_it_was(path: Path, clone: Path) -> None:
    bad, before = break_w(path), records(path)
    with cas.open(path) as store:
        commits = {commit.id for commit in store.log("main")}
    for _ in range(2):
        found = repair(path)
        assert found["lost"].severity == "error"
        assert found["lost"].paths == ("m/w",)
        assert set(found["lost"].commits) == commits
        assert "block " in found["lost"].message
        assert "repaired" not in found
        assert records(path) == before
        assert bad.exists()
    with cas.open(path) as store:
        assert same(store.load("main", only="a")["a"], STATES[1]["a"])
    found = repair(path, clone)
    assert found["repaired"].paths == ("m/w",)
    assert errors(list(found.values())) == []
    assert_whole(path)


def test_one_thing_lost_does_not_keep_the_others_from_being_repaired(path: Path, tmp_path: Path) -> None:
    with cas.open(tmp_path / "other", create=True) as other:
        other.commit({"m": {"w": W}}, codec="raw")
    break_w(path)
    bad = pack_with(path, STATES[1]["a"][:100].tobytes())
    flip(bad, bad.read_bytes().index(STATES[1]["a"][:100].tobytes()))
    found = repair(path, tmp_path / "other")
    assert found["lost"].paths == ("a",)
    assert len(found["lost"].commits) == 1
    assert found["repaired"].paths == ("m/w",)
    assert bad.exists()
    with cas.open(path) as store:
        assert same(store.load("main~1"), STATES[0])
        assert same(store.load("main", only="m/w")["m"]["w"], W)


def test_a_bad_row_that_was_found_before_is_repaired_without_reading_everything(path: Path, clone: Path) -> None:
    break_w(path)
    with cas.open(path) as store:
        store.fsck(data=True)
    found = repair(path, clone, data=False)
    assert found["repaired"].message.startswith("repaired 1 object of 1 pack")
    assert_whole(path)


@pytest.mark.parametrize("what", ["cut", "deleted", "header", "emptied"])
def test_a_pack_that_cannot_be_read_comes_from_another_store(path: Path, clone: Path, what: str) -> None:
    file = pack_with(path, W[:100].tobytes())
    if what == "deleted":
        file.unlink()
    elif what == "header":
        flip(file, 3)
    else:
        data = file.read_bytes()
        file.write_bytes(data[: len(data) * 3 // 4] if what == "cut" else b"")
    with cas.open(path) as store:
        assert errors(store.fsck())
    found = repair(path, clone)
    assert errors(list(found.values())) == []
    assert_whole(path)


FIELDS = {"id": 5, "kind": 32, "codec": 33, "width": 34, "chain": 35, "offset": 36, "stored": 44, "raw": 48, "base": 60}


@pytest.mark.parametrize(
    ("row", "field", "has_index"),
    [
        *((row, field, False) for row in ("first", "last") for field in FIELDS),
        ("second", "offset", False),
        ("second", "raw", True),
    ],
)
def test_rows_of_a_damaged_table_are_found_by_their_names_and_neighbours(
    path: Path, row: str, field: str, has_index: bool
) -> None:
    file = pack_with(path, W[:100].tobytes())
    count = table_rows(file)
    number = {"first": 0, "second": 1, "last": count - 1}[row]
    flip(file, len(file.read_bytes()) - 112 - (count - number) * ROW.size + FIELDS[field])
    if not has_index:
        shutil.rmtree(path / "index")
    with cas.open(path) as store:
        assert "pack-corrupt" in {finding.name for finding in store.fsck()}
    found = repair(path)
    assert errors(list(found.values())) == []
    assert "of 1 pack" in found["repaired"].message
    assert_whole(path)


def table_rows(file: Path) -> int:
    return int.from_bytes(file.read_bytes()[-40:-36], "little")


@pytest.mark.parametrize("size", [40, 200])
def test_a_pack_without_its_end_gives_what_the_rest_of_its_table_tells(path: Path, size: int) -> None:
    file = pack_with(path, W[:100].tobytes())
    file.write_bytes(file.read_bytes()[:-size])
    found = repair(path)
    lost = found.get("lost")
    assert "m/w" not in (() if lost is None else lost.paths)
    if size < 112:
        assert_whole(path)


def test_what_a_lost_tree_names_is_repaired_too(path: Path, clone: Path) -> None:
    for file in path.glob("packs/*/*"):
        file.unlink()
    found = repair(path, clone)
    assert errors(list(found.values())) == []
    assert found["repaired"].commits
    assert_whole(path)


def test_damage_in_a_state_that_was_pruned_is_given_up(path: Path) -> None:
    bad = pack_with(path, STATES[0]["a"][:100].tobytes())
    flip(bad, bad.read_bytes().index(STATES[0]["a"][:100].tobytes()))
    with cas.open(path) as store:
        store.prune("main", keep_last=1)
        assert [finding.name for finding in errors(store.fsck(data=True))] == ["row-corrupt"]
    found = repair(path)
    assert errors(list(found.values())) == []
    with cas.open(path) as store:
        store.gc(grace=0)
        assert store.fsck(data=True) == []
        assert same(store.load("main"), STATES[1])
        with pytest.raises(cas.NotFound, match="pruned"):
            store.load("main~1")
    assert not bad.exists()


def test_what_only_undo_leads_to_is_repaired_as_well(path: Path, clone: Path) -> None:
    with cas.open(path) as store:
        store.delete_branch("main")
    break_w(path)
    found = repair(path)
    assert [finding.name for finding in errors(list(found.values()))] == ["row-corrupt", "undo-damaged"]
    assert errors(list(repair(path, clone).values())) == []
    with cas.open(path) as store:
        store.undo()
    assert_whole(path)


def test_an_index_that_differs_is_built_anew(path: Path) -> None:
    with cas.open(path) as store:
        index = store._catalog.index
        place = index.rows()[0]

        def remove(txn: Any) -> None:
            with txn.cursor(index._rows) as cursor:
                assert cursor.set_key(place.row.id)
                cursor.delete(dupdata=True)

        index._write(remove)
        before = records(path)
        found = store.fsck(repair=True)
        assert [finding.name for finding in found] == ["index-rebuilt"]
        assert store.fsck() == []
    assert records(path) == before


def test_without_the_log_of_the_undo_window_nothing_is_given_up(path: Path, clone: Path) -> None:
    bad = break_w(path)
    flip(path / "log" / f"{2:020}", 70)
    found = repair(path, clone)
    assert {"not-repaired", "log-record-corrupt", "block-corrupt"} <= found.keys()
    assert len(list((path / "log").iterdir())) == 3
    assert bad.exists()


@pytest.mark.parametrize("leans", [True, False])
def test_a_commit_that_comes_between_makes_the_repair_begin_again_if_it_leans_on_the_bad_pack(
    path: Path, clone: Path, leans: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On blocks that nothing else needed when the repair looked, not even undo."""
    monkeypatch.setattr("cas.fsck.EXPIRE", 0.0)
    between = {"gone": STATES[0]["a"]} if leans else {"other": np.ones(9)}
    with cas.open(path) as store:
        store.prune("main", keep_last=1)
    bad = break_w(path)
    looked = []
    with cas.open(path) as store, cas.open(path) as writer, cas.open(clone) as other:
        checker = Checker(
            store._backend, store._catalog, store._log, store._roots, store._blocks, path / "index" / "fsck"
        )
        checker.check(1.0, lambda nbytes, total: None)

        def inspect() -> Inspection:
            found = checker._inspect(checker._reading())
            looked.append(found.survey.root.seq)
            if len(looked) == 1:
                writer.commit({**between, "v": np.ones(9)}, branch="side", codec="raw")
            return found

        parts = (store._backend, store._catalog, store._roots, store._blocks, path / "index" / "fsck")
        done = Repairer(*parts, inspect, Source(other._backend, other._catalog)).repair()
    assert done is not None
    assert not done.lost
    assert len(looked) == 1 + leans
    assert records(path)[:2] == ["fsck repaired 1 object of 1 pack", "commit side"]
    with cas.open(path) as store:
        assert same(store.load("side"), {**between, "v": np.ones(9)})
    assert_whole(path, 1)
    assert not bad.exists()


def test_commits_go_on_during_repairs(path: Path, clone: Path) -> None:
    """Packs are broken and repaired again and again beside a writer; every commit reads back."""
    stop, failures = threading.Event(), []
    written: list[tuple[str, float]] = []

    def write() -> None:
        try:
            with cas.open(path) as store:
                number = 0.0
                while not stop.is_set():
                    state = {"w": W, "n": np.full(20_000, number)}
                    written.append((store.commit(state, branch="side", codec="raw").id, number))
                    time.sleep(0.05)
                    number += 1
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(5):
            break_w(path)
            found = repair(path, clone)
            assert "lost" not in found
            assert found["repaired"].message.startswith("repaired 1 object of 1 pack")
            with cas.open(path) as store:
                store.gc(grace=0)
    finally:
        stop.set()
        thread.join()
    assert failures == []
    assert len(written) > 1
    with cas.open(path) as store:
        for name, number in written:
            assert same(store.load(name), {"w": W, "n": np.full(20_000, number)})
    assert_whole(path)


READ = """
import sys, time, cas
store = cas.open(sys.argv[1])
def progress(nbytes, total):
    print(nbytes, flush=True)
    time.sleep(1.1)
store.fsck(data=True, progress=progress)
"""


def data_read(findings: list[Finding]) -> str:
    (found,) = (finding.message for finding in findings if finding.name == "data-read")
    return found


def test_reading_goes_on_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with cas.open(path, create=True) as store:
        for number in range(6):
            store.commit({"w": RNG.random(20_000)}, step=number, codec="raw")
    first, *_, last = sorted(path.glob("packs/*/*"), key=lambda file: file.name)
    for file in (first, last):
        flip(file, 1000)
    child = subprocess.Popen([sys.executable, "-c", READ, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        for _ in range(3):
            child.stdout.readline()
        child.kill()
        child.wait()
    read: list[int] = []
    with cas.open(path) as store:
        findings = store.fsck(data=True, progress=lambda nbytes, total: read.append(nbytes))
        assert len(read) in (3, 4)  # of 6 packs two or three were done
        assert "100 % of this round" in data_read(findings)
        bad = [finding for finding in findings if finding.name == "row-corrupt"]
        assert len(bad) == 2  # also the one of which the first run knew
        again: list[int] = []
        store.fsck(data=True, progress=lambda nbytes, total: again.append(nbytes))
        assert len(again) == 6


def test_twenty_samples_read_everything_once(path: Path) -> None:
    with cas.open(path) as store:
        for number in range(30):
            store.commit({"n": RNG.random(2000 + number)}, branch="many", codec="raw")
        total = sum(place.row.stored for place in store._catalog.index.rows())
        break_w(path)
        runs, read, found = 0, 0, set()
        while runs < 20:
            runs += 1
            mine: list[int] = []
            findings = store.fsck(sample=0.05, progress=lambda nbytes, total, mine=mine: mine.append(nbytes))  # type: ignore[misc]
            read += sum(mine)
            found |= {finding.name for finding in findings}
            if "100 % of this round" in data_read(findings):
                break
        assert read == total
        assert runs > 2
        assert "block-corrupt" in found
        assert "block-corrupt" in {finding.name for finding in store.fsck()}  # remembered until it is repaired


@pytest.mark.parametrize("way", ["flip", "cut", "empty", "other"])
def test_a_damaged_memory_of_the_round_is_a_new_round(path: Path, way: str) -> None:
    with cas.open(path) as store:
        store.fsck(sample=0.3)
        file = path / "index" / "fsck"
        data = file.read_bytes()
        ways = {"flip": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "empty": b"", "other": b"x" * 100}
        file.write_bytes(ways[way])
        read: list[int] = []
        assert store.fsck(data=True, progress=lambda nbytes, total: read.append(nbytes)) == []
        assert sum(read) == sum(place.row.stored for place in store._catalog.index.rows())
        assert not file.exists()


def test_packs_that_come_during_a_round_are_read_in_it(path: Path) -> None:
    with cas.open(path) as store:
        store.fsck(sample=0.5)
        store.commit({"new": RNG.random(9000)}, codec="raw", parent="main")
        bad = pack_with(path, store.load("main")["new"][:50].tobytes())
        flip(bad, bad.read_bytes().index(store.load("main")["new"][:50].tobytes()))
        findings = store.fsck(data=True)
        assert {"row-corrupt", "block-corrupt", "data-read"} == {finding.name for finding in findings}


def test_arguments_that_make_no_sense_are_refused(store: Store, tmp_path: Path) -> None:
    for options in ({"sample": 0.0}, {"sample": 1.5}, {"source": tmp_path}):
        with pytest.raises(cas.Invalid):
            store.fsck(**options)  # type: ignore[arg-type]
    with pytest.raises(cas.NotFound):
        store.fsck(repair=True, source=tmp_path / "none")
