"""How many requests each host gets at once from all processes of a run: the books, kept in one place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

LOST_AFTER_S = 60.0
"""A process that was not heard from for so long has died, and its requests with it."""
SWEPT_EVERY_S = 1.0


class Asked(NamedTuple):
    """What a process says of one host."""

    under_way: int
    """Its requests to the host just now; what it was granted beyond them it gives back."""
    waiting: int
    """Requests that it would make."""
    pause_s: float = 0.0
    """How long the host is to be left alone, as far as this process knows."""
    delay_s: float = 0.0
    """Crawl-delay of the host; 0 without one."""


class Granted(NamedTuple):
    """What it is answered."""

    at_once: int
    """Requests that it may have under way, fewer than it has where others wait; of a host with a delay, one, once."""
    pause_s: float
    """How long the host is to be left alone, as far as any process knows."""


Exchange = Callable[[str, Mapping[str, Asked]], dict[str, Granted]]
"""From a process's name and what it says of some hosts to what it is granted."""


@dataclass
class _Books:
    granted: dict[str, int] = field(default_factory=dict)
    """By process: requests that it may have under way."""
    queue: dict[str, None] = field(default_factory=dict)
    """Processes that wait and have been granted nothing, the longest waiting first."""
    free_at: float = 0.0


class Limits:
    """Shares `at_once` requests to each host among the processes that ask for it.

    Each process gets an equal share, rounded up; where there are more processes than requests,
    they take turns. What a process says replaces what was known of it, so the books can be lost
    and grow again.
    """

    def __init__(self, at_once: int, lost_after_s: float = LOST_AFTER_S) -> None:
        self._at_once, self._lost_after_s = at_once, lost_after_s
        self._hosts: dict[str, _Books] = {}
        self._heard_at: dict[str, float] = {}
        self._swept_at = 0.0
        self._lock = threading.Lock()

    def exchange(self, process: str, asked: Mapping[str, Asked]) -> dict[str, Granted]:
        """Note what a process says of its hosts and return what it may do."""
        with self._lock:
            now = time.monotonic()
            self._sweep(now)
            self._heard_at[process] = now
            return {host: self._share(process, host, said, now) for host, said in asked.items()}

    def _sweep(self, now: float) -> None:
        """Forget processes that have died and hosts of which nothing is to be known."""
        if now - self._swept_at < min(SWEPT_EVERY_S, self._lost_after_s):
            return
        self._swept_at = now
        for name in [name for name, heard_at in self._heard_at.items() if now - heard_at > self._lost_after_s]:
            del self._heard_at[name]
            for books in self._hosts.values():
                books.granted.pop(name, None)
                books.queue.pop(name, None)
        self._hosts = {n: b for n, b in self._hosts.items() if b.granted or b.queue or b.free_at > now}

    def _share(self, process: str, host: str, said: Asked, now: float) -> Granted:
        books = self._hosts.setdefault(host, _Books())
        books.free_at = max(books.free_at, now + said.pause_s)
        limit = 1 if said.delay_s else self._at_once
        rivals = (books.granted.keys() | books.queue.keys()) - {process}
        share = -(-limit // (len(rivals) + 1))
        granted = said.under_way
        if said.waiting and now >= books.free_at:
            granted += max(0, min(_free(process, books, limit) - granted, share - granted))
        _note(books, process, granted, waits=said.waiting > 0)
        if said.delay_s and granted > said.under_way:
            books.free_at = now + said.delay_s
        takes_turns = granted == said.under_way and len(rivals) >= limit and books.queue
        return Granted(0 if takes_turns else min(granted, share), max(0.0, books.free_at - now))


def _free(process: str, books: _Books, limit: int) -> int:
    """Return how many requests are left for a process, after those that waited before it have one each."""
    before = list(books.queue).index(process) if process in books.queue else len(books.queue)
    return limit - sum(count for name, count in books.granted.items() if name != process) - before


def _note(books: _Books, process: str, granted: int, *, waits: bool) -> None:
    books.granted.pop(process, None)
    if granted:
        books.granted[process] = granted
    if granted or not waits:
        books.queue.pop(process, None)
    else:
        books.queue.setdefault(process)
