"""Settings: the cut-offs, the only place that drops a sample."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """The cut-offs: the only place that drops a sample. null switches a cut-off off."""

    min_side_px: int = 200
    """Smaller side of the picture."""
    max_aspect: float = 3.0
    """Longer side over shorter side."""
    min_entropy_bits: float | None = 2.0
    """Entropy of the grey histogram, 0..8."""
    min_sharpness: float | None = None
    """Variance of the Laplacian of the 256 px grey picture."""
    min_aesthetic: float | None = None
    """Aesthetic score, 1..10, higher is better."""
    max_nsfw_prob: float | None = 0.5
    """Probability of unsafe content, 0..1."""
    max_watermark_prob: float | None = 0.8
    """Probability of a watermark, 0..1."""
    min_clip_similarity: float | None = None
    """Cosine between picture and caption, -1..1; its scale depends on the model."""
