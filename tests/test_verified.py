"""What came over a network and does not verify is asked for once more, and once only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.proxy import FOREVER, Fault, FaultProxy
from servers.s3 import S3Server

from cas import identity, lists
from cas.errors import Corrupt
from cas.local import LocalBackend
from cas.log import Log, encode_record, first_record, name_of
from cas.s3 import S3Backend

CHECKED = pytest.mark.parametrize("what", ["cas.json", "record", "list"])


@pytest.fixture
def backend(fault_proxy: FaultProxy, real_s3_server: S3Server) -> Iterator[S3Backend]:
    opened = S3Backend(real_s3_server.url(real_s3_server.bucket(), "run"), fault_proxy.options)
    yield opened
    opened.close()


def read(backend: S3Backend | LocalBackend, what: str) -> None:
    """Make a file of this kind and read it."""
    if what == "cas.json":
        backend.create(identity.NAME, identity.encode(identity.new_identity(4096)))
        identity.read(backend)
    elif what == "record":
        backend.create(name_of(1), encode_record(first_record()))
        Log(backend).read(1)
    else:
        (name,) = lists.extend(backend, (), lists.What.CONDEMNED, [bytes(16)])
        lists.read(backend, name, lists.What.CONDEMNED)


@CHECKED
def test_an_answer_that_was_damaged_on_its_way_is_asked_for_again(
    backend: S3Backend, fault_proxy: FaultProxy, what: str
) -> None:
    fault = Fault("corrupt", at="get")
    fault_proxy.faults.append(fault)
    read(backend, what)
    assert (fault.hits, fault_proxy.count("get")) == (1, 2)


@CHECKED
def test_what_is_damaged_is_corrupt(backend: S3Backend, fault_proxy: FaultProxy, what: str) -> None:
    fault_proxy.faults.append(Fault("corrupt", at="get", times=FOREVER))
    with pytest.raises(Corrupt):
        read(backend, what)
    assert fault_proxy.count("get") == 2


def test_a_disk_is_asked_once(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path)
    (tmp_path / "cas.json").write_bytes(b"{}")
    with pytest.raises(Corrupt, match=r"cas\.json of .* is damaged; restore it"):
        identity.read(backend)
