"""Settings: the heads that turn embeddings into scores, and the blocklists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from curate.config.check import require


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """A small network on the image embedding that gives one score."""

    column: str
    """Name of the score's column, with its unit."""
    hidden: Literal["none", "relu"] = "none"
    """Activation between the layers."""
    output: Literal["none", "sigmoid"] = "none"
    """Activation after the last layer."""
    weights: str | None = None
    """Name in infra/weights.yaml; null means untrained."""
    allow_untrained: bool = False
    """Accept random weights where `weights` is null (demonstrations and tests only)."""
    low: float = 0.0
    """Smallest value of the score, as its publishers use it."""
    high: float = 1.0
    """Largest value of the score."""

    def __post_init__(self) -> None:
        require(
            self.weights is not None or self.allow_untrained,
            f"score.heads.{self.column}.weights",
            self.weights,
            "name weights of infra/weights.yaml, or set allow_untrained: true",
        )


REAL_HEADS = (
    HeadSpec(column="aesthetic", weights="aesthetic_v2", low=1.0, high=10.0),
    HeadSpec(column="nsfw_prob", weights="nsfw_vit_l14", hidden="relu", output="sigmoid"),
    HeadSpec(column="watermark_prob", weights="watermark_vit_l14", output="sigmoid"),
)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """The heads that turn embeddings into scores."""

    heads: tuple[HeadSpec, ...] = REAL_HEADS
    """Heads on the image embedding."""
    blocklists_sha256: tuple[str, ...] = ()
    """Text files (fsspec URLs) with one SHA-256 of image bytes in hex a line."""
    blocklists_pdq: tuple[str, ...] = ()
    """Text files (fsspec URLs) with one PDQ hash in hex a line."""
    blocklist_radius_bits: int = 31
    """Hamming radius on 256-bit PDQ."""
