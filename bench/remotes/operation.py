"""What the processes of `timed` run. Imports little, and nothing of torch; settings come as JSON on standard input."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import cas


def push(url: str, options: dict[str, Any], store: str, cache: str) -> tuple[int, int]:
    """The main branch of a local store."""
    with cas.open(store, cache=cache) as opened:
        return 0, opened.push(url, "main", storage_options=options).sent


def pull(url: str, options: dict[str, Any], store: str, cache: str) -> tuple[int, int]:
    """Into a new local store."""
    with cas.clone(url, store, storage_options=options):
        return 0, 0


def load(url: str, options: dict[str, Any], store: str, cache: str) -> tuple[int, int]:
    """The newest state, verified, by a process that never saw the store."""
    with cas.open(url, storage_options=options, cache=cache) as opened:
        state = opened.load("main")
        return sum(tensor.nbytes for tensor in state.values()), 0


def gc(url: str, options: dict[str, Any], store: str, cache: str) -> tuple[int, int]:
    """Of a store half of which is garbage, in every pack."""
    with cas.open(url, storage_options=options, cache=cache) as opened:
        opened.gc(grace=0, expire=0)
        return 0, 0


OPERATIONS: dict[str, Callable[..., tuple[int, int]]] = {"push": push, "pull": pull, "load": load, "gc": gc}
"""They return the bytes of the state that they gave, and those that they sent."""


def main() -> None:
    import botocore.session
    import s3fs  # noqa: F401  imports are not what is measured
    from botocore.httpsession import URLLib3Session  # noqa: F401

    import cas.cloning
    import cas.store  # noqa: F401

    botocore.session.Session().get_component("data_loader")
    settings = json.load(sys.stdin)
    print("ready", flush=True)
    began = time.perf_counter()
    found = OPERATIONS[sys.argv[1]](**settings)
    print(time.perf_counter() - began, *found)


if __name__ == "__main__":
    main()
