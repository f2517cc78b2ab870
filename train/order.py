"""The data order: global batch k as a pure function of (seed, k).

Each bucket has an endless stream: its samples permuted for epoch 0, then for epoch 1, and so on.
Batch j of a bucket is the stream's positions [j G, (j + 1) G), so a batch that an epoch cannot fill
takes its rest from the next epoch and nothing is dropped. Epoch e of the run holds the batches that
the buckets complete in it, shuffled. World size, micro-batch and workers appear nowhere.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

_PERMUTE_SAMPLES, _PERMUTE_BATCHES = 1, 2


@dataclass(frozen=True, kw_only=True)
class Pick:
    """One place in a global batch."""

    row: int
    """Row of the index."""
    epoch: int
    """How often the row was seen before; chooses flip and jitter."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which samples make global batch k."""

    buckets: tuple[np.ndarray, ...]
    """Rows of the index in each aspect bucket."""
    global_batch: int
    """Samples of each batch, G."""
    seed: int
    """Seed of every permutation."""

    def batch(self, step: int) -> list[Pick]:
        """Return the samples of global batch `step`, all from one bucket."""
        bucket, number = self._slot(step)
        rows = self.buckets[bucket]
        picks = []
        for position in range(number * self.global_batch, (number + 1) * self.global_batch):
            epoch, place = divmod(position, len(rows))
            picks.append(Pick(row=int(rows[_permutation(self.seed, epoch, bucket, len(rows))[place]]), epoch=epoch))
        return picks

    def batches_before(self, epoch: int) -> int:
        """Return how many batches the buckets complete before `epoch`."""
        return sum(epoch * len(rows) // self.global_batch for rows in self.buckets)

    def _slot(self, step: int) -> tuple[int, int]:
        """Return the bucket of global batch `step` and the batch's number in the bucket's stream."""
        num_samples = sum(len(rows) for rows in self.buckets)
        epoch = step * self.global_batch // num_samples  # the batches before it are at most `step`
        while self.batches_before(epoch + 1) <= step:
            epoch += 1
        slots = self._slots(epoch)
        shuffled = np.random.default_rng((self.seed, _PERMUTE_BATCHES, epoch)).permutation(len(slots))
        return slots[shuffled[step - self.batches_before(epoch)]]

    def _slots(self, epoch: int) -> list[tuple[int, int]]:
        """Return (bucket, number) of every batch that is completed in `epoch`."""
        return [
            (bucket, number)
            for bucket, rows in enumerate(self.buckets)
            for number in range(epoch * len(rows) // self.global_batch, (epoch + 1) * len(rows) // self.global_batch)
        ]


def rank_positions(*, rank: int, world_size: int, micro_batch: int, grad_accumulation: int) -> list[tuple[int, ...]]:
    """Return, for each micro-step, the places of the global batch that the rank computes."""
    starts = [(micro_step * world_size + rank) * micro_batch for micro_step in range(grad_accumulation)]
    return [tuple(range(start, start + micro_batch)) for start in starts]


@functools.lru_cache(maxsize=128)
def _permutation(seed: int, epoch: int, bucket: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, _PERMUTE_SAMPLES, epoch, bucket)).permutation(size)
