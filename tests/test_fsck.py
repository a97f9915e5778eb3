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
    assert (set(row.commits), row.paths) == (set(commits), finding.paths)


def test_damage_that_no_ref_reaches_is_found_all_the_same(path: Path) -> None:
    with cas.open(path) as store:
        for branch in store.refs()["branches"]:
            store.delete_branch(branch)
        for tag in store.refs()["tags"]:
            store.delete_tag(tag)
    break_block(path)
    assert [finding.name for finding in check(path, True)] == ["row-corrupt", "undo-damaged"]


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


# -- what nothing needs -------------------------------------------------------------------------------------------


def forget(path: Path, branch: str) -> None:
    """Delete a branch and give up undo, as a collection does, but delete no pack."""
    with cas.open(path) as store:
        store.delete_branch(branch)
        root = store._roots.current()
        assert store._roots.publish(root.successor("no undo", floor=root.seq))


def test_packs_that_nothing_needs_are_counted(path: Path) -> None:
    before = sum(file.stat().st_size for file in path.glob("packs/*/*"))
    with cas.open(path) as store:
        store.commit({"new": W[:40_000] + 1}, branch="gone", codec="raw")
    size = sum(file.stat().st_size for file in path.glob("packs/*/*")) - before
    forget(path, "gone")
    (finding,) = check(path)
    assert (finding.name, finding.severity) == ("pack-orphaned", "info")
    assert finding.message.startswith("1 pack ")
    assert cas.commits.human_bytes(size) in finding.message
    with cas.open(path) as store:
        store.gc(grace=0, expire=0)
    assert check(path, True) == []


def test_rows_that_nothing_names_and_further_copies_are_counted(path: Path, tmp_path: Path) -> None:
    with cas.open(tmp_path / "other", create=True) as other:
        other.commit({"w": W, "more": W + 1, "kept": W - 1}, codec="raw")
    shutil.copytree(tmp_path / "other" / "packs", path / "packs", dirs_exist_ok=True)
    with cas.open(path) as store:
        store.commit({"kept": W - 1}, branch="kept", codec="raw")  # leans on the other store's pack
    found = {finding.name: finding for finding in check(path, True)}
    assert found.keys() == {"row-duplicate", "row-unreferenced"}
    assert {finding.severity for finding in found.values()} == {"info"}
    assert " rows of objects that have another, 400 kB" in found["row-duplicate"].message
    assert " rows that nothing reachable names, 400 kB" in found["row-unreferenced"].message


def test_files_that_were_given_up_are_counted_until_they_are_deleted(path: Path) -> None:
    from cas.fence import condemn

    bystander = pack_with(path, W[:100].tobytes())
    copy = bystander.with_name("0" * 32)
    place = path / "packs" / "00" / copy.name
    place.parent.mkdir(exist_ok=True)
    shutil.copy(bystander, place)
    with cas.open(path) as store:
        root = store._roots.current()
        assert condemn(store._backend, store._roots, root, 1, {bytes(16)}, "a test")
        (finding,) = store.fsck()
        assert (finding.name, finding.severity) == ("pack-condemned", "info")
        assert finding.message.startswith("1 file ")
        store.gc(grace=0)
        assert store.fsck(data=True) == []


def severities(store: Store) -> dict[str, str]:
    return {finding.name: finding.severity for finding in store.fsck()}


def lists_of(path: Path) -> list[Path]:
    return list((path / "lists").iterdir())


def test_lists_are_checked(path: Path) -> None:
    with cas.open(path) as store:
        store.prune("main", keep_last=1)
        (file,) = lists_of(path)
        data = file.read_bytes()
        change(file, 70)
        assert severities(store)["list-corrupt"] == "error"
        file.unlink()
        assert severities(store)["list-missing"] == "error"
        file.write_bytes(data)
        shutil.copy(file, file.with_name("ab" * 16))
        assert severities(store) == {"list-orphaned": "info", "row-unreferenced": "info"}  # one small tree


def test_what_was_pruned_is_not_missing(path: Path) -> None:
    with cas.open(path) as store:
        store.prune("main", keep_last=1)
        store.gc(grace=0)
        assert [finding.name for finding in store.fsck(data=True)] == ["row-unreferenced"]


def test_what_only_undo_leads_to_is_a_warning(path: Path) -> None:
    with cas.open(path) as store:
        store.delete_branch("side")
    pack_with(path, np.ones(3).tobytes()).unlink()
    (finding,) = check(path)
    assert (finding.name, finding.severity) == ("undo-damaged", "warning")


def test_of_many_bad_packs_an_error_names_some_and_counts_the_rest(tmp_path: Path) -> None:
    with cas.open(tmp_path / "s", create=True) as store:
        for step in range(8):
            store.commit({"w": np.full(100, step)})
    packs = [file for file in (tmp_path / "s" / "packs").rglob("*") if file.is_file()]
    for file in packs:
        file.write_bytes(file.read_bytes()[:-1])
    shutil.rmtree(tmp_path / "s" / "index")
    with cas.open(tmp_path / "s") as store, pytest.raises(cas.CasError) as caught:
        store.load("main")
    assert sum(file.name in str(caught.value) for file in packs) == 3
    assert str(caught.value).endswith(f"and {len(packs) - 3} more packs cannot be read")
