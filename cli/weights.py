"""The tensors of an export under the names that they get, as which dtype, and which of them are one. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cas.dtypes import DTYPES
from cas.errors import Corrupt, Invalid
from cas.leaves import TensorLeaf
from cas.paths import format_path

from .conversion import converted


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor, written as `dtype`. `aliases` are the other names of a tied one: the same tensor, stored once."""

    name: str
    leaf: TensorLeaf
    dtype: str
    aliases: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.leaf.shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def is_converted(self) -> bool:
        return self.dtype != self.leaf.dtype

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)


def renamed(tensors: Mapping[str, TensorLeaf], rules: Sequence[str]) -> dict[str, TensorLeaf]:
    """The tensors under new names: of rules OLD=NEW the first whose OLD begins a name puts NEW in its place.

    `Invalid` for a rule that fits no name, and for two tensors that would get one name.
    """
    pairs = [_rule(rule) for rule in rules]
    used: set[str] = set()
    found: dict[str, TensorLeaf] = {}
    for name, leaf in tensors.items():
        old, new = next((pair for pair in pairs if name.startswith(pair[0])), ("", ""))
        used.add(old)
        name = new + name.removeprefix(old)
        if name in found:
            one, other = format_path(found[name].path), format_path(leaf.path)
            raise Invalid(f"{one} and {other} would both be called {name}; change --rename")
        found[name] = leaf
    for old, new in pairs:
        if old not in used:
            raise Invalid(f"no name begins with {old}, as --rename {old}={new} wants; `cas show` lists the names")
    return found


def _rule(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals:
        raise Invalid(f"--rename takes OLD=NEW, two beginnings of names, not {text!r}")
    return old, new


def weights_of(tensors: Mapping[str, TensorLeaf], dtype: str | None) -> list[Weight]:
    """In the state's order; of tied tensors the first stays, as the others are made of it again on load.

    Floating-point tensors become `dtype` if one is given.
    """
    found: dict[object, tuple[str, TensorLeaf, list[str]]] = {}
    for name, leaf in tensors.items():
        tie: object = name if leaf.entry.tie is None else leaf.entry.tie
        first = found.setdefault(tie, (name, leaf, []))
        if first[0] == name:
            continue
        if first[1].entry != leaf.entry:
            where = f"{format_path(leaf.path)} is tied to {format_path(first[1].path)}, which differs"
            raise Corrupt(f"{where}; the commit was not written by this format")
        first[2].append(name)
    return [Weight(name, leaf, converted(leaf.dtype, dtype), tuple(aliases)) for name, leaf, aliases in found.values()]


def ties(weights: Sequence[Weight]) -> dict[str, str]:
    """The names that stand for another one's tensor, as safetensors notes them: alias to the name that is kept."""
    return {alias: weight.name for weight in weights for alias in weight.aliases}
