"""What stands under a prefix of a bucket: objects, and uploads that nobody completes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from .backend import FileInfo
from .errors import CasError
from .retries import Patience, with_retries
from .s3_client import Service
from .s3_errors import Cut, passes, status_of

QUIET = 3600.0
"""Seconds without a new part after which an upload counts as left by a crash, however small the age asked for."""


def listed(service: Service, root: str, prefix: str) -> list[FileInfo]:
    """Every object under `prefix`, its name relative to `root`, sorted."""
    found = {}
    for item in _all(service, "list_objects_v2", "Contents", ["ContinuationToken"], Prefix=prefix):
        key = str(item["Key"])
        if not key.startswith(prefix):
            raise OSError(f"{service.url} lists objects that were not asked for: use another service")
        if not key.endswith("/"):  # what some tools make to show a folder
            name = key.removeprefix(root)
            found[name] = FileInfo(name, int(item["Size"]), item["LastModified"].timestamp())
    return [found[name] for name in sorted(found)]


def sweep_uploads(service: Service, prefix: str, before: float) -> None:
    """Abort the uploads under `prefix` that got no part since `before`, in seconds of the service's clock."""
    before = min(before, service.now() - QUIET)
    for item in _all(service, "list_multipart_uploads", "Uploads", ["KeyMarker", "UploadIdMarker"], Prefix=prefix):
        place = {"Key": item["Key"], "UploadId": item["UploadId"]}
        if item["Initiated"].timestamp() <= before and _newest_part(service, place) <= before:
            with contextlib.suppress(CasError, OSError):  # the same; what stays is left to the next sweep
                service.call("abort_multipart_upload", **place)


def _newest_part(service: Service, place: dict[str, Any]) -> float:
    """When it came, in seconds; 0 if there is none, infinity where the service does not say."""
    try:
        parts = _all(service, "list_parts", "Parts", ["PartNumberMarker"], **place)
    except (CasError, OSError):  # completed or swept meanwhile
        return math.inf
    return max((item["LastModified"].timestamp() for item in parts), default=0.0)


def _all(service: Service, operation: str, items: str, markers: list[str], **arguments: Any) -> list[dict[str, Any]]:
    """The items of every page; from the first page again where the service does not go on from one."""
    patience = Patience()

    def attempt() -> list[dict[str, Any]]:
        return [item for page in _pages(service, operation, items, markers, arguments, patience) for item in page]

    return service.retried(attempt, patience=patience)


def _pages(
    service: Service, operation: str, items: str, markers: list[str], arguments: dict[str, Any], patience: Patience
) -> Iterator[list[dict[str, Any]]]:
    """The items page by page. One that leads back to itself, or on to nowhere, is an error: a listing is whole."""
    position: dict[str, Any] = {}
    while True:
        page = partial(_page, service, operation, items, {**arguments, **position})
        try:
            reply = with_retries(page, passes, patience)
        except Exception as error:
            if position and status_of(error) == 400:
                raise Cut("a listing was not gone on with") from None
            raise
        yield reply.get(items, [])
        if not reply.get("IsTruncated"):
            return
        following = {marker: reply.get(f"Next{marker}") for marker in markers}
        if following == position or not all(following.values()):
            raise OSError(f"{service.url} does not list to the end: try again, or use another service")
        position = following


def _page(service: Service, operation: str, items: str, arguments: dict[str, Any]) -> dict[str, Any]:
    reply = service.once(operation, **arguments)
    if int(reply.get("KeyCount", 0)) > len(reply.get(items, [])):
        raise Cut("a page of a listing lacks entries")
    return reply
