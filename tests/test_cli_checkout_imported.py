"""`cas checkout --as-imported`: the very files that came in, and what is said of them elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from checkouts import commit, left_in
from cli_process import array, objects, ok, refused

import cas
from cas.cli.exporting import Wanted, export_as_imported
from cas.dtypes import DTYPES
from cas.errors import Invalid
from cas.files import KnownFile
from cas.leaves import Leaves
from cas.tensors import Tensor

HEAD = b"a header\n"


def bring_in(place: Path, opaque: bool = False) -> dict[str, bytes]:
    """Import two files and a side file; what they hold."""
    body = array(2_000_000).tobytes()
    held = {"sub/weights": HEAD + body + b"end", "empty": b"", "config.json": b'{"dtype": "float32"}'}
    (place / "came").mkdir()
    for name, data in held.items():
        (place / "came" / Path(name).name).write_bytes(data)
    file = KnownFile.at(place / "came" / "weights")
    part = file.part(len(HEAD), file.nbytes - 3)
    origin = {"sub/weights": [file.part(0, len(HEAD)), part, file.part(file.nbytes - 3, file.nbytes)], "empty": []}
    state: Any = {} if opaque else {"w": Tensor.whole("numpy", DTYPES["float32"], (2_000_000,), part, None)}
    commit(place, state, origin=origin, files={"config.json": place / "came" / "config.json"}, step=3)
    return held


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_files_come_back_byte_for_byte(tmp_path: Path) -> None:
    held = bring_in(tmp_path)
    said = ok(tmp_path, "checkout", "--as-imported")
    assert read_all(tmp_path / "main-step3") == held
    assert "3 files, 8.00 MB, as imported in main-step3" in said


def test_json_says_what_was_written_as_imported(tmp_path: Path) -> None:
    held = bring_in(tmp_path)
    (done,) = objects(ok(tmp_path, "checkout", "main", "--as-imported", "-o", "out", "--json"))
    assert done["files"] == {name: len(data) for name, data in held.items()}
    assert (done["format"], done["tensors"], done["imported"]) == (None, 0, 3)


def test_a_checkout_of_an_import_says_that_its_files_can_be_had(tmp_path: Path) -> None:
    bring_in(tmp_path)
    assert "--as-imported returns the 3 files that came in" in ok(tmp_path, "checkout", "-o", "out")
    assert left_in(tmp_path / "out") == ["config.json", "model.safetensors"]


def test_what_was_kept_as_bytes_comes_back_only_as_imported(tmp_path: Path) -> None:
    held = bring_in(tmp_path, opaque=True)
    said = refused(tmp_path, 2, "checkout", "-o", "out")
    assert said == "the commit holds no tensors, only the 3 files that came in; --as-imported returns them"
    assert left_in(tmp_path) == ["came"]
    ok(tmp_path, "checkout", "--as-imported", "-o", "out")
    assert read_all(tmp_path / "out") == held


def test_what_was_not_imported_has_no_files_to_return(tmp_path: Path) -> None:
    commit(tmp_path, {"w": array(3)})
    assert "was not imported from files" in refused(tmp_path, 2, "checkout", "--as-imported")
    assert left_in(tmp_path) == []


def test_a_directory_that_is_not_empty_needs_force(tmp_path: Path) -> None:
    held = bring_in(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    refused(tmp_path, 3, "checkout", "--as-imported", "-o", "out")
    ok(tmp_path, "checkout", "--as-imported", "-o", "out", "--force")
    assert read_all(tmp_path / "out") == {**held, "mine": b"keep"}


def test_a_damaged_file_is_never_returned(tmp_path: Path) -> None:
    bring_in(tmp_path)
    pack = max((tmp_path / ".cas" / "packs").rglob("*/*"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    os.chmod(pack, 0o644)
    pack.write_bytes(data)
    assert "sub/weights" in refused(tmp_path, 13, "checkout", "--as-imported", "-o", "out")
    assert left_in(tmp_path) == ["came"]


def test_files_that_would_take_one_place_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No writer makes such a commit."""
    bring_in(tmp_path)
    with cas.open(tmp_path / ".cas") as store:
        leaves = store.leaves("main")
        monkeypatch.setattr(Leaves, "files", Leaves.origin)
        with pytest.raises(Invalid, match="side file called"):
            export_as_imported(store.resolve("main"), leaves, Wanted(tmp_path / "out"))
    assert left_in(tmp_path) == ["came"]
