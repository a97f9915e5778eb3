"""The codecs `planes` and `zstd`: every bit pattern comes back; hostile bytes do no harm."""

from __future__ import annotations

import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.entropy import MAX_WINDOW, SAMPLE, Setting, sample
from cas.errors import Corrupt, Invalid
from cas.planes import WIDTHS, Plan, Planes

CODEC = Planes()
MAGIC = b"\x28\xb5\x2f\xfd"
SPECIALS = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan, 5e-324, 1e-45, -1e-40, 6e-8, 65504.0]


def rle(byte: int, count: int) -> bytes:
    """A frame, made by hand, of `count` < 256 equal bytes: one segment, size of one byte, one RLE block."""
    return MAGIC + b"\x20" + bytes([count]) + struct.pack("<I", 3 | count << 3)[:3] + bytes([byte])


def compress(raw: bytes, write_checksum: bool = False) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_checksum=write_checksum).compress(raw)


def form(starts: int, flags: int, *planes: bytes) -> bytes:
    """A stored form of these stored planes."""
    return struct.pack(f"<BB{len(planes)}I", starts, flags, *map(len, planes)) + b"".join(planes)


def decode(stored: bytes, width: int, length: int) -> bytes:
    out = bytearray(length)
    CODEC.decode(stored, width, memoryview(out))
    return bytes(out)


