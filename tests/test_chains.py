"""Chains of bases: compared with a naive reference on random rows, and read through on real packs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.bases import Bases, MissingBase
from cas.block import MAX_CHAIN, NO_BASE, PLAIN, Codec, Coding, Kind, ObjectId, block_id, short
from cas.catalog import Catalog
from cas.chains import chains_of
from cas.codecs import Changes, Encoder
from cas.dtypes import DTYPES
from cas.errors import Corrupt
from cas.local import LocalBackend
from cas.pack import Location, PackId, Row, name_of
from cas.packing import Packs

NAMES = [block_id(bytes([number])) for number in range(7)]


def row(name: ObjectId, chain: int, base: bytes) -> Row:
    codec = Codec.DELTA if chain else Codec.RAW
    return Row(name, Kind.BLOCK, codec, 4 if chain else 0, chain, 64, 8, 8, base)


@st.composite
def rows(draw: st.DrawFn) -> list[Location]:
    """Rows whose bases may be anything: in longer chains, nowhere, themselves, or in circles."""
    found = []
    for number in range(draw(st.integers(0, 14))):
        chain = draw(st.sampled_from([0, 0, 1, 1, 2, 3, 4, 8]))
        base = draw(st.sampled_from(NAMES)) if chain else NO_BASE
        found.append(Location(PackId(bytes([number]) * 16), row(draw(st.sampled_from(NAMES)), chain, base)))
    return found


class Finder:
    """Finds among some rows, and counts how often it is asked."""

    def __init__(self, places: list[Location]) -> None:
        self.places = places
        self.asked = 0

    def __call__(self, names: Iterable[ObjectId]) -> dict[ObjectId, list[Location]]:
        self.asked += 1
        found: dict[ObjectId, list[Location]] = {}
        wanted = set(names)
        for place in self.places:
            if place.row.id in wanted:
                found.setdefault(place.row.id, []).append(place)
        return found


def shortest(places: list[Location]) -> dict[bytes, int]:
    """By object the smallest chain number of a row that decodes."""
    found: dict[bytes, int] = {}
    for chain in range(MAX_CHAIN + 1):
        fitting = [place.row for place in places if place.row.chain == chain]
        fresh = {held.id for held in fitting if not chain or held.base in found}
        found = dict.fromkeys(fresh, chain) | found
    return found


@settings(max_examples=300, deadline=None)
@given(places=rows(), wanted=st.sets(st.sampled_from(NAMES)))
def test_what_decodes_has_the_chain_with_the_smallest_numbers(places: list[Location], wanted: set[ObjectId]) -> None:
    find = Finder(places)
    found = chains_of(wanted, find)
    good = shortest(places)
    assert found.keys() == wanted & good.keys()
    for name, chain in found.items():
        assert chain[0].row.id == name
        assert chain[0].row.chain == good[name]
        assert chain[-1].row.chain == 0
        for above, below in pairwise(chain):
            assert above.row.base == below.row.id
            assert above.row.chain > below.row.chain
        assert set(chain) <= set(places)
    assert find.asked <= len(NAMES)


def test_a_circle_is_no_chain() -> None:
    one, other, third = NAMES[:3]
    around = [row(one, 1, other), row(other, 1, one), row(third, 1, third)]
    places = [Location(PackId(bytes(16)), held) for held in around]
    assert chains_of(NAMES, Finder(places)) == {}


# -- reading --------------------------------------------------------------------------------------------------------

SIZE = 4096
RNG = np.random.default_rng(0)
FIRST = RNG.standard_normal(SIZE // 4).astype(np.float32)
BLOCKS = [(FIRST * np.float32(1 + number / 1000)).tobytes() for number in range(MAX_CHAIN + 2)]


class Held:
    """A backend, its catalog, and what reads bases there."""

    def __init__(self, backend: LocalBackend, folder: Path) -> None:
        self.backend = backend
        self.catalog = Catalog(backend, folder)
        self.bases = Bases(backend, self.catalog, Encoder())

    def add(self, number: int, base: int | None = None, chain: int = 1, data: bytes | None = None) -> Location:
        """One pack with one row: a block, perhaps as a change of another, or `data` that is said to be it."""
        raw = BLOCKS[number] if data is None else data
        coding, stored = PLAIN, raw
        if base is not None:
            made = Encoder().encode_delta(np.frombuffer(raw, np.uint8), BLOCKS[base], Changes(DTYPES["float32"]))
            assert made is not None
            coding, stored = Coding(Codec.DELTA, 4, chain, block_id(BLOCKS[base])), bytes(made)
        packs = Packs(self.backend, self.catalog)
        packs.append(block_id(BLOCKS[number]), Kind.BLOCK, coding, len(raw), stored)
        packs.finish()
        (found,) = (
            place for place in self.catalog.index.find(block_id(BLOCKS[number])) if place.pack == packs.published[0]
        )
        return found

    def base_of(self, place: Location) -> bytes:
        return bytes(self.bases.of(place.row))


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    (tmp_path / "s").mkdir()
    found = Held(LocalBackend(tmp_path / "s"), tmp_path / "s" / "index")
    yield found
    found.catalog.close()


def test_a_row_without_a_base_has_none(held: Held) -> None:
    assert held.base_of(held.add(0)) == NO_BASE


def test_a_chain_of_eight_is_read(held: Held) -> None:
    held.add(0)
    top = [held.add(number, number - 1, number) for number in range(1, MAX_CHAIN + 1)][-1]
    assert held.base_of(top) == BLOCKS[MAX_CHAIN - 1]
    assert bytes(held.bases.block(block_id(BLOCKS[MAX_CHAIN]), SIZE)) == BLOCKS[MAX_CHAIN]


def test_of_several_rows_of_a_base_a_good_one_is_read(held: Held) -> None:
    held.add(0, data=BLOCKS[1])  # bad, and the first to be tried
    held.add(2)
    held.add(0, 2, 1)
    assert held.base_of(held.add(3, 0, 2)) == BLOCKS[0]


def test_numbers_that_rise_on_the_way_are_not_followed(held: Held) -> None:
    held.add(0)
    held.add(1, 0, 5)
    with pytest.raises(MissingBase, match=f"base block {short(block_id(BLOCKS[1]))} has as long a chain"):
        held.base_of(held.add(2, 1, 5))
    assert held.base_of(held.add(2, 1, 6)) == BLOCKS[1]


def test_a_circle_ends(held: Held) -> None:
    """Both have a row of every number: whoever followed bases without looking at these would never come back."""
    tops = [(held.add(0, 1, chain), held.add(1, 0, chain)) for chain in range(1, MAX_CHAIN + 1)]
    for place in tops[-1]:
        with pytest.raises(MissingBase, match="base block"):
            held.base_of(place)


def test_a_base_in_no_pack_is_named(held: Held) -> None:
    with pytest.raises(MissingBase, match=f"base block {short(block_id(BLOCKS[1]))} is in no pack"):
        held.base_of(held.add(0, 1))


def test_a_base_whose_pack_is_gone_is_named(held: Held) -> None:
    base = held.add(0)
    top = held.add(1, 0)
    assert held.base_of(top) == BLOCKS[0]
    held.backend.delete(name_of(base.pack))
    with pytest.raises(MissingBase, match=f"base block {short(block_id(BLOCKS[0]))} is in no pack"):
        held.base_of(top)


def test_a_base_that_was_moved_is_found_where_it_is_now(held: Held, tmp_path: Path) -> None:
    base = held.add(0)
    top = held.add(1, 0)
    mover = Held(LocalBackend(tmp_path / "s"), tmp_path / "another index")
    mover.add(0)
    mover.catalog.close()
    held.backend.delete(name_of(base.pack))
    assert held.base_of(top) == BLOCKS[0]


def test_a_base_of_another_length_is_refused(held: Held) -> None:
    held.add(0, data=BLOCKS[0][:-4])
    with pytest.raises(Corrupt, match="another size"):
        held.base_of(held.add(1, 0))


def test_a_base_that_is_not_what_it_is_called_is_refused(held: Held) -> None:
    held.add(0, data=BLOCKS[1])
    with pytest.raises(Corrupt, match=f"base block {short(block_id(BLOCKS[0]))} cannot be read.* its name"):
        held.base_of(held.add(1, 0))


@pytest.mark.parametrize("chain", [MAX_CHAIN + 1, 255])
def test_a_longer_chain_than_any_is_refused(held: Held, chain: int) -> None:
    base = held.add(0)
    with pytest.raises(Corrupt, match=f"a chain of {chain}"):
        held.bases.of(row(block_id(BLOCKS[1]), chain, base.row.id))
