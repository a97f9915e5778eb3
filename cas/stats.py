"""What a store holds, and what it takes on disk."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from .backend import Backend
from .block import Codec, Kind
from .catalog import Catalog
from .log import Record
from .refs import RefKind


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Bytes and counts. `disk` is the sum of all file sizes, index included; `raw` is what the distinct objects
    would take uncompressed, `stored` what they take in packs; `codecs` counts objects by how they are stored."""

    disk: int
    packs: int
    commits: int
    blocks: int
    raw: int
    stored: int
    branches: int
    tags: int
    codecs: dict[str, int]


def measure(backend: Backend, catalog: Catalog, root: Record) -> StoreStats:
    rows = [place.row for place in catalog.index.rows()]
    kinds = Counter(row.kind for row in rows)
    codecs = Counter(Codec(row.codec).name.lower() for row in rows)
    refs = Counter(kind for kind, _ in root.refs)
    return StoreStats(
        disk=sum(info.size for info in backend.list("")),
        packs=len(catalog.index.packs()),
        commits=kinds[Kind.COMMIT],
        blocks=kinds[Kind.BLOCK],
        raw=sum(row.raw for row in rows),
        stored=sum(row.stored for row in rows),
        branches=refs[RefKind.BRANCH],
        tags=refs[RefKind.TAG],
        codecs=dict(sorted(codecs.items())),
    )
