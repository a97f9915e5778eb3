"""The S3 backend while requests fail: each outcome is known, or said to be open; nothing is there twice or half."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.proxy import FOREVER, Fault, FaultProxy
from servers.ceph import Cluster
from servers.s3 import S3Server

from cas import retries
from cas.backend import Unsettled
from cas.errors import Exists, NotFound
from cas.s3 import S3Backend
from cas.s3_uploads import PART_SIZE

BYTES = random.Random(8).randbytes(2 * PART_SIZE + 77_777)
ROOT = Path(__file__).resolve().parent.parent
PASSING = ["503", "500", "409", "timeout", "reset", "landed", "slow"]
"""Faults after which the same request succeeds."""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PATIENCE", 1.5)


@pytest.fixture
def backend(fault_proxy: FaultProxy, real_s3_server: S3Server) -> Iterator[S3Backend]:
    """Behind the proxy; it gives up waiting for an answer after a second."""
    options: dict[str, Any] = {**fault_proxy.options, "config_kwargs": {"read_timeout": 1}}
    opened = S3Backend(real_s3_server.url(real_s3_server.bucket(), "run"), options)
    yield opened
    opened.close()


@pytest.fixture
def eyes(backend: S3Backend, real_s3_server: S3Server) -> Iterator[S3Backend]:
    """The same place without the proxy."""
    opened = S3Backend(backend.url, real_s3_server.options)
    yield opened
    opened.close()


def put(backend: S3Backend, name: str, data: bytes) -> None:
    file = backend.new_file(name, len(data))
    file.write(data)
    file.publish()


def uploads(server: S3Server, backend: S3Backend) -> list[str]:
    bucket = backend.url.split("/")[2]
    return [item["Key"] for item in server.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


# -- creating exactly once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*PASSING, "412"])
def test_a_create_that_fails_in_passing_is_done_once(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy, kind: str
) -> None:
    fault = Fault(kind, at="put-record", times=1 if kind == "timeout" else 2)
    fault_proxy.faults.append(fault)
    backend.create("log/1", b"mine")
    assert fault.hits >= 1
    assert eyes.read("log/1") == b"mine"
    with pytest.raises(Exists):
        backend.create("log/1", b"mine")


@pytest.mark.parametrize("kind", ["503", "timeout", "reset"])
def test_a_create_that_was_never_answered_and_is_not_there_is_unsettled(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy, kind: str
) -> None:
    fault_proxy.faults.append(Fault(kind, at="put-record", times=FOREVER))
    begin = time.monotonic()
    with pytest.raises(Unsettled, match=r"run/log/1 failed .*; the object may be there now or appear later"):
        backend.create("log/1", b"mine")
    assert time.monotonic() - begin < 8
    assert fault_proxy.count("put-record") > 1
    assert not eyes.exists("log/1")


def test_a_create_whose_replies_are_all_lost_is_found(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy
) -> None:
    fault_proxy.faults.append(Fault("landed", at="put-record", times=FOREVER))
    backend.create("log/1", b"mine")
    assert eyes.read("log/1") == b"mine"


def test_a_create_that_landed_before_a_refusal_is_found(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy
) -> None:
    fault_proxy.faults += [Fault("landed", at="put-record"), Fault("403", at="put-record", times=FOREVER)]
    backend.create("log/1", b"mine")
    assert eyes.read("log/1") == b"mine"


def test_a_create_that_may_have_landed_before_a_refusal_is_unsettled(
    backend: S3Backend, fault_proxy: FaultProxy
) -> None:
    fault_proxy.faults += [Fault("timeout", at="put-record"), Fault("403", at="put-record", times=FOREVER)]
    with pytest.raises(Unsettled, match="AccessDenied"):
        backend.create("log/1", b"mine")


def test_nothing_can_be_seen_of_a_create_is_unsettled(backend: S3Backend, fault_proxy: FaultProxy) -> None:
    fault_proxy.faults += [Fault("landed", at="put-record", times=FOREVER), Fault("503", at="head", times=FOREVER)]
    with pytest.raises(Unsettled):
        backend.create("log/1", b"mine")


@pytest.mark.parametrize(
    ("kind", "error"), [("403", PermissionError), ("409", OSError), ("412", OSError), ("404", NotFound)]
)
def test_a_create_that_was_refused_for_good_is_a_plain_error(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy, kind: str, error: type[Exception]
) -> None:
    fault_proxy.faults.append(Fault(kind, at="put-record", times=FOREVER))
    with pytest.raises(error) as caught:
        backend.create("log/1", b"mine")
    assert not isinstance(caught.value, Unsettled)
    assert not eyes.exists("log/1")


def test_a_create_that_lost_while_it_was_unanswered_is_told(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy
) -> None:
    fault_proxy.faults.append(Fault("timeout", at="put-record", times=FOREVER))
    other = threading.Timer(0.3, eyes.create, ("log/1", b"theirs"))
    other.start()
    with pytest.raises(Exists):
        backend.create("log/1", b"mine")
    other.join()
    assert eyes.read("log/1") == b"theirs"


@pytest.mark.parametrize("kind", ["reset", "landed"])
def test_of_racing_creators_on_a_bad_line_one_wins(backend: S3Backend, fault_proxy: FaultProxy, kind: str) -> None:
    fault_proxy.faults += [Fault(kind, at="put-record", nth=nth) for nth in (1, 3, 4, 7)]
    outcomes: list[int] = []

    def create(number: int) -> None:
        with contextlib.suppress(Exists):
            backend.create("log/1", b"%d" % number)
            outcomes.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [b"%d" % number for number in outcomes] == [backend.read("log/1")]


# -- uploading ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.parametrize("at", ["create-upload", "upload-part", "complete-upload", "head"])
def test_an_upload_survives_what_passes(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy, real_s3_server: S3Server, at: str, kind: str
) -> None:
    retries.PATIENCE = 10  # restored by the fixture
    fault = Fault(kind, at=at, nth=2 if at in ("upload-part", "head") else 1)
    fault_proxy.faults.append(fault)
    put(backend, "packs/one", BYTES)
    assert fault.hits == 1
    assert eyes.read("packs/one") == BYTES
    if (at, kind) not in (("create-upload", "landed"), ("create-upload", "slow")):  # that one is left for `sweep`
        assert not uploads(real_s3_server, backend)


def test_a_file_of_one_request_survives_a_lost_reply(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy
) -> None:
    fault_proxy.faults.append(Fault("landed", at="put"))
    put(backend, "packs/one", b"small")
    assert eyes.read("packs/one") == b"small"


@pytest.mark.parametrize("at", ["upload-part", "complete-upload"])
def test_an_upload_that_the_service_lost_is_a_lost_file(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy, at: str
) -> None:
    fault_proxy.faults.append(Fault("lost-upload", at=at, times=FOREVER))
    with pytest.raises(OSError, match=r"lost the upload of .*run/packs/one: write it again"):
        put(backend, "packs/one", BYTES)
    assert not eyes.exists("packs/one")


@pytest.mark.slow
@pytest.mark.parametrize("at", ["create-upload", "upload-part", "complete-upload"])
@pytest.mark.parametrize(("kind", "error"), [("403", PermissionError), ("503", OSError)])
def test_a_failing_upload_fails_the_file_and_is_aborted(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy, real_s3_server: S3Server, at: str, kind: str,
    error: type[Exception],
) -> None:  # fmt: skip
    fault_proxy.faults.append(Fault(kind, at=at, times=FOREVER))
    file = backend.new_file("packs/one", 0)
    with pytest.raises(error, match="packs/one") as caught:
        file.write(BYTES)
        file.publish()
    with pytest.raises(type(caught.value)):
        file.write(b"more")
    file.abandon()
    assert not eyes.exists("packs/one")
    assert not uploads(real_s3_server, backend)
    fault_proxy.faults.clear()
    put(backend, "packs/two", BYTES)  # the buffers are free again
    assert eyes.tail("packs/two", 1)[1] == len(BYTES)


def test_abandoning_does_not_wait_for_a_service_that_is_down(
    backend: S3Backend, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "PATIENCE", 60)
    fault_proxy.faults.append(Fault("503", at="upload-part", times=FOREVER))
    file = backend.new_file("packs/one", 0)
    file.write(BYTES)
    time.sleep(0.5)
    begin = time.monotonic()
    file.abandon()
    assert time.monotonic() - begin < 5


# -- reading ------------------------------------------------------------------------------------------------

READS: dict[str, Callable[[S3Backend], object]] = {
    "whole": lambda backend: backend.read("log/1"),
    "range": lambda backend: backend.read("packs/1", 1_000_000, 500_000),
    "small range": lambda backend: backend.read("packs/1", 1000, 50),
    "tail": lambda backend: backend.tail("packs/1", 200_000),
    "exists": lambda backend: backend.exists("packs/1"),
}


def filled(backend: S3Backend) -> bytes:
    buffers = [memoryview(bytearray(size)) for size in (700_000, 3_000_000, 1)]
    backend.readinto("packs/1", 5, buffers)
    return b"".join(buffers)


READS["buffers"] = filled


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        *(("buffers", kind) for kind in ("503", "500", "timeout", "reset", "landed", "slow")),
        *((read, "cut") for read in READS if read != "exists"),
        ("exists", "503"),
    ],
)
def test_a_read_survives_what_passes(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy, kind: str, read: str
) -> None:
    eyes.create("log/1", BYTES[:100_000])
    eyes.create("packs/1", BYTES[: 4 << 20])
    fault = Fault(kind, at="get", times=2 if kind in ("503", "cut") else 1)
    fault_proxy.faults.append(fault)
    assert READS[read](backend) == READS[read](eyes)
    assert fault.hits >= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["503", "reset", "cut"])
def test_a_read_that_goes_on_failing_names_the_file(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy, kind: str
) -> None:
    eyes.create("packs/1", BYTES[: 4 << 20])
    retries.PATIENCE = 0.5  # restored by the fixture
    fault_proxy.faults.append(Fault(kind, at="get", times=FOREVER))
    for read in ("range", "small range", "tail", "buffers"):
        with pytest.raises(OSError, match=r"run/packs/1 failed \(.*\): try again later") as caught:
            READS[read](backend)
        assert not isinstance(caught.value, Unsettled)


def test_a_corrupt_answer_is_kept_only_until_it_is_forgotten(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy
) -> None:
    eyes.create("packs/1", BYTES[:50_000])
    fault_proxy.faults.append(Fault("corrupt", at="get"))
    assert backend.read("packs/1", 0, 50_000) != BYTES[:50_000]
    backend.forget("packs/1")
    assert backend.read("packs/1", 0, 50_000) == BYTES[:50_000]


def test_small_ranges_of_a_pack_cost_few_requests(backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy) -> None:
    eyes.create("packs/1", BYTES[: 1 << 20])
    for start in range(0, 1 << 20, 5000):
        assert backend.read("packs/1", start, 700) == BYTES[: 1 << 20][start : start + 700]
    assert fault_proxy.count() <= 8


def test_a_connection_is_used_again(backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy) -> None:
    eyes.create("packs/1", BYTES[: 4 << 20])
    for read in READS.values():
        if read is not READS["whole"]:
            read(backend)
    assert len(fault_proxy._connections) == 1


# -- listing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["503", "reset", "cut", "landed", "list-lossy", "list-duplicate"])
def test_a_listing_survives_what_passes(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy, kind: str
) -> None:
    for number in range(6):
        eyes.create(f"log/{number}", b"x")
    fault = Fault(kind, at="list", times=2)
    fault_proxy.faults.append(fault)
    assert [info.name for info in backend.list("log")] == [f"log/{number}" for number in range(6)]
    assert fault.hits >= 1


@pytest.mark.parametrize("count", [0, 1, 6])
def test_a_listing_that_is_not_gone_on_with_begins_again(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy, count: int
) -> None:
    """The token that came with the first page is refused."""
    for number in range(count):
        eyes.create(f"log/{number}", b"x")
    fault = Fault("list-partial", at="list")
    fault_proxy.faults.append(fault)
    assert [info.name for info in backend.list("log")] == [f"log/{number}" for number in range(count)]
    assert fault.hits == 1


@pytest.mark.parametrize("kind", ["503", "403", "list-lossy", "list-partial"])
def test_a_listing_that_is_not_whole_is_an_error(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy, kind: str
) -> None:
    for number in range(6):
        eyes.create(f"log/{number}", b"x")
    fault_proxy.faults.append(Fault(kind, at="list", times=FOREVER))
    with pytest.raises(OSError, match=r"s3://.*/run"):
        backend.list("log")


def test_a_sweep_that_cannot_see_spares(
    backend: S3Backend, fault_proxy: FaultProxy, real_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cas.s3_listing.QUIET", -5)
    file = backend.new_file("packs/one", 0)
    file.write(BYTES)
    fault_proxy.faults.append(Fault("403", at="list-parts", times=FOREVER))
    backend.sweep(-5)
    assert len(uploads(real_s3_server, backend)) == 1
    file.publish()


# -- deleting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["503", "reset", "landed"])
def test_a_deletion_survives_what_passes(
    backend: S3Backend, eyes: S3Backend, fault_proxy: FaultProxy, kind: str
) -> None:
    eyes.create("packs/1", b"x")
    fault_proxy.faults.append(Fault(kind, at="delete"))
    backend.delete("packs/1")
    assert not eyes.exists("packs/1")


# -- the server itself --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_upload_goes_on_after_the_server_was_killed(
    restartable_s3_server: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "PATIENCE", 120)
    server = restartable_s3_server.server
    backend = S3Backend(server.url(server.bucket(), "run"), server.options)
    backend.create("log/1", b"one")
    file = backend.new_file("packs/one", 0)
    file.write(BYTES)
    restartable_s3_server.kill()
    again = threading.Timer(1, restartable_s3_server.start)
    again.start()
    file.write(BYTES)
    file.publish()
    backend.create("log/2", b"two")
    again.join()
    assert backend.read("packs/one") == BYTES + BYTES
    assert (backend.read("log/1"), backend.read("log/2")) == (b"one", b"two")
    backend.close()


def test_a_killed_writer_leaves_no_object(eyes: S3Backend, real_s3_server: S3Server) -> None:
    code = f"""if True:
        import sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from cas.s3 import S3Backend
        file = S3Backend({eyes.url!r}, {real_s3_server.options!r}).new_file("packs/one", 0)
        file.write(bytes(20 << 20))
        print("writing", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert eyes.list("") == []
    assert uploads(real_s3_server, eyes) == ["run/packs/one"]
