"""One GET: checked address at every hop, limits of size, time and redirects, and a class for every failure."""

from __future__ import annotations

import http.client
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin

import urllib3
from urllib3 import exceptions
from urllib3.util import Url, parse_url

from curate import sample
from curate.config import IngestConfig
from curate.crawl.addresses import Resolver
from curate.crawl.connections import CLOCK, pools
from curate.crawl.errors import FetchError
from curate.crawl.hosts import MOST_PAUSE_S, Hosts
from curate.crawl.limits import Exchange

REDIRECT = frozenset({301, 302, 303, 307, 308})
DEFAULT_PORT = {"http": 80, "https": 443}
DRAINED_BYTES = 65_536
"""A body up to this is read and thrown away, which costs less than another connection."""

Hop = Callable[[Url], None]
"""Called with each URL before it is asked; raises FetchError to leave it."""
Headers = Callable[[Url, urllib3.BaseHTTPResponse], None]
"""Called with the headers of each redirect, and of the answer before its body is read; raises FetchError to end it."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A successful answer."""

    body: bytes
    http_status: int
    url: str


class Web:
    """GETs of one process: pools, names and hosts are shared by its threads; the limits of hosts, by all processes."""

    def __init__(self, settings: IngestConfig, exchange: Exchange) -> None:
        resolver = Resolver(allowed_networks=settings.allowed_networks, ports=settings.ports)
        self._pools = pools(resolver, timeout_s=settings.timeout_s, per_host=settings.requests_per_host)
        self._hosts = Hosts(
            exchange,
            failures=settings.host_failures,
            pause_s=settings.host_pause_s,
            longest_wait_s=settings.longest_wait_s,
        )
        self._max_redirects, self._deadline_s = settings.max_redirects, settings.deadline_s
        self._headers = {"User-Agent": user_agent(settings), "Accept-Encoding": "identity", "Accept": "*/*"}

    def get(
        self, url: str | Url, *, max_bytes: int, before_hop: Hop | None = None, before_body: Headers | None = None
    ) -> Reply:
        """Return the answer at the end of all redirects; raises FetchError for everything else."""
        target, left_s = parsed(url) if isinstance(url, str) else url, self._deadline_s
        for _ in range(self._max_redirects + 1):
            if before_hop is not None:
                before_hop(target)
            with self._hosts.turn(place(target)):
                started = time.monotonic()
                CLOCK.ends_at = started + left_s
                reply = self._hop(target, max_bytes, before_body)
                left_s -= time.monotonic() - started
            if isinstance(reply, Reply):
                return reply
            target = parsed(_absolute(target.url, reply))
        raise FetchError(sample.REDIRECTS, f"more than {self._max_redirects} redirects")

    def space(self, host: str, delay_s: float) -> None:
        """Make one request to the host (as `place` has it) in `delay_s` seconds from now on."""
        self._hosts.space(host, delay_s)

    def _hop(self, target: Url, max_bytes: int, before_body: Headers | None) -> Reply | str:
        """Return the answer, or where it redirects to."""
        response = None
        try:
            response = self._ask(target)
            redirect = response.headers.get("Location") if response.status in REDIRECT else None
            if redirect is None and not 200 <= response.status < 300:
                raise _status_error(response)
            if before_body is not None:
                before_body(target, response)
            if redirect is not None:
                return redirect
            return Reply(body=_body(response, max_bytes), http_status=response.status, url=target.url)
        except (exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            raise FetchError(_class_of(error), _words(error)) from error
        finally:
            if response is not None:
                _let_go(response)
            CLOCK.ends_at = float("inf")

    def _ask(self, target: Url) -> urllib3.BaseHTTPResponse:
        pool = self._pools.connection_from_host(target.host, target.port, target.scheme)
        return pool.urlopen(
            "GET",
            target.request_uri,
            headers=self._headers,
            redirect=False,
            retries=False,
            preload_content=False,
            decode_content=False,
        )


def user_agent(settings: IngestConfig) -> str:
    """Return the User-Agent header: the token that robots.txt may address, and where the owner of a site can ask."""
    contact = f" (+{settings.contact})" if settings.contact else ""
    return f"Mozilla/5.0 (compatible; {settings.user_agent_token}/1.0){contact}"


def parsed(url: str) -> Url:
    """Return a URL that may be asked; raises FetchError for other schemes, user names and what is no URL."""
    try:
        target = parse_url(url)
    except exceptions.LocationParseError as error:
        raise FetchError(sample.MISSING_URL, f"not a URL: {error}") from error
    if target.scheme not in DEFAULT_PORT or not target.host:
        raise FetchError(sample.MISSING_URL, f"not an http or https URL: {url[:100]}")
    if target.auth:
        raise FetchError(sample.MISSING_URL, "a URL with a user name")
    return target._replace(fragment=None)


def _absolute(url: str, location: str) -> str:
    """Return where a Location header leads; raises FetchError where it is no URL."""
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise FetchError(sample.MISSING_URL, f"a redirect to no URL: {error}") from error


def place(target: Url) -> str:
    """Return host:port, without the port where it is the scheme's own."""
    port = target.port or DEFAULT_PORT[target.scheme or "http"]
    return f"{target.host}" if port == DEFAULT_PORT[target.scheme or "http"] else f"{target.host}:{port}"


def _status_error(response: urllib3.BaseHTTPResponse) -> FetchError:
    return FetchError(
        sample.http_class(response.status),
        f"HTTP {response.status}",
        http_status=response.status,
        retry_after_s=_retry_after_s(response.headers.get("Retry-After")),
    )


def _retry_after_s(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110, 10.2.3), a day at most; None where it is not readable."""
    if value is None:
        return None
    try:
        if value.strip().isdecimal():
            return min(float(value), MOST_PAUSE_S)
        return min(max(0.0, parsedate_to_datetime(value).timestamp() - time.time()), MOST_PAUSE_S)
    except (ValueError, OverflowError):  # OverflowError: a year or a time zone of many digits
        return None


def _body(response: urllib3.BaseHTTPResponse, max_bytes: int) -> bytes:
    announced = _left_bytes(response)
    if announced is not None and announced > max_bytes:
        raise FetchError(sample.TOO_MANY_BYTES, f"{announced} bytes announced, {max_bytes} are allowed")
    body = response.read(max_bytes + 1, decode_content=False)
    if len(body) > max_bytes:
        raise FetchError(sample.TOO_MANY_BYTES, f"more than {max_bytes} bytes")
    if left := _left_bytes(response):
        raise FetchError(sample.CONNECTION, f"ended {left} bytes early")
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    return body if encoding in ("", "identity") else _decoded(body, encoding, max_bytes)


def _left_bytes(response: urllib3.BaseHTTPResponse) -> int | None:
    """Return how much of the body was announced and not read yet; None where nothing that can be relied on was."""
    return response.length_remaining  # type: ignore[attr-defined, no-any-return]


def _decoded(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undo an encoding that was not asked for, up to the limit."""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise FetchError(sample.CONTENT_ENCODING, f"Content-Encoding: {encoding[:40]}")
    try:
        decoded = zlib.decompressobj(wbits=47).decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise FetchError(sample.CONTENT_ENCODING, f"{encoding}: {error}") from error
    if len(decoded) > max_bytes:
        raise FetchError(sample.TOO_MANY_BYTES, f"more than {max_bytes} bytes after {encoding}")
    return decoded


def _let_go(response: urllib3.BaseHTTPResponse) -> None:
    """Keep the connection for the next request where little of the answer is left; close it otherwise."""
    left = _left_bytes(response)
    if not response.closed and left is not None and left <= DRAINED_BYTES:
        response.drain_conn()
    if not response.closed:
        response.close()
    response.release_conn()


def _class_of(error: BaseException) -> str:
    if CLOCK.ends_at <= time.monotonic():
        return sample.DEADLINE
    for cause in _causes(error):
        if isinstance(cause, exceptions.TimeoutError | TimeoutError):
            return sample.TIMEOUT
        if isinstance(cause, exceptions.SSLError):
            return sample.TLS
    return sample.CONNECTION


def _causes(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _words(error: BaseException) -> str:
    """Return what happened without addresses of objects, so that two runs say the same."""
    cause = _causes(error)[-1]
    return f"{type(cause).__name__}: {cause}"[:200]
