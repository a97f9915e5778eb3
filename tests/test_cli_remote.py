"""`cas remote`, storage options, and what no command ever shows: credentials."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_process import environment, make_store, objects, ok, refused, run

import cas
from cas.cli.main import main
from cas.cli.places import cache, name

SECRET = "hunter2-do-not-tell"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_store(tmp_path / ".cas", commits=1)
    return tmp_path


# -- adding, listing, removing ------------------------------------------------------------------------------------


def test_a_remote_is_added_listed_and_removed(place: Path) -> None:
    assert ok(place, "remote") == ok(place, "remote", "-v") == ok(place, "remote", "list", "--json") == ""
    assert ok(place, "remote", "add", "origin", "s3://bucket/run") == "added remote origin: s3://bucket/run\n"
    ok(place, "remote", "add", "backup", "/mnt/backup/run.cas")
    assert ok(place, "remote") == ok(place, "remote", "list") == "backup\norigin\n"
    lines = ["backup  /mnt/backup/run.cas", "origin  s3://bucket/run"]
    assert ok(place, "remote", "-v").splitlines() == ok(place, "remote", "list", "-v").splitlines() == lines
    assert ok(place, "remote", "remove", "backup") == "removed remote backup\n"
    assert ok(place, "remote") == "origin\n"


def test_options_that_are_no_secret_are_kept_with_their_types_and_shown(place: Path) -> None:
    options = ["--storage-option", "endpoint_url=https://s3.lab.example", "--storage-option", "anon=true"]
    ok(place, "remote", "add", "lab", "s3://bucket/run", *options)
    shown = "lab  s3://bucket/run  anon=True, endpoint_url=https://s3.lab.example\n"
    assert ok(place, "remote", "-v") == shown
    (held,) = objects(ok(place, "remote", "--json"))
    assert held == {
        "name": "lab",
        "url": "s3://bucket/run",
        "options": {"anon": True, "endpoint_url": "https://s3.lab.example"},
        "only": [],
    }


def test_what_is_to_be_fetched_of_it_is_kept_and_shown(place: Path) -> None:
    ok(place, "remote", "add", "lab", "s3://bucket/run", "--only", "model/**", "--only", "step")
    assert ok(place, "remote", "-v") == "lab  s3://bucket/run  only model/**, only step\n"
    (held,) = objects(ok(place, "remote", "--json"))
    assert held["only"] == ["model/**", "step"]


def test_json_keys_are_those_in_the_help(place: Path) -> None:
    ok(place, "remote", "add", "origin", "s3://bucket/run")
    (held,) = objects(ok(place, "remote", "list", "--json"))
    for command in ("remote", "remote list"):
        assert "JSON: name, url, options (" in " ".join(ok(place, *command.split(), "--help").split())
    assert list(held) == ["name", "url", "options", "only"]


def test_a_path_is_kept_whole_so_that_it_means_the_same_everywhere(place: Path) -> None:
    (place / "below").mkdir()
    ok(place / "below", "remote", "add", "near", "../other.cas")
    assert objects(ok(place, "remote", "--json"))[0]["url"] == str(place / "other.cas")


def test_each_command_below_it_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("list", "add", "remove"):
        assert main(["remote", command, "--help"]) == 0
        assert f"Example:\n    cas remote {command}" in capsys.readouterr().out


def test_the_store_is_named_behind_any_of_the_words(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    far, store = tmp_path_factory.mktemp("far"), str(place / ".cas")
    ok(far, "--store", store, "remote", "add", "a", "/a")
    ok(far, "remote", "--store", store, "add", "b", "/b")
    ok(far, "remote", "add", "c", "/c", "--store", store)
    assert ok(far, "remote", "--store", store) == ok(far, "remote", "list", "--store", store) == "a\nb\nc\n"


def test_mistakes_are_answered_in_one_sentence(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    ok(place, "remote", "add", "origin", "s3://bucket/run")
    assert "remote origin exists, it is s3://bucket/run" in refused(place, 3, "remote", "add", "origin", "/x")
    assert "there is no remote 'other'; there are origin" in refused(place, 11, "remote", "remove", "other")
    assert "holds a slash" in refused(place, 2, "remote", "add", "a/b", "/x")
    assert "stand behind `list`" in refused(place, 2, "remote", "-v", "remove", "origin")
    refused(place, 2, "remote", "add", "x y", "/x")
    refused(place, 2, "remote", "add", "only")
    refused(place, 2, "remote", "nonsense")
    refused(place, 3, "remote", "add", "main", "/x")
    assert "there is no store" in refused(tmp_path_factory.mktemp("none"), 10, "remote")


def test_a_terminal_obeys_nothing_that_is_in_a_remote(place: Path) -> None:
    with cas.open(place / ".cas") as store:
        store.add_remote("evil", "/tmp/\x1b[31mred")
    assert "\x1b" not in ok(place, "remote", "-v")


# -- secrets ------------------------------------------------------------------------------------------------------


def traces_of(secret: str, place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "option",
    [
        f"secret={SECRET}",
        f"key={SECRET}",
        f"token={SECRET}",
        f"password={SECRET}",
        f'client_kwargs={{"aws_secret_access_key": "{SECRET}"}}',
        f"something={SECRET}",
        f"={SECRET}",
        SECRET,
    ],
)
def test_a_credential_is_neither_kept_with_a_remote_nor_shown(place: Path, option: str) -> None:
    done = run(place, "remote", "add", "origin", "s3://bucket/run", "--storage-option", option)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert SECRET not in done.stdout + done.stderr
    assert ok(place, "remote", "-v") == ""
    assert traces_of(SECRET, place) == []


@pytest.mark.parametrize("url", [f"s3://key:{SECRET}@bucket/run", f"s3://bucket/run?secret={SECRET}"])
def test_a_url_with_a_password_is_refused_wherever_it_stands_and_not_shown(place: Path, url: str) -> None:
    (place / "work").mkdir()
    (place / "work" / ".cas").write_text(url)
    commands = (
        ["remote", "add", "origin", url],
        ["push", url, "main"],
        ["pull", url],
        ["fetch", url],
        ["clone", url, "copy"],
        ["init", url],
        ["--store", url, "log"],
        ["fsck", "--repair", "--from", url],
    )
    for command in commands:
        assert SECRET not in refused(place, 2, *command)
    assert SECRET not in refused(place / "work", 2, "log")
    assert SECRET not in refused(place, 2, "log", env=environment(CAS_STORE=url))
    (place / "work" / ".cas").unlink()
    assert traces_of(SECRET, place) == []


def test_a_value_is_json_where_it_is_some_and_text_elsewhere(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cas.cli.options import storage_options

    given = ("a=true", "b=5", 'c="5"', 'd={"x": [1]}', "e=NaN", "f=x=y", "g=", "h=[[[")
    expected = {"a": True, "b": 5, "c": "5", "d": {"x": [1]}, "e": "NaN", "f": "x=y", "g": "", "h": "[[["}
    assert storage_options(None, None, given) == expected  # type: ignore[arg-type]


# -- places -------------------------------------------------------------------------------------------------------


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CAS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache() == str(tmp_path / "cas")
    monkeypatch.setenv("CAS_CACHE", str(tmp_path / "own"))
    assert cache() == str(tmp_path / "own")


@pytest.mark.parametrize(
    ("place", "said"),
    [("s3://bucket/run", "run"), ("s3://bucket/run/.cas", "run"), ("s3://bucket", "bucket"), ("/a/b.cas", "b.cas")],
)
def test_people_call_a_store_by_the_end_of_its_place(place: str, said: str) -> None:
    assert name(place) == said


def test_what_cannot_be_a_remote_store_is_said_in_one_sentence(place: Path) -> None:
    assert "nosuch" in refused(place, 3, "init", "nosuch://bucket/x")
    assert "nosuch" in refused(place, 3, "--store", "nosuch://bucket/x", "log")
    assert "local directory" in refused(place, 2, "log", "--storage-option", "anon=true")
    assert "given as KEY=VALUE" in refused(place, 2, "--storage-option", "anon", "log")
