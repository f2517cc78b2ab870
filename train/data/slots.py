"""Memory shared with the workers: one fills a slot, a micro-batch is a view of it, and then the slot is free again.

Nothing large is pickled, copied or newly mapped on the way from a shard to the trainer.
"""

from __future__ import annotations

import math
import os
import shutil
import weakref
from pathlib import Path

import numpy as np
import torch

from curate.bad_input import BadInput

SHARED_MEMORY = Path("/dev/shm")


class Slots:
    """Equal stretches of one shared allocation; lives in the trainer."""

    def __init__(self, num_slots: int, slot_bytes: int) -> None:
        _require_room(num_slots * slot_bytes)
        self.memory = torch.empty((num_slots, slot_bytes), dtype=torch.uint8).share_memory_()
        self._free = list(range(num_slots))

    def take(self) -> int | None:
        """Return a slot that no tensor is a view of, the one used last; None where the trainer holds on to all."""
        return self._free.pop() if self._free else None

    def lend(self, slot: int, shape: tuple[int, ...], dtype: np.dtype) -> torch.Tensor:
        """Return a taken slot's first bytes as a tensor; the slot is free when the last view of it is gone."""
        array = view(self.memory[slot], shape, dtype)
        weakref.finalize(array, self._free.append, slot).atexit = False  # from_numpy keeps this very array alive
        return torch.from_numpy(array)


def view(slot: torch.Tensor, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return a slot's first bytes as an array, without a copy."""
    return np.frombuffer(slot.numpy(), dtype, count=math.prod(shape)).reshape(shape)


def _require_room(num_bytes: int) -> None:
    """Raise BadInput where shared memory is too small: a write to what is not there ends a process without a word.

    The ranks of a machine ask at about the same time, before any of them has taken its part.
    """
    if not SHARED_MEMORY.is_dir():
        return
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    room = shutil.disk_usage(SHARED_MEMORY)
    if room.free < num_bytes or room.total < ranks * num_bytes:
        raise BadInput(
            f"loader.workers, loader.prefetch: the batches being read take {num_bytes / 1e9:.2f} GB of shared memory"
            f" for each of {ranks} ranks here, but {SHARED_MEMORY} has {room.free / 1e9:.2f} of"
            f" {room.total / 1e9:.2f} GB left; give the container more (--shm-size), or set less"
        )
