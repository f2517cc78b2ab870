"""The data order: each sample once an epoch, the same for every way to share the work."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.order import Group, Order, apportion, rank_positions, repeats_of
from train.permutation import key, permute

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=4)


def order(sizes: list[int], global_batch: int, seed: int, *, sources: int = 1, repeats=None, **shape: int) -> Order:
    """An order whose buckets have `sources` groups of each size."""
    groups, first = [], 0
    for bucket, size in enumerate(sizes):
        for source in range(sources):
            times = Fraction(1) if repeats is None else repeats[source]
            groups.append(Group(bucket=bucket, first_row=first, num_rows=size + source, repeats=times))
            first += size + source
    shape = {"piece_rows": 3, "window_pieces": 2} | shape
    return Order(groups=tuple(groups), global_batch=global_batch, seed=seed, **shape)


def pairs(picks) -> list[tuple[int, int]]:
    return list(zip(picks.rows.tolist(), picks.visits.tolist(), strict=True))


@settings(deadline=None)
@given(size=st.integers(1, 2000), seed=st.integers(0, 2**63))
def test_a_permutation_is_one_to_one_for_any_size(size: int, seed: int) -> None:
    assert sorted(permute(np.arange(size), size, seed).tolist()) == list(range(size))


def test_permutations_are_uniform_and_computed_place_by_place() -> None:
    counts = Counter(tuple(permute(np.arange(4), 4, key(7, trial)).tolist()) for trial in range(4800))
    assert set(counts) == set(permutations(range(4)))
    chi_square = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_square < 49.7  # the 0.999 quantile for 23 degrees of freedom
    big = 2_000_000_011
    places = np.array([0, 1, 12345, big - 1])
    whole = permute(places, big, 5)
    assert [int(permute(np.array([place]), big, 5)[0]) for place in places] == whole.tolist()
    assert whole.tolist() == [1884250618, 636901462, 1484958846, 650105040]  # another value would be another order


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6))
def test_apportionment_is_monotone_and_ends_exactly(sizes: list[int]) -> None:
    parts = [apportion(count, sizes) for count in range(sum(sizes) + 1)]
    assert [sum(part) for part in parts] == list(range(sum(sizes) + 1))
    assert parts[-1] == sizes
    assert all(min(np.subtract(after, before)) >= 0 for before, after in zip(parts, parts[1:], strict=False))


@settings(max_examples=40, deadline=None)
@given(
    sizes=SIZES,
    global_batch=st.integers(1, 12),
    seed=st.integers(0, 5),
    sources=st.integers(1, 3),
    piece_rows=st.integers(1, 7),
    window_pieces=st.integers(1, 5),
)
def test_every_sample_once_an_epoch_and_none_dropped(
    sizes: list[int], global_batch: int, seed: int, sources: int, piece_rows: int, window_pieces: int
) -> None:
    mine = order(sizes, global_batch, seed, sources=sources, piece_rows=piece_rows, window_pieces=window_pieces)
    epochs = global_batch  # after G epochs every bucket's stream ends with a full batch
    assert mine.carried_over(epochs - 1) == 0
    seen = Counter(pick for step in range(mine.batches_before(epochs)) for pick in pairs(mine.batch(step)))
    rows = sum(group.num_rows for group in mine.groups)
    assert seen == Counter((row, epoch) for row in range(rows) for epoch in range(epochs))


@settings(max_examples=40, deadline=None)
@given(
    sizes=SIZES,
    global_batch=st.integers(1, 12),
    repeats=st.lists(st.fractions(Fraction(1, 5), 3, max_denominator=7), min_size=2, max_size=2),
)
def test_weighted_groups_are_seen_in_proportion_and_evenly(
    sizes: list[int], global_batch: int, repeats: list[Fraction]
) -> None:
    mine = order(sizes, global_batch, 0, sources=2, repeats=repeats)
    steps = 40
    seen = Counter(pick for step in range(steps) for pick in pairs(mine.batch(step)))
    assert set(seen.values()) == {1}  # no (row, visit) twice
    for group in mine.groups:
        times = Counter(row for row, _ in seen if group.first_row <= row < group.first_row + group.num_rows)
        counts = [times[row] for row in range(group.first_row, group.first_row + group.num_rows)]
        assert max(counts) - min(counts) <= 1
    for group, other in zip(mine.groups[::2], mine.groups[1::2], strict=True):
        pair = [sum(g.first_row <= row < g.first_row + g.num_rows for row, _ in seen) for g in (group, other)]
        share = group.repeats * group.num_rows / sum(g.repeats * g.num_rows for g in (group, other))
        assert abs(pair[0] - share * sum(pair)) <= 3


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, global_batch=st.integers(1, 12), step=st.integers(0, 10_000_000))
def test_a_batch_is_full_stays_in_one_bucket_and_needs_no_history(
    sizes: list[int], global_batch: int, step: int
) -> None:
    picks = order(sizes, global_batch, 0).batch(step)
    edges = np.cumsum(sizes)
    assert len(picks.rows) == global_batch
    assert len(set(np.searchsorted(edges, picks.rows, side="right").tolist())) == 1
    assert picks.rows.tolist() == sorted(picks.rows.tolist())
    assert pairs(picks) == pairs(order(sizes, global_batch, 0).batch(step))


@given(micro=st.integers(1, 4), accumulation=st.integers(1, 4), world_size=st.sampled_from([1, 2, 4, 8]))
def test_ranks_and_micro_steps_share_the_global_batch(micro: int, accumulation: int, world_size: int) -> None:
    shared = {"world_size": world_size, "micro_batch": micro, "grad_accumulation": accumulation}
    places = [
        place
        for rank in range(world_size)
        for micro_step in rank_positions(rank=rank, **shared)
        for place in micro_step
    ]
    assert places == list(range(world_size * micro * accumulation))


def test_epochs_and_seeds_differ() -> None:
    def rows(first: int, seed: int) -> list[list[int]]:
        mine = order([20], 4, seed, piece_rows=2, window_pieces=10)
        return [mine.batch(step).rows.tolist() for step in range(first, first + 5)]

    first, second, other = rows(0, 0), rows(5, 0), rows(0, 1)
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == sorted(sum(other, [])) == list(range(20))
    assert first != second
    assert first != other


def test_batches_of_one_window_read_few_pieces_and_one_piece_is_read_in_one_window() -> None:
    mine = order([10_000], 50, 0, piece_rows=100, window_pieces=4)
    windows = [np.concatenate([mine.batch(8 * w + b).rows for b in range(8)]) for w in range(25)]
    for rows in windows:
        runs = 1 + int((np.diff(np.sort(rows)) > 1).sum())
        assert runs <= 5  # four pieces; the rotation may cut one of them
    assert sorted(np.concatenate(windows).tolist()) == list(range(10_000))


def test_each_block_of_batches_has_the_buckets_in_their_shares() -> None:
    mine = order([3000, 1000], 4, 0, piece_rows=64, window_pieces=4)
    of_second = np.array([mine.batch(step).rows[0] >= 3000 for step in range(768)])
    assert [int(part.sum()) for part in of_second.reshape(3, 256)] == [64, 64, 64]
    assert 2 * int((of_second[1:] != of_second[:-1]).sum()) > 300  # in no regular pattern, but mixed


def test_shares_of_sources_become_repeats() -> None:
    counts = {"web": 900, "photos": 100}
    repeats = repeats_of(counts, {"web": 0.7, "photos": 0.3})
    assert repeats == {"web": Fraction(7, 9), "photos": Fraction(3)}
    assert sum(repeats[source] * count for source, count in counts.items()) == 1000
    assert repeats_of(counts, None) == {"web": 1, "photos": 1}
    weighted = {"web": Fraction(3 * 500), "photos": Fraction(1 * 500)}  # 500 rows each, of weights 3 and 1
    halves = repeats_of(weighted, {"web": 0.5, "photos": 0.5})
    assert {source: halves[source] * length for source, length in weighted.items()} == {"web": 1000, "photos": 1000}
    with pytest.raises(ValueError, match=r"order.mixing = .*photos, web; give each a share"):
        repeats_of(counts, {"web": 1.0})
