"""Remotes: names for other stores, kept in the config of the root.

config "remotes": [DICT, [[name, [DICT, [["options", [DICT, [[option, value], ...]]], ["url", text]]]], ...]] sorted
and in such a remote, where not everything is to be fetched, "only": [LIST, [pattern, ...]]

Whoever reads the store reads its config, and records stay for ever: so only options that are known to be no secret are
kept, and URLs without passwords. Branches of the remote `origin` are seen here as tracking branches `origin/main`, so
no branch or tag here may be called so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .block import ObjectId
from .errors import Exists, Invalid, NotFound
from .log import Record
from .nodes import Node, Tag, expect
from .refs import Ref, RefKind, Refs, check_name
from .urls import check_url

ORIGIN = "origin"
_CONFIG = "remotes"
_OPTIONS = frozenset(
    (
        "anon",
        "endpoint_url",
        "host",
        "port",
        "profile",
        "project",
        "region_name",
        "requester_pays",
        "use_ssl",
        "username",
    )
)
"""Options of fsspec that are no secret, whatever their value."""
Value = str | int | bool


@dataclass(frozen=True, slots=True)
class Remote:
    """Another store: a path or URL, and what else is needed to open it. Neither holds a secret. `name` is empty for
    one that is no remote of this store.

    Fetches and pulls that do not say otherwise take of states what matches a pattern of `only`, all where there is
    none.
    """

    name: str
    url: str
    options: Mapping[str, Value] = field(default_factory=dict)
    only: tuple[str, ...] = ()


def kept_options(options: Mapping[str, Any]) -> dict[str, Value]:
    """Those of some options of fsspec that may be kept with a remote."""
    return {name: value for name, value in options.items() if name in _OPTIONS and isinstance(value, Value)}


def remotes_of(root: Record) -> dict[str, Remote]:
    """The remotes of a store by name, sorted."""
    node = root.config.get(_CONFIG, [Tag.DICT, []])
    return {name: _decode(name, held) for name, held in _pairs(node)}


def with_remote(root: Record, remote: Remote) -> dict[str, Node]:
    """The store's config with one more; `Exists` where its name is taken, by a remote or by refs."""
    _check_remote_name(remote.name)
    held = remotes_of(root)
    if remote.name in held:
        raise Exists(
            f"remote {remote.name} exists, it is {held[remote.name].url}; remove it first, or use another name"
        )
    for kind, name in root.refs:
        if (name + "/").startswith(remote.name + "/") and kind is not RefKind.TRACKING:
            raise Exists(f"{kind.name.lower()} {name} stands where remote {remote.name} has its branches; rename one")
    _check_options(remote)
    return _config(root, {**held, remote.name: remote})


def without_remote(root: Record, name: str) -> tuple[dict[str, Node], Refs]:
    """The store's config without a remote, and its refs without the tracking branches of that."""
    held = remotes_of(root)
    if name not in held:
        raise NotFound(f"there is no remote {name!r:.200}; {_known(held)}")
    del held[name]
    refs = {ref: commit for ref, commit in root.refs.items() if not is_tracking_of(name, ref)}
    return _config(root, held), refs


def is_tracking_of(name: str, ref: Ref) -> bool:
    """Whether a ref is a tracking branch of this remote."""
    return ref[0] is RefKind.TRACKING and ref[1].startswith(name + "/")


def make_way(refs: Refs, name: str) -> dict[Ref, ObjectId]:
    """The refs without tracking branches above or below this one: its remote cannot have both."""

    def is_in_the_way(ref: Ref) -> bool:
        return ref[0] is RefKind.TRACKING and (ref[1].startswith(name + "/") or name.startswith(ref[1] + "/"))

    return {ref: commit for ref, commit in refs.items() if not is_in_the_way(ref)}


def with_pushed(root: Record, remote: str, branches: Mapping[str, ObjectId]) -> Refs:
    """The store's refs with tracking branches of what was pushed to a remote that it still knows.

    Of commits that no ref of the root names it is not sure that they are still there: of these the next fetch tells.
    """
    refs: Refs = root.refs
    named = set(root.refs.values())
    for name, commit in branches.items():
        if remote in remotes_of(root) and commit in named:
            tracking = f"{remote}/{name}"
            refs = {**make_way(refs, tracking), (RefKind.TRACKING, tracking): commit}
    return refs


def check_not_remote(root: Record, ref: Ref) -> None:
    """`Exists` if a new branch or tag would look like a tracking branch."""
    kind, name = ref
    for remote in remotes_of(root) if kind is not RefKind.TRACKING else ():
        if (name + "/").startswith(remote + "/"):
            raise Exists(f"{name} would look like a branch of remote {remote}; choose another name")


def find(root: Record, name: str) -> Remote:
    """The remote of that name; `NotFound` lists those that there are."""
    held = remotes_of(root)
    if name not in held:
        raise NotFound(f"there is no remote {name!r:.200}; {_known(held)}")
    return held[name]


def _known(held: Mapping[str, Remote]) -> str:
    known = f"there are {', '.join(sorted(held))}; " if held else ""
    return f"{known}add one with `cas remote add NAME URL`, or give a path or URL"


def _check_remote_name(name: object) -> None:
    if name != ORIGIN:
        check_name(name, "remote")
    if "/" in str(name):
        raise Invalid(f"remote name {name!r:.200} holds a slash; choose another")


def _check_options(remote: Remote) -> None:
    for option in remote.options.keys() - kept_options(remote.options).keys():
        raise Invalid(
            f"option {option!r:.100} is not kept with a remote, for anyone who reads the store would see it: put "
            "keys and secrets into fsspec's configuration, or pass --storage-option on each call"
        )
    for value in remote.options.values():
        if isinstance(value, str):
            check_url(value)


def _config(root: Record, held: Mapping[str, Remote]) -> dict[str, Node]:
    rest = {key: value for key, value in root.config.items() if key != _CONFIG}
    pairs = _sorted({name: _encode(remote) for name, remote in held.items()})
    return {**rest, _CONFIG: [Tag.DICT, pairs]} if pairs else rest


def _encode(remote: Remote) -> Node:
    fields: dict[str, Node] = {"url": remote.url, "options": [Tag.DICT, _sorted(remote.options)]}
    if remote.only:
        fields["only"] = [Tag.LIST, list(remote.only)]
    return [Tag.DICT, _sorted(fields)]


def _sorted(items: Mapping[str, Any]) -> list[Node]:
    return [[name, value] for name, value in sorted(items.items())]


def _decode(name: str, node: Node) -> Remote:
    fields: dict[str, Any] = dict(_pairs(node))
    url, options = fields.get("url"), dict(_pairs(fields.get("options")))
    only = fields.get("only", [Tag.LIST, []])
    expect(type(url) is str and type(name) is str and "/" not in name, "a remote of the store has the wrong form")
    expect(all(type(value) in (str, int, bool) for value in options.values()), "a remote has a malformed option")
    is_list = type(only) is list and only[0] == Tag.LIST
    expect(is_list and all(type(pattern) is str for pattern in only[1]), "a remote has malformed patterns")
    return Remote(name, str(url), options, tuple(only[1]))


def _pairs(node: Node) -> list[Node]:
    """The entries of a DICT node, which was checked when its record was read."""
    expect(type(node) is list and node[0] == Tag.DICT, "the store's remotes have the wrong form")
    pairs: list[Node] = node[1]
    return pairs
