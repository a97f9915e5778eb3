"""Stores made by hand: every checksum right, the content whatever an attacker likes."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

import cas
from cas import envelope, log, pack
from cas.block import Codec, Kind, ObjectId, object_id
from cas.nodes import Tag
from cas.nodes import pack as msgpack
from cas.refs import RefKind

EMPTY = [Tag.DICT, []]


@dataclass
class Forge:
    """Objects for one pack, and the log record that names them. `path` is an empty store."""

    path: Path
    stored: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        cas.init(self.path, block_size=4096).close()

    def add(self, kind: Kind, data: bytes, stored: bytes | None = None, /, **row: Any) -> ObjectId:
        """An object under its honest name; `stored` and the fields of its row may say anything."""
        name = object_id(kind, data)
        body = data if stored is None else stored
        honest = {"id": name, "kind": kind, "codec": Codec.RAW, "width": 0, "chain": 0, "stored": len(body)}
        self.stored.append(({**honest, "raw": len(data), "base": bytes(32), **row}, body))
        return name

    def tree(self, node: Any) -> ObjectId:
        return self.add(Kind.TREE, msgpack([1, node]))

    def block(self, data: bytes = b"a block's bytes.") -> ObjectId:
        return self.add(Kind.BLOCK, data)

    def layout(self, cell: Any, shards: Any) -> ObjectId:
        return self.add(Kind.LAYOUT, msgpack([1, cell, shards]))

    def list(self, ids: bytes) -> ObjectId:
        return self.add(Kind.LIST, msgpack([1, ids]))

    def commit(self, tree: Any, **fields: Any) -> ObjectId:
        """A commit of `tree`; `fields` replace its own."""
        honest = {
            "version": 1,
            "tree": tree,
            "parents": [],
            "time": 1_700_000_000_000_000,
            "author": "eve",
            "message": "",
            "step": None,
            "metrics": EMPTY,
            "meta": EMPTY,
            "files": EMPTY,
            "origin": None,
            "sizes": [0, 0, 0],
        }
        return self.add(Kind.COMMIT, msgpack(list({**honest, **fields}.values())))

    def write_pack(self, **footer: Any) -> Path:
        """Write what was added as one pack."""
        offset, rows, body = envelope.SIZE, [], b""
        for row, data in self.stored:
            row = {"offset": offset, **row}
            rows.append(pack.ROW.pack(*(row[name] for name in pack.Row._fields)))
            body += data
            offset += len(data)
        head, table = envelope.header(envelope.FileKind.PACK), b"".join(rows)
        end = struct.pack("<QI4s", footer.get("offset", offset), footer.get("count", len(rows)), b"cend")
        file = self.path / pack.name_of(pack.new_pack_id())
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(head + body + table + head + end + blake3(head + table + end).digest())
        return file

    def publish(self, tip: bytes, branch: str = "main") -> None:
        """Write the pack, and name `tip` by a branch in the next record."""
        self.write_pack()
        self.write_record([1, 2, [], [], [[RefKind.BRANCH, branch, tip]], [], 0, [], [], 1, self.update()])

    def write_record(self, body: Any, seq: int = 2) -> None:
        data = envelope.header(envelope.FileKind.RECORD) + msgpack(body)
        (self.path / log.name_of(seq)).write_bytes(data + blake3(data).digest())

    @staticmethod
    def update() -> list[Any]:
        return [bytes(16), "eve", "host", 1_700_000_000_000_000, "attack"]
