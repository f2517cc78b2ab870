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
from curate.crawl.consent import is_reserved, read_tdmrep, usage_rules
from curate.crawl.errors import FetchError
from curate.crawl.fetch import Web, place

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
    usage: Protego | None = None
    """Allows what robots.txt does not want to be used."""
    reserved: list[str] | None = None
    delay_s: float | None = None
    """Crawl-delay."""
    trouble: FetchError | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Sites:
    """The hosts' files, read once a day by each process."""

    def __init__(self, web: Web, token: str, consent: Collection[str]) -> None:
        self._web, self._token = web, token
        self._heeds_robots, self._heeds_usage = "robots_txt" in consent, "robots_usage" in consent
        self._reads_tdmrep = "tdmrep" in consent
        self._sites: OrderedDict[str, _Site] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, target: Url, found: dict[str, str | None]) -> None:
        """Note in `found` what the host's files say of a URL; raises FetchError where they exclude it."""
        if not (self._heeds_robots or self._heeds_usage or self._reads_tdmrep):
            return
        site = self._known(target)
        if site.trouble is not None:
            raise site.trouble.again()
        if self._heeds_robots:
            self._check_robots(site, target, found)
        if self._heeds_usage:
            self._check_usage(site, target, found)
        if self._reads_tdmrep:
            self._check_tdmrep(site, target, found)

    def _check_robots(self, site: _Site, target: Url, found: dict[str, str | None]) -> None:
        allowed = site.robots is None or site.robots.can_fetch(target.url, self._token)
        found["robots_txt"] = "none" if site.robots is None else "allowed" if allowed else "disallowed"
        if not allowed:
            raise FetchError(sample.OPT_OUT_ROBOTS_TXT, "robots.txt disallows it")

    def _check_usage(self, site: _Site, target: Url, found: dict[str, str | None]) -> None:
        refused = site.usage is not None and site.usage.can_fetch(target.url, self._token)
        found["robots_usage"] = "none" if site.usage is None else "refused" if refused else "not refused"
        if refused:
            raise FetchError(sample.OPT_OUT_ROBOTS_USAGE, "Content-Usage in robots.txt refuses training")

    def _check_tdmrep(self, site: _Site, target: Url, found: dict[str, str | None]) -> None:
        reserved = site.reserved is not None and is_reserved(target.request_uri, site.reserved)
        found["tdmrep"] = "none" if site.reserved is None else "1" if reserved else "0"
        if reserved:
            raise FetchError(sample.OPT_OUT_TDMREP, "tdmrep.json reserves it")

    def _known(self, target: Url) -> _Site:
        origin = f"{target.scheme}://{target.netloc}"
        with self._lock:
            site = self._sites.setdefault(origin, _Site())
            self._sites.move_to_end(origin)
            if len(self._sites) > MOST_SITES:
                self._sites.popitem(last=False)
        if site.known_until < time.monotonic():
            with site.lock:
                if site.known_until < time.monotonic():
                    self._read(origin, site)
        if site.delay_s:
            self._web.space(place(target), site.delay_s)  # each time: hosts with nothing under way are forgotten
        return site

    def _read(self, origin: str, site: _Site) -> None:
        """Read the files anew; a Crawl-delay holds for what is asked after them."""
        site.robots = site.usage = site.reserved = site.trouble = None
        try:
            if self._heeds_robots or self._heeds_usage:
                self._parse(self._file(f"{origin}/robots.txt"), site)
            if self._reads_tdmrep:
                text = self._file(f"{origin}/.well-known/tdmrep.json")
                site.reserved = None if text is None else _reserved(text)
        except FetchError as error:
            site.trouble = error
        site.delay_s = site.robots.crawl_delay(self._token) if site.robots is not None else None
        site.known_until = time.monotonic() + (TROUBLE_KNOWN_FOR_S if site.trouble else KNOWN_FOR_S)

    @staticmethod
    def _parse(text: str | None, site: _Site) -> None:
        if text is None:
            return
        rules = usage_rules(text)
        site.robots, site.usage = Protego.parse(text), None if rules is None else Protego.parse(rules)

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
    except (ValueError, RecursionError):
        return None
