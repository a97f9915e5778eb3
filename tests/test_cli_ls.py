"""`cas ls`: one level of a state."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from cli_process import make_store, objects, ok, refused

import cas


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_store(tmp_path / ".cas")
    return tmp_path


def paths(place: Path, *arguments: str) -> list[str]:
    return [entry["path"] for entry in objects(ok(place, "ls", *arguments, "--json"))]


def test_without_a_pattern_it_lists_the_top_with_what_is_below(place: Path) -> None:
    found = objects(ok(place, "ls", "--json"))
    assert found[:3] == [
        {"kind": "subtree", "path": "model", "tensors": 2, "values": 0, "absent": 0, "bytes": 64 * 32 * 4 + 32 * 4},
        {"kind": "subtree", "path": "optimizer", "tensors": 1, "values": 2, "absent": 0, "bytes": 64 * 32 * 4},
        {"kind": "value", "path": "step", "type": "int", "bytes": 0, "value": 20},
    ]
    assert found[3]["bytes"] == 100_000
    assert found[3]["value"] is None
    assert re.search(r"model/ +8\.32 kB +2 tensors", ok(place, "ls"))


def test_a_path_lists_what_is_right_below_it(place: Path) -> None:
    assert paths(place, "main", "model") == ["model/wte.weight", "model/head"]
    assert paths(place, "main~1", "optimizer/state/") == ["optimizer/state/[0]"]
    assert paths(place, "main", "model/head/bias", "step") == ["model/head/bias", "step"]


def test_stars_list_the_first_level_that_matches(place: Path) -> None:
    assert paths(place, "main", "*") == paths(place, "main")
    assert paths(place, "main", "*/*e*") == ["model/wte.weight", "model/head", "optimizer/state"]
    assert paths(place, "main", "**/[0]/*") == ["optimizer/state/[0]/exp_avg", "optimizer/state/[0]/step"]


def test_nothing_there_is_an_error_and_an_empty_state_is_not(place: Path) -> None:
    assert "nope" in refused(place, 11, "ls", "main", "nope")
    refused(place, 11, "ls", "main", "mod")
    with cas.open(place / ".cas") as store:
        store.commit({}, branch="empty")
    assert ok(place, "ls", "empty").split() == [".", "dict", "empty"]


def test_names_cannot_harm_a_terminal(place: Path) -> None:
    with cas.open(place / ".cas") as store:
        store.commit({"a\x1b[2J": {"b\r": np.zeros(2)}, "\x9b": "\x1b]0;x\x07"}, branch="evil")
    for arguments in (["ls", "evil"], ["ls", "evil", "*/*"], ["ls", "evil", "--json"]):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", ok(place, *arguments))
