"""Faults at each request of each operation on a store in a bucket, before a real server.

Afterwards the copy of what is in the bucket, taken by another client, is a store in which fsck finds nothing; every ref
and state is as before or as the operation wanted it, and as it was acknowledged; what loads is equal to the byte; the
operation run again does the rest. What the caller sees is one sentence without credentials, and nothing at all of a
fault that passes.

A point is the first and the last request of each kind, kind of file and answer, or less for faults that are much like
another, or, where CAS_TEST_EVERY_CALL is set, every request. `faults/s3_operations.py` has the operations,
`faults/s3_bench.py` the faults and the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
from faults.proxy import FaultProxy
from faults.s3_bench import TROUBLES, Bench
from faults.s3_operations import OPERATIONS
from faults.stores import quick_folder
from servers.s3 import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.server("fault_proxy")]

PART = 5 << 20
"""Bytes; S3 takes no smaller parts but for the last."""

CASES = [
    pytest.param(operation.name, name, marks=pytest.mark.xdist_group(f"s3 {operation.name}"))
    for operation in OPERATIONS.values()
    for name, trouble in TROUBLES.items()
    if operation.at & set(trouble.at)
]


@pytest.fixture(scope="module")
def bench_of(real_s3_server: S3Server) -> Iterator[Callable[[str], Bench]]:
    """The bench of an operation, made when it is first asked for."""
    with FaultProxy(real_s3_server) as proxy, quick_folder() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr("cas.s3.PART_SIZE", PART)
        patched.setattr("cas.s3_uploads.PART_SIZE", PART)
        patched.setattr("cas.retries._FIRST", 0.01)
        direct, bucket = real_s3_server.client(), real_s3_server.bucket()
        yield cache(lambda name: Bench(OPERATIONS[name], proxy, direct, bucket, folder / name))


@pytest.mark.parametrize(("operation", "trouble"), CASES)
def test_a_fault_at_any_request_loses_nothing(
    bench_of: Callable[[str], Bench], operation: str, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench = bench_of(operation)
    report = bench.run(TROUBLES[trouble])
    assert not report.failures, "\n\n".join([f"{len(report.failures)} failures", *report.failures])
    assert report.runs, "there is no such request"
    assert report.struck >= 0.8 * report.runs, f"{report.runs - report.struck} of {report.runs} faults never struck"
    assert not [record for record in caplog.records if "testsecret" in record.getMessage()]


@pytest.mark.parametrize(
    "operation", [pytest.param(name, marks=pytest.mark.xdist_group(f"s3 {name}")) for name in OPERATIONS]
)
def test_the_requests_of_an_operation_are_those_that_faults_strike(
    bench_of: Callable[[str], Bench], operation: str
) -> None:
    made = {point.operation for point in bench_of(operation).points}
    expected = OPERATIONS[operation].at
    assert expected <= made if OPERATIONS[operation].is_part else expected == made
