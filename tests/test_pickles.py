"""The reader of pickles: it takes what its table names, and never more memory than it may."""

from __future__ import annotations

import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cas.cli.incoming import Unreadable
from cas.cli.pickles import Maker, unpickle

PLAIN = {"a": [1, 2.5, None, True, "text", b"bytes", (1, (2,), ()), {}], -5: 2**62, "big": -(2**900), "": ["é\n"] * 3}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_as_they_were(protocol: int) -> None:
    data = pickle.dumps(PLAIN, protocol)
    assert unpickle(data, {"_codecs encode": Maker(lambda text, _: text.encode("latin1"))}) == PLAIN


class Evil:
    def __reduce__(self) -> Any:
        return print, ("ran",)


def test_a_name_that_is_not_in_the_table_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Unreadable, match=r"it needs __builtin__\.print, which is not loaded safely"):
        unpickle(pickle.dumps(Evil(), 2), {})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("key", [None, True, 1.5, b"k", (1, 2), 2**63, -(2**63) - 1])
def test_a_key_that_no_state_has_is_said(key: Any) -> None:
    with pytest.raises(Unreadable, match="as a key; keys are texts and integers of 64 bits"):
        unpickle(pickle.dumps({key: 1}, 4), {})


@contextmanager
def memory(nbytes: int) -> Iterator[None]:
    """This process may take so many bytes more."""
    held = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line).split()[1])
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, ((held << 10) + nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@pytest.mark.parametrize("piece", [b"]", b"M\1\1", b"r\0\0\0\7", b"(", b"h\1)R"])
def test_a_description_never_takes_more_memory_than_it_may(piece: bytes) -> None:
    data = b"\x80\x02]q\0cm\nf\nq\1(" + piece * ((40 << 20) // len(piece)) + b"e."
    with memory(400 << 20), pytest.raises(Unreadable, match="its description is too large"):
        unpickle(data, {"m f": Maker(dict)})


@pytest.mark.parametrize("cut", range(0, 100, 3))
def test_a_cut_description_is_damaged(cut: int) -> None:
    with pytest.raises(Unreadable, match="damaged"):
        unpickle(pickle.dumps(PLAIN, 4)[:cut], {})
