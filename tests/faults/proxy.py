"""A proxy before an S3 server that makes chosen requests fail, and keeps a record of all.

Clients take its address for the server's. It passes the Host header on as it came, so signatures still hold for the
server, which must take plain HTTP and any Host. Nothing is retried and nothing kept: what a client sees is what the
server said, but for the fault.
"""

from __future__ import annotations

import math
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from io import BufferedReader
from urllib.parse import parse_qs, unquote, urlsplit

from servers.s3 import S3Server

from .wire import Head, HungUp, body_of_reply, body_of_request, framed, read_head

FOREVER = math.inf
SLOW_RATE = 1 << 20
"""Bytes a second of a slow request and of its reply, each of which also waits SLOW_START seconds before its body."""
SLOW_START = 0.25

OPERATIONS = (
    *("put-record", "put", "create-upload", "upload-part", "complete-upload", "abort-upload"),
    *("get", "head", "list", "delete", "list-uploads", "list-parts", "copy", "bucket"),
)
"""`put-record` is a PUT of `log/<seq>`; `bucket` is whatever asks about a bucket, or makes it, but lists no objects."""

REFUSALS = {
    "503": (503, "SlowDown"),
    "500": (500, "InternalError"),
    "409": (409, "ConditionalRequestConflict"),
    "412": (412, "PreconditionFailed"),
    "403": (403, "AccessDenied"),
    "404": (404, "NoSuchKey"),
    "lost-upload": (404, "NoSuchUpload"),
}
"""Answered by the proxy; the server never sees the request."""
LIES = ("cut", "corrupt", "list-partial", "list-lossy", "list-duplicate")
"""Replies that are changed on their way."""
KINDS = (*REFUSALS, *LIES, "timeout", "reset", "landed", "slow")


@dataclass
class Fault:
    """What befalls the requests number `nth` to `nth + times - 1` (from 1) of an operation, or of `any`.

    503, 500, 409, 412, 403, 404, lost-upload  the answer, with the code that S3 has for it; nothing reaches the server
    timeout         no answer; the connection closes when the client gives up
    reset           the connection breaks before the server sees the request
    landed          the server did it, and the connection breaks in place of its answer
    slow            both bodies pass at SLOW_RATE
    cut             half of the reply's body, then the connection closes
    corrupt         the reply's body with a wrong byte in every piece of it
    list-partial    half of a listing, which says that more follows; what follows is refused as AWS refuses a bad token
    list-lossy      half of a listing, and nothing says so
    list-duplicate  a listing with every entry twice
    """

    kind: str
    at: str = "any"
    nth: int = 1
    times: float = 1
    seen: int = field(default=0, init=False)
    """Requests so far of the operation, since the fault was set."""
    hits: int = field(default=0, init=False)
    """Requests that it befell."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.at not in (*OPERATIONS, "any"):
            raise ValueError(f"no such fault: {self.kind} at {self.at}")

    def befalls(self, operation: str) -> bool:
        """Whether it is this request's turn; counts the request."""
        if self.at not in (operation, "any"):
            return False
        self.seen += 1
        hit = self.nth <= self.seen < self.nth + self.times
        self.hits += hit
        return hit


@dataclass
class Request:
    """One request: `status` is what the server answered, or the proxy for it; 0 without an answer.

    `sent` and `received` are bytes of bodies, as the client sent and as the server answered; `fault` is a kind or "".
    """

    method: str
    operation: str
    bucket: str
    key: str
    query: dict[str, list[str]]
    fault: str = ""
    status: int = 0
    sent: int = 0
    received: int = 0

    def counting(self, pieces: Iterable[bytes], what: str) -> Iterator[bytes]:
        for piece in pieces:
            setattr(self, what, getattr(self, what) + len(piece))
            yield piece


def parse(head: Head) -> Request:
    """The request that a head asks for, with the bucket in its path."""
    method, target, _ = head.first.split(" ")
    parts = urlsplit(target)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    query = parse_qs(parts.query, keep_blank_values=True)
    return Request(method, _operation(method, key, query, bool(head.get("x-amz-copy-source"))), bucket, key, query)


