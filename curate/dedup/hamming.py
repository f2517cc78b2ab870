"""All pairs of 64-bit hashes within a Hamming radius, exactly, by the general pigeonhole principle.

The 64 bits are cut into four bands of 16. Each band i gets a threshold t_i with
sum(t_i + 1) = radius + 1, so that two hashes within the radius differ by at most t_i in some band:
otherwise they would differ by at least sum(t_i + 1) > radius bits. (Norouzi, Punjani and Fleet,
"Fast exact search in Hamming space with multi-index hashing", 2014; with uneven thresholds as in
Qin et al., "GPH: similarity search in Hamming space", 2018.) For each band, hashes are sorted by
the band's value; each bucket meets itself and the buckets whose value is within t_i.
"""

from __future__ import annotations

import itertools

import numpy as np
from numba import njit, prange, types
from numba.extending import intrinsic

BANDS = 4
BAND_BITS = 16
MAX_RADIUS = 16


def near_pairs(unique_hashes: np.ndarray, radius: int) -> np.ndarray:
    """Return every pair (i, j), i < j, of distinct hashes at distance <= radius, as int64 of shape (P, 2).

    `unique_hashes` is uint64 of shape (N,) without repeats; each pair is listed once, sorted.
    Raises ValueError for a radius outside 0..16.
    """
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"radius = {radius}: must be 0..{MAX_RADIUS} bits")
    hashes = np.ascontiguousarray(unique_hashes, dtype=np.uint64)
    limits = band_limits(radius)
    found = [np.empty((0, 2), np.int64)]
    for band in range(BANDS):
        if limits[band] >= 0 and len(hashes) > 1:
            found.append(_band_pairs(hashes, radius, band, limits))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def band_limits(radius: int) -> np.ndarray:
    """Return t_i of each band: as even as possible, -1 for a band that need not be searched."""
    base, extra = divmod(radius + 1, BANDS)
    return np.array([base - 1 + (band < extra) for band in range(BANDS)], dtype=np.int64)


def _band_pairs(hashes: np.ndarray, radius: int, band: int, limits: np.ndarray) -> np.ndarray:
    """Return the pairs that agree within t_band on this band and on no earlier searched band."""
    values = ((hashes >> np.uint64(BAND_BITS * band)) & np.uint64(0xFFFF)).astype(np.uint16)
    order = np.argsort(values, kind="stable")  # radix sort on 16 bits
    starts = np.zeros((1 << BAND_BITS) + 1, np.int64)
    np.cumsum(np.bincount(values, minlength=1 << BAND_BITS), out=starts[1:])
    ordered, masks = hashes[order], _masks(int(limits[band]))
    counts = _count(ordered, starts, masks, radius, band)
    rows = np.flatnonzero(counts)
    ends = np.cumsum(counts[rows], dtype=np.int64)
    positions = np.empty((int(ends[-1]) if len(ends) else 0, 2), np.int64)
    _fill(ordered, starts, masks, radius, band, limits, rows, ends - counts[rows], positions)
    positions = positions[positions[:, 0] >= 0]
    return np.sort(order[positions], axis=1)


def _masks(limit: int) -> np.ndarray:
    """Return every 16-bit difference of at most `limit` bits, the zero difference first."""
    differences = [
        sum(1 << bit for bit in bits)
        for size in range(limit + 1)
        for bits in itertools.combinations(range(BAND_BITS), size)
    ]
    return np.array(differences, dtype=np.int64)


@intrinsic
def popcount(_, word):
    """Return the number of set bits of a uint64, as the processor's own instruction."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@njit(parallel=True, cache=True)
def _count(ordered, starts, masks, radius, band):
    """Count for each row the later rows within the radius, over all buckets that it meets."""
    counts = np.zeros(len(ordered), np.int32)
    shift = np.uint64(16 * band)
    for row in prange(len(ordered)):
        own = ordered[row]
        value = np.int64((own >> shift) & np.uint64(0xFFFF))
        total = 0
        for mask in masks:
            other = value ^ mask
            if other >= value:
                first = row + 1 if mask == 0 else starts[other]
                for at in range(first, starts[other + 1]):
                    total += popcount(own ^ ordered[at]) <= radius
        counts[row] = total
    return counts


@njit(parallel=True, cache=True)
def _fill(ordered, starts, masks, radius, band, limits, rows, offsets, positions):
    """Write the pairs of the rows that have any; (-1, -1) for a pair that an earlier band lists."""
    shift = np.uint64(16 * band)
    for k in prange(len(rows)):
        row, at_out = rows[k], offsets[k]
        own = ordered[row]
        value = np.int64((own >> shift) & np.uint64(0xFFFF))
        for mask in masks:
            other = value ^ mask
            if other >= value:
                first = row + 1 if mask == 0 else starts[other]
                for at in range(first, starts[other + 1]):
                    difference = own ^ ordered[at]
                    if popcount(difference) <= radius:
                        listed = _listed_before(difference, band, limits)
                        positions[at_out, 0] = -1 if listed else row
                        positions[at_out, 1] = -1 if listed else at
                        at_out += 1


@njit(cache=True)
def _listed_before(difference, band, limits):
    for earlier in range(band):
        part = (difference >> np.uint64(16 * earlier)) & np.uint64(0xFFFF)
        if np.int64(popcount(part)) <= limits[earlier]:
            return True
    return False
