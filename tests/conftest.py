"""Shared by all tests. What only one file needs stands in that file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cas.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A new, empty, open store in a directory of its own."""
    import cas

    with cas.open(tmp_path / "store", create=True) as opened:
        yield opened
