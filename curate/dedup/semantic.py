"""Semantic near-duplicates: pairs of unit embeddings whose cosine is above a limit.

SemDeDup (Abbas et al., 2023): spherical k-means on a sample, then pairs are searched inside
clusters only. Here each embedding is searched in its nearest clusters, not just in one, because a
pair on a border would otherwise be missed.

Products of 8-bit codes only rule pairs out: their error is bounded, and what may be near is looked
at again by `exact_cosine`. The answer therefore depends neither on the blocks nor on the device.
Rows are ordered by rank: a smaller row is the better sample.

Shape legend: N samples, K clusters, M clusters searched for each sample, D embedding width,
P pairs, R rows of one cluster, of which a block compares L on the left with R on the right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

BLOCK_ROWS = 512
BLOCK_COLUMNS = 4096
ASSIGNED_PRODUCTS = 1 << 22
"""Products of embeddings with centroids that are held at once."""
ALIGN = 64
"""Shapes of codes are multiples of this: few matrix products to compile, and legal ones on CUDA."""
CODE_MAX = 79
"""(128 + 79) * 79 * 2 fits 16 bits: processors without VNNI add two such products, and saturate."""
HEAD_SAFETY = 3.0
"""Times the columns that would rule out a pair without chance in them."""
MANY = 1e-3
"""Of a block's pairs: from here on one more product is cheaper than their exact cosines."""
NORM_MAX = 1.01
"""Of a unit embedding that was rounded to float16."""


def fit_clusters(
    sample_ND: np.ndarray, *, clusters: int, seed: int, iterations: int = 8, device: str | None = None
) -> np.ndarray:
    """Return the unit centroids of a spherical k-means, float32 (K, D), K = min(clusters, N).

    A cluster that has lost all its members keeps its centroid.
    """
    sample_ND = np.ascontiguousarray(sample_ND, np.float16)
    first = np.random.default_rng(seed).choice(len(sample_ND), min(clusters, len(sample_ND)), replace=False)
    centroids_KD = sample_ND[np.sort(first)].astype(np.float32)
    for _ in range(iterations if len(centroids_KD) else 0):
        own = nearest_clusters(sample_ND, centroids_KD, 1, device)[:, 0]
        sums_KD = _sums(sample_ND.view(np.uint16), own, len(centroids_KD))
        norm_K = np.linalg.norm(sums_KD, axis=1)
        centroids_KD[norm_K > 0] = (sums_KD[norm_K > 0] / norm_K[norm_K > 0, None]).astype(np.float32)
    return centroids_KD


