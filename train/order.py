"""The data order: global batch k as a pure function of (seed, k). docs/data_order.md proves what it promises.

A *group* is the rows of one aspect bucket, source and weight. Each group has an endless stream, its rows
permuted in windows for visit 0, then for visit 1, and so on. A bucket's stream takes from its groups in
even shares, and batch j of the bucket is positions [j G, (j + 1) G) of it, so a batch that an epoch
cannot fill takes its rest from the next one. World size, micro-batch and workers appear nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import floor

import numpy as np

from curate.bad_input import BadInput
from train.permutation import key, permute

_PIECES, _SAMPLES, _ROTATION, _BUCKETS = 1, 2, 3, 4
BLOCK_BATCHES = 256
"""Batches among which buckets are shuffled; every block has each bucket in its share."""

KEPT_STARTS = 4096
"""Starts of epochs that are remembered."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of the index that lie together."""

    bucket: int
    """Number of the aspect bucket."""
    first_row: int
    """First row of the index."""
    num_rows: int
    """Rows, at least 1."""
    repeats: Fraction = Fraction(1)
    """How often an epoch shows each row, above 0."""


@dataclass(frozen=True, kw_only=True)
class Picks:
    """The places of a global batch; rows ascend, so neighbouring places are read from the same piece."""

    rows: np.ndarray
    """Rows of the index, int64 (G,)."""
    visits: np.ndarray
    """How often each row was shown before, int64 (G,); it chooses flip and jitter."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which samples make global batch k."""

    groups: tuple[Group, ...]
    """All rows; a bucket's groups in the order of their rows."""
    global_batch: int
    """Samples of each batch, G."""
    seed: int
    """Seed of every permutation."""
    piece_rows: int
    """Neighbouring rows that are read together."""
    window_pieces: int
    """Pieces from all over the group whose rows are shuffled together."""

    def batch(self, step: int) -> Picks:
        """Return the samples of global batch `step`, all from one bucket."""
        bucket, number = self._slot(step)
        first = self._cut(bucket, number * self.global_batch)
        last = self._cut(bucket, (number + 1) * self.global_batch)
        parts = [
            self._stream(group, low, high)
            for group, low, high in zip(self._of_bucket[bucket], first, last, strict=True)
        ]
        rows, visits = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        by_row = np.lexsort((visits, rows))
        return Picks(rows=rows[by_row], visits=visits[by_row])

    @cached_property
    def num_buckets(self) -> int:
        """Aspect buckets with samples."""
        return 1 + max(group.bucket for group in self.groups)

    def batches_before(self, epoch: int) -> int:
        """Return how many batches the buckets complete before `epoch`."""
        return sum(self._length(bucket, epoch) // self.global_batch for bucket in range(self.num_buckets))

    def carried_over(self, epoch: int) -> int:
        """Return how many samples wait for the next epoch to fill their batch when `epoch` ends."""
        return sum(self._length(bucket, epoch + 1) % self.global_batch for bucket in range(self.num_buckets))

    def _slot(self, step: int) -> tuple[int, int]:
        """Return the bucket of global batch `step` and the batch's number in the bucket's stream."""
        epoch = floor(step * self.global_batch / self._epoch_rows)
        while self.batches_before(epoch + 1) <= step:  # the batches before it are at most `step`
            epoch += 1
        block, place = divmod(step - self.batches_before(epoch), BLOCK_BATCHES)
        shuffled, first_numbers = self._block(epoch, block)
        bucket = int(shuffled[place])
        return bucket, first_numbers[bucket] + int((shuffled[:place] == bucket).sum())

    def _block(self, epoch: int, block: int) -> tuple[np.ndarray, list[int]]:
        """Return the buckets of a block's batches, and each bucket's batches before the block."""
        if (epoch, block) not in self._blocks:
            done = [self._length(bucket, epoch) // self.global_batch for bucket in range(self.num_buckets)]
            more = [self._length(bucket, epoch + 1) // self.global_batch - before for bucket, before in enumerate(done)]
            before = apportion(block * BLOCK_BATCHES, more)
            after = apportion(min((block + 1) * BLOCK_BATCHES, sum(more)), more)
            listed = np.repeat(np.arange(self.num_buckets), np.subtract(after, before))
            places = permute(np.arange(len(listed)), len(listed), key(self.seed, _BUCKETS, epoch, block))
            self._blocks.clear()
            self._blocks[epoch, block] = listed[places], np.add(done, before).tolist()
        return self._blocks[epoch, block]

    def _cut(self, bucket: int, position: int) -> list[int]:
        """Return how much of each group's stream lies before a position of the bucket's stream."""
        epoch = floor(position / self._bucket_rows[bucket])
        while self._length(bucket, epoch + 1) <= position:
            epoch += 1
        done, after = self._taken(bucket, epoch), self._taken(bucket, epoch + 1)
        more = [end - before for before, end in zip(done, after, strict=True)]
        return [before + part for before, part in zip(done, apportion(position - sum(done), more), strict=True)]

    def _stream(self, group: Group, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and visits at the positions low..high - 1 of a group's stream."""
        rows, visits = [], []
        for visit, first, last in _pieces(low, high, group.num_rows):
            rows.append(self._visit(group, visit, first, last))
            visits.append(np.full(last - first, visit))
        empty = np.zeros(0, np.int64)
        return np.concatenate([empty, *rows]), np.concatenate([empty, *visits])

    def _visit(self, group: Group, visit: int, low: int, high: int) -> np.ndarray:
        """Return the rows at the places low..high - 1 of one visit: windows of permuted pieces, shuffled inside."""
        words = (self.seed, group.first_row, visit)
        window_rows = self.piece_rows * self.window_pieces
        shuffled = np.empty(high - low, np.int64)
        for window, first, last in _pieces(low, high, window_rows):
            start = window * window_rows
            size = min(window_rows, group.num_rows - start)
            inside = permute(np.arange(first, last), size, key(_SAMPLES, *words, window))
            shuffled[start + first - low : start + last - low] = start + inside
        slots, inside = np.divmod(shuffled, self.piece_rows)
        pieces = slots.copy()  # the last, short piece keeps its place: the rotation moves it over the rows instead
        whole = slots < group.num_rows // self.piece_rows
        pieces[whole] = permute(slots[whole], max(1, group.num_rows // self.piece_rows), key(_PIECES, *words))
        rotation = key(_ROTATION, *words) % group.num_rows
        return group.first_row + (pieces * self.piece_rows + inside + rotation) % group.num_rows

    def _length(self, bucket: int, epoch: int) -> int:
        """Return the length of a bucket's stream before `epoch`."""
        return sum(self._taken(bucket, epoch))

    def _taken(self, bucket: int, epoch: int) -> list[int]:
        """Return the positions of the streams of a bucket's groups that come before `epoch`."""
        if (bucket, epoch) not in self._starts:
            if len(self._starts) >= KEPT_STARTS:
                self._starts.clear()
            groups = self._of_bucket[bucket]
            self._starts[bucket, epoch] = [floor(epoch * group.repeats * group.num_rows) for group in groups]
        return self._starts[bucket, epoch]

    @cached_property
    def _of_bucket(self) -> list[list[Group]]:
        found: list[list[Group]] = [[] for _ in range(self.num_buckets)]
        for group in self.groups:
            found[group.bucket].append(group)
        return found

    @cached_property
    def _bucket_rows(self) -> list[Fraction]:
        """Rows of an epoch in each bucket, before rounding."""
        return [sum((g.repeats * g.num_rows for g in groups), Fraction(0)) for groups in self._of_bucket]

    @cached_property
    def _epoch_rows(self) -> Fraction:
        return sum(self._bucket_rows, Fraction(0))

    @cached_property
    def _blocks(self) -> dict[tuple[int, int], tuple[np.ndarray, list[int]]]:
        """The block that was asked for last: a memory, not a state."""
        return {}

    @cached_property
    def _starts(self) -> dict[tuple[int, int], list[int]]:
        """What `_taken` worked out lately."""
        return {}


def _pieces(low: int, high: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Cut positions low..high - 1 at the multiples of `size`: yield (multiple, first and last + 1 counted from it)."""
    for number in range(low // size, -(-high // size) if high > low else 0):
        yield number, max(low - number * size, 0), min(high - number * size, size)


def apportion(count: int, sizes: Sequence[int]) -> list[int]:
    """Return how many of the first `count` of sum(sizes) places belong to each size.

    The parts add up to `count`, none ever falls when `count` grows, and at the end each is its size.
    """
    parts, left = [], sum(sizes)
    for size in sizes:
        part = count * size // left if left else 0
        parts.append(part)
        count, left = count - part, left - size
    return parts


def rank_positions(*, rank: int, world_size: int, micro_batch: int, grad_accumulation: int) -> list[tuple[int, ...]]:
    """Return, for each micro-step, the places of the global batch that the rank computes.

    A rank's places are neighbours, and so are the ranks of a node: they read the same pieces.
    """
    assert 0 <= rank < world_size
    first = rank * micro_batch * grad_accumulation
    starts = range(first, first + micro_batch * grad_accumulation, micro_batch)
    return [tuple(range(start, start + micro_batch)) for start in starts]


def repeats_of(lengths: Mapping[str, Fraction | int], shares: dict[str, float] | None) -> dict[str, Fraction]:
    """Return what the weights of each source are multiplied by, so that its share of an epoch is the given one.

    `lengths` has the sum of the weights of each source's rows; the epoch stays as long as all of them together.
    Without shares the factors are 1. Raises ValueError where the shares do not name exactly the sources.
    """
    if shares is None:
        return {source: Fraction(1) for source in lengths}
    if set(shares) != set(lengths):
        raise BadInput(
            f"order.mixing = {shares!r}: the data has the sources {', '.join(sorted(lengths))}; give each a share"
        )
    exact = {source: Fraction(str(share)) for source, share in shares.items()}
    total, epoch = sum(exact.values()), sum(lengths.values())
    return {source: exact[source] / total * epoch / length for source, length in lengths.items()}
