"""Messages of HTTP/1.1 as they stand on the wire: heads kept byte for byte, bodies streamed in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader

PIECE = 1 << 18
"""Bytes of a body held at a time."""
LONGEST_LINE = 1 << 16


class HungUp(Exception):
    """The other side closed the connection within a message."""


@dataclass
class Head:
    """The first line and the headers of a message; values as they were sent, for signatures cover them."""

    first: str
    headers: list[tuple[str, str]]

    def get(self, name: str) -> str:
        """The value of a header, empty without one."""
        return next((value for known, value in self.headers if known.lower() == name), "")

    def without(self, *names: str) -> Head:
        return Head(self.first, [(name, value) for name, value in self.headers if name.lower() not in names])

    def encoded(self) -> bytes:
        lines = [self.first, *(f"{name}: {value}" for name, value in self.headers)]
        return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")

    @property
    def chunked(self) -> bool:
        return self.get("transfer-encoding").lower() == "chunked"

    @property
    def status(self) -> int:
        """The status of a reply."""
        return int(self.first.split()[1])


def read_head(stream: BufferedReader) -> Head | None:
    """The next message's head; None where the stream ends before it. HungUp where it ends within."""
    first = stream.readline(LONGEST_LINE)
    if not first:
        return None
    headers = []
    while (line := stream.readline(LONGEST_LINE)) not in (b"\r\n", b"\n"):
        if not line:
            raise HungUp
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name, value.strip(" \r\n")))
    return Head(first.decode("latin-1").rstrip("\r\n"), headers)


def body_of_request(stream: BufferedReader, head: Head) -> Iterator[bytes]:
    return _chunks(stream) if head.chunked else _counted(stream, int(head.get("content-length") or 0))


def body_of_reply(stream: BufferedReader, head: Head, method: str) -> Iterator[bytes]:
    if method == "HEAD" or head.status in (204, 304):
        return iter(())
    return body_of_request(stream, head)


def _counted(stream: BufferedReader, length: int) -> Iterator[bytes]:
    while length:
        piece = stream.read1(min(length, PIECE))
        if not piece:
            raise HungUp
        length -= len(piece)
        yield piece


def _chunks(stream: BufferedReader) -> Iterator[bytes]:
    while True:
        line = stream.readline(LONGEST_LINE)
        if not line:
            raise HungUp
        length = int(line.split(b";")[0], 16)
        yield from _counted(stream, length)
        if not length:
            while stream.readline(LONGEST_LINE) not in (b"\r\n", b"\n", b""):
                pass  # trailers: nothing here signs with them
            return
        stream.readline(LONGEST_LINE)


def framed(pieces: Iterable[bytes], head: Head) -> Iterator[bytes]:
    """The pieces as they follow `head` on the wire."""
    if not head.chunked:
        yield from pieces
        return
    for piece in pieces:
        if piece:
            yield b"%x\r\n%s\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"
