"""Giving an object its name exactly once, though replies are lost, requests repeated and names taken.

Every object carries the random id of the call that wrote it. So when the name is taken, or an upload that was to be
completed is gone, a look at the object says whether it is our own request that had landed before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .backend import Unsettled
from .errors import Exists
from .retries import Patience
from .s3_client import Service, sent
from .s3_errors import code_of, leaves_open, passes, status_of

_WRITE_ID = "cas-write"


def marked(write_id: str) -> dict[str, Any]:
    """The argument that makes an object carry `write_id`."""
    return {"Metadata": {_WRITE_ID: write_id}}


def unless_taken(conditional: bool) -> dict[str, Any]:
    """The argument with which a service refuses to overwrite, for those that are known to honour it."""
    return {"IfNoneMatch": "*"} if conditional else {}


def create(service: Service, key: str, data: memoryview, write_id: str, conditional: bool) -> None:
    """Write a whole object unless the name is taken: `Exists`; errors as in `exactly_once`.

    Without `conditional` one of two writers of the same moment overwrites the other, who is told at best.
    """
    if not conditional and service.head(key) is not None:
        raise Exists(f"{service.named(key)} exists already")

    def send() -> None:
        service.once("put_object", Key=key, **marked(write_id), **sent(data), **unless_taken(conditional))

    exactly_once(service, key, write_id, send)
    if not conditional and not _is_ours(service.head(key), write_id):
        raise Exists(f"{service.named(key)} was written by somebody else at the same moment")


def exactly_once(service: Service, key: str, write_id: str, send: Callable[[], object]) -> None:
    """Send the very same request until the object is there and ours; `Exists` if it is somebody else's.

    `Unsettled` where it may be there, or appear later, all the same; after other errors it does not.
    """
    patience, is_open = Patience(), False
    while True:
        try:
            send()
            return
        except Exception as error:
            failed = error
        is_open = is_open or leaves_open(failed)
        taken = status_of(failed) == 412
        if (taken or code_of(failed) == "NoSuchUpload") and _look(service, key, write_id, patience):
            return
        # A name that was taken and is free at a look: the refusal was a slip of the service.
        if not (taken or passes(failed)) or not patience.wait():
            break
    failure = service.failure(failed, key)
    if not is_open:
        raise failure
    try:
        if _look(service, key, write_id, patience):
            return
    except OSError:
        pass  # still nothing is known
    raise Unsettled(f"{failure}; the object may be there now or appear later")


def _look(service: Service, key: str, write_id: str, patience: Patience) -> bool:
    """Whether the object is there and ours; `Exists` if it is somebody else's."""
    found = service.head(key, patience)
    if found is not None and not _is_ours(found, write_id):
        raise Exists(f"{service.named(key)} exists already")
    return found is not None


def _is_ours(found: dict[str, Any] | None, write_id: str) -> bool:
    metadata = {} if found is None else found.get("Metadata", {})
    return any(name.lower() == _WRITE_ID and value == write_id for name, value in metadata.items())
