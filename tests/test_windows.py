"""Windows over packs: small reads cost few requests, and say the same as the medium."""

from __future__ import annotations

import random
import threading
import time

import pytest
from together import run_together

from cas.errors import NotFound
from cas.windows import SMALL, Windows

KIB = 1 << 10
BYTES = random.Random(5).randbytes(1000 * KIB + 77)


class Medium:
    """Files in memory that count what is asked of them."""

    def __init__(self, **files: bytes) -> None:
        self.files = {f"packs/{name}": data for name, data in files.items()}
        self.asked: list[tuple[str, int, int]] = []

    def fetch(self, name: str, start: int, length: int) -> bytes:
        self.asked.append((name, start, length))
        if name not in self.files:
            raise NotFound(f"{name} is not there")
        return self.files[name][start : start + length]


@pytest.mark.parametrize("size", [0, 1, 77, 256 * KIB, 512 * KIB, len(BYTES)])
def test_a_read_is_what_the_medium_says(size: int) -> None:
    medium = Medium(a=BYTES[:size])
    windows = Windows(medium.fetch, limit=512 * KIB)
    random_reads = random.Random(size)
    edges = [0, 1, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, size - 1, size, size + 1, 2 * size]
    for start in [*(edge for edge in edges if edge >= 0), *(random_reads.randrange(size + 10) for _ in range(50))]:
        for length in (0, 1, 4 * KIB, SMALL):
            assert windows.read("packs/a", start, length) == BYTES[:size][start : start + length], (start, length)


def test_a_file_that_is_shorter_than_asked_shows_it() -> None:
    windows = Windows(Medium(a=BYTES[: 256 * KIB], b=BYTES[:10]).fetch)
    assert len(windows.read("packs/a", 256 * KIB - 5, 10)) == 5
    buffers = [memoryview(bytearray(b"-" * count)) for count in (4, 0, 4, 4)]
    assert windows.readinto("packs/b", 0, buffers) == 10
    assert [bytes(view) for view in buffers] == [BYTES[:4], b"", BYTES[4:8], BYTES[8:10] + b"--"]


def test_reads_side_by_side_cost_one_request() -> None:
    medium = Medium(a=BYTES)
    windows = Windows(medium.fetch)
    for start in range(600 * KIB, 700 * KIB, KIB):
        windows.read("packs/a", start, 2 * KIB)
    assert len(medium.asked) == 1
    windows.read("packs/a", 767 * KIB, 2 * KIB)  # over the edge
    assert medium.asked[1:] == [("packs/a", 768 * KIB, 256 * KIB)]


def test_only_small_reads_of_packs_are_served() -> None:
    assert Windows.serves("packs/aa/one", SMALL)
    assert not Windows.serves("packs/aa/one", SMALL + 1)
    for name in ("root", "log/1", "lists/a", "where/a", "cas.json", "tmp/packs/a"):
        assert not Windows.serves(name, 1), f"{name} may be replaced or come later"


def test_what_was_read_last_is_kept_within_the_limit() -> None:
    medium = Medium(a=BYTES, b=BYTES)
    windows = Windows(medium.fetch, limit=512 * KIB)
    windows.read("packs/a", 0, 1)
    windows.read("packs/b", 0, 1)
    windows.read("packs/a", 1, 1)  # younger than b again
    windows.read("packs/b", 256 * KIB, 1)  # takes b's first place
    assert len(medium.asked) == 3
    windows.read("packs/a", 2, 1)
    assert len(medium.asked) == 3
    windows.read("packs/b", 0, 1)
    assert len(medium.asked) == 4


def test_a_forgotten_file_is_asked_of_the_medium_again() -> None:
    medium = Medium(a=b"bad", b=b"b")
    windows = Windows(medium.fetch)
    windows.read("packs/a", 0, 3)
    windows.read("packs/b", 0, 1)
    medium.files["packs/a"] = b"good"
    assert windows.read("packs/a", 0, 4) == b"bad"
    windows.forget("packs/a")
    assert windows.read("packs/a", 0, 4) == b"good"
    windows.read("packs/b", 0, 1)
    assert len(medium.asked) == 3
    windows.clear()
    windows.read("packs/b", 0, 1)
    assert len(medium.asked) == 4