def nearest_clusters(
    embeddings_ND: np.ndarray, centroids_KD: np.ndarray, nearest: int, device: str | None = None
) -> np.ndarray:
    """Return the nearest clusters of each embedding, int32 (N, min(nearest, K)), nearest first.

    Ties go to the smaller cluster. Cosines are those of 8-bit codes: integers, equal on every device.
    """
    count, clusters = len(embeddings_ND), len(centroids_KD)
    nearest_NM = np.empty((count, min(nearest, clusters)), np.int32)
    if nearest_NM.size == 0:
        return nearest_NM
    bits_ND, centroids = _bits(embeddings_ND), _centroid_codes(centroids_KD).to(_device(device))
    at_once = _padded(max(ASSIGNED_PRODUCTS // len(centroids), 1))
    multiply = _Multiply(at_once * len(centroids), centroids.device)
    for first in range(0, count, at_once):
        rows = np.arange(first, min(first + at_once, count))
        codes = torch.from_numpy(_encode(bits_ND, rows, 0)[0]).to(centroids.device)
        products_RK = multiply(codes, centroids)[: len(rows), :clusters]
        for at in range(nearest_NM.shape[1]):
            best = torch.argmax(products_RK, dim=1, keepdim=True)  # the first of equal ones
            nearest_NM[rows, at] = best[:, 0].cpu().numpy()
            products_RK.scatter_(1, best, torch.iinfo(torch.int32).min)
    return nearest_NM


def cluster_rows(members_NM: np.ndarray, clusters: int) -> list[np.ndarray]:
    """Return for each cluster the rows that are searched in it, ascending int64."""
    members = members_NM.reshape(-1)
    narrow = np.uint16 if clusters <= 1 << 16 else np.int32  # 16 bits are sorted by radix
    rows = np.argsort(members.astype(narrow), kind="stable") // max(members_NM.shape[1], 1)
    ends = np.cumsum(np.bincount(members, minlength=clusters))
    return np.split(rows, ends[:-1]) if clusters else []


def near_pairs(
    embeddings_ND: np.ndarray, rows_of: Sequence[np.ndarray], least_cosine: float, device: str | None = None
) -> Iterator[np.ndarray]:
    """Yield the near pairs i < j that share a cluster, int64 (P, 2), those of a block at a time.

    A pair comes once for each cluster that it shares. Raises ValueError for embeddings longer than 1 or NaN.
    """
    search = _Search(embeddings_ND, least_cosine, device)
    for rows in rows_of:
        cluster = search.encode(rows, search.head_columns(rows))
        for left, right in _triangle(len(rows)):
            at_left, at_right = search.candidates(cluster.take(left), cluster.take(right), left.start == right.start)
            i, j = rows[left][at_left], rows[right][at_right]
            pairs = np.stack([i, j], axis=1)[i < j]
            near = _cosines(search.bits_ND, pairs[:, 0], pairs[:, 1]) > least_cosine
            if near.any():
                yield pairs[near]


def mark_near(
    embeddings_ND: np.ndarray, rows_of: Sequence[np.ndarray], least_cosine: float, device: str | None = None
) -> np.ndarray:
    """Return which rows are near another row that shares a cluster with them, bool (N,).

    Raises ValueError for embeddings longer than 1 or NaN.
    """
    search = _Search(embeddings_ND, least_cosine, device)
    is_near = np.zeros(len(embeddings_ND), bool)
    for rows in rows_of:
        cluster = search.encode(rows, search.head_columns(rows))
        for left, right in _triangle(len(rows)):
            if is_near[rows[left]].all() and is_near[rows[right]].all():
                continue
            i, j = search.candidates(cluster.take(left), cluster.take(right), left.start == right.start)
            _mark(search.bits_ND, rows[left][i], rows[right][j], least_cosine, is_near)
    return is_near


def nearest_survivors(
    embeddings_ND: np.ndarray,
    rows_of: Sequence[np.ndarray],
    least_cosine: float,
    of: np.ndarray,
    among: np.ndarray,
    device: str | None = None,
) -> np.ndarray:
    """Return for each row of `of` the smallest row of `among` near it, int64 (len(of),), -1 where there is none.

    Both are ascending and share no row; the two rows share a cluster.
    Raises ValueError for embeddings longer than 1 or NaN.
    """
    search = _Search(embeddings_ND, least_cosine, device)
    none = len(embeddings_ND)
    best_N = np.full(none, none, np.int64)
    is_of, is_among = np.zeros(none, bool), np.zeros(none, bool)
    is_of[of], is_among[among] = True, True
    for rows in rows_of:
        asking, answers = rows[is_of[rows]], rows[is_among[rows]]
        if len(asking) and len(answers):
            _find_survivors(search, asking, answers, best_N)
    return np.where(best_N[of] < none, best_N[of], -1)


def exact_cosine(embeddings_ND: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Return the dot product of rows i[p] and j[p], float64 (P,).

    It is exact in whatever order: products of float16 are multiples of 2**-48, and sums below 32 of those fit.
    """
    return _cosines(_bits(embeddings_ND), np.asarray(i, np.int64), np.asarray(j, np.int64))


@dataclass(frozen=True, kw_only=True)
class _Codes:
    """R embeddings as 8-bit codes, padded with rows that are near nothing."""

    codes_RD: torch.Tensor
    """int8; an embedding is about its scale times its codes."""
    scale_R: torch.Tensor
    slack_R: torch.Tensor
    """The cosine of two embeddings exceeds that of their codes by less than the slack of both."""
    tail_R: torch.Tensor
    """Length of the embedding without its head."""
    head: int
    """Columns of the head."""

    def take(self, at: slice | torch.Tensor) -> _Codes:
        return _Codes(
            codes_RD=self.codes_RD[at],
            scale_R=self.scale_R[at],
            slack_R=self.slack_R[at],
            tail_R=self.tail_R[at],
            head=self.head,
        )


class _Multiply:
    """Products of codes, int32 (L, R), valid until the next call: fresh memory costs more than the product."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.memory = torch.empty(size, dtype=torch.int32, device=device)

    def __call__(self, left_LD: torch.Tensor, right_RD: torch.Tensor) -> torch.Tensor:
        products_LR = self.memory[: len(left_LD) * len(right_RD)].view(len(left_LD), len(right_RD))
        return torch._int_mm(left_LD, right_RD.T, out=products_LR)


class _Search:
    """Finds the pairs that may be near: all that are, and few others."""

    def __init__(self, embeddings_ND: np.ndarray, least_cosine: float, device: str | None) -> None:
        self.bits_ND = _bits(embeddings_ND)
        self.least_cosine = least_cosine
        self.device = _device(device)
        self.multiply = _Multiply(_padded(BLOCK_ROWS) * _padded(BLOCK_COLUMNS), self.device)

    def head_columns(self, rows: np.ndarray) -> int:
        """Return how many first columns rule out most pairs of a cluster, from how alike a few of its rows are.

        Tails may be equal, so that a pair with cosine c has 1 - share * (1 - c) left. Only the speed depends on it.
        """
        width = self.bits_ND.shape[1]
        few = self.bits_ND[rows[:: max(len(rows) // 64, 1)]].view(np.float16).astype(np.float32)
        cosines = torch.from_numpy(few) @ torch.from_numpy(few).T  # numpy's threads would spin beside torch's
        alike = float(cosines.flatten().quantile(0.97)) if len(few) else 0.0
        share = HEAD_SAFETY * (1 - self.least_cosine + 0.03) / max(1 - alike, 1e-3)
        return _padded(int(share * width)) if share < 0.75 else _padded(width)

    def encode(self, rows: np.ndarray, head: int) -> _Codes:
        """Return the codes of some rows."""
        codes_RD, scale_R, error_R, norm_R, tail_R = _encode(self.bits_ND, rows, head)
        if not (norm_R <= NORM_MAX).all():
            raise ValueError(f"embeddings[{rows[norm_R[: len(rows)].argmax()]}] is longer than 1 or NaN: normalise it")
        # x.y = x'.y' + x.(y - y') + y.(x - x') - (x - x').(y - y') for the codes' x', y', and ab <= (a^2 + b^2) / 2
        slack_R = NORM_MAX * error_R + error_R**2 / 2 + np.float32(1e-5)
        slack_R[len(rows) :] = -np.inf
        at_device = [torch.from_numpy(column).to(self.device) for column in (codes_RD, scale_R, slack_R, tail_R)]
        return _Codes(codes_RD=at_device[0], scale_R=at_device[1], slack_R=at_device[2], tail_R=at_device[3], head=head)

    def candidates(self, left: _Codes, right: _Codes, is_diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return positions in left and right of all pairs that may be near, ascending.

        On the diagonal a row meets itself. Where the heads leave many pairs, all columns are compared.
        """
        width = left.codes_RD.shape[1]
        i, j = self._possible(left, right, left.head, is_diagonal)
        if left.head < width and len(i) > MANY * len(left.codes_RD) * len(right.codes_RD):
            rows = np.unique(i)
            again = np.pad(rows, (0, _padded(len(rows)) - len(rows)))
            i, j = self._possible(left.take(torch.from_numpy(again).to(self.device)), right, width, False)
            i, j = again[i[i < len(rows)]], j[i < len(rows)]
        return i, j

    def _possible(self, left: _Codes, right: _Codes, head: int, is_diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs that the first columns do not rule out: x.y <= x_head.y_head + |x_tail| |y_tail|."""
        products_LR = self.multiply(left.codes_RD[:, :head], right.codes_RD[:, :head])
        if is_diagonal:
            products_LR.diagonal().zero_()
        has_tail = float(head < left.codes_RD.shape[1])
        cosine_L = products_LR.amax(dim=1).clamp(min=0) * left.scale_R * right.scale_R.max()
        bound_L = cosine_L + left.slack_R + right.slack_R.max() + has_tail * left.tail_R * right.tail_R.max()
        hit = torch.nonzero(bound_L > self.least_cosine)[:, 0]
        if len(hit) == 0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        left = left.take(hit)
        of_left = [products_LR[hit], left.scale_R, left.slack_R, has_tail * left.tail_R]
        columns = [column.cpu().numpy() for column in (*of_left, right.scale_R, right.slack_R, right.tail_R)]
        i, j = _above(*columns, np.float32(self.least_cosine))
        return hit.cpu().numpy()[i], j


def _find_survivors(search: _Search, asking: np.ndarray, answers: np.ndarray, best_N: np.ndarray) -> None:
    head = search.head_columns(asking)
    all_left, all_right = search.encode(asking, head), search.encode(answers, head)
    for left in _blocks(0, len(asking), BLOCK_ROWS):
        for right in _blocks(0, len(answers), BLOCK_COLUMNS):
            if (best_N[asking[left]] < answers[right.start]).all():
                break  # later answers are worse still
            i, j = search.candidates(all_left.take(left), all_right.take(right), False)
            _improve(search.bits_ND, asking[left][i], answers[right][j], search.least_cosine, best_N)


def _triangle(count: int) -> Iterator[tuple[slice, slice]]:
    """Yield blocks that hold every pair i < j."""
    for left in _blocks(0, count, BLOCK_ROWS):
        for right in _blocks(left.start, count, BLOCK_COLUMNS):
            yield left, right


def _blocks(first: int, count: int, size: int) -> Iterator[slice]:
    for start in range(first, count, size):
        yield slice(start, start + size)


def _centroid_codes(centroids_KD: np.ndarray) -> torch.Tensor:
    """Return the codes of all centroids in one scale, so that products order them; int8, padded."""
    codes_KD = np.zeros((_padded(centroids_KD.shape[0]), _padded(centroids_KD.shape[1])), np.int8)
    scale = max(float(np.abs(centroids_KD).max()), 1e-30) / CODE_MAX
    codes_KD[: centroids_KD.shape[0], : centroids_KD.shape[1]] = np.rint(centroids_KD / scale)
    return torch.from_numpy(codes_KD)


def _encode(bits_ND: np.ndarray, rows: np.ndarray, head: int) -> tuple[np.ndarray, ...]:
    """Return int8 codes (R, D), and float32 scale, length of what the codes miss, length, length of the tail (R,)."""
    count = _padded(len(rows))
    codes_RD = np.zeros((count, _padded(bits_ND.shape[1])), np.int8)
    scale_R, error_R, norm_R, tail_R = np.zeros((4, count), np.float32)
    _fill_codes(bits_ND, rows, head, codes_RD, scale_R, error_R, norm_R, tail_R)
    return codes_RD, scale_R, error_R, norm_R, tail_R


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _bits(embeddings_ND: np.ndarray) -> np.ndarray:
    assert embeddings_ND.dtype == np.float16
    return np.asarray(embeddings_ND).view(np.uint16)


def _device(device: str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@intrinsic
def _half(_, bits):
    """Return the float32 value of a float16's bits, which numba has no type for."""

    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@njit(cache=True, fastmath={"reassoc", "contract"})
def _cosine(bits_ND, i, j):
    total = 0.0
    for d in range(bits_ND.shape[1]):
        total += np.float64(_half(bits_ND[i, d])) * np.float64(_half(bits_ND[j, d]))
    return total


@njit(cache=True)
def _cosines(bits_ND, i, j):
    cosine = np.empty(len(i), np.float64)
    for p in range(len(i)):
        cosine[p] = _cosine(bits_ND, i[p], j[p])
    return cosine


@njit(cache=True)
def _count_above(products_LR, scale_L, slack_L, tail_L, scale_R, slack_R, tail_R, least_cosine):
    count_L = np.zeros(len(products_LR), np.int64)
    for i in range(len(products_LR)):
        scale, least, tail, count = scale_L[i], least_cosine - slack_L[i], tail_L[i], 0
        for j in range(len(scale_R)):
            count += np.float32(products_LR[i, j]) * scale * scale_R[j] + slack_R[j] + tail * tail_R[j] > least
        count_L[i] = count
    return count_L


@njit(cache=True)
def _above(products_LR, scale_L, slack_L, tail_L, scale_R, slack_R, tail_R, least_cosine):
    """Return the positions whose bound is above the limit, row by row."""
    count_L = _count_above(products_LR, scale_L, slack_L, tail_L, scale_R, slack_R, tail_R, least_cosine)
    i_P, j_P, found = np.empty(count_L.sum(), np.int64), np.empty(count_L.sum(), np.int64), 0
    for i in np.flatnonzero(count_L):
        scale, least, tail = scale_L[i], least_cosine - slack_L[i], tail_L[i]
        for j in range(len(scale_R)):
            if np.float32(products_LR[i, j]) * scale * scale_R[j] + slack_R[j] + tail * tail_R[j] > least:
                i_P[found], j_P[found] = i, j
                found += 1
    return i_P[:found], j_P[:found]


@njit(cache=True)
def _mark(bits_ND, i, j, least_cosine, is_near):
    """Mark both rows of each near pair."""
    for p in range(len(i)):
        known = is_near[i[p]] and is_near[j[p]]
        if not known and i[p] != j[p] and _cosine(bits_ND, i[p], j[p]) > least_cosine:
            is_near[i[p]] = is_near[j[p]] = True


@njit(cache=True)
def _improve(bits_ND, asking, answers, least_cosine, best_N):
    """Lower best_N to the smallest near answer."""
    for p in range(len(asking)):
        if answers[p] < best_N[asking[p]] and _cosine(bits_ND, asking[p], answers[p]) > least_cosine:
            best_N[asking[p]] = answers[p]


@njit(cache=True)
def _sums(bits_ND, own, clusters):
    """Return the sum of each cluster's members, float64 (K, D), always in the same order."""
    sums_KD = np.zeros((clusters, bits_ND.shape[1]), np.float64)
    for row in range(len(own)):
        for d in range(bits_ND.shape[1]):
            sums_KD[own[row], d] += _half(bits_ND[row, d])
    return sums_KD


@njit(cache=True, parallel=True, fastmath={"reassoc", "contract"})
def _fill_codes(bits_ND, rows, head, codes_RD, scale_R, error_R, norm_R, tail_R):
    for at in prange(len(rows)):
        values_D = np.empty(bits_ND.shape[1], np.float32)
        peak_bits = np.uint16(0)
        for d in range(len(values_D)):
            bits = bits_ND[rows[at], d]
            values_D[d] = _half(bits)
            peak_bits = max(peak_bits, np.uint16(bits & np.uint16(0x7FFF)))  # bits of positive floats are in order
        peak = _half(peak_bits)
        scale = peak / np.float32(CODE_MAX) if peak > 0 else np.float32(1)
        inverse = np.float32(1) / scale
        error, before, after = np.float32(0), np.float32(0), np.float32(0)
        for d in range(len(values_D)):
            code = np.rint(values_D[d] * inverse)
            codes_RD[at, d] = np.int8(code)
            error += (values_D[d] - code * scale) ** 2
        for d in range(min(head, len(values_D))):
            before += values_D[d] ** 2
        for d in range(head, len(values_D)):
            after += values_D[d] ** 2
        scale_R[at], error_R[at] = scale, np.sqrt(error)
        norm_R[at], tail_R[at] = np.sqrt(before + after), np.sqrt(after)
