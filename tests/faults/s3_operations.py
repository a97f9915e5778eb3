"""What runs while requests to an S3 server fail: each operation on a store in a bucket, or with a local one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cas
from cas.errors import CasError, CommitUnknown
from cas.store import Store

from .operations import DRIFTING, LARGE, NOISY, commit, content
from .stores import BLOCK_SIZE, same

Note = Callable[[str, str], None]
"""Takes "done" or "refused" and the name of a ref or state, `there` in the bucket or `here`; or "error" and one."""


@dataclass(frozen=True)
class Place:
    """The stores of one run: that in a bucket, and a local one in `folder`, which also has the cache of indexes."""

    url: str
    options: Mapping[str, Any]
    folder: Path

    @property
    def local(self) -> Path:
        return self.folder / "local"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"


Run = Callable[[Place, Note], None]


def _no_measure(store: Store) -> None:
    """For operations after which refs and states say all."""


@dataclass(frozen=True)
class Operation:
    """`run` leads from the stores that `prepare` makes to one and the same end, also from anywhere between the two.

    `at` are the kinds of requests that are of interest: all that it makes, unless `is_part`. `measure` is something
    else that must be the same at the end, of a copy of the store in the bucket.
    """

    name: str
    run: Run
    prepare: Callable[[Place], None]
    at: frozenset[str]
    is_part: bool = False
    measure: Callable[[Store], object] = _no_measure


@contextmanager
def opened(place: Place, **options: Any) -> Iterator[Store]:
    """The store in the bucket; nothing that goes wrong when it is closed is an error of the caller's."""
    store = cas.open(place.url, storage_options=place.options, cache=place.cache, **options)
    try:
        yield store
    finally:
        try:
            store.close()
        except Exception as error:
            raise AssertionError(f"close raised {error!r}") from error


def make(place: Place, *numbers: int, block_size: int = BLOCK_SIZE) -> None:
    """A store in the bucket with commits of these numbers on main."""
    with cas.init(place.url, block_size=block_size, storage_options=place.options, cache=place.cache) as store:
        for number in numbers:
            commit(store, number)


@contextmanager
def telling(note: Note, *keys: str) -> Iterator[None]:
    """For one update: "done" with what it changes once that is acknowledged, "refused" where an error denies it."""
    try:
        yield
    except CommitUnknown:
        raise
    except (CasError, OSError):
        for key in keys:
            note("refused", key)
        raise
    for key in keys:
        note("done", key)


def step_of(store: Store, branch: str) -> int:
    return store.resolve(branch).step if branch in store.refs()["branches"] else -1


# -- committing and loading -----------------------------------------------------------------------------------------


def _run_init(place: Place, note: Note) -> None:
    """A new store, and its first commit."""
    with opened(place, create=True) as store:
        assert not store.one_writer, "a fault made an honest service look like one that overwrites"
        _commit(store, 0, note)


def _run_commit(place: Place, note: Note) -> None:
    with opened(place) as store:
        _commit(store, 2, note)
        with telling(note, "there tags done"):
            if "done" not in store.refs()["tags"]:
                store.tag("done")


def _run_large_commit(place: Place, note: Note) -> None:
    with opened(place) as store:
        _commit(store, LARGE, note)


def _commit(store: Store, number: int, note: Note) -> None:
    """Resume and commit. After an error the same Store commits again: the fault may be over."""
    store.load("main", default=None)
    if step_of(store, "main") >= number:
        return
    try:
        with telling(note, "there branches main"):
            commit(store, number)
    except (CasError, OSError) as error:
        note("error", f"{type(error).__name__}: {error}")
        if step_of(store, "main") < number:
            commit(store, number)
        note("done", "there branches main")
    assert same(store.load("main"), content(number)), "the commit does not load as it was made"


def _run_load(place: Place, note: Note) -> None:
    with opened(place) as store:
        for held in list(store.log("main")):
            assert same(store.load(held.id), content(held.step)), f"{held} does not load as it was made"


# -- between two stores ---------------------------------------------------------------------------------------------


def _prepare_push(place: Place) -> None:
    make(place, 0, 1)
    with _cloned(place) as store:
        store.load("main")
        commit(store, NOISY + 2)
        commit(store, 3)
        store.tag("good", "main~1")


