"""`cas cat`: values, files and tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import COMMAND, environment, in_terminal, objects, ok, refused

import cas

BIG = np.arange(3_000_000, dtype=np.float32).reshape(3000, 1000)
STATE: dict[str, Any] = {
    "step": 7,
    "lr": 1e-3,
    "none": None,
    "flag": True,
    "text": "two\nlines",
    "long": "é" * 100_000,
    "raw": b"\x00\xff\n",
    "long raw": bytes(range(256)) * 1000,
    "scalar": np.float32(2.5),
    "w": np.arange(6, dtype=np.int16).reshape(2, 3),
    "big": BIG,
    "deep": np.arange(4096.0).reshape(8, 8, 8, 8),
    "ties": np.zeros((2,) * 16),
    "c": np.array([1 + 2j]),
    "zero": np.zeros(()),
    "none of it": np.zeros((0, 3)),
    "evil": "\x1b[2J",
    "file": "from the state",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cat")
    (place / "config").write_bytes(b'{"layers": 2}')
    (place / "weights").write_bytes(os.urandom(3_000_000))
    with cas.open(place / ".cas", create=True) as store:
        store.commit(
            STATE, files={"config.json": place / "config", "w.bin": place / "weights", "file": place / "config"}
        )
    return place


def raw(place: Path, path: str) -> bytes:
    return subprocess.run(
        [*COMMAND, "cat", "main", path], cwd=place, env=environment(), capture_output=True, check=True
    ).stdout


def test_texts_bytes_and_files_come_byte_for_byte(place: Path) -> None:
    for name in ("text", "long", "evil"):
        assert raw(place, name) == STATE[name].encode()
    for name in ("raw", "long raw"):
        assert raw(place, name) == STATE[name]
    assert raw(place, "config.json") == b'{"layers": 2}'
    assert raw(place, "w.bin") == (place / "weights").read_bytes()


def test_the_state_goes_before_side_files(place: Path) -> None:
    assert raw(place, "file") == b"from the state"


def test_other_values_come_as_json(place: Path) -> None:
    found = [ok(place, "cat", "main", name).strip() for name in ("step", "lr", "none", "flag", "scalar")]
    assert found == ["7", "0.001", "null", "true", "2.5"]


def test_a_tensor_is_printed_with_dtype_and_shape(place: Path) -> None:
    assert ok(place, "cat", "main", "w").splitlines() == ["int16 [2, 3]", "[[0 1 2]", " [3 4 5]]"]
    assert ok(place, "cat", "main", "zero").splitlines() == ["float64 []", "0."]
    assert ok(place, "cat", "main", "none of it").splitlines() == ["float64 [0, 3]", "[]"]


def test_a_large_tensor_is_printed_as_numpy_cuts_it(place: Path) -> None:
    assert ok(place, "cat", "main", "big").split("\n", 1)[1].strip() == np.array2string(BIG, threshold=1000)
    deep = ok(place, "cat", "main", "deep").split("\n", 1)[1].strip()
    assert deep == np.array2string(STATE["deep"], threshold=1000)
    assert "dimensions" in refused(place, 2, "cat", "main", "ties")


def test_json_is_one_object(place: Path) -> None:
    def held(path: str) -> dict[str, Any]:
        (found,) = objects(ok(place, "cat", "main", path, "--json"))
        return found

    head = {"kind": "tensor", "path": "w", "dtype": "int16", "shape": [2, 3], "bytes": 12}
    assert held("w") == {**head, "values": [[0, 1, 2], [3, 4, 5]]}
    assert held("big")["values"] is None
    assert held("c")["values"] == [[1.0, 2.0]]
    assert held("step") == {"kind": "value", "path": "step", "type": "int", "bytes": 0, "value": 7}
    assert held("raw") == {"kind": "value", "path": "raw", "type": "bytes", "bytes": 3, "value": "00ff0a"}
    assert held("long")["value"] == STATE["long"]
    assert held("config.json") == {"kind": "file", "path": "config.json", "bytes": 13, "value": '{"layers": 2}'}
    assert held("w.bin")["value"] is None


def test_what_is_not_there_is_said_with_what_is(place: Path) -> None:
    told = refused(place, 11, "cat", "main", "nope")
    assert "step" in told
    assert "config.json" in told
    with cas.open(place / ".cas") as store:
        store.commit({"a": {"b": 1}}, branch="nested")
    assert "cas ls" in refused(place, 2, "cat", "nested", "a")


def test_a_terminal_gets_no_binary_and_no_escapes(place: Path) -> None:
    for path in ("raw", "long raw", "w.bin"):
        code, output = in_terminal(place, "cat", "main", path)
        assert (code, output.count("\n")) == (2, 1)
        assert "> FILE" in output
    assert in_terminal(place, "cat", "main", "evil") == (0, "\\x1b[2J\r\n")
    assert in_terminal(place, "cat", "main", "text") == (0, "two\r\nlines\r\n")
    code, output = in_terminal(place, "cat", "main", "long")
    assert (code, output.strip()) == (0, STATE["long"])


def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    size = 200 << 20
    with open(tmp_path / "large", "wb") as file:
        file.truncate(size)
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit({}, files={"large": tmp_path / "large"})
    code = "import re, sys\nfrom cas.cli.main import main\nmain(['cat', 'main', 'large'])\n"
    # Not ru_maxrss: in that counts what this process, which it was forked from, takes.
    code += "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, check=True
    )
    assert len(done.stdout) == size
    assert int(done.stderr) << 10 < 160 << 20
