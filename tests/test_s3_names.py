"""Names with spaces, signs and letters of all kinds: of a prefix, branches, tags, paths, files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.stores import errors, same
from servers.s3 import S3Server

import cas

PREFIXES = [
    "with a space/and  two",
    "läufe/実験/эксперимент",
    "100% sure+more&less=x;y,z@home$!'()*",
    "a%20b/%2F/%",
    "tilde~/.hidden/ends.",
    "e\u0301 and é",
    "😀",
    "question?mark#and-hash",
]
BRANCH, TAG = "zweig/größe-実験", "v1+große~".rstrip("~")
STATE = {
    "ein Gewicht/mit Schrägstrich": np.arange(3000, dtype=np.float32),
    "модель": {"слой 0": np.ones(5, np.float64), "100%": 1, "": 2},
    "emoji 😀": "текст",
}


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.bucket()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_store_lives_under_any_prefix(s3_server: S3Server, bucket: str, tmp_path: Path, prefix: str) -> None:
    place: dict[str, Any] = {
        "path": f"s3://{bucket}/{prefix}",
        "storage_options": s3_server.options,
        "cache": tmp_path / "cache",
    }
    with cas.init(block_size=4096, **place) as store:
        first = store.commit(STATE, branch=BRANCH, step=1, message="erste Größe", metrics={"потеря": 1.5})
        store.tag(TAG, BRANCH)
        store.commit({**STATE, "new": 1}, branch=BRANCH, step=2)
        store.commit({"dead": b"x" * 10_000}, branch="dead")
        store.delete_branch("dead")
        assert store.gc(grace=0, expire=0).deleted
        assert f"s3://{bucket}/{prefix}" in (store.url, store.url + "/")
    keys = [entry["Key"] for entry in s3_server.client().list_objects_v2(Bucket=bucket)["Contents"]]
    assert f"{prefix}/cas.json" in keys
    assert all(key.startswith(f"{prefix}/") for key in keys)
    with cas.open(**{**place, "cache": tmp_path / "fresh"}) as store:
        assert same(store.load(TAG), STATE)
        assert same(store.load(first.id), STATE)
        assert same(store.load(BRANCH, only="модель"), {"модель": STATE["модель"]})
        assert errors(store.fsck(data=True)) == []


@pytest.mark.parametrize("prefix", PREFIXES)
def test_stores_under_any_prefix_exchange_commits(
    s3_server: S3Server, bucket: str, tmp_path: Path, prefix: str
) -> None:
    url, options = f"s3://{bucket}/{prefix}", s3_server.options
    cas.init(url, block_size=4096, storage_options=options, cache=tmp_path / "cache").close()
    with cas.init(tmp_path / "ein Ordner mit ü", block_size=4096) as here:
        here.commit(STATE, branch=BRANCH, step=1)
        here.tag(TAG, BRANCH)
        here.add_remote("über", url)
        assert {moved.name for moved in here.push("über", BRANCH, TAG, storage_options=options).refs} == {BRANCH, TAG}
    with cas.clone(url, tmp_path / "копия", storage_options=options, cache=tmp_path / "cache") as copy:
        assert same(copy.load(BRANCH), STATE)
        assert same(copy.load(TAG), STATE)
        assert copy.refs()["tracking"].keys() == {f"origin/{BRANCH}"}
        assert errors(copy.fsck(data=True)) == []


def test_two_prefixes_of_which_one_begins_like_the_other_stay_apart(
    s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    stores = []
    for name in ("run", "run 2", "run/inner", "running"):
        place = f"s3://{bucket}/{name}"
        stores.append(cas.init(place, storage_options=s3_server.options, cache=tmp_path / "cache"))
        stores[-1].commit({"name": name, "noise": name.encode() * 5000})
        stores[-1].commit({"dead": name.encode() * 7000}, branch="dead")
        stores[-1].delete_branch("dead")
    for store in stores:
        store.gc(grace=0, expire=0)
        store.close()
    for name in ("run", "run 2", "run/inner", "running"):
        place = f"s3://{bucket}/{name}"
        with cas.open(place, storage_options=s3_server.options, cache=tmp_path / "fresh") as store:
            assert store.load("main")["name"] == name
            assert errors(store.fsck(data=True)) == []


@pytest.mark.slow
def test_the_command_takes_such_names(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    url = f"s3://{bucket}/läufe/run 7%"
    options = [f"--storage-option={key}={value}" for key, value in s3_server.options.items()]

    def cas_(*arguments: str) -> str:
        command = [sys.executable, "-m", "cas.cli", "--store", url, *options, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "testsecret" not in done.stdout + done.stderr
        return done.stdout

    with cas.init(url, storage_options=s3_server.options, cache=tmp_path / "cache") as store:
        store.commit(STATE, branch=BRANCH, step=1)
    cas_("tag", TAG, BRANCH)
    assert TAG in cas_("log", BRANCH)
    assert "модель/слой 0" in cas_("ls", TAG, "модель")
    cas_("fsck", "--data")
