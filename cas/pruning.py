"""Retention at work: the states of commits that a policy does not keep become absent. The commits themselves stay.

What is absent is so for undo as well, so the next collection frees it. A policy can stand in the store's config, by
branch; then every commit on that branch applies it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import lists
from .absence import NOTHING, is_pruned
from .backend import Backend
from .block import ObjectId
from .catalog import Catalog
from .commits import Commit, commit_of
from .errors import Invalid, NotFound
from .lists import What
from .log import Record
from .nodes import Node, Tag, expect
from .objects import Commit as CommitObject
from .refs import RefKind, check_name
from .reserve import on_reserve
from .retention import Policy, decode_policy, describe, encode_policy, kept
from .revisions import Revisions, metric_of
from .roots import Roots
from .stats import stored_bytes
from .survey import Surveyor

_CONFIG = "prune"


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune did, or with `dry_run` would do: `kept` with the reasons why, newest first, and `dropped`.

    `freed` are the stored bytes that only the dropped states needed; None where nobody asked.
    """

    branch: str
    dry_run: bool
    kept: tuple[tuple[Commit, tuple[str, ...]], ...]
    dropped: tuple[Commit, ...]
    freed: int | None


@dataclass(frozen=True, slots=True)
class _Choice:
    kept: dict[ObjectId, tuple[str, ...]]
    dropped: dict[ObjectId, CommitObject]

    @property
    def pairs(self) -> dict[ObjectId, frozenset[ObjectId]]:
        """What becomes absent: the state of each dropped commit, and the files that it was read from."""
        return {name: frozenset(_state_of(commit)) for name, commit in self.dropped.items()}


def _state_of(commit: CommitObject) -> Iterator[ObjectId]:
    yield commit.tree
    if commit.origin is not None:
        yield commit.origin.tree


@dataclass(frozen=True, slots=True)
class Pruner:
    """Applies policies to one store's branches."""

    backend: Backend
    catalog: Catalog
    roots: Roots
    revisions: Revisions

    def prune(self, branch: str, policy: Policy, dry_run: bool, surveyor: Surveyor | None, since: float = 0) -> Pruned:
        """Drop what the policy does not keep; chosen again on every root that comes first.

        With a `surveyor`, it is also found out what that frees, given that undo may go back to `since`.
        """

        def plan(root: Record) -> tuple[Record, _Choice, int | None]:
            choice = self._choose(root, branch, policy)
            return root, choice, None if surveyor is None else self._freed(surveyor, root, choice, since)

        root, choice, freed = self.roots.under(plan)
        if choice.dropped and not dry_run:
            choice = on_reserve(self.backend, partial(self._publish, branch, policy, root, choice))
        return Pruned(branch, dry_run, *self._public(choice), freed)

    def _publish(self, branch: str, policy: Policy, before: Record, choice: _Choice) -> _Choice:
        """Publish what was chosen under the root `before`, or what is chosen under the one that there is by now."""
        choices: list[_Choice] = []

        def change(root: Record) -> Mapping[str, Any]:
            choices.append(choice if root.seq == before.seq else self._choose(root, branch, policy))
            return {"absent": self._extended(root, choices[-1])}

        self.roots.update(change, f"prune {branch}: {describe(policy)}")
        return choices[-1]

    def _choose(self, root: Record, branch: str, policy: Policy) -> _Choice:
        tip = root.refs.get((RefKind.BRANCH, branch))
        if tip is None:
            check_name(branch, "branch")
            raise NotFound(f"there is no branch {branch} to prune; `cas branch` lists them")
        absent = self.roots.absent(root)
        found = self.revisions.history(tip, root)
        history = {name: commit for name, commit in found if not is_pruned(name, commit, absent)}
        _check_metrics(branch, policy, history.values())
        tags: dict[ObjectId, list[str]] = {}
        for (kind, name), commit in root.refs.items():
            if kind is RefKind.TAG:
                tags.setdefault(commit, []).append(name)
        keeping = kept(history.items(), policy, tags)
        for (kind, name), commit in root.refs.items():
            if kind is not RefKind.TAG and name != branch and commit in history:
                keeping[commit] = (*keeping.get(commit, ()), f"branch {name}")
        dropped = {name: commit for name, commit in history.items() if name not in keeping}
        return _Choice({name: keeping[name] for name in history if name in keeping}, dropped)

    def _extended(self, root: Record, choice: _Choice) -> tuple[lists.ListId, ...]:
        items = {lists.pair(commit, name) for commit, names in choice.pairs.items() for name in names}
        return lists.extend(self.backend, root.absent, What.ABSENT, items) if items else root.absent

    def _freed(self, surveyor: Surveyor, root: Record, choice: _Choice, since: float) -> int:
        now = self.roots.absent(root)
        before = surveyor.reached(root, now, since)
        dropped = {name: now.get(name, NOTHING) | names for name, names in choice.pairs.items()}
        after = surveyor.reached(root, {**now, **dropped}, since)
        kept = after.live()
        gone = (np.setdiff1d(names, kept[kind], assume_unique=True) for kind, names in before.live().items())
        return sum(stored_bytes(map(ObjectId, names.view("V32").tolist()), self.catalog)[1] for names in gone)

    def _public(self, choice: _Choice) -> tuple[tuple[tuple[Commit, tuple[str, ...]], ...], tuple[Commit, ...]]:
        read = self.revisions.commit
        keeping = tuple((commit_of(name, read(name)), why) for name, why in choice.kept.items())
        return keeping, tuple(commit_of(name, commit) for name, commit in choice.dropped.items())


def _check_metrics(branch: str, policy: Policy, history: Collection[CommitObject]) -> None:
    """A misspelt metric keeps nothing, and what is dropped does not come back."""
    for best in policy.best:
        if all(metric_of(commit, best.metric) is None for commit in history):
            raise Invalid(
                f"no commit of branch {branch} has a metric called {best.metric!r:.100}; `cas log` shows them"
            )


def policy_of_branch(root: Record, branch: str) -> Policy | None:
    """The policy that commits on this branch apply."""
    node = policies(root).get(branch)
    return None if node is None else decode_policy(node)


def with_policy(root: Record, branch: str, policy: Policy | None) -> dict[str, Node]:
    """The store's config with this policy for a branch, or with none."""
    held = {**policies(root), branch: None if policy is None else encode_policy(policy)}
    pairs = [[name, node] for name, node in sorted(held.items()) if node is not None]
    rest = {key: value for key, value in root.config.items() if key != _CONFIG}
    return {**rest, _CONFIG: [Tag.DICT, pairs]} if pairs else rest


def policies(root: Record) -> dict[str, Node]:
    """By branch, the encoded policies of the store."""
    node = root.config.get(_CONFIG, [Tag.DICT, []])
    expect(type(node) is list and node[0] == Tag.DICT, "the store's policies have the wrong form")
    return dict(node[1])