def all_starts(width: int) -> list[tuple[int, ...]]:
    """Every way to cut elements of `width` into planes: aligned powers of two."""
    if width == 1:
        return [(0,)]
    halves = all_starts(width // 2)
    return [(0,)] + [(*low, *(at + width // 2 for at in high)) for low in halves for high in halves]


def weights(count: int, dtype: str) -> bytes:
    values = np.random.default_rng(7).normal(0, 0.02, count).astype("<f4")
    if dtype == "bf16":
        return (values.view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype(dtype).tobytes()


@st.composite
def blocks(draw: st.DrawFn) -> tuple[int, bytes]:
    """A width and raw bytes: any bits, numbers that floats treat specially, or a few elements repeated."""
    width = draw(st.sampled_from(WIDTHS))
    count = draw(st.integers(0, 300))
    kind = draw(st.sampled_from(["any", "special", "repeated"]))
    if kind == "any":
        return width, draw(st.binary(min_size=count * width, max_size=count * width))
    if kind == "repeated":
        few = draw(st.lists(st.binary(min_size=width, max_size=width), min_size=1, max_size=4))
        return width, b"".join(few[i % len(few)] for i in range(count))
    with np.errstate(all="ignore"):
        few_floats = np.array(SPECIALS).astype(f"<f{width}")
    picks = draw(st.lists(st.integers(0, len(SPECIALS) - 1), min_size=count, max_size=count))
    return width, few_floats[picks].tobytes()


@st.composite
def plans(draw: st.DrawFn, width: int) -> Plan:
    starts = draw(st.sampled_from(all_starts(width)))
    chosen = draw(st.lists(st.sampled_from(Setting), min_size=len(starts), max_size=len(starts)))
    rotate = starts[-2:] == (width - 2, width - 1) and draw(st.booleans())
    return Plan(width, starts, tuple(chosen), rotate)


@given(blocks(), st.booleans())
def test_every_block_comes_back_by_its_own_plan(block: tuple[int, bytes], is_float: bool) -> None:
    width, raw = block
    stored = CODEC.encode(raw, CODEC.plan(sample(raw, width), width, is_float))
    if stored is not None:
        assert len(stored) < len(raw)
        assert decode(bytes(stored), width, len(raw)) == raw


@given(blocks(), st.data())
def test_every_block_comes_back_by_any_plan(block: tuple[int, bytes], data: st.DataObject) -> None:
    width, raw = block
    stored = CODEC.encode(raw, data.draw(plans(width)))
    if stored is not None:
        assert len(stored) < len(raw)
        assert decode(bytes(stored), width, len(raw)) == raw


@pytest.mark.parametrize("width", WIDTHS)
def test_every_split_and_rotation_works_across_pieces(width: int) -> None:
    count = (1 << 16) + 3
    numbers = np.random.default_rng(3).integers(0, 1 << 63, count, np.uint64)
    numbers[1::2] = 0  # compressible in every plane
    raw = numbers.astype(f"<u{width}").tobytes()
    for starts in all_starts(width):
        for rotate in {False, starts[-2:] == (width - 2, width - 1)}:
            stored = CODEC.encode(raw, Plan(width, starts, (Setting.LEVEL1,) * len(starts), rotate))
            assert stored is not None
            assert decode(bytes(stored), width, len(raw)) == raw


def test_every_16_bit_pattern_comes_back_rotated() -> None:
    raw = np.arange(1 << 16, dtype="<u2").tobytes()
    stored = CODEC.encode(raw, Plan(2, (0, 1), (Setting.RAW, Setting.LEVEL1), True))
    assert stored is not None
    assert decode(bytes(stored), 2, len(raw)) == raw


@given(st.binary(max_size=600) | st.binary(min_size=1, max_size=4).map(lambda few: few * 150))
def test_zstd_gives_every_block_back(raw: bytes) -> None:
    stored = CODEC.encode_zstd(raw)
    if stored is not None:
        assert len(stored) < len(raw)
        out = bytearray(len(raw))
        CODEC.decode_zstd(stored, memoryview(out))
        assert out == raw


def test_large_objects_come_back_from_zstd() -> None:
    raw = b"".join(b"step %d loss %d\n" % (i, i * i % 97) for i in range(400_000))
    stored = CODEC.encode_zstd(raw)
    assert stored is not None
    assert len(stored) < len(raw) // 2
    assert zstandard.get_frame_parameters(stored).window_size <= MAX_WINDOW
    out = bytearray(len(raw))
    CODEC.decode_zstd(stored, memoryview(out))
    assert out == raw


@pytest.mark.parametrize("raw", [b"", b"\x00\x00", b"\x00\x80", b"\x00" * 8])
def test_blocks_too_small_to_gain_are_left_to_raw(raw: bytes) -> None:
    width = len(raw) or 4
    plan = CODEC.plan(raw, width, True)
    assert CODEC.encode(raw, plan) is None
    assert CODEC.encode(raw, Plan(width, (0,), (Setting.LEVEL1,), False)) is None
    assert CODEC.encode_zstd(raw) is None


# Weights: the exponent is alone in its plane, the mantissa stays raw and in one piece.


def test_the_exponent_of_weights_is_coded_and_the_mantissa_left_together() -> None:
    raw = weights(1 << 18, "<f4")
    plan = CODEC.plan(sample(raw, 4), 4, True)
    assert plan == Plan(4, (0, 2, 3), (Setting.RAW, Setting.RAW, Setting.TUNED), True)
    stored = CODEC.encode(raw, plan)
    assert stored is not None
    assert len(stored) < 0.84 * len(raw)


def test_bf16_weights_pack_to_two_thirds() -> None:
    raw = weights(1 << 18, "bf16")
    plan = CODEC.plan(sample(raw, 2), 2, True)
    assert plan == Plan(2, (0, 1), (Setting.RAW, Setting.TUNED), True)
    stored = CODEC.encode(raw, plan)
    assert stored is not None
    assert len(stored) < 0.67 * len(raw)


def test_bf16_values_in_fp32_cost_no_more_than_bf16() -> None:
    raw = (np.frombuffer(weights(1 << 18, "bf16"), "<u2").astype("<u4") << 16).tobytes()
    stored = CODEC.encode(raw, CODEC.plan(sample(raw, 4), 4, True))
    assert stored is not None
    assert len(stored) < 0.34 * len(raw)


def test_small_integers_keep_their_zero_bytes_in_one_plane() -> None:
    raw = np.random.default_rng(5).integers(0, 50, 1 << 16).astype("<i8").tobytes()
    plan = CODEC.plan(sample(raw, 8), 8, False)
    assert (plan.starts[-1], plan.rotate) == (4, False)
    stored = CODEC.encode(raw, plan)
    assert stored is not None
    assert len(stored) < 0.1 * len(raw)


@pytest.mark.parametrize("is_float", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_random_bytes_are_hopeless(width: int, is_float: bool) -> None:
    raw = np.random.default_rng(1).bytes(1 << 20)
    plan = CODEC.plan(sample(raw, width), width, is_float)
    assert plan.hopeless
    assert CODEC.encode(raw, plan) is None
    assert CODEC.encode_zstd(raw) is None


def test_the_setting_follows_the_bytes() -> None:
    rng = np.random.default_rng(2)
    words = [bytes(rng.integers(97, 123, rng.integers(3, 9), np.uint8)) + b" " for _ in range(300)]
    text = b"".join(words[i] for i in rng.integers(0, 300, 4000))
    assert CODEC.choose(text)[0] is Setting.LEVEL1
    assert CODEC.choose(rng.integers(0, 8, 20000, np.uint8).tobytes())[0] is Setting.TUNED
    assert CODEC.choose(rng.bytes(20000)) == (Setting.RAW, 20000)
    assert CODEC.choose(b"") == (Setting.RAW, 0)


@pytest.mark.parametrize("width", [1, *WIDTHS])
@pytest.mark.parametrize("length", [0, 8, SAMPLE, SAMPLE + 8, (1 << 20) - 8])
def test_a_sample_is_whole_elements_from_all_over(width: int, length: int) -> None:
    numbers = np.arange(length // width, dtype=f"<u{width}")
    seen = np.frombuffer(sample(numbers.tobytes(), width), numbers.dtype)
    assert seen.nbytes == min(length, SAMPLE)
    assert np.isin(seen, numbers).all()
    if length:
        assert (seen[0], seen[-1]) == (numbers[0], numbers[-1])


# Pinned bytes. Frames are decoded only: what an encoder makes of its input is zstd's affair.


def test_pinned_a_raw_and_a_compressed_plane() -> None:
    head, frame = bytes.fromhex("03 00 c8000000 0a000000"), bytes.fromhex("28b52ffd20c843060007")
    stored = head + bytes(range(200)) + frame
    assert stored == form(0b11, 0, bytes(range(200)), rle(7, 200))
    raw = b"".join(bytes([i, 7]) for i in range(200))
    assert decode(stored, 2, 400) == raw
    encoded = CODEC.encode(raw, Plan(2, (0, 1), (Setting.RAW, Setting.LEVEL1), False))
    assert encoded is not None
    assert encoded[:6] == stored[:6]
    assert encoded[10:210] == stored[10:210]


def test_pinned_rotation_puts_the_sign_last() -> None:
    """fp32 -1.5 is BFC00000: top 16 bits BFC0, rotated 7F81: exponent 7F, then mantissa and sign 81."""
    stored = form(0b1101, 1, rle(0, 200), rle(0x81, 100), rle(0x7F, 100))
    assert stored.hex(" ", 4) == (
        "0d010a00 00000a00 00000a00 000028b5 2ffd20c8 43060000 28b52ffd 20642303 008128b5 2ffd2064 2303007f"
    )
    raw = np.full(100, -1.5, "<f4").tobytes()
    assert decode(stored, 4, 400) == raw
    encoded = CODEC.encode(raw, Plan(4, (0, 2, 3), (Setting.TUNED,) * 3, True))
    assert encoded is not None
    assert encoded[:2] == stored[:2]


def test_pinned_one_plane_of_whole_elements() -> None:
    assert decode(form(0b1, 0, rle(9, 240)), 8, 240) == bytes([9]) * 240


def test_pinned_zstd() -> None:
    out = bytearray(200)
    CODEC.decode_zstd(bytes.fromhex("28b52ffd20c843060007"), memoryview(out))
    assert out == bytes([7]) * 200


# Hostile bytes.

GOOD = form(0b1101, 1, bytes(200), rle(0x81, 100), rle(0x7F, 100))
HOSTILE = {
    "nothing": b"",
    "one byte": b"\x01",
    "a table that ends early": GOOD[:13],
    "no smaller than raw": form(0b11, 0, bytes(200), bytes(200)),
    "no planes": form(0, 0),
    "no plane at byte 0": form(0b1000, 0, rle(0, 100)),
    "a plane beyond the width": form(0b10001, 0, rle(0, 100), rle(0, 100)),
    "a plane of three bytes": form(0b1001, 0, compress(bytes(300)), rle(0, 100)),
    "a plane of two bytes at byte 1": form(0b1011, 0, rle(0, 100), rle(0, 200), rle(0, 100)),
    "unknown flags": form(0b1101, 3, rle(0, 200), rle(0x81, 100), rle(0x7F, 100)),
    "a high unknown flag": form(0b1101, 0x80, rle(0, 200), rle(0x81, 100), rle(0x7F, 100)),
    "rotated without planes for it": form(0b101, 1, rle(0, 200), rle(0, 200)),
    "rotated in one plane": form(0b1, 1, rle(0, 250)),
    "a huge length": struct.pack("<BBI", 1, 0, 0xFFFFFFFF) + rle(0, 200),
    "lengths that wrap around": struct.pack("<BBII", 5, 0, 0xFFFFFFFF, 11) + rle(0, 200),
    "a length of zero": form(0b101, 0, b"", bytes(200)),
    "a plane longer than raw": form(0b101, 0, bytes(201), rle(0, 200)),
    "a byte too many": GOOD + b"\0",
    "a byte too few": GOOD[:-1],
    "a frame of another size": form(0b1101, 1, bytes(200), rle(0x81, 100), rle(0x7F, 101)),
    "a frame with a tail": form(0b1101, 1, bytes(200), rle(0x81, 100), rle(0x7F, 100) + b"\0"),
    "two frames": form(0b1101, 1, bytes(200), rle(0x81, 100), rle(0x7F, 50) + rle(0x7F, 50)),
    "a frame cut short": form(0b1101, 1, bytes(200), rle(0x81, 100), rle(0x7F, 100)[:-1]),
}


def test_the_good_form_that_the_hostile_ones_resemble_decodes() -> None:
    assert decode(GOOD, 4, 400) == np.full(100, -1.5, "<f4").tobytes()


@pytest.mark.parametrize("stored", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_form_is_corrupt(stored: bytes) -> None:
    with pytest.raises(Corrupt):
        decode(stored, 4, 400)


def with_dictionary(raw: bytes) -> bytes:
    """A frame that names a dictionary: one flag and one byte more than `rle`."""
    frame = compress(raw)
    assert frame[4] == 0x60  # one segment, content size of two bytes
    return frame[:4] + b"\x61\x07" + frame[5:]


def streamed(raw: bytes) -> bytes:
    """A frame that does not declare its size."""
    stream = zstandard.ZstdCompressor(level=1).compressobj()
    return stream.compress(raw) + stream.flush()


RAW = b"weights " * 100
NOISE = np.random.default_rng(4).bytes(len(RAW))
SIZE = struct.pack("<H", len(RAW) - 256)
SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"skip"
HOSTILE_FRAMES = {
    "nothing": b"",
    "a magic number alone": MAGIC,
    "another magic number": b"\x27" + compress(RAW)[1:],
    "no frame": b"no frame at all",
    "a skippable frame": SKIPPABLE,
    "a skippable frame of the right size": struct.pack("<II", 0x184D2A50, len(RAW)) + b"skip",
    "a skippable frame first": SKIPPABLE + compress(RAW),
    "a skippable frame last": compress(RAW) + SKIPPABLE,
    "a second frame": compress(RAW) + compress(RAW),
    "an empty second frame": compress(RAW) + compress(b""),
    "an empty frame": compress(b""),
    "a tail": compress(RAW) + b"\0",
    "cut short": compress(RAW)[:-1],
    "more content": compress(RAW + b"!"),
    "less content": compress(RAW[:-1]),
    "no size": streamed(RAW),
    "a checksum": compress(RAW, write_checksum=True),
    "a dictionary": with_dictionary(RAW),
    "a size that its blocks do not have": MAGIC + b"\x60" + SIZE + rle(0, 200)[6:],
    "a window of 1 GiB": MAGIC + b"\x40\xa0" + SIZE + compress(RAW)[7:],
    "a frame no shorter than its content": compress(NOISE),
    "raw bytes": RAW,
}


@pytest.mark.parametrize("stored", HOSTILE_FRAMES.values(), ids=HOSTILE_FRAMES.keys())
def test_a_hostile_frame_is_corrupt(stored: bytes) -> None:
    out = memoryview(bytearray(len(RAW)))
    CODEC.decode_zstd(compress(RAW), out)
    with pytest.raises(Corrupt):
        CODEC.decode_zstd(stored, out)


def test_an_empty_block_is_never_compressed() -> None:
    with pytest.raises(Corrupt):
        CODEC.decode_zstd(b"", memoryview(bytearray()))
    with pytest.raises(Corrupt):
        decode(b"", 4, 0)


def test_a_raw_length_of_no_whole_elements_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        decode(GOOD, 4, 401)


def test_a_frame_that_declares_a_gigabyte_allocates_nothing() -> None:
    one_segment = MAGIC + b"\xe0" + struct.pack("<Q", 1 << 30) + rle(0, 200)[6:]
    small_window = MAGIC + b"\xc0\x38" + struct.pack("<Q", 1 << 30) + rle(0, 200)[6:]
    tracemalloc.start()
    try:
        for bomb in (one_segment, small_window):
            with pytest.raises(Corrupt):
                CODEC.decode_zstd(bomb, memoryview(bytearray(1000)))
            with pytest.raises(Corrupt):
                decode(form(0b1, 0, bomb), 4, 1000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def encoded_blocks() -> list[tuple[int, bytes, bytes]]:
    """Small stored forms that use every method: width, raw, stored."""
    made = []
    steps = np.arange(300, dtype="<i8").tobytes()
    for width, raw in ((2, weights(300, "bf16")), (4, weights(300, "<f4")), (8, steps)):
        stored = CODEC.encode(raw, CODEC.plan(raw, width, width < 8))
        assert stored is not None
        made.append((width, raw, bytes(stored)))
    return made


def decodes_or_is_corrupt(stored: bytes, width: int, length: int) -> None:
    """Decode between guards; any exception but `Corrupt`, and any byte outside `out`, fails the test."""
    guarded = bytearray(b"\xa5" * (length + 64))
    try:
        CODEC.decode(stored, width, memoryview(guarded)[32 : 32 + length])
    except Corrupt:
        pass
    assert guarded[:32] == guarded[-32:] == b"\xa5" * 32


@pytest.mark.parametrize(("width", "raw", "stored"), encoded_blocks(), ids=["bf16", "fp32", "int64"])
def test_every_flip_is_corrupt_or_wrong_bytes(width: int, raw: bytes, stored: bytes) -> None:
    for place in range(len(stored)):
        for flip in (1, 0x80, 0xFF):
            flipped = stored[:place] + bytes([stored[place] ^ flip]) + stored[place + 1 :]
            decodes_or_is_corrupt(flipped, width, len(raw))


@pytest.mark.parametrize(("width", "raw", "stored"), encoded_blocks(), ids=["bf16", "fp32", "int64"])
def test_every_truncation_is_corrupt(width: int, raw: bytes, stored: bytes) -> None:
    for end in range(len(stored)):
        with pytest.raises(Corrupt):
            decode(stored[:end], width, len(raw))
    with pytest.raises(Corrupt):
        decode(stored + b"\0", width, len(raw))


@settings(max_examples=300)
@given(st.binary(max_size=120), st.sampled_from(WIDTHS), st.integers(0, 40))
def test_any_bytes_decode_or_are_corrupt(stored: bytes, width: int, count: int) -> None:
    decodes_or_is_corrupt(stored, width, width * count)


@settings(max_examples=300)
@given(st.sampled_from(WIDTHS), st.data())
def test_any_frame_bytes_in_a_sound_table_decode_or_are_corrupt(width: int, data: st.DataObject) -> None:
    starts = data.draw(st.sampled_from(all_starts(width)))
    frame = st.binary(max_size=40).map(lambda tail: MAGIC + tail)
    planes = [data.draw(frame) for _ in starts]
    decodes_or_is_corrupt(form(sum(1 << start for start in starts), 0, *planes), width, 600 * width)


# Misuse, buffers, threads.


@pytest.mark.parametrize("width", [0, 1, 3, 16])
def test_other_widths_are_invalid_to_plan_and_corrupt_to_read(width: int) -> None:
    with pytest.raises(Invalid):
        CODEC.plan(bytes(48), width, True)
    with pytest.raises(Corrupt):
        CODEC.decode(bytes(8), width, memoryview(bytearray(48)))


def test_parts_of_elements_are_invalid() -> None:
    with pytest.raises(Invalid):
        CODEC.encode(bytes(41), CODEC.plan(bytes(40), 4, True))


@pytest.mark.parametrize("shift", range(8))
def test_buffers_need_no_alignment(shift: int) -> None:
    raw = weights(5000, "<f4")
    shifted = memoryview(bytearray(bytes(shift) + raw))[shift:]
    stored = CODEC.encode(shifted, CODEC.plan(shifted, 4, True))
    assert stored is not None
    out = memoryview(bytearray(shift + len(raw)))[shift:]
    CODEC.decode(memoryview(bytes(shift) + stored)[shift:], 4, out)
    assert out == raw


def test_typed_views_are_taken_as_bytes() -> None:
    values = np.frombuffer(weights(5000, "<f4"), "<f4")
    plan = CODEC.plan(values.data.cast("B"), 4, True)
    stored = CODEC.encode(values.data.cast("B"), plan)
    assert stored is not None
    out = np.empty_like(values)
    CODEC.decode(stored, 4, out.data)
    assert (out == values).all()


def test_a_small_block_after_a_large_one_is_whole() -> None:
    for count in (70_000, 100, 70_001):
        raw = weights(count, "bf16")
        stored = CODEC.encode(raw, CODEC.plan(sample(raw, 2), 2, True))
        assert stored is not None
        assert decode(bytes(stored), 2, len(raw)) == raw


def test_threads_with_their_own_codecs_do_not_meet() -> None:
    def roundtrips(seed: int) -> bool:
        codec = Planes()
        raw = np.random.default_rng(seed).normal(size=100_000).astype("<f4").tobytes()
        plan = codec.plan(sample(raw, 4), 4, True)
        out = bytearray(len(raw))
        for _ in range(5):
            stored = codec.encode(raw, plan)
            assert stored is not None
            codec.decode(stored, 4, memoryview(out))
        return out == raw

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(roundtrips, range(8)))
