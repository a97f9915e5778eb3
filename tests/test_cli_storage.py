"""The command on object storage: stores in buckets and over SFTP, and where credentials come from and never show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_process import environment, make_store, objects, ok, refused, run
from servers.s3 import S3Server
from servers.sshd import SftpServer

UP_TO_DATE = "everything up to date\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a store of three commits."""
    make_store(tmp_path / ".cas")
    return tmp_path


def tip(place: Path, store: str) -> str:
    (found,) = objects(ok(place, "--store", store, "log", "main", "-n", "1", "--json"))
    return str(found["id"])


SECRET = "hunter2-do-not-tell"
IMPATIENT = "import sys, cas.retries; cas.retries.PATIENCE = 0.2; from cas.cli.main import main; sys.exit(main())"


def given(server: S3Server, **others: str) -> list[str]:
    """The storage options of a server, but for these."""
    options = {**server.options, **others}
    return [word for name, value in options.items() for word in ("--storage-option", f"{name}={value}")]


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of a place for a store; indexes of remote stores go below the test's directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return s3_server.url(s3_server.bucket(), "runs/a b")


@pytest.mark.slow
def test_a_store_in_a_bucket_is_pushed_to_and_cloned_and_worked_on(
    place: Path, s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = given(s3_server)
    assert "there is no store at s3://" in refused(place, 10, "--store", bucket, "log", *options)
    assert "there is no bucket" in refused(place, 10, "--store", "s3://cas-test-none/run", "log", *options)
    assert ok(place, "init", bucket, *options) == f"made an empty store at {bucket}\n"
    assert "is a store already" in refused(place, 3, "init", bucket, *options)
    ok(place, "remote", "add", "s3", bucket, "--storage-option", f"endpoint_url={s3_server.endpoint}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.key)  # from here on as users have them
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret)
    env = environment(CAS_STORE=bucket)
    (pushed,) = objects(ok(place, "push", "s3", "--json"))
    assert pushed["refs"][0]["name"] == "main"
    assert ok(place, "push", "s3") == UP_TO_DATE
    assert len(list((place / "cache" / "cas").iterdir())) == 1
    endpoint = ("--storage-option", f"endpoint_url={s3_server.endpoint}")
    for command in (["log"], ["show"], ["stats"], ["fsck", "--data"], ["gc", "--dry-run"], ["checkout", "-o", "out"]):
        done = run(place, *command, *endpoint, env=env)
        assert (done.returncode, done.stderr) == (0, ""), command
    (held,) = objects(run(place, "stats", "--json", *endpoint, env=env).stdout)
    assert (held["path"], held["one_writer"], held["stored"]) == (bucket, False, pushed["sent"])
    ok(place, "clone", bucket, "copy.cas", *endpoint)
    assert tip(place, "copy.cas") == tip(place, ".cas")
    assert ok(place, "--store", "copy.cas", "pull") == UP_TO_DATE  # the endpoint was kept with origin
    (place / "work").mkdir()
    (place / "work" / ".cas").write_text(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    assert len(ok(place / "work", "log").splitlines()) == 3


@pytest.mark.slow
def test_credentials_come_from_where_fsspec_and_aws_have_them(
    tmp_path: Path, s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FSSPEC_CONFIG_DIR", str(tmp_path / "fsspec"))
    (tmp_path / "fsspec").mkdir()
    (tmp_path / "fsspec" / "conf.json").write_text(json.dumps({"s3": s3_server.options}))
    ok(tmp_path, "init", bucket)
    (tmp_path / "fsspec" / "conf.json").unlink()
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {s3_server.key}\naws_secret_access_key = {s3_server.secret}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    refused(tmp_path, 3, "--store", bucket, "log")
    ok(tmp_path, "--store", bucket, "branch", "--storage-option", "profile=lab")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    ok(tmp_path, "--store", bucket, "branch")


@pytest.mark.slow
def test_a_secret_is_in_no_output_no_record_no_config_and_no_index(
    place: Path, s3_server: S3Server, bucket: str
) -> None:
    ok(place, "init", bucket, *given(s3_server))
    ok(place, "push", bucket, "main", *given(s3_server))
    ok(place, "remote", "add", "s3", bucket, "--storage-option", f"endpoint_url={s3_server.endpoint}")
    wrong = (
        given(s3_server, secret=SECRET),
        given(s3_server, key=SECRET, secret=SECRET, token=SECRET),
        given(s3_server, secret=SECRET, endpoint_url="http://127.0.0.1:9"),
        given(s3_server, secret=SECRET, endpoint_url="nonsense"),
        [*given(s3_server), "--storage-option", f"no_such_option={SECRET}"],
        [*given(s3_server), "--storage-option", f'client_kwargs={{"aws_session_token": "{SECRET}", "x": 1}}'],
    )
    said = ""
    for options in wrong:
        for command in (
            ["--store", bucket, "log"],
            ["init", f"{bucket}-new"],
            ["push", bucket, "main"],
            ["pull", "s3", "main"],
            ["clone", bucket, "copy.cas"],
            ["fsck", "--repair", "--from", "s3"],
        ):
            done = subprocess.run(
                [sys.executable, "-c", IMPATIENT, *command, *options],
                cwd=place,
                env=environment(),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode not in (0, 1), command
            assert "defect" not in done.stderr, done.stderr
            assert done.stderr.count("\n") == 1, done.stderr
            said += done.stdout + done.stderr
    said += ok(place, "log", "--root", "--json") + ok(place, "remote", "list", "-v", "--json")
    said += ok(place, "--store", bucket, "log", "--root", "--json", *given(s3_server))
    assert SECRET not in said
    assert s3_server.secret not in said
    for secret in (SECRET, s3_server.secret):
        found = [path for path in place.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
        assert found == [], secret


@pytest.mark.slow
@pytest.mark.server("sftp")
def test_a_store_on_another_machine_by_sftp(
    place: Path, sftp_server: SftpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    (place / "there").mkdir()
    url = sftp_server.url(place / "there" / "a run")
    options = [
        word
        for name, value in sftp_server.options.items()
        for word in ("--storage-option", f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    ]
    assert ok(place, "init", url, *options).startswith("made an empty store at sftp://")
    ok(place, "push", url, "main", *options)
    assert len(ok(place, "--store", url, "log", *options).splitlines()) == 3
    ok(place, "clone", url, "copy.cas", *options)
    assert tip(place, "copy.cas") == tip(place, ".cas")
    ok(place / "there" / "a run", "fsck", "--data")  # over there it is a local store
    wrong = ["--storage-option", f"password={SECRET}", "--storage-option", "look_for_keys=false"]
    assert SECRET not in refused(place, 3, "--store", url, "log", *wrong, "--storage-option", "allow_agent=false")


@pytest.mark.slow
@pytest.mark.server("rclone")
def test_storage_that_overwrites_is_for_one_writer_and_that_is_said(
    tmp_path: Path, rclone_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url, options = rclone_server.url(rclone_server.bucket(), "run"), given(rclone_server)
    done = run(tmp_path, "init", url, *options)
    assert (done.returncode, done.stdout) == (0, f"made an empty store at {url}, for one writer at a time\n")
    assert done.stderr.startswith("cas: warning: ")
    assert "let one process at a time write" in done.stderr
    make_store(tmp_path / ".cas")
    ok(tmp_path, "push", url, "main", *options)
    assert "for one writer at a time" in ok(tmp_path, "--store", url, "stats", *options)
    (held,) = objects(ok(tmp_path, "--store", url, "stats", "--json", *options))
    assert held["one_writer"] is True
