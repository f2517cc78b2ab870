"""Settings: what counts as the same picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from curate.config.check import require


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """What counts as the same picture."""

    radius_bits: int = 4
    """Hamming radius on 64-bit phash64, 0..16."""
    confirm_pdq_bits: int | None = None
    """A pair near by phash64 must be within this radius on 256-bit PDQ, too (31 is usual); null asks for no second."""
    turns: Literal["none", "flips", "all"] = "none"
    """Whether a mirrored or half-turned picture (flips), or one turned by a quarter as well (all), is the same."""
    min_entropy_bits: float = 2.0
    """Flatter pictures match everything and are left out of perceptual matching, 0..8."""
    max_text_share: float = 0.8
    """Pictures of which more is lines of text, 0..1, look alike as hashes and are left out of them, too."""
    error_image_captions: int = 8
    """The same bytes under this many different captions are an error image: none survives."""
    error_image_urls: int = 100
    """So are the same bytes at this many different URLs."""
    semantic_eps: float | None = 0.05
    """Cosine above 1 - eps is the same picture; null switches the semantic step off."""
    semantic_clusters: int | None = None
    """k of the spherical k-means; null takes one for 2,000 samples, but at least 50 drawn embeddings for each."""
    semantic_sample: int = 1_000_000
    """Embeddings that the clusters are fitted on, drawn by uid."""
    semantic_nearest: int = 3
    """Clusters in which each embedding is searched."""
    seed: int = 0
    """Seed of sample and clusters."""
    index: str | None = None
    """Folder (fsspec URL) with the survivors of earlier corpora: they win, and this corpus' survivors join them."""
    rows_per_block: int = 10_000_000
    """Samples whose hashes one task holds; it holds two such blocks at a time."""
    rows_per_group: int = 500_000
    """Embeddings that one task holds; 1.5 GB a million at 768 values."""
    max_pairs: int = 16_000_000
    """Near pairs that are held at a time, some 40 bytes each; more are decided in rounds."""

    def __post_init__(self) -> None:
        require(0 <= self.radius_bits <= 16, "dedup.radius_bits", self.radius_bits, "must be 0..16")
        pdq_ok = self.confirm_pdq_bits is None or 0 <= self.confirm_pdq_bits <= 255
        require(pdq_ok, "dedup.confirm_pdq_bits", self.confirm_pdq_bits, "must be 0..255, or null")
        eps_ok = self.semantic_eps is None or 0 < self.semantic_eps < 1
        require(eps_ok, "dedup.semantic_eps", self.semantic_eps, "must be above 0 and below 1, or null")
        share_ok = 0 <= self.max_text_share <= 1
        require(share_ok, "dedup.max_text_share", self.max_text_share, "must be 0..1; 1 leaves none out")
        entropy_ok = 0 <= self.min_entropy_bits <= 8
        require(entropy_ok, "dedup.min_entropy_bits", self.min_entropy_bits, "must be 0..8; 0 leaves none out")
        require(self.error_image_captions > 1, "dedup.error_image_captions", self.error_image_captions, "must be >= 2")
        require(self.error_image_urls > 1, "dedup.error_image_urls", self.error_image_urls, "must be >= 2")
        clusters_ok = self.semantic_clusters is None or self.semantic_clusters > 0
        require(clusters_ok, "dedup.semantic_clusters", self.semantic_clusters, "must be at least 1, or null")
        for name in ("semantic_sample", "semantic_nearest", "rows_per_block", "rows_per_group"):
            require(getattr(self, name) > 0, f"dedup.{name}", getattr(self, name), "must be at least 1")
        require(self.max_pairs >= 0, "dedup.max_pairs", self.max_pairs, "must be 0 or more")
