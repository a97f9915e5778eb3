"""Whatever bytes a parser is given, it reads them or says no: no other error, no memory, no time beyond its bounds.

For each parser: what once failed, the examples, and then mutations of them: COUNT, or as many as fit into
CAS_TEST_SECONDS; the seed is CAS_TEST_SEED (0). An input that fails is written to `parsers/corpus/found`, from where it
is tried again for ever.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import signal
import time
import traceback
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import pytest
from faults import children
from faults.stores import quick_folder
from parsers import imported, stored, texts
from parsers.mutate import Inputs
from parsers.targets import FOUND, Parse, Target

from cas.errors import Invalid

SECONDS = float(os.environ.get("CAS_TEST_SECONDS", "0"))
SEED = int(os.environ.get("CAS_TEST_SEED", "0"))
COUNT = 2000
MEMORY = 256 << 20
"""Bytes of address space that reading an input may take."""
PROCESSOR_SECONDS = 2
"""That reading an input of up to 64 KiB may take. The processor's, so that other tests beside it do not count."""
_MOST_FAILURES = 8
TARGETS = (*stored.TARGETS, *texts.TARGETS, *imported.TARGETS)


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


def name_of(target: Target) -> str:
    return target.name


@pytest.mark.parametrize("target", [target for target in TARGETS if target.name != "needs"], ids=name_of)
def test_what_the_real_writers_make_is_read(target: Target, folder: Path) -> None:
    """But for needs: that file is good on the machine that made it alone."""
    parse = target.open(folder)
    examples = target.examples()
    assert examples
    for data in examples:
        assert parse(data) in (None, data)


@pytest.mark.parametrize("target", TARGETS, ids=name_of)
def test_any_bytes_are_read_or_refused(target: Target, folder: Path) -> None:
    failures = fuzz(target, folder, SECONDS)
    if failures:
        pytest.fail("\n".join(f"{keep(target, data)}:\n{what}" for data, what in failures), pytrace=False)


def broken(data: bytes) -> bytes | None:
    """A parser that is good to its example and breaks each promise at some input."""
    if data[:1] == b"e":
        raise KeyError("another error")
    if data[:1] == b"m":
        return bytes(1 << 30)
    if data[:1] == b"t":
        while True:
            pass
    if data[:1] == b"d":
        signal.raise_signal(signal.SIGKILL)
    if data[:1] == b"r":
        raise Invalid("a refusal")
    return data.strip()


@pytest.mark.parametrize(
    ("word", "what"),
    {"e": "another error", "m": "MemoryError", "t": "SIGPROF", "d": "SIGKILL", " ": "not canonical", "r": None}.items(),
)
def test_a_parser_that_breaks_a_promise_is_noticed(folder: Path, word: str, what: str | None) -> None:
    target = Target("broken", lambda _: broken, [lambda random, data, donor: word.encode()])
    failures = fuzz(target, folder, 0)
    assert [data for data, _ in failures] == ([] if what is None else [word.encode()])
    assert all(str(what) in told for _, told in failures)


def fuzz(target: Target, folder: Path, seconds: float) -> list[tuple[bytes, str]]:
    """The inputs that failed, and how; of COUNT, or as many as fit into so many seconds."""
    mind = Mind()
    child = children.start(work, target, target.open(folder), mind, seconds, memory=MEMORY)
    try:
        count, read, failures = child.result(seconds + 300)
    except (children.ChildDied, children.ChildHung) as error:
        return [(mind.last(), f"{error}; reading may take {PROCESSOR_SECONDS} s and {MEMORY} bytes")]
    print(f"{target.name}: {count:,} inputs, {read:,} of them read")
    return list(failures)


class Mind:
    """Memory that a child shares with its parent: the input that it is at, should it die of it."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1 << 20)

    def put(self, data: bytes) -> None:
        self._shared[: 4 + len(data)] = len(data).to_bytes(4, "little") + data

    def last(self) -> bytes:
        return self._shared[4 : 4 + int.from_bytes(self._shared[:4], "little")]


def work(target: Target, parse: Parse, mind: Mind, seconds: float) -> tuple[int, int, list[tuple[bytes, str]]]:
    """In a child: how many inputs were tried, how many of these were read, and which failed, and how."""
    examples = target.examples() or [b""]
    donors = [data for other in TARGETS for data in other.examples()]
    inputs = Inputs(examples, donors, target.mutators, f"{SEED} {target.name}")
    end = time.monotonic() + seconds
    count = read = 0
    failures: dict[object, tuple[bytes, str]] = {}
    for data in chain(target.found(), examples, inputs if seconds else islice(inputs, COUNT)):
        if len(failures) == _MOST_FAILURES or (seconds and time.monotonic() > end):
            break
        mind.put(data)
        signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)  # whose signal ends the process
        count += 1
        try:
            again = parse(data)
            assert again in (None, data), "what it was read as is written as other bytes: it is not canonical"
        except target.refusals:
            continue
        except BaseException as error:  # a panic of blake3 is no Exception
            failures.setdefault(where(error), (data, traceback.format_exc(limit=-4)))
            continue
        read += 1
        inputs.accept(data)
    return count, read, list(failures.values())


def where(error: BaseException) -> object:
    """One failure of each kind is enough."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return type(error), frame.filename, frame.lineno


def keep(target: Target, data: bytes) -> Path:
    """The input in the corpus."""
    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{target.name}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    return path
