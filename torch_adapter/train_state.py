"""The whole state of a training run as one nested dict that a store commits."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from cas.errors import CasError, Invalid
from cas.loader import MISSING
from cas.per_rank import PerRank

from . import rng
from .sharded import sharded

_OWN = ("metadata", "rng", "step")
_PER_RANK = ("loader", "rng")


class Stateful(Protocol):
    """A part of a training run; torch's modules, optimizers, schedulers and scalers are such."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class TrainState:
    """Model, optimizer, scheduler, scaler, loader and any other part with `state_dict` and `load_state_dict`, and
    with them the global random generators (python, numpy, torch and its devices) and the step.

    A run restored from what `capture` gave goes on bit for bit as the captured one. Generators of your own (a
    `torch.Generator`, a `numpy.random.Generator`) belong in the state_dict of the part that draws from them.
    `step` is the last step captured or restored, 0 before.

    In a job of many ranks each makes its own TrainState, and `template` is what sharded parts are loaded into. The
    generators and the loader are stored as `PerRank`, in one process too: what one rank drew must not silently become
    what all draw. What all ranks have alike, such as a loader that only counts steps, goes under another name.
    """

    def __init__(
        self,
        *,
        model: Stateful | None = None,
        optimizer: Stateful | None = None,
        scheduler: Stateful | None = None,
        scaler: Stateful | None = None,
        loader: Stateful | None = None,
        **others: Stateful,
    ) -> None:
        usual = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "loader": loader}
        self._parts = {name: part for name, part in usual.items() if part is not None} | others
        self.step = 0
        for name, part in self._parts.items():
            _check_part(name, part)

    def capture(self, step: int) -> dict[str, Any]:
        """The state after `step` steps.

        Its tensors are the live ones, not copies: commit it before the next step changes them (`commit_async` has
        its copy when it returns).
        """
        if type(step) is not int or step < 0:
            raise Invalid(f"step is {step!r:.80}; pass the number of finished steps, an int of 0 or more")
        states = {name: part.state_dict() for name, part in self._parts.items()}
        metadata = {name: state._metadata for name, state in states.items() if hasattr(state, "_metadata")}
        self.step = step
        state = {**states, "metadata": metadata, "rng": rng.capture(), "step": step}
        return {name: PerRank(value) if name in _PER_RANK else value for name, value in state.items()}

    def template(self) -> dict[str, Any]:
        """What to pass as `into=` where parts are sharded: their live shards, and nothing where anything may come.

        Whatever layout was committed, only what this rank holds is then read. An optimizer that has not stepped
        shows the tensors that it would make, and stays as it is.
        """
        places = {name: _places_in(name, part) for name, part in self._parts.items()}
        return places | dict.fromkeys(_OWN, MISSING)

    def restore(self, state: dict[str, Any] | None) -> int:
        """Put every part back and return the step; None, an empty branch, changes nothing and returns 0.

        `Invalid` if the parts of `state` are not exactly those of this object, before anything has changed; also
        if a part refuses its state, and then the parts before it are restored already. Optimizers keep the tensors
        of `state` as their own: load it again to restore it again. The generators and the loader stay as they are if
        `state` has neither, as after `load(..., per_rank="skip")` on a rank that the captured run did not have.
        """
        if state is None:
            return 0
        state = self._checked(state)
        for name, part in self._parts.items():
            if name in state:
                _load(name, part, state[name], state["metadata"].get(name))
        try:  # last, for loading may draw random numbers
            if "rng" in state:
                rng.restore(state["rng"])
        except Exception as error:  # whatever the generators raise
            raise Invalid(f"rng does not hold the state of the random generators: {_line(error)}") from error
        self.step = state["step"]
        return self.step

    def _checked(self, state: dict[str, Any]) -> dict[str, Any]:
        """What `state` has, each rank's own values bare; `Invalid` unless that is what this object needs."""
        if not isinstance(state, dict):
            raise Invalid(f"the state is a {type(state).__name__}; pass what capture gave, loaded whole")
        held = {name: value.value if type(value) is PerRank else value for name, value in state.items()}
        held = {name: value for name, value in held.items() if value is not MISSING}
        skipped = not any(name in held for name in _PER_RANK)
        needed = [name for name in (*self._parts, *_OWN) if not (skipped and name in _PER_RANK)]
        missing = [name for name in needed if name not in held]
        extra = [name for name in held if name not in self._parts and name not in _OWN]
        if missing or extra:
            lacks = f"lacks {_names(missing)}" if missing else ""
            has = f"has {_names(extra)}, which this TrainState was not given" if extra else ""
            both = " and ".join(filter(None, [lacks, has]))
            raise Invalid(f"the state {both}; make TrainState with the parts that were captured")
        if type(held["step"]) is not int or not isinstance(held.get("rng", {}), dict):
            raise Invalid("the state's step is no int or its rng no dict; pass what capture gave, loaded whole")
        if not isinstance(held["metadata"], dict):
            raise Invalid("the state's metadata is no dict; pass what capture gave, loaded whole")
        return held


