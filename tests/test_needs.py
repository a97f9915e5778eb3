"""What objects name, remembered in a file: what comes back is what went in, and nothing else ever does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from faults import children
from faults.stores import quick_folder, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cas
import cas.needs as needs_module
from cas.block import Kind, ObjectId
from cas.errors import NotFound
from cas.needs import Needs
from cas.reach import Edge
from cas.reader import Objects


class Told:
    """Stands where objects are read: none is there, so whatever is answered was remembered."""

    def __getattr__(self, name: str) -> Any:
        def read(wanted: ObjectId) -> Any:
            raise NotFound(f"{name} {wanted.hex()[:8]} was asked for")

        return read


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


def ids(seed: int) -> ObjectId:
    """Ids of every shape that numpy could take for padding: zeros at the end, at the start, all zeros."""
    data = bytearray(blake3(seed.to_bytes(8, "little")).digest())
    if seed % 5 == 1:
        data[-(seed % 31) - 1 :] = bytes(seed % 31 + 1)
    if seed % 5 == 2:
        data[: seed % 31 + 1] = bytes(seed % 31 + 1)
    if seed == 0:
        data = bytearray(32)
    return ObjectId(bytes(data))


NAMES = st.integers(0, 300).map(ids)
STRUCTURED = st.sampled_from([Kind.LIST, Kind.LAYOUT, Kind.TREE, Kind.COMMIT])
EDGES = st.tuples(STRUCTURED, NAMES)
GRAPHS = st.dictionaries(EDGES, st.tuples(st.lists(EDGES, max_size=6), st.lists(NAMES, max_size=12)), max_size=30)
Graph = dict[Edge, tuple[list[Edge], list[ObjectId]]]


def remember(path: Path, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that holds this graph, written by the only way there is."""

    def told(edge: Edge, objects: Any, absent: Any) -> Iterator[Edge]:
        structured, blocks = graph[edge]
        yield from structured
        yield from ((Kind.BLOCK, name) for name in blocks)

    path.unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(needs_module, "needs", told)
        Needs(Told(), path).save(graph)  # type: ignore[arg-type]


def recalled(needs: Needs, edge: Edge) -> tuple[list[Edge], list[bytes]]:
    found = needs.of(edge)
    return list(found.objects), found.blocks.view("V32").tolist()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=GRAPHS)
