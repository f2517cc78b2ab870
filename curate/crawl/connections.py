"""Connections that go to checked addresses only and end at a deadline, for urllib3's pools."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.ssl_ import create_urllib3_context

from curate.crawl.addresses import Resolver

POOLS = 512
"""Hosts whose connections are kept open for the next request."""


class _Clock(threading.local):
    """The deadline of the request that this thread makes; pooled connections move between threads."""

    ends_at: float = float("inf")


CLOCK = _Clock()


def remaining_s() -> float:
    """Return the seconds that this thread's request has left; raises TimeoutError when there are none."""
    left = CLOCK.ends_at - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline")
    return left


class _Timed:
    """Waits for bytes no longer than the silence that is allowed, nor past the thread's deadline."""

    silence_s: float = 10.0

    def recv_into(self, *arguments: Any) -> int:
        self.settimeout(min(self.silence_s, remaining_s()))  # type: ignore[attr-defined]
        return super().recv_into(*arguments)  # type: ignore[misc]


class TimedSocket(_Timed, socket.socket):
    """A plain socket with a deadline."""


class TimedTlsSocket(_Timed, ssl.SSLSocket):
    """A TLS socket with a deadline."""


def pools(resolver: Resolver, *, timeout_s: float, per_host: int) -> urllib3.PoolManager:
    """Return connection pools by host. They take no proxy from the environment, retry nothing and follow nothing."""

    class Checked:
        def _new_conn(self) -> socket.socket:
            return _connect(resolver, self.host, self.port, timeout_s)  # type: ignore[attr-defined]

    http = type("CheckedHttp", (Checked, HTTPConnection), {})
    https = type("CheckedHttps", (Checked, HTTPSConnection), {})
    manager = urllib3.PoolManager(
        num_pools=POOLS, maxsize=per_host, retries=False, timeout=timeout_s, ssl_context=_tls(timeout_s)
    )
    manager.pool_classes_by_scheme = {
        "http": type("HttpPool", (HTTPConnectionPool,), {"ConnectionCls": http}),
        "https": type("HttpsPool", (HTTPSConnectionPool,), {"ConnectionCls": https}),
    }
    return manager


def _tls(timeout_s: float) -> ssl.SSLContext:
    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
    context.load_default_certs()
    context.sslsocket_class = type("TlsSocket", (TimedTlsSocket,), {"silence_s": timeout_s})
    return context


def _connect(resolver: Resolver, host: str, port: int, timeout_s: float) -> socket.socket:
    """Connect to the first checked address that answers; the name stays what Host and SNI say."""
    failure: OSError = OSError("no address")
    for address in resolver.addresses(host, port):
        connection = TimedSocket(address.family, socket.SOCK_STREAM)
        connection.silence_s = timeout_s
        try:
            connection.settimeout(min(timeout_s, remaining_s()))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.connect((address.ip, port))
            return connection
        except OSError as error:
            connection.close()
            failure = error
    raise failure
