"""Every promise of `cas.backend.Backend`, kept by every backend: one suite, which each of them must pass."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from places import REAL_S3, S3, S3FS, SFTP, Place, place_of
from together import run_together

from cas.backend import Backend
from cas.errors import Corrupt, Exists, Invalid, NotFound

MIB = 1 << 20
BYTES = random.Random(11).randbytes(20 * MIB + 7)
HOUR = 3600.0


@pytest.fixture(params=["local", "memory", "folder", SFTP, S3, S3FS])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    yield from place_of(request.param, request, tmp_path)


@pytest.fixture
def backend(place: Place) -> Iterator[Backend]:
    opened = place.open()
    yield opened
    opened.close()


def put(backend: Backend, name: str, data: bytes, step: int = 1_000_003) -> None:
    """Write a large file in pieces of `step` bytes."""
    file = backend.new_file(name, len(data))
    for start in range(0, len(data), step):
        file.write(memoryview(data)[start : start + step])
    assert file.size == len(data)
    file.publish()


def names(backend: Backend, folder: str = "") -> list[str]:
    return [info.name for info in backend.list(folder)]


# -- reading ------------------------------------------------------------------------------------------------

EDGES = [(0, 0), (0, 1), (0, 10), (3, 4), (9, 1), (9, 5), (10, 1), (11, 3), (0, 100_000), (5, 5)]


@pytest.mark.parametrize("name", ["packs/aa/one", "lists/one"])
def test_a_range_has_its_bytes_and_fewer_only_at_the_end(backend: Backend, name: str) -> None:
    data = b"0123456789"
    put(backend, name, data)
    assert backend.read(name) == data
    for start, length in EDGES:
        assert backend.read(name, start, length) == data[start : start + length], (start, length)
    for start in (0, 4, 10, 11):
        assert backend.read(name, start) == data[start:], start


def test_a_large_file_reads_as_written(backend: Backend) -> None:
    put(backend, "packs/aa/one", BYTES)
    for start, length in [(0, len(BYTES)), (5 * MIB - 3, 9 * MIB + 11), (len(BYTES) - 70_000, 80_000), (12_345, 1)]:
        assert backend.read("packs/aa/one", start, length) == BYTES[start : start + length], (start, length)


@pytest.mark.parametrize("sizes", [[1], [10, 0, 20], [70_000, 1, 3 * MIB], [1] * 1500])
def test_buffers_are_filled_one_after_the_other(backend: Backend, sizes: list[int]) -> None:
    put(backend, "packs/aa/one", BYTES[: 4 * MIB])
    buffers = [memoryview(bytearray(size)) for size in sizes]
    backend.readinto("packs/aa/one", 4321, buffers)
    assert b"".join(buffers) == BYTES[4321 : 4321 + sum(sizes)]


@pytest.mark.parametrize("length", [11, 100_000])
def test_a_file_that_ends_before_a_buffer_is_corrupt(backend: Backend, length: int) -> None:
    put(backend, "packs/aa/one", b"0123456789")
    backend.readinto("packs/aa/one", 0, [memoryview(bytearray(10))])
    for start in (1, 10, 20):
        with pytest.raises(Corrupt, match="packs/aa/one"):
            backend.readinto("packs/aa/one", start, [memoryview(bytearray(length - 1)), memoryview(bytearray(1))])


@pytest.mark.parametrize("data", [b"", b"0123456789", BYTES[: 2 * MIB]])
def test_a_tail_is_the_end_and_the_size(backend: Backend, data: bytes) -> None:
    put(backend, "packs/aa/one", data)
    for length in (0, 1, 10, 11, MIB):
        assert backend.tail("packs/aa/one", length) == (data[len(data) - min(len(data), length) :], len(data)), length


def test_an_empty_file_is_a_file(backend: Backend) -> None:
    backend.create("log/1", b"")
    put(backend, "packs/aa/one", b"")
    for name in ("log/1", "packs/aa/one"):
        assert backend.exists(name)
        assert backend.read(name) == b""
        assert backend.read(name, 0, 10) == b""
    assert [info.size for info in backend.list("")] == [0, 0]


@pytest.mark.parametrize("name", ["log/1", "packs/aa/one", "cas.json"])
def test_what_is_missing_is_not_found(backend: Backend, name: str) -> None:
    backend.create("log/2", b"2")
    assert not backend.exists(name)
    uses: list[Callable[[], object]] = [
        lambda: backend.read(name),
        lambda: backend.read(name, 5),
        lambda: backend.read(name, 5, 10),
        lambda: backend.read(name, 0, MIB),
        lambda: backend.readinto(name, 0, [memoryview(bytearray(1))]),
        lambda: backend.readinto(name, 0, [memoryview(bytearray(MIB))]),
        lambda: backend.tail(name, 5),
        lambda: backend.delete(name),
    ]
    for use in uses:
        with pytest.raises(NotFound, match=name):
            use()


def test_a_folder_is_no_file(backend: Backend) -> None:
    backend.create("packs/aa/one", b"1")
    with pytest.raises((Corrupt, NotFound)):
        backend.tail("packs/aa", 5)


def test_negative_ranges_are_refused(backend: Backend) -> None:
    backend.create("log/1", b"0123456789")
    for start, length in [(-1, None), (0, -1)]:
        with pytest.raises(Invalid):
            backend.read("log/1", start, length)


# -- listing ------------------------------------------------------------------------------------------------


def test_a_list_has_every_file_below_sorted_by_name(backend: Backend) -> None:
    assert backend.list("") == backend.list("packs") == []
    made = ["cas.json", "log/1", "log/2", "packs/aa/2", "packs/aa/1", "packs/b", "packs/ab/deep/er/1", "packs2/x"]
    for number, name in enumerate(made):
        backend.create(name, b"x" * number)
    assert names(backend) == sorted(made)
    assert names(backend, "packs") == ["packs/aa/1", "packs/aa/2", "packs/ab/deep/er/1", "packs/b"]
    assert names(backend, "packs/aa") == ["packs/aa/1", "packs/aa/2"]
    assert names(backend, "pack") == names(backend, "log/9") == []
    assert [info.size for info in backend.list("log")] == [1, 2]


def test_a_list_shows_what_came_and_went_since_the_last(backend: Backend, place: Place) -> None:
    other = place.open()
    for number in range(5):
        backend.create(f"log/{number}", b"")
        assert names(other, "log") == [f"log/{number}"]
        other.delete(f"log/{number}")
        assert names(backend, "log") == []
    other.close()


@pytest.mark.slow
def test_a_list_of_more_than_a_page_is_whole(backend: Backend) -> None:
    made = [f"lists/{number:04}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: backend.create(name, b""), made))
    assert names(backend, "lists") == made


def test_a_files_time_is_by_the_clock_of_now(backend: Backend) -> None:
    before = backend.now()
    backend.create("log/1", b"")
    put(backend, "packs/aa/one", b"x")
    for info in backend.list(""):
        assert before - 2 <= info.modified <= backend.now() + 2


# -- creating -----------------------------------------------------------------------------------------------


def test_a_name_is_taken_once(backend: Backend, place: Place) -> None:
    backend.create("log/1", b"first")
    for data in (b"other", b"", b"first"):
        if data == b"first" and place.kind == "s3fs":
            continue  # it cannot tell these bytes from its own, which a retry of s3fs met
        with pytest.raises(Exists, match="log/1"):
            backend.create("log/1", data)
    assert backend.read("log/1") == b"first"
    assert names(backend) == ["log/1"]


@pytest.mark.parametrize("kind", ["local", "memory", SFTP, REAL_S3])
def test_of_racing_threads_one_wins(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    for place in place_of(kind, request, tmp_path):
        backend = place.open()
        for number in range(10):
            race(backend, f"log/{number}")
        assert names(backend) == sorted(f"log/{number}" for number in range(10))
        backend.close()


def race(backend: Backend, name: str) -> None:
    bodies = [b"%d" % racer * 1000 for racer in range(8)]
    results = run_together([lambda body=body: backend.create(name, body) for body in bodies])
    assert results.count(None) == 1, results
    assert all(result is None or isinstance(result, Exists) for result in results), results
    assert backend.read(name) == bodies[results.index(None)]


RACER = """
import json, sys, time
from cas.errors import Exists
from cas.urls import backend_of
url, options, racer, rounds = json.loads(sys.argv[1])
backend = backend_of(url, options)
backend.exists("log/0")
print("ready", flush=True)
start = float(sys.stdin.readline())
won = []
for number in range(rounds):
    time.sleep(max(0, start + number / 20 - time.time()))
    try:
        backend.create(f"log/{number}", racer.encode() * 1000)
        won.append(number)
    except Exists:
        pass
