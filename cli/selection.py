"""Which tensors `cas checkout` takes out of a state, under which names, and what it leaves behind. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cas.commits import human_bytes
from cas.errors import Invalid
from cas.leaves import ABSENT, Leaf, TensorLeaf, ValueLeaf
from cas.paths import Path, format_path

from .output import listed

MODELS = ("model", "module", "model_state_dict", "state_dict")
"""The names by which training loops call the weights at the top of a state."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A leaf, or all leaves under one path, not taken. `kind` is the type of a value, or `tensors` or `values`."""

    path: str
    kind: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Tensors by the names that they get, in the state's order, and what was left out.

    `taken_apart` are values of a framework (sparse and quantised tensors), path to type: their tensors are taken.
    """

    tensors: dict[str, TensorLeaf]
    left_out: list[LeftOut]
    taken_apart: dict[str, str]


def scope(leaves: Iterable[Leaf], prefix: Path | None, take_all: bool) -> Path:
    """Below which path to take all: any; `prefix`; the one subtree that is a model; or any of a flat state."""
    if take_all:
        return ()
    return _model(list(leaves)) if prefix is None else prefix


def absent_below(leaves: Iterable[Leaf], prefix: Path) -> Iterator[Path]:
    """Where below `prefix` something is absent on purpose."""
    return (leaf.path for leaf in leaves if _is_absent(leaf) and leaf.path[: len(prefix)] == prefix)


def _is_absent(leaf: Leaf) -> bool:
    return isinstance(leaf, ValueLeaf) and leaf.kind == ABSENT


def select(leaves: Iterable[Leaf], prefix: Path) -> Selection:
    """What to take: all tensors below `prefix`."""
    held = list(leaves)
    named: dict[str, TensorLeaf] = {}
    for leaf in held:
        if isinstance(leaf, TensorLeaf) and leaf.path[: len(prefix)] == prefix:
            name = ".".join(map(str, leaf.path[len(prefix) :] or leaf.path[-1:]))
            if name in named:
                one, other = format_path(named[name].path), format_path(leaf.path)
                raise Invalid(f"{one} and {other} would both be called {name}; check out a subtree")
            named[name] = leaf
    if not named:
        raise Invalid(f"there are no tensors at {format_path(prefix)}; `cas show` lists what there is")
    composites = [leaf for leaf in held if isinstance(leaf, ValueLeaf) and leaf.is_composite]
    taken_apart = {format_path(leaf.path): leaf.kind for leaf in composites if leaf.path[: len(prefix)] == prefix}
    apart = {leaf.path for leaf in composites}
    return Selection(named, _left_out([leaf for leaf in held if leaf.path not in apart], prefix), taken_apart)


def _model(leaves: list[Leaf]) -> Path:
    """The path of the weights in a state whose form tells; `Invalid` with the subtrees otherwise."""
    nested = [leaf for leaf in leaves if isinstance(leaf, TensorLeaf) and len(leaf.path) > 1]
    if not nested:
        return ()
    models = {leaf.path[0] for leaf in nested if leaf.path[0] in MODELS}
    if len(models) == 1:
        return (models.pop(),)
    sizes: dict[str, int] = {}
    for leaf in nested:
        top = format_path(leaf.path[:1])
        sizes[top] = sizes.get(top, 0) + leaf.nbytes
    found = listed([f"{path} ({human_bytes(size)})" for path, size in sizes.items()])
    raise Invalid(f"say which part of the state to check out, {found}, or --all of it")


def _left_out(leaves: list[Leaf], prefix: Path) -> list[LeftOut]:
    """Values below `prefix` one by one; what is elsewhere by the level at which it goes another way."""
    found: dict[str, LeftOut] = {}
    for leaf in leaves:
        inside = leaf.path[: len(prefix)] == prefix
        if inside and isinstance(leaf, TensorLeaf):
            continue
        path = leaf.path if inside else _fork(leaf.path, prefix)
        text, kind = format_path(path), _kind(leaf, path)
        before = found.get(text)
        if before is not None:
            kind = "tensors" if "tensors" in (kind, before.kind) else "values"
        found[text] = LeftOut(text, kind, leaf.nbytes + (before.nbytes if before else 0))
    return list(found.values())


def _kind(leaf: Leaf, shown: Path) -> str:
    if isinstance(leaf, TensorLeaf):
        return "tensors" if len(leaf.path) > len(shown) else "tensor"
    return "values" if len(leaf.path) > len(shown) else leaf.kind


def _fork(path: Path, prefix: Path) -> Path:
    """The path up to the first level in which it differs from `prefix`."""
    same = 0
    while same < min(len(path), len(prefix)) and path[same] == prefix[same]:
        same += 1
    return path[: same + 1]
