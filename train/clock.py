"""Speed, time left, waiting for data, and memory, measured from the first step of this process on."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from train.config import TrainConfig


class Clock:
    """Speed and time left, measured from the first step of this process on."""

    def __init__(self, first_step: int, config: TrainConfig) -> None:
        self._first_step = first_step
        self._config = config
        self._started = self._asked = time.monotonic()
        self._waited_s = 0.0

    @contextmanager
    def waits_for_data(self) -> Iterator[None]:
        """Count the time within as waiting for samples."""
        began = time.monotonic()
        yield
        self._waited_s += time.monotonic() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time within out: it is not training."""
        began = time.monotonic()
        yield
        self._started += time.monotonic() - began
        self._asked += time.monotonic() - began

    def since_last_asked(self, device: torch.device) -> dict[str, float]:
        """Return the share of the time since the last call that went by waiting for samples, and the peak memory.

        The memory is the device's, in 10^9 bytes; on a CPU it is the most that this process ever held.
        """
        now = time.monotonic()
        share = self._waited_s / max(now - self._asked, 1e-9)
        self._asked, self._waited_s = now, 0.0
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else held
        return {"data_wait_share": share, "memory_gb": peak / 1e9}

    def images_per_s(self, step: int) -> float:
        """Return the mean speed so far."""
        return (step - self._first_step) * self._config.batch.global_batch / (time.monotonic() - self._started)

    def seconds_left(self, step: int) -> float:
        """Return the time to the last step at the mean speed so far."""
        return (self._config.steps - step) * self._config.batch.global_batch / self.images_per_s(step)
