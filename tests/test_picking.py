"""Picking rows: compared with a naive reference on random packs with chains, duplicate rows and lost bases."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.block import Codec, Kind, ObjectId, object_id
from cas.pack import _DTYPE, ROW, PackId, Row, Table
from cas.picking import NAME, Names, Picked, Rows, distinct, is_in, pick

KINDS = (Kind.BLOCK, Kind.TREE)
Packs = list[list[Row]]


def name(number: int) -> ObjectId:
    """Few ids, some with zeros at their ends, which numpy takes for padding."""
    data = bytearray(object_id(Kind.BLOCK, bytes([number])))
    if number % 3 == 0:
        data[20 + number :] = bytes(12 - number)
    if number % 4 == 1:
        data[:number] = bytes(number)
    return ObjectId(bytes(data))


def names_of(data: bytes) -> Names:
    return distinct(np.frombuffer(data, NAME) if data else np.empty(0, NAME))


NAMES = [name(number) for number in range(9)]


@st.composite
def stored(draw: st.DrawFn) -> Packs:
    """Packs whose rows may have bases that lie in other packs, in longer chains, or nowhere."""
    packs: Packs = []
    for _ in range(draw(st.integers(0, 5))):
        rows = []
        for _ in range(draw(st.integers(0, 6))):
            chain = draw(st.sampled_from([0, 0, 0, 1, 1, 2, 3, 8]))
            base = draw(st.sampled_from(NAMES)) if chain else ObjectId(bytes(32))
            size = draw(st.integers(1, 50))
            kind = draw(st.sampled_from(KINDS))
            rows.append(Row(draw(st.sampled_from(NAMES)), kind, Codec.RAW, 0, chain, 0, size, size, base))
        packs.append(rows)
    return packs


LIVE = st.fixed_dictionaries({kind: st.sets(st.sampled_from(NAMES)) for kind in KINDS})


def tables(packs: Packs) -> list[Table]:
    data = [b"".join(ROW.pack(*row) for row in rows) for rows in packs]
    return [Table(PackId(bytes([n]) * 16), 1, np.frombuffer(d, _DTYPE)) for n, d in enumerate(data)]


def run(packs: Packs, live: Mapping[Kind, set[ObjectId]]) -> tuple[list[tuple[int, Row]], dict[Kind, set[bytes]]]:
    """What is picked, as (pack, row), and what is lost."""
    sizes = [sum(row.stored for row in rows) + 100 for rows in packs]
    picked: Picked = pick(Rows.of(tables(packs)), {k: names_of(b"".join(v)) for k, v in live.items()}, sizes)
    flat = [(number, row) for number, rows in enumerate(packs) for row in rows]
    lost = {kind: set(held.view("V32").tolist()) for kind, held in picked.lost.items()}
    return [flat[at] for at in picked.rows.tolist()], lost


def decodable(packs: Packs) -> dict[tuple[Kind, bytes], int]:
    """By object the shortest chain of a row that decodes: through rows of its bases with shorter and shorter chains."""
    found: dict[tuple[Kind, bytes], int] = {}
    for chain in range(9):
        now = {}
        for rows in packs:
            for row in rows:
                key = (Kind(row.kind), row.id)
                if row.chain == chain and key not in found and (chain == 0 or (Kind(row.kind), row.base) in found):
                    now[key] = chain
        found.update(now)
    return found


@settings(max_examples=200, deadline=None)
@given(packs=stored(), live=LIVE)
def test_every_live_object_that_decodes_is_picked_with_all_that_it_decodes_from(
    packs: Packs, live: dict[Kind, set[ObjectId]]
) -> None:
    picked, lost = run(packs, live)
    good = decodable(packs)
    for kind, names in live.items():
        assert lost[kind] == {wanted for wanted in names if (kind, wanted) not in good}
    held = {(Kind(row.kind), row.id): row for _, row in picked}
    assert len(held) == len(picked), "an object was picked twice"
    for kind, names in live.items():
        assert names - lost[kind] == {wanted for wanted in names if (kind, wanted) in held}
    for (kind, _), row in held.items():
        assert row.chain == good[kind, row.id], "not the shortest chain"
        if row.chain:
            assert held[kind, ObjectId(row.base)].chain < row.chain, "its base was not picked, or is no way down"
    wanted = {(kind, each) for kind, names in live.items() for each in names if each not in lost[kind]}
    while True:
        more = {(kind, ObjectId(held[kind, each].base)) for kind, each in wanted if held[kind, each].chain} - wanted
        if not more:
            break
        wanted |= more
    assert set(held) == wanted, "something was picked that nothing needs"


@settings(max_examples=100, deadline=None)
@given(packs=stored(), live=LIVE, without=st.integers(0, 4))
def test_without_a_pack_nothing_is_picked_from_it(packs: Packs, live: dict[Kind, set[ObjectId]], without: int) -> None:
    """As when it is condemned: rows that lead through it are no rows."""
    rest = [[] if number == without else rows for number, rows in enumerate(packs)]
    picked, lost = run(rest, live)
    assert all(number != without for number, _ in picked)
    good = decodable(rest)
    assert {kind: {n for n in names if (kind, n) not in good} for kind, names in live.items()} == lost


def row(number: int, stored: int = 10, chain: int = 0, base: int | None = None, kind: Kind = Kind.BLOCK) -> Row:
    return Row(name(number), kind, Codec.RAW, 0, chain, 0, stored, stored, bytes(32) if base is None else name(base))


def test_of_two_rows_the_one_in_the_fuller_pack_is_taken() -> None:
    """So that the copy out of a mostly dead pack counts, and not the original that would keep it."""
    packs = [[row(1), *(row(n, 100) for n in range(4, 9))], [row(1), row(2)]]
    picked, _ = run(packs, {Kind.BLOCK: {name(1), name(2)}})
    assert sorted((number, held.id) for number, held in picked) == sorted([(1, name(1)), (1, name(2))])
    assert [number for number, _ in run(packs[::-1], {Kind.BLOCK: {name(1), name(2)}})[0]] == [0, 0]


def test_a_longer_chain_in_a_fuller_pack_is_not_taken() -> None:
    packs = [[row(1), row(3, 1000)], [row(1, chain=1, base=2), row(2), row(4)]]
    picked, _ = run(packs, {Kind.BLOCK: {name(1), name(4)}})
    assert [(number, held.chain) for number, held in picked if held.id == name(1)] == [(0, 0)]


def test_a_chain_whose_base_is_condemned_is_lost() -> None:
    packs = [[row(1, chain=2, base=2)], [row(2, chain=1, base=3)]]
    picked, lost = run(packs, {Kind.BLOCK: {name(1)}})
    assert (picked, lost) == ([], {Kind.BLOCK: {name(1)}})
    picked, lost = run([*packs, [row(3)]], {Kind.BLOCK: {name(1)}})
    assert sorted(number for number, _ in picked) == [0, 1, 2]
    assert lost == {Kind.BLOCK: set()}


def test_rows_that_are_each_others_base_do_not_decode() -> None:
    packs = [[row(1, chain=1, base=2), row(2, chain=1, base=1), row(3, chain=1, base=3)]]
    assert run(packs, {Kind.BLOCK: {name(1), name(2), name(3)}}) == ([], {Kind.BLOCK: {name(1), name(2), name(3)}})


def test_an_object_of_another_kind_with_the_same_name_is_none() -> None:
    packs = [[row(1, kind=Kind.TREE)]]
    assert run(packs, {Kind.BLOCK: {name(1)}}) == ([], {Kind.BLOCK: {name(1)}})


def test_no_packs_and_nothing_live() -> None:
    assert run([], {Kind.BLOCK: set()}) == ([], {Kind.BLOCK: set()})
    assert run([], {Kind.BLOCK: {name(1)}}) == ([], {Kind.BLOCK: {name(1)}})
    assert run([[row(1)]], {Kind.BLOCK: set(), Kind.TREE: set()}) == ([], {Kind.BLOCK: set(), Kind.TREE: set()})


@settings(max_examples=200, deadline=None)
@given(some=st.lists(st.sampled_from(NAMES)), names=st.sets(st.sampled_from(NAMES)))
def test_is_in_is_membership(some: list[ObjectId], names: set[ObjectId]) -> None:
    array = np.frombuffer(b"".join(some), NAME) if some else np.empty(0, NAME)
    assert is_in(array, names_of(b"".join(names))).tolist() == [each in names for each in some]


@pytest.mark.parametrize("zeros", range(33))
def test_names_with_zeros_at_the_end_stay_apart(zeros: int) -> None:
    names = {bytes(32 - zeros - 1) + b"\1" + bytes(zeros) if zeros < 32 else bytes(32), bytes(32), b"\1" * 32}
    array = names_of(b"".join(names))
    assert set(array.view("V32").tolist()) == names
    assert is_in(array, array).all()
