"""The S3 backend against a real server: what is written is whole, named once, and read back as it was."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers.s3 import S3Server

from cas import retries, s3_listing
from cas.backend import NewFile
from cas.errors import Corrupt, Exists, Invalid, NotFound, Unsupported
from cas.s3 import MAX_WHOLE, S3Backend
from cas.s3_uploads import BUFFERS, PART_SIZE, part_size

ROOT = Path(__file__).resolve().parent.parent
BYTES = random.Random(7).randbytes(2 * PART_SIZE + 77_777)
SIZES = [0, 1, 65_536, 65_537, PART_SIZE - 1, PART_SIZE, PART_SIZE + 1, 2 * PART_SIZE, len(BYTES)]

Open = Callable[..., S3Backend]


@pytest.fixture
def open_backend() -> Iterator[Open]:
    """Opens backends that are closed at the end."""
    with contextlib.ExitStack() as stack:

        def opened(url: str, options: dict[str, Any]) -> S3Backend:
            backend = S3Backend(url, options)
            stack.callback(backend.close)
            return backend

        yield opened


@pytest.fixture
def backend(s3_server: S3Server, open_backend: Open) -> S3Backend:
    return open_backend(s3_server.url(s3_server.bucket(), "a run/größe 1+1=2 %41"), s3_server.options)


def put(backend: S3Backend, name: str, data: bytes, step: int = 1_000_003) -> None:
    """Write `data` as a streamed file, in pieces of `step` bytes."""
    file = backend.new_file(name, len(data))
    for start in range(0, len(data), step):
        file.write(memoryview(data)[start : start + step])
    assert file.size == len(data)
    file.publish()


def uploads(server: S3Server, backend: S3Backend) -> list[str]:
    """Keys of the uploads that are neither completed nor aborted."""
    bucket = backend.url.split("/")[2]
    return [item["Key"] for item in server.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


def in_threads(count: int, work: Callable[[int], object]) -> list[object]:
    """What each call of `work` returned or raised, all at once."""
    outcomes: list[object] = [None] * count
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait()
        try:
            outcomes[number] = work(number)
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


# -- writing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_streamed_file_has_exactly_its_bytes(backend: S3Backend, s3_server: S3Server, size: int) -> None:
    put(backend, "packs/aa/one", BYTES[:size])
    assert [(info.name, info.size) for info in backend.list("")] == [("packs/aa/one", size)]
    assert backend.read("packs/aa/one") == BYTES[:size]
    assert not uploads(s3_server, backend)


@pytest.mark.parametrize("size", [5, len(BYTES)])
def test_a_file_is_not_there_before_it_is_published(backend: S3Backend, size: int) -> None:
    file = backend.new_file("packs/aa/one", 256 << 20)
    file.write(BYTES[:size])
    assert not backend.exists("packs/aa/one")
    assert backend.list("packs") == []
    file.publish()
    assert backend.exists("packs/aa/one")


@pytest.mark.parametrize("size", [5, len(BYTES)])
def test_an_abandoned_file_leaves_nothing(backend: S3Backend, s3_server: S3Server, size: int) -> None:
    file = backend.new_file("packs/aa/one", 256 << 20)
    file.write(BYTES[:size])
    file.abandon()
    file.abandon()
    assert backend.list("") == []
    assert not uploads(s3_server, backend)
    with pytest.raises(Invalid, match="abandoned"):
        file.write(b"more")


def test_a_published_file_takes_nothing_more(backend: S3Backend) -> None:
    file = backend.new_file("one", 5)
    file.publish()
    with pytest.raises(Invalid, match="published"):
        file.write(b"more")
    file.abandon()
    assert backend.exists("one")


@pytest.mark.parametrize("size", [5, len(BYTES)])
def test_a_taken_name_is_refused_and_keeps_its_bytes(backend: S3Backend, s3_server: S3Server, size: int) -> None:
    backend.create("packs/aa/one", b"first")
    with pytest.raises(Exists, match="packs/aa/one exists already"):
        put(backend, "packs/aa/one", BYTES[:size])
    assert backend.read("packs/aa/one") == b"first"
    assert not uploads(s3_server, backend)


def test_what_is_written_is_copied_before_write_returns(backend: S3Backend) -> None:
    file, data = backend.new_file("one", 0), bytearray(BYTES)
    file.write(data)
    data[:] = bytes(len(data))
    file.publish()
    assert backend.read("one") == BYTES


def test_many_files_at_once_share_the_buffers(backend: S3Backend) -> None:
    """More files than there are buffers, each of more parts than fit beside the others'."""
    outcomes = in_threads(BUFFERS + 2, lambda number: put(backend, f"packs/{number}", BYTES[number:]))
    assert outcomes == [None] * (BUFFERS + 2)
    for number in range(BUFFERS + 2):
        assert backend.tail(f"packs/{number}", 9) == (BYTES[-9:], len(BYTES) - number)


