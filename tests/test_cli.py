"""The command as a user meets it: exit codes, finding the store, what it prints, and how it ends."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import COMMAND, environment, in_terminal, make_store, objects, ok, refused, run

import cas
from cas.cli import main as entry
from cas.cli.output import age, clean, cut, jsonable, width

ESCAPES = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory whose `.cas` is a store with three commits."""
    make_store(tmp_path / ".cas")
    return tmp_path


# -- finding the store --------------------------------------------------------------------------------------------


def test_a_store_is_found_upwards(place: Path) -> None:
    below = place / "a" / "b"
    below.mkdir(parents=True)
    assert ok(below, "log", "--json") == ok(place, "log", "--json")


def test_inside_a_store_it_is_that_store(place: Path) -> None:
    assert len(ok(place / ".cas" / "packs", "log").splitlines()) == 3


def test_a_directory_with_cas_json_wins_over_its_parents_store(place: Path) -> None:
    cas.init(place / "inner").close()
    refused(place / "inner", 11, "log")


def test_a_file_called_cas_names_the_store(place: Path) -> None:
    shutil.move(place / ".cas", place / "elsewhere")
    (place / "work").mkdir()
    (place / "work" / ".cas").write_text("../elsewhere\n")
    assert len(ok(place / "work", "log").splitlines()) == 3
    assert len(ok(place, "--store", "work/.cas", "log").splitlines()) == 3


@pytest.mark.parametrize(
    ("held", "code"),
    [(b"", 2), (b"\xff\xfe", 2), (b"a\nb", 2), (b"x" * 5000, 2), (b"nowhere", 10), (b"nosuch://bucket/store", 3)],
)
def test_a_file_called_cas_that_names_no_store(held: bytes, code: int, tmp_path: Path) -> None:
    (tmp_path / ".cas").write_bytes(held)
    refused(tmp_path, code, "log")


def test_the_option_wins_over_the_environment_and_that_over_the_directory(place: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "one", 1)
    make_store(tmp_path / "two", 2)
    env = environment(CAS_STORE=str(tmp_path / "one"))
    for arguments, count in ([("log",), 1], [("--store", "two", "log"), 2], [("log", "--store", "two"), 2]):
        done = run(place, *arguments, env=env)
        assert (done.returncode, len(done.stdout.splitlines())) == (0, count)
    assert len(run(place, "log", env=environment(CAS_STORE="")).stdout.splitlines()) == 3


def test_a_directory_that_holds_a_store_may_be_named(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert len(ok(tmp_path_factory.mktemp("far"), "--store", place, "log").splitlines()) == 3


# -- exit codes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("nonsense", 2),
        ("log --nonsense", 2),
        ("log -n x", 2),
        ("log a b c", 2),
        ("log main~x", 2),
        ("branch -d", 2),
        ("tag -d a b", 2),
        ("tag a --json", 2),
        ("branch a..b main", 0),
        ("branch a:b main", 2),
        ("checkout main model --all", 2),
        ("init other --block-size 3000000", 2),
        ("init other --block-size huge", 2),
        ("--store nowhere log", 10),
        ("--store nosuch://bucket/x log", 3),
        ("init", 3),
        ("branch main main~1", 3),
        ("log absent", 11),
        ("log main~9", 11),
        ("show main absent/path", 11),
        ("checkout main absent", 11),
        ("branch -d absent", 11),
        ("tag -d absent", 11),
    ],
)
def test_exit_codes(arguments: str, code: int, place: Path) -> None:
    if code:
        assert refused(place, code, *arguments.split())
    else:
        ok(place, *arguments.split())


def test_what_can_be_read_of_a_damaged_history_is_shown(tmp_path: Path) -> None:
    make_store(tmp_path / ".cas", commits=1)
    (pack,) = (path for path in (tmp_path / ".cas" / "packs").rglob("*") if path.is_file())
    with cas.open(tmp_path / ".cas") as store:
        store.commit({"a": 1}, parent="main", message="newest")
    pack.unlink()
    done = run(tmp_path, "log")
    assert (done.returncode, done.stdout.count("\n"), done.stdout.rstrip()[-6:]) == (11, 1, "newest")


def test_no_store_is_an_exit_code_of_its_own(tmp_path: Path) -> None:
    for command in ("log", "show", "checkout", "branch", "tag", "fsck", "stats"):
        assert "cas init" in refused(tmp_path, 10, command)


