"""A store in a bucket that may not be used, or is none: one clear sentence, at once, and nothing has changed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.proxy import FOREVER, Fault, FaultProxy
from faults.s3_bench import check_sentence
from faults.stand_in import Answer, StandIn, error
from faults.stores import commit, errors, numbers, same, state
from servers.s3 import S3Server

import cas
from cas.errors import CasError, Corrupt, Invalid, NotFound
from cas.store import Store

HTML = b"<!DOCTYPE html><html><body><h1>Welcome</h1></body></html>"
AT_ONCE = 10.0
"""Seconds; a machine may be busy. What is tried again is tried for a minute."""


@pytest.fixture
def bucket(real_s3_server: S3Server) -> str:
    return real_s3_server.bucket()


@pytest.fixture
def url(real_s3_server: S3Server, bucket: str, tmp_path: Path) -> str:
    """A store with two commits."""
    url = real_s3_server.url(bucket, "run")
    with cas.init(url, block_size=4096, storage_options=real_s3_server.options, cache=tmp_path / "owner") as store:
        commit(store, 0)
        commit(store, 1)
    return url


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Store]:
    with cas.init(tmp_path / "local", block_size=4096) as store:
        commit(store, 7)
        yield store


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server


def refused(
    call: Callable[[], object], kind: type[Exception] = Exception, secrets: tuple[str, ...] = ("testsecret", "testkey")
) -> str:
    """The sentence that the call is refused with, at once."""
    begin = time.monotonic()
    with pytest.raises((CasError, OSError)) as caught:
        call()
    assert time.monotonic() - begin < AT_ONCE, "it took its time to refuse"
    assert isinstance(caught.value, kind), repr(caught.value)
    check_sentence(str(caught.value), *secrets)
    return str(caught.value)


def matches(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text


def uses(url: str, options: dict[str, Any], cache: Path, local: Store) -> list[Callable[[], object]]:
    """Every way to begin with a store."""
    return [
        lambda: cas.open(url, storage_options=options, cache=cache),
        lambda: cas.open(url, create=True, storage_options=options, cache=cache),
        lambda: cas.init(f"{url}-other", storage_options=options, cache=cache),
        lambda: local.push(url, "main:other", storage_options=options),
        lambda: local.pull(url, "main", storage_options=options),
        lambda: cas.clone(url, cache / "clone", storage_options=options, cache=cache),
    ]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"secret": "wrong-secret"}, "the credentials for s3://.* were refused .SignatureDoesNotMatch.: renew or"),
        ({"key": "wrong-key"}, "the credentials for s3://.* were refused .InvalidAccessKeyId.: renew or correct"),
    ],
)
def test_wrong_credentials_are_said(
    real_s3_server: S3Server, url: str, tmp_path: Path, local: Store, changed: dict[str, str], text: str
) -> None:
    options = {**real_s3_server.options, **changed}
    for call in uses(url, options, tmp_path / "cache", local):
        matches(text, refused(call, OSError, ("testsecret", "wrong-secret", "wrong-key")))
    assert local.refs()["branches"].keys() == {"main"}


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken"])
def test_a_token_that_is_over_is_said(
    stand_in: StandIn, real_s3_server: S3Server, tmp_path: Path, local: Store, code: str
) -> None:
    stand_in.answer = error(400, code)
    options = {**real_s3_server.options, "endpoint_url": stand_in.endpoint, "token": "of-yesterday"}
    for call in uses("s3://bucket/run", options, tmp_path / "cache", local):
        said = refused(call, OSError, ("testsecret", "testkey", "of-yesterday"))
        matches(f"the credentials for s3://bucket/run.* were refused .{code}.: renew or correct them", said)


def test_a_bucket_that_is_not_there_is_said(real_s3_server: S3Server, tmp_path: Path, local: Store) -> None:
    for call in uses("s3://no-such-bucket-of-cas/run", real_s3_server.options, tmp_path / "cache", local):
        matches("there is no bucket no-such-bucket-of-cas for s3://no-such-bucket-of-cas/run", refused(call, NotFound))


def test_a_bucket_without_a_store_is_said(real_s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    url = real_s3_server.url(bucket, "nothing")
    said = refused(lambda: cas.open(url, storage_options=real_s3_server.options, cache=tmp_path), NotFound)
    assert said == f"there is no store at {url}; make one with `cas init` or cas.open(path, create=True)"


def test_an_endpoint_that_is_not_there_is_waited_for_and_then_named(
    real_s3_server: S3Server, tmp_path: Path, local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a server that comes back."""
    monkeypatch.setattr("cas.retries.PATIENCE", 0.5)
    options = {**real_s3_server.options, "endpoint_url": "http://127.0.0.1:9"}
    for call in uses("s3://bucket/run", options, tmp_path / "cache", local):
        matches("s3://bucket/run.*no connection to 127.0.0.1:9", refused(call))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer(200, HTML), "another service|something else answers there|as no S3 service does"),
        (Answer(400, HTML), "refused .400.: check the endpoint 127.0.0.1"),
        (Answer(403, HTML), "access to s3://bucket/run.* was denied .403."),
        (Answer(405, HTML), "refused .405.: check the endpoint 127.0.0.1"),
        (
            Answer(302, HTML, location="http://127.0.0.1:9/login"),
            "check whether 127.0.0.1:[0-9]+ is the right endpoint",
        ),
        (error(301, "PermanentRedirect"), "check whether 127.0.0.1:[0-9]+ is the right endpoint"),
        (error(400, "AuthorizationHeaderMalformed"), "refused .400 AuthorizationHeaderMalformed.: check the endpoint"),
        (error(403, "RequestTimeTooSkewed"), "the clock of this machine is wrong .RequestTimeTooSkewed.: set it"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Answer) else "",
)
def test_what_is_no_store_and_perhaps_no_s3_at_all_is_refused(
    stand_in: StandIn, real_s3_server: S3Server, tmp_path: Path, local: Store, answer: Answer, text: str
) -> None:
    stand_in.answer = answer
    options = {**real_s3_server.options, "endpoint_url": stand_in.endpoint}
    for call in uses("s3://bucket/run", options, tmp_path / "cache", local):
        said = refused(call)
        matches(text, said)
        matches("s3://bucket/run", said)
    assert numbers(local) == [7]


