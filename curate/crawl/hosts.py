"""Politeness: turns to ask a host, within what all processes may do together, pauses, delays and a circuit breaker."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from curate import sample
from curate.crawl.errors import FetchError
from curate.crawl.limits import Asked, Exchange, Granted

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

TICK_S = 0.1
"""How often a process says anew what it has under way at a host, and gives back what it does not use."""
MOST_PAUSE_S = 86_400.0
"""Longest pause and longest delay; whoever asks for more is asked by a later run anyway."""
MOST_HOSTS = 100_000
"""After so many new hosts, those of which nothing is to be known are forgotten."""
GAP_S = 0.02
"""Pause between two exchanges, in which requests for other hosts gather."""


@dataclass
class _Host:
    turns: threading.Condition
    at_once: int = 0
    """Requests that were granted to this process."""
    under_way: int = 0
    waiting: int = 0
    ask_at: float = 0.0
    """When to speak of this host again."""
    delay_s: float = 0.0
    paused_until: float = 0.0
    failed_in_a_row: int = 0


class Hosts:
    """What this process knows of each host.

    A host that failed `failures` times in a row is left alone for `pause_s`; after that one more
    failure is enough. A host that answers Retry-After is left alone as long as it asks for, one
    with a Crawl-delay is asked once in that time. `exchange` carries all of that to the other
    processes. Nobody waits longer than `longest_wait_s` for a pause or a delay.
    """

    def __init__(self, exchange: Exchange, *, failures: int, pause_s: float, longest_wait_s: float) -> None:
        self._exchange, self._name = exchange, uuid.uuid4().hex
        self._failures, self._pause_s, self._longest_wait_s = failures, pause_s, longest_wait_s
        self._hosts: dict[str, _Host] = {}
        self._forgets_at = MOST_HOSTS
        self._open: set[str] = set()
        """Hosts of which there is something to say."""
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._speaker: threading.Thread | None = None
        self._ended = False

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Wait for a turn to ask the host; raises FetchError where that would take too long."""
        with self._lock:
            host = self._host(name)
            self._take(name, host)
        try:
            yield
        except FetchError as error:
            self._failed(name, host, error)
            raise
        else:
            host.failed_in_a_row = 0
        finally:
            with self._lock:
                host.under_way -= 1
                if host.under_way >= host.at_once:
                    host.ask_at = 0.0
                    self._news.notify()
                host.turns.notify()

    def space(self, name: str, delay_s: float) -> None:
        """Make one request to the host in `delay_s` seconds from now on."""
        with self._lock:
            self._host(name).delay_s = min(delay_s, MOST_PAUSE_S)

    def _host(self, name: str) -> _Host:
        if name not in self._hosts:
            self._forget()
            self._hosts[name] = _Host(turns=threading.Condition(self._lock))
        return self._hosts[name]

    def _forget(self) -> None:
        """Drop the hosts that nobody asks or is to spare just now, where there are many.

        Their failures are forgotten, too, and their delays: whoever asks such a host says its delay again.
        """
        if len(self._hosts) < self._forgets_at:
            return
        now = time.monotonic()
        self._hosts = {
            name: host
            for name, host in self._hosts.items()
            if name in self._open or host.under_way or host.waiting or host.paused_until > now
        }
        self._forgets_at = MOST_HOSTS + len(self._hosts)

    def _take(self, name: str, host: _Host) -> None:
        gives_up_at = time.monotonic() + self._longest_wait_s
        if host.waiting * host.delay_s > self._longest_wait_s:
            raise _not_now(name, host, 0.0)
        host.waiting += 1
        try:
            while host.under_way >= host.at_once:
                self._check_wait(name, host, gives_up_at)
                self._speak_of(name, host)
                host.turns.wait(max(0.0, gives_up_at - time.monotonic()) if host.delay_s else None)
        finally:
            host.waiting -= 1
        host.under_way += 1
        if host.delay_s:
            host.at_once = 0
            host.paused_until = time.monotonic() + host.delay_s

    def _check_wait(self, name: str, host: _Host, gives_up_at: float) -> None:
        if self._ended:
            raise RuntimeError("who keeps the limits of the hosts is gone")
        pause_s = host.paused_until - time.monotonic()
        if pause_s > self._longest_wait_s or (host.delay_s and time.monotonic() >= gives_up_at):
            raise _not_now(name, host, pause_s)

    def _failed(self, name: str, host: _Host, error: FetchError) -> None:
        with self._lock:
            if error.status in TROUBLE:
                host.failed_in_a_row += 1
                pause_s = self._pause_s if host.failed_in_a_row >= self._failures else 0.0
                self._pause(name, max(pause_s, error.retry_after_s or 0.0))
            elif error.status not in (sample.HOST_PAUSED, sample.NOT_REQUESTED):
                host.failed_in_a_row = 0

    def _pause(self, name: str, pause_s: float) -> None:
        if pause_s <= 0:
            return
        host = self._hosts[name]
        host.paused_until = max(host.paused_until, time.monotonic() + min(pause_s, MOST_PAUSE_S))
        host.at_once = 0
        host.ask_at = 0.0
        self._speak_of(name, host)
        host.turns.notify_all()

    def _speak_of(self, name: str, host: _Host) -> None:
        if name not in self._open:
            host.ask_at = 0.0
            self._open.add(name)
        if self._speaker is None:
            self._speaker = threading.Thread(target=self._speak, daemon=True)
            self._speaker.start()
        self._news.notify()

    def _speak(self) -> None:
        """Exchange until who keeps the limits has ended; whoever waits then is told."""
        with suppress(ConnectionError):
            try:
                while True:
                    self._exchange_once()
                    time.sleep(GAP_S)
            finally:
                with self._lock:
                    self._ended = True
                    for name in self._open:
                        self._hosts[name].turns.notify_all()

    def _exchange_once(self) -> None:
        with self._lock:
            asked = self._gathered()
        granted = self._exchange(self._name, asked)
        with self._lock:
            for name, answer in granted.items():
                self._heed(name, answer)

    def _gathered(self) -> dict[str, Asked]:
        """Wait until there is something to say, and return it."""
        while True:
            now = time.monotonic()
            due = [name for name in self._open if self._hosts[name].ask_at <= now]
            if due:
                return {name: self._said(self._hosts[name], now) for name in due}
            next_at = min((self._hosts[name].ask_at for name in self._open), default=None)
            self._news.wait(None if next_at is None else next_at - now)

    @staticmethod
    def _said(host: _Host, now: float) -> Asked:
        host.at_once = min(host.at_once, host.under_way)
        host.ask_at = now + TICK_S
        return Asked(host.under_way, host.waiting, max(0.0, host.paused_until - now), host.delay_s)

    def _heed(self, name: str, answer: Granted) -> None:
        host, now = self._hosts[name], time.monotonic()
        is_news = host.paused_until > now + answer.pause_s + TICK_S
        host.at_once = 0 if is_news else answer.at_once
        if not host.at_once and not host.under_way and not host.waiting and not is_news:
            self._open.discard(name)
        host.paused_until = max(host.paused_until, now + answer.pause_s)
        if host.at_once > host.under_way:
            host.turns.notify(host.at_once - host.under_way)
        elif answer.pause_s:
            host.ask_at = max(host.ask_at, host.paused_until)
            host.turns.notify_all()


def _not_now(name: str, host: _Host, pause_s: float) -> FetchError:
    if host.delay_s:
        return FetchError(
            sample.NOT_REQUESTED, f"{name} asks for {host.delay_s:g} s between requests: the next run asks"
        )
    return FetchError(sample.HOST_PAUSED, f"{name} is left alone", retry_after_s=pause_s)
