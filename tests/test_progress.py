"""The line of progress: on a terminal it is drawn and goes away again, elsewhere there is nothing."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from checkouts import big_store, commit, left_in
from cli_process import COMMAND, array, environment, ok, run
from safetensors.numpy import save_file

SLOWLY = """
import sys, time
from cas.cli.progress import Progress
total = int(sys.argv[1]) or None
try:
    with Progress(total, "checkout") as progress:
        for _ in range(8):
            time.sleep(0.06)
            progress.advance(1 << 20)
            if len(sys.argv) > 2:
                raise ValueError
except ValueError:
    pass
print("done", file=sys.stderr)
"""


class Terminal:
    """A pseudo-terminal; `text` is what a program wrote to it."""

    def __init__(self, columns: int = 60) -> None:
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.text = ""

    def run(self, command: list[str], cwd: Path, env: dict[str, str], interrupt_at: str = "") -> int:
        with subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stderr=self.theirs,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - one thread
        ) as child:
            os.close(self.theirs)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and self._read():
                if interrupt_at and interrupt_at in self.text:
                    child.send_signal(signal.SIGINT)
                    interrupt_at = ""
        os.close(self.ours)
        return child.returncode

    def _read(self) -> bool:
        if not select.select([self.ours], [], [], 60)[0]:
            return False
        try:
            data = os.read(self.ours, 4096)
        except OSError:  # the program has ended
            return False
        self.text += data.decode()
        return bool(data)

    def lines(self) -> list[str]:
        """What stood on the line, one drawing after another, and what stands there at the end."""
        return [part for part in re.split(r"\r\x1b\[K|\r\n", self.text) if part]


def drawn(total: int, *more: str, columns: int = 60, **variables: str) -> Terminal:
    terminal = Terminal(columns)
    env = environment(**{"TERM": "xterm", **variables})
    assert terminal.run([sys.executable, "-c", SLOWLY, str(total), *more], Path.cwd(), env) == 0
    return terminal


def test_a_terminal_sees_how_far_it_is_and_then_a_clear_line() -> None:
    terminal = drawn(8 << 20)
    *lines, last = terminal.lines()
    assert 2 <= len(lines) <= 5  # of 8 steps in half a second
    pattern = r"checkout \[#*-*\] [\d.]+ MB of 8.39 MB, [\d.]+ MB/s, \d s left"
    assert all(re.fullmatch(pattern, line) and len(line) < 60 for line in lines)
    assert last == "done"
    assert "\r\x1b[Kdone" in terminal.text


@pytest.mark.parametrize(("columns", "bar"), [(120, 24), (70, 23), (50, 0), (20, 0)])
def test_the_bar_gives_way_to_the_numbers(columns: int, bar: int) -> None:
    line = drawn(8 << 20, columns=columns).lines()[0]
    assert len(line) < columns
    assert len(re.findall(r"[#-]", line)) <= bar
    assert ("[" in line) == (bar > 0)


def test_without_a_total_there_is_a_rate() -> None:
    assert re.fullmatch(r"checkout [\d.]+ MB, [\d.]+ MB/s", drawn(0).lines()[0])


def test_it_has_no_colours() -> None:
    assert re.findall(r"\x1b\[[0-9;]*m", drawn(8 << 20).text) == []
    assert re.findall(r"\x1b\[[0-9;]*m", drawn(8 << 20, NO_COLOR="1").text) == []


def test_a_dumb_terminal_sees_nothing() -> None:
    assert drawn(8 << 20, TERM="dumb").text == "done\r\n"


def test_what_ends_soon_draws_nothing() -> None:
    assert drawn(8 << 20, "fail").text == "done\r\n"


def test_no_terminal_sees_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SLOWLY, "100"], capture_output=True, text=True, check=True)
    assert done.stderr == "done\n"
    commit(tmp_path, {"w": array(1000)})
    assert run(tmp_path, "checkout").stderr == ""


def test_an_interrupted_checkout_clears_the_line_before_it_says_so(tmp_path: Path) -> None:
    big_store(tmp_path, 500)
    for _ in range(5):
        terminal = Terminal()
        code = terminal.run([*COMMAND, "checkout", "--force"], tmp_path, environment(TERM="xterm"), "checkout [")
        if code:
            break
    assert code == 130
    assert terminal.text.endswith("\r\x1b[K\r\ncas: interrupted\r\n")
    assert not any(name.startswith(".cas-checkout") for name in left_in(tmp_path))


def test_a_transfer_counts_objects_too_and_says_nothing_of_the_end_before_it_can() -> None:
    from cas.cli.progress import Transfer

    transfer = Transfer("push")
    assert transfer.line() == "push: looking for what is missing"
    transfer(0, 1200, 0, 2_000_000)
    assert re.fullmatch(r"push (\[-+\] )?0 B of 2\.00 MB, 0 of 1,200 objects, 0 B/s", transfer.line())
    transfer(600, 1200, 1_000_000, 2_000_000)
    time.sleep(0.1)
    pattern = r"push (\[#+-+\] )?1\.00 MB of 2\.00 MB, 600 of 1,200 objects, [\d.]+ .B/s, 0 s left"
    assert re.fullmatch(pattern, transfer.line())


@pytest.mark.parametrize(("seconds", "text"), [(3.2, "3 s"), (95, "1 min 35 s"), (7260, "2 h 01 min")])
def test_what_is_left_in_words(seconds: float, text: str) -> None:
    from cas.cli.progress import _duration

    assert _duration(seconds) == text


def test_a_commit_draws_its_line_and_clears_it(tmp_path: Path) -> None:
    ok(tmp_path, "init")
    save_file({"w": array(96 << 20)}, tmp_path / "w.safetensors")
    terminal = Terminal()
    assert (
        terminal.run([*COMMAND, "commit", "--codec", "planes", "w.safetensors"], tmp_path, environment(TERM="xterm"))
        == 0
    )
    assert all(line.startswith("commit ") and " of 403 MB, " in line for line in terminal.lines())
    assert terminal.lines()
    assert terminal.text.endswith("\r\x1b[K")
