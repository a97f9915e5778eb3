"""The proxy of faults: what it passes on is what came, and each fault is what its name says, where it was set."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from faults.proxy import FOREVER, REFUSALS, Fault, FaultProxy
from servers.s3 import S3Server

pytestmark = pytest.mark.slow  # Ceph has to start
MIB = 1 << 20


@pytest.fixture
def bucket(real_s3_server: S3Server) -> str:
    return real_s3_server.bucket()


@pytest.fixture
def client(fault_proxy: FaultProxy) -> Any:
    return fault_proxy.server.client()


@pytest.fixture
def direct(real_s3_server: S3Server) -> Any:
    return real_s3_server.client()


def status_of(call: Callable[[], Any]) -> int:
    """The status of the answer, 0 without one."""
    try:
        answer = call()
    except ClientError as error:
        answer = error.response
    except BotoCoreError:
        return 0
    return int(answer["ResponseMetadata"]["HTTPStatusCode"])


def keys(client: Any, bucket: str) -> list[str]:
    return [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def put(client: Any, bucket: str, key: str = "key", body: bytes = b"body") -> int:
    return status_of(lambda: client.put_object(Bucket=bucket, Key=key, Body=body))


def test_every_operation_is_known_by_its_name(fault_proxy: FaultProxy, bucket: str, client: Any) -> None:
    client.put_object(Bucket=bucket, Key="run/log/00000000000000000001", Body=b"record")
    client.put_object(Bucket=bucket, Key="run/packs/aa/1 ü", Body=b"12345")
    upload = client.create_multipart_upload(Bucket=bucket, Key="big")["UploadId"]
    given = {"Bucket": bucket, "Key": "big", "UploadId": upload}
    tag = client.upload_part(**given, PartNumber=1, Body=bytes(5 * MIB))["ETag"]
    client.list_parts(**given)
    client.list_multipart_uploads(Bucket=bucket)
    client.complete_multipart_upload(**given, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": tag}]})
    other = client.create_multipart_upload(Bucket=bucket, Key="big")["UploadId"]
    client.abort_multipart_upload(**{**given, "UploadId": other})
    client.get_object(Bucket=bucket, Key="run/packs/aa/1 ü", Range="bytes=1-3")["Body"].read()
    client.head_object(Bucket=bucket, Key="big")
    client.list_objects_v2(Bucket=bucket, Prefix="run/", Delimiter="/", MaxKeys=5)
    client.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "run/packs/aa/1 ü"})
    client.delete_object(Bucket=bucket, Key="copy")
    client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "big"}]})
    client.head_bucket(Bucket=bucket)
    assert [request.operation for request in fault_proxy.requests] == [
        *("put-record", "put", "create-upload", "upload-part", "list-parts", "list-uploads", "complete-upload"),
        *("create-upload", "abort-upload", "get", "head", "list", "copy", "delete", "delete", "bucket"),
    ]
    assert all(200 <= request.status < 300 for request in fault_proxy.requests)
    assert fault_proxy.requests[1].key == "run/packs/aa/1 ü"
    assert fault_proxy.requests[3].sent == 5 * MIB
    assert (fault_proxy.requests[9].status, fault_proxy.requests[9].received) == (206, 3)
    assert fault_proxy.count("put-record", "put") == 2


def test_bytes_pass_unchanged_in_both_directions(bucket: str, client: Any, direct: Any) -> None:
    body = bytes(range(256)) * 12_345
    assert put(client, bucket, "a/ü +&%", body) == 200
    assert direct.get_object(Bucket=bucket, Key="a/ü +&%")["Body"].read() == body
    assert client.get_object(Bucket=bucket, Key="a/ü +&%")["Body"].read() == body


@pytest.mark.parametrize("kind", [kind for kind in REFUSALS if kind != "lost-upload"])
def test_a_refusal_is_the_proxys_own_and_the_server_sees_nothing(
    kind: str, fault_proxy: FaultProxy, bucket: str, client: Any, direct: Any
) -> None:
    fault_proxy.faults.append(Fault(kind, at="put"))
    assert put(client, bucket, "first", bytes(100_000)) == int(kind)
    assert put(client, bucket, "second") == 200
    assert keys(direct, bucket) == ["second"]
    assert [request.fault for request in fault_proxy.requests] == [kind, ""]


def test_an_object_is_missing_once(fault_proxy: FaultProxy, bucket: str, client: Any) -> None:
    put(client, bucket)
    fault_proxy.faults += [Fault("404", at="get"), Fault("404", at="head")]
    assert status_of(lambda: client.get_object(Bucket=bucket, Key="key")) == 404
    assert client.get_object(Bucket=bucket, Key="key")["Body"].read() == b"body"
    assert status_of(lambda: client.head_object(Bucket=bucket, Key="key")) == 404
    assert status_of(lambda: client.head_object(Bucket=bucket, Key="key")) == 200


def test_a_fault_takes_its_turn_and_stays_as_long_as_it_is_told(
    fault_proxy: FaultProxy, bucket: str, client: Any
) -> None:
    fault_proxy.faults += [Fault("503", at="put", nth=2, times=2), Fault("500", at="any", nth=6, times=FOREVER)]
    assert [put(client, bucket, str(number)) for number in range(8)] == [200, 503, 503, 200, 200, 500, 500, 500]
    assert [fault.hits for fault in fault_proxy.faults] == [2, 3]
    fault_proxy.faults.clear()
    assert put(client, bucket) == 200


def test_a_fault_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError):
        Fault("tired", at="put")
    with pytest.raises(ValueError):
        Fault("503", at="putt")


def test_a_reset_comes_before_the_server_sees_anything(
    fault_proxy: FaultProxy, bucket: str, client: Any, direct: Any
) -> None:
    fault_proxy.faults.append(Fault("reset", at="put"))
    assert put(client, bucket, body=bytes(3 * MIB)) == 0
    assert keys(direct, bucket) == []
    assert put(client, bucket) == 200


def test_what_landed_is_there_though_the_reply_is_lost(
    fault_proxy: FaultProxy, bucket: str, client: Any, direct: Any
) -> None:
    fault_proxy.faults.append(Fault("landed", at="put-record"))
    assert put(client, bucket, "log/1") == 0
    assert keys(direct, bucket) == ["log/1"]
    assert fault_proxy.requests[0].status == 200


def test_a_timeout_lasts_as_long_as_the_client_waits(fault_proxy: FaultProxy, bucket: str, direct: Any) -> None:
    impatient = fault_proxy.server.client(seconds=1)
    fault_proxy.faults.append(Fault("timeout", at="put"))
    began = time.monotonic()
    assert put(impatient, bucket) == 0
    assert 1 <= time.monotonic() - began < 5
    assert keys(direct, bucket) == []
    assert put(impatient, bucket) == 200


def test_the_proxy_ends_though_a_client_still_waits(real_s3_server: S3Server, bucket: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        with FaultProxy(real_s3_server) as proxy:
            proxy.faults.append(Fault("timeout"))
            waiting = pool.submit(put, proxy.server.client(), bucket)
            while not proxy.requests:
                time.sleep(0.01)
        assert waiting.result(5) == 0


def test_slow_is_slow_in_both_directions(fault_proxy: FaultProxy, bucket: str, client: Any) -> None:
    fault_proxy.faults += [Fault("slow", at="put"), Fault("slow", at="get")]
    began = time.monotonic()
    put(client, bucket, body=bytes(MIB))
    halfway = time.monotonic()
    assert client.get_object(Bucket=bucket, Key="key")["Body"].read() == bytes(MIB)
    assert halfway - began > 1
    assert time.monotonic() - halfway > 1


def test_a_cut_body_ends_halfway(fault_proxy: FaultProxy, bucket: str, client: Any) -> None:
    put(client, bucket, body=bytes(MIB))
    fault_proxy.faults.append(Fault("cut", at="get"))
    answer = client.get_object(Bucket=bucket, Key="key")
    assert answer["ContentLength"] == MIB
    with pytest.raises(BotoCoreError):
        answer["Body"].read()
    assert client.get_object(Bucket=bucket, Key="key")["Body"].read() == bytes(MIB)


def test_a_corrupt_body_has_its_length_and_wrong_bytes(fault_proxy: FaultProxy, bucket: str, client: Any) -> None:
    put(client, bucket, body=bytes(MIB))
    fault_proxy.faults.append(Fault("corrupt", at="get"))
    body = client.get_object(Bucket=bucket, Key="key")["Body"].read()
    assert len(body) == MIB
    assert any(body)


@pytest.fixture
def ten(client: Any, bucket: str) -> list[str]:
    names = [f"packs/{number}" for number in range(10)]
    for name in names:
        put(client, bucket, name)
    return names


def test_a_partial_listing_says_that_more_follows_and_refuses_to_give_it(
    fault_proxy: FaultProxy, bucket: str, client: Any, ten: list[str]
) -> None:
    fault_proxy.faults.append(Fault("list-partial", at="list"))
    page = client.list_objects_v2(Bucket=bucket)
    assert [entry["Key"] for entry in page["Contents"]] == ten[:5]
    assert page["IsTruncated"]
    token = page["NextContinuationToken"]
    assert status_of(lambda: client.list_objects_v2(Bucket=bucket, ContinuationToken=token)) == 400
    assert keys(client, bucket) == ten


def test_a_lossy_listing_says_that_it_is_whole(
    fault_proxy: FaultProxy, bucket: str, client: Any, ten: list[str]
) -> None:
    fault_proxy.faults.append(Fault("list-lossy", at="list"))
    page = client.list_objects_v2(Bucket=bucket)
    assert [entry["Key"] for entry in page["Contents"]] == ten[:5]
    assert not page["IsTruncated"]


def test_a_duplicate_listing_has_every_entry_twice(
    fault_proxy: FaultProxy, bucket: str, client: Any, ten: list[str]
) -> None:
    fault_proxy.faults.append(Fault("list-duplicate", at="list"))
    assert keys(client, bucket) == sorted(ten * 2)
    assert keys(client, bucket) == ten


def test_a_failing_listing_is_no_empty_one(fault_proxy: FaultProxy, bucket: str, client: Any, ten: list[str]) -> None:
    fault_proxy.faults.append(Fault("500", at="list"))
    assert status_of(lambda: client.list_objects_v2(Bucket=bucket)) == 500
    assert keys(client, bucket) == ten


@pytest.mark.parametrize("at", ["upload-part", "complete-upload"])
def test_an_upload_is_lost_at_any_of_its_steps(at: str, fault_proxy: FaultProxy, bucket: str, client: Any) -> None:
    fault_proxy.faults.append(Fault("lost-upload", at=at))
    given = {"Bucket": bucket, "Key": "big"}
    given["UploadId"] = client.create_multipart_upload(**given)["UploadId"]
    with pytest.raises(ClientError) as caught:
        tag = client.upload_part(**given, PartNumber=1, Body=b"part")["ETag"]
        client.complete_multipart_upload(**given, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": tag}]})
    assert caught.value.response["Error"]["Code"] == "NoSuchUpload"
    assert fault_proxy.requests[-1].operation == at


def test_many_clients_at_once_each_get_their_own(fault_proxy: FaultProxy, bucket: str, client: Any) -> None:
    def both(number: int) -> bytes:
        put(client, bucket, str(number), b"%d" % number)
        return bytes(client.get_object(Bucket=bucket, Key=str(number))["Body"].read())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(both, range(200))) == [b"%d" % number for number in range(200)]
    assert fault_proxy.count() == 400
