"""Checking a store: a whole one has no findings, and each damage has its name, commits and paths."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import cas
from cas import Finding, Store

W = np.random.default_rng(0).random(50_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store: two commits on main that share `w`, one on side, a tag, a side file."""
    (tmp_path / "file").write_bytes(b"side file " * 10_000)
    with cas.open(tmp_path / "s", create=True) as store:
        store.commit({"m": {"w": W}, "a": 1}, codec="raw")
        store.commit({"m": {"w": W}, "a": np.arange(40_000)}, codec="raw", files={"f.txt": tmp_path / "file"})
        store.commit({"other": np.ones(3)}, branch="side")
        store.tag("v1")
    return tmp_path / "s"


def check(path: Path, data: bool = False) -> list[Finding]:
    with cas.open(path) as store:
        return store.fsck(data=data)


def pack_with(path: Path, data: bytes) -> Path:
    (found,) = (file for file in path.glob("packs/*/*") if data in file.read_bytes())
    return found


def change(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def break_block(path: Path) -> None:
    file = pack_with(path, W[:100].tobytes())
    change(file, file.read_bytes().index(W[:100].tobytes()))


def break_side_file(path: Path) -> None:
    file = pack_with(path, b"side file ")
    change(file, file.read_bytes().index(b"side file "))


def break_table(path: Path) -> None:
    change(pack_with(path, W[:100].tobytes()), -60)


def break_commit(path: Path) -> None:
    with cas.open(path) as store:
        name = bytes.fromhex(store.resolve("main~1").id)
        (place,) = store._catalog.index.find(name)  # type: ignore[arg-type]
    from cas.pack import name_of

    change(path / name_of(place.pack), place.row.offset + 5)


def lose_pack(path: Path) -> None:
    pack_with(path, W[:100].tobytes()).unlink()


def break_record(path: Path) -> None:
    change(path / "log" / f"{2:020}", 70)


def lose_record(path: Path) -> None:
    (path / "log" / f"{3:020}").unlink()


def add_strangers(path: Path) -> None:
    (path / "packs" / "note.txt").write_text("hello")


def leave_a_file(path: Path) -> None:
    (path / "tmp").mkdir(exist_ok=True)
    (path / "tmp" / "half").write_text("half")


def names(findings: list[Finding]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in findings:
        found.setdefault(finding.name, set()).update(finding.paths)
    return found


@pytest.mark.parametrize("data", [False, True])
def test_a_whole_store_has_no_findings(path: Path, data: bool) -> None:
    assert check(path, data) == []


DAMAGES: list[tuple[Callable[[Path], None], bool, dict[str, set[str]]]] = [
    (break_block, False, {}),
    (break_block, True, {"block-corrupt": {"m/w"}}),
    (break_side_file, True, {"block-corrupt": {"files/f.txt"}}),
    (break_table, False, {"pack-corrupt": set()}),
    (break_commit, False, {"object-corrupt": {"."}}),
    (lose_pack, False, {"object-missing": {".", "m/w"}}),
    (break_record, False, {"log-record-corrupt": set()}),
    (lose_record, False, {"log-record-missing": set()}),
    (add_strangers, False, {"pack-foreign-file": set()}),
    (leave_a_file, False, {"leftover": set()}),
]


@pytest.mark.parametrize(("damage", "data", "found"), DAMAGES)
def test_each_damage_has_its_name_and_paths(
    path: Path, damage: Callable[[Path], None], data: bool, found: dict[str, set[str]]
) -> None:
    damage(path)
    findings = names(check(path, data))
    assert {name: findings.get(name) for name in found} == found
    assert bool(findings) == bool(found)


def test_a_bad_block_names_every_commit_that_needs_it(path: Path) -> None:
    with cas.open(path) as store:
        commits = [commit.id for commit in store.log("main")]
    break_block(path)
    finding, row = sorted(check(path, True), key=lambda found: found.name)
    assert set(finding.commits) == set(commits)
    assert finding.severity == "error"
    assert finding.message.startswith("block ")
    assert (row.name, row.severity) == ("row-corrupt", "warning")


def test_damage_that_no_ref_reaches_is_found_all_the_same(path: Path) -> None:
    with cas.open(path) as store:
        for branch in store.refs()["branches"]:
            store.delete_branch(branch)
        for tag in store.refs()["tags"]:
            store.delete_tag(tag)
    break_block(path)
    assert [finding.name for finding in check(path, True)] == ["row-corrupt"]


def test_an_index_that_differs_is_a_warning(path: Path) -> None:
    with cas.open(path) as store:
        index = store._catalog.index
        place = index.rows()[0]

        def remove(txn: object) -> None:
            with txn.cursor(index._rows) as cursor:  # type: ignore[attr-defined]
                assert cursor.set_key(place.row.id)
                cursor.delete(dupdata=True)

        index._write(remove)
        assert "index-differs" in names(store.fsck())
    shutil.rmtree(path / "index")
    assert check(path) == []


def test_what_no_ref_names_is_not_checked_for(path: Path) -> None:
    with cas.open(path) as store:
        store.delete_branch("side")
        store.delete_tag("v1")
        assert store.fsck(data=True) == []


def test_checking_changes_nothing(path: Path) -> None:
    def state() -> dict[str, bytes]:
        files = [file for file in path.rglob("*") if file.is_file() and file.parent.name != "index"]
        return {str(file): file.read_bytes() for file in files}

    break_block(path)
    before = state()
    check(path, True)
    assert state() == before


def test_an_empty_store_is_whole(store: Store) -> None:
    assert store.fsck(data=True) == []
