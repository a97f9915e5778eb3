"""The sparse form: bytes that are mostly zero come back, and no others pass for them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from delta_forms import few, rle
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.entropy import Coder
from cas.errors import Corrupt
from cas.sparse import decode_sparse, encode_sparse

CODER = Coder()


def decode(stored: bytes, length: int) -> bytes:
    raw = np.zeros(length, np.uint8)
    places, values = decode_sparse(CODER, memoryview(stored), length)
    raw[places] = values
    return raw.tobytes()


@st.composite
def mostly_zero(draw: st.DrawFn) -> bytes:
    length = draw(st.integers(0, 5000))
    raw = bytearray(length)
    for place in draw(st.sets(st.integers(0, max(0, length - 1)), max_size=min(length, 60))):
        raw[place] = draw(st.integers(1, 255))
    return bytes(raw)


@given(mostly_zero())
def test_bytes_that_are_mostly_zero_come_back(raw: bytes) -> None:
    stored = encode_sparse(CODER, memoryview(raw))
    if stored:
        assert len(stored) < len(raw)
        assert decode(stored, len(raw)) == raw
    elif stored is not None:
        assert not any(raw)


@pytest.mark.parametrize("shift", [0, 1, 7])
@pytest.mark.parametrize("length", [800, 65_536, 100_001])
@pytest.mark.parametrize("density", [0.0001, 0.001, 0.01, 0.05])
def test_every_density_comes_back_near_its_entropy(density: float, length: int, shift: int) -> None:
    rng = np.random.default_rng(1)
    used = rng.random(length) < density
    used[-1] = True
    raw = np.where(used, 3, 0).astype(np.uint8).tobytes()
    stored = encode_sparse(CODER, memoryview(bytes(shift) + raw)[shift:])
    assert stored is not None
    assert decode(stored, length) == raw
    ideal = -length / 8 * (density * np.log2(density) + (1 - density) * np.log2(1 - density))
    assert len(stored) < 1.3 * ideal + 250


@pytest.mark.parametrize("length", [8, 9, 255, 256, 1 << 17])
def test_zeros_are_stored_in_nothing(length: int) -> None:
    assert encode_sparse(CODER, memoryview(bytes(length))) == b""


def test_bytes_with_few_zeros_are_left_alone() -> None:
    rng = np.random.default_rng(2)
    for density in (0.2, 0.5, 1):
        raw = np.where(rng.random(4096) < density, 9, 0).astype(np.uint8)
        assert encode_sparse(CODER, raw.data) is None
    together = bytes(3000) + bytes([9]) * 1096  # most words are zero
    assert encode_sparse(CODER, memoryview(together)) is None


def test_pinned_gaps_and_values() -> None:
    """Zeros before the values 7, 8, 9: none, 254, and 255 + 255 + 1."""
    raw = b"\x07" + bytes(254) + b"\x08" + bytes(511) + b"\x09" + bytes(33)
    stored = bytes.fromhex("05000000 05000000 00fe ffff01 070809")
    assert encode_sparse(CODER, memoryview(raw)) == stored
    assert decode(stored, len(raw)) == raw


def test_pinned_framed_parts() -> None:
    raw = (bytes(19) + b"\x05") * 100
    stored = few(rle(19, 100), rle(5, 100), count=100)
    assert stored[:8].hex() == "640000000a000000"
    assert decode(stored, 2000) == raw
    encoded = encode_sparse(CODER, memoryview(raw))
    assert encoded is not None
    assert encoded[:4] == stored[:4]
    assert decode(encoded, 2000) == raw


GOOD = few(b"\x02\xff\x0a", b"\x07\x08")
HOSTILE = {
    "nothing": b"",
    "seven bytes": GOOD[:7],
    "no parts": few(b"", b""),
    "no gaps": few(b"", b"\x07", count=1),
    "gaps of no count": few(b"\x02", b"\x07", count=0),
    "no values": few(b"\x02", b""),
    "too few values": few(b"\x02\x03", b"\x07"),
    "too many values": few(b"\x02\x03", b"\x07\x07\x07"),
    "a value that is zero": few(b"\x02\x03", b"\x07\x00"),
    "a last gap without value": few(b"\x02\xff", b"\x07"),
    "nothing but a gap without value": few(b"\xff", b"\x07"),
    "a value right after the end": few(b"\xff\x91", b"\x07"),
    "more gaps than a quarter of the bytes": few(rle(0, 101), rle(7, 101), count=101),
    "a huge count": few(b"\x02\xff\x0a", b"\x07\x08", count=0xFFFFFFFF),
    "a count that the gaps have not": few(b"\x02\xff\x0a", b"\x07\x08", count=4),
    "gaps beyond the stored bytes": GOOD[:4] + b"\xff\xff\xff\xff" + GOOD[8:],
    "gaps up to the end": GOOD[:4] + b"\x05\0\0\0" + GOOD[8:],
    "a byte too many": GOOD + b"\x09",
    "a byte too few": GOOD[:-1],
    "a frame of more gaps": few(rle(2, 21), rle(7, 20), count=20),
    "a frame of fewer values": few(rle(2, 20), rle(7, 19), count=20),
    "no shorter than what it stands for": few(bytes(100), bytes([7]) * 100 + bytes(192), count=100),
}


def test_the_good_form_that_the_hostile_ones_resemble_decodes() -> None:
    raw = decode(GOOD, 400)
    assert np.flatnonzero(np.frombuffer(raw, np.uint8)).tolist() == [2, 2 + 1 + 255 + 10]
    assert (raw[2], raw[268]) == (7, 8)
    assert decode(few(b"\xff\x90", b"\x07"), 400)[-1] == 7
    assert decode(few(rle(0, 100), rle(7, 100), count=100), 400)[:101] == bytes([7]) * 100 + b"\0"
    assert decode(few(rle(2, 20), rle(7, 20), count=20), 400).count(7) == 20


@pytest.mark.parametrize("stored", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_form_is_corrupt(stored: bytes) -> None:
    with pytest.raises(Corrupt):
        decode(stored, 400)


def test_a_form_as_long_as_what_it_stands_for_is_corrupt() -> None:
    stored = few(b"\x02\x02\x02", b"\x07\x07\x07")
    assert decode(stored, len(stored) + 1).count(7) == 3
    with pytest.raises(Corrupt, match="impossible length"):
        decode(stored, len(stored))


@settings(max_examples=300)
@given(st.integers(1, 100), st.binary(max_size=60), st.integers(0, 60))
def test_any_bytes_decode_or_are_corrupt(count: int, parts: bytes, first: int) -> None:
    stored = few(parts[:first], parts[first:], count=count)
    try:
        places, values = decode_sparse(CODER, memoryview(stored), 400)
    except Corrupt:
        return
    assert len(places) == len(values) <= 100
    assert (np.diff(places.astype(int)) > 0).all()
    assert places[-1] < 400


def test_as_many_gaps_as_there_may_be_take_a_few_times_the_memory() -> None:
    length = 1 << 22
    count = length // 4
    frame = CODER.encode_zstd(bytes(count))
    values = CODER.encode_zstd(bytes([7]) * count)
    assert frame is not None
    assert values is not None
    stored = memoryview(few(frame, values, count=count))
    tracemalloc.start()
    try:
        decode_sparse(CODER, stored, length)
        assert tracemalloc.get_traced_memory()[1] < 5 * length
    finally:
        tracemalloc.stop()
