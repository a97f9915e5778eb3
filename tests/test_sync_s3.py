"""Moving commits between a bucket and other stores: what it costs on the wire, and what is there afterwards.

Bytes and requests are those that a proxy before the server has counted.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from buckets import Bucket, taken
from faults.proxy import FaultProxy
from faults.stores import errors, quick_folder
from servers.s3 import S3Server
from servers.sshd import SftpServer
from trainings import Training, commits, equal

import cas
from cas import pack, where
from cas.backend import Backend
from cas.errors import NotFound
from cas.store import Store

BLOCK = 65536
MIB = 1 << 20


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


@pytest.fixture
def bucket(s3_server: S3Server, folder: Path) -> Bucket:
    return Bucket(s3_server, folder / "cache")


@pytest.fixture
def counted(fault_proxy: FaultProxy, folder: Path) -> Bucket:
    """Behind the proxy, which counts."""
    return Bucket(fault_proxy.server, folder / "cache")


def noise(seed: int, nbytes: int = 4 * BLOCK) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def rows(backend: Backend) -> list[tuple[Any, ...]]:
    """Every object of a store as it is stored, but for where."""
    found = []
    for info in backend.list(pack.FOLDER):
        for row in pack.read_table(backend, pack.id_of(info.name)):
            stored = backend.read(info.name, row.offset, row.stored)
            found.append((row.id, row.kind, row.coding, row.raw, row.chain, row.base, stored))
    return sorted(found)


def held(store: Store) -> dict[str, dict[str, str]]:
    """Branches and tags."""
    return {kind: refs for kind, refs in store.refs().items() if kind != "tracking"}


# -- what it costs --------------------------------------------------------------------------------------------------


def adapted(base: dict[str, Any], number: int, count: int, nbytes: int) -> dict[str, Any]:
    """A frozen model with `count` adapter matrices of `nbytes` each."""
    return {"base": base, "lora": {f"m{n}": noise(1000 * number + n, nbytes) for n in range(count)}, "rank": 8}


@pytest.mark.slow
@pytest.mark.parametrize(("count", "nbytes"), [(2, 20_000), (8, 30_000), (4, 150_000), (1, MIB)])
def test_an_adapter_costs_what_is_new_in_it(
    counted: Bucket, fault_proxy: FaultProxy, folder: Path, count: int, nbytes: int
) -> None:
    """At most the new stored bytes plus 1 % plus 64 KiB, and under 3 % of the checkpoint, out and in."""
    base = {f"layer{n}": noise(n, 4 * MIB) for n in range(12)}
    counted.open(create=True).close()
    with cas.init(folder / "here") as here:
        here.commit(adapted(base, 1, count, nbytes))
        here._cache = folder / "cache"
        here.push(counted.url(), storage_options=counted.options)
        with cas.clone(counted.url(), folder / "copy", storage_options=counted.options, cache=folder / "other") as copy:
            before = counted.size()
            taken(fault_proxy)
            made = here.commit(adapted(base, 2, count, nbytes))
            assert made.stats is not None
            most = min(1.01 * made.stored + 64 * 1024, 0.03 * made.raw)
            here.push(counted.url(), storage_options=counted.options)
            assert taken(fault_proxy)[1] <= most
            assert counted.size() - before <= most
            copy.pull(storage_options=counted.options)
            assert taken(fault_proxy)[1] <= most
            assert equal(copy.load(), here.load())


def test_what_is_in_step_costs_a_few_requests(counted: Bucket, fault_proxy: FaultProxy, folder: Path) -> None:
    """Whether this machine has met the store before or not: only the roots are read."""
    counted.open(create=True).close()
    with cas.init(folder / "here", block_size=BLOCK) as here:
        commits(here, 3)
        here.add_remote("origin", counted.url())
        for cache in ("cache", "cold", "colder"):
            here._cache = folder / cache
            here.push(storage_options=counted.options)
            here.fetch(storage_options=counted.options)
            taken(fault_proxy)
            assert here.push(storage_options=counted.options).refs == ()
            assert taken(fault_proxy)[0] < 10
            assert here.fetch(storage_options=counted.options).refs == ()
            assert taken(fault_proxy)[0] < 10
            assert here.pull(storage_options=counted.options).refs == ()
            assert taken(fault_proxy)[0] < 12


PACKS = 300


def with_many_packs(bucket: Bucket, folder: Path) -> None:
    """A store in the bucket of whose packs only the last few hold the state of `main`."""
    with cas.init(folder / "many", block_size=BLOCK) as store:
        for number in range(PACKS):
            store.commit({"w": noise(number, 1000)}, branch="other", step=number)
    with bucket.open(create=True) as there:
        for info in store._backend.list(pack.FOLDER):
            there._backend.create(info.name, (folder / "many" / info.name).read_bytes())
        commits(there, 3, delta="parent")
        assert len(there._backend.list(pack.FOLDER)) > PACKS


@pytest.mark.slow
def test_one_commit_of_a_store_with_very_many_packs_loads_from_a_few(
    counted: Bucket, fault_proxy: FaultProxy, folder: Path
) -> None:
    with_many_packs(counted, folder)
    with counted.open() as store:
        expected, tip = store.load("main"), store.resolve("main").id
    taken(fault_proxy)
    for number, rev in enumerate(("main", tip, "main~1")):
        with counted.open(cache=folder / f"cold{number}") as store:
            loaded = store.load(rev)
        assert equal(loaded, expected) == (rev != "main~1")
        assert taken(fault_proxy)[0] <= 40, f"{rev} takes too many requests"
    with cas.clone(counted.url(), folder / "copy", storage_options=counted.options, cache=folder / "cold") as copy:
        assert equal(copy.load("main"), expected)
    assert taken(fault_proxy)[0] <= 60, "a clone"


@pytest.mark.slow
@pytest.mark.parametrize("hint", ["gone", "garbage", "of packs that are gone", "of other packs", "of a few"])
def test_a_hint_that_is_no_good_costs_requests_and_nothing_else(bucket: Bucket, folder: Path, hint: str) -> None:
    with bucket.open(create=True) as store:
        states = commits(store, 4)
        store.repack(expire=0)
        store.commit({"w": noise(1)}, branch="other")
        backend, tip = store._backend, bytes.fromhex(store.resolve("main").id)
        known = where.read(backend, tip)  # type: ignore[arg-type]
        assert known
        name = where.name_of(tip)  # type: ignore[arg-type]
        other = where.read(backend, bytes.fromhex(store.resolve("other").id))  # type: ignore[arg-type]
        if hint == "gone":
            backend.delete(name)
        elif hint == "garbage":
            backend.replace(name, noise(3, 100).tobytes())
        elif hint == "of packs that are gone":
            where.write(backend, tip, [uuid.uuid4().bytes for _ in range(3)])  # type: ignore[arg-type,misc]
        elif hint == "of other packs":
            where.write(backend, tip, other)  # type: ignore[arg-type]
        else:
            where.write(backend, tip, known[:1])  # type: ignore[arg-type]
    with bucket.open(cache=folder / "cold") as store:
        assert equal(store.load("main"), states[-1])
        assert equal(store.load("main~3"), states[0])


# -- what is there afterwards ---------------------------------------------------------------------------------------


def filled(path: Path) -> Store:
    """A store with all that a store can hold: chains of deltas, branches, tags, metadata, files."""
    store = cas.init(path, block_size=BLOCK)
    (path.parent / "config.json").write_bytes(b'{"size": 7}' * 20_000)
    training = Training()
    for number in range(5):
        made = store.commit(
            training.state(),
            step=number,
            delta="parent",
            metrics={"loss": 1 / (number + 1)},
            message=f"schritt {number} ü",
            meta={"lr": 1e-4, "tags": ["a", "b"]},
            files={"config.json": path.parent / "config.json"},
        )
        training.step()
    store.branch("exp/größe", "main~2")
    store.tag("v1", made.id)
    store.tag("best-é", "main~1")
    return store


def test_a_round_trip_is_equal_to_the_byte(bucket: Bucket, folder: Path) -> None:
    bucket.open(create=True).close()
    with filled(folder / "here") as here:
        here.push(bucket.url(), everything=True, storage_options=bucket.options)
        with bucket.open(cache=folder / "fresh") as there:
            assert rows(there._backend) == rows(here._backend)
            assert there.refs() == here.refs()
            assert errors(there.fsck(data=True)) == []
        with cas.clone(bucket.url(), folder / "copy", storage_options=bucket.options, cache=folder / "third") as copy:
            assert rows(copy._backend) == rows(here._backend)
            assert any(row[4] for row in rows(copy._backend)), "no delta came along"
            assert held(copy) == held(here)
            assert copy.files("v1") == here.files("v1")
            for one, other in zip(copy.log("main"), here.log("main"), strict=True):
                assert (one.id, one.step, one.metrics, one.message, one.meta) == (
                    *(other.id, other.step, other.metrics, other.message, other.meta),
                )
                assert equal(copy.load(one.id), here.load(other.id))
            assert errors(copy.fsck(data=True)) == []


def test_a_bucket_is_pushed_to_another_and_nothing_is_kept_on_the_way(bucket: Bucket, folder: Path) -> None:
    bucket.open(create=True).close()
    bucket.open("elsewhere", create=True).close()
    with filled(folder / "here") as here:
        here.push(bucket.url(), everything=True, storage_options=bucket.options)
        expected, refs = rows(here._backend), here.refs()
    with bucket.open() as there:
        done = there.push(bucket.url("elsewhere"), everything=True, storage_options=bucket.options)
        assert (done.objects, done.sent) == (len(expected), sum(len(row[-1]) for row in expected))
        assert there.push(bucket.url("elsewhere"), everything=True, storage_options=bucket.options).refs == ()
    assert not list((folder / "cache").rglob("packs"))
    with bucket.open("elsewhere", cache=folder / "fresh") as elsewhere:
        assert rows(elsewhere._backend) == expected
        assert elsewhere.refs() == refs
        assert errors(elsewhere.fsck(data=True)) == []


def test_a_part_and_a_short_history_come_from_a_bucket(bucket: Bucket, folder: Path) -> None:
    options = {"storage_options": bucket.options}
    with bucket.open(create=True) as there:
        states = commits(there, 4)
    with cas.clone(bucket.url(), folder / "part", only="model/**", depth=2, **options) as part:
        assert len(list(part.log("main"))) == 2
        assert equal(part.load("main", only="model/**"), {"model": states[-1]["model"]})
        with pytest.raises(NotFound, match="cas fetch origin"):
            part.load("main")
        assert errors(part.fsck(data=True)) == []
        part.fetch(only=".", depth=0, **options)
        for age in range(4):
            assert equal(part.load(f"main~{age}"), states[3 - age])


def test_a_part_and_a_short_history_go_to_a_bucket(bucket: Bucket, folder: Path) -> None:
    options = {"storage_options": bucket.options}
    bucket.open(create=True).close()
    with cas.init(folder / "here", block_size=BLOCK) as here:
        states = commits(here, 4)
        sent = here.push(bucket.url(), only="model/**", depth=2, **options).sent
        with bucket.open(cache=folder / "fresh") as there:
            assert len(list(there.log("main"))) == 2
            assert equal(there.load("main~1", only="model/in"), {"model": {"in": states[2]["model"]["in"]}})
            assert sent < sum(len(row[-1]) for row in rows(here._backend)) / 2
            assert errors(there.fsck(data=True)) == []
        here.push(bucket.url(), only=".", depth=0, **options)
    with bucket.open(cache=folder / "fresher") as there:
        for age in range(4):
            assert equal(there.load(f"main~{age}"), states[3 - age])
        assert errors(there.fsck(data=True)) == []


def to_and_from(make: Callable[[str], Store], url: Callable[[str], str], options: dict[str, Any], folder: Path) -> None:
    """Out to a place, on to another one there, and back by clone; then a commit there comes by pull."""
    make("one").close()
    make("two").close()
    with filled(folder / "here") as here:
        expected, refs = rows(here._backend), here.refs()
        here.push(url("one"), everything=True, storage_options=options)
    with make("one") as one:
        one.push(url("two"), everything=True, storage_options=options)
    with cas.clone(url("two"), folder / "copy", storage_options=options, cache=folder / "cache") as copy:
        assert rows(copy._backend) == expected
        assert held(copy) == refs
        with make("two") as two:
            two.load("main")
            two.commit({"w": noise(5)}, step=5)
        assert copy.pull(storage_options=options).refs[-1].name == "main"
        assert equal(copy.load("main"), {"w": noise(5)})
        assert errors(copy.fsck(data=True)) == []


def test_out_to_sftp_and_back(sftp_server: SftpServer, folder: Path) -> None:
    def url(name: str) -> str:
        return sftp_server.url(folder / "far" / name)

    def make(name: str) -> Store:
        return cas.open(url(name), create=True, storage_options=sftp_server.options, cache=folder / "cache")

    to_and_from(make, url, sftp_server.options, folder)


def test_out_to_a_store_in_memory_and_back(folder: Path) -> None:
    place = uuid.uuid4().hex

    def url(name: str) -> str:
        return f"memory://{place}/{name}"

    to_and_from(lambda name: cas.open(url(name), create=True, cache=folder / "cache"), url, {}, folder)
