"""Damage: any file of a closed store, cut short anywhere or with any bit flipped.

The answer is the right state or a named error: never wrong data, a dead process or a hang, and after damage to
derived files (the index, the hint) always the right state. Damage to the others is found by fsck, every bit of it.

How much: every truncation of `cas.json`, the hint, every log record, every pack and the index's flag, and one bit of
each of their bytes, which CAS_TEST_SEED chooses, or, where CAS_TEST_EVERY_BIT is set, every bit. The index's `data.mdb`
and `lock.mdb` are 48 and 64 KiB: there one random bit in every 16 and 64 bytes, and truncations around every page. The
process that looks is a fork of this one; a batch of points shares a fork, and a shared counter says which point killed
it.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import children
from faults.stores import errors, quick_folder, same

import cas
import cas.store
from cas.errors import CasError

SEED = int(os.environ.get("CAS_TEST_SEED", "0"))
EVERY_BIT = bool(os.environ.get("CAS_TEST_EVERY_BIT"))
SHARDS = 4
"""Parts that a file's points are split into, so that several workers share the largest file."""


def tiny(number: int) -> dict[str, Any]:
    """A state of one tensor in two blocks, which packs well, and of values."""
    weights = np.zeros(1100, np.float32)
    weights[1050] = number
    return {"w": weights, "n": number, "t": ("x", 1.5)}


def make_tiny(path: Path, side: Path) -> None:
    side.write_bytes(b"side file")
    with cas.init(path, block_size=4096) as store:
        store.commit(tiny(0), step=0, codec="zstd", files={"config.json": side})
        store.commit(tiny(1), step=1, codec="zstd")
        store.tag("v1")


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    with quick_folder() as folder:
        make_tiny(folder / "store", folder / "side")
        yield folder / "store"


Damage = tuple[str, int]
"""`cut`: keep so many bytes. `flip`: invert the bit of this number. `grow`: append so many random bytes."""


def apply(data: bytes, damage: Damage) -> bytes:
    way, at = damage
    if way == "cut":
        return data[:at]
    if way == "grow":
        return data + random.Random(at).randbytes(at)
    changed = bytearray(data)
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


def every(data: bytes) -> list[Damage]:
    """Every truncation, a flipped bit in every byte or every one, and a few bytes too many."""
    dice = random.Random(SEED)
    cuts = [("cut", length) for length in range(len(data))]
    bits = range(8 * len(data)) if EVERY_BIT else [8 * at + dice.randrange(8) for at in range(len(data))]
    return [*cuts, *(("flip", bit) for bit in bits), ("grow", 1), ("grow", 64), ("grow", 5000)]


def sampled(data: bytes, word: int) -> list[Damage]:
    """One random bit in every `word` bytes, truncations around every page, and a few bytes too many."""
    dice = random.Random(word)
    flips = [("flip", 8 * start + dice.randrange(8 * word)) for start in range(0, len(data), word)]
    cuts = [("cut", page + off) for page in range(0, len(data), 4096) for off in (0, 1, 100, 4095)]
    fits = [(way, at) for way, at in flips if at < 8 * len(data)]
    return [*fits, *((way, at) for way, at in cuts if at < len(data)), ("grow", 1), ("grow", 4096)]


def attempt(work: Callable[[], Any]) -> Any:
    """The result, or the `CasError`. Any other exception is the bug that the tests look for."""
    try:
        return work()
    except CasError as error:
        assert str(error).strip(), f"a {type(error).__name__} without a sentence"
        return error


def look(path: Path) -> tuple[Any, Any, Any]:
    """What load, log and fsck say; each an answer or a `CasError`."""
    store = attempt(lambda: cas.open(path))
    if isinstance(store, CasError):
        return store, store, store
    try:
        state = attempt(lambda: [store.load("main"), store.load("main~1"), store.files("main~1")])
        log = attempt(lambda: [(held.step, held.id) for held in store.log("main")])
        return state, log, attempt(lambda: store.fsck(data=True))
    finally:
        store.close()


