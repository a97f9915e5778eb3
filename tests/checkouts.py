"""What the tests of `cas checkout` have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from cli_process import array

import cas
from cas.cli.main import main

WEIGHTS = "model.safetensors"
Arrays = Mapping[str, np.ndarray[Any, Any]]


def assert_same(file: Path, expected: Arrays) -> None:
    """The safetensors library reads exactly these arrays."""
    found = safetensors.numpy.load_file(file)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert found[name].tobytes() == value.tobytes()


def commit(place: Path, state: Any, **options: Any) -> None:
    with cas.open(place / ".cas", create=True) as store:
        store.commit(state, **options)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in (".cas", "side-config.json"))


def big_store(place: Path, megabytes: int) -> None:
    rows = megabytes * 250_000
    commit(place, {"model": {f"w{number}": array(rows // 4, seed=number) for number in range(4)}}, step=1)


def in_process(*arguments: str | Path) -> None:
    """Run the command in this process, where torch need not be imported again for each test."""
    assert main([*map(str, arguments)]) == 0


def refused_in_process(code: int, *arguments: str | Path) -> None:
    assert main([*map(str, arguments)]) == code
