"""The data order: each sample once an epoch, the same for every way to share the work."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from train.order import Order, rank_positions

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=4)


def order(sizes: list[int], global_batch: int, seed: int) -> Order:
    edges = np.cumsum([0, *sizes])
    rows = tuple(np.arange(low, high) for low, high in zip(edges[:-1], edges[1:], strict=True))
    return Order(buckets=rows, global_batch=global_batch, seed=seed)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, global_batch=st.integers(1, 12), seed=st.integers(0, 5))
def test_every_sample_once_an_epoch_and_none_dropped(sizes: list[int], global_batch: int, seed: int) -> None:
    mine = order(sizes, global_batch, seed)
    epochs = global_batch  # after G epochs every bucket's stream ends with a full batch
    picks = [pick for step in range(mine.batches_before(epochs)) for pick in mine.batch(step)]
    seen = Counter((pick.row, pick.epoch) for pick in picks)
    assert seen == Counter((row, epoch) for row in range(sum(sizes)) for epoch in range(epochs))


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, global_batch=st.integers(1, 12), step=st.integers(0, 10_000_000))
def test_a_batch_is_full_stays_in_one_bucket_and_needs_no_history(
    sizes: list[int], global_batch: int, step: int
) -> None:
    picks = order(sizes, global_batch, 0).batch(step)
    edges = np.cumsum(sizes)
    assert len(picks) == global_batch
    assert len({int(np.searchsorted(edges, pick.row, side="right")) for pick in picks}) == 1
    assert picks == order(sizes, global_batch, 0).batch(step)


@given(
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    world_size=st.sampled_from([1, 2, 4, 8]),
)
def test_ranks_and_micro_steps_share_the_global_batch(micro: int, accumulation: int, world_size: int) -> None:
    places = [
        place
        for rank in range(world_size)
        for micro_step in rank_positions(
            rank=rank, world_size=world_size, micro_batch=micro, grad_accumulation=accumulation
        )
        for place in micro_step
    ]
    assert sorted(places) == list(range(world_size * micro * accumulation))


def test_epochs_and_seeds_differ() -> None:
    first = [pick.row for step in range(5) for pick in order([20], 4, 0).batch(step)]
    second = [pick.row for step in range(5, 10) for pick in order([20], 4, 0).batch(step)]
    other = [pick.row for step in range(5) for pick in order([20], 4, 1).batch(step)]
    assert sorted(first) == sorted(second) == sorted(other) == list(range(20))
    assert first != second
    assert first != other
