"""`cas cat`: one value, tensor or side file of a commit."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

import cas
from cas.errors import Invalid, NotFound
from cas.leaves import Leaves, TensorLeaf, ValueLeaf, leaf_of
from cas.objects import entries_of
from cas.paths import format_path
from cas.peek import bytes_at, corners, node_at

from .completion import complete_revision
from .options import example, json_option, with_store
from .output import clean, jsonable, say, say_json

_IN_JSON = 1 << 20  # bytes of a text, of bytes or a file that `--json` gives
_HEAD = 8 << 10  # bytes by which text is told from binary
_BYTES = ("str", "bytes", "pickle")


@dataclass(frozen=True, slots=True)
class _Content:
    """Bytes of `kind` value (a text, bytes, a pickle) or file, called `name`; read piece by piece."""

    kind: str
    name: str
    type: str
    nbytes: int
    source: TensorLeaf | bytes

    def pieces(self, leaves: Leaves) -> Iterator[bytes | memoryview]:
        if isinstance(self.source, bytes):
            return iter([self.source])
        return leaves.stream([self.source])


@click.command(
    short_help="One value, tensor or side file.",
    epilog=example("cas cat main step", "cas cat main model/head/bias", "cas cat main config.json > config.json"),
)
@click.argument("rev", shell_complete=complete_revision)
@click.argument("path")
@json_option
@with_store
def cat(store: cas.Store, rev: str, path: str, as_json: bool) -> None:
    """Print what stands at PATH in the state of REV, or the side file of that name.

    Texts, bytes and files come as they are; a large tensor is cut to its corners; other values come as JSON.

    JSON, one object: kind: tensor, path, dtype, shape, bytes, values (nested lists; null over 1,000 elements); or
    kind: value, path, type, bytes, value; or kind: file, path, bytes, value (text, or hex digits of bytes; null over
    1 MiB).
    """
    leaves = store.leaves(rev)
    found = _find(leaves, path)
    if isinstance(found, _Content):
        _say_content(found, leaves, as_json)
    elif isinstance(found, TensorLeaf):
        _say_tensor(found, leaves, as_json)
    elif as_json:
        head = {"kind": "value", "path": format_path(found.path), "type": found.kind, "bytes": found.nbytes}
        say_json({**head, "value": found.value})
    else:
        say(_plain(found.value))


def _find(leaves: Leaves, path: str) -> _Content | TensorLeaf | ValueLeaf:
    """What PATH names; the state goes before side files."""
    try:
        at = leaves.find(path)
    except NotFound as error:
        files = {file.name: file for file in leaves.files()}
        if path in files:
            (part,) = files[path].parts
            return _Content("file", path, "", part.nbytes, part)
        names = f"; side files are {', '.join(files)}" if files else ""
        raise NotFound(f"{error}{names}") from error
    node = node_at(leaves, at)
    if entries_of(node, leaves.objects.tree) is not None:
        raise Invalid(f"{format_path(at)} is no single value; `cas ls` lists what is below it")
    leaf = leaf_of(at, node)
    if isinstance(leaf, ValueLeaf) and leaf.kind in _BYTES:
        if leaf.value is None:
            return _Content("value", format_path(at), leaf.kind, leaf.nbytes, bytes_at(leaves, at))
        data = leaf.value.encode() if isinstance(leaf.value, str) else leaf.value
        return _Content("value", format_path(at), leaf.kind, len(data), data)
    return leaf


def _plain(value: Any) -> str:
    return clean(value) if isinstance(value, str) else json.dumps(jsonable(value))


def _say_content(found: _Content, leaves: Leaves, as_json: bool) -> None:
    if as_json:
        type_of = {"type": found.type} if found.kind == "value" else {}
        head = {"kind": found.kind, "path": found.name, **type_of, "bytes": found.nbytes}
        say_json({**head, "value": _in_json(found, leaves)})
    elif sys.stdout.isatty():
        _say_text(found, leaves)
    else:
        for piece in found.pieces(leaves):
            sys.stdout.buffer.write(piece)


def _in_json(found: _Content, leaves: Leaves) -> str | None:
    if found.nbytes > _IN_JSON:
        return None
    data = b"".join(found.pieces(leaves))
    try:
        return data.hex() if found.type in ("bytes", "pickle") else data.decode()
    except UnicodeDecodeError:
        return data.hex()


def _say_text(found: _Content, leaves: Leaves) -> None:
    """To a terminal: text alone, and nothing in it that a terminal obeys."""
    rest = b""
    for number, piece in enumerate(found.pieces(leaves)):
        if number == 0 and _is_binary(bytes(piece[:_HEAD])):
            raise Invalid(f"{found.name} is not text; send it to a file: cas cat ... > FILE")
        *whole, rest = (rest + bytes(piece)).split(b"\n")
        for line in whole:
            say(clean(line.decode(errors="replace")))
    if rest:
        say(clean(rest.decode(errors="replace")))


def _is_binary(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start < _HEAD - 4 or b"\0" in head  # else perhaps only a character that the cut went through
    return b"\0" in head


def _say_tensor(tensor: TensorLeaf, leaves: Leaves, as_json: bool) -> None:
    import numpy as np

    values, edge = corners(leaves, tensor)
    if as_json:
        path, shape = format_path(tensor.path), list(tensor.shape)
        head = {"kind": "tensor", "path": path, "dtype": tensor.dtype, "shape": shape, "bytes": tensor.nbytes}
        say_json({**head, "values": _listed(values) if edge is None else None})
        return
    say(f"{tensor.dtype} {list(tensor.shape)}")
    if edge is None:
        say(np.array2string(values, threshold=sys.maxsize))
    else:
        say(np.array2string(values, threshold=0, edgeitems=edge))


def _listed(values: Any) -> Any:
    """Nested lists; complex numbers are pairs."""
    if values.dtype.kind == "c":
        values = values.view(values.real.dtype).reshape(*values.shape, 2)
    return values.tolist()
