"""The whole state of a training run as one nested dict that a store commits."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from cas.errors import CasError, Invalid

from . import rng

_OWN = ("metadata", "rng", "step")


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
        return {**states, "metadata": metadata, "rng": rng.capture(), "step": step}

    def restore(self, state: dict[str, Any] | None) -> int:
        """Put every part back and return the step; None, an empty branch, changes nothing and returns 0.

        `Invalid` if the parts of `state` are not exactly those of this object, before anything has changed; also
        if a part refuses its state, and then the parts before it are restored already. Optimizers keep the tensors
        of `state` as their own: load it again to restore it again.
        """
        if state is None:
            return 0
        self._check(state)
        for name, part in self._parts.items():
            _load(name, part, state[name], state["metadata"].get(name))
        try:  # last, for loading may draw random numbers
            rng.restore(state["rng"])
        except Exception as error:  # whatever the generators raise
            raise Invalid(f"rng does not hold the state of the random generators: {_line(error)}") from error
        self.step = state["step"]
        return self.step

    def _check(self, state: dict[str, Any]) -> None:
        if not isinstance(state, dict):
            raise Invalid(f"the state is a {type(state).__name__}; pass what capture gave, loaded whole")
        missing = [name for name in (*self._parts, *_OWN) if name not in state]
        extra = [name for name in state if name not in self._parts and name not in _OWN]
        if missing or extra:
            lacks = f"lacks {_names(missing)}" if missing else ""
            has = f"has {_names(extra)}, which this TrainState was not given" if extra else ""
            both = " and ".join(filter(None, [lacks, has]))
            raise Invalid(f"the state {both}; make TrainState with the parts that were captured")
        if type(state["step"]) is not int or not isinstance(state["rng"], dict):
            raise Invalid("the state's step is no int or its rng no dict; pass what capture gave, loaded whole")
        if not isinstance(state["metadata"], dict):
            raise Invalid("the state's metadata is no dict; pass what capture gave, loaded whole")


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


def _load(name: str, part: Stateful, state: Any, metadata: Any) -> None:
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
