"""A reader of pickles that runs nothing: a machine of the few instructions that checkpoints' descriptions consist of.

Python's own unpickler calls what a pickle names and lets a few bytes ask for any memory. Here a name stands for an
entry of the caller's table or is refused, and everything made counts against a budget.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .incoming import Unreadable

_MEMORY = 384 << 20
"""What a description and all that is made of it may take, by the costs below, in bytes."""
_REFERENCE, _VALUE, _MEMO, _CONTAINER, _CALL = 16, 48, 96, 128, 448
_DAMAGED = (IndexError, KeyError, TypeError, ValueError)


@dataclass(eq=False, slots=True)
class Record:
    """An object that the pickle describes: the name of its class, and its state, unchecked."""

    name: str
    state: Any = None


@dataclass(frozen=True, slots=True)
class Maker:
    """What a table gives for a name that is called. `make` checks its arguments: they may be anything."""

    make: Callable[..., Any]


def unpickle(data: bytes, table: Mapping[str, Any], storage: Callable[[Any], Any] | None = None) -> Any:
    """The value in `data`. `table` says what the names in it stand for; `storage` answers persistent ids.

    `Unreadable` names what the table does not have. The value may still be nested without end, and refer to itself.
    """
    machine = _Machine(data, table, storage, spent=len(data))
    try:
        while (instruction := data[machine.at]) != _STOP:
            machine.at += 1
            _INSTRUCTIONS[instruction](machine)
            if machine.spent > _MEMORY:
                raise Unreadable("its description is too large")
        return machine.stack.pop()
    except _DAMAGED as error:
        raise Unreadable("its description is damaged") from error


@dataclass(slots=True)
class _Machine:
    data: bytes
    table: Mapping[str, Any]
    storage: Callable[[Any], Any] | None
    spent: int
    at: int = 0
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def take(self, count: int) -> bytes:
        found = self.data[self.at : self.at + count]
        if len(found) != count:
            raise IndexError
        self.at += count
        self.spent += count
        return found

    def number(self, count: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(count), "little", signed=signed)

    def line(self) -> str:
        end = self.data.index(b"\n", self.at)
        found = self.data[self.at : end].decode()
        self.at = end + 1
        return found

    def push(self, value: Any, cost: int = _VALUE) -> None:
        self.spent += cost
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        at = self.marks.pop()
        found = self.stack[at:]
        del self.stack[at:]
        return found

    def last(self, count: int) -> tuple[Any, ...]:
        if count > len(self.stack):
            raise IndexError
        found = tuple(self.stack[-count:])
        del self.stack[-count:]
        return found

    def mark(self) -> None:
        self.spent += _VALUE
        self.marks.append(len(self.stack))

    def remember(self, key: int) -> None:
        self.spent += _MEMO
        self.memo[key] = self.stack[-1]

    def find(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise TypeError
        if f"{module} {name}" not in self.table:
            raise Unreadable(f"it needs {module:.80}.{name:.80}, which is not loaded safely")
        self.push(self.table[f"{module} {name}"], _REFERENCE)

    def call(self) -> None:
        maker, arguments = self.last(2)
        if type(maker) is not Maker or type(arguments) is not tuple:
            raise TypeError
        self.push(maker.make(*arguments), _CALL)

    def build(self) -> None:
        target, state = self.last(2)
        if type(target) is Record:
            target.state = state
        elif type(target) is not OrderedDict:  # whose attributes are those of a module's state: its version
            raise TypeError
        self.stack.append(target)

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError
        self.stack[-1].extend(items)

    def set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict) or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not _is_key(key):
                raise Unreadable(f"it has a {type(key).__name__} as a key; keys are texts and integers of 64 bits")
            self.spent += _MEMO
            target[key] = value

    def persistent(self) -> None:
        if self.storage is None:
            raise TypeError
        self.push(self.storage(self.stack.pop()), _CALL)


_STOP = ord(".")
_MAX_KEY = 1 << 63  # larger integers can be chosen such that all fall on one place of a hash table


def _is_key(key: Any) -> bool:
    """Whether a dict may have this key. Tuples, nested deep enough, exhaust the stack that hashes them."""
    return type(key) in (str, Record) or (type(key) is int and -_MAX_KEY <= key < _MAX_KEY)


def _text(m: _Machine, count: int) -> None:
    m.push(m.take(count).decode())


_INSTRUCTIONS: dict[int, Callable[[_Machine], Any]] = {
    0x80: lambda m: m.take(1),  # protocol
    0x95: lambda m: m.take(8),  # frame
    ord("N"): lambda m: m.push(None, _REFERENCE),
    0x88: lambda m: m.push(True, _REFERENCE),
    0x89: lambda m: m.push(False, _REFERENCE),
    ord("K"): lambda m: m.push(m.number(1)),
    ord("M"): lambda m: m.push(m.number(2)),
    ord("J"): lambda m: m.push(m.number(4, signed=True)),
    0x8A: lambda m: m.push(m.number(m.number(1), signed=True)),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    0x8C: lambda m: _text(m, m.number(1)),
    ord("X"): lambda m: _text(m, m.number(4)),
    ord("C"): lambda m: m.push(m.take(m.number(1))),
    ord("B"): lambda m: m.push(m.take(m.number(4))),
    ord(")"): lambda m: m.push((), _REFERENCE),
    ord("]"): lambda m: m.push([], _CONTAINER),
    ord("}"): lambda m: m.push({}, _CONTAINER),
    ord("("): lambda m: m.mark(),
    ord("t"): lambda m: m.push(tuple(m.since_mark()), _CONTAINER),
    0x85: lambda m: m.push(m.last(1), _CONTAINER),
    0x86: lambda m: m.push(m.last(2), _CONTAINER),
    0x87: lambda m: m.push(m.last(3), _CONTAINER),
    ord("a"): lambda m: m.extend(list(m.last(1))),
    ord("e"): lambda m: m.extend(m.since_mark()),
    ord("s"): lambda m: m.set(list(m.last(2))),
    ord("u"): lambda m: m.set(m.since_mark()),
    0x94: lambda m: m.remember(len(m.memo)),
    ord("q"): lambda m: m.remember(m.number(1)),
    ord("r"): lambda m: m.remember(m.number(4)),
    ord("h"): lambda m: m.push(m.memo[m.number(1)], _REFERENCE),
    ord("j"): lambda m: m.push(m.memo[m.number(4)], _REFERENCE),
    ord("c"): lambda m: m.find(m.line(), m.line()),
    0x93: lambda m: m.find(*m.last(2)),
    ord("R"): lambda m: m.call(),
    0x81: lambda m: m.call(),
    ord("b"): lambda m: m.build(),
    ord("Q"): lambda m: m.persistent(),
}
"""What each instruction does, by its number in the pickle protocol."""
