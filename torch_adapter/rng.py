"""The state of every global random generator, as plain values and tensors.

    python    version, keys (uint32 array), gauss: `random.getstate`
    numpy     the dict of `np.random.get_state(legacy=False)`
    torch     the CPU generator's bytes
    devices   {"cuda": [bytes of each device's generator], ...}, for each backend that this process has used

These are the generators that code draws from when it names none.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

_NAMES = {"python", "numpy", "torch", "devices"}


def capture() -> dict[str, Any]:
    version, keys, gauss = random.getstate()
    return {
        "python": {"version": version, "keys": np.array(keys, np.uint32), "gauss": gauss},
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
        "devices": _capture_devices(),
    }


def restore(state: dict[str, Any]) -> None:
    """Set every generator that `capture` found; a device's generator only where that device is here.

    Raises whatever the generators raise if the state is not one that `capture` made.
    """
    if set(state) != _NAMES:
        raise ValueError(f"the generators are {sorted(_NAMES)}, not {sorted(map(str, state))}")
    python = state["python"]
    random.setstate((python["version"], tuple(python["keys"].tolist()), python["gauss"]))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())  # the state may have been loaded to a device
    _restore_devices(state["devices"])


def _capture_devices() -> dict[str, list[torch.Tensor]]:
    """A backend that was never initialised has drawn nothing; asking it would take memory on its devices."""
    found = {}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = torch.cuda.get_rng_state_all()
    if torch.xpu.is_initialized():  # type: ignore[no-untyped-call]
        found["xpu"] = torch.xpu.get_rng_state_all()
    if torch.backends.mps.is_available():
        found["mps"] = [torch.mps.get_rng_state()]
    return found


def _restore_devices(states: dict[str, list[torch.Tensor]]) -> None:
    for device, state in enumerate(states.get("cuda", [])[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state.cpu(), device)
    for device, state in enumerate(states.get("xpu", [])[: torch.xpu.device_count()]):
        torch.xpu.set_rng_state(state.cpu(), device)
    if torch.backends.mps.is_available():
        for state in states.get("mps", []):
            torch.mps.set_rng_state(state.cpu())
