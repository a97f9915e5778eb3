"""A web server that answers every request alike: what a store meets where no S3 service listens."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    kind: str = "text/html"
    location: str = ""


def error(status: int, code: str) -> Answer:
    """As an S3 service says it; the text must go nowhere."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>of testkey, testsecret</Message></Error>"
    return Answer(status, text.encode(), "application/xml")


class StandIn:
    """The server, from `with` to its end; `answer` may be changed at any time."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.requests = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> StandIn:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                outer.requests += 1
                answer = outer.answer
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.kind)
                self.send_header("Content-Length", str(len(answer.body)))
                if answer.location:
                    self.send_header("Location", answer.location)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer

            def log_message(self, format: str, *args: object) -> None:
                return

        return Handler
