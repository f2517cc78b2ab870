"""Semantic near-duplicates: pairs of unit embeddings with a cosine above 1 - eps.

SemDeDup (Abbas et al., 2023): spherical k-means on a sample, then pairs are searched inside
clusters only. Here each embedding is searched in its nearest clusters, not just in one, because a
pair on a border would otherwise be missed.

Shape legend: N samples, K clusters, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK_ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class SemanticPairs:
    """Near pairs and what they were found with."""

    pairs: np.ndarray
    """int64 (P, 2), i < j, each once."""
    cosine: np.ndarray
    """float32 (P,)."""
    cluster: np.ndarray
    """int32 (N,): nearest cluster of each embedding, -1 where none was fitted."""


def semantic_pairs(
    embeddings_ND: np.ndarray, *, eps: float, clusters: int, sample: int, nearest: int, seed: int
) -> SemanticPairs:
    """Return all pairs with cosine > 1 - eps that share one of their `nearest` clusters."""
    count = len(embeddings_ND)
    if count == 0:
        return no_pairs(0)
    centroids_KD = spherical_kmeans(embeddings_ND, clusters=clusters, sample=sample, seed=seed)
    members = nearest_clusters(embeddings_ND, centroids_KD, min(nearest, len(centroids_KD)))
    found = [
        _pairs_inside(embeddings_ND, np.flatnonzero((members == cluster).any(axis=1)), 1 - eps)
        for cluster in range(len(centroids_KD))
    ]
    rows = np.concatenate([pairs for pairs, _ in found])
    cosine = np.concatenate([values for _, values in found])
    _, once = np.unique(rows[:, 0] * count + rows[:, 1], return_index=True)
    return SemanticPairs(pairs=rows[once], cosine=cosine[once], cluster=members[:, 0].astype(np.int32))


def no_pairs(count: int) -> SemanticPairs:
    """Return the answer for embeddings that are not searched."""
    nothing, unclustered = np.empty(0, np.float32), np.full(count, -1, np.int32)
    return SemanticPairs(pairs=np.empty((0, 2), np.int64), cosine=nothing, cluster=unclustered)


def spherical_kmeans(
    embeddings_ND: np.ndarray, *, clusters: int, sample: int, seed: int, iterations: int = 10
) -> np.ndarray:
    """Return unit centroids, float32 (K, D), of a seeded sample; K <= the sample's size."""
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.choice(len(embeddings_ND), min(sample, len(embeddings_ND)), replace=False))
    points = embeddings_ND[rows].astype(np.float32)
    centroids = points[np.sort(generator.choice(len(points), min(clusters, len(points)), replace=False))]
    for _ in range(iterations):
        own = nearest_clusters(points, centroids, 1)[:, 0]
        sums = np.zeros_like(centroids)
        np.add.at(sums, own, points)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centroids = np.where(norms > 0, sums / np.maximum(norms, 1e-12), centroids)
    return centroids


def nearest_clusters(embeddings_ND: np.ndarray, centroids_KD: np.ndarray, nearest: int) -> np.ndarray:
    """Return the `nearest` clusters of each embedding, nearest first, int64 (N, nearest), in blocks."""
    best = np.empty((len(embeddings_ND), nearest), np.int64)
    for first in range(0, len(embeddings_ND), BLOCK_ROWS):
        cosine = embeddings_ND[first : first + BLOCK_ROWS].astype(np.float32) @ centroids_KD.T
        best[first : first + BLOCK_ROWS] = np.argsort(-cosine, axis=1, kind="stable")[:, :nearest]
    return best


def _pairs_inside(embeddings_ND: np.ndarray, rows: np.ndarray, least_cosine: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the near pairs among the given rows (ascending), block against block."""
    pairs, values = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    blocks = [rows[first : first + BLOCK_ROWS] for first in range(0, len(rows), BLOCK_ROWS)]
    for at, left in enumerate(blocks):
        left_embeddings = embeddings_ND[left].astype(np.float32)
        for right in blocks[at:]:
            cosine = left_embeddings @ embeddings_ND[right].astype(np.float32).T
            i, j = np.nonzero(cosine > least_cosine)
            ahead = left[i] < right[j]
            pairs.append(np.stack([left[i], right[j]], axis=1)[ahead])
            values.append(cosine[i, j][ahead])
    return np.concatenate(pairs), np.concatenate(values)
