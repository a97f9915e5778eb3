"""A question to all ranks: each does its work, number 0 decides on all results, an error anywhere is raised everywhere.

So ranks leave a call together: all with an answer, or all with an error that names who failed and why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from . import errors
from .errors import CasError, Corrupt, Invalid
from .nodes import Node, expect, pack, unpack
from .team import Call, Channel, LostRank

_log = logging.getLogger("cas")
_FINE, _FAILED = b"\0", b"\1"
_CLASSES: dict[str, type[CasError]] = {
    kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CasError)
}


def ask(
    call: Call,
    channel: Channel,
    work: Callable[[], bytes],
    decide: Callable[[list[bytes]], Sequence[bytes]],
    as_told: Callable[[BaseException], BaseException] = lambda error: error,
) -> bytes:
    """What number 0 decided for this rank. `decide` is called there alone, with the results of all ranks.

    Raises this rank's own error as it was; that of another one as the same kind of `CasError`, with its rank.
    `LostRank` when a rank does not answer. `as_told` is how the others are told of an error of `decide`.
    """
    failure: BaseException | None = None
    try:
        said = _FINE + work()
    except BaseException as error:  # an interrupt too: the others must not wait for this rank
        failure, said = error, _FAILED + _described(error)
    try:
        results = channel.gather(said)
        answers: Sequence[bytes] = ()
        if call.rank == 0:
            try:
                answers = _decided(call, results, decide)
            except BaseException as error:
                failure = failure or error
                answers = [_FAILED + _described(as_told(error), call.name(0))] * call.size
        answer = _given(call, channel, answers)
    except LostRank as lost:
        if failure is not None:
            raise failure from lost
        raise
    if failure is not None:
        raise failure
    if answer[:1] == _FAILED:
        raise _error_of(answer[1:])
    return answer[1:]


def _given(call: Call, channel: Channel, answers: Sequence[bytes]) -> bytes:
    try:
        return channel.scatter(answers)
    except LostRank as error:
        if call.rank:
            raise
        _log.warning("%s", error)  # what was decided stands; a rank that is not told finds out by itself
        return answers[0]


def meet(
    call: Call,
    work: Callable[[], tuple[dict[str, Any], Node]],
    decide: Callable[[list[Node]], Sequence[Node]],
) -> Node:
    """The first question of a call: `work` gives what all ranks must mean alike, and what number 0 decides on.

    `Invalid` on all, which names two that differ, unless they do.
    """

    def compare(said: list[bytes]) -> list[bytes]:
        found = [unpack(item, "a rank's call") for item in said]
        _check_same(call, [terms for terms, _ in found])
        return [pack(answer) for answer in decide([rest for _, rest in found])]

    return unpack(ask(call, call.door, lambda: pack(list(work())), compare), "an answer")


def _check_same(call: Call, terms: Sequence[dict[str, Any]]) -> None:
    for rank, other in enumerate(terms):
        for name in terms[0] | other:
            one, two = terms[0].get(name), other.get(name)
            if one != two:
                raise Invalid(
                    f"{name} is {one!r:.80} on {call.name(0)} and {two!r:.80} on {call.name(rank)}; all ranks of a "
                    "group make the same calls in the same order"
                )


def _decided(call: Call, results: list[bytes], decide: Callable[[list[bytes]], Sequence[bytes]]) -> Sequence[bytes]:
    failed: dict[bytes, list[int]] = {}
    for rank, result in enumerate(results):
        if result[:1] != _FINE:
            failed.setdefault(result[1:], []).append(rank)
    if failed:
        raise _joined(call, failed)
    return [_FINE + answer for answer in decide([result[1:] for result in results])]


def _joined(call: Call, failed: dict[bytes, list[int]]) -> CasError:
    """One error for all: of the kind of the first, with the ranks that it came from."""
    found = [(ranks, _error_of(said)) for said, ranks in failed.items()]
    texts = [f"{', '.join(map(call.name, ranks[:8]))}{' ...' if ranks[8:] else ''}: {error}" for ranks, error in found]
    more = f"; and {len(texts) - 3} other errors" if texts[3:] else ""
    return type(found[0][1])("; ".join(texts[:3]) + more)


def _described(error: BaseException, rank: str = "") -> bytes:
    """An error for the other ranks; one that is not of this library does not say of itself whose it is."""
    if isinstance(error, CasError):
        kind = next(base.__name__ for base in type(error).__mro__ if base.__name__ in _CLASSES)
        return pack([kind, str(error)])
    text = ": ".join(filter(None, [rank, type(error).__name__, " ".join(str(error).split())]))
    return pack([CasError.__name__, text])


def _error_of(said: bytes) -> CasError:
    try:
        kind, text = unpack(said, "a rank's answer")
        expect(kind in _CLASSES and type(text) is str, "a rank's answer has the wrong form")
    except (TypeError, ValueError) as error:
        raise Corrupt("a rank's answer has the wrong form; are all ranks of one release?") from error
    return _CLASSES[kind](text)
