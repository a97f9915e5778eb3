"""Inputs for parsers, made of valid ones: cut, flipped, spliced, and changed along the structure that they have."""

from __future__ import annotations

import functools
import json
import pickletools
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import Any

import msgspec

Mutator = Callable[[Random, bytes, bytes], bytes]
"""Another input from this one and a donor, of which parts may be taken. Deterministic."""
Opened = tuple[bytes, Callable[[bytes], bytes]]
"""A part of an input, and the whole with another part in its place."""

MAX_SIZE = 64 << 10
"""Bytes of the longest input."""
_POOL, _LARGE = 200, 8 << 10
"""Inputs that others are made of, at most: the examples, and what was accepted, but for those of so many bytes."""
_CHANGES = 4
_SIZES = (1, 2, 4, 8)
_EDGES = (0, 1, 2, 7, 8, 15, 16, 31, 32, 33, 63, 64, 127, 128, 255, 256, 1000, 4095, 4096, 65535, 65536, 1 << 20)
_BOUNDS = tuple((1 << power) + more for power in (31, 32, 53, 62, 63, 64) for more in (-1, 0))
_NOT_DECODED = (msgspec.MsgspecError, struct.error, ValueError, TypeError, OverflowError, RecursionError, LookupError)


class Inputs:
    """Endless inputs from some examples. What is told to have been accepted is built upon."""

    def __init__(self, examples: Sequence[bytes], donors: Sequence[bytes], mutators: Sequence[Mutator], seed: str):
        self._random = Random(seed)
        self._pool = list(examples)
        self._kept = len(self._pool)
        self._donors = donors
        self._mutators = mutators

    def __iter__(self) -> Iterator[bytes]:
        random = self._random
        while True:
            data = random.choice(self._pool)
            for _ in range(random.randint(1, _CHANGES)):
                donor = random.choice(self._donors if random.random() < 0.2 else self._pool)
                mutator = random.choice(self._mutators)
                data = mutator(random, data, donor)[:MAX_SIZE]
            yield data

    def accept(self, data: bytes) -> None:
        if len(data) > _LARGE:
            return
        if len(self._pool) < _POOL:
            self._pool.append(data)
        else:
            self._pool[self._random.randrange(self._kept, _POOL)] = data


def half_sealed(seal: Callable[[bytes], bytes], mutators: Sequence[Mutator]) -> list[Mutator]:
    """Mutators whose results have, half of the time, the checksum that belongs to them."""

    def sealed(mutator: Mutator) -> Mutator:
        def mutate(random: Random, data: bytes, donor: bytes) -> bytes:
            made = mutator(random, data, donor)[:MAX_SIZE]
            return seal(made) if random.random() < 0.5 else made

        return mutate

    return [sealed(mutator) for mutator in mutators]


# -- bytes ----------------------------------------------------------------------------------------------------------


def octets(random: Random, data: bytes, donor: bytes) -> bytes:
    """One change to bytes of any form."""
    return random.choice(_OCTETS)(random, data, donor)


def _span(random: Random, data: bytes, longest: int = 64) -> tuple[int, int]:
    start = random.randint(0, len(data))
    longest = len(data) if random.random() < 0.1 else longest
    return start, min(len(data), start + random.randint(0, longest))


def _flip(random: Random, data: bytes, donor: bytes) -> bytes:
    return _put(
        data, at := random.randrange(len(data) or 1), bytes(b ^ 1 << random.randrange(8) for b in data[at:][:1])
    )


def _byte(random: Random, data: bytes, donor: bytes) -> bytes:
    return _put(data, random.randrange(len(data) or 1), random.randbytes(1))


def _put(data: bytes, at: int, part: bytes) -> bytes:
    return data[:at] + part + data[at + len(part) :]


def _number(random: Random, data: bytes, donor: bytes) -> bytes:
    """A little-endian number somewhere becomes an extreme one, a neighbour, or a length of the input."""
    size = random.choice(_SIZES)
    at = random.randrange(max(1, len(data) - size + 1))
    if random.random() < 0.3:
        at = max(0, len(data) - size - random.randrange(100))
    now = int.from_bytes(data[at : at + size], "little")
    near = (now + random.randint(-2, 2), len(data) - random.randint(0, 128), now * 2, ~now)
    value = random.choice((*_EDGES, *_BOUNDS, *near, *near, *near))
    return _put(data, at, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))


def _cut(random: Random, data: bytes, donor: bytes) -> bytes:
    return data[: random.randint(0, len(data))] if random.random() < 0.5 else data[random.randint(0, len(data)) :]