def _names(names: list[Any]) -> str:
    return ", ".join(str(name)[:80] for name in names[:5])


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _check_part(name: str, part: object) -> None:
    if name in _OWN:
        raise Invalid(f"{name} is kept by TrainState itself; give your part another name")
    if callable(getattr(part, "state_dict", None)) and callable(getattr(part, "load_state_dict", None)):
        return
    if isinstance(part, DataLoader):
        raise Invalid(
            f"{name} is a torch DataLoader, which cannot say where it stands; pass torchdata's StatefulDataLoader, "
            "or a loader of your own with state_dict and load_state_dict"
        )
    raise Invalid(f"{name} is a {type(part).__name__} without state_dict and load_state_dict; give it both")


class _Offered(dict[Any, Any]):
    """Places for a load to fill. Those for what the commit lacks, as for parameters that had no step yet, vanish."""

    def __init__(self, places: dict[Any, Any]) -> None:
        super().__init__()
        self._places = places

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __missing__(self, key: Any) -> Any:
        return self._places[key]


def _places_in(name: str, part: Stateful) -> Any:
    """Where a load may put what it finds for a part."""
    if not isinstance(part, torch.optim.Optimizer):
        return _places(part.state_dict())
    if not _is_sharded(part):
        return MISSING
    try:
        stepped = part if part.state else _stepped_twin(part)
        return {"state": _Offered(_places(stepped.state_dict()["state"])), "param_groups": MISSING}
    except Exception as error:  # whatever the optimizer's own code raises
        raise Invalid(
            f"the state that {name} will have cannot be told: {_line(error)}; let it make a step before template()"
        ) from error


def _places(state: Any) -> Any:
    """The sharded tensors of a state where they stand; for all else it says that anything may come."""
    if isinstance(state, torch.Tensor) and sharded(state) is not None:
        return state
    if not isinstance(state, dict):
        return MISSING
    places = {key: _places(value) for key, value in state.items()}
    return MISSING if all(place is MISSING for place in places.values()) else places


def _is_sharded(part: Stateful) -> bool:
    """Whether a model or an optimizer has parameters that other ranks hold parts of."""
    parameters: Iterable[torch.Tensor] = ()
    if isinstance(part, torch.nn.Module):
        parameters = part.parameters()
    elif isinstance(part, torch.optim.Optimizer):
        parameters = (parameter for group in part.param_groups for parameter in group["params"])
    return any(sharded(parameter) is not None for parameter in parameters)


def _is_whole(state: Any) -> bool:
    """Whether a state has arrays, none of them sharded."""
    tensors = list(_tensors(state))
    return any(tensor.ndim for tensor in tensors) and all(sharded(tensor) is None for tensor in tensors)


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)


def _stepped_twin(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimizer of the same kind that has made one step on parameters of zeros."""
    twin = copy.copy(optimizer)
    twin.state = defaultdict(dict)
    twin.param_groups = [
        {**group, "params": [_zeros_like(parameter) for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    twin.step()
    return twin


def _zeros_like(parameter: torch.Tensor) -> torch.Tensor:
    made = torch.zeros_like(parameter).requires_grad_(parameter.requires_grad)
    if made.requires_grad:
        made.grad = torch.zeros_like(made)
    return made


def _load(name: str, part: Stateful, state: Any, metadata: Any) -> None:
    if _is_sharded(part) and _is_whole(state):
        raise Invalid(f"{name} is sharded and its state was loaded whole; load it with into=ts.template()")
    try:
        if metadata is not None:  # versions of the modules, an attribute that a store does not keep
            state = OrderedDict(state)
            state._metadata = metadata
        part.load_state_dict(state)
        if isinstance(part, torch.optim.Optimizer):
            _undo_casts(part, state)
    except CasError:
        raise
    except Exception as error:  # whatever the part's own code raises
        raise Invalid(f"{name} does not take its state: {_line(error)}") from error


def _undo_casts(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give the optimizer its tensors in the dtypes that it had made them in.

    torch casts them to the dtype of their parameter, which for bf16 parameters rounds fp32 state.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for key, saved in state["state"].get(number, {}).items():
            loaded = optimizer.state[parameter].get(key)
            if isinstance(saved, torch.Tensor) and isinstance(loaded, torch.Tensor) and loaded.dtype != saved.dtype:
                optimizer.state[parameter][key] = saved.to(loaded.device)