print(json.dumps(won))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", SFTP, REAL_S3])
def test_of_racing_processes_one_wins(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    import json

    rounds = 20
    for place in place_of(kind, request, tmp_path):
        backend = place.open()
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", RACER, json.dumps([place.url, place.options, racer, rounds])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for racer in "abcd"
        ]
        try:
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            start = time.time() + 0.5
            said = [process.communicate(f"{start}\n", timeout=60)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        won = {racer: json.loads(text) for racer, text in zip("abcd", said, strict=True)}
        assert sorted(number for numbers in won.values() for number in numbers) == list(range(rounds)), won
        for racer, numbers in won.items():
            for number in numbers:
                assert backend.read(f"log/{number}") == racer.encode() * 1000
        backend.close()


# -- large files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 300_000, 5 * MIB, 8 * MIB, 8 * MIB + 1, len(BYTES)])
def test_a_new_file_has_exactly_its_bytes(backend: Backend, size: int) -> None:
    put(backend, "packs/aa/one", BYTES[:size])
    assert backend.read("packs/aa/one", 0, size + 10) == BYTES[:size]
    assert [(info.name, info.size) for info in backend.list("")] == [("packs/aa/one", size)]


def test_what_was_given_may_be_changed_after_the_write(backend: Backend) -> None:
    file = backend.new_file("packs/aa/one", 0)
    data = bytearray(b"first")
    file.write(data)
    data[:] = b"other"
    file.write(memoryview(data)[:2])
    file.publish()
    assert backend.read("packs/aa/one") == b"firstot"


def test_a_new_file_is_there_when_published_and_not_before(backend: Backend, place: Place) -> None:
    other = place.open()
    file = backend.new_file("packs/aa/one", 12 * MIB)
    for _ in range(3):
        file.write(BYTES[: 4 * MIB])
        assert not other.exists("packs/aa/one")
        assert names(other, "packs") == []
    file.publish()
    assert names(other, "packs") == ["packs/aa/one"]
    file.abandon()  # does nothing any more
    assert other.read("packs/aa/one", 4 * MIB, MIB) == BYTES[:MIB]
    other.close()


@pytest.mark.parametrize("size", [0, 10, 12 * MIB])
def test_an_abandoned_file_leaves_nothing(backend: Backend, size: int) -> None:
    file = backend.new_file("packs/aa/one", size)
    file.write(BYTES[:size])
    file.abandon()
    file.abandon()
    with pytest.raises(Invalid, match="abandoned"):
        file.write(b"more")
    with pytest.raises(Invalid, match="abandoned"):
        file.publish()
    del file
    assert names(backend) == []


@pytest.mark.parametrize("size", [10, 12 * MIB])
def test_a_new_file_does_not_take_a_taken_name(backend: Backend, size: int) -> None:
    backend.create("packs/aa/one", b"first")
    file = backend.new_file("packs/aa/one", size)
    file.write(BYTES[:size])
    with pytest.raises(Exists, match="packs/aa/one"):
        file.publish()
    file.abandon()
    assert backend.read("packs/aa/one") == b"first"
    assert names(backend) == ["packs/aa/one"]


def test_a_published_file_takes_no_more(backend: Backend) -> None:
    file = backend.new_file("packs/aa/one", 3)
    file.write(b"one")
    file.publish()
    with pytest.raises(Invalid):
        file.write(b"two")
    with pytest.raises(Invalid):
        file.publish()
    assert backend.read("packs/aa/one") == b"one"


def test_congestion_is_known_all_the_time(backend: Backend) -> None:
    file = backend.new_file("packs/aa/one", 9 * MIB)
    assert type(file.congested) is bool
    file.write(BYTES[: 9 * MIB])
    assert type(file.congested) is bool
    file.abandon()


def test_files_are_written_side_by_side(backend: Backend) -> None:
    files = [backend.new_file(f"packs/aa/{number}", 6 * MIB) for number in range(4)]
    for start in range(0, 6 * MIB, MIB):
        for number, file in enumerate(files):
            file.write(BYTES[start + number : start + number + MIB])
    for file in files:
        file.publish()
    for number in range(4):
        expected = b"".join(BYTES[start + number : start + number + MIB] for start in range(0, 6 * MIB, MIB))
        assert backend.read(f"packs/aa/{number}", 0, 7 * MIB) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "folder", SFTP, S3, S3FS])