def test_an_html_page_in_place_of_a_store_is_corrupt_and_not_waited_for(
    stand_in: StandIn, real_s3_server: S3Server, tmp_path: Path
) -> None:
    stand_in.answer = Answer(200, HTML)
    options = {**real_s3_server.options, "endpoint_url": stand_in.endpoint}
    refused(lambda: cas.open("s3://bucket/run", storage_options=options, cache=tmp_path), Corrupt)
    assert stand_in.requests == 2  # one of them because a network may damage an answer


def test_a_name_that_s3_does_not_allow_is_invalid(real_s3_server: S3Server, tmp_path: Path) -> None:
    for url in ("s3://UPPER_case!!/run", "s3:///run", "s3://"):
        refused(lambda url=url: cas.open(url, storage_options=real_s3_server.options, cache=tmp_path), Invalid)


# -- credentials that may only read -----------------------------------------------------------------------------


def let_all(server: S3Server, bucket: str, *actions: str) -> dict[str, Any]:
    """Give everybody these rights in the bucket; the options of somebody."""
    resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    rule = {"Effect": "Allow", "Principal": "*", "Action": list(actions), "Resource": resources}
    policy = {"Version": "2012-10-17", "Statement": [rule]}
    server.client().put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    return {"anon": True, "endpoint_url": server.endpoint}


def test_who_may_only_read_reads_and_is_told(
    real_s3_server: S3Server, url: str, bucket: str, tmp_path: Path, local: Store
) -> None:
    options = let_all(real_s3_server, bucket, "s3:GetObject", "s3:ListBucket")
    with cas.open(url, storage_options=options, cache=tmp_path / "reader") as store:
        assert same(store.load("main"), state(1))
        assert errors(store.fsck(data=True)) == []
        writes: list[Callable[[], object]] = [
            lambda: store.commit(state(2), step=2),
            lambda: store.commit({"large": np.zeros(9 << 20, np.uint8)}, codec="raw"),
            lambda: store.tag("here"),
            lambda: store.branch("other"),
            lambda: store.prune("main", keep_last=1),
            store.undo,
            lambda: store.gc(grace=0),
            lambda: local.push(url, "main:other", storage_options=options),
            lambda: cas.init(real_s3_server.url(bucket, "new"), storage_options=options, cache=tmp_path / "reader"),
        ]
        for write in writes:
            matches(f"access to s3://{bucket}/.* was denied .AccessDenied.", refused(write))
    with cas.clone(url, tmp_path / "clone", storage_options=options, cache=tmp_path / "reader") as clone:
        assert same(clone.load("main"), state(1))
    with cas.open(url, storage_options=real_s3_server.options, cache=tmp_path / "owner") as store:
        assert store.refs() == {"branches": store.refs()["branches"], "tags": {}}
        assert numbers(store) == [0, 1]
        assert errors(store.fsck(data=True)) == []


def test_who_may_not_list_is_told(real_s3_server: S3Server, url: str, bucket: str, tmp_path: Path) -> None:
    """Without that right a service will not say that an object is missing either, and a log has an end."""
    options = let_all(real_s3_server, bucket, "s3:GetObject")
    said = refused(lambda: cas.open(url, storage_options=options, cache=tmp_path / "reader"), OSError)
    matches(f"access to s3://{bucket}/run/log/.* was denied .AccessDenied.: get the right to it", said)


def test_a_push_whose_record_is_there_is_done_whatever_is_refused_afterwards(
    real_s3_server: S3Server, fault_proxy: FaultProxy, tmp_path: Path, local: Store
) -> None:
    for name in ("counted", "refused"):
        place = real_s3_server.url(real_s3_server.bucket(), name)
        cas.init(place, block_size=4096, storage_options=real_s3_server.options, cache=tmp_path / name).close()
        if name == "refused":
            made = [request.operation for request in fault_proxy.requests]
            fault_proxy.faults.append(Fault("403", nth=made.index("put-record") + 2, times=FOREVER))
        assert local.push(place, "main", storage_options=fault_proxy.options).refs
    assert fault_proxy.faults[0].hits
    with cas.open(place, storage_options=real_s3_server.options, cache=tmp_path / "fresh") as store:
        assert numbers(store) == [7]
