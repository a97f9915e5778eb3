"""What commits lack on purpose: any object below a commit, or its parents, is passed by on the way down from it alone.

Stores are made partial by publishing absent pairs and collecting what nothing leads to any more.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.stores import errors, quick_folder, same
from hypothesis import given, settings
from hypothesis import strategies as st

import cas
from cas import lists
from cas.absence import NOTHING, remote_names, without
from cas.block import Kind, ObjectId
from cas.errors import NotFound
from cas.leaves import ABSENT, TensorLeaf
from cas.lists import What
from cas.marking import Marks
from cas.nodes import Tag
from cas.reach import Edge, Reached, needs, needs_of_node, reachable, reached_by_one
from cas.roots import Absent
from cas.store import Store

BLOCK = 4096
Pairs = Set[tuple[ObjectId, ObjectId]]


@pytest.fixture
def path() -> Iterator[Path]:
    with quick_folder() as folder:
        cas.init(folder / "store", block_size=BLOCK).close()
        yield folder / "store"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with cas.open(path) as opened:
        yield opened


def noise(seed: int, blocks: int = 2) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, blocks * BLOCK, np.uint8)


def state(seed: int) -> dict[str, Any]:
    """A model that stays and an optimizer that changes, each a tree of its own; and a tensor of a single block."""
    many = {f"value number {n} of a container that is no small one": n for n in range(100)}
    return {
        "model": {"w": noise(1, 3), "b": noise(2, 1), **many},
        "optimizer": {"exp_avg": noise(10 + seed, 3), "steps": [noise(20 + seed, 1), seed], **many},
        "ema": noise(30 + seed, 1),
        "step": seed,
    }


def fill(store: Store, count: int, branch: str = "main") -> list[ObjectId]:
    made = [store.commit(state(n), branch=branch, step=n, metrics={"loss": float(n)}).id for n in range(count)]
    return [ObjectId(bytes.fromhex(name)) for name in made]


def leave_out(store: Store, pairs: Iterable[tuple[ObjectId, ObjectId]]) -> None:
    """Publish that commits lack these objects, and delete what nothing leads to then."""
    items = {lists.pair(*pair) for pair in pairs}
    store._roots.update(
        lambda root: {"absent": lists.extend(store._backend, root.absent, What.ABSENT, items)}, "leave out"
    )
    store.gc(grace=0, expire=0)


def bring_back(store: Store, pairs: Pairs) -> None:
    """Drop these pairs, whether what they stand for is there or not."""
    store._roots.update(lambda root: {"absent": without(store._backend, root.absent, pairs)}, "bring back")


def named_at(store: Store, commit: ObjectId, *keys: str) -> set[ObjectId]:
    """What the node at these keys of a commit's state names."""
    node = store._objects.tree(store._objects.commit(commit).tree)
    for key in keys:
        while node[0] == Tag.REF:
            node = store._objects.tree(node[1])
        node = dict(node[1])[key]
    return {name for _, name in needs_of_node(node)}


def parent(store: Store, commit: ObjectId) -> ObjectId:
    return store._objects.commit(commit).parents[0]


def absent(store: Store) -> Absent:
    return store._roots.absent(store._roots.current())


# -- walking --------------------------------------------------------------------------------------------------------


def naive(tops: Iterable[Edge], named: Callable[[Edge], Iterable[Edge]], absent: Absent) -> set[Edge]:
    """By the words: from each commit down, never through what that commit lacks."""
    seen: set[tuple[Edge, frozenset[ObjectId]]] = set()

    def walk(edge: Edge, left_out: frozenset[ObjectId]) -> None:
        if edge[0] is Kind.COMMIT:
            left_out = absent.get(edge[1], NOTHING)
        if (edge, left_out) not in seen:
            seen.add((edge, left_out))
            for child in named(edge):
                if child[1] not in left_out:
                    walk(child, left_out)

    for top in tops:
        walk(top, NOTHING)
    return {edge for edge, _ in seen}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[Edge, list[Edge]], Absent]:
    """Objects that name some of those before them, the last of them commits; and what these lack."""
    kinds = [Kind.BLOCK] * 3 + [Kind.LIST] * 3 + [Kind.LAYOUT] * 2 + [Kind.TREE] * draw(st.integers(1, 6))
    graph: dict[Edge, list[Edge]] = {}
    for kind in kinds + [Kind.COMMIT] * draw(st.integers(1, 5)):
        names = draw(st.lists(st.sampled_from(list(graph)), max_size=4)) if kind is not Kind.BLOCK and graph else []
        fits = [edge for edge in names if kind is Kind.COMMIT or edge[0] is not Kind.COMMIT]
        graph[kind, ObjectId(len(graph).to_bytes(32, "big"))] = fits
    commits = [name for kind, name in graph if kind is Kind.COMMIT]
    some = st.frozensets(st.sampled_from([name for _, name in graph]), max_size=3)
    return graph, draw(st.dictionaries(st.sampled_from(commits), some))


