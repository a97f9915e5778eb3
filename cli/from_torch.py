"""Reading a file of torch.save: a state whose tensors' bytes stay on the disk. torch is not needed for tensors."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Any

from cas.dtypes import DType
from cas.errors import Corrupt, Unsupported
from cas.files import FileRange, KnownFile
from cas.nodes import MAX_DEPTH, MAX_ENTRIES
from cas.tensors import Composite, Source, Tensor

from .archive import records_of
from .incoming import Parsed, Unreadable, in_pieces
from .torch_save import Named, Size, StoredParts, StoredTensor, load

_WORTH_A_PIECE = 64 << 10
_FEW = 4 << 10
_REPEATED = 16
"""An entry takes a byte at least; containers that stand in several places may repeat it so many times, not without end.
"""
_CONTAINERS = (dict, OrderedDict, Counter, list, tuple)


def read_torch(file: KnownFile, name: str) -> Parsed:
    """The state that was saved. `Unreadable` for anything that is not safe, whole and plain."""
    if file.read(0, 1) == b"\x80":
        raise Unreadable("it is in the form that torch wrote before 1.6; torch.load and torch.save it once")
    state, sources = read_saved(file.whole())
    return Parsed(state, {name: in_pieces(file, [*sources, *large_records(file)])})


def read_saved(item: FileRange) -> tuple[Any, list[Source]]:
    """The state that was saved in a range of a file, and the sources of its tensors."""
    taken = _Taken(min(_REPEATED * (item.nbytes + _FEW), MAX_ENTRIES))
    return taken.state(load(item)), taken.sources


def large_records(file: KnownFile) -> list[FileRange]:
    """Where tensors may lie in an archive that is not opened, so that their blocks are shared all the same."""
    return [record for record in records_of(file.whole()).values() if record.nbytes >= _WORTH_A_PIECE]


@dataclass(slots=True)
class _Taken:
    """Turns what torch.save wrote into a state of at most `left` entries; `sources` are those of its tensors."""

    left: int
    sources: list[Source] = field(default_factory=list)

    def state(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, float, str, bytes):
            return value
        if kind is StoredTensor:
            return self._leaf(value)
        if kind is StoredParts:
            return Composite("torch", value.kind, self.state(value.parts, depth + 1))
        if kind in (DType, Size, Named):
            return _native(value)
        if kind not in _CONTAINERS:
            raise Unreadable(f"it has a {kind.__name__}, which no state holds")
        self.left -= len(value)
        if depth >= MAX_DEPTH or self.left < 0:
            raise Unreadable("it is nested too deep or has too many entries")
        if isinstance(value, dict):
            return kind({key: self.state(child, depth + 1) for key, child in value.items()})
        return kind([self.state(child, depth + 1) for child in value])

    def _leaf(self, stored: StoredTensor) -> Tensor:
        leaf = stored.leaf()
        self.sources.append(leaf.source)
        return leaf


def _native(value: Any) -> Any:
    """torch's own value, which alone needs torch."""
    try:
        from cas.torch import foreign
    except ImportError as error:
        raise Unsupported("the file holds torch's own values; pip install 'cas-checkpoints[torch]'") from error
    kind, text = "dtype", getattr(value, "name", "")
    if type(value) is Size:
        kind, text = "size", ",".join(map(str, value))
    elif type(value) is Named:
        kind, text = value.kind, value.text
    try:
        return foreign.value(kind, text)
    except Corrupt as error:
        raise Unreadable(f"it {error}") from error