def test_a_file_of_200_mib_needs_little_memory(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    for place in place_of(kind, request, tmp_path):
        backend = place.open()
        backend.create("log/1", b"")  # imports are not what is measured
        tracemalloc.start()
        try:
            write_and_read_200_mib(backend)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert backend.list("packs")[0].size == 200 * MIB
        assert peak < 80 * MIB, f"{peak / MIB:.0f} MiB"
        backend.close()


def write_and_read_200_mib(backend: Backend) -> None:
    file = backend.new_file("packs/aa/one", 200 * MIB)
    for _ in range(50):
        file.write(memoryview(BYTES)[: 4 * MIB])
    file.publish()
    buffer = memoryview(bytearray(4 * MIB))
    for start in range(0, 200 * MIB, 4 * MIB):
        backend.readinto("packs/aa/one", start, [buffer])
        assert buffer == memoryview(BYTES)[: 4 * MIB]


# -- hints, deletion, leftovers -----------------------------------------------------------------------------


def test_a_hint_is_replaced(backend: Backend, place: Place) -> None:
    other = place.open()
    for data in (b"1", b"22", b"", b"333" * 1000):
        backend.replace("root", data)
        assert other.read("root") == data
    assert names(backend) == ["root"]
    other.close()


def test_readers_of_a_hint_see_old_or_new(backend: Backend, place: Place) -> None:
    bodies = [b"a" * 5000, b"b" * 70_000]
    backend.replace("root", bodies[0])
    other, done = place.open(), threading.Event()
    seen: list[bytes] = []

    def watch() -> None:
        while not done.is_set():
            seen.append(other.read("root"))

    def write() -> None:
        try:
            for number in range(20):
                backend.replace("root", bodies[number % 2])
                time.sleep(0.001)
        finally:
            done.set()

    assert run_together([watch, write]) == [None, None]
    assert seen
    assert all(data in bodies for data in seen)
    other.close()


def test_a_deleted_file_is_gone(backend: Backend) -> None:
    backend.create("log/1", b"1")
    put(backend, "packs/aa/one", b"1" * 1000)
    backend.read("packs/aa/one", 0, 10)
    for name in ("log/1", "packs/aa/one"):
        backend.delete(name)
        assert not backend.exists(name)
    with pytest.raises(NotFound):
        backend.read("packs/aa/one", 0, 10)
    assert names(backend) == []


def test_a_forgotten_file_is_read_from_the_medium(backend: Backend, place: Place) -> None:
    put(backend, "packs/aa/one", b"bad!" * 1000)
    backend.read("packs/aa/one", 100, 200)
    place.overwrite("packs/aa/one", b"good" * 1000)
    backend.forget("packs/aa/one")
    assert backend.read("packs/aa/one", 100, 200) == b"good" * 50


def test_a_sweep_removes_what_is_old_and_has_no_name(backend: Backend, place: Place) -> None:
    backend.create("log/1", b"1")
    backend.create("tmp/left", b"by a crash")
    backend.create("tmp/young", b"being written")
    place.make_older("log/1", 3 * HOUR)
    place.make_older("tmp/left", 3 * HOUR)
    everything = ["log/1", "tmp/left", "tmp/young"]
    if place.client is not None:  # nothing makes an object older
        backend.sweep(HOUR)
        assert names(backend) == everything
        backend.sweep(0)
        assert names(backend) == (["log/1"] if place.kind == "s3" else everything)
    else:
        backend.sweep(2 * HOUR)
        assert names(backend) == ["log/1", "tmp/young"]


def test_a_sweep_leaves_what_is_being_written(backend: Backend) -> None:
    file = backend.new_file("packs/aa/one", 12 * MIB)
    file.write(BYTES[: 9 * MIB])
    backend.sweep(HOUR)
    file.write(BYTES[9 * MIB : 12 * MIB])
    file.publish()
    assert backend.read("packs/aa/one", 0, 12 * MIB) == BYTES[: 12 * MIB]


# -- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["lists/a b", "lists/ü", "lists/日本/x", "lists/a+b%20c&d=e?f#g", "lists/[a]*", "lists/'\"`"]
)
def test_any_letter_may_stand_in_a_name(backend: Backend, name: str) -> None:
    backend.create(name, b"1")
    with pytest.raises(Exists):
        backend.create(name, b"2")
    assert backend.read(name) == b"1"
    assert backend.exists(name)
    backend.replace(name, b"3")
    assert backend.tail(name, 5) == (b"3", 1)
    assert names(backend) == names(backend, "lists") == [name]
    backend.delete(name)
    put(backend, name, b"4")
    assert backend.read(name, 0, 9) == b"4"


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../up", "log/../../up", "log//x", "./x", "x/", "a\0b"])
def test_names_that_leave_the_store_are_refused(backend: Backend, name: str) -> None:
    uses: list[Callable[[], object]] = [
        lambda: backend.read(name),
        lambda: backend.read(name, 0, 1),
        lambda: backend.readinto(name, 0, [memoryview(bytearray(1))]),
        lambda: backend.tail(name, 1),
        lambda: backend.exists(name),
        lambda: backend.create(name, b""),
        lambda: backend.new_file(name, 0),
        lambda: backend.replace(name, b""),
        lambda: backend.delete(name),
        *([lambda: backend.list(name)] if name else []),  # "" is the root itself
    ]
    for use in uses:
        with pytest.raises(Invalid):
            use()