def judge(found: tuple[Any, Any, Any], truth: tuple[Any, Any, Any], derived: bool) -> None:
    """Nothing wrong was said; damage to what is derived did not show, any other did."""
    state, log, findings = found
    if not isinstance(state, CasError):
        assert same(state, truth[0]), "WRONG DATA was returned"
    if not isinstance(log, CasError):
        assert log == truth[1], "a wrong log was returned"
    if derived:
        assert not isinstance(state, CasError), f"load failed: {state!r}"
        assert not isinstance(log, CasError), f"log failed: {log!r}"
        assert not isinstance(findings, CasError), f"fsck failed: {findings!r}"
        assert not errors(findings), f"fsck found {findings}"
    elif not isinstance(findings, CasError):
        assert errors(findings), "fsck did not find the damage"


def work_through(path: Path, name: str, points: list[Damage], progress: mmap.mmap, derived: bool) -> int:
    """In a child: every point on the store's file `name`, which is put back after each."""
    cas.store.default_threads = lambda: 1  # type: ignore[attr-defined]  # as on a machine with one processor: faster here
    truth = look(path)
    assert errors(truth[2]) == [], f"the store was not whole to begin with: {truth}"
    file, whole = path / name, (path / name).read_bytes()
    for number, point in enumerate(points):
        progress[:8] = number.to_bytes(8, "little")
        if name.startswith("index/"):
            copy_index(path.parent / "index", path / "index")
        elif name.startswith("packs/") and number % 2:
            shutil.rmtree(path / "index", ignore_errors=True)
        file.write_bytes(apply(whole, point))
        if name == "index/data.mdb":
            vouch_for(file)
        try:
            judge(look(path), truth, derived)
        except Exception as error:
            raise AssertionError(f"{name}, {point}: {error!r}") from error
        finally:
            file.write_bytes(whole)
    return len(points)


def vouch_for(data: Path) -> None:
    """Let the flag name this very file, so that only size and hash can tell that it was damaged."""
    flag = data.with_name("clean")
    size, digest, _, _ = flag.read_text().split()
    status = data.stat()
    flag.write_text(f"{size} {digest} {status.st_ino} {status.st_ctime_ns}\n")


def copy_index(source: Path, target: Path) -> None:
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def check(template: Path, name: str, points: list[Damage], derived: bool) -> int:
    progress = mmap.mmap(-1, 8)
    with quick_folder() as folder:
        shutil.copytree(template, folder / "store")
        with cas.open(folder / "store") as store:
            store.load("main")
        shutil.copytree(folder / "store" / "index", folder / "index")
        child = children.start(work_through, folder / "store", name, points, progress, derived, memory=4 << 30)
        try:
            done = child.result(limit=2400 if EVERY_BIT else 280)
        except children.ChildFailed:
            raise
        except AssertionError as error:
            at = int.from_bytes(progress[:8], "little")
            raise AssertionError(f"{name}, {points[at]}: {error}") from error
    assert done == len(points) > 0
    return int(done)


def resolve(template: Path, pattern: str) -> str:
    """The name of the template's file: packs have random names, so the largest and the others are told by size."""
    found = sorted(template.glob(pattern), key=lambda file: (file.stat().st_size, file.name), reverse=True)
    return str(found[0].relative_to(template))


@pytest.mark.parametrize("part", range(SHARDS))
def test_every_byte_and_length_of_a_pack(template: Path, part: int) -> None:
    largest = template / resolve(template, "packs/*/*")
    check(template, str(largest.relative_to(template)), every(largest.read_bytes())[part::SHARDS], derived=False)


@pytest.mark.parametrize("part", range(SHARDS))
def test_every_byte_and_length_of_the_pack_of_the_newest_commit(template: Path, part: int) -> None:
    packs = sorted(template.glob("packs/*/*"), key=lambda file: file.stat().st_size)
    check(template, str(packs[0].relative_to(template)), every(packs[0].read_bytes())[part::SHARDS], derived=False)


@pytest.mark.parametrize("seq", [1, 2, 3, 4])
def test_every_byte_and_length_of_a_log_record(template: Path, seq: int) -> None:
    name = f"log/{seq:020}"
    check(template, name, every((template / name).read_bytes()), derived=False)