def _operation(method: str, key: str, query: dict[str, list[str]], copies: bool) -> str:
    upload, listing = "uploadId" in query, not key and method == "GET"
    rules = (
        (listing and "uploads" in query, "list-uploads"),
        (listing and query.keys() <= LISTING, "list"),
        (method == "POST" and "delete" in query, "delete"),
        (not key, "bucket"),
        (method == "GET" and upload, "list-parts"),
        (method == "DELETE" and upload, "abort-upload"),
        (method == "POST", "complete-upload" if upload else "create-upload"),
        (method == "PUT" and upload, "upload-part"),
        (method == "PUT" and copies, "copy"),
        (method == "PUT" and re.search(r"(^|/)log/[^/]+$", key), "put-record"),
        (True, method.lower()),
    )
    return next(name for applies, name in rules if applies)


LISTING = {
    *("list-type", "prefix", "delimiter", "max-keys", "marker", "start-after", "continuation-token"),
    *("encoding-type", "fetch-owner"),
}
"""What a request for a list of objects may ask with; others ask for a bucket's settings."""


class FaultProxy:
    """The proxy before `server`, from `with` to its end. `faults` may be changed at any time; the first that fits acts.

    `server` of the proxy is the same server as its clients see it: `endpoint` and `options` are that one's.
    """

    def __init__(self, server: S3Server) -> None:
        address = urlsplit(server.endpoint)
        assert address.scheme == "http", "the proxy cannot speak TLS"
        self._upstream = (address.hostname, address.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.server = replace(server, endpoint=self.endpoint)
        self.options = self.server.options
        self.faults: list[Fault] = []
        self.requests: list[Request] = []

    def __enter__(self) -> FaultProxy:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            connections = dict(self._connections)
        for thread, client in connections.items():
            _shut(client)
            thread.join()

    def count(self, *operations: str) -> int:
        """Requests so far, of these operations or of all."""
        return sum(not operations or request.operation in operations for request in list(self.requests))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed: the end
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            with self._lock:
                self._connections[thread] = client
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with client, client.makefile("rb") as reader, _Upstream(self._upstream) as upstream:
                while (head := read_head(reader)) and _Exchange(client, reader, upstream, head, self._take).passed():
                    pass
        except (OSError, HungUp):
            pass  # one side went away: the other sees a closed connection too, and the record says how far it got
        finally:
            with self._lock:
                del self._connections[threading.current_thread()]

    def _take(self, request: Request) -> None:
        with self._lock:
            hits = [fault.kind for fault in self.faults if fault.befalls(request.operation)]
            request.fault = hits[0] if hits else ""
            self.requests.append(request)


class _Upstream:
    """One client's connection to the server, opened when needed and again when the server has closed it."""

    def __init__(self, address: tuple[str | None, int]) -> None:
        self._address = address
        self._stack = ExitStack()
        self._socket: socket.socket | None = None
        self.reader: BufferedReader

    def __enter__(self) -> _Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def connected(self) -> socket.socket:
        if self._socket is None or select.select([self._socket], [], [], 0)[0]:  # readable while idle: closed
            self._stack.close()
            self._socket = self._stack.enter_context(socket.create_connection(self._address))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.reader = self._stack.enter_context(self._socket.makefile("rb"))
        return self._socket


@dataclass
class _Exchange:
    """One request on its way to the server, and its reply back, with what befalls them."""

    client: socket.socket
    reader: BufferedReader
    upstream: _Upstream
    head: Head
    take: Callable[[Request], None]

    def passed(self) -> bool:
        """Do it; whether the client's connection can take another request."""
        self.request = parse(self.head)
        self.take(self.request)
        kind = self.request.fault
        if kind == "reset":
            return _reset(self.client)
        if self.head.get("expect"):
            self.client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self.request.counting(body_of_request(self.reader, self.head), "sent")
        if kind in REFUSALS or BAD_TOKEN in self.request.query.get("continuation-token", ()):
            return self._refused(body, *REFUSALS.get(kind, (400, "InvalidArgument")))
        if kind == "timeout":
            return self._held(body)
        reply = self._forwarded(body)
        answer = self.request.counting(body_of_reply(self.upstream.reader, reply, self.request.method), "received")
        if kind == "landed":
            _drain(answer)
            return _reset(self.client)
        self._answered(reply, answer)
        return "close" not in (self.head.get("connection").lower(), reply.get("connection").lower()) and kind != "cut"

    def _refused(self, body: Iterable[bytes], status: int, code: str) -> bool:
        _drain(body)
        self.request.status = status
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        length = 0 if self.request.method == "HEAD" else len(text)
        head = Head(f"HTTP/1.1 {status} {code}", [("Content-Type", "application/xml"), ("Content-Length", f"{length}")])
        self.client.sendall(head.encoded() + text[:length])
        return True

    def _held(self, body: Iterable[bytes]) -> bool:
        _drain(body)
        while self.client.recv(1024):
            pass
        return False

    def _forwarded(self, body: Iterable[bytes]) -> Head:
        """Pass the request on; the head of the reply."""
        server, slow = self.upstream.connected(), self.request.fault == "slow"
        head = self.head.without("expect")  # no part of the signature; the client has its answer to it
        server.sendall(head.encoded())
        for piece in framed(_slowly(body) if slow else body, head):
            server.sendall(piece)
        reply = read_head(self.upstream.reader)
        if reply is None:
            raise HungUp
        self.request.status = reply.status
        return reply

    def _answered(self, reply: Head, body: Iterator[bytes]) -> None:
        kind = self.request.fault
        if kind.startswith("list-"):
            reply, body = _rewritten(reply, b"".join(body), kind)
        elif kind == "corrupt":
            body = map(_damaged, body)
        elif kind == "slow":
            body = _slowly(body)
        elif kind == "cut":
            body = _cut(body, int(reply.get("content-length") or 2))
        self.client.sendall(reply.encoded())
        for piece in framed(body, reply):
            self.client.sendall(piece)


def _reset(client: socket.socket) -> bool:
    """Have the connection end with a reset when it is closed."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def _shut(client: socket.socket) -> None:
    try:
        client.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # its thread has just closed it


def _drain(body: Iterable[bytes]) -> None:
    for _ in body:
        pass


def _slowly(body: Iterable[bytes]) -> Iterator[bytes]:
    time.sleep(SLOW_START)
    for piece in body:
        time.sleep(len(piece) / SLOW_RATE)
        yield piece


def _damaged(piece: bytes) -> bytes:
    at = len(piece) // 2
    return piece[:at] + bytes([piece[at] ^ 0x10]) + piece[at + 1 :]


def _cut(body: Iterable[bytes], length: int) -> Iterator[bytes]:
    left = length // 2
    for piece in body:
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            raise HungUp


BAD_TOKEN = "no-such-token"
_ENTRY = re.compile(rb"<(Contents|CommonPrefixes)>.*?</\1>", re.DOTALL)
_TRUNCATION = re.compile(rb"<IsTruncated>.*?</IsTruncated>|<NextContinuationToken>.*?</NextContinuationToken>")


def _rewritten(reply: Head, body: bytes, kind: str) -> tuple[Head, Iterator[bytes]]:
    """A listing as a faulty server would give it."""
    entries = [match.group() for match in _ENTRY.finditer(body)]
    rest = _ENTRY.sub(b"", body)
    if kind == "list-duplicate":
        entries = [entry for entry in entries for _ in range(2)]
    else:
        entries = entries[: len(entries) // 2]
    if kind == "list-partial":
        truncation = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{BAD_TOKEN}</NextContinuationToken>"
        rest = _TRUNCATION.sub(b"", rest).replace(b"</ListBucketResult>", truncation.encode() + b"</ListBucketResult>")
    body = rest.replace(b"</ListBucketResult>", b"".join(entries) + b"</ListBucketResult>")
    head = reply.without("content-length", "transfer-encoding")
    return Head(head.first, [*head.headers, ("Content-Length", f"{len(body)}")]), iter([body])
