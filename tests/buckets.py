"""Stores in a bucket of their own, and what moving commits to and from them costs."""

from __future__ import annotations

from pathlib import Path

from faults.proxy import FaultProxy, Request
from servers.s3 import S3Server

import cas
from cas.store import Store


class Bucket:
    """A new, empty bucket as one machine sees it: with one cache."""

    def __init__(self, server: S3Server, cache: Path) -> None:
        self.options = server.options
        self._name = server.bucket()
        self._server = server
        self._cache = cache

    def url(self, path: str = "run") -> str:
        return self._server.url(self._name, path)

    def open(self, path: str = "run", cache: Path | None = None, create: bool = False) -> Store:
        return cas.open(self.url(path), create, storage_options=self.options, cache=cache or self._cache)

    def size(self) -> int:
        """Bytes of all that is in it."""
        pages = self._server.client().get_paginator("list_objects_v2").paginate(Bucket=self._name)
        return sum(entry["Size"] for page in pages for entry in page.get("Contents", ()))


def taken(proxy: FaultProxy) -> tuple[int, int]:
    """Requests since the last call, and the bytes of their bodies in both directions."""
    requests, proxy.requests = proxy.requests, []
    return len(requests), carried(requests)


def carried(requests: list[Request]) -> int:
    return sum(request.sent + request.received for request in requests)