# -- threads, processes, lives ------------------------------------------------------------------------------


def test_many_threads_use_it_at_once(backend: Backend) -> None:
    put(backend, "packs/aa/shared", BYTES[: 4 * MIB])

    def work(number: int) -> None:
        own = BYTES[number * 1000 : number * 1000 + 300_000 + number]
        put(backend, f"packs/bb/{number}", own, step=50_001)
        backend.create(f"lists/{number}", own[:100])
        for start in range(0, 4 * MIB, 700_001):
            assert backend.read("packs/aa/shared", start, 10 + number) == BYTES[start : start + 10 + number]
            assert backend.read("packs/aa/shared", start, 400_000) == BYTES[start : min(start + 400_000, 4 * MIB)]
        assert backend.read(f"packs/bb/{number}", 0, MIB) == own
        assert f"lists/{number}" in names(backend, "lists")
        backend.delete(f"lists/{number}")
        assert not backend.exists(f"lists/{number}")

    assert run_together([lambda number=number: work(number) for number in range(8)]) == [None] * 8
    assert names(backend) == ["packs/aa/shared", *(f"packs/bb/{number}" for number in range(8))]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_it_is_usable_on_both_sides_of_a_fork(backend: Backend, place: Place) -> None:
    put(backend, "packs/aa/one", BYTES[:MIB])
    backend.read("packs/aa/one", 0, 10)
    mine = backend.new_file("packs/aa/mine", 12 * MIB)
    mine.write(BYTES[: 10 * MIB])
    child = os.fork()
    if child == 0:
        os._exit(in_child(backend, mine))
    for _ in range(10):
        assert backend.read("packs/aa/one", 0, MIB) == BYTES[:MIB]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    mine.write(BYTES[10 * MIB : 12 * MIB])
    mine.publish()
    assert backend.read("packs/aa/mine", 0, 13 * MIB) == BYTES[: 12 * MIB]
    if place.kind != "memory":  # which is each process's own
        assert backend.read("log/child") == b"child"


