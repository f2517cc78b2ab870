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
"""A pair may be found by each turned picture; few rows are never halved for it."""


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """The rows that do not survive, ascending."""

    row: np.ndarray
    """int64 (D,)."""
    survivor: np.ndarray
    """int64 (D,): the best-ranked survivor near each."""
    by: np.ndarray
    """int8 (D,): number of the relation by which it is near."""


def near_duplicates(hashes: np.ndarray, radius: int, rank: np.ndarray | None = None) -> np.ndarray:
    """Return the position of each hash's survivor, int64 of shape (N,), its own where it survives.

    `hashes` is uint64 (N,); near means Hamming distance <= `radius` (0..16). The smaller `rank`
    (int64 (N,), default the position) wins, then the smaller position. Raises ValueError for
    another radius, type or length. Hashes of imagehash become words by
    `np.array([int(str(each), 16) for each in hashes], np.uint64)`.

    >>> near_duplicates(np.array([0b0000, 0b0001, 0b0011, 0xFF00], np.uint64), radius=1).tolist()
    [0, 0, 2, 3]
    """
    hashes = np.asarray(hashes)
    _check(hashes, radius, rank)
    order = None if rank is None else np.argsort(rank, kind="stable")
    ranked = hashes if order is None else hashes[order]
    dropped = survivors([NearByHash(words_WN=ranked[None], radius=radius)], len(hashes))
    survivor = np.arange(len(hashes))
    if order is None:
        survivor[dropped.row] = dropped.survivor
    else:
        survivor[order[dropped.row]] = order[dropped.survivor]
    return survivor


def _check(hashes: np.ndarray, radius: int, rank: np.ndarray | None) -> None:
    if hashes.ndim != 1 or hashes.dtype != np.uint64:
        raise ValueError(f"hashes of type {hashes.dtype} and shape {hashes.shape}: must be uint64 of shape (N,)")
    if not isinstance(radius, int | np.integer) or not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"radius = {radius}: must be 0..{MAX_RADIUS} bits")
    if rank is None:
        return
    rank = np.asarray(rank)
    if rank.shape != hashes.shape or rank.dtype.kind not in "iu":
        raise ValueError(f"rank of type {rank.dtype} and shape {rank.shape}: must be whole numbers, {hashes.shape}")


def survivors(relations: Sequence[Relation], count: int, fixed: int = 0, max_pairs: int = MAX_PAIRS) -> Dropped:
    """Return which of `count` rows, in order of rank and near by any of the relations, do not survive.

    The first `fixed` rows survive whatever they are near: what was kept before, or must not be
    trained on. `max_pairs` bounds the pairs that are held at a time. Memory: a byte for each row,
    and 17 bytes for each row that has a near one.
    """
    assert len(relations) <= MAX_RELATIONS, "a pair's key has two bits for its relation"
    first = _nearest([relation.near_fixed(fixed, count) for relation in relations] if fixed else [])
    is_near = np.zeros(count, bool)
    for relation in relations:
        is_near[relation.near_any(fixed, count)] = True
    is_near[first.row] = False
    rows = np.flatnonzero(is_near)
    rest = _Rest(rows=rows, survivor=np.arange(len(rows)), by=np.full(len(rows), NONE, np.int8))
    _decide(relations, np.arange(len(rows)), rest, max_pairs)
    lost = np.flatnonzero(rest.by != NONE)
    row = np.concatenate([first.row, rows[lost]])
    order = np.argsort(row)
    survivor = np.concatenate([first.survivor, rows[rest.survivor[lost]]])
    return Dropped(row=row[order], survivor=survivor[order], by=np.concatenate([first.by, rest.by[lost]])[order])


def _nearest(found: Sequence[tuple[np.ndarray, np.ndarray]]) -> Dropped:
    """Return each row that any relation found near, once, with the smallest of its near rows."""
    row = np.concatenate([np.empty(0, np.int64), *(row for row, _ in found)])
    near = np.concatenate([np.empty(0, np.int64), *(near for _, near in found)])
    by = np.repeat(np.arange(len(found), dtype=np.int8), [len(row) for row, _ in found])
    order = np.lexsort((by, near, row))
    once = order[np.r_[True, row[order][1:] != row[order][:-1]][: len(order)]]
    return Dropped(row=row[once], survivor=near[once], by=by[once])


@dataclass(frozen=True, kw_only=True)
class _Rest:
    """The rows that may be near another: each is at a place, and so is its survivor."""

    rows: np.ndarray
    survivor: np.ndarray
    by: np.ndarray


def _decide(relations: Sequence[Relation], places: np.ndarray, rest: _Rest, max_pairs: int) -> None:
    """Decide the rows at the ascending `places`, none of which is near a survivor elsewhere."""
    keys = _pair_keys(relations, rest.rows[places], max_pairs)
    if keys is not None:
        _take(keys, places, rest.survivor, rest.by)
        return
    head, tail = places[: len(places) // 2], places[len(places) // 2 :]
    _decide(relations, head, rest, max_pairs)
    kept = head[rest.by[head] == NONE]
    found = _nearest([relation.nearest(rest.rows[tail], rest.rows[kept]) for relation in relations])
    dropped = np.searchsorted(rest.rows, found.row)
    rest.survivor[dropped], rest.by[dropped] = np.searchsorted(rest.rows, found.survivor), found.by
    _decide(relations, tail[rest.by[tail] == NONE], rest, max_pairs)


def _pair_keys(relations: Sequence[Relation], rows: np.ndarray, max_pairs: int) -> np.ndarray | None:
    """Return the near pairs as sorted keys (worse row, better row, relation), or None where they are too many."""
    keys = [np.empty(0, np.uint64)]
    for number, relation in enumerate(relations):
        pairs = relation.pairs(rows, max_pairs if len(rows) > 64 else 64 * 64 * PAIR_REPEATS)
        if pairs is None:
            return None
        keys.append(_keyed(pairs, np.uint64(number)))
    together = np.concatenate(keys)
    together.sort()
    return together


@njit(cache=True)
def _keyed(pairs, number):
    keys = np.empty(len(pairs), np.uint64)
    for at in range(len(pairs)):
        worse, better = max(pairs[at, 0], pairs[at, 1]), min(pairs[at, 0], pairs[at, 1])
        keys[at] = np.uint64(worse) << np.uint64(33) | np.uint64(better) << np.uint64(2) | number
    return keys


@njit(cache=True)
def _take(keys, places, survivor, by):
    """Drop each row that has a survivor before it: keys come worse row by worse row, better row first."""
    low = np.uint64((1 << 31) - 1)
    for key in keys:
        worse, better = places[np.int64(key >> np.uint64(33))], places[np.int64((key >> np.uint64(2)) & low)]
        if survivor[worse] == worse and survivor[better] == better:
            survivor[worse] = better
            by[worse] = np.int8(key & np.uint64(3))