def test_every_byte_and_length_of_the_identity(template: Path) -> None:
    check(template, "cas.json", every((template / "cas.json").read_bytes()), derived=False)


def test_every_byte_and_length_of_the_hint(template: Path) -> None:
    check(template, "root", every((template / "root").read_bytes()), derived=True)


def test_every_byte_and_length_of_the_index_flag(template: Path) -> None:
    check(template, "index/clean", every((template / "index/clean").read_bytes()), derived=True)


@pytest.mark.parametrize(("name", "word"), [("data.mdb", 16), ("lock.mdb", 64)])
def test_the_index_is_rebuilt_whatever_happens_to_it(template: Path, name: str, word: int) -> None:
    check(template, f"index/{name}", sampled((template / "index" / name).read_bytes(), word), derived=True)


@pytest.mark.parametrize("name", ["open.lock", "write.lock"])
def test_what_stands_in_a_lock_file_does_not_matter(template: Path, name: str) -> None:
    check(template, f"index/{name}", [("grow", size) for size in (1, 100, 10_000)], derived=True)


@pytest.mark.parametrize("name", ["clean", "data.mdb", "lock.mdb", "open.lock", "write.lock", "", "*"])
@pytest.mark.parametrize("kind", ["gone", "directory", "full directory", "fifo", "link", "loop", "socket"])
def test_the_index_may_be_anything(template: Path, name: str, kind: str) -> None:
    with quick_folder() as folder:
        shutil.copytree(template, folder / "store")
        truth = children.run(look, folder / "store", limit=20)
        names = ["clean", "data.mdb", "lock.mdb", "open.lock", "write.lock"] if name == "*" else [name]
        for one in names:
            become(folder / "store" / "index" / one, kind)
        judge(children.run(look, folder / "store", limit=20), truth, derived=True)
        assert children.run(commit_and_load, folder / "store", limit=30)


def commit_and_load(path: Path) -> bool:
    with cas.open(path) as store:
        store.load("main")
        store.commit(tiny(7), step=7)
    with cas.open(path) as store:
        return same(store.load("main"), tiny(7)) and errors(store.fsck(data=True)) == []


def become(path: Path, kind: str) -> None:
    """Put something else in the place of a file or folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "full directory":
        path.mkdir()
        (path / "file").write_bytes(b"here")
    elif kind == "link":
        path.symlink_to(f"nowhere-{path.name}")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "socket":
        os.mknod(path, 0o140666)


@pytest.mark.parametrize("kind", ["gone", "directory", "full directory", "fifo", "link", "loop", "socket"])
def test_the_hint_may_be_anything(template: Path, kind: str) -> None:
    with quick_folder() as folder:
        shutil.copytree(template, folder / "store")
        truth = children.run(look, folder / "store", limit=20)
        become(folder / "store" / "root", kind)
        judge(children.run(look, folder / "store", limit=20), truth, derived=True)


@pytest.mark.parametrize("kind", ["gone", "directory", "full directory", "fifo", "link", "loop", "socket"])
@pytest.mark.parametrize("name", ["cas.json", "packs/*/*", "packs/*", "packs", "log/*[3]", "log/*4", "log/*2", "log"])
def test_a_file_may_have_become_anything_else(template: Path, name: str, kind: str) -> None:
    """Reading a pipe would wait for ever: everything but a regular file is refused or passed over, with a name."""
    with quick_folder() as folder:
        shutil.copytree(template, folder / "store")
        truth = children.run(look, folder / "store", limit=20)
        become(next(file for file in (folder / "store").glob(name)), kind)
        judge(children.run(look, folder / "store", limit=20), truth, derived=False)


def test_a_hole_in_the_log_is_found(template: Path) -> None:
    """The hint may be old: then the records above the hole are all that tells."""
    with quick_folder() as folder:
        shutil.copytree(template, folder / "store")
        truth = children.run(look, folder / "store", limit=20)
        hint = (folder / "store" / "root").read_bytes()
        assert hint.startswith(b"4 ")
        become(folder / "store" / f"log/{3:020}", "gone")
        judge(children.run(look, folder / "store", limit=20), truth, derived=False)
