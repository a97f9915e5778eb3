"""From the name of a place to its backend: a path, or a URL of any protocol that fsspec knows.

Credentials never stand in a URL: a URL is kept in configuration, printed, and written into log records.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .backend import Backend
from .directfile import create_root
from .errors import Invalid
from .local import LocalBackend
from .remote import open_remote
from .s3 import S3Backend
from .sftp import SftpBackend

_FORM = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?]*)(?P<path>.*)", re.DOTALL)
_PORT = re.compile(r":[0-9]*$")


def is_url(text: str) -> bool:
    """Whether a place is given as a URL, not as a path."""
    return "://" in text


@dataclass(frozen=True, slots=True)
class _Parts:
    """A URL taken apart: `user` is what stands before `@`, `query` what stands from a `?` with options on."""

    protocol: str
    user: str
    host: str
    path: str
    query: str


def backend_of(url: str, options: Mapping[str, Any] | None = None, create: bool = False) -> Backend:
    """The backend of a path or URL. `options` are fsspec's storage options; with `create` a local root is made.

    Nothing is asked of object storage here: whether the place exists shows at the first call.
    `Invalid` for what is no place, `Unsupported` for a protocol that is unknown or whose package is missing.
    """
    options = dict(options or {})
    if is_url(url):
        protocol, mark, rest = url.partition("://")
        url = protocol.lower() + mark + rest
    if not is_url(url) or url.startswith(("file://", "local://")):
        return _local(url, options, create)
    check_url(url)
    protocol = _parts(url).protocol
    if protocol in ("s3", "s3a"):
        return S3Backend(url, options)
    if protocol in ("sftp", "ssh"):
        return SftpBackend(url, options)
    return open_remote(url, shown(url), options)


def shown(url: str) -> str:
    """The place as people may see it: a password or options in the URL are replaced by stars."""
    if not is_url(url):
        return url
    parts = _parts(url)
    user = ("***" if ":" in parts.user else parts.user) + "@" if parts.user else ""
    return f"{parts.protocol}://{user}{parts.host}{parts.path}{'?***' if parts.query else ''}"


def check_url(url: str) -> None:
    """`Invalid` where a URL is malformed, or holds a password or other options."""
    if not is_url(url):
        return
    parts = _parts(url)
    if ":" in parts.user or parts.query:
        raise Invalid(
            f"{shown(url)} holds a password or options, which would be kept and shown with it: give them by "
            "fsspec's configuration or --storage-option"
        )
    if "\0" in url or not _PORT.sub("", parts.host) + parts.path.strip("/"):
        raise Invalid(f"{shown(url)!r} names no place: write it like s3://bucket/run or sftp://host/folder")


def _parts(url: str) -> _Parts:
    found = _FORM.fullmatch(url)
    if found is None:
        raise Invalid(f"{url.partition('://')[0]!r} is no protocol: write a URL like s3://bucket/run")
    authority, path = found["authority"], found["path"]
    user, _, host = authority.rpartition("@")
    if ":" in _PORT.sub("", host).partition("[")[0]:  # no port: a password, cut short by a slash in it or by mistake
        whole = authority + path
        user, _, rest = whole.rpartition("@") if "@" in path else (whole, "", "")
        host, slash, path = rest.partition("/")
        path = slash + path
    path, mark, query = path.partition("?") if re.search(r"\?.*=", path) else (path, "", "")
    return _Parts(found["protocol"], user, host, path, mark + query)


def _local(url: str, options: Mapping[str, Any], create: bool) -> LocalBackend:
    text = re.sub("^(file|local)://", "", url)
    if not text:
        raise Invalid("the path of a store is empty; give a directory such as .cas")
    if "\0" in text:
        raise Invalid(f"{text!r} is no path of a directory: it holds a zero byte")
    if text != url and not text.startswith("/"):
        raise Invalid(f"{url} names no directory of this machine: write file:///folder, or the plain path")
    if options:
        raise Invalid(f"{url} is a local directory, which takes no storage options: leave them out")
    folder = Path(text).expanduser().absolute()
    if create:
        create_root(folder)
    return LocalBackend(folder)
