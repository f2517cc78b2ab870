"""Hashes sorted by one band of 16 bits, and the comparison of hashes with many others at a time.

General pigeonhole: the bits are cut into bands of 16 and band i gets a threshold t_i with
sum(t_i + 1) = radius + 1, so that two hashes within the radius differ by at most t_i bits in some
band: otherwise they would differ by at least sum(t_i + 1) > radius bits. (Norouzi, Punjani and
Fleet, "Fast exact search in Hamming space with multi-index hashing", 2014; uneven thresholds as in
Qin et al., "GPH: similarity search in Hamming space", 2018.)

Shape legend: W words of 64 bits (1 for phash64, 4 for PDQ and SHA-256), N hashes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

BAND_BITS = 16
BAND_VALUES = 1 << BAND_BITS
LANES = 16
WIDE_LANES = 32
SORT_PARTS = 8


@dataclass(frozen=True, kw_only=True)
class Layout:
    """N hashes sorted by their value in one band; with `band` None all of them are one bucket."""

    words_WN: np.ndarray
    """uint64 (W, N), sorted."""
    order: np.ndarray
    """int32 or int64 (N,): position before sorting."""
    starts: np.ndarray
    """int64 (buckets + 1,): first row of each bucket."""


def layout(words_WN: np.ndarray, band: int | None, pool: Executor | None = None) -> Layout:
    """Return the hashes sorted by the band's value."""
    if band is None:
        whole, count = np.ascontiguousarray(words_WN), words_WN.shape[1]
        return Layout(words_WN=whole, order=np.arange(count, dtype=np.int32), starts=np.array([0, count]))
    word, shift = divmod(band * BAND_BITS, 64)
    starts, order = _counting_sort(words_WN[word], shift, pool)
    ordered = np.empty(words_WN.shape, np.uint64)
    each = pool.map if pool is not None else map
    list(each(lambda part: np.take(*part), _gathers(words_WN, order, ordered)))
    return Layout(words_WN=ordered, order=order, starts=starts)


