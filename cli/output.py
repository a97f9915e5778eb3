"""What commands print: text that cannot harm a terminal, aligned columns, and JSON.

Names, messages and keys come from whoever wrote the store: control characters, terminal escapes and signs that
reorder text are shown as \\x1b and the like. Colours are for terminals only, and not where NO_COLOR is set.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from cas.errors import CasError

_PAGE = 200  # rows whose widths are measured together, so that the first appear at once
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\U000e0000-\U000e007f]"
)
_LAST = 16  # cells that the last column keeps in a terminal however narrow
_LONGEST = 1 << 11  # bits; whatever its settings, Python writes and reads this many in decimal
_AGES = (("y", 365 * 86400), ("mo", 30 * 86400), ("d", 86400), ("h", 3600), ("min", 60))


def clean(text: object) -> str:
    """The text on one line, with nothing in it that a terminal obeys."""
    return _UNSAFE.sub(_escaped, str(text))


def _escaped(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape", "surrogatepass").decode()


def say(text: str = "") -> None:
    """Print a line. Whatever is not ours in it must have gone through `clean`."""
    sys.stdout.write(text + "\n")


def colours() -> bool:
    dumb = os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and not dumb


def paint(text: str, colour: str | None) -> str:
    """The text in a colour, or `dim` or `bold`; as it is where colours are off."""
    if not text or colour is None or not colours():
        return text
    if colour in ("dim", "bold"):
        return click.style(text, **{colour: True})
    return click.style(text, fg=colour)


# -- columns ------------------------------------------------------------------------------------------------------


def width(text: str) -> int:
    """Cells that the text takes in a terminal."""
    if text.isascii():
        return len(text)
    wide = (unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + sum(wide) - sum(unicodedata.combining(char) != 0 for char in text)


def table(rows: Iterable[Sequence[str]], right: Container[int] = (), colour: Mapping[int, str] | None = None) -> None:
    """Print rows in aligned columns. Cells are cleaned here; `right` holds the numbers of columns set right.

    On a terminal the last cell is cut to fit the line, down to a few characters.
    """
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    widths: list[int] = []
    for page in _pages(rows):
        sizes = [max(width(row[at]) for row in page) for at in range(len(page[0]))]
        widths = [max(pair) for pair in zip(sizes, widths or sizes, strict=True)]
        for row in page:
            say(_line(row, widths, right, colour or {}, limit))


def _pages(rows: Iterable[Sequence[str]]) -> Iterator[list[list[str]]]:
    """The rows, cleaned, some at a time; where a store is damaged, those before the damage first."""
    page: list[list[str]] = []
    try:
        for row in rows:
            page.append([clean(cell) for cell in row])
            if len(page) == _PAGE:
                yield page
                page = []
    except CasError:
        if page:
            yield page
        raise
    if page:
        yield page


def _line(row: list[str], widths: list[int], right: Container[int], colour: Mapping[int, str], limit: int) -> str:
    cells, used = [], 0
    last = len(row) - 1
    for at, (cell, size) in enumerate(zip(row, widths, strict=True)):
        if not size:
            continue  # no row has anything here
        if at == last and limit:
            cell = cut(cell, max(_LAST, limit - used))
        pad = " " * (size - width(cell)) if at != last or at in right else ""
        painted = paint(cell, colour.get(at))
        cells.append(pad + painted if at in right else painted + pad)
        used += size + 2
    return "  ".join(cells).rstrip()


def cut(text: str, limit: int) -> str:
    """The text, or as much of it as `limit` cells hold with a sign that it goes on."""
    if width(text) <= limit:
        return text
    while text and width(text) >= limit:
        text = text[: max(0, min(len(text) - 1, limit))]
    return text + "…" if limit else ""


# -- words --------------------------------------------------------------------------------------------------------


def age(time: datetime) -> str:
    """How long ago: 5 min ago, 3 d ago."""
    seconds = (datetime.now(UTC) - time).total_seconds()
    for unit, size in _AGES:
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{max(0, int(seconds))} s ago" if seconds > -60 else "in the future"


def number(value: object) -> str:
    """A metric for people: up to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else text(value)


def text(value: object, write: Callable[[object], str] = str) -> str:
    """The value as text; Python refuses to write very long integers in decimal."""
    try:
        return write(value)
    except ValueError:
        return write(jsonable(value))


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def listed(items: Sequence[str], limit: int = 8) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


# -- JSON ---------------------------------------------------------------------------------------------------------


def say_json(record: Mapping[str, Any]) -> None:
    """One object on one line, in ASCII, so that no escape reaches a terminal."""
    say(json.dumps(jsonable(record), allow_nan=False).replace("\x7f", "\\u007f"))


def jsonable(value: Any) -> Any:
    """JSON has no NaN, infinities, bytes or keys that are numbers: these become texts, as do very long integers."""
    if isinstance(value, int) and value.bit_length() > _LONGEST:
        return hex(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "item") and not isinstance(value, bytes):
        return jsonable(value.item())  # a numpy scalar
    return value.hex() if isinstance(value, bytes) else str(value)


def title(message: str) -> str:
    """The first line of a message."""
    return message.strip().partition("\n")[0]


def lines(text: str) -> Iterator[str]:
    """The lines of a message, each of them cleaned."""
    return (clean(line) for line in text.strip("\n").split("\n"))
