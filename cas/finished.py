"""What repacks have judged, so that the next one need not do so again.

    repacked:  JSON of [1, {pack id: [level, holds tips]}, {tip: the commit that it resembles, or ""}], ids in hex

The file lies beside the index and is as dispensable: what is missing is judged again, and may be rewritten as it was.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .block import ObjectId
from .pack import PackId

VERSION = 1
_log = logging.getLogger("cas")


@dataclass(slots=True)
class Finished:
    """`packs`: the number of the level at which each was made, and whether it holds what tips hold. `kin`: what a tip
    resembles."""

    path: Path
    packs: dict[PackId, tuple[int, bool]] = field(default_factory=dict)
    kin: dict[ObjectId, ObjectId | None] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Finished:
        try:
            version, held, found = json.loads(path.read_text())
            packs = {PackId(bytes.fromhex(name)): (int(level), bool(tips)) for name, (level, tips) in held.items()}
            kin = {_id(tip): _id(other) if other else None for tip, other in found.items()}
        except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return cls(path)
        return cls(path, packs, kin) if version == VERSION else cls(path)

    def add(self, packs: Iterable[PackId], level: int, tips: bool) -> None:
        self.packs.update(dict.fromkeys(packs, (level, tips)))

    def is_history(self, pack: PackId, level: int) -> bool:
        """Whether all in it was judged as history, at this level or a higher one."""
        made, tips = self.packs.get(pack, (-1, True))
        return made >= level and not tips

    def is_tips(self, pack: PackId, level: int) -> bool:
        made, tips = self.packs.get(pack, (-1, False))
        return made >= level and tips

    def save(self, existing: Iterable[PackId], tips: Collection[ObjectId]) -> None:
        """Best effort, for the packs and tips that exist."""
        kept = set(existing)
        held = {name.hex(): made for name, made in self.packs.items() if name in kept}
        kin = {tip.hex(): other.hex() if other else "" for tip, other in self.kin.items() if tip in tips}
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            temporary.write_text(json.dumps([VERSION, held, kin]))
            os.replace(temporary, self.path)
        except OSError as error:
            _log.info("what was repacked is not remembered: %s", error)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _id(text: str) -> ObjectId:
    return ObjectId(bytes.fromhex(text))
