"""Completion in shells: the scripts, and what they are offered."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_process import COMMAND, environment, make_store, ok, refused


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_store(tmp_path / ".cas")
    ok(tmp_path, "tag", "best", "main~1")
    return tmp_path


def offered(cwd: Path, shell: str, *words: str, **more: str) -> list[str]:
    """The offers for the last of `words`, by the protocol that the shell's script speaks."""
    current = words[-1] if shell == "fish" else str(len(words) - 1)
    said = {"_CAS_COMPLETE": f"{shell}_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": current}
    env = {**environment(), **said, **more}
    done = subprocess.run(COMMAND, cwd=cwd, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    lines = done.stdout.strip().splitlines()
    if shell == "zsh":
        return lines[1::3]
    return [line.partition(",")[2].partition("\t")[0] for line in lines]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_options_and_revisions_are_offered(shell: str, place: Path) -> None:
    assert offered(place, shell, "cas", "sta") == ["stats"]
    assert "--graph" in offered(place, shell, "cas", "log", "--")
    assert offered(place, shell, "cas", "log", "b") == ["best"]
    assert offered(place, shell, "cas", "cat", "m") == ["main"]
    for command in ("prune", "reset"):
        assert offered(place, shell, "cas", command, "m") == ["main"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_remotes_and_tracking_branches_are_offered(shell: str, place: Path) -> None:
    ok(place, "remote", "add", "origin", ".cas")
    ok(place, "remote", "add", "backup", "/nowhere")
    ok(place, "fetch")
    for command in (("push",), ("pull",), ("fetch",), ("remote", "remove")):
        assert offered(place, shell, "cas", *command, "") == ["backup", "origin"]
    assert offered(place, shell, "cas", "push", "origin", "b") == ["best"]
    assert offered(place, shell, "cas", "log", "or") == ["origin/main"]
    assert offered(place, shell, "cas", "remote", "a") == ["add"]


def test_a_store_on_another_machine_is_not_asked(tmp_path: Path) -> None:
    began = time.monotonic()
    assert offered(tmp_path, "bash", "cas", "--store", "s3://192.0.2.1/run", "log", "m") == []
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_name_that_a_shell_would_run_is_not_offered(shell: str, place: Path) -> None:
    for name in ("x/$(reboot)", "x/`id`", "x/;id", "x/|id", "x/$HOME", "x/'a", "x/&", "x/ü-1,2", "x/>f"):
        ok(place, "branch", name)
    assert offered(place, shell, "cas", "log", "x/") == ["x/ü-1,2"]


def test_where_there_is_no_store_nothing_is_offered_and_nothing_said(tmp_path: Path) -> None:
    assert offered(tmp_path, "bash", "cas", "log", "m") == []
    assert offered(tmp_path, "bash", "cas", "log", "m", CAS_STORE=str(tmp_path / "gone")) == []
    (tmp_path / ".cas").mkdir()
    (tmp_path / ".cas" / "cas.json").write_text("damaged")
    assert offered(tmp_path, "bash", "cas", "log", "m") == []
    assert offered(tmp_path, "bash", "cas", "log", '"m') == []


def test_the_store_that_was_named_is_asked(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    far = tmp_path_factory.mktemp("far")
    assert offered(far, "bash", "cas", "--store", str(place), "log", "m") == ["main"]
    assert offered(far, "bash", "cas", "log", "--store", str(place), "m") == ["main"]
    assert offered(far, "bash", "cas", "log", "m", CAS_STORE=str(place)) == ["main"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed(shell: str, tmp_path: Path) -> None:
    script = ok(tmp_path, "completion", shell)
    assert f"_CAS_COMPLETE={shell}_complete" in script
    refused(tmp_path, 2, "completion", "tcsh")


def test_bash_itself_completes(place: Path) -> None:
    (place / "cas").write_text(f'#!/bin/sh\nexec {sys.executable} -m cas.cli "$@"\n')
    (place / "cas").chmod(0o755)
    script = 'eval "$(cas completion bash)"; COMP_WORDS=(cas log b); COMP_CWORD=2; _cas_completion cas; '
    script += 'echo "${COMPREPLY[@]}"'
    env = environment(PATH=f"{place}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(["bash", "-c", script], cwd=place, env=env, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("best\n", "")
