"""Politeness: a limit of concurrent requests to each host, pauses that it asks for, and a circuit breaker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from curate import sample
from curate.crawl.errors import FetchError

TROUBLE = frozenset(
    {
        sample.DNS,
        sample.TIMEOUT,
        sample.DEADLINE,
        sample.CONNECTION,
        sample.TLS,
        sample.HTTP_BUSY,
        sample.HTTP_SERVER_ERROR,
    }
)
"""Failures that say something of the host; the others concern one address."""


@dataclass
class _Host:
    turns: threading.Semaphore
    failed_in_a_row: int = 0
    paused_until: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Hosts:
    """What this process knows of each host.

    A host that failed `failures` times in a row is left alone for `pause_s`; after that one more
    failure is enough. A host that answers Retry-After is left alone as long as it asks for.
    """

    def __init__(self, *, at_once: int, failures: int, pause_s: float, longest_wait_s: float) -> None:
        self._at_once, self._failures = at_once, failures
        self._pause_s, self._longest_wait_s = pause_s, longest_wait_s
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Wait for a turn to ask the host; raises FetchError where that would take too long."""
        host = self._host(name)
        with host.turns:
            self._wait(name, host)
            try:
                yield
            except FetchError as error:
                self._failed(host, error)
                raise
            host.failed_in_a_row = 0

    def _host(self, name: str) -> _Host:
        with self._lock:
            if name not in self._hosts:
                self._hosts[name] = _Host(turns=threading.Semaphore(self._at_once))
            return self._hosts[name]

    def _wait(self, name: str, host: _Host) -> None:
        pause_s = host.paused_until - time.monotonic()
        if pause_s > self._longest_wait_s:
            raise FetchError(sample.HOST_PAUSED, f"{name} is left alone", retry_after_s=pause_s)
        if pause_s > 0:
            time.sleep(pause_s)

    def _failed(self, host: _Host, error: FetchError) -> None:
        if error.status not in TROUBLE:
            if error.status != sample.HOST_PAUSED:
                host.failed_in_a_row = 0
            return
        with host.lock:
            host.failed_in_a_row += 1
            pause_s = self._pause_s if host.failed_in_a_row >= self._failures else 0.0
            host.paused_until = max(host.paused_until, time.monotonic() + max(pause_s, error.retry_after_s or 0.0))
