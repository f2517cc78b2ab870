"""What watches the steps: a dog that barks where one hangs, and a detector of losses that jump."""

from __future__ import annotations

import faulthandler
import statistics
import sys
from collections import deque
from dataclasses import dataclass
from typing import Literal

from curate.config import require

MAD_OF_A_NORMAL = 0.6745
"""Median absolute deviation of a normal distribution, in standard deviations."""

MAX_HANG_S = 31_536_000
"""A year; the timer does not take any number."""


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """When a step hangs, when a loss jumps or is not finite, and what follows."""

    hang_s: float | None = 900.0
    """Seconds without a finished step after which every rank prints the stacks of its threads; null: never."""
    on_hang: Literal["warn", "stop"] = "warn"
    """warn: stacks are printed again after each such time; stop: the process ends after the first."""
    spike_deviations: float | None = 10.0
    """A loss so many robust standard deviations above the median of the window is a spike; null looks for none."""
    spike_window_steps: int = 200
    """Steps whose losses are looked back on; none is judged before a quarter of them is there."""
    on_spike: Literal["warn", "stop"] = "warn"
    """warn: the spike is printed and counted in the metrics; stop: the run ends with an error before the next step."""

    on_non_finite: Literal["stop", "skip", "roll_back"] = "stop"
    """What follows a loss or gradient that is not finite; it never enters the weights. skip goes on with the next
    batch; roll_back goes back to the newest checkpoint and leaves the batch out from there on."""
    max_roll_backs: int = 3
    """Roll backs of a whole run; the next loss or gradient that is not finite ends it."""
    roll_back_leaves_out_steps: int = 1
    """Batches that a roll back leaves out: the one that was not finite, and those right before it."""

    def __post_init__(self) -> None:
        for name in ("max_roll_backs", "roll_back_leaves_out_steps"):
            require(getattr(self, name) > 0, f"watch.{name}", getattr(self, name), "must be at least 1")
        fits = self.hang_s is None or 0 < self.hang_s <= MAX_HANG_S
        require(fits, "watch.hang_s", self.hang_s, f"must be above 0 and at most {MAX_HANG_S}, or null")
        deviations = self.spike_deviations
        require(deviations is None or deviations > 0, "watch.spike_deviations", deviations, "must be above 0, or null")
        window = self.spike_window_steps
        require(window >= 8, "watch.spike_window_steps", window, "must be at least 8")


class Watchdog:
    """Prints the stacks of all threads of this process where `fed` is not called in time.

    A hang in a collective hangs every rank, so each prints its own. The timer is a thread of the C runtime: it
    works while Python waits inside a library.
    """

    def __init__(self, config: WatchConfig) -> None:
        self._config = config

    def fed(self) -> None:
        """Begin the time anew."""
        if self._config.hang_s is not None:
            stops = self._config.on_hang == "stop"
            faulthandler.dump_traceback_later(self._config.hang_s, repeat=not stops, exit=stops, file=sys.stderr)

    def off(self) -> None:
        """Stop watching."""
        faulthandler.cancel_dump_traceback_later()


class SpikeDetector:
    """Compares each loss with median and median absolute deviation of those before it; spikes do not join them."""

    def __init__(self, config: WatchConfig) -> None:
        self._limit = config.spike_deviations
        self._least = config.spike_window_steps // 4
        self._losses: deque[float] = deque(maxlen=config.spike_window_steps)

    def deviations(self, loss: float) -> float:
        """Return by how many robust standard deviations a loss lies above the median; 0 while too few are known."""
        if len(self._losses) < self._least:
            return 0.0
        middle = statistics.median(self._losses)
        spread = statistics.median(abs(known - middle) for known in self._losses) / MAD_OF_A_NORMAL
        return (loss - middle) / max(spread, 1e-3 * abs(middle), 1e-12)

    def spikes(self, loss: float) -> bool:
        """Return whether a finite loss is a spike, and remember it where it is none."""
        is_spike = self._limit is not None and self.deviations(loss) > self._limit
        if not is_spike:
            self._losses.append(loss)
        return is_spike
