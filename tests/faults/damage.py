"""Damage to the packs of a store: bits that flip, files that are cut or gone, on a disk and on S3."""

from __future__ import annotations

import struct
from pathlib import Path

from servers.s3 import S3Server

from cas import pack
from cas.block import Kind
from cas.local import LocalBackend
from cas.pack import Location


def rows(path: Path) -> list[Location]:
    """Every row of every pack."""
    backend = LocalBackend(path)
    names = [pack.id_of(info.name) for info in backend.list(pack.FOLDER)]
    found = [Location(name, row) for name in names if name is not None for row in pack.read_table(backend, name)]
    backend.close()
    return found


def packs(path: Path) -> list[Path]:
    return sorted(file for file in (path / "packs").glob("*/*"))


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(data)


def damage(path: Path, places: list[Location]) -> None:
    """Flip a bit in the middle of each of these rows."""
    assert places
    for place in places:
        flip(path / pack.name_of(place.pack), place.row.offset + place.row.stored // 2)


def holding(path: Path, data: bytes) -> list[Location]:
    """The rows of blocks whose bytes stand somewhere in `data`."""
    files = {name: (path / pack.name_of(name)).read_bytes() for name in {place.pack for place in rows(path)}}
    blocks = [place for place in rows(path) if place.row.kind == Kind.BLOCK]
    return [p for p in blocks if files[p.pack][p.row.offset : p.row.offset + p.row.stored] in data]


def harm(server: S3Server, url: str, how: str) -> None:
    """Have every pack of a store on S3 "missing", "flipped" all over but for its table, or "cut" in the middle."""
    name, _, folder = url.removeprefix("s3://").partition("/")
    client = server.client()
    listed = client.list_objects_v2(Bucket=name, Prefix=f"{folder}/packs/")["Contents"]
    assert listed
    for key in (entry["Key"] for entry in listed):
        data = bytearray(client.get_object(Bucket=name, Key=key)["Body"].read())
        if how == "missing":
            client.delete_object(Bucket=name, Key=key)
            continue
        (table,) = struct.unpack_from("<Q", data, len(data) - 48)
        for at in range(70, table, 30):
            data[at] ^= 0x10
        body = bytes(data if how == "flipped" else data[: len(data) // 2])
        client.put_object(Bucket=name, Key=key, Body=body)
