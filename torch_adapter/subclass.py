"""Tensor subclasses that consist of other tensors, as `__tensor_flatten__` tells: their tensors by name, and

    __wrapper__    class, context, size, stride, dtype, and orders where there are any

`orders` names the tensors that do not lie row-major, with their dimensions, outermost first: they are stored in that
order, so that they come back with the strides that some subclasses (transposed fp4, for one) go by.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter

from cas.errors import Corrupt, Unsupported
from cas.nodes import expect
from cas.tensors import Composite

from .context import class_name, described, find_class

_WRAPPER = "__wrapper__"
_ABOUT = {"class", "context", "size", "stride", "dtype"}
_SHARDED = "which is sharded; only the processes of its job can make it"
_UNINITIALIZED = "which has no data yet; run the lazy module on one batch first"
# Looked up by name: the classes are not imported here.
_REFUSED = {
    "DTensor": _SHARDED,
    "ShardedTensor": _SHARDED,
    "LocalShardsWrapper": "which says nothing of the whole tensor; commit the DTensor that it belongs to",
    "AsyncCollectiveTensor": "which a collective may still write; call its wait() first",
    "FakeTensor": "which has no data; commit outside of fake tensor mode",
    "FunctionalTensor": "which is part of a trace; commit outside of it",
    "NestedTensor": "which is nested; commit its parts, as from unbind()",
    "UninitializedParameter": _UNINITIALIZED,
    "UninitializedBuffer": _UNINITIALIZED,
}


def parts_of(value: torch.Tensor) -> Composite:
    """The subclass's instance by its parts; `Unsupported` if they would not make it again."""
    kind = type(value)
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    what = f"is {article} {kind.__name__}"
    reason = _refusal(kind)
    if reason is not None:
        raise Unsupported(f"{what}, {reason}")
    name = class_name(kind)
    if name is None:
        raise Unsupported(f"{what}, whose name does not lead to it; define the class at the top of its module")
    tensors, context = _flattened(value, what)
    _unflattened(kind, tensors, context, value, what, Unsupported)
    orders = {key: order for key, part in tensors.items() if (order := _order(part)) is not None}
    about = {
        "class": name,
        "context": described(context),
        "size": value.shape,
        "stride": _dense_stride(value),
        "dtype": value.dtype,
        **({"orders": orders} if orders else {}),
    }
    stored = {key: part.permute(orders[key]) if key in orders else part for key, part in tensors.items()}
    return Composite("torch", "subclass", {_WRAPPER: about, **stored})


def compose(parts: dict[Any, Any]) -> torch.Tensor:
    about: Any = parts.get(_WRAPPER)
    expect(type(about) is dict and about.keys() - {"orders"} == _ABOUT, "a tensor subclass does not say what it is")
    kind = find_class(about["class"])
    expect(issubclass(kind, torch.Tensor), "a tensor subclass is of a class that is none")
    reason = _refusal(kind)
    if reason is not None:
        raise Unsupported(f"is a {kind.__name__}, {reason}")
    tensors = {name: part for name, part in parts.items() if name != _WRAPPER}
    expect(all(type(name) is str and isinstance(part, torch.Tensor) for name, part in tensors.items()), _OTHER_PARTS)
    orders = about.get("orders", {})
    expect(type(orders) is dict and orders.keys() <= tensors.keys(), _OTHER_PARTS)
    for name, order in orders.items():
        tensors[name] = _reordered(tensors[name], order)
    _check_form(about)
    like = torch.empty_strided(about["size"], about["stride"], dtype=about["dtype"], device="meta")
    made = _unflattened(kind, tensors, about["context"], like, f"is a {kind.__name__}", Corrupt)
    return made.requires_grad_(False) if made.requires_grad else made


_OTHER_PARTS = "a tensor subclass has other parts"


def _refusal(kind: type) -> str | None:
    """Why instances of a class cannot be stored; None if they can."""
    for base in kind.__mro__:
        if base.__name__ in _REFUSED:
            return _REFUSED[base.__name__]
    if callable(getattr(kind, "__tensor_flatten__", None)) and callable(getattr(kind, "__tensor_unflatten__", None)):
        return None
    return "a tensor subclass without __tensor_flatten__; commit the plain tensors that it consists of"


def _flattened(value: Any, what: str) -> tuple[dict[str, Any], Any]:
    try:
        names, context = value.__tensor_flatten__()
        tensors = {name: getattr(value, name) for name in names}
    except Exception as error:  # whatever the class's own code raises
        raise Unsupported(f"{what} that does not say what it consists of: {_line(error)}") from error
    named = bool(tensors) and _WRAPPER not in tensors and all(type(name) is str for name in tensors)
    if not named or not all(isinstance(part, torch.Tensor) for part in tensors.values()):
        raise Unsupported(f"{what} that consists of more than named tensors; commit the plain tensors in it")
    return tensors, context


def _unflattened(
    kind: Any, tensors: dict[str, Any], context: Any, like: torch.Tensor, what: str, wrong: type[Corrupt | Unsupported]
) -> torch.Tensor:
    """The instance of `kind`; `wrong` if its code refuses, or makes something that is not of the form of `like`."""
    try:
        with torch.no_grad():
            made: Any = kind.__tensor_unflatten__(dict(tensors), context, like.shape, like.stride())
        same = type(made) is kind and made.shape == like.shape and made.dtype == like.dtype
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the class's own code raises
        raise wrong(f"{what} that cannot be made of its parts: {_line(error)}") from error
    if not same:
        raise wrong(f"{what} that its parts do not make again; commit or load it with another version of its class")
    found: torch.Tensor = made
    return found


def _order(part: torch.Tensor) -> torch.Size | None:
    """The dimensions of a plain tensor by falling stride; None where they are in order already."""
    plain = type(part) in (torch.Tensor, Parameter) and part.layout is torch.strided and not part.is_nested
    if not plain or part.is_quantized or part.is_contiguous():
        return None
    strides = part.stride()
    order = sorted(range(part.ndim), key=lambda at: -strides[at])
    return None if order == list(range(part.ndim)) else torch.Size(order)


def _reordered(part: torch.Tensor, order: Any) -> torch.Tensor:
    """The inverse of `permute(order)`."""
    valid = type(order) is torch.Size and type(part) is torch.Tensor
    expect(valid and sorted(order) == list(range(part.ndim)), "a tensor's dimensions have an impossible order")
    return part.permute(sorted(range(part.ndim), key=lambda at: order[at]))


def _dense_stride(value: torch.Tensor) -> torch.Size:
    """The strides that the tensor has once nothing lies between its elements."""
    like = torch.empty_strided(value.shape, value.stride(), device="meta")
    return torch.Size(torch.empty_like(like).stride())


def _check_form(about: dict[str, Any]) -> None:
    for numbers in (about["size"], about["stride"]):
        valid = type(numbers) is torch.Size and all(number >= 0 for number in numbers)
        expect(valid and len(numbers) == len(about["size"]), "a tensor subclass has an impossible shape")
    expect(type(about["dtype"]) is torch.dtype, "a tensor subclass has no dtype")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
