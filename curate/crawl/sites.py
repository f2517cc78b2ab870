"""What a host says before anything is asked of it: robots.txt and tdmrep.json, kept for each host."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from protego import Protego
from urllib3.util import Url

from curate import sample
from curate.crawl.consent import is_reserved, read_tdmrep
from curate.crawl.errors import FetchError
from curate.crawl.fetch import Web

KNOWN_FOR_S = 86_400.0
"""RFC 9309, 2.4: robots.txt is not used from a cache for more than a day."""
TROUBLE_KNOWN_FOR_S = 60.0
MOST_BYTES = 2_000_000
MOST_SITES = 100_000
NO_FILE = frozenset({sample.HTTP_GONE, sample.HTTP_REFUSED, sample.HTTP_OTHER, sample.REDIRECTS})
"""RFC 9309, 2.3.1.2 and 2.3.1.3: the file is not available, and nothing is excluded."""
UNKNOWN = frozenset(
    {sample.HTTP_BUSY, sample.HTTP_SERVER_ERROR, sample.TOO_MANY_BYTES, sample.CONTENT_ENCODING, sample.MISSING_URL}
)
"""RFC 9309, 2.3.1.4: the host is there, its rules are not known, and everything is excluded."""


@dataclass
class _Site:
    known_until: float = 0.0
    robots: Protego | None = None
    reserved: list[str] | None = None
    trouble: FetchError | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Sites:
    """The hosts' files, read once a day by each process."""

    def __init__(self, web: Web, token: str, consent: Collection[str]) -> None:
        self._web, self._token = web, token
        self._reads_robots, self._reads_tdmrep = "robots_txt" in consent, "tdmrep" in consent
        self._sites: OrderedDict[str, _Site] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, target: Url, found: dict[str, str | None]) -> None:
        """Note in `found` what the host's files say of a URL; raises FetchError where they exclude it."""
        if not (self._reads_robots or self._reads_tdmrep):
            return
        site = self._known(f"{target.scheme}://{target.netloc}")
        if site.trouble is not None:
            raise site.trouble.again()
        if self._reads_robots:
            allowed = site.robots is None or site.robots.can_fetch(target.url, self._token)
            found["robots_txt"] = "none" if site.robots is None else "allowed" if allowed else "disallowed"
            if not allowed:
                raise FetchError(sample.OPT_OUT_ROBOTS_TXT, "robots.txt disallows it")
        if self._reads_tdmrep:
            reserved = site.reserved is not None and is_reserved(target.request_uri, site.reserved)
            found["tdmrep"] = "none" if site.reserved is None else "1" if reserved else "0"
            if reserved:
                raise FetchError(sample.OPT_OUT_TDMREP, "tdmrep.json reserves it")

    def _known(self, origin: str) -> _Site:
        with self._lock:
            site = self._sites.setdefault(origin, _Site())
            self._sites.move_to_end(origin)
            if len(self._sites) > MOST_SITES:
                self._sites.popitem(last=False)
        if site.known_until < time.monotonic():
            with site.lock:
                if site.known_until < time.monotonic():
                    self._read(origin, site)
        return site

    def _read(self, origin: str, site: _Site) -> None:
        site.robots = site.reserved = site.trouble = None
        try:
            if self._reads_robots:
                text = self._file(f"{origin}/robots.txt")
                site.robots = None if text is None else Protego.parse(text)
            if self._reads_tdmrep:
                text = self._file(f"{origin}/.well-known/tdmrep.json")
                site.reserved = None if text is None else _reserved(text)
        except FetchError as error:
            site.trouble = error
        site.known_until = time.monotonic() + (TROUBLE_KNOWN_FOR_S if site.trouble else KNOWN_FOR_S)

    def _file(self, url: str) -> str | None:
        """Return the file's text, None where there is none; raises FetchError where that cannot be known."""
        try:
            return self._web.get(url, max_bytes=MOST_BYTES).body.decode("utf-8-sig", "replace")
        except FetchError as error:
            if error.status in NO_FILE:
                return None
            status = sample.OPT_OUT_UNKNOWN if error.status in UNKNOWN else error.status
            name = url.rpartition("/")[2]
            raise FetchError(status, f"{name}: {error.message}", retry_after_s=error.retry_after_s) from error


def _reserved(text: str) -> list[str] | None:
    """Return the reserved locations; a page that a host shows for every missing file is no tdmrep.json."""
    try:
        return read_tdmrep(text)
    except ValueError:
        return None
