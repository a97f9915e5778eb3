"""What a target is: a parser, as a function that reads an input or refuses it with a named error.

The function returns what encoding gives back, where the format has one form for a value, else None; other promises it
asserts itself. The targets stand in `stored`, `texts` and `imported`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cas.errors import CasError

from .mutate import Mutator

CORPUS = Path(__file__).parent / "corpus"
FOUND = CORPUS / "found"
Parse = Callable[[bytes], bytes | None]


@dataclass(frozen=True, slots=True)
class Target:
    """One parser. `open` gives the function that reads an input; it may use the folder."""

    name: str
    open: Callable[[Path], Parse]
    mutators: Sequence[Mutator]
    refusals: tuple[type[Exception], ...] = (CasError,)

    def examples(self) -> list[bytes]:
        """Inputs that the real writers made."""
        return [path.read_bytes() for path in sorted(CORPUS.glob(f"{self.name}-*"))]

    def found(self) -> list[bytes]:
        """Inputs that broke a promise at some time."""
        return [path.read_bytes() for path in sorted(FOUND.glob(f"{self.name}-*"))]


def plain(parse: Parse) -> Callable[[Path], Parse]:
    return lambda _: parse


def text_of(data: bytes) -> str:
    """As a text comes from a command line."""
    return data.decode("utf-8", "surrogateescape")
