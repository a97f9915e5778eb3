"""The codec `delta`: every bit pattern comes back from its base, in the fewest bytes, in these very bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from delta_forms import CODEC, NO_ORDER, all_starts, bf16, decode, encode, few, form, rle, two_states
from hypothesis import given
from hypothesis import strategies as st

from cas.classes import KEPT, MAX_CLASSES, Classes
from cas.delta import WIDTHS, Delta, DeltaPlan
from cas.dtypes import DTYPES
from cas.entropy import Setting, sample
from cas.errors import Invalid
from cas.planes import Planes

EXPONENT = {1: 4, 2: 8, 4: 8, 8: 11}
SPECIALS = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan, 5e-324, 1e-45, -1e-40, 6e-8, 65504.0]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[int, bytes, bytes]:
    """A width, a block and a base for it: any bits, floats that are special, or nearly the same."""
    width = draw(st.sampled_from(WIDTHS))
    count = draw(st.integers(0, 300))
    kind = draw(st.sampled_from(["any", "special", "near", "equal"]))
    exactly = st.binary(min_size=count * width, max_size=count * width)
    if kind == "special" and width > 1:
        with np.errstate(all="ignore"):
            floats = np.array(SPECIALS).astype(f"<f{width}")
        picks = st.lists(st.integers(0, len(SPECIALS) - 1), min_size=count, max_size=count)
        return width, floats[draw(picks)].tobytes(), floats[draw(picks)].tobytes()
    base = draw(exactly)
    if kind == "equal":
        return width, base, base
    if kind == "any":
        return width, draw(exactly), base
    steps = draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count))
    near = np.frombuffer(base, f"<u{width}") + np.array(steps, np.int64).astype(f"<u{width}")
    return width, near.astype(f"<u{width}").tobytes(), base


@st.composite
def plans(draw: st.DrawFn, width: int) -> DeltaPlan:
    starts, classes = draw(st.sampled_from(all_starts(width))), KEPT
    if draw(st.booleans()):
        count = draw(st.integers(2, MAX_CLASSES))
        classes = Classes(count, draw(st.integers(0, 8 * width - 1)), draw(st.integers(0, 256 - count)))
    segments = len(starts) * classes.count
    settings = draw(st.lists(st.sampled_from(Setting), min_size=segments, max_size=segments))
    return DeltaPlan(width, starts, tuple(settings), classes)


@given(pairs(), st.booleans())
def test_every_block_comes_back_by_its_own_plan(blocks: tuple[int, bytes, bytes], sort: bool) -> None:
    width, raw, base = blocks
    plan = CODEC.plan_delta(sample(raw, width), sample(base, width), width, EXPONENT[width], sort)
    stored = None if plan is None else CODEC.encode_delta(raw, base, plan)
    if stored is not None:
        assert len(stored) < len(raw)
        assert decode(bytes(stored), base, width) == raw


@given(pairs(), st.data())
def test_every_block_comes_back_by_any_plan(blocks: tuple[int, bytes, bytes], data: st.DataObject) -> None:
    width, raw, base = blocks
    stored = CODEC.encode_delta(raw, base, data.draw(plans(width)))
    if stored is not None:
        assert len(stored) < len(raw)
        assert decode(bytes(stored), base, width) == raw


@pytest.mark.parametrize("classes", [KEPT, Classes(2, 3, 100), Classes(8, 3, 5), Classes(8, 0, 248)])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_split_and_order_works_across_pieces(width: int, classes: Classes) -> None:
    count = (1 << 17) + 6
    rng = np.random.default_rng(3)
    old = rng.integers(0, 1 << 63, count, np.uint64).astype(f"<u{width}")
    step = rng.integers(0, 1 << 63, count, np.uint64).astype(old.dtype)
    step[1::2] = 0  # compressible in every plane
    new = (old + step).astype(old.dtype)
    for starts in all_starts(width):
        plan = DeltaPlan(width, starts, (Setting.TUNED,) * (len(starts) * classes.count), classes)
        assert decode(encode(new.tobytes(), old.tobytes(), plan), old.tobytes(), width) == new.tobytes()


def test_every_16_bit_change_comes_back() -> None:
    old = np.repeat(np.array([0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x3F80], "<u2"), 1 << 16).tobytes()
    new = np.tile(np.arange(1 << 16, dtype="<u2"), 6).tobytes()
    plan = DeltaPlan(2, (0, 1), (Setting.RAW, Setting.LEVEL1))
    assert decode(encode(new, old, plan), old, 2) == new


@pytest.mark.parametrize("classes", [KEPT, Classes(8, 0, 60)])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shift", range(1, 8))
def test_buffers_need_no_alignment(shift: int, width: int, classes: Classes) -> None:
    rng = np.random.default_rng(shift)
    base = rng.bytes(4000 * width)
    steps = rng.integers(0, 5, 4000).astype(f"<u{width}") * (rng.random(4000) < 0.1)
    raw = (np.frombuffer(base, f"<u{width}") + steps).astype(f"<u{width}").tobytes()
    new, old = (memoryview(bytearray(bytes(shift) + part))[shift:] for part in (raw, base))
    starts = tuple(range(width))
    stored = CODEC.encode_delta(new, old, DeltaPlan(width, starts, (Setting.TUNED,) * (width * classes.count), classes))
    assert stored is not None
    out = memoryview(bytearray(shift + len(raw)))[shift:]
    CODEC.decode_delta(memoryview(bytes(shift) + stored)[shift:], old, width, out)
    assert out == raw


@pytest.mark.parametrize("width", WIDTHS)
def test_an_unchanged_block_costs_a_few_bytes(width: int) -> None:
    raw = np.random.default_rng(1).bytes(1 << 18)
    plan = CODEC.plan_delta(sample(raw, width), sample(raw, width), width, EXPONENT[width], True)
    assert plan is not None
    stored = encode(raw, raw, plan)
    assert len(stored) < 64
    assert decode(stored, raw, width) == raw


def test_one_changed_weight_in_a_hundred_costs_little() -> None:
    before, after = (np.frombuffer(bf16(state), "<u2") for state in two_states(1 << 18))
    touched = np.where(np.random.default_rng(5).random(1 << 18) < 0.01, after, before)
    raw, base = touched.tobytes(), before.tobytes()
    plan = CODEC.plan_delta(sample(raw, 2), sample(base, 2), 2, 8, False)
    assert plan is not None
    stored = encode(raw, base, plan)
    assert len(stored) < 0.011 * len(raw)
    assert decode(stored, base, 2) == raw


def test_a_plan_made_for_dense_changes_stores_an_unchanged_block_in_a_few_bytes() -> None:
    before, after = two_states(1 << 17)
    plan = CODEC.plan_delta(sample(after.tobytes(), 4), sample(before.tobytes(), 4), 4, 8, False)
    assert plan is not None
    assert plan.settings[0] is Setting.RAW
    assert len(encode(before.tobytes(), before.tobytes(), plan)) < 64


def test_weights_after_some_steps_pack_and_sorting_packs_them_better() -> None:
    before, after = two_states(1 << 18)
    sizes = {}
    for name, width, raw, base in (
        ("bf16", 2, bf16(after), bf16(before)),
        ("fp32", 4, after.tobytes(), before.tobytes()),
    ):
        for sort in (False, True):
            plan = CODEC.plan_delta(sample(raw, width), sample(base, width), width, 8, sort)
            assert plan is not None
            assert (plan.classes.count > 1) == sort
            stored = encode(raw, base, plan)
            assert decode(stored, base, width) == raw
            sizes[name, sort] = len(stored) / len(raw)
    assert sizes["bf16", False] < 0.265
    assert sizes["bf16", True] < 0.9 * sizes["bf16", False]
    assert sizes["fp32", False] < 0.63
    assert sizes["fp32", True] < 0.98 * sizes["fp32", False]


def test_changes_that_do_not_depend_on_the_base_are_not_sorted() -> None:
    old = np.frombuffer(bf16(two_states(1 << 17)[0]), "<u2")
    new = old + np.random.default_rng(9).integers(0, 40, 1 << 17).astype("<u2")
    plan = CODEC.plan_delta(sample(new.tobytes(), 2), sample(old.tobytes(), 2), 2, 8, True)
    assert plan is not None
    assert plan.classes == KEPT


def test_the_exponent_bits_of_a_type_are_those_of_its_numbers() -> None:
    bits = {name: dtype.exponent_bits for name, dtype in DTYPES.items() if dtype.exponent_bits}
    assert bits.pop("bfloat16") == 8
    assert bits == {
        **dict.fromkeys(("float16", "complex32", "float8_e5m2", "float8_e5m2fnuz"), 5),
        **dict.fromkeys(("float32", "complex64"), 8),
        **dict.fromkeys(("float64", "complex128"), 11),
        **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz"), 4),
    }


@pytest.mark.parametrize("width", WIDTHS)
def test_a_base_that_has_nothing_in_common_is_no_base(width: int) -> None:
    raw, base = (np.random.default_rng(seed).bytes(1 << 18) for seed in (1, 2))
    assert CODEC.plan_delta(sample(raw, width), sample(base, width), width, EXPONENT[width], True) is None


@pytest.mark.parametrize("raw", [b"", b"\x00\x80", b"\x00" * 8])
def test_blocks_too_small_to_gain_are_left_alone(raw: bytes) -> None:
    plan = DeltaPlan(2, (0,), (Setting.LEVEL1,))
    assert CODEC.encode_delta(raw, raw, plan) is None


def test_an_odd_number_of_elements_is_not_sorted() -> None:
    raw = bytes(2002)
    plan = DeltaPlan(2, (0,), (Setting.TUNED,) * 8, Classes(8, 8, 0))
    assert CODEC.encode_delta(raw, raw, plan) is None
    assert CODEC.encode_delta(raw[2:], raw[2:], plan) is not None


@pytest.mark.parametrize(("raw", "base"), [(bytes(8), bytes(16)), (bytes(7), bytes(7))])
def test_blocks_that_do_not_match_are_refused(raw: bytes, base: bytes) -> None:
    with pytest.raises(Invalid):
        CODEC.encode_delta(raw, base, DeltaPlan(2, (0,), (Setting.RAW,)))


def test_elements_of_three_bytes_have_no_plan() -> None:
    with pytest.raises(Invalid, match="3 bytes"):
        CODEC.plan_delta(bytes(12), bytes(12), 3, 0, False)


# Pinned bytes. Frames are decoded only: what an encoder makes of its input is zstd's affair.


def test_pinned_the_difference_is_zigzag() -> None:
    """-1, +1, -2 and +32767 last places, from 0 to FFFF, and +128: z = 1, 2, 3, FFFE, 1, 100."""
    old = np.array([0x3F80, 0x3F80, 0x3F80, 0x0000, 0x0000, 0x3F80] + [7] * 26, "<u2").tobytes()
    new = np.array([0x3F7F, 0x3F81, 0x3F7E, 0x7FFF, 0xFFFF, 0x4000] + [7] * 26, "<u2").tobytes()
    low = bytes.fromhex("010203fe0100") + bytes(26)
    stored = form(0b11, NO_ORDER, low, few(b"\x03\x01", b"\xff\x01"), sparse=(1,))
    assert stored[:12].hex(" ", -4) == "03010000 20000000 0c000080"
    assert decode(stored, old, 2) == new
    assert encode(new, old, DeltaPlan(2, (0, 1), (Setting.RAW, Setting.TUNED))) == stored


@pytest.mark.parametrize("width", [4, 8])
def test_pinned_a_wide_difference(width: int) -> None:
    """-1 is z = 1; +123456F8 is z = 2468ADF0."""
    old = np.full(64, 0x3F800000, f"<u{width}")
    new = old + np.array([-1, 0x123456F8] + [0] * 62).astype(old.dtype)
    parts = few_of(b"\x01" + bytes(width - 1) + b"\xf0\xad\x68\x24" + bytes(63 * width - 4))
    whole = form(1, NO_ORDER, parts, sparse=(0,))
    assert decode(whole, old.tobytes(), width) == new.tobytes()
    assert encode(new.tobytes(), old.tobytes(), DeltaPlan(width, (0,), (Setting.RAW,))) == whole


def test_pinned_the_order_of_pairs_and_classes() -> None:
    """Elements of class 1 are those of base 10. Pairs 0 to 4 have classes 10 00 11 01 00, then 30 have 00:
    sorted 1 4 5 6 ... 3 0 2. Class 0: firsts of 1 4 5 6 ... 3, seconds of 1 4 5 6 ... 0; class 1: firsts of
    0 2, seconds of 3 2.
    """
    classes = [1, 0, 0, 0, 1, 1, 0, 1, 0, 0] + [0] * 60
    base = bytes(10 if one else 1 for one in classes)
    raw = bytes(old + (5 + i if i < 10 else 0) for i, old in enumerate(base))
    zeros = bytes(30)
    zero = bytes([14, 26]) + zeros + bytes([22]) + bytes([16, 28]) + zeros + bytes([12])
    one = bytes([10, 18, 24, 20])
    stored = form(1, (2, 0, 19), few_of(zero), one, sparse=(0,))
    assert stored[:12].hex(" ", -4) == "01020013 14000080 04000000"
    assert decode(stored, base, 1) == raw
    assert encode(raw, base, DeltaPlan(1, (0,), (Setting.TUNED, Setting.RAW), Classes(2, 0, 19))) == stored


def few_of(raw: bytes) -> bytes:
    """The sparse form of `raw`, of raw parts."""
    places = np.flatnonzero(np.frombuffer(raw, np.uint8))
    gaps = np.diff(places, prepend=-1) - 1
    return few(bytes(gaps.tolist()), bytes(raw[place] for place in places))


def test_pinned_zero_raw_and_framed_segments() -> None:
    base = np.arange(100, dtype="<u4").tobytes()
    stored = form(0b1101, NO_ORDER, np.arange(0, 200, 2, dtype="<u2").tobytes(), rle(2, 100), b"")
    raw = (np.arange(0, 200, 2, dtype="<u4") + 0x10000).tobytes()
    assert decode(stored, base, 4) == raw
    encoded = encode(raw, base, DeltaPlan(4, (0, 2, 3), (Setting.RAW, Setting.TUNED, Setting.TUNED)))
    assert (encoded[:8], encoded[12:216]) == (stored[:8], stored[12:216])
    assert decode(encoded, base, 4) == raw


# One object, many blocks.


def test_planes_are_what_they_are_without_deltas() -> None:
    raw = np.arange(1 << 14, dtype="<u4").tobytes()
    plan = CODEC.plan(sample(raw, 4), 4, False)
    stored, alone = CODEC.encode(raw, plan), Planes().encode(raw, plan)
    assert stored is not None
    assert stored == alone
    out = bytearray(len(raw))
    CODEC.decode(bytes(stored), 4, memoryview(out))
    assert out == raw


def test_a_small_block_after_a_large_one_is_whole() -> None:
    for count in (70_000, 1000, 70_002):
        before, after = (state.tobytes() for state in two_states(count))
        for sort in (False, True):
            plan = CODEC.plan_delta(sample(after, 4), sample(before, 4), 4, 8, sort)
            assert plan is not None
            assert decode(encode(after, before, plan), before, 4) == after


def test_every_thread_has_its_own() -> None:
    before, after = two_states(1 << 16)
    raw, base = after.tobytes(), before.tobytes()
    plan = CODEC.plan_delta(sample(raw, 4), sample(base, 4), 4, 8, True)
    assert plan is not None

    def there_and_back(_: int) -> bool:
        own, out = Delta(), bytearray(len(raw))
        for _ in range(3):
            stored = own.encode_delta(raw, base, plan)
            assert stored is not None
            own.decode_delta(bytes(stored), base, 4, memoryview(out))
        return out == raw

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(there_and_back, range(8)))
