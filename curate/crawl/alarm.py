"""The alarm: a run that goes wrong everywhere stops, before it marks a whole list as failed."""

from __future__ import annotations

import threading
from collections import Counter, deque

from curate import sample

ALARMING = frozenset(
    {
        sample.DNS,
        sample.TIMEOUT,
        sample.DEADLINE,
        sample.CONNECTION,
        sample.TLS,
        sample.ADDRESS_REFUSED,
        sample.HOST_PAUSED,
        sample.HTTP_REFUSED,
        sample.HTTP_BUSY,
        sample.HTTP_SERVER_ERROR,
        sample.OPT_OUT_UNKNOWN,
    }
)
"""Failures that may be this side's: its network, its names, its being blocked. Lost pictures and opt-outs are not."""


class Alarm:
    """Watches the last requests of one shard; `raised` says why they should be the last."""

    def __init__(self, share: float | None, requests: int) -> None:
        self._share, self._last = share, deque[tuple[str, str | None]](maxlen=requests)
        self._failed = 0
        self._lock = threading.Lock()
        self.raised: str | None = None

    def count(self, status: str, host: str | None) -> None:
        """Count one finished request."""
        if self._share is None:
            return
        with self._lock:
            if len(self._last) == self._last.maxlen:
                self._failed -= self._last[0][0] in ALARMING
            self._last.append((status, host))
            self._failed += status in ALARMING
            full = len(self._last) == self._last.maxlen
            if full and self.raised is None and self._failed > self._share * len(self._last):
                self.raised = self._words()

    def _words(self) -> str:
        failed = [(status, host) for status, host in self._last if status in ALARMING]
        classes = ", ".join(f"{status} {count}" for status, count in Counter(s for s, _ in failed).most_common(4))
        hosts = ", ".join(f"{host} {count}" for host, count in Counter(h for _, h in failed if h).most_common(3))
        return f"{len(failed)} of the last {len(self._last)} requests failed ({classes}; most often {hosts})"
