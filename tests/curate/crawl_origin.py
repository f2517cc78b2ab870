"""An origin server on loopback that misbehaves in every way a test needs, and keeps a log of what it was asked."""

from __future__ import annotations

import gzip
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.conftest import encoded, picture

JPEG = encoded(picture(1), quality=90)


@dataclass(kw_only=True)
class Answer:
    """One answer of the origin; `act` takes the whole connection over."""

    body: bytes = JPEG
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: bool = True
    act: str | None = None


@dataclass(kw_only=True)
class Origin:
    """A running server: its address, what it answers by path, and what it saw."""

    ip: str
    port: int
    scheme: str = "http"
    answers: dict[str, Answer] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    asked_at: list[float] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)
    connections: int = 0
    at_once: int = 0
    most_at_once: int = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.ip}:{self.port}"

    def asked(self, path: str) -> int:
        return sum(1 for _, seen in self.log if seen == path)


@contextmanager
def origin(
    answers: dict[str, Answer] | None = None, ip: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[Origin]:
    """Serve on loopback, with a certificate where there is one."""
    server = _Server((ip, port), _Handler)
    server.origin = Origin(ip=ip, port=server.server_address[1], answers=answers or {})
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.origin.scheme = "https"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server.origin
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512
    origin: Origin

    def get_request(self):
        self.origin.connections += 1
        return super().get_request()

    def handle_error(self, request, client_address):
        return  # a client that goes away is part of the test


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    counting = threading.Lock()

    def do_GET(self) -> None:
        seen = self.server.origin
        with self.counting:
            seen.log.append((self.headers["Host"], self.path))
            seen.asked_at.append(time.monotonic())
            seen.agents.add(self.headers["User-Agent"])
            seen.at_once += 1
            seen.most_at_once = max(seen.most_at_once, seen.at_once)
        try:
            self.answer(seen.answers.get(self.path.split("?")[0]) or Answer(status=404, body=b"no"))
        finally:
            with self.counting:
                seen.at_once -= 1

    def log_message(self, *_: object) -> None:
        return

    def answer(self, answer: Answer) -> None:
        if answer.act is not None:
            getattr(self, answer.act)(answer)
            return
        self.head(answer, len(answer.body) if answer.length else None)
        self.wfile.write(answer.body)
        self.close_connection |= not answer.length

    def head(self, answer: Answer, length: int | None) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        else:
            self.send_header("Connection", "close")
        self.end_headers()

    def silent(self, answer: Answer) -> None:
        """Say nothing at all."""
        time.sleep(3)
        self.close_connection = True

    def pause(self, answer: Answer) -> None:
        """Answer a little later."""
        time.sleep(0.1)
        self.head(answer, len(answer.body))
        self.wfile.write(answer.body)

    def reset(self, answer: Answer) -> None:
        """Break off in the middle with a reset."""
        self.head(answer, len(answer.body))
        self.wfile.write(answer.body[:100])
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def cut(self, answer: Answer) -> None:
        """End too early."""
        self.head(answer, len(answer.body))
        self.wfile.write(answer.body[:100])
        self.close_connection = True

    def raw(self, answer: Answer) -> None:
        """Send the body as all there is, headers and all."""
        self.wfile.write(answer.body)
        self.close_connection = True

    def drip(self, answer: Answer) -> None:
        """Send a byte now and then, for ever."""
        self.head(answer, len(answer.body))
        for at in range(100):
            self.wfile.write(answer.body[at : at + 1])
            time.sleep(0.1)

    def drip_headers(self, answer: Answer) -> None:
        """Send a header now and then, for ever."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for at in range(90):
            self.wfile.write(f"X-{at}: 1\r\n".encode())
            time.sleep(0.1)


def redirect(to: str) -> Answer:
    return Answer(status=302, headers={"Location": to}, body=b"")


def bomb(size: int) -> Answer:
    return Answer(body=gzip.compress(bytes(size)), headers={"Content-Encoding": "gzip"})
