"""What near means, as relations over rows that are ordered by rank: a smaller row is the better sample.

A relation answers three questions, each in bounded memory: which rows have a near row at all, which
pairs are near (unless there are too many), and which is the best of given rows near each of others.

Shape legend: N rows, W words of 64 bits, P pairs, T turned pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numba import njit

from curate.dedup.hamming import Confirm, near_pairs

NONE = -1
FAR = 64
"""Bits between hashes that the second hash does not confirm."""
ENOUGH_PAIRS = 1 << 24
"""With more pairs than this for fewer rows, looking for rows without any is no gain."""


class Relation(Protocol):
    """A symmetric relation over rows."""

    def near_any(self, first: int, last: int) -> np.ndarray:
        """Return the rows in first..last - 1 that may be near another of them, int64; all others are not."""
        ...

    def near_fixed(self, fixed: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows in fixed..last - 1 near one before `fixed`, and the smallest such for each, int64 both."""
        ...

    def pairs(self, rows: np.ndarray, limit: int) -> np.ndarray | None:
        """Return the near pairs of positions in the ascending `rows`, int32 (P, 2), or None where P > `limit`."""
        ...

    def nearest(self, of: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return those of the rows `of` that are near one of `among`, and the smallest such for each, int64 both."""
        ...


@dataclass(frozen=True, kw_only=True)
class NearToFixed:
    """Near: pairs of a row and the best fixed one that it is near, known beforehand."""

    row: np.ndarray
    """int64 (P,), each once."""
    near: np.ndarray
    """int64 (P,)."""

    def near_any(self, first: int, last: int) -> np.ndarray:
        return np.empty(0, np.int64)

    def near_fixed(self, fixed: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        return self.row, self.near

    def pairs(self, rows: np.ndarray, limit: int) -> np.ndarray | None:
        return np.empty((0, 2), np.int32)

    def nearest(self, of: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.empty(0, np.int64), np.empty(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class NearByHash:
    """Near: within `radius` bits, of any turned picture where there are such, and within the second hash's radius."""

    words_WN: np.ndarray
    """uint64 (W, N): W = 1 for phash64, 4 for PDQ and SHA-256."""
    radius: int
    has_hash: np.ndarray | None = None
    """bool (N,): rows that take part; None means all."""
    turned_TN: np.ndarray | None = None
    """uint64 (T, N): the hashes of the flipped and turned picture; needs W = 1."""
    confirm: Confirm | None = None
    turned_second_T4N: np.ndarray | None = None
    """uint64 (T, 4, N): the second hashes of the turned picture, where turned hashes must be confirmed."""
    threads: int | None = None

    def __post_init__(self) -> None:
        both = self.turned_TN is not None and self.confirm is not None
        assert both == (self.turned_second_T4N is not None), "turned hashes are confirmed by turned second hashes"

    def near_any(self, first: int, last: int) -> np.ndarray:
        rows = np.arange(first, last)
        return rows[self.marked(rows)]

    def near_fixed(self, fixed: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        return self.nearest(np.arange(fixed, last), np.arange(fixed))

    def marked(self, rows: np.ndarray) -> np.ndarray:
        """Return which of the ascending `rows` may be near another of them, bool (len(rows),)."""
        part = np.flatnonzero(self._takes_part(rows))
        first = first_equal(self._keys(rows[part]))
        is_first = first == np.arange(len(part))
        near = np.zeros(len(part), bool)
        near[first[~is_first]] = True
        own, count = np.flatnonzero(is_first), 0
        if self.radius or self.turned_TN is not None or self.confirm is not None:
            for pairs in self._near(rows[part[own]], None):
                near[own[pairs.ravel()]] = True
                count += len(pairs)
                if count > max(ENOUGH_PAIRS, 16 * len(rows)):
                    near[:] = True
                    break
        marked = np.zeros(len(rows), bool)
        marked[part] = near[first]
        return marked

    def pairs(self, rows: np.ndarray, limit: int) -> np.ndarray | None:
        part = np.flatnonzero(self._takes_part(rows))
        repeats = np.bincount(first_equal(self._keys(rows[part])), minlength=1).astype(np.float64)
        if (repeats * (repeats - 1) / 2).sum() > limit:
            return None
        found = at_most(self._near(rows[part], None), limit)
        return found if found is None or len(part) == len(rows) else part.astype(np.int32)[found]

    def nearest(self, of: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        of, among = self._taking_part(of), self._taking_part(among)
        among = among[first_equal(self._keys(among)) == np.arange(len(among))]
        first = first_equal(self._keys(of))
        own = np.flatnonzero(first == np.arange(len(of)))
        best = np.full(len(of), NONE, np.int64)
        best[own] = smallest(self._near(of[own], among), len(own))
        best = best[first]
        near = best != NONE
        return of[near], among[best[near]]

    def met(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return those of the rows of both sides that may be near one of the other side, ascending by side."""
        rows = [side[self._takes_part(side)] for side in (left, right)]
        first = [first_equal(self._keys(side)) for side in rows]
        own = [np.flatnonzero(side == np.arange(len(side))) for side in first]
        near, count = [np.zeros(len(side), bool) for side in rows], 0
        for pairs in self._near(rows[0][own[0]], rows[1][own[1]]):
            count += len(pairs)
            if count > max(ENOUGH_PAIRS, 16 * (len(left) + len(right))):
                return np.concatenate(rows)
            for side in (0, 1):
                near[side][own[side][pairs[:, side]]] = True
        return np.concatenate([rows[side][near[side][first[side]]] for side in (0, 1)])

    def distance(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the bits by which the hashes of near rows differ, int64 (P,), the least over the turned ones.

        What the second hash does not confirm counts as FAR.
        """
        least = self._bits(self._side(left), self._side(right))
        for turn in range(self._turns):
            for one, other in ((left, right), (right, left)):
                least = np.minimum(least, self._bits(self._side(one, turn), self._side(other)))
        return least

    def _bits(self, left: _Side, right: _Side) -> np.ndarray:
        bits = _bits_between(left.words_WN, right.words_WN)
        if left.second is None or right.second is None:
            return bits
        apart = _bits_between(left.second.words_4N, right.second.words_4N)
        return np.where(apart <= left.second.radius, bits, FAR)

    @property
    def _turns(self) -> int:
        return 0 if self.turned_TN is None else len(self.turned_TN)

    def _takes_part(self, rows: np.ndarray) -> np.ndarray:
        return np.ones(len(rows), bool) if self.has_hash is None else self.has_hash[rows]

    def _taking_part(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.has_hash is None else rows[self.has_hash[rows]]

    def _keys(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return what must be equal for two rows to be near the same others."""
        words = [*self.words_WN, *(self.turned_TN if self.turned_TN is not None else ())]
        words.extend(self.confirm.words_4N if self.confirm else ())
        for second_4N in self.turned_second_T4N if self.turned_second_T4N is not None else ():
            words.extend(second_4N)
        return [word[rows] for word in words]

    def _near(self, left: np.ndarray, right: np.ndarray | None) -> Iterator[np.ndarray]:
        """Yield near pairs as positions in `left` and `right` (None: left itself)."""
        own, others = self._side(left), None if right is None else self._side(right)
        yield from self._met(own, others)
        for turn in range(self._turns):
            for pairs in self._met(self._side(left, turn), others or own):
                yield pairs if right is not None else pairs[pairs[:, 0] != pairs[:, 1]]
            if right is not None:
                yield from self._met(own, self._side(right, turn))

    def _met(self, left: _Side, right: _Side | None) -> Iterator[np.ndarray]:
        confirm = None if left.second is None else (left.second, (right or left).second or left.second)
        others = None if right is None else right.words_WN
        return near_pairs(left.words_WN, others, self.radius, confirm=confirm, threads=self.threads)

    def _side(self, rows: np.ndarray, turn: int | None = None) -> _Side:
        """Return the hashes of some rows: of the pictures as they are, or as the turn makes them."""
        words_WN, second_4N = self.words_WN, self.confirm.words_4N if self.confirm else None
        if turn is not None and self.turned_TN is not None:
            words_WN = self.turned_TN[turn][None]
            second_4N = self.turned_second_T4N[turn] if self.turned_second_T4N is not None else None
        if self.confirm is None or second_4N is None:
            return _Side(words_WN=words_WN[:, rows], second=None)
        second = Confirm(words_4N=np.ascontiguousarray(second_4N[:, rows]), radius=self.confirm.radius)
        return _Side(words_WN=words_WN[:, rows], second=second)


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One side of a join."""

    words_WN: np.ndarray
    second: Confirm | None


def _bits_between(left_WP: np.ndarray, right_WP: np.ndarray) -> np.ndarray:
    return np.bitwise_count(left_WP ^ right_WP).sum(axis=0, dtype=np.int64)


def first_equal(keys: Sequence[np.ndarray], parts: int = 2) -> np.ndarray:
    """Return for each row the first row with equal keys, int64 (N,); `keys` are uint64 (N,) each.

    One table of open addressing for each part of the keys' values, each filled by a thread of its own.
    """
    count = len(keys[0])
    first = np.empty(count, np.int32 if count < 2**31 else np.int64)
    keys_NK = np.stack(keys, axis=1)
    slots = 1 << max(3, (2 * count // parts).bit_length())
    with ThreadPoolExecutor(parts) as pool:
        for part in [pool.submit(_first_equal, keys_NK, first, slots, part, parts) for part in range(parts)]:
            part.result()
    return first


@njit(nogil=True, cache=True)
def _first_equal(keys_NK, first, slots, part, parts):
    table = np.full(slots, -1, first.dtype)
    count, width = keys_NK.shape
    for row in range(count):
        mixed = np.uint64(0)
        for at in range(width):
            mixed = (mixed ^ keys_NK[row, at]) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(32)
        if mixed % np.uint64(parts) != np.uint64(part):
            continue
        slot = np.int64((mixed >> np.uint64(8)) & np.uint64(slots - 1))
        while table[slot] >= 0:
            at = 0
            while at < width and keys_NK[table[slot], at] == keys_NK[row, at]:
                at += 1
            if at == width:
                break
            slot = (slot + 1) & (slots - 1)
        if table[slot] < 0:
            table[slot] = row
        first[row] = table[slot]


def at_most(pieces: Iterable[np.ndarray], limit: int) -> np.ndarray | None:
    """Return all pairs of the pieces, int32 (P, 2), or None as soon as there are more than `limit`."""
    kept, count = [np.empty((0, 2), np.int32)], 0
    for piece in pieces:
        kept.append(piece.astype(np.int32))
        count += len(piece)
        if count > limit:
            return None
    return np.concatenate(kept)


def smallest(pieces: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Return the smallest right position for each of `count` left ones, int64, NONE without a pair."""
    highest = np.iinfo(np.int64).max
    best = np.full(count, highest, np.int64)
    for pairs in pieces:
        np.minimum.at(best, pairs[:, 0], pairs[:, 1])
    return np.where(best == highest, NONE, best)
