"""Greedy survivors: the one maximal independent set that a ranking defines.

Samples are taken best rank first. A sample survives unless it is near a survivor; then it is
dropped, and the best-ranked survivor near it stands for it. So no two survivors are near each
other, every dropped sample is near the survivor that it names, nothing chains, and the answer
depends on nothing but the ranking and the relations.

No list of all near pairs is needed. Rows without a near row survive at once. Where the rest have
more pairs than a limit, the better half by rank is decided first, what is near its survivors is
dropped, and only then the worse half meets itself: in a dense cluster nothing is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from curate.dedup.relations import NONE, NearByHash, Relation

MAX_PAIRS = 1 << 24
MAX_RADIUS = 16
MAX_RELATIONS = 4
PAIR_REPEATS = 16
"""A pair may be found by each band; few rows are never halved for it."""


@dataclass(frozen=True, kw_only=True)
class Survivors:
    """The answer for N rows."""

    survivor: np.ndarray
    """int64 (N,): the row of each row's survivor, its own where it survives."""
    by: np.ndarray
    """int8 (N,): number of the relation by which it is near its survivor, NONE where it survives."""


def near_duplicates(hashes: np.ndarray, radius: int, rank: np.ndarray | None = None) -> np.ndarray:
    """Return the position of each hash's survivor, int64 of shape (N,), its own where it survives.

    `hashes` is uint64 (N,); near means Hamming distance <= `radius` (0..16). The smaller `rank`
    (int64 (N,), default the position) wins, then the smaller position. Raises ValueError for
    another radius, type or length.

    >>> near_duplicates(np.array([0b0000, 0b0001, 0b0011, 0xFF00], np.uint64), radius=1).tolist()
    [0, 0, 2, 3]
    """
    hashes = np.asarray(hashes)
    _check(hashes, radius, rank)
    if rank is None:
        return survivors([NearByHash(words_WN=hashes[None], radius=radius)], len(hashes)).survivor
    order = np.argsort(rank, kind="stable")
    found = survivors([NearByHash(words_WN=hashes[None, order], radius=radius)], len(hashes)).survivor
    survivor = np.empty(len(hashes), np.int64)
    survivor[order] = order[found]
    return survivor


def _check(hashes: np.ndarray, radius: int, rank: np.ndarray | None) -> None:
    if hashes.ndim != 1 or hashes.dtype != np.uint64:
        raise ValueError(f"hashes of type {hashes.dtype} and shape {hashes.shape}: must be uint64 of shape (N,)")
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"radius = {radius}: must be 0..{MAX_RADIUS} bits")
    if rank is not None and np.shape(rank) != hashes.shape:
        raise ValueError(f"rank of shape {np.shape(rank)}: must be {hashes.shape} as the hashes are")


def survivors(relations: Sequence[Relation], count: int, fixed: int = 0, max_pairs: int = MAX_PAIRS) -> Survivors:
    """Return the survivors of `count` rows, in order of rank, near by any of the relations.

    The first `fixed` rows survive whatever they are near: what was kept before, or must not be
    trained on. `max_pairs` bounds the pairs that are held at a time.
    """
    assert len(relations) <= MAX_RELATIONS, "a pair's key has two bits for its relation"
    found = Survivors(survivor=np.arange(count), by=np.full(count, NONE, np.int8))
    rows = np.arange(fixed, count)
    if fixed:
        _drop_near(relations, rows, np.arange(fixed), found)
        rows = rows[found.survivor[rows] == rows]
    near = np.zeros(len(rows), bool)
    for relation in relations:
        near |= relation.marked(rows)
    _decide(relations, rows[near], found, max_pairs)
    return found


def _decide(relations: Sequence[Relation], rows: np.ndarray, found: Survivors, max_pairs: int) -> None:
    """Decide the ascending `rows`, none of which is near a survivor outside them."""
    keys = _pair_keys(relations, rows, max_pairs)
    if keys is not None:
        _take(keys, rows, found.survivor, found.by)
        return
    head, tail = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    _decide(relations, head, found, max_pairs)
    _drop_near(relations, tail, head[found.survivor[head] == head], found)
    _decide(relations, tail[found.survivor[tail] == tail], found, max_pairs)


def _drop_near(relations: Sequence[Relation], rows: np.ndarray, kept: np.ndarray, found: Survivors) -> None:
    """Drop the rows near a kept one, in favour of the best."""
    best = np.full(len(rows), np.iinfo(np.int64).max)
    by = np.full(len(rows), NONE, np.int8)
    for number, relation in enumerate(relations):
        nearest = relation.nearest(rows, kept)
        better = (nearest != NONE) & (nearest < best)
        best[better], by[better] = nearest[better], number
    dropped = by != NONE
    found.survivor[rows[dropped]], found.by[rows[dropped]] = best[dropped], by[dropped]


def _pair_keys(relations: Sequence[Relation], rows: np.ndarray, max_pairs: int) -> np.ndarray | None:
    """Return the near pairs as sorted keys (worse row, better row, relation), or None where they are too many."""
    keys = [np.empty(0, np.uint64)]
    for number, relation in enumerate(relations):
        pairs = relation.pairs(rows, max_pairs if len(rows) > 64 else 64 * 64 * PAIR_REPEATS)
        if pairs is None:
            return None
        worse, better = (ends(pairs[:, 0], pairs[:, 1]).astype(np.uint64) for ends in (np.maximum, np.minimum))
        keys.append(worse << np.uint64(33) | better << np.uint64(2) | np.uint64(number))
    return np.sort(np.concatenate(keys))


@njit(cache=True)
def _take(keys, rows, survivor, by):
    """Drop each row that has a survivor before it: keys come worse row by worse row, better row first."""
    low = np.uint64((1 << 31) - 1)
    for key in keys:
        worse, better = rows[np.int64(key >> np.uint64(33))], rows[np.int64((key >> np.uint64(2)) & low)]
        if survivor[worse] == worse and survivor[better] == better:
            survivor[worse] = better
            by[worse] = np.int8(key & np.uint64(3))