def test_what_was_remembered_comes_back(graph: Graph, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "needs"
    remember(path, graph, monkeypatch)
    needs = Needs(Told(), path)  # type: ignore[arg-type]
    for edge, (structured, blocks) in graph.items():
        assert recalled(needs, edge) == (structured, list(blocks))
    for edge in [(kind, ids(999)) for kind in Kind if kind is not Kind.BLOCK]:
        with pytest.raises(NotFound, match="was asked for"):
            needs.of(edge)
    assert {name.partition(".")[0] for name in os.listdir(folder)} == {"needs"}
    assert len(os.listdir(folder)) <= 2, "something temporary was left"


GRAPH: Graph = {
    (Kind.COMMIT, ids(0)): ([(Kind.TREE, ids(1)), (Kind.COMMIT, ids(2))], []),
    (Kind.TREE, ids(1)): ([(Kind.LAYOUT, ids(3))], [ids(4), ids(5)]),
    (Kind.LIST, ids(6)): ([], [ids(7)] * 3),
    (Kind.TREE, ids(8)): ([], []),
}


def test_any_flipped_bit_is_ignored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "needs"
    remember(path, GRAPH, monkeypatch)
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        needs = Needs(Told(), path)  # type: ignore[arg-type]
        for edge in GRAPH:
            with pytest.raises(NotFound, match="was asked for"):
                needs.of(edge)


def test_any_cut_and_anything_appended_is_ignored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "needs"
    remember(path, GRAPH, monkeypatch)
    good = path.read_bytes()
    for data in [good[:at] for at in range(len(good))] + [good + b"\0", good + good]:
        path.write_bytes(data)
        with pytest.raises(NotFound, match="was asked for"):
            Needs(Told(), path).of((Kind.TREE, ids(8)))  # type: ignore[arg-type]


def commits(path: Path) -> None:
    with cas.open(path, create=True) as store:
        for step in range(3):
            store.commit({"a": np.arange(5000) + step}, step=step)
        store.commit({"a": 1}, branch="gone")
        store.delete_branch("gone")


def forged(path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A memory in which the tip of this store names nothing at all, whole in every byte."""
    with cas.open(path) as store:
        tip = ObjectId(bytes.fromhex(store.resolve("main").id))
    remember(path.parent / "forged", {(Kind.COMMIT, tip): ([], [])}, monkeypatch)
    return (path.parent / "forged").read_bytes()


@pytest.mark.parametrize("how", ["written over", "put in its place", "with its flag"])
def test_a_memory_that_was_not_made_here_is_not_believed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It says that the tip needs nothing: believed, it would have the whole store deleted."""
    path = folder / "store"
    commits(path)
    with cas.open(path) as store:
        store.gc(grace=3600)
    lie, needs = forged(path, monkeypatch), path / "index" / "needs"
    if how == "written over":
        needs.write_bytes(lie)
    else:
        needs.unlink()
        needs.write_bytes(lie)
    if how == "with its flag":
        for flag in folder.glob("forged*clean*"):
            (path / "index" / flag.name.replace("forged", "needs")).write_bytes(flag.read_bytes())
    with cas.open(path) as store:
        assert store.gc(grace=0, expire=0).deleted == 1
        for step in range(3):
            assert same(store.load(f"main@step:{step}"), {"a": np.arange(5000) + step})


def test_a_copy_of_a_store_reads_its_objects_anew(folder: Path) -> None:
    commits(folder / "store")
    with cas.open(folder / "store") as store:
        store.gc(grace=3600)
    shutil.copytree(folder / "store", folder / "copy")
    asked = children.run(read_by_a_collection, folder / "copy")
    assert asked.count("COMMIT") == 4
    assert {"COMMIT", "TREE"} <= set(asked)


JUNK = {"nothing": b"", "text": b"needs", "another release's": b"needs 2\n" + bytes(100), "zeros": bytes(5000)}


@pytest.mark.parametrize("name", JUNK)
def test_a_file_that_is_no_memory_stops_nothing(folder: Path, name: str) -> None:
    commits(folder / "store")
    with cas.open(folder / "store") as store:
        store.gc(grace=3600)
        needs = folder / "store" / "index" / "needs"
        needs.write_bytes(JUNK[name])
        assert store.gc(grace=0, expire=0).deleted == 1
        assert same(store.load("main"), {"a": np.arange(5000) + 2})
        assert needs.read_bytes() != JUNK[name]


def read_by_a_collection(path: Path) -> list[str]:
    """In a child: the kinds of the objects that a collection reads."""
    asked: list[str] = []
    fetch = Objects._fetch

    def told(self: Objects, kind: Kind, name: ObjectId) -> bytes:
        asked.append(kind.name)
        return fetch(self, kind, name)

    Objects._fetch = told  # type: ignore[method-assign]
    with cas.open(path) as store:
        store.gc(grace=0)
    return asked


def test_a_collection_remembers_and_the_next_reads_no_object(folder: Path) -> None:
    path = folder / "store"
    with cas.open(path, create=True) as store:
        for step in range(20):
            store.commit({"a": np.arange(5000) + step, "deep": {"b": [step] * 300}}, step=step)
    assert children.run(read_by_a_collection, path).count("COMMIT") == 20
    known = (path / "index" / "needs").read_bytes()
    assert children.run(read_by_a_collection, path) == []
    assert (path / "index" / "needs").read_bytes() == known


def test_what_is_not_reached_any_more_is_forgotten(folder: Path) -> None:
    path = folder / "store"
    with cas.open(path, create=True) as store:
        store.commit({"a": np.arange(5000)})
        store.gc(grace=0, expire=0)
        small = (path / "index" / "needs").stat().st_size
        for step in range(20):
            store.commit({"a": np.arange(5000) + step}, branch="b", step=step)
        store.gc(grace=0, expire=0)
        assert (path / "index" / "needs").stat().st_size > 5 * small
        store.delete_branch("b")
        store.gc(grace=0, expire=0)
        assert (path / "index" / "needs").stat().st_size == small


def test_where_it_cannot_be_written_the_collection_goes_on(folder: Path) -> None:
    path = folder / "store"
    with cas.open(path, create=True) as store:
        store.commit({"a": np.arange(5000)}, branch="gone")
        store.delete_branch("gone")
        (path / "index" / "needs").mkdir(parents=True)
        assert store.gc(grace=0, expire=0).deleted == 1
        assert not [name for name in os.listdir(path / "index") if name.startswith(f"needs.{os.getpid()}")]