def _cloned(place: Place) -> Store:
    """The local store, which knows no remote: the next run has its bucket at another URL."""
    store = cas.clone(place.url, place.local, storage_options=place.options, cache=place.cache)
    store.remove_remote("origin")
    return store


def _run_push(place: Place, note: Note) -> None:
    with cas.open(place.local, cache=place.cache) as store, telling(note, "there branches main", "there tags good"):
        store.push(place.url, "main", "good", storage_options=place.options)


def _prepare_pull(place: Place) -> None:
    make(place, 0, 1)
    _cloned(place).close()
    with opened(place) as there:
        there.load("main")
        commit(there, NOISY + 2)
        commit(there, 3)
        there.tag("good", "main~1")


def _run_pull(place: Place, note: Note) -> None:
    with cas.open(place.local, cache=place.cache) as store:
        if "origin" not in store.remotes():
            store.add_remote("origin", place.url)
        with telling(note, "here tracking origin/main", "here tags good"):
            store.fetch("origin", "main", "good", storage_options=place.options)
        with telling(note, "here branches main"):
            store.pull("origin", "main", storage_options=place.options)


# -- freeing --------------------------------------------------------------------------------------------------------


def _prepare_garbage(place: Place) -> None:
    """A pack that nothing needs, and one of which little is needed."""
    make(place, 0, 1)
    with opened(place) as store:
        commit(store, 5, "dead")
        commit(store, NOISY + 7, "gone")
        store.load("main")
        commit(store, 7)
        store.delete_branch("gone")
        store.delete_branch("dead")


def _run_gc(place: Place, note: Note) -> None:
    with opened(place) as store:
        store.gc(grace=0, expire=0)


def _packs_in_the_end(store: Store) -> int:
    """How many packs a last collection leaves."""
    return store.gc(grace=0, expire=0).packs


def _prepare_chains(place: Place) -> None:
    """Two branches that change slowly, as whole blocks and as deltas, in small packs."""
    make(place, DRIFTING)
    with opened(place) as store:
        store.load("main")
        commit(store, DRIFTING + 1)
        commit(store, DRIFTING + 2, delta="parent")
        store.branch("side", "main~1")
        commit(store, DRIFTING + 3, "side", delta="parent")


def _run_repack(place: Place, note: Note) -> None:
    with opened(place) as store:
        store.repack()


def _packs_at_rest(store: Store) -> int:
    """How many packs are left once there is nothing to do: packs of a repack that was cut short may still be used."""
    while store.repack().packs + store.gc(grace=0, expire=0).deleted:
        pass
    return _packs_in_the_end(store)


def _run_prune(place: Place, note: Note) -> None:
    with opened(place) as store, telling(note, *(f"there state {number}" for number in range(3))):
        store.prune("main", keep_last=1, keep_tags=())


def _nothing(place: Place) -> None:
    """For the operation that makes its store."""


_READ = frozenset({"get"})
_WRITTEN = _READ | {"put", "put-record"}
_LISTED = _WRITTEN | {"list"}
_DELETED = _LISTED | {"head", "delete"}
_CREATED = frozenset({"put", "put-record"})
_PARTS = frozenset({"create-upload", "upload-part", "complete-upload", "head", "put-record"})

_ALL = [
    Operation("init", _run_init, _nothing, _CREATED, is_part=True),
    Operation("commit", _run_commit, lambda place: make(place, 0, 1), _LISTED),
    Operation(
        "large-commit", _run_large_commit, lambda place: make(place, 0, block_size=1 << 20), _PARTS, is_part=True
    ),
    Operation("load", _run_load, lambda place: make(place, 0, NOISY + 1), _READ),
    Operation("push", _run_push, _prepare_push, _LISTED),
    Operation("pull", _run_pull, _prepare_pull, _READ),
    Operation("gc", _run_gc, _prepare_garbage, _DELETED | {"list-uploads"}, measure=_packs_in_the_end),
    Operation("repack", _run_repack, _prepare_chains, _LISTED, measure=_packs_at_rest),
    Operation("prune", _run_prune, lambda place: make(place, 0, 1, 2, 3), _WRITTEN),
]
OPERATIONS = {operation.name: operation for operation in _ALL}
