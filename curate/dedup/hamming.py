"""All pairs of hashes within a Hamming radius, exactly, in pieces of bounded size.

Each band that the radius needs (`curate.dedup.bands`) is sorted, and every bucket meets itself and
the buckets whose value is within the band's threshold. Where two buckets that meet are both large,
they are cut again by the remaining bands, so that a band value shared by a million hashes costs no
million squared. Where no band is left, all of them are near; if a second hash must confirm, they are
met by that one.

Shape legend: W words of 64 bits, N hashes, P pairs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from numba import njit

from curate.dedup.bands import (
    BAND_BITS,
    LANES,
    WIDE_LANES,
    Layout,
    any_near_1,
    any_near_1_left,
    any_near_4,
    any_near_4_left,
    band_limits,
    layout,
    lowest_bit,
    masks,
    near_lanes_1,
    near_lanes_4,
    popcount,
)

PAIRS_PER_PIECE = 1 << 18
"""LEAST_PIECE or more, or no row would ever have room."""
ROWS_PER_TASK = 1 << 15
ROWS = 4
"""Rows that are compared at a time."""
LEAST_PIECE = ROWS * WIDE_LANES
SMALL = 2048
"""Fewer hashes are compared each with each."""
MIN_CUT = 4096
"""Smaller buckets are not worth another sort."""
PDQ_BANDS = list(range(256 // BAND_BITS))


@dataclass(frozen=True, kw_only=True)
class Confirm:
    """A second hash that a pair must be near by as well."""

    words_4N: np.ndarray
    """uint64 (4, N)."""
    radius: int


def near_pairs(
    left_WN: np.ndarray,
    right_WN: np.ndarray | None,
    radius: int,
    *,
    confirm: tuple[Confirm, Confirm] | None = None,
    threads: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield int64 (P, 2) of (left, right) positions at distance <= radius, each pair once.

    With `right_WN` None the left hashes meet each other (either order of the two positions). `confirm`
    holds the second hash of both sides. `threads` None takes every core. Stop early by closing the
    generator.
    """
    bands = list(range(left_WN.shape[0] * 64 // BAND_BITS))
    workers = threads or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        yield from _join(_Search(radius, confirm, pool, workers), left_WN, right_WN, bands, radius, [])


@dataclass(frozen=True)
class _Search:
    radius: int
    confirm: tuple[Confirm, Confirm] | None
    pool: ThreadPoolExecutor
    workers: int


def _join(
    search: _Search,
    left_WN: np.ndarray,
    right_WN: np.ndarray | None,
    bands: list[int],
    radius: int,
    earlier: list[tuple[int, int]],
) -> Iterator[np.ndarray]:
    """Meet by the given bands, in which no near pair differs by more than `radius` bits.

    Pairs that agree within its limit on one of the `earlier` (band, limit) are found elsewhere.
    """
    itself = right_WN is None
    right_count = left_WN.shape[1] if right_WN is None else right_WN.shape[1]
    if left_WN.shape[1] == 0 or right_count == 0:
        return
    if not bands and search.confirm is not None:
        yield from _join_by_second(search, itself)
        return
    if not bands or max(left_WN.shape[1], right_count) <= SMALL:
        left = layout(left_WN, None)
        right = left if right_WN is None else layout(right_WN, None)
        yield from _scan(search, left, right, masks(0), itself, np.iinfo(np.int64).max, earlier)
        return
    for band, limit in zip(bands, band_limits(radius, len(bands)), strict=True):
        found = max((bits for other, bits in earlier if other == band), default=-1)
        differences = masks(limit)[np.bitwise_count(masks(limit)) > found]
        if len(differences):
            left = layout(left_WN, band, search.pool)
            right = left if right_WN is None else layout(right_WN, band, search.pool)
            others = [other for other in bands if other != band]
            yield from _meet_buckets(search, left, right, differences, itself, others, radius, earlier)
            earlier = [*earlier, (band, limit)]


def _join_by_second(search: _Search, itself: bool) -> Iterator[np.ndarray]:
    """Meet many rows that are all near by the first hash: only the second tells them apart."""
    assert search.confirm is not None
    left, right = search.confirm
    alone = _Search(left.radius, None, search.pool, search.workers)
    yield from _join(alone, left.words_4N, None if itself else right.words_4N, PDQ_BANDS, left.radius, [])


def _meet_buckets(
    search: _Search,
    left: Layout,
    right: Layout,
    differences: np.ndarray,
    itself: bool,
    others: list[int],
    radius: int,
    earlier: list[tuple[int, int]],
) -> Iterator[np.ndarray]:
    large = _worth_a_cut(others, radius, search.confirm)
    yield from _scan(search, left, right, differences, itself, large, earlier)
    for value in np.flatnonzero(np.diff(left.starts) > large):
        for difference in differences:
            other = value ^ difference
            if right.starts[other + 1] - right.starts[other] <= large or (itself and other < value):
                continue
            rows = slice(left.starts[value], left.starts[value + 1])
            columns = slice(right.starts[other], right.starts[other + 1])
            same = itself and other == value
            inner = _join(
                _part(search, left.order[rows], right.order[columns]),
                left.words_WN[:, rows],
                None if same else right.words_WN[:, columns],
                others,
                radius - int(difference).bit_count(),
                earlier,
            )
            for pairs in inner:
                yield np.stack([left.order[rows][pairs[:, 0]], right.order[columns][pairs[:, 1]]], axis=1)


def _worth_a_cut(bands: list[int], radius: int, confirm: tuple[Confirm, Confirm] | None) -> int:
    """Return the size of a bucket above which sorting it by further bands costs less than comparing it whole.

    Where no band is left, those of the second hash are. Confirming is slow: what may need it is cut sooner.
    """
    if not bands and confirm is not None:
        bands, radius = PDQ_BANDS, confirm[0].radius
    lookups = sum(len(masks(limit)) for limit in band_limits(radius, len(bands)) if limit >= 0) if bands else 0
    return max(MIN_CUT, (64 if confirm is None else 1) * lookups) if bands else np.iinfo(np.int64).max


def _part(search: _Search, rows: np.ndarray, columns: np.ndarray) -> _Search:
    if search.confirm is None:
        return search
    left, right = search.confirm
    confirm = (
        Confirm(words_4N=left.words_4N[:, rows], radius=left.radius),
        Confirm(words_4N=right.words_4N[:, columns], radius=right.radius),
    )
    return _Search(search.radius, confirm, search.pool, search.workers)


def _scan(
    search: _Search,
    left: Layout,
    right: Layout,
    differences: np.ndarray,
    itself: bool,
    large: int,
    earlier: list[tuple[int, int]],
) -> Iterator[np.ndarray]:
    """Meet the buckets that are not both large, threads on ranges of rows; a full piece is continued later."""
    nothing = np.empty((4, 0), np.uint64)
    confirm = (nothing, nothing, -1)
    if search.confirm is not None:
        confirm = (search.confirm[0].words_4N, search.confirm[1].words_4N, search.confirm[0].radius)
    sides = [(side.words_WN, side.order, side.starts) for side in (left, right)]
    found_by = np.array([(-1, -1), *earlier], np.int64)

    def work(value: int, stop: int, mask_at: int, row: int, at: int) -> tuple[np.ndarray, tuple[int, ...] | None]:
        pairs = np.empty((PAIRS_PER_PIECE, 2), np.int64)
        place = (value, stop, mask_at, row, at)
        found, value, *rest = _scan_buckets(
            *sides, differences, search.radius, itself, large, found_by, confirm, place, pairs
        )
        return pairs[:found].copy(), (value, stop, *rest) if value < stop else None

    edges = np.unique(np.searchsorted(left.starts, np.arange(0, left.starts[-1], ROWS_PER_TASK)))
    stops = [*edges[1:], len(left.starts) - 1]
    coming = ((int(value), int(stop), 0, -1, -1) for value, stop in zip(edges, stops, strict=True))
    flying: set[Future] = set()
    for call in coming:
        flying.add(search.pool.submit(work, *call))
        while len(flying) >= 2 * search.workers:
            flying, pieces = _landed(search, work, flying)
            yield from pieces
    while flying:
        flying, pieces = _landed(search, work, flying)
        yield from pieces


def _landed(search: _Search, work, flying: set[Future]) -> tuple[set[Future], list[np.ndarray]]:  # noqa: ANN001
    done, flying = wait(flying, return_when=FIRST_COMPLETED)
    pieces = []
    for future in done:
        pairs, rest = future.result()
        if rest is not None:
            flying.add(search.pool.submit(work, *rest))
        if len(pairs):
            pieces.append(pairs)
    return flying, pieces


@njit(nogil=True, cache=True)
def _scan_buckets(left, right, differences, radius, itself, large, earlier, confirm, place, pairs):
    """Write the pairs of the buckets from a place on; return their number and where to go on when `pairs` is full.

    A place is (bucket, last bucket, number of the difference, row of the left bucket, row of the
    right one); -1 is the first row.
    """
    value, stop, mask_at, row, at = place
    left_starts, right_starts, found = left[2], right[2], 0
    while value < stop:
        first_row, last_row = left_starts[value], left_starts[value + 1]
        while mask_at < len(differences) and first_row < last_row:
            other = value ^ differences[mask_at]
            first, last = right_starts[other], right_starts[other + 1]
            both_large = last_row - first_row > large and last - first > large
            if not ((itself and other < value) or both_large or first == last):
                rows, columns = (max(row, first_row), last_row), (first, last, at)
                triangle = itself and other == value
                found, row, at = _meet(left, right, rows, columns, triangle, radius, earlier, confirm, pairs, found)
                if row < last_row:
                    return found, value, mask_at, row, at
            row, at, mask_at = -1, -1, mask_at + 1
        mask_at, value = 0, value + 1
    return found, value, 0, -1, -1


@njit(nogil=True, cache=True)
def _meet(left, right, rows, columns, triangle, radius, earlier, confirm, pairs, found):
    """Write the near pairs of two buckets; return their number and where to go on, the last row when done.

    In a triangle, a bucket that meets itself, each row meets those after it. Rows of one word are
    taken four at a time.
    """
    row, last_row = rows
    first, last, at = columns
    words, limit, one_word = left[0], np.uint64(radius), left[0].shape[0] == 1
    base = right[0].ctypes.data
    while row < last_row:
        together = ROWS if one_word and not triangle and row + ROWS <= last_row else 1
        if at < 0:
            at = row + 1 if triangle else first
        while at < last:
            ahead, count = base + 8 * at, np.uint64(last - at)
            if together == ROWS:
                own = words[0, row], words[0, row + 1], words[0, row + 2], words[0, row + 3]
                near = (
                    any_near_4(ahead, count, limit, *own)
                    if count >= WIDE_LANES
                    else any_near_4_left(ahead, count, limit, *own)
                )
            elif one_word:
                own_1 = words[0, row]
                near = (
                    any_near_1(ahead, count, limit, own_1)
                    if count >= WIDE_LANES
                    else any_near_1_left(ahead, count, limit, own_1)
                )
            else:
                near = np.uint64(1)
            if near:
                if found + together * WIDE_LANES > len(pairs):
                    return found, row, at
                for each in range(row, row + together):
                    for lane in range(at, min(at + WIDE_LANES, last), LANES):
                        found = _write(left, right, each, lane, last, limit, earlier, confirm, pairs, found)
            at += WIDE_LANES
        row, at = row + together, -1
    return found, row, at


@njit(nogil=True, cache=True)
def _write(left, right, row, at, last, limit, earlier, confirm, pairs, found):
    """Write the near pairs of a row and LANES others; return their number so far."""
    words, others = left[0], right[0]
    base, stride, count = others.ctypes.data, 8 * others.shape[1], np.uint64(last - at)
    if words.shape[0] == 1:
        bits = near_lanes_1(base + 8 * at, stride, count, limit, words[0, row])
    else:
        own = words[0, row], words[1, row], words[2, row], words[3, row]
        bits = near_lanes_4(base + 8 * at, stride, count, limit, *own)
    while bits:
        hit = at + np.int64(lowest_bit(bits))
        bits &= bits - np.uint64(1)
        i, j = left[1][row], right[1][hit]
        if not _is_found(words, row, others, hit, earlier) and _is_confirmed(confirm, i, j):
            pairs[found, 0], pairs[found, 1] = i, j
            found += 1
    return found


@njit(nogil=True, cache=True)
def _is_found(left, row, right, hit, earlier):
    """Return whether one of the earlier bands has met the two."""
    for at in range(1, len(earlier)):
        word, shift = earlier[at, 0] // 4, 16 * (earlier[at, 0] % 4)
        difference = ((left[word, row] ^ right[word, hit]) >> np.uint64(shift)) & np.uint64(0xFFFF)
        if np.int64(popcount(difference)) <= earlier[at, 1]:
            return True
    return False


@njit(nogil=True, cache=True)
def _is_confirmed(confirm, i, j):
    """Return whether the second hashes are near, too; a radius below 0 asks for none."""
    left, right, radius = confirm
    distance = np.uint64(0)
    if radius >= 0:
        for word in range(4):
            distance += popcount(left[word, i] ^ right[word, j])
    return radius < 0 or distance <= np.uint64(radius)
