"""Help: every command is named, has an example, and says what its JSON holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cas.cli.main import COMMANDS, main

README = (Path(__file__).parent.parent / "README.md").read_text()


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main([*command, "--help"]) == 0
    return capsys.readouterr().out


def test_the_readme_and_the_help_name_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys)
    assert [name for name in COMMANDS if not re.search(rf"^  {name} ", text, re.MULTILINE)] == []
    assert [name for name in COMMANDS if not re.search(rf"\bcas {name}\b", README)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_that_is_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, command)
    assert re.search(rf"Example:\n\s+cas {command}\b", text)
    if "--json" in text.partition("Options:")[2]:
        assert re.search(r"\bJSON[^.]*: *\w+", text)