def test_a_damaged_store_is_an_exit_code_of_its_own(place: Path) -> None:
    (place / ".cas" / "cas.json").write_text("{}")
    refused(place, 13, "log")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (cas.RefConflict("moved"), 12),
        (cas.CommitUnknown("perhaps"), 3),
        (PermissionError(13, "Permission denied", "/x"), 3),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("oh"), 3),
    ],
)
def test_every_error_has_its_exit_code(
    error: BaseException, code: int, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(cas.Store, "stats", fail)
    assert entry.main(["--store", str(place), "stats"]) == code
    said = capsys.readouterr().err
    assert said.strip().count("\n") == 0  # click ends the line of a ^C with one more
    assert said.strip().startswith("cas: ")
    assert ("defect" in said) == isinstance(error, ZeroDivisionError)


def test_a_defect_shows_its_traceback_only_on_request(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cas.Store, "stats", lambda self: 1 / 0)
    monkeypatch.setenv("CAS_DEBUG", "1")
    assert entry.main(["--store", str(place), "stats"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_fsck_ends_with_1_where_it_finds_something(place: Path) -> None:
    assert "all is well" in ok(place, "fsck", "--data")
    assert ok(place, "fsck", "--json") == ""
    (place / ".cas" / "tmp").mkdir(exist_ok=True)
    (place / ".cas" / "tmp" / "left").touch()
    (found,) = objects(ok(place, "fsck", "--json"))  # an info alone is no failure
    assert (found["name"], found["severity"]) == ("leftover", "info")
    packs = [path for path in (place / ".cas" / "packs").rglob("*") if path.is_file()]
    packs[0].write_bytes(packs[0].read_bytes()[:-40])
    done = run(place, "fsck", "--json")
    assert done.returncode == 1
    assert all(set(finding) == {"name", "severity", "message", "commits", "paths"} for finding in objects(done.stdout))
    assert run(place, "fsck").returncode == 1


# -- what it prints -----------------------------------------------------------------------------------------------


def test_init_makes_a_store_here_or_where_it_is_told(tmp_path: Path) -> None:
    ok(tmp_path, "init")
    assert (tmp_path / ".cas" / "cas.json").is_file()
    ok(tmp_path, "init", "deep/er", "--block-size", "1MiB")
    with cas.open(tmp_path / "deep" / "er") as store:
        assert store.identity.block_size == 1 << 20


def test_log_is_newest_first(place: Path) -> None:
    found = objects(ok(place, "log", "--json"))
    assert [commit["step"] for commit in found] == [20, 10, 0]
    assert found[0]["branches"] == ["main"]
    assert [commit["id"] for commit in found[1:]] == [parent for commit in found[:2] for parent in commit["parents"]]
    assert len(ok(place, "log", "main", "-n", "2").splitlines()) == 2
    assert ok(place, "log", "-n", "0") == ""
    assert objects(ok(place, "log", "main@min:loss", "--json"))[0]["step"] == 10


def test_log_lines_hold_what_people_ask_for(place: Path) -> None:
    first = ok(place, "log").splitlines()[0]
    for part in ("step 20", "ago", "new", "loss 3", "main", "number 2"):
        assert part in first


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (
            "log",
            "id parents time author message step metrics meta files origin raw new stored pruned partial shallow "
            "branches tags tracking",
        ),
        ("stats", "path one_writer disk files history packs commits blocks raw stored branches tags codecs savings"),
        ("branch", "name id step time message"),
        ("tag", "name id step time message"),
        ("checkout -o out", "out id format tensors tied dtype converted infinite files left_out taken_apart imported"),
    ],
)
def test_json_keys_are_those_in_the_help(arguments: str, keys: str, place: Path) -> None:
    ok(place, "tag", "v1")
    found = objects(ok(place, *arguments.split(), "--json"))
    assert list(found[0]) == keys.split()
    help_text = ok(place, arguments.partition(" ")[0], "--help")
    for key in keys.split():
        assert re.search(rf"\b{key}\b", help_text), key


def test_show_lists_every_leaf(place: Path) -> None:
    first, *leaves = objects(ok(place, "show", "--json"))
    assert first["kind"] == "commit"
    assert [leaf["path"] for leaf in leaves] == [
        "model/wte.weight",
        "model/head/bias",
        "optimizer/state/[0]/exp_avg",
        "optimizer/state/[0]/step",
        "optimizer/lr",
        "step",
        "note",
    ]
    assert leaves[0] == {
        "kind": "tensor",
        "path": "model/wte.weight",
        "dtype": "float32",
        "shape": [64, 32],
        "bytes": 8192,
    }
    assert leaves[-2] == {"kind": "value", "path": "step", "type": "int", "bytes": 0, "value": 20}
    assert leaves[-1]["bytes"] == 100_000
    text = ok(place, "show")
    assert re.search(r"model/wte\.weight +8\.19 kB +float32 +\[64, 32\]", text)
    assert "3 tensors, 4 values" in text
    assert "number 2" in text


def test_show_takes_patterns(place: Path) -> None:
    assert len(objects(ok(place, "show", "main", "model/**", "step", "--json"))) == 1 + 3


def test_show_of_values_of_every_kind(tmp_path: Path) -> None:
    state = {
        "big": 1 << 100,
        "nan": float("nan"),
        "bytes": b"\x00\xff",
        "none": None,
        "scalar": np.float32(1.5),
        "complex": np.complex64(1 + 2j),
        "empty": {},
        "tuple": (1, [2.5]),
        "": 1,
    }
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit(state, meta={"b": b"\x01", "t": (1, 2), "inf": float("inf")}, metrics={"loss": float("nan")})
    first, *leaves = objects(ok(tmp_path, "show", "--json"))
    assert first["metrics"] == {"loss": "nan"}
    assert first["meta"] == {"b": "01", "t": [1, 2], "inf": "inf"}
    values = {leaf["path"]: leaf["value"] for leaf in leaves}
    assert values["big"] == 1 << 100
    assert (values["nan"], values["bytes"], values["scalar"]) == ("nan", "00ff", 1.5)
    assert (values["empty"], values["tuple/[1]/[0]"], values["%"]) == (None, 2.5, 1)
    assert "empty" in ok(tmp_path, "show")


def test_integers_too_long_for_decimal_are_hex_everywhere(tmp_path: Path) -> None:
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit({"n": 10**5000, "m": -(10**5000)}, meta={"k": 10**5000, "l": [10**5000]})
        store.commit({"n": 10**5000 + 1, "m": -(10**5000)})
    for command in ("show main~1", "ls main~1", "log"):
        assert ok(tmp_path, *command.split())
        found = objects(ok(tmp_path, *command.split(), "--json"))
    assert found[1]["meta"] == {"k": hex(10**5000), "l": [hex(10**5000)]}
    assert objects(ok(tmp_path, "ls", "--json"))[1]["value"] == hex(-(10**5000))
    assert ok(tmp_path, "cat", "main", "m") == f'"{hex(-(10**5000))}"\n'
    assert "~ n" in run(tmp_path, "diff", "main~1", "main").stdout
    last = objects(run(tmp_path, "diff", "main~1", "main", "--json").stdout)[-1]
    assert last["after"]["value"] == hex(10**5000 + 1)


def test_a_composite_is_not_called_empty(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit({"w": torch.eye(3).to_sparse(), "none": {}})
    lines = [line.split() for line in ok(tmp_path, "show").splitlines()]
    assert ["w", "torch.sparse_coo", "its", "parts", "follow"] in lines
    assert ["none", "dict", "empty"] in lines


def test_a_missing_choice_is_said_on_one_line(place: Path) -> None:
    assert "Choose from: metrics, storage, changes; see" in refused(place, 2, "plot")


def test_branches_and_tags_are_made_listed_moved_and_removed(place: Path) -> None:
    ok(place, "branch", "side", "main~1")
    ok(place, "tag", "v1")
    assert [ref["step"] for ref in objects(ok(place, "branch", "--json"))] == [20, 10]
    assert "--force" in refused(place, 3, "branch", "side", "main~2")
    ok(place, "branch", "side", "main~2", "--force")
    assert [line.split()[0] for line in ok(place, "branch").splitlines()] == ["main", "side"]
    assert ok(place, "tag").startswith("v1")
    refused(place, 3, "tag", "v1", "main~1")
    ok(place, "branch", "-d", "side")
    ok(place, "tag", "-d", "v1")
    assert (len(ok(place, "branch").splitlines()), ok(place, "tag")) == (1, "")


def test_stats_adds_up(place: Path) -> None:
    (held,) = objects(ok(place, "stats", "--json"))
    assert held["commits"] == 3
    assert held["path"] == str(place / ".cas")
    assert "packs" in ok(place, "stats")


# -- terminals ----------------------------------------------------------------------------------------------------


def test_nothing_from_a_store_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    evil = "a\x1b[2Jb\x07\x9b31mc\rd\u202ee\nf"
    with cas.open(tmp_path / ".cas", create=True) as store:
        state = {evil: {"w": np.zeros(3)}, "two": {"v": np.zeros(3)}, "value": evil}
        store.commit(state, message=evil, meta={evil: evil})
    for command in (["log"], ["show"], ["branch"], ["log", "--json"], ["show", "--json"], ["checkout", "--all"]):
        output = ok(tmp_path, *command)
        assert not ESCAPES.search(output), command
        assert "\u202e" not in output
    for arguments in (["checkout"], ["checkout", "main", evil], ["log", evil], ["show", "main", evil], [evil]):
        done = run(tmp_path, *arguments)
        assert done.returncode in (2, 11), done
        assert not ESCAPES.search(done.stdout + done.stderr)
        assert done.stderr.count("\n") == 1


def test_a_terminal_gets_colours_and_lines_that_fit(place: Path) -> None:
    with cas.open(place / ".cas") as store:
        store.commit({"w": np.zeros(1)}, parent="main", message="long " * 60)
    code, output = in_terminal(place, "log")
    assert code == 0
    assert "\x1b[33m" in output
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    assert all(len(line) <= 80 for line in plain.splitlines())
    assert "…" in plain


def test_a_narrow_terminal_keeps_the_last_column_readable(place: Path) -> None:
    code, output = in_terminal(place, "stats", "main", env=environment(NO_COLOR="1"), columns=30)
    assert code == 0
    assert "of which stored" in output.splitlines()[0]


def test_no_color_is_heeded(place: Path) -> None:
    code, output = in_terminal(place, "log", env=environment(NO_COLOR="1"))
    assert code == 0
    assert output
    assert "\x1b" not in output
    assert "\x1b" not in ok(place, "log")


def test_an_ascii_terminal_is_no_error(place: Path) -> None:
    with cas.open(place / ".cas") as store:
        store.commit({"w": np.zeros(1)}, parent="main", message="größer ✓")
    done = run(place, "log", env=environment(LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0"))
    assert done.returncode == 0
    assert "gr" in done.stdout


# -- pipes, interrupts, help, time --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["log"], ["log", "--json"], ["show"], ["--help"]])
def test_a_closed_pipe_ends_silently(command: list[str], place: Path) -> None:
    with cas.open(place / ".cas") as store:
        store.commit({f"key {number:06}": number for number in range(20_000)}, parent="main", message="m" * 300_000)
    with subprocess.Popen(
        [*COMMAND, *command], cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(10)
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 0


def test_a_full_disk_behind_stdout_is_said(place: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "log"], cwd=place, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 3
    assert done.stderr == "cas: No space left on device\n"


def test_the_help_names_every_command(tmp_path: Path) -> None:
    text = ok(tmp_path, "--help")
    assert all(re.search(rf"^  {command} ", text, re.MULTILINE) for command in entry.COMMANDS)
    assert "cas" in ok(tmp_path, "--version")
    assert run(tmp_path).returncode == 2


def seconds(command: list[str], cwd: Path) -> float:
    """The fastest of several runs."""
    found = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, check=True)
        found.append(time.perf_counter() - started)
    return min(found)


def test_log_starts_at_once(place: Path, record_property: Callable[[str, object], None]) -> None:
    """The figure is 0.3 s above bare Python on a machine at rest; the margin is for one that is not."""
    above = seconds([*COMMAND, "log"], place) - seconds([sys.executable, "-c", "pass"], place)
    record_property("seconds above bare Python", above)
    print(f"cas log: {above:.3f} s above bare Python")
    assert above < 1.0


# -- the words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected"),
    [("a\tb", r"a\tb"), ("\x1b[0m", r"\x1b[0m"), ("\u2028", r"\u2028"), ("é漢", "é漢"), ("\ud800", r"\ud800")],
)
def test_clean(raw: str, expected: str) -> None:
    assert clean(raw) == expected


def test_cut_and_width() -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdef", 4) == "abc…"
    assert cut("漢字漢字", 5) == "漢字…"
    assert (cut("abc", 0), width("漢é")) == ("", 3)


def test_age() -> None:
    from datetime import UTC, datetime, timedelta

    now = datetime.now(UTC)
    for delta, text in ((3, "3 s ago"), (125, "2 min ago"), (7300, "2 h ago"), (400 * 86400, "1 y ago")):
        assert age(now - timedelta(seconds=delta)) == text
    assert age(now + timedelta(hours=1)) == "in the future"


def test_jsonable_turns_what_json_lacks_into_text() -> None:
    assert jsonable({1: float("-inf"), "b": b"\x01", "t": (np.int64(3),)}) == {"1": "-inf", "b": "01", "t": [3]}