def _gathers(words_WN: np.ndarray, order: np.ndarray, out: np.ndarray) -> Iterator[tuple]:
    """Yield the arguments of np.take for each word and part of the rows."""
    step = max(1, -(-len(order) // SORT_PARTS))
    for row in range(len(words_WN)):
        for first in range(0, len(order), step):
            part = slice(first, first + step)
            yield words_WN[row], order[part], None, out[row, part]


def band_limits(radius: int, bands: int) -> list[int]:
    """Return t_i of each band: as even as possible, -1 for a band that need not be searched."""
    base, extra = divmod(radius + 1, bands)
    return [base - 1 + (band < extra) for band in range(bands)]


def masks(limit: int) -> np.ndarray:
    """Return every 16-bit difference of at most `limit` bits, the zero difference first, int64."""
    differences = [
        sum(1 << bit for bit in bits)
        for size in range(limit + 1)
        for bits in itertools.combinations(range(BAND_BITS), size)
    ]
    return np.array(differences, dtype=np.int64)


def _counting_sort(words: np.ndarray, shift: int, pool: Executor | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of each bucket, and the stable order of the rows by bucket; parts in parallel."""
    order = np.empty(len(words), np.int32 if len(words) < 2**31 else np.int64)
    parts = np.array_split(words, min(SORT_PARTS, max(1, len(words) // BAND_VALUES)))
    each = pool.map if pool is not None else map
    counts = np.stack(list(each(lambda part: _count_values(part, shift), parts)))
    starts = np.concatenate([[0], np.cumsum(counts.sum(axis=0))])
    following = starts[:-1] + np.cumsum(counts, axis=0) - counts
    firsts = np.cumsum([0, *map(len, parts)])
    list(each(lambda at: _place(parts[at], shift, firsts[at], following[at], order), range(len(parts))))
    return starts, order


@njit(nogil=True, cache=True)
def _count_values(words, shift):
    counts = np.zeros(BAND_VALUES, np.int64)
    for word in words:
        counts[np.int64((word >> np.uint64(shift)) & np.uint64(0xFFFF))] += 1
    return counts


@njit(nogil=True, cache=True)
def _place(words, shift, first, following, order):
    for at in range(len(words)):
        value = np.int64((words[at] >> np.uint64(shift)) & np.uint64(0xFFFF))
        order[following[value]] = first + at
        following[value] += 1


def _any_near(num_rows: int, whole: bool):  # noqa: ANN202 - numba's own type
    """Return a compiled function that tells whether any of some hashes is near any of WIDE_LANES others.

    One comparison for the smallest of all distances; each of the others is loaded once for all rows.
    Where not `whole`, only `left` of the others exist.
    """
    vector = ir.VectorType(ir.IntType(64), 8)

    def generate(context, builder, signature, arguments):
        address, left, limit, *own = arguments
        own_8 = [_spread(builder, word, vector) for word in own]
        far, nearest = ir.Constant(vector, [64] * 8), None
        for part in range(WIDE_LANES // 8):
            pointer = builder.inttoptr(builder.add(address, ir.Constant(address.type, 64 * part)), vector.as_pointer())
            if whole:
                others = builder.load(pointer, align=8)
            else:
                lanes = ir.Constant(vector, list(range(8 * part, 8 * part + 8)))
                exists = builder.icmp_unsigned("<", lanes, _spread(builder, left, vector))
                align = ir.Constant(ir.IntType(32), 8)
                others = _call(builder, "llvm.masked.load.v8i64.p0", vector, pointer, align, exists, far)
            for word in own_8:
                count = _call(builder, "llvm.ctpop.v8i64", vector, builder.xor(others, word))
                count = count if whole else builder.select(exists, count, far)
                nearest = count if nearest is None else _call(builder, "llvm.umin.v8i64", vector, nearest, count)
        near = builder.icmp_unsigned("<=", nearest, _spread(builder, limit, vector))
        return builder.zext(builder.bitcast(near, ir.IntType(8)), ir.IntType(64))

    return types.uint64(types.intp, types.uint64, types.uint64, *[types.uint64] * num_rows), generate


@intrinsic
def any_near_1(_, address, left, limit, own):
    """Return non-zero where any of WIDE_LANES hashes of one word from `address` on is within the limit."""
    return _any_near(1, whole=True)


@intrinsic
def any_near_1_left(_, address, left, limit, own):
    """Return the same where only `left` of them exist."""
    return _any_near(1, whole=False)


@intrinsic
def any_near_4(_, address, left, limit, own_0, own_1, own_2, own_3):
    """Return the same for four hashes at once."""
    return _any_near(4, whole=True)


@intrinsic
def any_near_4_left(_, address, left, limit, own_0, own_1, own_2, own_3):
    """Return the same for four hashes at once where only `left` of the others exist."""
    return _any_near(4, whole=False)


def _spread(builder, value, vector):  # noqa: ANN001, ANN202 - llvmlite's own types
    """Return a vector with the value in every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    lanes = ir.VectorType(ir.IntType(32), vector.count)
    return builder.shuffle_vector(one, undefined, ir.Constant(lanes, [0] * vector.count))


def _call(builder, name, result, *values):  # noqa: ANN001, ANN202 - llvmlite's own types
    """Call an intrinsic function of LLVM."""
    known = builder.module.globals.get(name)
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(known or ir.Function(builder.module, kind, name), values)


def _near_lanes(num_words: int):  # noqa: ANN202 - numba's own type
    """Return a compiled function that compares one hash with LANES others of which `left` exist.

    Its result has bit k set where lane k is within the radius. Written as vector instructions by
    hand, because the compiler's own loop handles the last 31 elements of each bucket one by one.
    """
    vector, bits = ir.VectorType(ir.IntType(64), LANES), ir.VectorType(ir.IntType(1), LANES)

    def generate(context, builder, signature, arguments):
        address, stride, left, radius, *own = arguments
        exists = builder.icmp_unsigned("<", ir.Constant(vector, list(range(LANES))), _spread(builder, left, vector))
        distance, none = None, ir.Constant(vector, [0] * LANES)
        for word in range(num_words):
            at = builder.add(address, builder.mul(stride, ir.Constant(address.type, word)))
            pointer = builder.inttoptr(at, vector.as_pointer())
            align = ir.Constant(ir.IntType(32), 8)
            others = _call(builder, f"llvm.masked.load.v{LANES}i64.p0", vector, pointer, align, exists, none)
            count = _call(
                builder, f"llvm.ctpop.v{LANES}i64", vector, builder.xor(others, _spread(builder, own[word], vector))
            )
            distance = count if distance is None else builder.add(distance, count)
        near = builder.and_(builder.icmp_unsigned("<=", distance, _spread(builder, radius, vector)), exists)
        assert near.type == bits
        return builder.zext(builder.bitcast(near, ir.IntType(LANES)), ir.IntType(64))

    taken = (types.intp, types.intp, types.uint64, types.uint64, *[types.uint64] * num_words)
    return types.uint64(*taken), generate


@intrinsic
def near_lanes_1(_, address, stride, left, radius, own):
    """Compare a hash of one word with the hashes from `address` on."""
    return _near_lanes(1)


@intrinsic
def near_lanes_4(_, address, stride, left, radius, own_0, own_1, own_2, own_3):
    """Compare a hash of four words, each word of the others `stride` bytes after the one before."""
    return _near_lanes(4)


@intrinsic
def popcount(_, word):
    """Return the number of set bits of a uint64, as the processor's own instruction."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def lowest_bit(_, word):
    """Return the number of the lowest set bit of a uint64 that is not zero."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate
