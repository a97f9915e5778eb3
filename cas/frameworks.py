"""Which adapters there are. numpy is built in; others are entry points in the group `cas.adapters`.

An entry point is named after the framework's module. It is loaded when that module is already imported, or when a
commit that is read names it, so that numpy states never import torch.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from .arrays import ArrayAdapter
from .errors import Invalid, Unsupported
from .team import Team
from .tensors import Adapter

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "cas.adapters"
_NUMPY: Adapter = ArrayAdapter()


@cache
def _declared() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # 20 ms that a command like `cas log` need not wait

    return {entry.name: entry for entry in entry_points(group=GROUP)}


@cache
def _load(name: str) -> Adapter:
    adapter: Adapter = _declared()[name].load()
    return adapter


def imported() -> list[Adapter]:
    """The adapters of every framework that this process has imported."""
    return [_NUMPY, *(_load(name) for name in _declared() if name in sys.modules)]


def team(group: Any) -> Team:
    """The ranks of a group of processes, of whatever framework made it."""
    for adapter in imported():
        found = adapter.team(group)
        if found is not None:
            return found
    raise Invalid(f"group is a torch.distributed group, or None for this process alone, not {group!r:.60}")


def named(framework: str) -> Adapter:
    """The adapter of a framework that a commit names; `Unsupported` with the command that installs it."""
    if framework == _NUMPY.framework:
        return _NUMPY
    if framework not in _declared():
        raise Unsupported(f"the commit holds {framework} tensors, and no adapter for them is installed")
    try:
        return _load(framework)
    except ImportError as error:
        raise Unsupported(
            f"the commit holds {framework} tensors; run: pip install 'cas-checkpoints[{framework}]' ({error})"
        ) from error
