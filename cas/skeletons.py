"""Several ranks' structures as the skeleton of one state.

Dicts are joined by key; all else must have the same form on all ranks that have it. Keys stand in the order of the
first rank; one that is new goes after the key before it in its own rank's order, or to the end if it is the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .dtypes import DTYPES
from .errors import Invalid, Unsupported
from .nodes import MAX_ENTRIES, Tag
from .outline import Form, Place, Structure
from .paths import Key, format_path
from .slot import Slot
from .state import Composed, Container, Leaf
from .tensors import Array, Tensor

Part = tuple[int, Any]
"""What structure number so and so has at a path."""

_NAMES = {
    Tag.DICT: "a dict",
    Tag.LIST: "a list",
    Tag.TUPLE: "a tuple",
    Tag.ORDERED: "an OrderedDict",
    Tag.COUNTER: "a Counter",
    Tag.TEXT: "a str",
    Tag.BYTES: "a bytes",
    Tag.PICKLE: "a pickle",
}


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The bytes of a leaf that other processes hold."""

    nbytes: int
    device: None = None

    def read_into(self, start: int, out: Array) -> None:
        raise Invalid("the bytes of this leaf are held by other ranks; read them there")


@dataclass(slots=True)
class MergedSkeleton:
    """The merged state: `root`, with its leaves and slots in order.

    `ranks[s]` is the first rank that has structure s; structures stand in the order of these. Leaf n of structure s
    became the merged leaf `leaf_at[s][n]`, value n the slot `slot_at[s][n]`.
    """

    structures: Sequence[Structure]
    ranks: Sequence[int]
    root: Any = None
    leaves: list[Leaf] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    leaf_at: list[list[int]] = field(default_factory=list)
    slot_at: list[list[int]] = field(default_factory=list)
    _trail: list[Key] = field(default_factory=list)
    _entries: int = 0

    def __post_init__(self) -> None:
        self.leaf_at = [[-1] * len(structure.forms) for structure in self.structures]
        self.slot_at = [[-1] * structure.values for structure in self.structures]
        self.root = self._join([(number, structure.root) for number, structure in enumerate(self.structures)])

    def _join(self, parts: list[Part]) -> Any:
        first = parts[0][1]
        form = _form(first)
        for number, part in parts:
            if _form(part) != form:
                self._refuse(parts[0], (number, part))
        if type(first) is Place:
            return self._leaf(parts, first.form) if first.form is not None else self._slot(parts)
        if type(first) is Composed:
            return Composed(first.framework, first.kind, self._join([(number, part.parts) for number, part in parts]))
        return self._container(parts, first)

    def _container(self, parts: list[Part], first: Container) -> Container:
        keys = None if first.keys is None else merged_order(part.keys for _, part in parts)
        found: dict[Key, list[Part]] = {key: [] for key in (range(len(first.children)) if keys is None else keys)}
        for number, part in parts:
            for key, child in zip(found if keys is None else part.keys, part.children, strict=True):
                found[key].append((number, child))
        self._entries += len(found)
        if self._entries > MAX_ENTRIES:
            raise Unsupported(f"the ranks together have over {MAX_ENTRIES} entries; store long lists as arrays")
        children = []
        for key, held in found.items():
            self._trail.append(key)
            children.append(self._join(held))
            self._trail.pop()
        return Container(first.tag, keys, children)

    def _leaf(self, parts: list[Part], form: Form) -> Leaf:
        for number, place in parts:
            self.leaf_at[number][place.number] = len(self.leaves)
        path = tuple(self._trail)
        if form.framework is None or form.dtype is None:
            leaf = Leaf.of_bytes(path, Elsewhere(form.shape[0]), Tag(form.tag), form.cell)
        else:
            leaf = Leaf(path, [], Tensor(form.framework, DTYPES[form.dtype], form.shape, [], None), cell=form.cell)
        self.leaves.append(leaf)
        return leaf

    def _slot(self, parts: list[Part]) -> Slot:
        for number, place in parts:
            self.slot_at[number][place.number] = len(self.slots)
        self.slots.append(Slot(tuple(self._trail)))
        return self.slots[-1]

    def _refuse(self, one: Part, other: Part) -> None:
        names = [_name(part, detail=False) for _, part in (one, other)]
        if names[0] == names[1]:
            names = [_name(part, detail=True) for _, part in (one, other)]
        said = [f"{name} on rank {self.ranks[number]}" for name, (number, _) in zip(names, (one, other), strict=True)]
        raise Invalid(
            f"state path {format_path(self._trail)} is {said[0]} and {said[1]}; "
            "give it one form, or wrap what is meant to differ in PerRank"
        )


def _form(part: Any) -> object:
    """What must be equal on all ranks."""
    if type(part) is Place:
        return part.form
    if type(part) is Composed:
        return part.framework, part.kind
    return part.tag, None if part.keys is not None else len(part.children)


def _name(part: Any, detail: bool) -> str:
    if isinstance(part, Container):
        return _NAMES[part.tag] + (f" of {len(part.children)}" if part.keys is None else "")
    if isinstance(part, Composed):
        return f"a {part.framework} {part.kind}"
    form: Form | None = part.form
    if form is None:
        return "a value"
    if form.dtype is None:
        name, maker = f"{_NAMES[Tag(form.tag)]} of {form.shape[0]} bytes", ""
    else:
        name, maker = f"{form.dtype} {list(form.shape)}", f" of {form.framework}"
    return f"{name}{maker} with cell {form.cell}" if detail else name


def merged_order(orders: Iterable[Sequence[Key]]) -> list[Key]:
    """All keys: those of the first order, each that is new after its own predecessor, at the end if it has none."""
    merged: list[Key] = []
    known: set[Key] = set()
    for order in orders:
        after: dict[Key, list[Key]] = {}
        last: list[Key] = []
        run = last
        for key in order:
            if key in known:
                run = after.setdefault(key, [])
            else:
                run.append(key)
        if not known.issuperset(order):
            merged = [key for old in merged for key in (old, *after.get(old, ()))] + last
            known.update(order)
    return merged
