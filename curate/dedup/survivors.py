"""Greedy survivors: the one maximal independent set that a ranking defines.

Samples are taken best rank first. A sample survives unless it is near a survivor; then it is
dropped, and the best-ranked survivor near it stands for it. So no two survivors are near each
other, every dropped sample is near the survivor that it names, nothing chains, and the answer
depends on nothing but the ranking and the relation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from curate.dedup.hamming import near_pairs


@dataclass(frozen=True, kw_only=True)
class Survivors:
    """The answer for N samples."""

    survivor: np.ndarray
    """int64 (N,): position of each sample's survivor, its own where it survives."""
    by_hash: np.ndarray
    """bool (N,): the survivor is near by hash (else by the pairs given, or it is the sample itself)."""


def near_duplicates(hashes: np.ndarray, radius: int, rank: np.ndarray | None = None) -> np.ndarray:
    """Return the position of each hash's survivor, int64 of shape (N,), its own where it survives.

    `hashes` is uint64 (N,); near means Hamming distance <= `radius` (0..16). The smaller `rank`
    (int64 (N,), default the position) wins, then the smaller position.

    >>> near_duplicates(np.array([0b0000, 0b0001, 0b0011, 0xFF00], np.uint64), radius=1).tolist()
    [0, 0, 2, 3]
    """
    no_pairs = np.empty((0, 2), np.int64)
    return greedy(hashes, np.ones(len(hashes), bool), radius, no_pairs, rank).survivor


def greedy(
    hashes: np.ndarray,
    has_hash: np.ndarray,
    radius: int,
    pairs: np.ndarray,
    rank: np.ndarray | None = None,
) -> Survivors:
    """Return the survivors where near means: hashes within `radius` bits, or listed in `pairs`.

    `has_hash` (bool (N,)) excludes samples from the comparison of hashes; `pairs` (int64 (P, 2))
    lists near samples by position, in any order.
    """
    count = len(hashes)
    rank = np.arange(count) if rank is None else np.asarray(rank, np.int64)
    if len(rank) != count or len(has_hash) != count:
        raise ValueError(f"{count} hashes, {len(rank)} ranks and {len(has_hash)} flags: must be equally many")
    order = np.lexsort((np.arange(count), rank))
    group, num_groups, group_pairs = _hash_groups(np.asarray(hashes, np.uint64), has_hash, radius)
    group_starts, group_near = _adjacency(group_pairs, num_groups)
    pair_starts, pair_near = _adjacency(pairs, count)
    survivor, by_hash = _greedy(order, group, num_groups, group_starts, group_near, pair_starts, pair_near)
    return Survivors(survivor=survivor, by_hash=by_hash)


def _hash_groups(hashes: np.ndarray, has_hash: np.ndarray, radius: int) -> tuple[np.ndarray, int, np.ndarray]:
    """Fold equal hashes: the group of each sample (-1 without hash), their number, the near groups."""
    own = np.flatnonzero(has_hash)
    by_value = own[np.argsort(hashes[own], kind="stable")]
    is_first = np.ones(len(by_value), bool)
    is_first[1:] = hashes[by_value[1:]] != hashes[by_value[:-1]]
    group = np.full(len(hashes), -1, np.int64)
    group[by_value] = np.cumsum(is_first) - 1
    unique = hashes[by_value[is_first]]
    return group, len(unique), near_pairs(unique, radius)


def _adjacency(pairs: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the neighbours of each node as (starts (count + 1,), neighbours), from undirected pairs."""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(both[:, 0], minlength=count), out=starts[1:])
    return starts, both[np.argsort(both[:, 0], kind="stable"), 1]


@njit(cache=True)
def _greedy(order, group, num_groups, group_starts, group_near, pair_starts, pair_near):
    count = len(order)
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    survivor = np.full(count, -1, np.int64)
    by_hash = np.zeros(count, np.bool_)
    kept_in = np.full(num_groups, -1, np.int64)  # the one survivor with this hash
    stands_for = np.full(num_groups, -1, np.int64)  # best survivor near this hash, once there is one
    for sample in order:
        own, best = group[sample], -1
        if own >= 0:
            if stands_for[own] < 0:
                for at in range(group_starts[own], group_starts[own + 1]):
                    kept = kept_in[group_near[at]]
                    if kept >= 0 and (stands_for[own] < 0 or place[kept] < place[stands_for[own]]):
                        stands_for[own] = kept
            best = stands_for[own]
        by_hash[sample] = best >= 0
        for at in range(pair_starts[sample], pair_starts[sample + 1]):
            other = pair_near[at]
            if survivor[other] == other and (best < 0 or place[other] < place[best]):
                best = other
                by_hash[sample] = False
        survivor[sample] = sample if best < 0 else best
        if best < 0 and own >= 0:
            kept_in[own] = sample
            stands_for[own] = sample
    return survivor, by_hash
