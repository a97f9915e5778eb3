"""What a check of a store can find. Names are stable.

    error: something is lost or unreadable
    log-record-missing, log-record-corrupt      a record of the log is gone or does not verify
    list-missing, list-corrupt                  a condemned or absent list of the root is gone or does not verify
    pack-corrupt                                a pack's header or table does not verify: its objects are out of reach
    object-missing, object-corrupt              a commit, tree, layout or list that something names
    block-missing                               a block that a tensor names, or a base that it needs, is in no pack
    block-corrupt                               no stored copy of a block, or of a base that it needs, matches its name
                                                or decodes
    lost                                        an object that --repair found nowhere; it stands for the three before

    warning: nothing is lost yet
    row-corrupt                                 a stored copy of an object is bad; others may be good
    undo-damaged                                objects that are missing or bad, and that only undo leads to
    not-repaired                                --repair could not begin, and why
    index-differs                               the index has other rows than the packs
    pack-foreign-file                           a file among the packs that is none

    info: nothing is wrong; where there are many of a kind, one finding counts them
    pack-condemned                              files that were given up and that the next collection deletes
    pack-orphaned                               packs that nothing reachable needs
    row-unreferenced, row-duplicate             rows of other packs that nothing reachable needs: of no object that is
                                                reached, or further copies
    list-orphaned                               list files that no root names
    leftover                                    a file that a crashed writer left in tmp/
    data-read                                   how much of the stored bytes was read, where it was not all in one go
    repaired, index-rebuilt                     what --repair did

Reachable is what refs lead to, and what undo may go back to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One result. `commits` (hex) and `paths` are those that it touches; `message` is one sentence."""

    name: str
    severity: Severity
    message: str
    commits: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
