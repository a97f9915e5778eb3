"""What a tensor subclass says of itself besides its tensors: enums, dataclasses and named tuples as their fields.

    kind          parts
    enum          class, member
    dataclass     class, fields: a dict
    namedtuple    class, items: a tuple

`class` is `module:qualified name`. The names come from stores: they are looked up among what this process has
imported, nothing is imported for them but torchao itself, and no code of what they name is run.
"""

from __future__ import annotations

import importlib
import sys
from collections import OrderedDict
from dataclasses import fields, is_dataclass
from enum import Enum
from types import ModuleType
from typing import Any

from cas.errors import Unsupported
from cas.nodes import MAX_DEPTH, expect
from cas.tensors import Composite

_FRAMEWORK = "torch"


def class_name(kind: type) -> str | None:
    """The name by which `find_class` finds exactly this class; None if it does not."""
    name = f"{kind.__module__}:{kind.__qualname__}"
    return name if _look_up(name) is kind else None


def find_class(name: object) -> type:
    """`Unsupported`, saying what to import, unless this process knows the class."""
    expect(type(name) is str and ":" in name, "a class has no valid name")
    module = str(name).partition(":")[0]
    if module not in sys.modules and module.partition(".")[0] == "torchao":
        _import_torchao()
    found = _look_up(str(name))
    if found is None:
        raise Unsupported(f"needs the class {str(name)[:200]}, which is not known here; import {module[:200]} first")
    return found


def _import_torchao() -> None:
    try:
        importlib.import_module("torchao")
    except Exception as error:  # whatever its own code raises
        raise Unsupported(f"needs torchao, which cannot be imported ({error}); run: pip install torchao") from error


def _look_up(name: str) -> type | None:
    """Attributes are read where they lie: `getattr` would run the code of lazy modules and descriptors."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for level in qualname.split("."):
        found = vars(found).get(level) if isinstance(found, ModuleType | type) else None
    return found if isinstance(found, type) else None


def described(value: Any, depth: int = 0) -> Any:
    """The value with every enum, dataclass and named tuple in it by its parts; what is unknown stays as it is."""
    if depth > MAX_DEPTH:
        raise Unsupported(f"has a context nested deeper than {MAX_DEPTH} levels")
    kind = type(value)
    if kind is dict or kind is OrderedDict:
        return kind((key, described(item, depth + 1)) for key, item in value.items())
    if kind is list or kind is tuple:
        return kind(described(item, depth + 1) for item in value)
    return _object(value, kind, depth)


def _object(value: Any, kind: Any, depth: int) -> Any:
    if isinstance(value, Enum):
        if class_name(kind) is None or kind.__members__.get(value.name) is not value:
            return value
        return Composite(_FRAMEWORK, "enum", {"class": class_name(kind), "member": value.name})
    if _is_named_tuple(kind) and class_name(kind) is not None:
        items = described(tuple(value), depth + 1)
        return Composite(_FRAMEWORK, "namedtuple", {"class": class_name(kind), "items": items})
    if _is_dataclass(kind) and class_name(kind) is not None:
        held = _fields(value)
        if held is not None:
            parts = {"class": class_name(kind), "fields": described(held, depth + 1)}
            return Composite(_FRAMEWORK, "dataclass", parts)
    return value


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and type(vars(kind).get("_fields")) is tuple


def _is_dataclass(kind: type) -> bool:
    """Of plain objects, and without code that would run when one is made or dropped."""
    return is_dataclass(kind) and kind.__new__ is object.__new__ and not hasattr(kind, "__del__")


def _fields(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass's instance; None if they are not all that it holds."""
    names = [item.name for item in fields(value)]
    if not all(hasattr(value, name) for name in names) or not set(getattr(value, "__dict__", ())) <= set(names):
        return None
    return {name: getattr(value, name) for name in names}


def enum_of(parts: dict[Any, Any]) -> Any:
    expect(parts.keys() == {"class", "member"} and type(parts["member"]) is str, "an enum has other parts")
    kind: Any = find_class(parts["class"])
    expect(issubclass(kind, Enum), "an enum is of a class that is none")
    found = kind.__members__.get(parts["member"])
    if found is None:
        raise Unsupported(f"needs a member of {parts['class'][:200]} that this version of it does not have")
    return found


def named_tuple_of(parts: dict[Any, Any]) -> Any:
    expect(parts.keys() == {"class", "items"} and type(parts["items"]) is tuple, "a named tuple has other parts")
    kind: Any = find_class(parts["class"])
    expect(_is_named_tuple(kind), "a named tuple is of a class that is none")
    _check_fields(parts["class"], len(kind._fields) == len(parts["items"]))
    return tuple.__new__(kind, parts["items"])


def dataclass_of(parts: dict[Any, Any]) -> Any:
    expect(parts.keys() == {"class", "fields"} and type(parts["fields"]) is dict, "a dataclass has other parts")
    kind: Any = find_class(parts["class"])
    expect(_is_dataclass(kind), "a dataclass is of a class that is none")
    _check_fields(parts["class"], {item.name for item in fields(kind)} == parts["fields"].keys())
    made = object.__new__(kind)
    for name, value in parts["fields"].items():
        object.__setattr__(made, name, value)
    return made


def _check_fields(name: str, same: bool) -> None:
    if not same:
        raise Unsupported(f"needs {name[:200]} with other fields than it has here; install the version that was used")
