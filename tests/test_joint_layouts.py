"""Commits and loads by many ranks: every layout is what one process would write, and loads in every other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from joint_jobs import LAYOUTS, blank, described, differences, full, numbers, parts
from ranks import pause, run, start
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import cas
from cas.errors import CasError
from cas.nodes import KEYED_TAGS, Node, Tag
from cas.objects import entries_of

pytestmark = pytest.mark.xdist_group("joint layouts")

ALONE = "alone"
Held = dict[str, Any]
"""By layout the rows of a weight that this rank holds; or the error."""
Wrong = dict[tuple[str, str], Any]
"""By committed and loaded layout the paths that differ on this rank; or the error."""


def _commit_and_load(rank: int, place: str, names: list[str]) -> Wrong:
    held: Held = {}
    states: dict[str, Any] = {}
    with cas.open(place) as store:
        for name in names:
            states[name] = LAYOUTS[name].build()
            weight = states[name]["model"].get("up.weight")
            held[name] = 0 if weight is None else sum(part.numel() for part in parts(weight)) / 20_000
            try:
                store.commit(states[name], branch=name, group=dist.group.WORLD)
            except CasError as error:
                held[name] = repr(error)
        pause(held)
        return {pair: found for name in names for pair, found in _load_all(store, name, states.pop(name)).items()}


def _load_all(store: cas.Store, name: str, target: Any) -> Wrong:
    found: Wrong = {}
    expected = described(target)
    for source in [*LAYOUTS, ALONE]:
        try:
            target = store.load(source, into=blank(target), group=dist.group.WORLD)
            found[source, name] = differences(described(target), expected)
        except CasError as error:
            found[source, name] = repr(error)
    return found


@dataclass(frozen=True)
class Table:
    """Lists are by rank."""

    store: cas.Store
    held: dict[str, list[Any]]
    wrong: dict[tuple[str, str], list[Any]]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    """Every layout committed by a job of its size, then loaded into every other."""
    place = str(tmp_path_factory.mktemp("layouts") / "s")
    held: dict[str, list[Any]] = {}
    wrong: dict[tuple[str, str], list[Any]] = {}
    with cas.open(place, create=True) as store, ExitStack() as stack:
        store.commit(full(), branch=ALONE)
        jobs = []
        for size in sorted({layout.size for layout in LAYOUTS.values()}):
            names = [name for name, layout in LAYOUTS.items() if layout.size == size]
            jobs.append(stack.enter_context(start(size, _commit_and_load, place, names)))
            said = [rank.told() for rank in jobs[-1].ranks]
            held |= {name: [one[name] for one in said] for name in names}
        for job in jobs:
            for rank in job.ranks:
                rank.let_go()
            found = job.results()
            wrong |= {pair: [one[pair] for one in found] for pair in found[0]}
        yield Table(store, held, wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_ranks_hold_what_the_table_says(table: Table, name: str) -> None:
    assert table.held[name] == pytest.approx(LAYOUTS[name].held)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_loads_in_one_process(table: Table, name: str) -> None:
    expected, loaded = described(full()), table.store.load(name)
    assert differences(described(loaded), expected) == []
    assert loaded["model"]["embed"] is loaded["model"]["head"]
    assert differences(described(table.store.load(name, into=blank(full()))), expected) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_tree_is_what_one_process_writes(table: Table, name: str) -> None:
    assert _tree(table.store, name) == _tree(table.store, ALONE)


@pytest.mark.slow
@pytest.mark.parametrize("source", [*LAYOUTS, ALONE])
def test_it_loads_into_every_layout(table: Table, source: str) -> None:
    found = {name: table.wrong[source, name] for name in LAYOUTS}
    assert found == {name: [[]] * layout.size for name, layout in LAYOUTS.items()}


@pytest.mark.slow
def test_the_store_of_all_layouts_is_sound(table: Table) -> None:
    assert table.store.fsck(data=True) == []


def _tree(store: cas.Store, name: str) -> Node:
    """All nodes of a commit's tree with their tags and keys in order, without the contents of what is in blocks."""

    def visit(node: Node) -> Node:
        held = entries_of(node, store._objects.tree)
        if held is not None:
            tag, entries = held
            children = [[key, visit(child)] for key, child in entries] if tag in KEYED_TAGS else [*map(visit, entries)]
            about = node[1:3] if node[0] == Tag.COMPOSITE else None
            return [node[0] == Tag.REF, tag, about, children]
        if type(node) is list and node[0] == Tag.TENSOR:
            return [*node[:4], node[5]]
        if type(node) is list and node[0] in (Tag.TEXT, Tag.BYTES):
            return node[:2]
        return type(node), node

    commit = store.resolve(name)
    return visit(store._objects.tree(store._objects.commit(bytes.fromhex(commit.id)).tree))


# -- large tensors, and what is read ----------------------------------------------------------------------------------

ROWS, COLUMNS = 1031, 16_391
QUARTER, CELL = 64 << 20, 1 << 20


def _commit_large(rank: int, place: str) -> None:
    mesh = init_device_mesh("cpu", (4,))
    with cas.open(place, create=True) as store:
        large = distribute_tensor(numbers(1, ROWS, COLUMNS), mesh, [Shard(0)], src_data_rank=None)
        store.commit({"large": large}, group=dist.group.WORLD)


def _load_large(rank: int, place: str) -> bool:
    mesh, wanted = init_device_mesh("cpu", (3,)), numbers(1, ROWS, COLUMNS)
    with cas.open(place) as store:
        into = {"large": distribute_tensor(torch.zeros(ROWS, COLUMNS), mesh, [Shard(1)], src_data_rank=None)}
        loaded = store.load("main", into=into, group=dist.group.WORLD)["large"].to_local()
    return torch.equal(loaded, wanted.chunk(3, dim=1)[rank])


@pytest.mark.slow
def test_a_tensor_of_many_blocks_goes_from_rows_of_four_to_columns_of_three(tmp_path: Path) -> None:
    place = str(tmp_path / "s")
    run(4, _commit_large, place)
    assert run(3, _load_large, place) == [True] * 3
    with cas.open(place) as store:
        assert torch.equal(store.load("main")["large"], numbers(1, ROWS, COLUMNS))


def _read_bytes() -> int:
    """What this process has asked the system to read so far."""
    with open("/proc/self/io") as counters:
        return int(counters.readline().removeprefix("rchar: "))


def _load_part(rank: int, place: str) -> int:
    """Bytes read by this rank for its part."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with cas.open(place) as store:
        into = {"w": distribute_tensor(torch.zeros(QUARTER), mesh, [Shard(0)], src_data_rank=None)}
        before = _read_bytes()
        store.load("main", into=into, group=dist.group.WORLD)
        return _read_bytes() - before


@pytest.mark.slow
def test_a_rank_reads_only_the_blocks_under_its_part(tmp_path: Path) -> None:
    """Of 256 MiB, whose cells are of 1 MiB; a process that loads all of it shows that the measure counts."""
    place = str(tmp_path / "s")
    with cas.open(place, create=True) as store:
        store.commit({"w": torch.arange(QUARTER, dtype=torch.float32)}, codec="raw")
        before = _read_bytes()
        store.load("main")
        assert _read_bytes() - before >= 4 * QUARTER
    for size, edges in (4, 0), (3, 2):  # quarters end at edges of cells, thirds do not
        for read in run(size, _load_part, place):
            part = 4 * QUARTER // size
            assert part <= read <= 1.02 * part + edges * CELL
