"""Dedup of a corpus in memory: every kind of duplicate under one ranking.

Equal bytes are folded first. Error images (the same bytes under many captions) leave before
anything is compared. The rest are samples of one relation, near by hash or by embedding, whose
greedy survivors `curate.dedup.survivors` finds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate import ranking
from curate.config import DedupConfig
from curate.dedup.semantic import SemanticPairs, no_pairs, semantic_pairs
from curate.dedup.survivors import greedy

EXACT, PERCEPTUAL, SEMANTIC, ERROR_IMAGE = "exact", "perceptual", "semantic", "error_image"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """N decoded samples as columns."""

    uid: np.ndarray
    """str (N,)."""
    sha256: np.ndarray
    """str (N,)."""
    caption: np.ndarray
    """str (N,), '' where there is none."""
    phash64: np.ndarray
    """uint64 (N,)."""
    entropy_bits: np.ndarray
    """float32 (N,)."""
    policy: np.ndarray
    """int64 (N, 4) of `ranking.terms`."""
    embedding: np.ndarray
    """float16 (N, D), unit length."""


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What became of each of the N samples."""

    survivor: np.ndarray
    """int64 (N,): position of the survivor, its own where it survives, -1 for error images."""
    kind: np.ndarray
    """object (N,): None where it survives."""
    distance: np.ndarray
    """float32 (N,): bits, 1 - cosine, or 0; NaN where there is none."""
    is_flat: np.ndarray
    """bool (N,)."""
    cluster: np.ndarray
    """int32 (N,): semantic cluster, -1 without."""


def find_duplicates(corpus: Corpus, config: DedupConfig) -> Verdicts:
    """Return the verdict on each sample; depends on nothing but the samples and the settings."""
    count = len(corpus.uid)
    rank = ranking.rank(corpus.policy)
    first, is_error = _fold_exact(corpus, rank, config.error_image_captions)
    own = np.flatnonzero((first == np.arange(count)) & ~is_error)
    flat = corpus.entropy_bits < config.min_entropy_bits
    semantic = _semantic(corpus, own, config)
    near = greedy(corpus.phash64[own], ~flat[own], config.radius_bits, semantic.pairs, rank[own])

    survivor = np.full(count, -1, np.int64)
    survivor[own] = own[near.survivor]
    by_hash = np.zeros(count, bool)
    by_hash[own] = near.by_hash
    cluster = np.full(count, -1, np.int32)
    cluster[own] = semantic.cluster
    others = np.flatnonzero((first != np.arange(count)) & ~is_error)
    survivor[others], by_hash[others], cluster[others] = (
        survivor[first[others]],
        by_hash[first[others]],
        cluster[first[others]],
    )

    kind, distance = _explain(corpus, survivor, by_hash, is_error)
    return Verdicts(survivor=survivor, kind=kind, distance=distance, is_flat=flat, cluster=cluster)


def _fold_exact(corpus: Corpus, rank: np.ndarray, error_image_captions: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each sample the best-ranked one with its bytes, and whether those are an error image."""
    _, group = np.unique(corpus.sha256, return_inverse=True)
    order = np.lexsort((rank, group))
    starts = np.flatnonzero(np.r_[True, group[order][1:] != group[order][:-1]]) if len(order) else np.empty(0, int)
    first = order[starts][group]
    captions = np.unique(np.stack([group, np.unique(corpus.caption, return_inverse=True)[1]], axis=1), axis=0)
    different = np.bincount(captions[:, 0], minlength=len(starts))
    return first, (different >= error_image_captions)[group]


def _semantic(corpus: Corpus, own: np.ndarray, config: DedupConfig) -> SemanticPairs:
    """Return the near pairs among the samples at positions `own`, counted from 0; none where the step is off."""
    if config.semantic_eps is None:
        return no_pairs(len(own))
    return semantic_pairs(
        corpus.embedding[own],
        eps=config.semantic_eps,
        clusters=config.semantic_clusters,
        sample=config.semantic_sample,
        nearest=config.semantic_nearest,
        seed=config.seed,
    )


def _explain(
    corpus: Corpus, survivor: np.ndarray, by_hash: np.ndarray, is_error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    count = len(survivor)
    kind, distance = np.full(count, None, object), np.full(count, np.nan, np.float32)
    kind[is_error] = ERROR_IMAGE
    dropped = np.flatnonzero(~is_error & (survivor != np.arange(count)))
    keeper = survivor[dropped]
    same = corpus.sha256[dropped] == corpus.sha256[keeper]
    bits = np.bitwise_count(corpus.phash64[dropped] ^ corpus.phash64[keeper])
    cosine = (corpus.embedding[dropped].astype(np.float32) * corpus.embedding[keeper].astype(np.float32)).sum(axis=1)
    kind[dropped] = np.where(same, EXACT, np.where(by_hash[dropped], PERCEPTUAL, SEMANTIC))
    distance[dropped] = np.where(same, 0, np.where(by_hash[dropped], bits, 1 - cosine))
    return kind, distance
