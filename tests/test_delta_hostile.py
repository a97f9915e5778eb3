"""The decoder of codec `delta` before hostile bytes: `Corrupt`, or wrong bytes that the block's id refuses."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from delta_forms import CODEC, NO_ORDER, all_starts, decode, few, form, rle
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.classes import KEPT, Classes
from cas.delta import WIDTHS, Delta, DeltaPlan
from cas.entropy import Setting
from cas.errors import Corrupt

BASE = np.arange(100, dtype="<u4").tobytes()
GOOD = form(0b1101, NO_ORDER, bytes(200), rle(2, 100), b"")
SORTED = form(0b1101, (2, 0, 99), *(bytes(2 * 50),) * 2, *(b"",) * 4)
SPARSE_PLANE = few(b"\x02\x00", b"\x07\x08")
HOSTILE = {
    "nothing": b"",
    "three bytes": GOOD[:3],
    "a table that ends early": GOOD[:13],
    "no smaller than raw": form(0b101, NO_ORDER, bytes(200), bytes(200)),
    "no planes": form(0, NO_ORDER),
    "no plane at byte 0": form(0b1000, NO_ORDER, rle(0, 100)),
    "a plane beyond the width": form(0b10001, NO_ORDER, rle(0, 100), rle(0, 100)),
    "a plane of three bytes": form(0b1001, NO_ORDER, b"", rle(0, 100)),
    "a plane of two bytes at byte 1": form(0b1011, NO_ORDER, b"", b"", b""),
    "no classes": form(0b1, (0, 0, 0), b""),
    "nine classes": form(0b1, (9, 0, 0), *(b"",) * 9),
    "255 classes": form(0b1, (255, 0, 0), *(b"",) * 9),
    "one class with a shift": form(0b1, (1, 1, 0), b""),
    "one class with a low": form(0b1, (1, 0, 1), b""),
    "a shift of the width": form(0b1, (2, 32, 0), b"", b""),
    "classes above a byte": form(0b1, (8, 0, 249), *(b"",) * 8),
    "too few segments for the classes": form(0b1, (8, 0, 0), *(b"",) * 7),
    "too many segments for the classes": form(0b1, (2, 0, 0), *(b"",) * 3),
    "a huge length": struct.pack("<BBBBI", 1, 1, 0, 0, 0x7FFFFFFF) + rle(0, 200),
    "lengths that wrap around": struct.pack("<BBBBII", 5, 1, 0, 0, 0x7FFFFFFF, 12) + rle(0, 200),
    "a segment longer than raw": form(0b101, NO_ORDER, bytes(201), rle(0, 200)),
    "a byte too many": GOOD + b"\0",
    "a byte too few": GOOD[:-1],
    "a frame of another size": form(0b1101, NO_ORDER, bytes(200), rle(2, 101), b""),
    "two frames": form(0b1101, NO_ORDER, bytes(200), rle(2, 50) + rle(2, 50), b""),
    "no frame": form(0b1101, NO_ORDER, bytes(200), bytes(10), b""),
    "a segment of a class without elements": form(0b1, (2, 0, 254), b"", b"\0"),
    "a sparse segment of a class without elements": form(0b1, (2, 0, 254), b"", SPARSE_PLANE, sparse=(1,)),
    "sparse and empty": form(0b1, NO_ORDER, b"", sparse=(0,)),
    "sparse with a value beyond its end": form(0b1101, NO_ORDER, b"", few(b"\x64", b"\x07"), b"", sparse=(1,)),
    "sparse and as long as raw": form(
        0b1101, NO_ORDER, b"", few(bytes(20), bytes([7]) * 72, count=20), b"", sparse=(1,)
    ),
    "sparse bytes that are not marked": form(0b1101, NO_ORDER, b"", SPARSE_PLANE, b""),
    "a frame marked sparse": form(0b1101, NO_ORDER, b"", rle(2, 100), b"", sparse=(1,)),
}


def test_the_good_forms_that_the_hostile_ones_resemble_decode() -> None:
    assert decode(GOOD, BASE, 4) == (np.frombuffer(BASE, "<u4") + 0x10000).tobytes()
    assert decode(form(0b1, NO_ORDER, b""), BASE, 4) == BASE
    assert decode(form(0b1, (8, 31, 248), *(b"",) * 8), BASE, 4) == BASE
    assert decode(SORTED, BASE, 4) == BASE
    sparse = decode(form(0b1101, NO_ORDER, b"", SPARSE_PLANE, b"", sparse=(1,)), BASE, 4)
    changed = np.frombuffer(sparse, "<u4") - np.frombuffer(BASE, "<u4")
    assert (np.flatnonzero(changed).tolist(), changed[2:4].tolist()) == ([2, 3], [7 << 15, 8 << 15])
    last = decode(form(0b1101, NO_ORDER, b"", few(b"\x63", b"\x07"), b"", sparse=(1,)), BASE, 4)
    assert np.frombuffer(last, "<u4")[99] == 99 + (7 << 15)


@pytest.mark.parametrize("stored", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_form_is_corrupt(stored: bytes) -> None:
    with pytest.raises(Corrupt):
        decode(stored, BASE, 4)


def test_sorted_elements_must_be_even() -> None:
    with pytest.raises(Corrupt, match="99 elements"):
        decode(SORTED, BASE[4:], 4)


@pytest.mark.parametrize("width", [0, 3, 16])
def test_other_widths_are_corrupt(width: int) -> None:
    with pytest.raises(Corrupt, match=f"elements of {width} bytes"):
        decode(GOOD, BASE, width)


def test_a_base_of_another_length_is_corrupt() -> None:
    for base in (BASE[4:], BASE + bytes(4), b""):
        with pytest.raises(Corrupt, match=f"base of {len(base)};"):
            CODEC.decode_delta(GOOD, base, 4, memoryview(bytearray(400)))


def test_parts_of_elements_are_corrupt() -> None:
    with pytest.raises(Corrupt, match="no block of 401"):
        decode(GOOD, BASE + b"\0", 4)


def test_an_empty_block_has_no_delta() -> None:
    with pytest.raises(Corrupt):
        decode(b"", b"", 4)


def peak(stored: bytes, base: bytes, width: int) -> int:
    """The most memory that a decoder which has seen nothing else takes for this, beside the block."""
    codec, out = Delta(), memoryview(bytearray(len(base)))
    tracemalloc.start()
    try:
        codec.decode_delta(stored, base, width, out)
    except Corrupt:
        pass
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return most


def test_a_frame_that_declares_gigabytes_costs_nothing() -> None:
    one_segment = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 30) + rle(0, 200)[6:]
    cut = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))[:100]
    for frame in (one_segment, cut):
        assert peak(form(0b1101, NO_ORDER, bytes(200), frame, b""), BASE, 4) < 2 << 20


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_few_bytes_for_a_large_block_take_a_few_times_its_memory(width: int, count: int) -> None:
    """Each plane in as many gaps as there may be; sorted, all of it in one class."""
    size = 4 << 20
    base, n = bytes(size), size // width
    gaps, values = (zstandard.ZstdCompressor().compress(bytes([byte]) * (n // 4)) for byte in (0, 8))
    planes = [few(gaps, values, count=n // 4), *(b"",) * (count - 1)] * width
    classes = (count, 0, 0)
    stored = form((1 << width) - 1, classes, *planes, sparse=tuple(range(0, width * count, count)))
    assert len(stored) < 3000
    assert decode(stored, base, width).count(4) == size // 4
    assert peak(stored, base, width) < (12 if count > 1 else 6) * size + (2 << 20)


def mutants(stored: bytes, rng: np.random.Generator) -> bytes:
    """`stored` with a few bytes changed, cut, doubled or shuffled, most of them in its head."""
    data = bytearray(stored)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, min(len(data), 80) if rng.random() < 0.7 else len(data)))
        match rng.integers(0, 4):
            case 0:
                data[at] = int(rng.integers(0, 256))
            case 1:
                data[at] ^= 1 << int(rng.integers(0, 8))
            case 2:
                del data[at : at + int(rng.integers(1, 9))]
            case _:
                data[at:at] = data[at : at + int(rng.integers(1, 9))]
        if not data:
            return b""
    return bytes(data)


def encoded(width: int) -> tuple[bytes, list[bytes]]:
    """A base, and stored forms on it that use every method."""
    rng = np.random.default_rng(width)
    old = rng.integers(0, 1 << 62, 600, np.uint64).astype(f"<u{width}")
    new = (old + (rng.integers(0, 9, 600) * (rng.random(600) < 0.5)).astype(old.dtype)).astype(old.dtype)
    sparse = np.where(np.arange(600) % 40 == 0, new + np.ones(1, old.dtype), old).astype(old.dtype)
    forms = []
    for raw in (new, sparse):
        for classes in (KEPT, Classes(8, 0, 120)):
            for starts in (all_starts(width)[0], all_starts(width)[-1]):
                plan = DeltaPlan(width, starts, (Setting.TUNED,) * (len(starts) * classes.count), classes)
                stored = CODEC.encode_delta(raw.tobytes(), old.tobytes(), plan)
                forms += [] if stored is None else [bytes(stored)]
    assert len(forms) >= 4
    return old.tobytes(), forms


def decodes_or_is_corrupt(stored: bytes, base: bytes, width: int) -> bool:
    """Decode between guards; any exception but `Corrupt`, and any byte outside `out`, fails the test."""
    guarded = bytearray(b"\xa5" * (len(base) + 64))
    try:
        CODEC.decode_delta(stored, base, width, memoryview(guarded)[32 : 32 + len(base)])
    except Corrupt:
        return False
    finally:
        assert guarded[:32] == guarded[-32:] == b"\xa5" * 32
    return True


@pytest.mark.parametrize("width", WIDTHS)
def test_mutants_decode_to_something_or_are_corrupt(width: int) -> None:
    rng = np.random.default_rng(width)
    base, forms = encoded(width)
    decoded = [decodes_or_is_corrupt(mutants(forms[i % len(forms)], rng), base, width) for i in range(2000)]
    assert True in decoded
    assert False in decoded


@pytest.mark.parametrize("width", WIDTHS)
def test_every_truncation_is_corrupt(width: int) -> None:
    base, forms = encoded(width)
    for stored in forms:
        for end in range(len(stored)):
            assert not decodes_or_is_corrupt(stored[:end], base, width)
        assert not decodes_or_is_corrupt(stored + b"\0", base, width)


@settings(max_examples=200)
@given(st.binary(max_size=120), st.sampled_from(WIDTHS), st.integers(0, 40))
def test_any_bytes_decode_or_are_corrupt(stored: bytes, width: int, count: int) -> None:
    decodes_or_is_corrupt(stored, bytes(range(256)) * width * count, width)


@settings(max_examples=200)
@given(st.sampled_from(WIDTHS), st.data())
def test_any_segments_in_a_sound_table_decode_or_are_corrupt(width: int, data: st.DataObject) -> None:
    starts = data.draw(st.sampled_from(all_starts(width)))
    classes = data.draw(st.sampled_from([NO_ORDER, (2, 0, 100), (8, 0, 248)]))
    frame = st.binary(max_size=30).map(lambda tail: b"\x28\xb5\x2f\xfd" + tail)
    gaps = st.tuples(st.binary(max_size=20), st.binary(max_size=20)).map(lambda parts: few(*parts))
    count = len(starts) * classes[0]
    segments = data.draw(st.lists(st.one_of(st.just(b""), frame, gaps), min_size=count, max_size=count))
    sparse = tuple(i for i in range(count) if data.draw(st.booleans()))
    stored = form(sum(1 << start for start in starts), classes, *segments, sparse=sparse)
    decodes_or_is_corrupt(stored, np.arange(600).astype(f"<u{width}").tobytes(), width)