def in_child(backend: Backend, parents: Any) -> int:
    try:
        for start in range(0, MIB, 100_000):
            assert backend.read("packs/aa/one", start, 10) == BYTES[start : start + 10]
        assert backend.read("packs/aa/one", 0, MIB) == BYTES[:MIB]
        backend.create("log/child", b"child")
        put(backend, "packs/aa/child", BYTES[:MIB])
        parents.abandon()
        try:
            parents.write(b"x")
            return 2
        except Invalid:
            pass
        backend.close()
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


def test_a_closed_backend_opens_again(backend: Backend) -> None:
    backend.create("log/1", b"1")
    backend.close()
    assert backend.read("log/1") == b"1"
    backend.close()
    backend.close()


def test_it_says_where_it_is_and_no_secret(backend: Backend, place: Place) -> None:
    assert backend.url == place.url
    assert backend.is_remote == (place.kind != "local")
    assert backend.parallel >= 1
    with pytest.raises(NotFound) as caught:
        backend.read("log/1")
    said = f"{backend.url} {backend!r} {caught.value!r}"
    assert "log/1" in str(caught.value)
    for key in ("key", "secret"):
        assert place.options.get(key, "\0") not in said


def test_sync_is_harmless(backend: Backend) -> None:
    backend.sync("packs")
    backend.create("packs/aa/one", b"")
    backend.sync("packs")
    backend.sync("")
