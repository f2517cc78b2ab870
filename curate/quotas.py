"""The best of a group by a score, ties in the order of uids: quantiles, top fractions and quotas rest on it."""

from __future__ import annotations

import math

import numpy as np


def best(
    score: np.ndarray | None, groups: np.ndarray, limit_of_group: np.ndarray | int, uid_N2: np.ndarray
) -> np.ndarray:
    """Return the samples that are among the best of their group, bool (N,).

    `score` is float32 (N,), higher is better, NaN behind everything; None draws by uid. `groups` is int32 (N,) from
    0; of group g the first `limit_of_group[g]` stay. `uid_N2` is uint64 (N, 2), the uid's 128 bits; of equal scores
    the smaller uid is ahead.
    """
    if not len(groups):
        return np.zeros(0, bool)
    within = uid_N2[:, 0] >> np.uint64(32) if score is None else descending(score).astype(np.uint64)
    keys = groups.astype(np.uint64) << np.uint64(32) | within
    order = np.argsort(keys)
    keys = keys[order]
    group_starts, group_ends = _runs(groups[order])
    limits = np.broadcast_to(limit_of_group, int(groups.max()) + 1)[groups[order[group_starts]]]
    cuts = group_starts + np.minimum(limits, group_ends - group_starts)
    stays = np.zeros(len(keys), bool)
    _set_runs(stays, group_starts, cuts)
    cut = cuts[(cuts > group_starts) & (cuts < group_ends)]
    _settle_ties(stays, keys, order, cut, uid_N2)
    found = np.zeros(len(keys), bool)
    found[order] = stays
    return found


def _settle_ties(stays: np.ndarray, keys: np.ndarray, order: np.ndarray, cuts: np.ndarray, uid_N2: np.ndarray) -> None:
    """Where equal keys lie on both sides of a cut, let those with the smaller uids stay."""
    tied = cuts[keys[cuts] == keys[cuts - 1]]
    firsts, ends = np.searchsorted(keys, keys[tied]), np.searchsorted(keys, keys[tied], "right")
    places = np.concatenate([np.arange(first, end) for first, end in zip(firsts, ends, strict=True)] or [firsts])
    rows = order[places]
    by_uid = np.lexsort((uid_N2[rows, 1], uid_N2[rows, 0], keys[places]))
    order[places] = rows[by_uid]


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first places of equal values in a row, and the places behind their last ones."""
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    return starts, np.r_[starts[1:], len(values)]


def _set_runs(flags: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
    steps = np.zeros(len(flags) + 1, np.int32)
    np.add.at(steps, starts, 1)
    np.add.at(steps, ends, -1)
    flags[:] = np.cumsum(steps[:-1]) > 0


def descending(score: np.ndarray) -> np.ndarray:
    """Return float32 as integers that sort the other way, NaN last, uint32 (N,)."""
    bits = (np.where(np.isnan(score), np.float32(-np.inf), score) + np.float32(0)).view(np.uint32)
    return ~(bits ^ np.where(bits >> 31 == 1, np.uint32(0xFFFFFFFF), np.uint32(0x80000000)))


def top(score: np.ndarray, fraction: float, uid_N2: np.ndarray) -> np.ndarray:
    """Return the best ceil(fraction * N) of N samples, bool (N,); NaN does not count and is not among them."""
    there = ~np.isnan(score)
    kept = math.ceil(fraction * int(there.sum()) - 1e-9)
    if kept == 0:
        return np.zeros(len(score), bool)
    keys = descending(score)
    last = np.partition(keys[there], kept - 1)[kept - 1]
    found = there & (keys < last)
    tied = np.flatnonzero(there & (keys == last))
    by_uid = np.lexsort((uid_N2[tied, 1], uid_N2[tied, 0]))
    found[tied[by_uid[: kept - int(found.sum())]]] = True
    return found


def quantile(values: np.ndarray, share: float) -> float:
    """Return the smallest value with at least `share` of the values at or below it; NaN does not count.

    Hyndman and Fan (1996), definition 1. Without any value, NaN, which no comparison holds for.
    """
    there = values[~np.isnan(values)]
    if not len(there):
        return math.nan
    at = max(0, math.ceil(share * len(there) - 1e-9) - 1)
    return float(np.partition(there, at)[at])