@given(graphs())
@settings(max_examples=300, deadline=None)
def test_a_walk_reaches_what_the_words_say(given: tuple[dict[Edge, list[Edge]], Absent]) -> None:
    graph, absent = given
    reached = Reached(lambda edge: graph[edge], absent)
    tops: list[Edge] = []
    for top in [edge for edge in graph if edge[0] is Kind.COMMIT]:
        tops.append(top)
        reached.add([top])
        assert reached.met.keys() == naive(tops, graph.__getitem__, absent)


def test_what_leads_to_nothing_absent_is_followed_once_however_many_commits_lack_something() -> None:
    """A hundred commits share a tree of a hundred objects; each lacks an object of its own beside it."""

    def edge(kind: Kind, number: int) -> Edge:
        return kind, ObjectId(number.to_bytes(32, "big"))

    shared = edge(Kind.TREE, 1)
    graph: dict[Edge, list[Edge]] = {shared: [edge(Kind.LAYOUT, n) for n in range(1000, 1100)]}
    graph |= {layout: [] for layout in graph[shared]}
    lacks = {}
    for n in range(100):
        commit, top, gone = edge(Kind.COMMIT, 2000 + n), edge(Kind.TREE, 3000 + n), edge(Kind.TREE, 4000 + n)
        graph |= {commit: [top], top: [shared, gone]}
        lacks[commit[1]] = frozenset([gone[1]])
    asked: list[Edge] = []
    reached = Reached(lambda edge: asked.append(edge) or graph[edge], lacks)
    reached.add(edge for edge in graph if edge[0] is Kind.COMMIT)
    assert len(asked) == len(graph) == len(reached.met)


def random_pairs(store: Store, seed: int, count: int) -> Pairs:
    """Some objects that commits lead to, each with one of the commits that does."""
    random = np.random.default_rng(seed)
    found = []
    for tip in store.graph():
        name = ObjectId(bytes.fromhex(tip.id))
        below = reachable([(Kind.COMMIT, name)], store._objects, {}) - {(Kind.COMMIT, name)}
        own = [edge for edge in sorted(below) if edge[0] is not Kind.COMMIT or edge[1] in tip.parents]
        found += [(name, other) for _, other in own] + [(name, ObjectId(bytes.fromhex(p))) for p in tip.parents]
    return {found[n] for n in random.choice(len(found), min(count, len(found)), replace=False)}


def many_states(store: Store, seed: int) -> None:
    """Branches that share trees, layouts, lists and blocks, and one block that is stored as a change of another."""
    random = np.random.default_rng(seed)
    pool = [noise(n, 1 + n % 3) for n in range(6)]
    for n in range(5):
        branch = f"b{random.integers(2)}"
        parts = {f"part {at}": pool[at] for at in random.choice(6, 3, replace=False)}
        filler = {f"value number {at} of a container that is no small one": at for at in range(100)}
        nested = {"model": {**parts, **filler}, "one": pool[random.integers(6)], "list": [{"deep": parts}, n % 2]}
        store.commit(nested, branch=branch, step=n, files={"config": __file__} if n % 2 else {})


