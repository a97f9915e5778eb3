"""Repairing between stores that lie elsewhere: the source, the damaged store or both on S3."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_process import environment, run
from faults.damage import damage, harm, packs, rows
from faults.proxy import FOREVER, Fault, FaultProxy
from faults.stores import errors, make, same, state
from servers.s3 import S3Server

import cas
from cas import CasError, Finding, Invalid, NotFound, Store

COMMITS = 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make(tmp_path / "here", COMMITS)
    return tmp_path / "here"


@pytest.fixture
def url(s3_server: S3Server, path: Path, tmp_path: Path) -> str:
    """The URL of a store with all of `path`."""
    found = s3_server.url(s3_server.bucket(), "run")
    cas.init(found, block_size=4096, storage_options=s3_server.options, cache=tmp_path / "cache").close()
    with cas.open(path, cache=tmp_path / "cache") as store:
        store.push(found, everything=True, storage_options=s3_server.options)
    return found


def repair(store: Store, source: Any, **options: Any) -> list[Finding]:
    return store.fsck(data=True, repair=True, source=source, **options)


def heal(store: Store, source: Any, **options: Any) -> None:
    store.heal("main", source, **options)


def assert_whole(store: Store) -> None:
    store.gc(grace=0)
    assert errors(store.fsck(data=True)) == []
    for number in range(COMMITS):
        assert same(store.load(f"main~{COMMITS - 1 - number}"), state(number))


@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_a_local_store_from_s3(path: Path, url: str, s3_server: S3Server, tmp_path: Path, how: str) -> None:
    if how == "missing":
        for file in packs(path):
            file.unlink()
    else:
        damage(path, rows(path))
    with cas.open(path, cache=tmp_path / "new") as store:
        found = repair(store, url, storage_options=s3_server.options)
        assert errors(found) == []
        assert "repaired" in {finding.name for finding in found}
        assert_whole(store)


@pytest.mark.parametrize("how", ["missing", "flipped", "cut"])
def test_a_store_on_s3_from_a_local_one(path: Path, url: str, s3_server: S3Server, tmp_path: Path, how: str) -> None:
    harm(s3_server, url, how)
    with cas.open(url, storage_options=s3_server.options, cache=tmp_path / "new") as store:
        assert errors(store.fsck(data=True)) != []
        assert errors(repair(store, path)) == []
        assert_whole(store)
    with cas.open(url, storage_options=s3_server.options, cache=tmp_path / "newer") as store:
        assert_whole(store)


def test_what_was_healed_on_s3_is_found_and_the_bad_rows_are_dropped(
    path: Path, url: str, s3_server: S3Server, tmp_path: Path
) -> None:
    harm(s3_server, url, "flipped")
    options = {"storage_options": s3_server.options}
    with cas.open(url, cache=tmp_path / "new", **options) as store:
        assert store.heal("main", path).objects
        newest = state(COMMITS - 1)
        assert same(store.load("main"), newest)
        with cas.open(url, cache=tmp_path / "cold", **options) as cold:
            assert same(cold.load("main"), newest), "the hint of where the commit lies tells of the good copies"
        assert "row-corrupt" in {finding.name for finding in store.fsck(data=True)}
        assert errors(repair(store, path)) == []
        assert_whole(store)


def test_from_s3_to_s3_by_the_name_of_a_remote(path: Path, url: str, s3_server: S3Server, tmp_path: Path) -> None:
    other = s3_server.url(s3_server.bucket(), "other")
    options = {"storage_options": s3_server.options}
    cas.init(other, block_size=4096, cache=tmp_path / "cache", **options).close()
    with cas.open(path, cache=tmp_path / "cache") as store:
        store.push(other, everything=True, **options)
    with cas.open(url, cache=tmp_path / "cache", **options) as store:
        store.add_remote("backup", other, endpoint_url=s3_server.endpoint)
        harm(s3_server, url, "missing")
        key = {"key": s3_server.key, "secret": s3_server.secret}
        assert errors(repair(store, "backup", storage_options=key)) == []
        assert_whole(store)


def test_what_is_lost_at_both_is_named(path: Path, url: str, s3_server: S3Server, tmp_path: Path) -> None:
    damage(path, rows(path))
    harm(s3_server, url, "flipped")
    with cas.open(path, cache=tmp_path / "new") as store:
        found = repair(store, url, storage_options=s3_server.options)
        assert "lost" in {finding.name for finding in found}
        assert errors(store.fsck()) != []


def test_a_source_that_cannot_be_had_is_one_sentence(path: Path, tmp_path: Path) -> None:
    with cas.open(path) as store:
        with pytest.raises(NotFound, match="there is no store at "):
            repair(store, tmp_path / "none")
        with pytest.raises(NotFound, match="there is no remote 'none'"):
            repair(store, "none")
        with pytest.raises(Invalid, match="repair=True"):
            store.fsck(source="none")


@pytest.mark.server("real_s3")
@pytest.mark.parametrize("at", ["get", "head", "list"])
@pytest.mark.parametrize("nth", [3, 12])
def test_a_server_that_fails_is_no_damage(
    path: Path, url: str, fault_proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, nth: int
) -> None:
    """Nothing is written anew, and nothing given up, for a request that could not be answered."""
    monkeypatch.setattr("cas.retries.PATIENCE", 0.2)
    with cas.open(url, storage_options=fault_proxy.options, cache=tmp_path / "new") as store:
        before = len(list(store.roots()))
        fault_proxy.faults.append(Fault("503", at, nth, FOREVER))
        with contextlib.suppress(CasError):  # where there are fewer such requests it goes well
            found = repair(store, path)
            assert errors(found) == []
            assert not fault_proxy.faults[0].hits
        fault_proxy.faults.clear()
        assert len(list(store.roots())) == before
        assert errors(store.fsck(data=True)) == []


@pytest.mark.slow
@pytest.mark.server("real_s3")
@pytest.mark.parametrize("what", ["the repair", "healing commit "])
def test_a_source_that_fails_has_not_lost_anything(
    path: Path, url: str, fault_proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("cas.retries.PATIENCE", 0.2)
    told: list[str] = []
    for nth in range(1, 7):
        damaged = Path(shutil.copytree(path, tmp_path / f"damaged{nth}"))
        damage(damaged, rows(damaged))
        fault_proxy.faults[:] = [Fault("503", "get", nth, FOREVER)]
        with cas.open(damaged, cache=tmp_path / f"cache{nth}") as store:
            try:
                if what == "the repair":
                    assert errors(repair(store, url, storage_options=fault_proxy.options)) == []
                else:
                    assert store.heal("main", url, storage_options=fault_proxy.options).lost == 0
            except CasError as error:
                told.append(str(error))
            fault_proxy.faults.clear()
            assert errors(repair(store, url, storage_options=fault_proxy.options)) == []
            assert_whole(store)
    assert any(f"{what}" in text and " was cut short: " in text for text in told), told


@pytest.mark.slow
def test_the_command_takes_a_url_and_the_name_of_a_remote(
    path: Path, url: str, s3_server: S3Server, tmp_path: Path
) -> None:
    spare = Path(shutil.copytree(path, tmp_path / "spare"))
    env = environment(CAS_CACHE=str(tmp_path / "commands"))
    options = [f"--storage-option={name}={value}" for name, value in s3_server.options.items()]
    damage(path, rows(path))
    done = run(path, "fsck", "--data", "--repair", "--from", url, *options, env=env)
    assert done.returncode == 0, done.stderr
    assert "info repaired: repaired " in done.stdout
    with cas.open(path) as store:
        store.add_remote("backup", spare)
        assert_whole(store)
    damage(path, rows(path))
    done = run(path, "fsck", "--data", "--repair", "--from", "backup", env=env)
    assert done.returncode == 0, done.stderr
    with cas.open(path) as store:
        assert_whole(store)
