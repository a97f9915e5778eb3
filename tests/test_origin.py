"""Files that a state was read from: they come back byte for byte, and cost only what the state does not hold."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cas
from cas.dtypes import DTYPES
from cas.errors import Corrupt, Invalid, NotFound
from cas.files import KnownFile
from cas.leaves import StoredFile
from cas.tensors import Tensor

HEAD = b"a header\n"


@pytest.fixture
def file(tmp_path: Path) -> KnownFile:
    numbers = np.random.default_rng(0).standard_normal(3_000_000).astype("float32")
    (tmp_path / "weights").write_bytes(HEAD + numbers.tobytes() + b"end")
    return KnownFile.at(tmp_path / "weights")


def taken_in(file: KnownFile) -> tuple[dict[str, Any], dict[str, Any]]:
    """A state whose one tensor lies in the file, and the file's pieces."""
    body = file.part(len(HEAD), file.nbytes - 3)
    tensor = Tensor.whole("numpy", DTYPES["float32"], (1000, 3000), body, None)
    return {"w": tensor}, {"sub/weights": [file.part(0, len(HEAD)), body, file.part(file.nbytes - 3, file.nbytes)]}


def content(store: cas.Store, stored: StoredFile) -> bytes:
    return b"".join(map(bytes, store.leaves("main").stream(stored.parts)))


def test_a_file_comes_back_byte_for_byte_and_its_tensor_is_stored_once(tmp_path: Path, file: KnownFile) -> None:
    state, origin = taken_in(file)
    with cas.open(tmp_path / "store", create=True) as store:
        commit = store.commit(state, origin=origin)
        (stored,) = store.leaves("main").origin()
        assert (stored.name, stored.nbytes, commit.origin) == ("sub/weights", file.nbytes, file.nbytes)
        assert content(store, stored) == Path(file.path).read_bytes()
        assert commit.new < file.nbytes + 4096
        assert store.load("main")["w"].tobytes() == Path(file.path).read_bytes()[len(HEAD) : -3]
        assert store.fsck(data=True) == []


def test_a_file_of_many_pieces_comes_back(tmp_path: Path) -> None:
    data = os.urandom(50_000)
    (tmp_path / "f").write_bytes(data)
    file = KnownFile.at(tmp_path / "f")
    pieces = [file.part(at, at + 7) for at in range(0, 49_994, 7)] + [file.part(49_994, 50_000), file.part(0, 0)]
    with cas.open(tmp_path / "store", create=True) as store:
        store.commit({}, origin={"f": pieces, "empty": []})
        files = {stored.name: content(store, stored) for stored in store.leaves("main").origin()}
    assert files == {"f": data, "empty": b""}


def test_a_piece_of_a_larger_tensor_is_cut_as_the_tensor_is(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(os.urandom(3 << 20))
    file = KnownFile.at(tmp_path / "f")
    with cas.open(tmp_path / "store", create=True) as store:
        for cell, blocks in ((0, 12), (1 << 20, 3), (4 << 20, 1), (8 << 20, 1)):
            commit = store.commit({}, origin={"f": [file.part(0, file.nbytes, cell)]})
            assert commit.stats
            assert commit.stats.blocks == blocks
            (stored,) = store.leaves("main").origin()
            assert content(store, stored) == (tmp_path / "f").read_bytes()


def test_side_files_stream(tmp_path: Path, file: KnownFile) -> None:
    with cas.open(tmp_path / "store", create=True) as store:
        store.commit({}, files={"a/big": file.path})
        (stored,) = store.leaves("main").files()
        assert (stored.name, content(store, stored)) == ("a/big", Path(file.path).read_bytes())
        assert store.leaves("main").origin() == []


@pytest.mark.parametrize("change", ["grown", "shrunk", "rewritten", "replaced"])
def test_a_file_that_changes_between_being_met_and_being_read_is_refused(
    tmp_path: Path, file: KnownFile, change: str
) -> None:
    state, origin = taken_in(file)
    path = Path(file.path)
    data = path.read_bytes()
    if change == "replaced":
        path.unlink()
    path.write_bytes({"grown": data + b"x", "shrunk": data[:-1]}.get(change, data[::-1]))
    with cas.open(tmp_path / "store", create=True) as store:
        with pytest.raises(Invalid, match="changed while it was read; commit again"):
            store.commit(state, origin=origin)
        assert store.refs()["branches"] == {}


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing is not there"):
        KnownFile.at(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(Invalid, match="is not a regular file"):
            KnownFile.at(path)


@pytest.mark.parametrize("name", ["../up", "/root", "a//b", "line\nfeed", ""])
def test_unsafe_names_are_refused(tmp_path: Path, file: KnownFile, name: str) -> None:
    with cas.open(tmp_path / "store", create=True) as store, pytest.raises(Invalid, match="no safe file name"):
        store.commit({}, origin={name: [file.whole()]})


def test_names_that_are_file_and_directory_at_once_are_refused(tmp_path: Path, file: KnownFile) -> None:
    with cas.open(tmp_path / "store", create=True) as store, pytest.raises(Invalid, match="at once"):
        store.commit({}, origin={"a/b": [file.whole()], "a": []})


def test_what_a_commit_of_the_history_holds_is_not_committed_again(tmp_path: Path, file: KnownFile) -> None:
    state, origin = taken_in(file)
    with cas.open(tmp_path / "store", create=True) as store:
        first = store.commit(state, origin=origin, step=1)
        other = store.commit({"x": 1}, unless_in="main")
        state, origin = taken_in(file)
        again = store.commit(state, origin=origin, step=1, unless_in="main", message="new")
        assert (again.id, store.resolve("main").id) == (first.id, other.id)
        assert store.commit(state, origin=origin, step=2, unless_in="main").parents == (other.id,)


def test_the_pieces_of_a_damaged_origin_are_named(tmp_path: Path, file: KnownFile) -> None:
    state, origin = taken_in(file)
    with cas.open(tmp_path / "store", create=True) as store:
        store.commit(state, origin={**origin, "more": [KnownFile.at(__file__).whole()]})
        pack = max((tmp_path / "store/packs").rglob("*/*"), key=lambda path: path.stat().st_size)
        data = pack.read_bytes().replace(Path(__file__).read_bytes()[:100], bytes(100))
        shutil.move(pack, tmp_path / "old")
        pack.write_bytes(data)
        assert {(finding.name, finding.paths) for finding in store.fsck(data=True)} >= {
            ("block-corrupt", ("origin/more/[0]",))
        }
        stored = next(stored for stored in store.leaves("main").origin() if stored.name == "more")
        with pytest.raises(Corrupt, match="more"):
            content(store, stored)
