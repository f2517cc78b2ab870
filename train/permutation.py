"""Keyed permutations of 0..n - 1 for any n, computed place by place: nothing of size n is ever stored."""

from __future__ import annotations

import numba
import numpy as np

ROUNDS = 64
_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def key(*words: int) -> int:
    """Return 64 bits that depend on every word (0 or more, below 2^64) and on their order."""
    mixed = 0
    for word in words:  # _mix in Python's numbers: a call of the compiled one costs more than the arithmetic
        mixed = (mixed ^ word) + _GOLDEN & _WORD
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _WORD
        mixed ^= mixed >> 31
    return mixed


def permute(places: np.ndarray, size: int, permutation_key: int) -> np.ndarray:
    """Return where the permutation of 0..size - 1 sends each place, int64 (N,)."""
    out = np.empty(len(places), dtype=np.int64)
    _swap_or_not(np.ascontiguousarray(places, dtype=np.int64), np.uint64(size), np.uint64(permutation_key), out)
    return out


@numba.njit("uint64(uint64)", cache=True, inline="always")
def _mix(word):
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@numba.njit("void(int64[::1], uint64, uint64, int64[::1])", cache=True)
def _swap_or_not(places, size, permutation_key, out):
    """The swap-or-not shuffle (Hoang, Morris, Rogaway 2012, figure 1).

    Each round pairs x with k - x mod n and swaps the pair by a bit that both of them share, so each
    round, and hence the whole, is one to one.
    """
    golden = np.uint64(_GOLDEN)
    round_keys, shifts = np.empty(ROUNDS, dtype=np.uint64), np.empty(ROUNDS, dtype=np.uint64)
    for number in range(ROUNDS):
        round_keys[number] = _mix(permutation_key + golden * np.uint64(number + 1))
        shifts[number] = round_keys[number] % size + size
    for place in range(len(places)):
        x = np.uint64(places[place])
        for number in range(ROUNDS):
            partner = shifts[number] - x
            if partner >= size:
                partner -= size
            if _mix(max(x, partner) ^ round_keys[number]) >> np.uint64(63):
                x = partner
        out[place] = np.int64(x)
