"""Diversity: how evenly samples lie in the clusters of embeddings, and what a cap or a temperature makes of it.

Shape legend: C clusters.
"""

from __future__ import annotations

import numpy as np

from curate.config import DiversityConfig


def targets(sizes_C: np.ndarray, config: DiversityConfig) -> np.ndarray:
    """Return how many samples of each cluster stay, int64 (C,)."""
    if config.max_per_cluster is not None:
        return np.minimum(sizes_C, config.max_per_cluster)
    assert config.temperature is not None and config.keep_fraction is not None
    wanted = round(config.keep_fraction * int(sizes_C.sum()))
    exact = _filled(sizes_C, sizes_C.astype(float) ** config.temperature, wanted)
    whole = np.floor(exact + 1e-9).astype(np.int64)
    left = wanted - int(whole.sum())
    by_remainder = np.argsort(whole - exact, kind="stable")
    by_remainder = by_remainder[whole[by_remainder] < sizes_C[by_remainder]]
    whole[by_remainder[:left]] += 1
    return whole


def _filled(sizes_C: np.ndarray, shares_C: np.ndarray, wanted: int) -> np.ndarray:
    """Return min(size, s * share) with s such that they sum to `wanted`; what a full cluster cannot take goes on."""
    full_at = np.sort(sizes_C / np.maximum(shares_C, 1e-300))
    low, high = 0.0, float(full_at[-1]) if len(full_at) else 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(sizes_C, middle * shares_C).sum() < wanted else (low, middle)
    return np.minimum(sizes_C, high * shares_C)


def weights(sizes_C: np.ndarray, config: DiversityConfig) -> np.ndarray:
    """Return the weight of a sample of each cluster, float64 (C,); over all samples their mean is 1.

    A cap gives a cluster of n samples the mass min(n, cap), a temperature the mass n^T.
    """
    sizes = np.maximum(sizes_C, 1).astype(float)
    if config.max_per_cluster is not None:
        raw = np.minimum(1.0, config.max_per_cluster / sizes)
    else:
        assert config.temperature is not None
        raw = sizes ** (config.temperature - 1.0)
    mass = (raw * sizes_C).sum()
    return raw * sizes_C.sum() / mass if mass else np.ones(len(sizes_C))


def figures(mass_C: np.ndarray) -> dict[str, float]:
    """Return how evenly a mass (samples, or their weights) lies in the clusters.

    `entropy_nats` is H = -sum p ln p; `effective_clusters` is exp(H), the number of equal clusters with
    that entropy (Hill 1973, order 1); `effective_clusters_by_pairs` is 1 / sum p^2 (order 2).
    """
    there = mass_C[mass_C > 0].astype(float)
    share = there / there.sum() if len(there) else there
    entropy = float(-(share * np.log(share)).sum())
    return {
        "clusters": len(there),
        "entropy_nats": round(entropy, 4),
        "effective_clusters": round(float(np.exp(entropy)), 2) if len(there) else 0.0,
        "effective_clusters_by_pairs": round(float(1 / (share**2).sum()), 2) if len(there) else 0.0,
        "largest_share": round(float(share.max()), 4) if len(there) else 0.0,
    }