@given(st.integers(0, 1 << 30), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_any_pairs_at_all_leave_a_sound_store(seed: int, count: int) -> None:
    """Marks are those of the words; what they say survives a collection, and nobody finds anything wrong."""
    with quick_folder() as folder, cas.init(folder / "store", block_size=BLOCK) as store:
        many_states(store, seed)
        tips: list[Edge] = [(Kind.COMMIT, name) for name in store._roots.current().refs.values()]
        pairs, everything = random_pairs(store, seed, count), reachable(tips, store._objects, {})
        leave_out(store, pairs)
        lacks, objects = absent(store), store._objects
        wanted = naive(tips, lambda edge: needs(edge, objects, {}), lacks)
        check_marks(store, wanted)
        assert reachable(tips, objects, lacks) == wanted
        for name, owned in reached_by_one(dict(store._roots.current().refs), objects, lacks).items():
            rest = [tip for other, tip in store._roots.current().refs.items() if other != name]
            others = naive([(Kind.COMMIT, tip) for tip in rest], lambda edge: needs(edge, objects, {}), lacks)
            assert owned == wanted - others
        assert errors(store.fsck(data=True)) == []
        found = store.stats().savings
        assert (found.missing, found.whole.dedup >= 0) == (0, True)
        store.repack("small")
        store.gc(grace=0, expire=0)
        check_marks(store, wanted)
        assert errors(store.fsck(data=True)) == []
        check_loads(store)
        bring_back(store, pairs)
        is_whole = all(store._catalog.locate([name]) for _, name in everything)
        assert (errors(store.fsck()) == []) == is_whole


def check_marks(store: Store, wanted: Set[Edge]) -> None:
    marks: Marks = store._surveyor().reached(store._roots.current(), absent(store), float("inf"))
    live = {(kind, ObjectId(name)) for kind, names in marks.live().items() for name in names.view("V32").tolist()}
    assert live == wanted
    assert all(store._catalog.locate([name]).get(name) for _, name in wanted)


def check_loads(store: Store) -> None:
    """Of each commit what is there reads back, and what is not is told apart; a commit that lacks nothing is whole."""
    for commit in store.graph():
        if commit.pruned:
            with pytest.raises(NotFound, match=r"was pruned or never fetched"):
                store.load(commit.id)
            continue
        gone = [
            leaf.path for leaf in store.leaves(commit.id) if not isinstance(leaf, TensorLeaf) and leaf.kind == ABSENT
        ]
        if gone:
            assert commit.partial
            with pytest.raises(NotFound, match="is absent"):
                store.load(commit.id)
        else:
            store.load(commit.id)
        for leaf in store.leaves(commit.id):
            if isinstance(leaf, TensorLeaf):
                view = store.view(commit.id)
                for key in leaf.path:
                    view = view[key]
                assert view.load().nbytes == leaf.nbytes


# -- a partial commit -----------------------------------------------------------------------------------------------


@pytest.fixture
def partial(store: Store) -> tuple[ObjectId, ...]:
    """Three commits, the newer two without their optimizers and a tensor that is a single block."""
    names = fill(store, 3)
    pairs = {
        (name, other) for name in names[1:] for key in ("optimizer", "ema") for other in named_at(store, name, key)
    }
    leave_out(store, pairs)
    assert not store._catalog.locate(other for _, other in pairs)
    return tuple(names)


def test_what_is_there_of_a_partial_commit_loads(store: Store, partial: tuple[ObjectId, ...]) -> None:
    found = store.load("main", only=["model", "step"])
    assert same(found["model"], state(2)["model"])
    assert found["step"] == 2
    view = store.view("main")
    assert same(view["model"]["w"].load(), state(2)["model"]["w"])
    assert same(view["model"]["w"][4000:5000], state(2)["model"]["w"][4000:5000])
    assert same(store.load("main~2"), state(0))
    target = state(7)
    assert same(store.load("main", only="model", into=target)["model"], state(2)["model"])


@pytest.mark.parametrize(
    ("what", "where"),
    [
        (lambda store: store.load("main"), "optimizer"),
        (lambda store: store.load("main", only="optimizer/exp_avg"), "optimizer"),
        (lambda store: store.load("main", only="**/exp_avg"), "optimizer"),
        (lambda store: store.load("main", only="ema"), "ema"),
        (lambda store: store.view("main")["optimizer"], "optimizer"),
        (lambda store: store.view("main")["ema"][:1], "ema"),
        (lambda store: store.leaves("main").find("optimizer/exp_avg"), "optimizer"),
        (lambda store: list(store.diff("main~2", "main")), "optimizer"),
        (lambda store: list(store.diff("main", "main~1", only="optimizer")), "optimizer"),
        (lambda store: list(store.diff("main", "main~1", only="ema")), "ema"),
    ],
)
def test_what_is_absent_is_named_with_the_way_to_get_it(
    store: Store, partial: tuple[ObjectId, ...], what: Callable[[Store], Any], where: str
) -> None:
    with pytest.raises(NotFound, match=rf"^{where} of commit [0-9a-f]{{8}} is absent.*`cas pull URL --only"):
        what(store)
    set_remotes(store, "b", "origin", "a")
    with pytest.raises(NotFound, match=rf"^{where} of commit .*`cas fetch origin --only.*, or from a, b$"):
        what(store)


def set_remotes(store: Store, *names: str) -> None:
    node = [Tag.DICT, [[name, [Tag.DICT, []]] for name in sorted(names)]]
    store._roots.update(lambda root: {"config": {**root.config, "remotes": node}}, "remotes")
    assert set(remote_names(store._roots.current())) == set(names)


def test_a_pruned_state_names_the_remotes_that_may_have_it(store: Store) -> None:
    fill(store, 2)
    store.prune(keep_last=1)
    with pytest.raises(NotFound, match=r"was pruned or never fetched; `cas log --root` says when$"):
        store.load("main~1")
    set_remotes(store, "origin")
    with pytest.raises(NotFound, match=r"when, and `cas fetch origin --only \. --depth 0` brings it if origin has it$"):
        store.load("main~1")


def test_leaves_say_what_is_absent(store: Store, partial: tuple[ObjectId, ...]) -> None:
    leaves = store.leaves("main")
    assert [leaf.path for leaf in leaves if not isinstance(leaf, TensorLeaf) and leaf.kind == ABSENT] == [
        ("optimizer",),
        ("ema",),
    ]
    there = [leaf for leaf in leaves if isinstance(leaf, TensorLeaf)]
    assert [leaf.path for leaf in there] == [("model", "w"), ("model", "b")]
    data = b"".join(bytes(piece) for piece in leaves.stream(there))
    assert data == state(2)["model"]["w"].tobytes() + state(2)["model"]["b"].tobytes()


def test_equal_parts_are_compared_though_they_are_absent(store: Store) -> None:
    names = [ObjectId(bytes.fromhex(store.commit({**state(1), "step": n}).id)) for n in range(2)]
    leave_out(store, {(name, other) for name in names for other in named_at(store, name, "optimizer")})
    assert [found.path for found in store.diff("main~1", "main")] == [("step",)]


def test_the_log_says_what_is_partial_and_where_history_is_cut(store: Store, partial: tuple[ObjectId, ...]) -> None:
    leave_out(store, {(partial[1], partial[0])})
    found = [(commit.id, commit.pruned, commit.partial, commit.shallow) for commit in store.log()]
    assert found == [(partial[2].hex(), False, True, False), (partial[1].hex(), False, True, True)]
    assert [commit.id for commit in store.graph()] == [partial[2].hex(), partial[1].hex()]
    assert store.resolve("main").parents == (partial[1].hex(),)


def test_figures_count_what_is_there(store: Store, partial: tuple[ObjectId, ...]) -> None:
    parts = {part.path: part for part in store.commit_stats("main").parts}
    assert (parts["model"].blocks, parts["optimizer"].blocks, parts["ema"].blocks) == (4, 0, 0)
    assert store.commit_stats("main").whole.blocks == 4
    assert store.commit_stats("main").whole.shared == 4
    found = store.stats()
    assert (found.history, found.savings.commits, found.savings.missing) == (3, 3, 0)
    by_part = {part.name: part for part in found.savings.parts}
    assert by_part["model"].raw == 3 * 4 * BLOCK
    assert by_part["model"].blocks == 4
    assert by_part["optimizer"].raw == 4 * BLOCK
    assert by_part["optimizer"].blocks == 4
    assert found.savings.whole.dedup == 2 * 4 * BLOCK
    assert store.branch_sizes()["main"] > 0


def test_an_object_that_is_missing_and_not_absent_is_a_finding(store: Store) -> None:
    """Of two commits with the same optimizer only one lacks it on purpose."""
    held = {**state(1), "optimizer": {**state(1)["optimizer"], "exp_avg": noise(9, 40)}}
    first = ObjectId(bytes.fromhex(store.commit(held).id))
    second = ObjectId(bytes.fromhex(store.commit({**held, "step": 5}).id))
    (optimizer,) = named_at(store, first, "optimizer")
    leave_out(store, {(first, optimizer)})
    assert errors(store.fsck()) == []
    assert same(store.load("main"), {**held, "step": 5})
    leave_out(store, {(second, optimizer)})
    assert errors(store.fsck()) == []
    bring_back(store, {(second, optimizer)})
    found = errors(store.fsck())
    assert {(each.name, each.commits, each.paths) for each in found} == {
        ("object-missing", (second.hex(),), ("optimizer",))
    }


def test_a_base_that_lies_in_an_absent_part_stays(store: Store) -> None:
    """The model of the newer commit is stored as a change of the older one's, which lacks it on purpose."""
    weights = np.arange(3 * BLOCK // 4, dtype=np.float32)
    first = ObjectId(bytes.fromhex(store.commit({"model": weights}).id))
    store.commit({"model": weights + np.float32(1e-3)}, delta="parent")
    assert store.stats().codecs.get("delta")
    leave_out(store, {(first, name) for name in named_at(store, first, "model")})
    assert same(store.load("main"), {"model": weights + np.float32(1e-3)})
    assert errors(store.fsck(data=True)) == []
    assert store.stats().savings.bases > 0
    store.repack("small")
    store.gc(grace=0, expire=0)
    assert same(store.load("main"), {"model": weights + np.float32(1e-3)})


def test_a_partial_commit_is_a_parent_like_any_other(store: Store, partial: tuple[ObjectId, ...]) -> None:
    """What it lacks is stored anew, and an equal commit that is there in part is made again."""
    store.load("main", only="model")
    again = store.commit(state(2), step=2, unless_in="main")
    assert again.id != partial[2].hex()
    assert same(store.load("main"), state(2))
    assert store.commit(state(2), step=2, unless_in="main").id == again.id
    assert errors(store.fsck(data=True)) == []


def test_prune_and_undo_on_a_partial_store(store: Store, partial: tuple[ObjectId, ...]) -> None:
    done = store.prune(keep_last=1)
    assert [commit.id for commit in done.dropped] == [partial[1].hex(), partial[0].hex()]
    assert done.freed is not None
    assert done.freed > 0
    assert [(commit.pruned, commit.partial) for commit in store.log()] == [(False, True), (True, False), (True, False)]
    store.branch("main", "main~1", force=True)
    store.undo()
    store.gc(grace=0)
    assert same(store.load("main", only="model")["model"], state(2)["model"])
    assert errors(store.fsck(data=True)) == []


def test_refs_can_be_set_to_partial_commits(store: Store, partial: tuple[ObjectId, ...]) -> None:
    store.tag("v1", "main~1")
    store.branch("other", partial[1].hex())
    store.delete_branch("main")
    store.undo()
    store.gc(grace=0, expire=0)
    assert same(store.load("v1", only="model")["model"], state(1)["model"])


def test_side_files_that_are_absent_are_told(store: Store) -> None:
    name = ObjectId(bytes.fromhex(store.commit(state(0), files={"big": __file__}).id))
    content = {other for _, other in needs_of_node(store._objects.commit(name).files)}
    assert content
    leave_out(store, {(name, other) for other in content})
    with pytest.raises(NotFound, match=r"big of commit [0-9a-f]{8} is absent"):
        store.files("main")
    assert same(store.load("main"), state(0))
    assert errors(store.fsck(data=True)) == []


# -- history that was cut -------------------------------------------------------------------------------------------


@pytest.fixture
def shallow(store: Store) -> tuple[ObjectId, ...]:
    """Five commits of which two are there."""
    names = fill(store, 5)
    leave_out(store, {(names[3], names[2])})
    return tuple(names)


def test_history_ends_where_it_was_cut(store: Store, shallow: tuple[ObjectId, ...]) -> None:
    assert [commit.id for commit in store.log()] == [shallow[4].hex(), shallow[3].hex()]
    assert [commit.id for commit in store.graph()] == [shallow[4].hex(), shallow[3].hex()]
    assert [commit.shallow for commit in store.log()] == [False, True]
    assert store._catalog.locate([shallow[2]]) == {}
    assert same(store.load("main~1"), state(3))
    assert errors(store.fsck(data=True)) == []
    assert store.stats().history == 2


@pytest.mark.parametrize("revision", ["main~2", "main~9", "main@step:1", "main@min:accuracy"])
def test_an_answer_beyond_the_cut_says_where_history_begins(
    store: Store, shallow: tuple[ObjectId, ...], revision: str
) -> None:
    with pytest.raises(NotFound, match=f"the history here begins at {shallow[3].hex()[:8]}.*`cas fetch --depth 0`"):
        store.resolve(revision)
    assert store.resolve("main~1").id == store.resolve("main@step:3").id == store.resolve("main@min:loss").id


def test_commits_and_collections_go_on_beside_a_cut(store: Store, shallow: tuple[ObjectId, ...]) -> None:
    store.load("main")
    store.commit(state(5), step=5)
    store.tag("v1", "main~2")
    store.repack()
    store.prune(keep_last=2)
    store.gc(grace=0, expire=0)
    assert [commit.step for commit in store.log()] == [5, 4, 3]
    assert errors(store.fsck(data=True)) == []


def test_a_parent_that_another_ref_leads_to_stays(store: Store) -> None:
    names = fill(store, 3)
    store.tag("old", "main~2")
    leave_out(store, {(names[1], names[0])})
    assert [commit.id for commit in store.log("old")] == [names[0].hex()]
    assert [commit.id for commit in store.log()] == [names[2].hex(), names[1].hex()]
    assert {commit.id for commit in store.graph()} == {name.hex() for name in names}
    assert same(store.load("old"), state(0))


# -- bringing it back -----------------------------------------------------------------------------------------------


def test_pairs_are_dropped_and_the_others_stay(store: Store) -> None:
    names = fill(store, 4)
    pairs = [(name, other) for name in names for other in sorted(named_at(store, name, "optimizer"))]
    for pair in pairs:
        leave_out(store, {pair})
    back = store._objects.commit(names[3]).tree
    held = store._roots.current()
    assert without(store._backend, held.absent, [(names[0], back)]) == held.absent
    fewer = without(store._backend, held.absent, pairs[:1])
    items = {item for name in fewer for item in lists.read(store._backend, name, What.ABSENT)}
    assert items == {lists.pair(*pair) for pair in pairs[1:]}
    assert without(store._backend, held.absent, pairs) == ()


def test_what_is_brought_in_counts_again(path: Path) -> None:
    """In one record the pair goes, and what it stood for is there: every walk finds it from then on."""
    with cas.open(path) as store:
        (name,) = fill(store, 1)
        (gone,) = named_at(store, name, "optimizer")
        leave_out(store, {(name, gone)})
        store.commit(state(0), branch="again")
        bring_back(store, {(name, gone)})
        store.delete_branch("again")
        store.gc(grace=0, expire=0)
        assert same(store.load("main"), state(0))
        assert not store.resolve("main").partial
        assert errors(store.fsck(data=True)) == []


# -- commands -------------------------------------------------------------------------------------------------------


def test_the_command_works_on_what_is_there(store: Store, partial: tuple[ObjectId, ...], tmp_path: Path) -> None:
    place = ("--store", str(store.path))
    assert "partial" in run(*place, "log").stdout
    assert "absent" in run(*place, "ls", "main").stdout
    assert "absent" in run(*place, "show", "main").stdout
    assert run(*place, "stats", "main").returncode == 0
    done = run(*place, "checkout", "main", "model", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    done = run(*place, "checkout", "main", "--all", "-o", str(tmp_path / "all"))
    assert (done.returncode, "optimizer of commit" in done.stderr) == (11, True)
    assert run(*place, "cat", "main", "optimizer/exp_avg").returncode == 11


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cas.cli", *words], capture_output=True, text=True, check=False)