def test_files_half_written_by_one_thread_do_not_wait_for_each_other(backend: S3Backend) -> None:
    files: list[NewFile] = [backend.new_file(f"packs/{number}", 0) for number in range(2 * BUFFERS)]
    for file in files:
        file.write(b"x")
    for file in files:
        file.abandon()


def test_parts_are_large_enough_for_ten_thousand_of_them() -> None:
    assert part_size(0) == part_size(256 << 20) == PART_SIZE
    for size in (80 << 30, 1 << 40, 5 << 40):
        assert size / part_size(size) <= 9900
        assert part_size(size) % PART_SIZE == 0


def test_a_file_expected_to_be_huge_has_larger_parts(backend: S3Backend) -> None:
    file = backend.new_file("huge", 100 << 30)
    file.write(BYTES)  # 16.1 MiB: two parts of 16 MiB at this size
    file.publish()
    assert backend.read("huge") == BYTES


@pytest.mark.slow
def test_a_file_is_written_in_bounded_memory(s3_server: S3Server) -> None:
    code = """if True:
        import os, resource, sys
        sys.path.insert(0, sys.argv[1])
        from cas.s3 import S3Backend
        backend = S3Backend(sys.argv[2], dict(key=sys.argv[3], secret=sys.argv[4], endpoint_url=sys.argv[5]))
        backend.create("first", b"")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        piece = os.urandom(1 << 20)
        file = backend.new_file("packs/one", 0)
        for _ in range(400):
            file.write(piece)
        file.publish()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    url, options = s3_server.url(s3_server.bucket(), "run"), s3_server.options
    arguments = [str(ROOT), url, options["key"], options["secret"], options["endpoint_url"]]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert int(run.stdout) < (BUFFERS * PART_SIZE >> 10) + (24 << 10)


# -- creating exactly once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("same", [False, True], ids=["own bytes", "equal bytes"])
def test_one_of_racing_creators_wins(real_s3_server: S3Server, open_backend: Open, same: bool) -> None:
    url = real_s3_server.url(real_s3_server.bucket(), "run")
    backends = [open_backend(url, real_s3_server.options) for _ in range(4)]
    for number in range(5):
        name = f"log/{number:020d}"
        outcomes = in_threads(16, lambda i, name=name: backends[i % 4].create(name, b"same" if same else b"%d" % i))
        winners = [i for i, outcome in enumerate(outcomes) if outcome is None]
        assert len(winners) == 1
        assert all(isinstance(outcome, Exists) for i, outcome in enumerate(outcomes) if i not in winners)
        assert backends[0].read(name) == (b"same" if same else b"%d" % winners[0])


def test_a_hint_is_replaced(backend: S3Backend) -> None:
    backend.replace("root", b"1")
    backend.replace("root", b"2 and more")
    assert backend.read("root") == b"2 and more"


# -- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["packs/one", "log/one"])  # packs go through windows
@pytest.mark.parametrize(
    ("start", "length"), [(0, 10), (99_990, 10), (99_990, 20), (100_000, 5), (200_000, 5), (5, 0), (50, 90_000)]
)
def test_a_range_ends_where_the_file_ends(backend: S3Backend, name: str, start: int, length: int) -> None:
    backend.create(name, BYTES[:100_000])
    assert backend.read(name, start, length) == BYTES[:100_000][start : start + length]


def test_the_rest_of_a_file(backend: S3Backend) -> None:
    backend.create("one", BYTES[:1000])
    assert [backend.read("one", start) for start in (0, 990, 1000, 2000)] == [BYTES[:1000], BYTES[990:1000], b"", b""]
    with pytest.raises(Invalid):
        backend.read("one", -1)
    with pytest.raises(Invalid):
        backend.read("one", 0, -1)


@pytest.mark.parametrize("sizes", [[10, 0, 20], [300_000, 1, 2_000_000], [0], []])
def test_buffers_are_filled_one_after_the_other(backend: S3Backend, sizes: list[int]) -> None:
    backend.create("packs/one", BYTES[:3_000_000])
    buffers = [memoryview(bytearray(size)) for size in sizes]
    backend.readinto("packs/one", 12_345, buffers)
    assert b"".join(buffers) == BYTES[12_345 : 12_345 + sum(sizes)]


@pytest.mark.parametrize("start", [0, 99_999, 100_000, 100_001])
@pytest.mark.parametrize("length", [100_001, 5_000_000, 60_000])
def test_a_file_that_ends_inside_the_buffers_is_corrupt(backend: S3Backend, start: int, length: int) -> None:
    backend.create("packs/one", BYTES[:100_000])
    if start + length <= 100_000:
        start = 50_000
    with pytest.raises(Corrupt, match=r"packs/one ends at byte .*: run fsck"):
        backend.readinto("packs/one", start, [memoryview(bytearray(length))])


def test_the_tail_and_the_size(backend: S3Backend) -> None:
    backend.create("one", BYTES[:1000])
    backend.create("empty", b"")
    assert backend.tail("one", 10) == (BYTES[990:1000], 1000)
    assert backend.tail("one", 1000) == backend.tail("one", 5000) == (BYTES[:1000], 1000)
    assert backend.tail("one", 0) == (b"", 1000)
    assert backend.tail("empty", 10) == (b"", 0)


@pytest.mark.server("rclone")
def test_a_service_that_refuses_more_than_all_of_a_file_gives_its_tail(
    rclone_server: S3Server, open_backend: Open
) -> None:
    backend = open_backend(rclone_server.url(rclone_server.bucket()), rclone_server.options)
    backend.create("packs/aa", b"0123456789")
    backend.create("packs/bb", b"")
    assert backend.tail("packs/aa", 3) == (b"789", 10)
    assert backend.tail("packs/aa", 64 << 10) == (b"0123456789", 10)
    assert backend.read("packs/aa", 2, 3) == b"234"
    assert backend.tail("packs/bb", 64 << 10) == (b"", 0)


def test_a_file_too_large_to_be_a_record_is_not_read_whole(
    backend: S3Backend, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_WHOLE >= 64 << 20
    monkeypatch.setattr("cas.s3.MAX_WHOLE", 1000)
    backend.create("one", BYTES[:1001])
    with pytest.raises(Corrupt, match="1001 bytes"):
        backend.read("one")


@pytest.mark.parametrize(
    "call",
    [
        lambda backend: backend.read("log/none"),
        lambda backend: backend.read("packs/none", 5, 5),
        lambda backend: backend.readinto("packs/none", 0, [memoryview(bytearray(100_000))]),
        lambda backend: backend.tail("packs/none", 5),
        lambda backend: backend.delete("packs/none"),
    ],
)
def test_what_is_missing_is_not_found(backend: S3Backend, call: Callable[[S3Backend], object]) -> None:
    with pytest.raises(NotFound, match="none is not there"):
        call(backend)


def test_existence_and_deletion(backend: S3Backend) -> None:
    backend.create("empty", b"")
    backend.create("full", b"x")
    assert backend.exists("empty")
    assert backend.exists("full")
    assert not backend.exists("ful")
    assert not backend.exists("fullx")
    backend.delete("full")
    assert not backend.exists("full")


def test_what_was_forgotten_is_read_again(backend: S3Backend, s3_server: S3Server) -> None:
    backend.create("packs/one", b"bad")
    assert backend.read("packs/one", 0, 3) == b"bad"
    bucket, _, key = backend.url.removeprefix("s3://").partition("/")
    s3_server.client().put_object(Bucket=bucket, Key=f"{key}/packs/one", Body=b"new")
    assert backend.read("packs/one", 0, 3) == b"bad"
    backend.forget("packs/one")
    assert backend.read("packs/one", 0, 3) == b"new"


@pytest.mark.parametrize("name", ["", "/a", "a//b", "../a", "a/..", "./a", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(backend: S3Backend, name: str) -> None:
    for call in (lambda: backend.create(name, b""), lambda: backend.read(name), lambda: backend.new_file(name, 0)):
        with pytest.raises(Invalid, match="no name of a file"):
            call()


# -- listing and sweeping -----------------------------------------------------------------------------------


def test_a_listing_is_whole_sorted_and_of_the_folder_alone(backend: S3Backend, s3_server: S3Server) -> None:
    names = [f"packs/{i % 7}/{i:04d} ü" for i in range(1100)] + ["packs2/x", "log/y"]
    bucket, _, key = backend.url.removeprefix("s3://").partition("/")
    client = s3_server.client()

    def make(worker: int) -> None:
        for name in names[worker::8]:
            client.put_object(Bucket=bucket, Key=f"{key}/{name}", Body=name.encode())

    assert in_threads(8, make) == [None] * 8
    client.put_object(Bucket=bucket, Key=f"{key}/packs/", Body=b"")  # a folder, as some tools show it
    client.put_object(Bucket=bucket, Key=f"{key}x/packs/other", Body=b"")
    found = backend.list("packs")
    assert [info.name for info in found] == sorted(names[:1100])
    assert all(info.size == len(info.name.encode()) for info in found)
    assert all(abs(info.modified - backend.now()) < 60 for info in found)
    assert [info.name for info in backend.list("")] == sorted(names)
    assert backend.list("none") == []


def test_the_whole_bucket_can_be_the_place(s3_server: S3Server, open_backend: Open) -> None:
    bucket = s3_server.bucket()
    backend = open_backend(f"s3://{bucket}", s3_server.options)
    backend.create("cas.json", b"{}")
    assert backend.url == f"s3://{bucket}"
    assert [info.name for info in backend.list("")] == ["cas.json"]
    assert open_backend(f"s3a://{bucket}/", s3_server.options).read("cas.json") == b"{}"


def test_a_sweep_takes_what_was_left_and_spares_what_is_written(
    backend: S3Backend, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = backend.new_file("packs/one", 0)
    file.write(BYTES)
    backend.create("tmp/left", b"x")
    backend.create("log/kept", b"x")
    backend.sweep(1000)
    assert [info.name for info in backend.list("")] == ["log/kept", "tmp/left"]
    backend.sweep(0)
    assert [info.name for info in backend.list("")] == ["log/kept"]
    assert len(uploads(s3_server, backend)) == 1, "an upload that got a part within the hour is somebody's work"
    monkeypatch.setattr(s3_listing, "QUIET", -5)
    backend.sweep(-5)
    assert not uploads(s3_server, backend)
    with pytest.raises(OSError, match=r"lost the upload of .*packs/one: write it again"):
        file.publish()
    assert not backend.exists("packs/one")


def test_a_sweep_leaves_other_prefixes_alone(
    backend: S3Backend, s3_server: S3Server, open_backend: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_listing, "QUIET", -5)
    other = open_backend(f"{backend.url} too", s3_server.options)
    file = other.new_file("packs/one", 0)
    file.write(BYTES)
    other.create("tmp/left", b"x")
    backend.sweep(-5)
    file.publish()
    assert [info.name for info in other.list("")] == ["packs/one", "tmp/left"]


def test_time_is_the_services_own(backend: S3Backend) -> None:
    before = backend.now()
    assert abs(before - time.time()) < 5
    time.sleep(0.2)
    assert backend.now() > before


# -- processes ----------------------------------------------------------------------------------------------


def test_a_fork_goes_on_with_the_backend_but_not_with_its_files(backend: S3Backend) -> None:
    backend.create("packs/one", b"before")
    file = backend.new_file("packs/two", 0)
    file.write(BYTES)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            assert backend.read("packs/one", 0, 6) == b"before"
            put(backend, "packs/three", BYTES)
            try:
                file.write(b"x")
            except Invalid:
                file.abandon()  # which must not abort the parent's upload
                os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    file.publish()
    assert backend.tail("packs/two", 1)[1] == backend.tail("packs/three", 1)[1] == len(BYTES)


def test_a_closed_backend_opens_again(backend: S3Backend) -> None:
    backend.create("one", b"1")
    backend.close()
    backend.close()
    assert backend.read("one") == b"1"


# -- services that cannot create honestly ---------------------------------------------------------------------


def test_where_writers_overwrite_each_other_one_is_told(rclone_server: S3Server, open_backend: Open) -> None:
    backend = open_backend(rclone_server.url(rclone_server.bucket(), "run"), rclone_server.options)
    backend.has_honest_create = False
    backend.create("log/1", b"one")
    with pytest.raises(Exists):
        backend.create("log/1", b"two")
    assert backend.read("log/1") == b"one"
    put(backend, "packs/one", BYTES)
    assert backend.read("packs/one") == BYTES


@pytest.mark.slow
def test_a_service_that_refuses_conditions_says_so_and_serves_one_writer(
    swift_server: S3Server, open_backend: Open
) -> None:
    backend = open_backend(swift_server.url(swift_server.bucket(), "run"), swift_server.options)
    with pytest.raises(Unsupported, match="log/1"):
        backend.create("log/1", b"one")
    backend.has_honest_create = False
    backend.create("log/1", b"one")
    with pytest.raises(Exists):
        backend.create("log/1", b"two")
    put(backend, "packs/one", BYTES)
    assert backend.read("packs/one") == BYTES
    assert [info.name for info in backend.list("")] == ["log/1", "packs/one"]


# -- settings and refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "kind", "text"),
    [
        ({"secret": "wrong-secret"}, PermissionError, "credentials .* refused .SignatureDoesNotMatch.: renew"),
        ({"key": "wrong-key"}, PermissionError, "credentials .* refused .InvalidAccessKeyId.: renew"),
        ({"anon": True}, PermissionError, "was denied .AccessDenied."),
        ({"endpoint_url": "http://me:hidden-value@nowhere.invalid"}, OSError, "no connection to nowhere.invalid"),
        ({"endpoint_url": "nonsense"}, Invalid, "settings"),
        ({"profile": "none-such"}, Invalid, "no such profile"),
        ({"sekret": "hidden-value"}, Invalid, "no storage options sekret"),
        ({"client_kwargs": {"nonsense": 1}}, Invalid, "settings"),
        ({"bucket": "no-such-bucket-at-all"}, NotFound, "there is no bucket no-such-bucket-at-all"),
        ({"bucket": "Not a bucket"}, Invalid, "no name that S3 allows"),
    ],
)
def test_a_refusal_is_one_sentence_at_once_and_without_secrets(
    real_s3_server: S3Server, open_backend: Open, changed: dict[str, Any], kind: type[Exception], text: str
) -> None:
    bucket = changed.pop("bucket", None) or real_s3_server.bucket()
    options = {**real_s3_server.options, **changed}
    begin = time.monotonic()
    for call in ("create", "exists", "list"):
        with pytest.raises(kind, match=text) as caught:
            backend = open_backend(f"s3://{bucket}/run", options)
            getattr(backend, call)(*(["log/1", b""] if call == "create" else ["log"]))
        assert bucket in str(caught.value)
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert not any(secret in shown for secret in (options["secret"], options["key"], "hidden-value"))
    assert time.monotonic() - begin < 20


def test_missing_credentials_are_asked_for(
    s3_server: S3Server, open_backend: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    backend = open_backend("s3://bucket/run", {"endpoint_url": s3_server.endpoint})
    with pytest.raises(PermissionError, match=r"there are no credentials for s3://bucket/run.*AWS_ACCESS_KEY_ID"):
        backend.exists("cas.json")


def test_the_environment_and_the_files_of_aws_are_used(
    s3_server: S3Server, open_backend: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "credentials").write_text(
        f"[mine]\naws_access_key_id = {s3_server.key}\naws_secret_access_key = {s3_server.secret}\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint.replace("127.0.0.1", "localhost"))
    backend = open_backend(f"s3://{s3_server.bucket()}/run", {"profile": "mine"})
    backend.create("cas.json", b"{}")
    assert backend.read("cas.json") == b"{}"


def test_the_configuration_of_fsspec_is_used(
    s3_server: S3Server, open_backend: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.config import conf

    monkeypatch.setitem(conf, "s3", s3_server.options)
    backend = open_backend(f"s3://{s3_server.bucket()}/run", {})
    backend.create("cas.json", b"{}")
    assert backend.read("cas.json") == b"{}"


def test_arguments_for_every_request_reach_those_that_know_them(s3_server: S3Server, open_backend: Open) -> None:
    options = {**s3_server.options, "s3_additional_kwargs": {"ContentType": "application/x-cas"}}
    bucket = s3_server.bucket()
    backend = open_backend(f"s3://{bucket}/run", options)
    backend.create("one", b"1")
    put(backend, "two", BYTES)
    for key in ("run/one", "run/two"):
        assert s3_server.client().head_object(Bucket=bucket, Key=key)["ContentType"] == "application/x-cas"
    assert backend.read("one") == b"1"


def test_nothing_that_can_be_shown_holds_the_credentials(backend: S3Backend, s3_server: S3Server) -> None:
    for thing in (backend, backend._service, backend._service._access, backend.url):
        assert s3_server.secret not in repr(thing) + str(thing)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"endpoint_url": "nonsense://u:hidden@"}, "endpoint_url is no URL of a service"),
        ({"secret": "hidden"}, "aws_access_key_id is missing beside the other half of the credentials"),
        ({"profile": "hidden"}, "no such profile is in AWS's files"),
        ({"config_kwargs": {"s3": 5}}, "look at client_kwargs, config_kwargs and AWS's variables and files"),
    ],
)
def test_settings_that_make_no_sense_are_named_without_secrets(
    options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    backend = S3Backend("s3://bucket/run", options)
    with pytest.raises(Invalid) as caught:
        backend.exists("cas.json")
    assert f"the settings for s3://bucket/run are refused: {said}" in str(caught.value)
    assert "hidden" not in "".join(traceback.format_exception(caught.value, chain=False))


def test_a_url_without_a_bucket_is_invalid(s3_server: S3Server) -> None:
    with pytest.raises(Invalid, match="s3://bucket/prefix"):
        S3Backend("s3://", s3_server.options)


def test_a_missing_package_is_named_with_its_install_command(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['s3fs'] = None\n"
        "from cas.s3 import S3Backend\n"
        "try: S3Backend('s3://bucket/run', {})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == "Unsupported s3://bucket/run needs s3fs: pip install 'cas-checkpoints[s3]'\n"


def test_a_service_that_is_away_is_waited_for_and_then_named(
    s3_server: S3Server, open_backend: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "PATIENCE", 1)
    backend = open_backend("s3://bucket/run", {**s3_server.options, "endpoint_url": "http://127.0.0.1:9"})
    begin = time.monotonic()
    for call in (lambda: backend.read("one"), lambda: backend.create("one", b"")):
        with pytest.raises(OSError, match=r"s3://bucket/run/one failed \(no connection to 127.0.0.1:9\)") as caught:
            call()
        assert type(caught.value) is OSError, "nothing was sent, so nothing can have landed"
    assert 2 <= time.monotonic() - begin < 10