def _drop(random: Random, data: bytes, donor: bytes) -> bytes:
    start, stop = _span(random, data)
    return data[:start] + data[stop:]


def _repeat(random: Random, data: bytes, donor: bytes) -> bytes:
    start, stop = _span(random, data, 8 if random.random() < 0.5 else 256)
    times = random.choice((1, 1, 2, 3, 10, 30, 100, 1000))
    return data[:stop] + data[start:stop] * min(times, MAX_SIZE // (stop - start + 1)) + data[stop:]


def _insert(random: Random, data: bytes, donor: bytes) -> bytes:
    at = random.randint(0, len(data))
    return data[:at] + random.randbytes(random.randint(1, 8)) + data[at:]


def _transplant(random: Random, data: bytes, donor: bytes) -> bytes:
    start, stop = _span(random, donor)
    at = random.randint(0, len(data))
    end = at + (stop - start if random.random() < 0.5 else 0)
    return data[:at] + donor[start:stop] + data[end:]


def _cross(random: Random, data: bytes, donor: bytes) -> bytes:
    return data[: random.randint(0, len(data))] + donor[random.randint(0, len(donor)) :]


def _swap(random: Random, data: bytes, donor: bytes) -> bytes:
    a, b, c, d = sorted(random.randint(0, len(data)) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


_OCTETS: tuple[Mutator, ...] = (
    _flip, _flip, _byte, _byte, _number, _number, _number, _cut, _drop, _repeat, _insert, _transplant, _cross, _swap,
)  # fmt: skip


def tokens(*words: str | bytes) -> Mutator:
    """A mutator that puts one of these words somewhere, over what stands there or between."""
    known = [word.encode("utf-8", "surrogateescape") if isinstance(word, str) else word for word in words]

    def mutate(random: Random, data: bytes, donor: bytes) -> bytes:
        start, stop = _span(random, data, 4)
        word = random.choice(known) * random.choice((1, 1, 1, 2, 40))
        return data[:start] + word + data[start if random.random() < 0.5 else stop :]

    return mutate


# -- values ---------------------------------------------------------------------------------------------------------

_Place = tuple[Any, Any]
"""A list and an index in it, or a dict and a key."""


def _places(value: Any) -> list[_Place]:
    found: list[_Place] = []
    todo = [value]
    while todo:
        held = todo.pop()
        if isinstance(held, list | dict):
            keys = range(len(held)) if isinstance(held, list) else list(held)
            found += [(held, key) for key in keys]
            todo += [held[key] for key in keys]
    return found


def _changed(random: Random, value: Any, donor: Any) -> Any:
    """`value`, which is changed in place, with a part of it replaced, moved, doubled or taken out."""
    box = [value]
    places = _places(box)
    held, key = random.choice(places)
    what = random.randrange(7)
    if what == 0:
        held[key] = _extreme(random)
    elif what == 1:
        others = _places([donor])
        there, name = random.choice(others)
        held[key] = _copy(there[name])
    elif what == 2 and isinstance(held, list) and held is not box:
        del held[key]
    elif what == 3 and isinstance(held, list) and held is not box:
        times = random.choice((1, 1, 2, 300))
        held[key:key] = [_copy(held[key]) for _ in range(times if len(places) < 500 else 1)]
    elif what == 4:
        there, name = random.choice(places)
        one, other = _copy(held[key]), _copy(there[name])
        held[key] = other
        there[name] = one
    elif what == 5:
        inner = held[key]
        for _ in range(random.choice((1, 1, 2, 200))):
            inner = [inner] if random.random() < 0.5 else [random.randrange(15), [inner]]
        held[key] = inner
    else:
        held[key] = _tweaked(random, held[key])
    return box[0]


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value


def _tweaked(random: Random, value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return random.choice((True, False, None, 0, 1))
    if isinstance(value, int):
        return value + random.choice((-1, 1, -2, 2, 64, -64, value, -2 * value))
    if isinstance(value, float):
        return random.choice((-value, value * 2, int(value) if abs(value) < 1e18 else 0.0))
    if isinstance(value, bytes):
        return octets(random, value, value)
    if isinstance(value, str):
        return octets(random, value.encode("utf-8", "replace"), b"/..~^").decode("utf-8", "replace")
    if isinstance(value, list):
        return [*value[1:], *value[:1]] if random.random() < 0.5 else value[::-1]
    return dict(reversed(list(value.items()))) if isinstance(value, dict) else [value]


def _extreme(random: Random) -> Any:
    numbers = (*_EDGES, *(sign * bound for bound in _BOUNDS for sign in (1, -1)))
    floats = (float("nan"), float("inf"), -0.0, 1.5, 5e-324, 1e308)
    texts = ("", "a", "/", "..", "é" * 20, "\0", "\x1b[31m", "x" * 300, "main", "float32", "\u2028")
    blobs = (b"", b"\0", bytes(16), bytes(31), bytes(32), b"\xff" * 32, bytes(64), bytes(8), b"\x7f" * 9)
    containers: tuple[Any, ...] = ([], [[]], {}, [0] * 7, [0, bytes(32)], [1, []], [2, []])
    kind = random.choice((numbers, numbers, floats, texts, blobs, containers, (True, False, None)))
    return _copy(random.choice(kind))


def msgpack_value(random: Random, data: bytes, donor: bytes) -> bytes:
    """One change to a MessagePack value; one to its bytes where it is none."""
    try:
        value = msgspec.msgpack.decode(data)
    except _NOT_DECODED:
        return octets(random, data, donor)
    try:
        other = msgspec.msgpack.decode(donor)
    except _NOT_DECODED:
        other = value
    try:
        return msgspec.msgpack.encode(_changed(random, value, other))
    except _NOT_DECODED:
        return octets(random, data, donor)


def json_value(random: Random, data: bytes, donor: bytes) -> bytes:
    """One change to a JSON value, written as Python writes it; one to its bytes where it is none."""
    try:
        value = json.loads(data)
        try:
            other = json.loads(donor)
        except _NOT_DECODED:
            other = value
        return json.dumps(_changed(random, value, other), default=repr).encode()
    except _NOT_DECODED:
        return octets(random, data, donor)


def pickle_instructions(random: Random, data: bytes, donor: bytes) -> bytes:
    """Instructions of a pickle taken out, doubled, swapped, changed or brought in from another."""
    spans = _instructions(data)
    others = _instructions(donor)
    if not spans:
        return octets(random, data, donor)
    parts = [data[start:stop] for start, stop in spans]
    at, what = random.randrange(len(parts)), random.randrange(6)
    if what == 0:
        del parts[at]
    elif what == 1:
        length = random.randint(1, 6)
        parts[at:at] = parts[at : at + length] * random.choice((1, 1, 2, 500))
    elif what == 2:
        other = random.randrange(len(parts))
        parts[at], parts[other] = parts[other], parts[at]
    elif what == 3 and others:
        start = random.randrange(len(others))
        parts[at:at] = [donor[a:b] for a, b in others[start : start + random.randint(1, 6)]]
    elif what == 4:
        parts[at] = parts[at][:1] + octets(random, parts[at][1:], donor)
    else:
        parts[at:at] = [random.choice(_INSTRUCTIONS)]
    return b"".join(parts)


_INSTRUCTIONS = (
    b"]", b"}", b")", b"(", b"N", b"\x88", b"a", b"e", b"s", b"u", b"t", b"\x85", b"\x86", b"R", b"b", b"Q", b"\x81",
    b"\x93", b"\x94", b"h\0", b"h\1", b"q\0", b"q\1", b"K\0", b"J\xff\xff\xff\xff", b"\x8a\x09" + bytes(8) + b"\x7f",
    b"G\x7f\xf8" + bytes(6), b"X\1\0\0\0a", b"j\xff\xff\xff\xff", b"r\xff\xff\xff\x7f", b"\x8a\xff", b".", b"0",
)  # fmt: skip


@functools.lru_cache(1000)  # pickletools is slow, and most inputs are made of a few
def _instructions(data: bytes) -> list[tuple[int, int]]:
    starts: list[int] = []
    try:
        for _, _, at in pickletools.genops(data):
            starts.append(at or 0)
    except (*_NOT_DECODED, Warning):
        pass  # what came before the first that is none is enough
    return list(pairwise([*starts, len(data)]))


def inside(opened: Callable[[bytes], Opened], mutator: Mutator) -> Mutator:
    """A mutator of a part of the input; of all of it where there is no such part."""

    def mutate(random: Random, data: bytes, donor: bytes) -> bytes:
        try:
            part, close = opened(data)
        except _NOT_DECODED:
            return octets(random, data, donor)
        try:
            other = opened(donor)[0]
        except _NOT_DECODED:
            other = donor
        return close(mutator(random, part, other))

    return mutate


def between(start: int, end: int) -> Callable[[bytes], Opened]:
    """What stands between the first `start` bytes and the last `end` ones."""

    def opened(data: bytes) -> Opened:
        stop = max(start, len(data) - end)
        return data[start:stop], lambda part: data[:start] + part + data[stop:]

    return opened
