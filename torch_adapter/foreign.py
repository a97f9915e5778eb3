"""torch's plain values (dtypes, devices, sizes, layouts, memory formats) as kind and text, and back.

Texts come from stores, so they are looked up in tables and never used as names of anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from cas.errors import Corrupt


def _named(kind: type) -> dict[str, Any]:
    return {str(value).removeprefix("torch."): value for value in vars(torch).values() if type(value) is kind}


_CONSTANTS = {
    "dtype": _named(torch.dtype),
    "layout": _named(torch.layout),
    "memory_format": _named(torch.memory_format),
}
# Not the names that torch warns about.
_DEVICES = {"cpu", "cuda", "xpu", "mps", "meta", "xla", "hpu", "mtia", "maia", "ipu", "lazy", "privateuseone"}
_DEVICE = re.compile(r"([a-z0-9_]{1,32})(?::(0|[1-9][0-9]?|1[01][0-9]|12[0-7]))?")
_SIZE = re.compile(r"(?:-?[0-9]{1,19}(?:,-?[0-9]{1,19})*)?")


def foreign(value: Any) -> tuple[str, str] | None:
    """Kind and text of a plain value of torch; None for anything else."""
    kind = type(value)
    if kind is torch.dtype or kind is torch.layout or kind is torch.memory_format:
        return kind.__name__, str(value).removeprefix("torch.")
    if kind is torch.device:
        return "device", str(value)
    if kind is torch.Size:
        return "size", ",".join(map(str, value))
    return None


def value(kind: str, text: str) -> Any:
    """The inverse of `foreign`; `Corrupt` for what it never makes."""
    read = _READERS.get(kind)
    if read is not None:
        found = read(text)
    else:
        found = _CONSTANTS.get(kind, {}).get(text)
    if found is None:
        raise Corrupt(f"holds the torch {kind[:40]!r} {text[:80]!r}, which torch {torch.__version__} does not have")
    return found


def _device(text: str) -> torch.device | None:
    match = _DEVICE.fullmatch(text)
    known = _DEVICES | {torch._C._get_privateuse1_backend_name()}
    return torch.device(text) if match is not None and match[1] in known else None


def _size(text: str) -> torch.Size | None:
    if _SIZE.fullmatch(text) is None:
        return None
    sizes = [int(item) for item in text.split(",")] if text else []
    canonical = ",".join(map(str, sizes)) == text
    return torch.Size(sizes) if canonical and all(-(1 << 63) <= size < 1 << 63 for size in sizes) else None


_READERS: dict[str, Callable[[str], Any]] = {"device": _device, "size": _size}
