"""The servers that other tests stand on: each is what it is taken for, is shared, and ends with its last user."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from servers import ceph
from servers.s3 import S3Server
from servers.sshd import SftpServer


def test_an_object_comes_back_from_the_s3_server(s3_server: S3Server) -> None:
    bucket = s3_server.bucket()
    s3_server.client().put_object(Bucket=bucket, Key="a b/ä", Body=b"bytes")
    assert s3_server.client().get_object(Bucket=bucket, Key="a b/ä")["Body"].read() == b"bytes"


def test_a_file_comes_back_from_the_sftp_server(sftp_server: SftpServer, tmp_path: Path) -> None:
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(sftp_server.url(tmp_path / "file"), **sftp_server.options)
    filesystem.pipe_file(path, b"bytes")
    assert (tmp_path / "file").read_bytes() == b"bytes"
    assert filesystem.cat_file(path) == b"bytes"


@pytest.mark.slow
def test_ceph_killed_at_once_brings_back_every_acknowledged_object(restartable_s3_server: ceph.Cluster) -> None:
    server = restartable_s3_server.server
    bucket = server.bucket()
    for number in range(20):
        server.client().put_object(Bucket=bucket, Key=f"{number}", Body=b"%d" % number)
    restartable_s3_server.kill()
    with pytest.raises(BotoCoreError):
        server.client().head_bucket(Bucket=bucket)
    restartable_s3_server.start()
    for number in range(20):
        assert server.client().get_object(Bucket=bucket, Key=f"{number}")["Body"].read() == b"%d" % number


def put_if_absent(server: S3Server, bucket: str, body: bytes) -> int:
    """The status of a PUT that must not overwrite."""
    try:
        answer = server.client().put_object(Bucket=bucket, Key="once", Body=body, IfNoneMatch="*")
    except ClientError as error:
        return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
    return int(answer["ResponseMetadata"]["HTTPStatusCode"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "statuses", "kept"),
    [
        pytest.param("real_s3", [200, 412], b"1", marks=pytest.mark.server("real_s3")),
        pytest.param("swift", [501, 501], None, marks=pytest.mark.server("swift")),
        pytest.param("rclone", [200, 200], b"2", marks=pytest.mark.server("rclone")),
        pytest.param("moto", [200, 412], b"1", marks=pytest.mark.server("moto")),
    ],
)
def test_each_server_treats_a_conditional_write_in_its_own_way(
    name: str, statuses: list[int], kept: bytes | None, request: pytest.FixtureRequest
) -> None:
    server: S3Server = request.getfixturevalue(f"{name}_server")
    bucket = server.bucket()
    assert [put_if_absent(server, bucket, body) for body in (b"1", b"2")] == statuses
    listed = server.client().list_objects_v2(Bucket=bucket).get("Contents", [])
    assert [entry["Key"] for entry in listed] == (["once"] if kept else [])
    if kept:
        assert server.client().get_object(Bucket=bucket, Key="once")["Body"].read() == kept


USER = """
import sys
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from servers.keeper import kept
with kept("rclone", Path(sys.argv[1])) as info:
    print(info["endpoint"], flush=True)
    sys.stdin.read()
"""


@contextmanager
def user_of(directory: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that uses the server of a directory until its input ends, and the server's port."""
    command = [sys.executable, "-c", USER, str(directory)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        yield process, int(process.stdout.readline().rpartition(":")[2])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def gone(port: int) -> bool:
    """Whether nothing listens any more, within a time that a keeper needs at most."""
    deadline = time.monotonic() + 10
    while listens(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not listens(port)


@pytest.mark.slow
@pytest.mark.server("rclone")
def test_one_server_serves_all_users_until_the_last_is_killed(tmp_path: Path) -> None:
    with user_of(tmp_path) as (first, port), user_of(tmp_path) as (second, same):
        assert port == same
        first.kill()
        first.wait()
        time.sleep(0.5)
        assert listens(port)
        second.kill()
        second.wait()
        assert gone(port)


@pytest.mark.slow
@pytest.mark.server("rclone")
def test_a_server_that_ended_is_started_again_for_the_next_user(tmp_path: Path) -> None:
    for _ in range(2):
        with user_of(tmp_path) as (_, port):
            assert listens(port)
    assert gone(port)
    assert not list(tmp_path.glob("data-*"))


@pytest.mark.slow
@pytest.mark.server("moto")
@pytest.mark.parametrize("workers", [[], ["-n", "1"]])
def test_without_programs_tests_are_left_out_and_named_at_the_end(workers: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", *workers, "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'run'}"]
    command += ["-k", "comes_back_from_the_s3 or killed_at_once or own_way and (real_s3 or moto)", __file__]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "CAS_"))}
    done = subprocess.run(
        command, env={**environment, "PATH": "/nowhere"}, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    assert "skipped" not in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("NOT COVERED: ")]
    assert len(lines) == 2
    assert "races and faults on S3, for moto's server stands in" in lines[0]
    assert "own_way[real_s3" in lines[0]
    assert "test_ceph_killed_at_once_brings_back_every_acknowledged_object" in lines[1]
