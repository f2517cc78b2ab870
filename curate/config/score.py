"""Settings: the heads that turn embeddings into scores, and the blocklists."""

from __future__ import annotations

import re
from dataclasses import dataclass

from curate.config.check import require


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """A small network on the image embedding that gives one score."""

    column: str
    """Name of the score's column, with its unit."""
    weights: str | None = None
    """Name in infra/weights.yaml, where the head's layers, range and direction stand; null means untrained."""
    allow_untrained: bool = False
    """Accept random weights where `weights` is null (demonstrations and tests only)."""
    low: float = 0.0
    """Smallest value of an untrained head's scores."""
    high: float = 1.0
    """Largest value of an untrained head's scores."""

    def __post_init__(self) -> None:
        named = f"score.heads.{self.column}"
        require(
            self.weights is not None or self.allow_untrained,
            f"{named}.weights",
            self.weights,
            "name weights of infra/weights.yaml, or set allow_untrained: true",
        )
        require(self.low < self.high, f"{named}.low", self.low, f"must be below high = {self.high}")
        require(
            self.weights is None or (self.low, self.high) == (0.0, 1.0),
            f"{named}.low, high",
            (self.low, self.high),
            "a trained head's range stands in infra/weights.yaml: leave them out",
        )
        require(
            re.fullmatch("[a-z][a-z0-9_]*", self.column) is not None and self.column not in TAKEN,
            "score.heads.column",
            self.column,
            "use lower-case letters, digits and _, and no name that the table has already",
        )


TAKEN = ("uid", "clip_similarity", "clip_similarity_mean", "clip_similarity_best", "blocklist_hit")
"""Columns of the scores table that no head gives."""
REAL_HEADS = (
    HeadSpec(column="aesthetic", weights="aesthetic_v2"),
    HeadSpec(column="nsfw_prob", weights="nsfw_vit_l14"),
    HeadSpec(column="watermark_prob", weights="watermark_vit_l14"),
)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """The heads that turn embeddings into scores."""

    heads: tuple[HeadSpec, ...] = REAL_HEADS
    """Heads on the image embedding."""
    blocklists_pdq: tuple[str, ...] = ()
    """Lists (fsspec URLs, text or CSV) of PDQ hashes; flipped and turned pictures are matched, too."""
    blocklists_md5: tuple[str, ...] = ()
    """Lists of MD5 sums of image files. With these or SHA-1, the score step reads every image file again."""
    blocklists_sha1: tuple[str, ...] = ()
    """Lists of SHA-1 sums of image files."""
    blocklists_sha256: tuple[str, ...] = ()
    """Lists of SHA-256 sums of image files."""
    blocklist_radius_bits: int = 31
    """Hamming radius on 256-bit PDQ, 0..31; 31 is what its publishers match at."""

    def __post_init__(self) -> None:
        columns = [head.column for head in self.heads]
        require(len(columns) == len(set(columns)), "score.heads.column", columns, "each head needs a column of its own")
        radius = self.blocklist_radius_bits
        require(0 <= radius <= 31, "score.blocklist_radius_bits", radius, "must be in 0..31")
