"""Loading by many ranks together: number 0 says which commit, and no rank goes on unless all have what they asked for.

1. door   all say what they load; number 0 resolves the revision once, so that no branch that moves can mix commits
2. door   each has planned its reads; what no rank has a place for is an error
3. door   each has read
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .asking import ask, meet
from .errors import Invalid
from .nodes import pack, unpack
from .paths import Path, format_path
from .team import Call


def agree(
    call: Call, terms: Callable[[], dict[str, Any]], resolve: Callable[[], tuple[int, bytes | None]]
) -> tuple[int, bytes | None]:
    """What number 0 resolved: the number of the root, and the commit's id or, where a default stands for it, None.

    `terms` raises if this rank cannot load at all.
    """
    seq, name = meet(call, lambda: (terms(), None), lambda _: [list(resolve())] * call.size)
    return seq, name


def check_complete(call: Call, plan: Callable[[], list[Path]]) -> None:
    """Every rank plans, and gives the paths that it has no place for: of those some other rank must have each."""

    def work() -> bytes:
        return pack(sorted(format_path(path) for path in plan()))

    def decide(said: list[bytes]) -> list[bytes]:
        lacking = [set(unpack(item, "a rank's paths")) for item in said]
        nowhere = sorted(set.intersection(*lacking))
        if nowhere:
            more = f" and {len(nowhere) - 5} more" if nowhere[5:] else ""
            raise Invalid(
                f"into= lacks {', '.join(nowhere[:5])}{more} on every rank; add them, or name what to load in only="
            )
        return [b""] * call.size

    ask(call, call.door, work, decide)


def end_together(call: Call, work: Callable[[], Any]) -> Any:
    """The result of `work` on this rank, once all others are done with theirs."""
    results: list[Any] = []

    def finish() -> bytes:
        results.append(work())
        return b""

    ask(call, call.door, finish, lambda said: [b""] * call.size)
    return results[0]