def test_the_end_of_a_file_once_read_is_not_asked_for_again() -> None:
    medium = Medium(a=BYTES, b=BYTES)
    windows, start = Windows(medium.fetch), len(BYTES) - 50 * KIB
    windows.keep_tail("packs/a", start, BYTES[start:])
    for first, length in [(start, 10), (start + 77, 20 * KIB), (len(BYTES) - 5, 10), (len(BYTES), 1), (start, SMALL)]:
        assert windows.read("packs/a", first, length) == BYTES[first : first + length]
    assert not medium.asked
    assert windows.read("packs/a", start - 1, 2) == BYTES[start - 1 : start + 1]
    assert windows.read("packs/b", start, 2) == BYTES[start : start + 2]
    assert len(medium.asked) == 2
    windows.forget("packs/a")
    medium.files["packs/a"] = b"-" * len(BYTES)
    assert windows.read("packs/a", start, 2) == b"--"


def test_the_ends_of_many_files_take_bounded_memory() -> None:
    windows = Windows(Medium(a=BYTES).fetch)
    for number in range(1000):
        windows.keep_tail(f"packs/{number}", 0, BYTES[:SMALL])
    windows.keep_tail("packs/large", 0, BYTES[: SMALL + 1])
    windows.keep_tail("log/1", 0, b"polled")
    kept = sum(len(data) for _, data in windows._tails.values())
    assert SMALL < kept <= 8 << 20
    with pytest.raises(NotFound):
        windows.read("packs/large", 0, 1)
    with pytest.raises(NotFound):
        windows.read("log/1", 0, 1)


def test_a_failed_fetch_is_not_kept() -> None:
    medium = Medium()
    windows = Windows(medium.fetch)
    with pytest.raises(NotFound):
        windows.read("packs/a", 0, 1)
    medium.files["packs/a"] = b"a"
    assert windows.read("packs/a", 0, 1) == b"a"


def test_threads_that_want_one_window_fetch_it_once() -> None:
    medium = Medium(a=BYTES)

    def slow(name: str, start: int, length: int) -> bytes:
        time.sleep(0.1)
        return medium.fetch(name, start, length)

    windows = Windows(slow)
    assert run_together([lambda start=start: check(windows, start) for start in range(0, 8000, 1000)]) == [None] * 8
    assert len(medium.asked) == 1


def check(windows: Windows, start: int) -> None:
    assert windows.read("packs/a", start, 500) == BYTES[start : start + 500]


def test_a_thread_is_not_harmed_by_the_failure_of_another() -> None:
    medium, first = Medium(a=BYTES), threading.Event()

    def fails_first(name: str, start: int, length: int) -> bytes:
        if first.is_set():
            return medium.fetch(name, start, length)
        first.set()
        time.sleep(0.1)
        raise OSError("its own trouble")

    windows = Windows(fails_first)
    results = run_together([lambda start=start: check(windows, start) for start in range(0, 8000, 1000)])
    assert results.count(None) == 7, results
    assert sorted(map(str, results))[-1] == "its own trouble"


def test_what_a_file_ends_with_is_kept_until_it_is_forgotten() -> None:
    medium = Medium(a=BYTES)
    windows, first = Windows(medium.fetch), len(BYTES) - SMALL
    windows.keep_tail("packs/a", first, BYTES[first:])
    for start, length in [(first, SMALL), (first + 5, 10), (len(BYTES) - 3, 10), (len(BYTES) + 1, 10)]:
        assert windows.read("packs/a", start, length) == BYTES[start : start + length]
    assert not medium.asked
    assert windows.read("packs/a", first - 1, 2) == BYTES[first - 1 : first + 1]
    assert len(medium.asked) == 1
    windows.forget("packs/a")
    assert windows.read("packs/a", first + 5, 10) == BYTES[first + 5 : first + 15]
    assert len(medium.asked) == 2


def test_no_more_tails_are_kept_than_memory_is_set_aside_for() -> None:
    medium = Medium(**{f"n{number}": BYTES[:100] for number in range(1000)})
    windows = Windows(medium.fetch)
    for name in medium.files:
        windows.keep_tail(name, 0, BYTES[:100])
    windows.keep_tail("packs/large", 0, BYTES)
    windows.read("packs/n999", 5, 1)
    assert not medium.asked
    windows.read("packs/n0", 5, 1)
    assert medium.asked
    assert sum(len(data) for _, data in windows._tails.values()) <= 128 * SMALL
