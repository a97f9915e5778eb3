"""Files that others wrote."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cas.cli.archive import records_of
from cas.cli.from_dcp import METADATA, read_dcp
from cas.cli.from_gguf import read_gguf
from cas.cli.from_safetensors import read_safetensors
from cas.cli.from_torch import read_torch
from cas.cli.incoming import Parsed, Unreadable
from cas.cli.pickles import Maker, Record, unpickle
from cas.errors import CasError
from cas.files import FileRange, KnownFile

from .mutate import Opened, inside, json_value, octets, pickle_instructions
from .targets import CORPUS, Parse, Target, plain


def _file(folder: Path, read: Callable[[KnownFile, str], Parsed]) -> Parse:
    """A reader of whole files; the pieces that it tells of are the file."""
    path = folder / "file"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        _check_pieces(read(KnownFile.at(path), "file"), {"file": data})

    return parse


def _check_pieces(parsed: Parsed, files: Mapping[str, bytes]) -> None:
    for name, pieces in parsed.origin.items():
        joined = b""
        for piece in pieces:
            out = np.zeros(piece.nbytes, np.uint8)
            piece.read_into(0, out)
            joined += out.tobytes()
        assert joined == files[name], "the pieces are not the file"


def _header(data: bytes) -> Opened:
    """The header of a safetensors file."""
    stop = 8 + int.from_bytes(data[:8], "little")
    return data[8:stop], lambda part: len(part).to_bytes(8, "little") + part + data[stop:]


_MAKERS: dict[str, Any] = {
    "m record": Maker(lambda: Record("record")),
    "m size": Maker(lambda *numbers: sum(numbers)),
    "m value": 5,
}


def _pickle(data: bytes) -> None:
    unpickle(data, _MAKERS, lambda key: ("stored", key))


def _archive(folder: Path) -> Parse:
    """What is taken for an archive is the same one to Python's own reader of zip files, unless that refuses it."""
    path = folder / "file"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        found = records_of(KnownFile.at(path).whole())
        try:
            theirs = _theirs(data)
        except (zipfile.BadZipFile, NotImplementedError):
            return
        assert {name: _bytes(part) for name, part in found.items()} == theirs, "another reader finds other records"

    return parse


def _bytes(part: FileRange) -> bytes:
    return part.file.read(part.start, part.start + part.nbytes)


def _theirs(data: bytes) -> dict[str, bytes]:
    found = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            name = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437").decode()
            length, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
            start = info.header_offset + 30 + length + extra
            found[name.partition("/")[2]] = data[start : start + info.file_size]
    return found


def _record_in_archive(record: str) -> Callable[[bytes], Opened]:
    """A record of a zip archive, which is written anew with another one."""

    def opened(data: bytes) -> Opened:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                held = {name: archive.read(name) for name in archive.namelist()}
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
            raise ValueError from error
        name = next((name for name in held if name.endswith(record)), None)
        if name is None:
            raise ValueError

        def close(part: bytes) -> bytes:
            made = io.BytesIO()
            with zipfile.ZipFile(made, "w") as archive:
                for other, content in held.items():
                    archive.writestr(other, part if other == name else content)
            return made.getvalue()

        return held[name], close

    return opened


def _dcp(folder: Path) -> Parse:
    """The metadata of a directory whose data are sound."""
    data_file = "__0_0.distcp"
    stored = (CORPUS / "dcp_data").read_bytes()
    (folder / data_file).write_bytes(stored)

    def parse(data: bytes) -> None:
        (folder / METADATA).write_bytes(data)
        files = {name: KnownFile.at(folder / name) for name in (METADATA, data_file)}
        _check_pieces(read_dcp(files, ""), {METADATA: data, data_file: stored})

    return parse


# -- all of them ----------------------------------------------------------------------------------------------------

_FILE_ERRORS = (CasError, Unreadable)

TARGETS = (
    Target(
        "safetensors",
        lambda folder: _file(folder, read_safetensors),
        [octets, *[inside(_header, json_value)] * 2, inside(_header, octets)],
        _FILE_ERRORS,
    ),
    Target("gguf", lambda folder: _file(folder, read_gguf), [octets], _FILE_ERRORS),
    Target("pickle", plain(_pickle), [octets, *[pickle_instructions] * 3], _FILE_ERRORS),
    Target("archive", _archive, [octets], _FILE_ERRORS),
    Target(
        "torch_save",
        lambda folder: _file(folder, read_torch),
        [octets, *[inside(_record_in_archive("/data.pkl"), pickle_instructions)] * 4],
        _FILE_ERRORS,
    ),
    Target("dcp_metadata", _dcp, [octets, *[pickle_instructions] * 3], _FILE_ERRORS),
)
