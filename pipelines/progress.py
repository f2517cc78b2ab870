"""One live line for a running step: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LOG_EVERY_S = 10.0
LOG_SILENCE_S = 60.0
"""Time without a finished fragment after which a log is told that the step is still at work."""


class Progress:
    """Counts fragments and rows of one step on stderr."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self._name, self._total, self._done = name, total, done
        self._already, self._rows = done, 0
        self._started = self._said = time.monotonic()
        self._bar: Any = None
        self._ended = threading.Event()

    def __enter__(self) -> Progress:
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description:<14}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._total, completed=self._done, rate="")
        else:
            threading.Thread(target=self._break_silence, daemon=True).start()
        return self

    def _break_silence(self) -> None:
        while not self._ended.wait(LOG_SILENCE_S):
            if time.monotonic() - self._said >= LOG_SILENCE_S:
                at_work = timedelta(seconds=round(time.monotonic() - self._started))
                told = f"{self._name:<14} {self._done}/{self._total} fragments, at work for {at_work}"
                print(told, file=sys.stderr, flush=True)

    def advance(self, rows: int) -> None:
        """Count one finished fragment."""
        self._done += 1
        self._rows += rows
        now = time.monotonic()
        rate = f"{self._rows / max(now - self._started, 1e-9):,.0f} rows/s"
        if self._bar is not None:
            self._bar.update(self._task, advance=1, rate=rate)
        elif now - self._said > LOG_EVERY_S:
            self._said = now
            left = time_left(now - self._started, self._done - self._already, self._total - self._done)
            told = f"{self._name:<14} {self._done}/{self._total} fragments, {rate}, {left} left"
            print(told, file=sys.stderr, flush=True)

    def __exit__(self, kind: Any, *_: object) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()
        new = self._done - self._already
        seconds = time.monotonic() - self._started
        rate = f", {self._rows:,} rows in {seconds:.1f} s, {self._rows / max(seconds, 1e-9):,.0f} rows/s" if new else ""
        ended = "" if kind is None else ", stopped"
        line = f"{self._name:<14} {self._done}/{self._total} fragments, {new} made, {self._already} already there{rate}"
        print(f"{line}{ended}", file=sys.stderr, flush=True)


def time_left(seconds: float, done: int, left: int) -> str:
    """Return the time for what is left as h:mm:ss, at the speed of what was done in `seconds`."""
    return str(timedelta(seconds=round(seconds / done * left)))
